"""What makes no sense of a run, and why: each rule says whether it is broken, and what to do then."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..modeling.configuration_common import LatentSequenceConfig
from ..modeling.configuration_vrae import VRAEConfig

if TYPE_CHECKING:
    from .arguments import TrainArguments


def check_training(args: "TrainArguments") -> None:
    """Refuse options that nothing would read, and remedies that exclude each other.

    Raises:
        ValueError: naming both sides and why.
    """
    _refuse([*_options_nobody_reads(args), *_combinations(args)])


def check_model(args: "TrainArguments", config: LatentSequenceConfig) -> None:
    """Refuse what makes no sense of a run with the model that it trains.

    Raises:
        ValueError: naming both sides and why they exclude each other.
    """
    floor = args.minimum_rate > 0 or args.kl_schedule == "capacity"  # configurations refuse free bits themselves
    _refuse(
        [
            (
                config.latent_size == 0 and (args.kl_schedule != "constant" or args.kl_weight != 1),
                "`latent_size` 0 is a model without z, which has no KL: set `kl_schedule` constant and "
                f"`kl_weight` 1, got {args.kl_schedule} and {args.kl_weight}.",
            ),
            (
                config.latent_size == 0
                and (floor or args.aggressive or args.autoencoder_epochs > 0 or args.reset_decoder),
                "`latent_size` 0 is a model without z, which has no KL to hold and no encoder to train or to keep: "
                f"leave out `kl_capacity` {args.kl_capacity}, `minimum_rate` {args.minimum_rate}, `aggressive` "
                f"{args.aggressive}, `autoencoder_epochs` {args.autoencoder_epochs} and `reset_decoder` "
                f"{args.reset_decoder}.",
            ),
            *(_not_of_vrnn(args) if config.model_type == "vrnn" else _not_of_vrae(args, config, floor)),
        ]
    )


def _options_nobody_reads(args: "TrainArguments") -> list[tuple[bool, str]]:
    """Whether each option that is another's alone is off its default without that one. Not among them are those
    that a recipe may well say for others which start from it, such as `kl_warmup_steps`."""
    adam = args.optim != "sgd"
    read = {
        "adam_beta1": (adam, "`optim` adamw, adam or lamb"),
        "adam_beta2": (adam, "`optim` adamw, adam or lamb"),
        "momentum": (not adam, "`optim` sgd"),
        "warmup_steps": (args.lr_scheduler_type != "constant", "a `lr_scheduler_type` other than constant"),
        "kl_cycles": (args.kl_schedule == "cyclical", "`kl_schedule` cyclical"),
        "aggressive_max_epochs": (args.aggressive, "`aggressive`"),
        "eval_steps": (args.eval_strategy == "steps", "`eval_strategy` steps"),
        "hub_model_id": (args.push_to_hub, "`push_to_hub`"),
        "hub_private_repo": (args.push_to_hub, "`push_to_hub`"),
    }
    return [
        (
            not is_read and getattr(args, name) != args.__dataclass_fields__[name].default,
            f"`{name}` {getattr(args, name)} is of {reader}, which is not asked for. Set that, or leave it out.",
        )
        for name, (is_read, reader) in read.items()
    ]


def _combinations(args: "TrainArguments") -> list[tuple[bool, str]]:
    """Whether each combination of remedies that makes no sense is there, and why it makes none."""
    capacity, several = args.kl_schedule == "capacity", args.num_train_samples > 1
    models = args.model_name_or_path, args.encoder_name_or_path, args.decoder_name_or_path
    inside = [name for name in models if name and Path(name).resolve().is_relative_to(Path(args.output_dir).resolve())]
    return [
        (
            capacity != (args.kl_capacity > 0),
            "`kl_schedule` capacity and a `kl_capacity` above 0 belong together: the one is how the other rises. "
            f"Got {args.kl_schedule} and {args.kl_capacity}.",
        ),
        (
            (capacity or args.minimum_rate > 0) and args.free_bits > 0,
            f"`free_bits` {args.free_bits} leaves some KL free while `kl_capacity` {args.kl_capacity} or "
            f"`minimum_rate` {args.minimum_rate} prescribes one. Keep one of them.",
        ),
        (
            capacity and args.minimum_rate > 0,
            f"`kl_capacity` {args.kl_capacity} and `minimum_rate` {args.minimum_rate} both prescribe the KL. "
            "Keep one of them.",
        ),
        (
            (capacity or args.minimum_rate > 0) and several,
            f"`num_train_samples` {args.num_train_samples} trains the importance-weighted bound, which has no KL "
            "term that `kl_capacity` or `minimum_rate` could hold. Set one of them to its default.",
        ),
        (
            args.autoencoder_epochs > 0 and bool(args.model_name_or_path),
            f"`autoencoder_epochs` {args.autoencoder_epochs} trains the encoder that `model_name_or_path` "
            f"{args.model_name_or_path!r} would bring. Keep one of them.",
        ),
        (
            args.pretrained_parts and (bool(args.model_name_or_path) or args.autoencoder_epochs > 0),
            "`encoder_name_or_path` and `decoder_name_or_path` make a new model of pretrained ones, which "
            f"`model_name_or_path` {args.model_name_or_path!r} would not be, and whose decoder "
            f"`autoencoder_epochs` {args.autoencoder_epochs} would make anew. Leave these out.",
        ),
        (
            args.kl_weight == 0
            and (args.free_bits > 0 or capacity or args.minimum_rate > 0 or args.autoencoder_epochs > 0),
            f"`kl_weight` 0 charges nothing for the KL: `free_bits` {args.free_bits}, `kl_capacity` "
            f"{args.kl_capacity} and `minimum_rate` {args.minimum_rate} are without effect, and after "
            f"`autoencoder_epochs` {args.autoencoder_epochs} another autoencoder would be trained.",
        ),
        (
            args.svi_steps > 0 and (capacity or args.minimum_rate > 0 or args.mmd_weight > 0),
            f"`svi_steps` {args.svi_steps} descends the -ELBO, but `kl_capacity`, `minimum_rate` or `mmd_weight` "
            "train something else. Keep one.",
        ),
        (
            args.overwrite_output_dir and bool(inside),
            f"`overwrite_output_dir` would delete the model to start from: {inside} lies in `output_dir` "
            f"{args.output_dir!r}.",
        ),
        (
            args.aggressive and args.svi_steps > 0,
            f"`aggressive` and `svi_steps` {args.svi_steps} are two ways to bring q(z|x) up to date. Keep one.",
        ),
        (
            args.aggressive and args.eval_strategy == "no",
            "`aggressive` ends when the mutual information falls, which takes evaluations: set `eval_strategy`.",
        ),
        (
            args.eval_strategy == "no"
            and (args.early_stopping_patience is not None or args.lr_scheduler_type == "reduce_lr_on_plateau"),
            "`early_stopping_patience` and `lr_scheduler_type` reduce_lr_on_plateau count evaluations, of which "
            "there are none: set `eval_strategy`.",
        ),
        (
            args.early_stopping_patience is not None and args.lr_scheduler_type == "reduce_lr_on_plateau",
            f"`early_stopping_patience` {args.early_stopping_patience} and `lr_scheduler_type` reduce_lr_on_plateau "
            "count the same evaluations, and a decay begins the count anew. Leave the first out: such a run ends with "
            f"its {args.max_lr_decays} `max_lr_decays`.",
        ),
        (
            args.scheduled_sampling > 0 and (several or args.svi_steps > 0),
            f"`scheduled_sampling` {args.scheduled_sampling} needs one decoder pass of one latent, and bounds of "
            "several samples weigh what was read by the true steps: set `num_train_samples` 1 and `svi_steps` 0.",
        ),
    ]


def _not_of_vrae(args: "TrainArguments", config: VRAEConfig, floor: bool) -> list[tuple[bool, str]]:
    batch_of_one = args.per_device_train_batch_size == 1
    committed, prescribed = config.committed_kl, args.kl_capacity or args.minimum_rate
    return [
        (
            config.posterior == "vmf" and (floor or args.kl_schedule != "constant" or args.kl_weight != 1),
            "`posterior` vmf has a constant KL, which no schedule or floor changes: set `kl_schedule` constant, "
            f"`kl_weight` 1 and `minimum_rate` 0, got {args.kl_schedule}, {args.kl_weight} and "
            f"{args.minimum_rate}.",
        ),
        (
            0 < prescribed <= committed,
            f"`posterior` {config.posterior} never has a KL below {committed:.2f} nats, and `kl_capacity` "
            f"{args.kl_capacity} or `minimum_rate` {args.minimum_rate} would hold it at less. Raise that, or "
            "choose another posterior.",
        ),
        (
            config.posterior == "vmf" and args.autoencoder_epochs > 0,
            "`posterior` vmf has a constant KL: with or without `autoencoder_epochs` it costs the same.",
        ),
        (
            args.aggressive and config.tie_word_embeddings and not config.tables_are_apart,
            "`aggressive` trains the encoder alone, but `tie_word_embeddings` shares its table with the "
            "decoder. Set one of them to false.",
        ),
        (
            config.posterior == "batch_norm" and batch_of_one,
            "`posterior` batch_norm normalises over a batch: raise `per_device_train_batch_size` above 1.",
        ),
        (
            args.mmd_weight > 0 and batch_of_one,
            "`mmd_weight` compares a batch with the prior: raise `per_device_train_batch_size` above 1.",
        ),
        (
            args.scheduled_sampling > 0 and not config.reads_the_past,
            f"`scheduled_sampling` {args.scheduled_sampling} is of what the decoder reads, and without "
            "`autoregressive`, or with `decoder_type` independent, it reads nothing. Set one of them to its "
            "default.",
        ),
        (
            args.resampling,
            "`resampling` chooses among paths at each step, and a vrae has one latent for all steps: there is "
            "nothing to choose. Take `model_type` vrnn, or leave it out.",
        ),
        (
            config.label_classifier and (args.scheduled_sampling > 0 or floor),
            "`label_classifier` trains -ELBOs weighted by q(c|x), of which neither `scheduled_sampling` nor a "
            "floor of the KL (`minimum_rate`, `kl_schedule` capacity) is a part. Leave them out.",
        ),
        (
            config.model_type == "hierarchical_vrae"
            and (args.kl_schedule == "capacity" or args.minimum_rate > 0)
            and config.has_own_prices,
            "`kl_schedule` capacity and `minimum_rate` hold the KL of all scales together, which "
            "`segment_kl_weight` and `segment_free_bits`, and those of sections, take apart. Leave these at their "
            "defaults.",
        ),
        (
            args.scheduled_sampling > 0
            and config.model_type == "hierarchical_vrae"
            and config.segment_separator_ids is not None,
            f"`scheduled_sampling` {args.scheduled_sampling} would put separators of the model's own among the "
            "words, and with them other segments. Set it to 0, or take segments of `segment_length`.",
        ),
    ]


def _not_of_vrnn(args: "TrainArguments") -> list[tuple[bool, str]]:
    weighted = args.kl_schedule != "constant" or args.kl_weight != 1
    return [
        (
            args.svi_steps > 0 or args.mmd_weight > 0,
            f"`svi_steps` {args.svi_steps} and `mmd_weight` {args.mmd_weight} are of one posterior per sequence, "
            "and a vrnn has one per step, each of what was sampled before. Set both to 0.",
        ),
        (
            args.aggressive,
            "`aggressive` ends when the mutual information of x and one z falls, and a vrnn has a z per step. Leave "
            "it out; `kl_schedule`, `free_bits`, `minimum_rate` and `residual_posterior` are there.",
        ),
        (
            args.autoencoder_epochs > 0 or args.reset_decoder,
            "`autoencoder_epochs` and `reset_decoder` make the decoder anew, which a vrnn shares with its "
            "posterior: h_t is of both. Leave them out.",
        ),
        (
            args.resampling and weighted,
            "`resampling` trains the particle filter's bound, in which no weight of the KL is: set `kl_schedule` "
            f"constant and `kl_weight` 1, got {args.kl_schedule} and {args.kl_weight}.",
        ),
    ]


def _refuse(combinations: list[tuple[bool, str]]) -> None:
    for senseless, reason in combinations:
        if senseless:
            raise ValueError(reason)
