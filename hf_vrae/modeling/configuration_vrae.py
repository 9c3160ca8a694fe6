"""Configuration of the variational recurrent autoencoder."""

import math
from dataclasses import field
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .configuration_common import LatentSequenceConfig

Kind = Literal["rnn", "transformer", "independent"]
# Where each kind of decoder can see z, and where it does by default; the last is of a decoder of transformers.
PLACES = {
    "rnn": ["initial_state", "input", "output"],
    "transformer": ["memory", "prefix", "input", "output"],
    "independent": ["input", "output"],
    "decoder_config": ["prefix", "input", "output"],
}
# Whose models of transformers, given embeddings, see what follows (XLM, XLNet), do not count on behind a cache
# (RoBERTa's family), or cache no keys, or not in every layer.
UNFIT_DECODERS = ("xlm", "xlnet", "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text",
                  "roberta-prelayernorm", "xmod", "mamba", "mamba2", "falcon_mamba", "openai-gpt", "rwkv", "lfm2",
                  "qwen3_next", "jamba", "bamba", "recurrent_gemma", "minimax", "xlstm")  # fmt: skip
# Whose models of transformers read padding too, or want more than embeddings and a mask.
UNFIT_ENCODERS = ("canine", "clip_text_model", "convbert", "fnet", "ibert", "mobilebert", "nystromformer", "reformer",
                  "yoso")  # fmt: skip
DEFAULT_PLACES = {
    "rnn": ["initial_state", "input", "output"],
    "transformer": ["memory", "input"],
    "independent": ["input"],
    "decoder_config": ["prefix", "input"],
}


