"""Arguments of a training run: recipe (YAML), overridden by flags."""

import argparse
import dataclasses
import difflib
import math
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml
from transformers import HfArgumentParser
from transformers.utils import cached_file

from ..modeling.configuration_common import FreeBitsForm
from ..modeling.configuration_hierarchical import HierarchicalVRAEConfig
from ..modeling.configuration_vrae import VRAEConfig
from ..modeling.configuration_vrnn import VRNNConfig
from .combinations import check_training
from .schedules import ScheduleKind

CONFIGURATIONS = {"vrae": VRAEConfig, "vrnn": VRNNConfig, "hierarchical_vrae": HierarchicalVRAEConfig}
# What says something of text alone, and of frames alone.
OF_TEXT = (
    "text_column", "max_length", "tokenizer_name", "tokenizer_type", "vocab_size", "min_frequency",
    "preprocessing_num_workers", "segment_separators", "word_noise",
)  # fmt: skip
WAYS_TO_READ = ("features_column", "feature_columns", "sequence_column", "segment_column", "window", "stride")
MODEL_OF_FRAMES = (
    "head", "num_mixtures", "num_levels", "nade_hidden_size", "min_scale", "predict_length", "autoregressive",
)  # fmt: skip
FRAME_FILES = (".npz", ".npy")
STEP_FILES = {".csv", ".tsv"}  # with a row per step, whose columns are channels


def _arg(default, text: str):
    return field(default=default, metadata={"help": text})


def check_ways_to_read(given: dict, files: list[str]) -> None:
    """Refuse those of the ways to read, by name, that say nothing of such files; none are a data set by its name."""
    suffixes = {Path(file).suffix for file in files}
    rules = [
        (["encoding"], suffixes and suffixes <= {*FRAME_FILES, ".parquet"}, "is of files of characters"),
        (["features_column"], suffixes and suffixes <= STEP_FILES, "is of data with a row per sequence"),
        (["feature_columns", "sequence_column"], not suffixes & STEP_FILES, "is of a .csv with a row per step"),
    ]
    for names, senseless, reason in rules:
        if wrong := [name for name in names if senseless and name in given]:
            raise ValueError(f"`{wrong[0]}` {given[wrong[0]]!r} {reason}, and these are none. Leave it out.")


