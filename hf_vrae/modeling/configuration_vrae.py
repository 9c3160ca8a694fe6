"""Configuration of the variational recurrent autoencoder."""

from dataclasses import field
from typing import Literal

from huggingface_hub.dataclasses import strict

from .configuration_common import LatentSequenceConfig


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
    keys_to_ignore_at_inference = ["past_key_values", "latents", "posterior_mean", "posterior_logvar"]

    encoder_hidden_size: int = field(
        default=128, metadata={"help": "Width of an encoder layer, both directions together"}
    )
    encoder_layers: int = field(default=1, metadata={"help": "Number of encoder layers"})
    bidirectional_encoder: bool = field(default=True, metadata={"help": "Read the input in both directions"})
    decoder_hidden_size: int = field(default=128, metadata={"help": "Width of a decoder layer"})
    decoder_layers: int = field(default=1, metadata={"help": "Number of decoder layers"})
    latent_conditioning: list[Literal["initial_state", "input", "output"]] = field(
        default_factory=lambda: ["initial_state", "input", "output"],
        metadata={"help": "Where the decoder sees z: initial_state, input (of every step), output (projection)"},
    )
    encoder_dropout: float | int = field(
        default=0.0, metadata={"help": "Dropout on the encoder's embeddings and on its summary of the input"}
    )
    word_dropout: float | int = field(
        default=0.3,
        metadata={"help": "Share of the decoder's inputs lost in training: tokens become <unk>, frames missing"},
    )
    autoregressive: bool = field(
        default=True, metadata={"help": "frames: the decoder reads the frame before; else z alone tells all of them"}
    )
    skip_connections: bool = field(
        default=False, metadata={"help": "Add to each further decoder layer's output what it was given"}
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
    bag_of_words_weight: float | int = field(
        default=0.0, metadata={"help": "Of an added loss that predicts the words from z alone (Zhao et al. 2017)"}
    )
    # What a sequence stands under; the data say what there is.
    condition_labels: dict[str, list[str]] | None = None  # names of each label's values; kept in order of the labels
    condition_attributes: list[str] | None = None  # names of real-valued attributes; seen as (a - mean) / scale
    attribute_mean: list[float] | None = None
    attribute_scale: list[float] | None = None
    condition_size: int = 0  # numbers of a vector that comes from anywhere
    label_frequencies: list[float] | None = None  # p(c), of `label_classifier`; by default uniform
    condition_embedding_size: int = field(
        default=16, metadata={"help": "conditions: width of each embedded label, of all attributes, of a vector"}
    )
    condition_dropout: float | int = field(
        default=0.0, metadata={"help": "conditions: share of training rows that lose theirs, for guidance"}
    )
    learn_prior: bool = field(
        default=True, metadata={"help": "conditions: learn p(z|c), a Gaussian; else it is N(0, I) whatever c"}
    )
    label_classifier: bool = field(
        default=False, metadata={"help": "conditions: learn q(c|x) of one label, and sum over it where it is missing"}
    )
    classifier_weight: float | int = field(
        default=1.0, metadata={"help": "label_classifier: of -log q(c|x) of a row whose label is there (alpha)"}
    )
    # Of the training loss alone; a run's arguments set them.
    mmd_weight: float | int = 0.0  # of [`objectives.maximum_mean_discrepancy`]
    svi_steps: int = 0  # of [`inference.refine`], from the encoder's posterior
    decoder_start_token_id: int | None = 2
    is_encoder_decoder: bool = True

    def __post_init__(self, **kwargs):
        if self.condition_labels is not None:  # a saved configuration comes back in this order
            self.condition_labels = dict(sorted(self.condition_labels.items()))
        if self.decoder_latent_size == 0:
            self.latent_conditioning = []
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

    @property
    def decoder_latent_size(self) -> int:
        """Dimensions of what the decoder is given: z, and behind it c."""
        return self.latent_size + self.condition_width

    def validate_architecture(self):
        """Checked at construction and when saving."""
        self._check_at_least_1("encoder_hidden_size", "encoder_layers", "decoder_hidden_size", "decoder_layers")
        self._check_probabilities("encoder_dropout", "word_dropout")
        self._check_not_negative("mmd_weight", "svi_steps", "bag_of_words_weight")
        self._check_above_0("batch_norm_gamma", "committed_rate", "concentration")
        self._check_at_least_1("condition_embedding_size")
        self._check_probabilities("condition_dropout")
        self._check_not_negative("condition_size", "classifier_weight")
        self._check_conditions()
        super().validate_architecture()
        if self.bidirectional_encoder and self.encoder_hidden_size % 2:
            raise ValueError(
                "`encoder_hidden_size` is split between two directions and must be even, got "
                f"{self.encoder_hidden_size}."
            )
        if self.decoder_latent_size > 0 and not self.latent_conditioning:
            raise ValueError(
                "`latent_conditioning` must name at least one of initial_state, input, output: without it the "
                "decoder never sees z. Got []."
            )
        if len(set(self.latent_conditioning)) < len(self.latent_conditioning):
            raise ValueError(f"`latent_conditioning` names a place twice: {self.latent_conditioning}.")
        if self.input_size is None and self.word_dropout and self.unk_token_id is None:
            raise ValueError("`word_dropout` replaces tokens by `unk_token_id`, which is None. Set it, or set 0.")

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
        if min(self.attribute_scale or [1.0]) <= 0:
            raise ValueError(f"`attribute_scale` must be above 0, got {min(self.attribute_scale)}.")
        frequencies = self.label_frequencies
        counts = [len(values) for values in (self.condition_labels or {}).values()]
        if frequencies is not None and ([len(frequencies)] != counts or min(frequencies) <= 0):
            raise ValueError(
                "`label_frequencies` must be above 0, one for each value of the one label of `condition_labels`, "
                f"which have {counts}; got {frequencies}."
            )

    def _combinations(self) -> list[tuple[bool, str]]:
        return self._combinations_of_one_latent() + self._combinations_of_conditions()

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
            (
                conditional and self.latent_size > 0 and self.learn_prior and self.posterior != "gaussian",
                f"`posterior` {self.posterior} keeps its KL to one prior for all from falling to 0, and `learn_prior` "
                "makes one for each condition. Set `learn_prior` false, or `posterior` gaussian.",
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
                f"`condition_dropout` {self.condition_dropout} is there to learn. Set one of them to its default.",
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
                self.learn_batch_norm_scale and self.posterior != "batch_norm",
                f"`learn_batch_norm_scale` is of `posterior` batch_norm, got {self.posterior}.",
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