@strict
class VRAEConfig(LatentSequenceConfig):
    """Sizes and choices of a [`VRAEForSequenceGeneration`] or, with an `input_size`, a [`VRAEForFrameGeneration`].

    Each field says what it is in its `help`. The defaults suit a few ten thousand short sentences on a laptop;
    `recipes/` holds those of the papers.

    Example:

    ```python
    >>> from hf_vrae import VRAEConfig, VRAEForSequenceGeneration
    >>> model = VRAEForSequenceGeneration(VRAEConfig(vocab_size=1000, rnn_type="gru", latent_size=16))
    ```
    """

    model_type = "vrae"
    attribute_map = {"hidden_size": "decoder_hidden_size", "num_hidden_layers": "decoder_layers"}
    keys_to_ignore_at_inference = ["cache", "past_key_values", "latents", "posterior_mean", "posterior_logvar"]

    encoder_type: Kind = field(
        default="rnn",
        metadata={"help": "rnn, transformer, or independent: a mean over steps that do not see one another"},
    )
    decoder_type: Kind = field(
        default="rnn",
        metadata={"help": "rnn, transformer, or independent: steps independent given z, a VAE without time"},
    )
    encoder_hidden_size: int = field(
        default=128, metadata={"help": "Width of an encoder layer, both directions together"}
    )
    encoder_layers: int = field(default=1, metadata={"help": "Number of encoder layers"})
    bidirectional_encoder: bool = field(default=True, metadata={"help": "Read the input in both directions"})
    decoder_hidden_size: int = field(default=128, metadata={"help": "Width of a decoder layer"})
    decoder_layers: int = field(default=1, metadata={"help": "Number of decoder layers"})
    num_attention_heads: int = field(default=4, metadata={"help": "transformer: heads of an attention"})
    intermediate_size: int | None = field(
        default=None,
        metadata={"help": "transformer: width inside a feed-forward block, by default 4 times a layer's"},
    )
    max_position_embeddings: int = field(
        default=512, metadata={"help": "transformer, independent: the most steps of a sequence"}
    )
    memory_tokens: int = field(default=4, metadata={"help": "memory: number of vectors made of z, to attend to"})
    # A transformers model as encoder, or decoder, in place of ours: its configuration with its `model_type`.
    encoder_config: dict[str, Any] | None = None
    decoder_config: dict[str, Any] | None = None
    latent_conditioning: list[Literal["initial_state", "memory", "prefix", "input", "output"]] | None = field(
        default=None,
        metadata={
            "help": "Where the decoder sees z: initial_state (rnn), memory (attended to), prefix (in place of <s>), "
            "input (of every step), output (projection); by default rnn: initial_state input output, transformer: "
            "memory input, independent: input"
        },
    )
    encoder_dropout: float | int = field(
        default=0.0, metadata={"help": "Dropout on the encoder's embeddings and on its summary of the input"}
    )
    variational_dropout: bool = field(
        default=False,
        metadata={"help": "Dropout drops the same at every step of a sequence (Gal & Ghahramani 2016)"},
    )
    word_dropout: float | int = field(
        default=0.3,
        metadata={"help": "Share of the decoder's inputs lost in training: tokens become <unk>, frames missing"},
    )
    autoregressive: bool = field(
        default=True, metadata={"help": "frames: the decoder reads the frame before; else z alone tells all of them"}
    )
    skip_connections: bool = field(
        default=False, metadata={"help": "Add each decoder layer's input to its output, from the second layer on"}
    )
    posterior: Literal["gaussian", "batch_norm", "delta", "vmf"] = field(
        default="gaussian", metadata={"help": "q(z|x): gaussian, BN-VAE, delta-VAE, or von Mises-Fisher"}
    )
    batch_norm_gamma: float | int = field(
        default=0.6, metadata={"help": "batch_norm: scale of the normalised means (Zhu et al. 2020)"}
    )
    learn_batch_norm_scale: bool = field(
        default=False,
        metadata={"help": "batch_norm: learn each dimension's scale, their rms being gamma"},
    )
    committed_rate: float | int = field(
        default=0.15, metadata={"help": "delta: the least KL of a dimension, nats (Razavi et al. 2019)"}
    )
    concentration: float | int = field(
        default=13.0, metadata={"help": "vmf: kappa, the same for all (Xu & Durrett 2018)"}
    )
    correlated_prior: bool = field(
        default=False, metadata={"help": "p(z) is N(0, R), with learnt correlations R of the dimensions, not N(0, I)"}
    )
    bag_of_words_weight: float | int = field(
        default=0.0, metadata={"help": "Weight of a loss that predicts the words from z alone (Zhao et al. 2017)"}
    )
    # What a sequence stands under; the data say what there is.
    condition_labels: dict[str, list[str]] | None = None  # names of each label's values; kept in order of the labels
    condition_attributes: list[str] | None = None  # names of real-valued attributes; seen as (a - mean) / scale
    attribute_mean: list[float | int] | None = None
    attribute_scale: list[float | int] | None = None
    condition_size: int = 0  # numbers of a vector that comes from anywhere
    condition_column: str | None = None  # its name in the data, by which scripts find it
    label_frequencies: list[float | int] | None = None  # p(c), of `label_classifier`; by default uniform
    condition_embedding_size: int = field(
        default=16, metadata={"help": "conditions: width of each embedded label, of all attributes, of a vector"}
    )
    condition_dropout: float | int | None = field(
        default=None,
        metadata={
            "help": "conditions: share of training rows whose condition is dropped, for guidance and for decoding "
            "without one; default: 0.1, or 0 with label_classifier"  # 0.1: Ho & Salimans 2022, table 1
        },
    )
    learn_prior: bool = field(
        default=True, metadata={"help": "conditions: learn p(z|c), a Gaussian; else it is N(0, I) whatever c"}
    )
    label_classifier: bool = field(
        default=False, metadata={"help": "conditions: learn q(c|x) of one label, and sum over it where it is missing"}
    )
    classifier_weight: float | int = field(
        default=1.0, metadata={"help": "label_classifier: weight of -log q(c|x) of a row whose label is there (alpha)"}
    )
    # Of the training loss alone; a run's arguments set them.
    mmd_weight: float | int = 0.0  # of [`objectives.maximum_mean_discrepancy`]
    svi_steps: int = 0  # of [`inference.refine`], from the encoder's posterior
    decoder_start_token_id: int | None = None  # by default `bos_token_id`
    is_encoder_decoder: bool = True

    def __post_init__(self, **kwargs):
        if self.encoder_config is not None:
            self.encoder_type = "transformer" if self.encoder_type == "rnn" else self.encoder_type
            self.encoder_hidden_size, self.encoder_layers = self._sizes_of("encoder_config")
        if self.decoder_config is not None:
            self.decoder_type = "transformer" if self.decoder_type == "rnn" else self.decoder_type
            self.decoder_hidden_size, self.decoder_layers = self._sizes_of("decoder_config")
        if self.condition_labels is not None:  # a saved configuration comes back in this order
            self.condition_labels = dict(sorted(self.condition_labels.items()))
        if self.decoder_start_token_id is None:
            self.decoder_start_token_id = self.bos_token_id
        if self.decoder_latent_size == 0:
            self.latent_conditioning = []
        elif self.latent_conditioning is None:
            self.latent_conditioning = list(DEFAULT_PLACES[self._kind_of_decoder])
        if self.condition_dropout is None:
            self.condition_dropout = 0.1 if self.condition_width and not self.label_classifier else 0.0
        super().__post_init__(**kwargs)
        if len(self.condition_labels or ()) == 1:  # transformers' own words for it
            (names,) = self.condition_labels.values()
            self.id2label = dict(enumerate(names))
            self.label2id = {name: i for i, name in self.id2label.items()}

    @property
    def condition_width(self) -> int:
        """Dimensions of c, the embedded condition; 0 without one."""
        parts = len(self.condition_labels or ()) + bool(self.condition_attributes) + (self.condition_size > 0)
        return parts * self.condition_embedding_size

    def _sizes_of(self, name: str) -> tuple[int, int]:
        """Width and depth of the transformers model that a field describes, after a check of what it is."""
        config = self.transformers_config(name)
        if name == "decoder_config" and config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise ValueError(
                f"`decoder_config` must be of a causal language model, of which transformers has none of `model_type` "
                f"{config.model_type}. Take gpt2, for example."
            )
        if name == "decoder_config" and config.model_type in UNFIT_DECODERS:
            raise ValueError(
                f"`decoder_config` of `model_type` {config.model_type} makes no decoder: step by step, from "
                "embeddings, transformers' model gives other logits than in one pass. Take gpt2, for example."
            )
        if name == "encoder_config" and config.model_type in UNFIT_ENCODERS:
            raise ValueError(
                f"`encoder_config` of `model_type` {config.model_type} makes no encoder: transformers' model takes no "
                "embeddings with a mask, or what it makes of a text changes with the padding beside it. Take bert, "
                "for example."
            )
        if config.is_encoder_decoder:
            raise ValueError(f"`{name}` is of an encoder with a decoder, {config.model_type}; one of them is wanted.")
        # The smaller OPT's last layer is brought to another width, that of its embeddings.
        width = config.word_embed_proj_dim if config.model_type == "opt" else config.hidden_size
        return width, config.num_hidden_layers

    def transformers_config(self, name: str):
        """The transformers configuration that `encoder_config` or `decoder_config` holds, for our vocabulary."""
        fields = dict(getattr(self, name))
        if "model_type" not in fields:
            raise ValueError(f"`{name}` must have the `model_type` of a transformers model, got {sorted(fields)}.")
        fields.pop("dtype", None)  # it is this model's
        config = AutoConfig.for_model(**fields)
        config.vocab_size = self.vocab_size
        config.is_decoder = name == "decoder_config"  # BERT's family looks to both sides otherwise
        return config

    @property
    def _kind_of_decoder(self) -> str:
        return self.decoder_type if self.decoder_config is None else "decoder_config"

    @property
    def reads_the_past(self) -> bool:
        """Whether the decoder reads x_<t."""
        return self.autoregressive and self.decoder_type != "independent"

    @property
    def tables_are_apart(self) -> bool:
        """Whether the encoder's table of words is its own even where the decoder's is tied to the projection."""
        return self.latent_size == 0 or self.encoder_config is not None or self.decoder_config is not None

    @property
    def decoder_latent_size(self) -> int:
        """Dimensions of what the decoder is given: z, and behind it c."""
        return self.latent_size + self.condition_width

    @property
    def committed_kl(self) -> float:
        """Nats below which the posterior's family keeps no batch's mean KL: Zhu et al. 2020, eq. 7, and Razavi et al.
        2019. Beside a prior that follows the posterior there is no such floor."""
        per_dimension = {"batch_norm": self.batch_norm_gamma**2 / 2, "delta": self.committed_rate}
        return 0.0 if self.correlated_prior else self.latent_size * per_dimension.get(self.posterior, 0.0)

    @property
    def _free_nats(self) -> float:
        """What `free_bits` frees, in nats."""
        return self.free_bits * (math.log(2) if self.free_bits_form == "hinge" else 1)

    @property
    def _free_already(self) -> float:
        """Nats that the posterior's family always has in the KL which `free_bits_form` compares."""
        if self.posterior == "batch_norm":  # keeps means over the batch
            kept = ["mean"] if self.learn_batch_norm_scale else ["mean", "dimension_mean"]
            if self.free_bits_form not in kept:
                return 0.0
        of_a_dimension = self.free_bits_form in ("dimension", "dimension_mean")
        return self.committed_kl / max(self.latent_size, 1) if of_a_dimension else self.committed_kl

    def validate_architecture(self):
        """Checked at construction and when saving."""
        self._check_at_least_1("encoder_hidden_size", "encoder_layers", "decoder_hidden_size", "decoder_layers")
        self._check_probabilities("encoder_dropout", "word_dropout")
        self._check_not_negative("mmd_weight", "svi_steps", "bag_of_words_weight")
        self._check_above_0("batch_norm_gamma", "committed_rate", "concentration")
        self._check_at_least_1("num_attention_heads", "max_position_embeddings", "memory_tokens")
        if self.intermediate_size is not None:
            self._check_at_least_1("intermediate_size")
        self._check_at_least_1("condition_embedding_size")
        self._check_probabilities("condition_dropout")
        self._check_not_negative("condition_size", "classifier_weight")
        self._check_conditions()
        super().validate_architecture()
        for size, own in (
            ("encoder_hidden_size", self.encoder_type == "transformer" and self.encoder_config is None),
            ("decoder_hidden_size", self.decoder_type == "transformer" and self.decoder_config is None),
        ):
            if own and getattr(self, size) % self.num_attention_heads:
                raise ValueError(
                    f"`{size}` is split among `num_attention_heads` {self.num_attention_heads} and must be a multiple "
                    f"of it, got {getattr(self, size)}."
                )
        if self.encoder_type == "rnn" and self.bidirectional_encoder and self.encoder_hidden_size % 2:
            raise ValueError(
                "`encoder_hidden_size` is split between two directions and must be even, got "
                f"{self.encoder_hidden_size}."
            )
        places = PLACES[self._kind_of_decoder]
        if self.decoder_latent_size > 0 and not self.latent_conditioning:
            raise ValueError(
                f"`latent_conditioning` must name at least one of {', '.join(places)}: without it the decoder never "
                "sees z. Got []."
            )
        for place in self.latent_conditioning:
            if place not in places:
                raise ValueError(
                    f"`latent_conditioning` {place} is no place of a decoder of kind {self._kind_of_decoder}, which "
                    f"has {', '.join(places)}."
                )
        if len(set(self.latent_conditioning)) < len(self.latent_conditioning):
            raise ValueError(f"`latent_conditioning` names a place twice: {self.latent_conditioning}.")
        if self.input_size is None and self.reads_the_past and self.word_dropout and self.unk_token_id is None:
            raise ValueError("`word_dropout` replaces tokens by `unk_token_id`, which is None. Set it, or set 0.")

    def _fields_nobody_reads(self) -> list[tuple[bool, str]]:
        """Fields off their defaults which say something about another kind of encoder, decoder or posterior alone."""
        encoder = "rnn" if self.latent_size == 0 else self.encoder_type
        own = (encoder == "transformer" and self.encoder_config is None) or self._kind_of_decoder == "transformer"
        kinds = f"`encoder_type` {encoder} and `decoder_type` {self.decoder_type}"
        nothing = f"says nothing of {kinds} with `latent_conditioning` {self.latent_conditioning}. Leave it out."
        of_family = f"is of `posterior` {{}}, got {self.posterior}. Set that, or leave it out."
        reads_nothing = (
            "is of what the decoder reads, and without `autoregressive`, or with `decoder_type` independent, it reads "
            "nothing. Leave it out."
        )
        rules = [
            (["rnn_type", "layer_norm", "forget_bias"], "rnn" in (encoder, self.decoder_type), nothing),
            (["bidirectional_encoder"], encoder == "rnn", nothing),
            (["weight_dropout", "skip_connections"], self.decoder_type == "rnn", nothing),
            (["num_attention_heads", "intermediate_size"], own, nothing),
            (["max_position_embeddings"], own or "independent" in (encoder, self.decoder_type), nothing),
            (["memory_tokens"], "memory" in self.latent_conditioning, nothing),
            (
                ["batch_norm_gamma", "learn_batch_norm_scale"],
                self.posterior == "batch_norm",
                of_family.format("batch_norm"),
            ),
            (["committed_rate"], self.posterior == "delta", of_family.format("delta")),
            (["concentration"], self.posterior == "vmf", of_family.format("vmf")),
            (["label_frequencies"], self.label_classifier, "is of `label_classifier`. Leave it out."),
            (["word_dropout"], self.reads_the_past or not self.word_dropout, reads_nothing),
        ]
        return [
            (
                not is_read and getattr(self, name) != self.__dataclass_fields__[name].default,
                f"`{name}` {getattr(self, name)} {reason}",
            )
            for names, is_read, reason in rules
            for name in names
        ]

    def _check_conditions(self):
        for name, values in (self.condition_labels or {}).items():
            if not values or len(set(values)) < len(values):
                raise ValueError(
                    f"`condition_labels` must name each value of label {name!r} once, one at least; got {values}."
                )
        for name in ("attribute_mean", "attribute_scale"):
            numbers, count = getattr(self, name), len(self.condition_attributes or ())
            if numbers is not None and len(numbers) != count:
                raise ValueError(
                    f"`{name}` must have a number for each of the {count} `condition_attributes`, got {len(numbers)}."
                )
        self._check_numbers("attribute_mean", "attribute_scale")
        frequencies = self.label_frequencies
        counts = [len(values) for values in (self.condition_labels or {}).values()]
        if frequencies is not None and (
            [len(frequencies)] != counts or not all(0 < share < math.inf for share in frequencies)
        ):
            raise ValueError(
                "`label_frequencies` must be above 0 and finite, one for each value of the one label of "
                f"`condition_labels`, which have {counts}; got {frequencies}."
            )

    def _combinations(self) -> list[tuple[bool, str]]:
        return [*super()._combinations(), *self._combinations_of_one_latent(), *self._combinations_of_conditions()]

    def _combinations_of_conditions(self) -> list[tuple[bool, str]]:
        conditional = self.condition_width > 0
        other_losses = self.num_train_samples > 1 or self.svi_steps > 0 or self.free_bits > 0
        other_losses = other_losses or self.mmd_weight > 0 or self.bag_of_words_weight > 0
        return [
            (
                self.condition_dropout > 0 and not conditional,
                f"`condition_dropout` {self.condition_dropout} drops conditions, and the model has none: name columns "
                "of the data (`label_columns`, `attribute_columns`, `condition_column`), or leave it out.",
            ),
            *(
                (
                    not conditional and getattr(self, name) != self.__dataclass_fields__[name].default,
                    f"`{name}` {getattr(self, name)} is of a condition, and the model has none: name columns of the "
                    "data (`label_columns`, `attribute_columns`, `condition_column`), or leave it out.",
                )
                for name in ("condition_embedding_size", "learn_prior")
            ),
            (
                self.classifier_weight != 1 and not self.label_classifier,
                f"`classifier_weight` {self.classifier_weight} is of `label_classifier`, which is not asked for. Set "
                "that, or leave it out.",
            ),
            (
                conditional and self.latent_size > 0 and self.learn_prior and self.posterior != "gaussian",
                f"`posterior` {self.posterior} keeps its KL to one prior for all from falling to 0, and `learn_prior` "
                "makes one for each condition. Set `learn_prior` false, or `posterior` gaussian.",
            ),
            (
                self.correlated_prior and conditional and self.learn_prior,
                "`correlated_prior` is one for all, and `learn_prior` makes one for each condition. Set one of them "
                "to false.",
            ),
            (
                self.label_classifier and len(self.condition_labels or ()) != 1,
                "`label_classifier` is of exactly one label, got "
                f"{list(self.condition_labels or ())}. Name one of `label_columns`, or leave it out.",
            ),
            (
                self.label_classifier and self.latent_size == 0,
                "`label_classifier` reads the encoder's summary, and `latent_size` 0 is a model without encoder. "
                "Raise `latent_size`.",
            ),
            (
                self.label_classifier and self.condition_dropout > 0,
                "`label_classifier` sums over a missing label, so that no row is without one, which "
                f"`condition_dropout` {self.condition_dropout} is there to learn. Leave one of them out.",
            ),
            (
                self.label_classifier and self.posterior == "batch_norm",
                "`label_classifier` encodes a batch under each of its labels, and `posterior` batch_norm would keep "
                "statistics of all of these together. Take `posterior` gaussian.",
            ),
            (
                self.label_classifier and other_losses,
                "`label_classifier` trains -ELBOs weighted by q(c|x): `num_train_samples`, `svi_steps`, `free_bits`, "
                "`mmd_weight` and `bag_of_words_weight` are of one -ELBO a row. Leave them at their defaults.",
            ),
        ]

    def _combinations_of_one_latent(self) -> list[tuple[bool, str]]:
        several = self.num_train_samples > 1
        free = f"`free_bits` {self.free_bits}"
        return [
            *self._fields_nobody_reads(),
            (
                self._free_already >= self._free_nats > 0,
                f"{free} in the form {self.free_bits_form} frees nothing: `posterior` {self.posterior} never has a KL "
                f"below {self._free_already:.3f} nats there. Raise it, or set it to 0.",
            ),
            (
                self.decoder_type == "independent" and self.latent_size == 0,
                "`decoder_type` independent reads nothing but z, and `latent_size` 0 says there is none. Raise it, or "
                "take another `decoder_type`.",
            ),
            (
                self.decoder_type == "independent" and "input" not in self.latent_conditioning,
                "`decoder_type` independent must have input in its `latent_conditioning`: what it computes is of z.",
            ),
            (
                (self.encoder_config is not None and self.encoder_type == "independent")
                or (self.decoder_config is not None and self.decoder_type == "independent"),
                "`encoder_config` and `decoder_config` are of transformers, not of type independent. Leave out one.",
            ),
            (
                "memory" in self.latent_conditioning and self.memory_tokens < 2,
                f"`memory_tokens` must be 2 or more, got {self.memory_tokens}: all would attend alike to one.",
            ),
            (
                self.input_size is not None and (self.encoder_config is not None or self.decoder_config is not None),
                f"`encoder_config` and `decoder_config` are of models of words, and `input_size` {self.input_size} "
                "says there are none. Leave them out.",
            ),
            (
                self.latent_size == 0 and (self.encoder_type != "rnn" or self.encoder_config is not None),
                "`latent_size` 0 is a language model without encoder: leave out `encoder_type` and `encoder_config`.",
            ),
            (
                self.tie_word_embeddings and self.encoder_config is not None and self.decoder_type == "independent",
                "`tie_word_embeddings` ties the decoder's table, which `decoder_type` independent has not. Set it to "
                "false.",
            ),
            (
                self.input_size is None and not self.autoregressive,
                "`autoregressive` false is of models of frames: set `input_size`, or raise `word_dropout` instead.",
            ),
            (
                self.input_size is not None and self.bag_of_words_weight > 0,
                f"`bag_of_words_weight` {self.bag_of_words_weight} predicts words, and `input_size` "
                f"{self.input_size} says there are none. Set it to 0.",
            ),
            (
                self.skip_connections and self.decoder_layers < 2,
                "`skip_connections` go around each decoder layer but the first: raise `decoder_layers` above 1.",
            ),
            (
                self.latent_size == 0
                and (self.posterior != "gaussian" or self.bag_of_words_weight > 0 or self.mmd_weight > 0),
                "`latent_size` 0 is a language model without z: `posterior`, `bag_of_words_weight` and `mmd_weight` "
                "say something about z. Leave them at their defaults, or raise `latent_size`.",
            ),
            (
                self.latent_size == 0 and (self.free_bits > 0 or self.svi_steps > 0 or several),
                "`latent_size` 0 is a language model without z: there is no KL for `free_bits`, no posterior for "
                "`svi_steps`, nothing to sample for `num_train_samples`. Leave them at their defaults.",
            ),
            (
                self.posterior == "vmf" and self.latent_size < 3,
                f"`posterior` vmf lives on a sphere of `latent_size` 3 or more dimensions, got {self.latent_size}.",
            ),
            (
                self.posterior == "vmf" and self.free_bits > 0,
                f"`posterior` vmf has a constant KL, which {free} cannot change. Set `concentration` in its place.",
            ),
            (
                self.correlated_prior and (self.latent_size < 2 or self.posterior in ("delta", "vmf")),
                f"`correlated_prior` is of two dimensions or more of a Gaussian z, and `latent_size` is "
                f"{self.latent_size}, `posterior` {self.posterior} (delta keeps away from N(0, I), which would move). "
                "Set it to false, or take `posterior` gaussian or batch_norm.",
            ),
            (
                several and self.free_bits > 0,
                f"`num_train_samples` {self.num_train_samples} trains the importance-weighted bound, which has no KL "
                f"term that {free} could leave free. Set one of them to its default.",
            ),
            (
                several and (self.mmd_weight > 0 or self.svi_steps > 0 or self.bag_of_words_weight > 0),
                f"`num_train_samples` {self.num_train_samples} trains the importance-weighted bound: `mmd_weight`, "
                "`bag_of_words_weight` and `svi_steps` are of the ELBO. Set one of them to its default.",
            ),
            (
                self.svi_steps > 0 and self.free_bits > 0,
                f"`svi_steps` {self.svi_steps} descends the whole -ELBO, of which {free} charges a part. Keep one.",
            ),
            (
                self.svi_steps > 0 and self.bag_of_words_weight > 0,
                f"`svi_steps` {self.svi_steps} descends the -ELBO, of which `bag_of_words_weight` "
                f"{self.bag_of_words_weight} is no part. Keep one.",
            ),
            (
                self.svi_steps > 0 and self.kernels != "plain",
                f"`svi_steps` {self.svi_steps} differentiates through steps of gradient descent, which needs "
                f"`kernels` plain, got {self.kernels}.",
            ),
            (
                self.svi_steps > 0 and self.posterior != "gaussian",
                f"`svi_steps` would move the posterior out of the family {self.posterior}, and its floor of the KL "
                "with it. Take `posterior` gaussian.",
            ),
        ]


__all__ = ["VRAEConfig"]