@dataclass
class DataArguments:
    """What to learn from. With no source named, it is what is built in.

    It is of frames where a file is .npz or .npy, where `features_column`, `feature_columns`, `sequence_column`,
    `segment_column` or `window` is given, and where `builtin` says so; of text otherwise.
    """

    train_file: str | None = _arg(
        None,
        "Text: .txt (a sequence per line), .csv, .tsv, .json, .jsonl or .parquet; frames: the last five, .npz, .npy",
    )
    validation_file: str | None = _arg(None, "As train_file; by default taken out of the training data")
    test_file: str | None = _arg(None, "As train_file; by default the final evaluation takes the validation data")
    dataset_name: str | None = _arg(None, "Data set of the Hub, or a local folder, in place of files")
    dataset_config_name: str | None = _arg(None, "Configuration of that data set")
    text_column: str | None = _arg(None, "Column of the text; by default 'text', or the only one of strings")
    encoding: str = _arg("utf-8", "Encoding of the files, where they are of characters")
    validation_split_percentage: float = _arg(5.0, "Share taken for validation where there is no such split")
    builtin: Literal["text", "frames"] = _arg("text", "What is learnt where no source is named")
    corpus_size: int | None = _arg(
        None,
        "Training sequences of what is built in, by default 20,000 sentences or 2,000 of frames; a tenth more each to "
        "validate and test",
    )
    max_train_samples: int | None = _arg(
        None, "Use only so many training sequences: the first, or some where validation data are taken out of them"
    )
    max_eval_samples: int | None = _arg(None, "Use only the first so many validation and test sequences")
    max_length: int = _arg(128, "Tokens a sequence at most, marks included; longer ones are cut")
    tokenizer_name: str | None = _arg(None, "Existing tokenizer, of the Hub or a folder, in place of a new one")
    tokenizer_type: Literal["word", "bpe", "char"] = _arg("word", "Kind of the tokenizer to train")
    vocab_size: int = _arg(10_000, "The most tokens of a new tokenizer, special ones included")
    min_frequency: int = _arg(1, "A new tokenizer leaves out words seen less often")
    preprocessing_num_workers: int | None = _arg(None, "Processes for tokenizing")
    segment_separators: list[str] | None = _arg(
        None, "hierarchical_vrae: tokens behind which a segment ends (marks of sentences, bars); by default none"
    )
    word_noise: float = _arg(
        0.0,
        "vrae: in training put other words in place of up to this share of those that the decoder reads and is to "
        "say, most of all of rare ones, behind which anything may follow (Kneser-Ney noising, Xie et al. 2017)",
    )
    features_column: str | None = _arg(
        None, "frames: column, or array of an .npz, of the frames; by default 'input_features', or the only one"
    )
    feature_columns: list[str] | None = _arg(
        None, "frames: channels of a .csv with a row per step; by default its columns of numbers"
    )
    sequence_column: str | None = _arg(None, "frames: rows of a .csv with the same value here are one sequence")
    segment_column: str | None = _arg(
        None, "hierarchical_vrae of frames: column, or array of an .npz, that is the same throughout a segment (a bar)"
    )
    window: int | None = _arg(None, "frames: cut sequences into windows of so many frames")
    stride: int | None = _arg(None, "frames: from one window to the next; by default `window`")
    train_window: int | None = _arg(None, "frames: cut the sequences of the training split alone, into such windows")
    transpose: int = _arg(
        0, "frames: in training move each sequence's channels up or down by up to so many, as music is transposed"
    )
    label_columns: list[str] | None = _arg(None, "Columns of class labels that condition the model")
    attribute_columns: list[str] | None = _arg(None, "Columns of real numbers that condition the model")
    condition_column: str | None = _arg(None, "Column of vectors that condition the model")
    max_labeled_samples: int | None = _arg(
        None, "Keep so many training labels, as many of each value, and hide the others: semi-supervised learning"
    )
    scale_features: bool | None = _arg(
        None,
        "frames: fit a mean and a scale a channel on the training split, to [-1, 1] for logistic_mixture; by default "
        "for the heads of real numbers",
    )

    def __post_init__(self):
        files = [name for name in ("train_file", "validation_file", "test_file") if getattr(self, name)]
        if self.dataset_name and files:
            raise ValueError(
                f"`dataset_name` and `{files[0]}` both name the data; got {self.dataset_name!r} and "
                f"{getattr(self, files[0])!r}. Keep one."
            )
        if files and not self.train_file:
            raise ValueError(
                f"`{files[0]}` {getattr(self, files[0])!r} is given without a `train_file`. Name that too, or "
                "leave this out."
            )
        if not 0 < self.validation_split_percentage < 100:
            raise ValueError(
                f"`validation_split_percentage` must be between 0 and 100, got {self.validation_split_percentage}."
            )
        if not 0 <= self.word_noise <= 1:
            raise ValueError(f"`word_noise` is a share and must be in [0, 1], got {self.word_noise}.")
        _check_positive(
            self, "corpus_size", "max_train_samples", "max_eval_samples", "min_frequency", "window", "stride",
            "max_labeled_samples", "train_window",
        )  # fmt: skip
        if self.transpose < 0:
            raise ValueError(f"`transpose` is of both directions and must not be negative, got {self.transpose}.")

    @property
    def conditions(self) -> tuple:
        """The columns that condition the model: of labels, of attributes, of vectors."""
        return self.label_columns, self.attribute_columns, self.condition_column

    @property
    def of_frames(self) -> bool:
        """Whether the sequences are of frames."""
        files = [Path(path).suffix for path in (self.train_file, self.validation_file, self.test_file) if path]
        ways = any(getattr(self, name) for name in WAYS_TO_READ if name != "stride")
        return self.builtin == "frames" or ways or any(suffix in FRAME_FILES for suffix in files)


@dataclass
class TrainArguments:
    """How to learn. Names are those of transformers' TrainingArguments wherever it has the thing."""

    output_dir: str = _arg("output", "Folder for the model, its checkpoints and its numbers")
    overwrite_output_dir: bool = _arg(False, "Delete an earlier run in output_dir; otherwise it is refused")
    model_name_or_path: str | None = _arg(None, "Start from this model and its tokenizer, with a fresh optimizer")
    encoder_name_or_path: str | None = _arg(None, "Take this pretrained model of transformers as encoder")
    decoder_name_or_path: str | None = _arg(None, "Take this pretrained language model, and its tokenizer, as decoder")
    freeze_decoder: bool = _arg(False, "Train of decoder_name_or_path only what brings z to it")
    autoencoder_epochs: float = _arg(
        0.0, "Begin as an autoencoder, whose KL costs nothing, for so many epochs; then make its decoder anew"
    )
    reset_decoder: bool = _arg(False, "Make the decoder of model_name_or_path anew, and keep its encoder")
    resume_from_checkpoint: str | None = _arg(None, "Go on with an interrupted run: a checkpoint folder, or 'latest'")
    num_train_epochs: float = _arg(12.0, "Passes over the training data")
    max_steps: int = _arg(-1, "Number of updates, in place of num_train_epochs")
    per_device_train_batch_size: int = _arg(64, "Sequences a process takes at once")
    per_device_eval_batch_size: int = _arg(64, "As above, in evaluation")
    gradient_accumulation_steps: int = _arg(1, "Batches a process takes for one update")
    train_sampling_strategy: Literal["group_by_length", "random"] = _arg("group_by_length", "How batches are made up")
    labeled_share: float = _arg(
        0.0, "Sequences whose label is there come so often that they are this share of an epoch; 0: once, as all"
    )
    optim: Literal["adamw", "adam", "sgd", "lamb"] = _arg("adamw", "Optimizer; lamb needs the extra 'optim'")
    learning_rate: float = _arg(3e-3, "Peak learning rate")
    weight_decay: float = _arg(0.0, "Weight decay, of biases and norms too")
    adam_beta1: float = _arg(0.9, "Of adamw, adam and lamb")
    adam_beta2: float = _arg(0.999, "Of adamw, adam and lamb")
    momentum: float = _arg(0.0, "Of sgd")
    max_grad_norm: float = _arg(5.0, "Clip the gradient to this norm; 0 does not")
    lr_scheduler_type: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt", "reduce_lr_on_plateau"
    ] = _arg("linear", "Course of the learning rate")
    warmup_steps: float = _arg(
        0.0, "Number of updates over which the learning rate rises; below 1, their share of the run"
    )
    lr_decay_factor: float = _arg(0.5, "reduce_lr_on_plateau: factor of a decay, which also restores the best model")
    lr_decay_patience: int = _arg(2, "reduce_lr_on_plateau: evaluations without improvement before a decay")
    lr_decay_start_epoch: float = _arg(0.0, "reduce_lr_on_plateau: no decay before this epoch")
    max_lr_decays: int = _arg(5, "reduce_lr_on_plateau: the run ends with this decay")
    kl_schedule: ScheduleKind = _arg("linear", "Course of the KL weight")
    kl_weight: float = _arg(1.0, "Final KL weight (beta)")
    kl_start: float = _arg(0.0, "First KL weight")
    kl_warmup_steps: float = _arg(
        0.8, "Number of updates over which the KL weight rises; below 1, their share of the run or cycle"
    )
    kl_cycles: int = _arg(4, "Cycles of the cyclical schedule")
    kl_capacity: float = _arg(0.0, "Last C of the capacity schedule, whose KL term is |KL - C|; nats per sequence")
    minimum_rate: float = _arg(0.0, "Least KL of a sequence in nats, held by a Lagrangian multiplier")
    free_bits: float = _arg(0.0, "KL that costs nothing: nats per dimension or per sequence, bits for hinge")
    free_bits_form: FreeBitsForm = _arg(
        "dimension",
        "Whose KL is free up to free_bits: a dimension's in the batch mean (dimension_mean) or in each sequence "
        "(dimension), a sequence's in the batch mean (mean) or its own (example; in bits: hinge)",
    )
    mmd_weight: float = _arg(0.0, "Weight of the distance between q(z) and the prior (InfoVAE; WAE with kl_weight 0)")
    num_train_samples: int = _arg(1, "Samples of the importance-weighted bound to train; 1 is the ELBO")
    resampling: bool = _arg(False, "vrnn: resample these as a particle filter does (FIVO, Maddison et al. 2017)")
    svi_steps: int = _arg(0, "Gradient steps that refine each posterior (semi-amortised VAE); needs kernels plain")
    aggressive: bool = _arg(False, "Train the encoder to a standstill before each decoder step, while MI rises")
    aggressive_max_epochs: float = _arg(10.0, "aggressive: at most so many epochs of it")
    scheduled_sampling: float = _arg(
        0.0, "Share of the words or frames a decoder reads that are its own at the end, rising from 0"
    )
    eval_strategy: Literal["epoch", "steps", "no"] = _arg("epoch", "When to evaluate on the validation data")
    eval_steps: int = _arg(500, "Updates between evaluations, with eval_strategy=steps")
    save_steps: int = _arg(500, "Updates between checkpoints; one is also kept of the best model")
    save_total_limit: int = _arg(2, "Checkpoints kept besides that of the best model")
    logging_steps: int = _arg(20, "Updates between lines of metrics.jsonl")
    early_stopping_patience: int | None = _arg(
        None, "Stop after so many evaluations without improvement, counted once the KL weight has arrived"
    )
    num_importance_samples: int = _arg(100, "K of the importance-weighted likelihood of the final evaluation")
    num_quality_samples: int = _arg(
        0,
        "Also measure reconstruction from z alone, speed and memory, and so many samples of the model: of text their "
        "self-BLEU and reverse perplexity; 0 does not",
    )
    seed: int = _arg(42, "Seed of everything random but the data: what is built in or held out is the same for all")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = _arg(None, "By default what accelerate's launcher says")
    dataloader_num_workers: int = _arg(0, "Processes that prepare batches")
    report_to: str = _arg("none", "Tracker: none, all, tensorboard, trackio, wandb, ... (extra 'tracking')")
    push_to_hub: bool = _arg(False, "Push the model, its tokenizer and its card when done")
    hub_model_id: str | None = _arg(None, "Repository to push to; by default the name of output_dir")
    hub_private_repo: bool = _arg(False, "Make that repository private")

    def __post_init__(self):
        _check_positive(
            self, "num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size", "learning_rate",
            "gradient_accumulation_steps", "lr_decay_factor", "lr_decay_patience", "kl_cycles", "eval_steps",
            "save_steps", "save_total_limit", "logging_steps", "early_stopping_patience", "num_importance_samples",
            "num_train_samples", "aggressive_max_epochs", "max_lr_decays",
        )  # fmt: skip
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"`{name}` must be a finite number, got {value}.")
        if self.max_steps == 0 or self.max_steps < -1:
            raise ValueError(f"`max_steps` must be above 0, or -1 for `num_train_epochs`; got {self.max_steps}.")
        for name in (
            "max_grad_norm", "weight_decay", "warmup_steps", "kl_warmup_steps", "kl_weight", "kl_start", "free_bits",
            "kl_capacity", "minimum_rate", "mmd_weight", "svi_steps", "autoencoder_epochs", "num_quality_samples",
            "dataloader_num_workers",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")
        if self.reset_decoder and not self.model_name_or_path:
            raise ValueError("`reset_decoder` keeps the encoder of `model_name_or_path`, which is not given.")
        if self.num_quality_samples == 1:
            raise ValueError("`num_quality_samples` 1 leaves no other sample for self-BLEU: give 2 or more, or 0.")
        if self.freeze_decoder and not self.decoder_name_or_path:
            raise ValueError("`freeze_decoder` is of `decoder_name_or_path`, which is not given.")
        if not 0 <= self.scheduled_sampling <= 1:
            raise ValueError(f"`scheduled_sampling` is a share and must be in [0, 1], got {self.scheduled_sampling}.")
        if self.lr_decay_factor >= 1:
            raise ValueError(
                f"`lr_decay_factor` lowers a learning rate and must be below 1, got {self.lr_decay_factor}."
            )
        if not 0 <= self.labeled_share < 1:
            raise ValueError(f"`labeled_share` is a share of all and must be in [0, 1), got {self.labeled_share}.")
        check_training(self)
        if self.resume_from_checkpoint and self.overwrite_output_dir:
            raise ValueError("`resume_from_checkpoint` goes on with the run that `overwrite_output_dir` deletes.")

    @property
    def pretrained_parts(self) -> bool:
        """Whether the model is made of pretrained ones."""
        return bool(self.encoder_name_or_path or self.decoder_name_or_path)


def _check_positive(arguments, *names: str) -> None:
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value <= 0:
            raise ValueError(f"`{name}` must be above 0, got {value}.")


def _model_arguments() -> type:
    """A dataclass of the configurations' fields that a user chooses; the data decide about the rest."""
    # HfArgumentParser knows no union of numbers, and no list of choices.
    plain = {
        float | int: float,
        float | int | None: float | None,
        list[float | int] | None: list[float] | None,
        VRAEConfig.__dataclass_fields__["latent_conditioning"].type: list[str] | None,
    }
    model_type = _arg(
        "vrae",
        "vrae: one latent per sequence; vrnn: one per step; hierarchical_vrae: one of the whole, one per segment",
    )
    chosen = {"model_type": ("model_type", Literal[*CONFIGURATIONS], model_type)}
    for f in (f for configuration in CONFIGURATIONS.values() for f in dataclasses.fields(configuration)):
        if "help" in f.metadata and f.name != "vocab_size":
            kind = plain.get(f.type, f.type)
            chosen.setdefault(f.name, (f.name, kind, field(default=f.default, metadata=f.metadata)))
    return dataclasses.make_dataclass("ModelArguments", chosen.values())


ModelArguments = _model_arguments()
SECTIONS = {"model": ModelArguments, "data": DataArguments, "training": TrainArguments}


@dataclass
class Recipe:
    """All arguments of a run.

    `said` names those that a command line or a recipe gave, be it their defaults.

    Raises:
        ValueError: for a field of the model that its type has not.
    """

    model: ModelArguments
    data: DataArguments
    training: TrainArguments
    said: frozenset[str] = field(default=frozenset(), compare=False)

    def __post_init__(self):
        own = self.model_fields()
        alone = [
            name for name in own if not all(name in kind.__dataclass_fields__ for kind in CONFIGURATIONS.values())
        ]
        for name in self._off_default(self.model):
            if name not in own and name != "model_type":
                nearest = difflib.get_close_matches(name, alone, n=1, cutoff=0.0)[0]
                raise ValueError(
                    f"`{name}` {getattr(self.model, name)!r} is not of a model of type {self.model.model_type}, whose "
                    f"nearest field is `{nearest}`. Set that one, or another `model_type`."
                )

    @staticmethod
    def _off_default(section) -> dict:
        """What is not left at its default."""
        defaults = type(section)()
        return {name: value for name, value in vars(section).items() if value != getattr(defaults, name)}

    def check_data(self) -> None:
        """Refuse what says nothing of such data, by a ValueError; a recipe need not name the data, so this is of a run
        alone."""
        data, of_frames = self.data, ("stride", "train_window", "transpose", "scale_features", *MODEL_OF_FRAMES)
        named = data.train_file or data.dataset_name
        files = [file for file in (data.train_file, data.validation_file, data.test_file) if file]
        remedy = "Leave it out, or name data of frames: an .npz, or a `features_column`."
        rules = [
            (OF_TEXT, data.of_frames, "is of text, and the data are frames. Leave it out."),
            (of_frames, not data.of_frames, f"is of frames, and the data are text. {remedy}"),
            (
                ("text_column", "encoding", "validation_split_percentage", *WAYS_TO_READ),
                not named,
                "says how to read data, and none are named. Leave it out.",
            ),
            (
                ["train_window"],
                self.model.predict_length,
                "cuts sequences of training alone, and `predict_length` would learn of ends that are none. Leave one "
                "of them out.",
            ),
            (["corpus_size", "builtin"], named, "is of what is built in, and other data are named. Leave it out."),
            (
                ["dataset_config_name"],
                not data.dataset_name,
                "is of `dataset_name`, which is not given. Leave it out.",
            ),
            (
                ["validation_split_percentage"],
                data.validation_file,
                "takes apart what `validation_file` leaves whole. Leave one of them out.",
            ),
            (
                ["tokenizer_type", "vocab_size", "min_frequency"],
                data.tokenizer_name or self.training.pretrained_parts,
                "is of a new tokenizer, and `tokenizer_name` or the pretrained model has one. Leave it out.",
            ),
        ]
        if any(data.conditions) and self.model.model_type != "vrae":
            raise ValueError(
                f"`label_columns`, `attribute_columns` and `condition_column` condition a vrae, and this is a "
                f"{self.model.model_type}. Leave them out."
            )
        if data.word_noise and (self.model.model_type != "vrae" or self.model.label_classifier):
            raise ValueError(
                f"`word_noise` {data.word_noise} takes a model whose decoder may read other words than its encoder: a "
                f"vrae without `label_classifier`; this is a {self.model.model_type}. Leave it out."
            )
        if data.word_noise and (self.training.num_train_samples > 1 or self.training.svi_steps):
            raise ValueError(
                f"`word_noise` {data.word_noise} is of the ELBO of one sample. Leave it out, or leave out "
                "`num_train_samples` and `svi_steps`."
            )
        if data.word_noise and self.model.bag_of_words_weight:
            raise ValueError(
                f"`word_noise` {data.word_noise} changes the words that `bag_of_words_weight` "
                f"{self.model.bag_of_words_weight} would have z foretell. Leave one of them out."
            )
        columns = {*(data.label_columns or ()), *(data.attribute_columns or ()), data.condition_column}
        if data.of_frames and (ours := columns & {"length", "input_features"}):
            raise ValueError(
                f"A condition is of column {min(ours)!r}, which is remade of the frames. Give yours another name."
            )
        if data.segment_column and self.model.model_type != "hierarchical_vrae":
            raise ValueError(
                f"`segment_column` says where the segments of a hierarchical_vrae lie, and this is a "
                f"{self.model.model_type}, which has none. Leave it out."
            )
        if data.max_labeled_samples and len(data.label_columns or ()) != 1:
            raise ValueError(
                f"`max_labeled_samples` hides values of one label; `label_columns` names {data.label_columns}."
            )
        given = {name: value for part in (data, self.model) for name, value in self._off_default(part).items()}
        for names, senseless, reason in rules:
            if wrong := [name for name in names if senseless and name in given]:
                raise ValueError(f"`{wrong[0]}` {given[wrong[0]]!r} {reason}")
        if named:
            check_ways_to_read(given, files)

    def model_fields(self) -> dict:
        """What of the model's section the model of its type has, by name."""
        own = {f.name for f in dataclasses.fields(CONFIGURATIONS[self.model.model_type])}
        return {name: value for name, value in vars(self.model).items() if name in own}

    def given_fields(self) -> dict:
        """What of these is said, or off its default: what a model that is there already must have."""
        given = self.said.union(self._off_default(self.model))
        return {name: value for name, value in self.model_fields().items() if name in given}

    def save(self, path) -> None:
        """Write the recipe that repeats this run, and with which it can be resumed."""
        sections = {name: dataclasses.asdict(getattr(self, name)) for name in SECTIONS}
        if self.training.model_name_or_path or self.training.pretrained_parts:  # which have what is not said here
            sections["model"] = {"model_type": self.model.model_type} | self.given_fields()
        for name in ("overwrite_output_dir", "resume_from_checkpoint"):  # wishes of one time
            del sections["training"][name]
        with open(path, "w", encoding="utf-8") as file:
            yaml.safe_dump(sections, file, sort_keys=False)

    def flat(self) -> dict[str, float | int | str]:
        """All arguments as trackers take them."""
        sections = (dataclasses.asdict(getattr(self, name)) for name in SECTIONS)
        return {k: v if isinstance(v, (float, int)) else str(v) for section in sections for k, v in section.items()}


class _Parser(HfArgumentParser):
    def error(self, message):  # argparse would print its whole usage and leave
        raise ValueError(message)


def parse_recipe(argv: list[str] | None = None) -> Recipe:
    """Read `--config recipe.yaml` and the flags that override it.

    Raises:
        ValueError: for an unknown key or flag, naming the nearest known one, and for a value of the wrong type.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = _Parser(SECTIONS.values(), description="Train a VRAE or a VRNN.", allow_abbrev=False)
    # Of a list, words such as -RRB- are tokens or columns: all our flags have two dashes.
    parser._negative_number_matcher = re.compile("-[^-]")
    parser.add_argument("--config", help="Recipe: YAML with the sections model, data and training")
    config = parser.parse_known_args(argv)[0].config
    # A later flag overrides an earlier one, so a recipe is a list of flags in front of the user's own.
    values = {} if config is None else _recipe_values(config)
    flags = [word for key, words in values.items() for word in (f"--{key}", *words)]
    *sections, _, unknown = parser.parse_args_into_dataclasses([*flags, *argv], return_remaining_strings=True)
    if unknown:
        known = [name for section in SECTIONS.values() for name in section.__dataclass_fields__]
        raise ValueError(_unknown("flag", unknown[0].split("=")[0], ["--" + name for name in ["config", *known]]))
    for action in parser._actions:
        action.default = argparse.SUPPRESS  # what is left is said
    return Recipe(*sections, frozenset(vars(parser.parse_args([*flags, *argv]))))


def _recipe_values(path: str, of: tuple[Path, ...] = ()) -> dict[str, list[str]]:
    """What a recipe says of each key, as a command line would, on top of the recipe that its `base` names; null is
    the default again. `of` are the recipes whose base this is."""
    try:
        with open(path, encoding="utf-8") as file:
            recipe = yaml.safe_load(file) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"The recipe {path!r} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"The recipe {path!r} must have the sections {', '.join(SECTIONS)}.")
    # The last three are for readers and for a comparison.
    base, *_ = (recipe.pop(key, None) for key in ("base", "title", "published", "begins_at"))
    of = (*of, Path(path).resolve())
    if base is not None and (not isinstance(base, str) or (Path(path).parent / base).resolve() in of):
        raise ValueError(f"`base` of {path!r} must be the file of a recipe that does not start here; got {base!r}.")
    said = {} if base is None else _recipe_values(str(Path(path).parent / base), of)
    for section, values in recipe.items():
        if section not in SECTIONS:
            raise ValueError(f"{path}: " + _unknown("section", section, list(SECTIONS)))
        if not isinstance(values or {}, dict):
            raise ValueError(f"{path}: section {section} must have keys with values, got {values!r}.")
        for key, value in (values or {}).items():
            if key not in SECTIONS[section].__dataclass_fields__:
                known = list(SECTIONS[section].__dataclass_fields__)
                raise ValueError(f"{path}: " + _unknown(f"key of section {section}", key, known))
            if value is False and key in ("eval_strategy", "mixed_precision"):
                value = "no"  # which YAML takes for false
            if value is None or (value == [] and getattr(SECTIONS[section](), key) is None):
                said.pop(key, None)
            else:
                said[key] = list(map(str, value if isinstance(value, list) else [value]))
                if "--" in said[key]:
                    raise ValueError(f"{path}: `{key}` holds '--', which ends the flags of a command. Leave it out.")
    return said


def _unknown(what: str, name: str, known: list[str]) -> str:
    return (
        f"unknown {what} {name!r}; did you mean {difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]!r}?"
    )


def read_recipe(name_or_path: str | Path) -> dict[str, dict]:
    """The recipe.yaml beside a saved model, in a folder or a repository, its sections by name; empty where there is
    none."""
    path = Path(name_or_path) / "recipe.yaml"
    if not path.is_file() and not path.parent.is_dir() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(name_or_path)):
        lenient = dict.fromkeys(("gated_repo", "missing_entries", "connection_errors"), False)
        lenient = {f"_raise_exceptions_for_{what}": value for what, value in lenient.items()}
        path = Path(cached_file(str(name_or_path), "recipe.yaml", **lenient) or path)
    recipe = yaml.safe_load(path.read_text("utf-8")) if path.is_file() else None
    return {name: said for name, said in recipe.items() if said} if isinstance(recipe, dict) else {}


def own_data(recipe: dict[str, dict]) -> str | None:
    """The file or the data set that a recipe names, None where it takes what is built in."""
    data = recipe.get("data", {})
    return data.get("dataset_name") or data.get("train_file")
