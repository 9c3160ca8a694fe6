"""Configuration of the variational recurrent autoencoder."""

import difflib
from dataclasses import field
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import GenerationConfig
from transformers.configuration_utils import PreTrainedConfig

# Keys that PreTrainedConfig itself understands although they are not fields of it.
_BASE_KEYS = {
    "attn_implementation",
    "auto_map",
    "custom_pipelines",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "per_layer_config",
    "quantization_config",
    "torch_dtype",
}

FreeBitsForm = Literal["dimension_mean", "dimension", "example", "mean", "hinge"]  # `objectives.free_bits` says which


@strict
class VRAEConfig(PreTrainedConfig):
    """Sizes and choices of a [`VRAEForSequenceGeneration`]; each field says what it is in its `help`.

    The defaults suit a few ten thousand short sentences on a laptop; `recipes/` holds those of the papers.

    Raises:
        ValueError: for an unknown key, naming the nearest known one, and for values that make no model.
        StrictDataclassError: for a value of the wrong type, at construction and on assignment.

    Example:

    ```python
    >>> from hf_vrae import VRAEConfig, VRAEForSequenceGeneration
    >>> model = VRAEForSequenceGeneration(VRAEConfig(vocab_size=1000, rnn_type="gru", latent_size=16))
    ```
    """

    model_type = "vrae"
    attribute_map = {"hidden_size": "decoder_hidden_size", "num_hidden_layers": "decoder_layers"}
    has_no_defaults_at_init = False  # asked for by transformers' configuration tests
    keys_to_ignore_at_inference = ["past_key_values", "latents", "posterior_mean", "posterior_logvar"]

    vocab_size: int = field(default=10_000, metadata={"help": "Number of tokens, special ones included"})
    embedding_size: int = field(default=128, metadata={"help": "Width of the token embeddings"})
    latent_size: int = field(default=32, metadata={"help": "D, the dimensions of z; 0 is a language model without"})
    rnn_type: Literal["lstm", "gru"] = field(default="lstm", metadata={"help": "Kind of the recurrent layers"})
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
    layer_norm: bool = field(default=False, metadata={"help": "Layer-normalised cells (Ba et al. 2016)"})
    dropout: float | int = field(
        default=0.1, metadata={"help": "Dropout on the decoder's embeddings, between its layers and on its output"}
    )
    encoder_dropout: float | int = field(
        default=0.0, metadata={"help": "Dropout on the encoder's embeddings and on its summary of the input"}
    )
    weight_dropout: float | int = field(
        default=0.0, metadata={"help": "Dropout on the decoder's recurrent weights (Merity et al. 2018)"}
    )
    word_dropout: float | int = field(
        default=0.3, metadata={"help": "Share of the decoder's input tokens replaced by <unk> in training"}
    )
    tie_word_embeddings: bool = field(
        default=False, metadata={"help": "One table for encoder input, decoder input and output projection"}
    )
    initializer_range: float | int = field(
        default=0.08, metadata={"help": "Weights start uniform in [-r, r]; 0.08 is Sutskever et al. 2014"}
    )
    embedding_initializer_range: float | int = field(
        default=0.1, metadata={"help": "Embeddings start uniform in [-r, r]; 0.1 is He et al. 2019"}
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
    kernels: Literal["auto", "plain"] = field(
        default="auto", metadata={"help": "plain: torch's own operations throughout, slower and twice differentiable"}
    )
    # Of the training loss alone; a run's arguments set them.
    free_bits: float | int = 0.0  # as in [`objectives.free_bits`]
    free_bits_form: FreeBitsForm = "dimension"
    mmd_weight: float | int = 0.0  # of [`objectives.maximum_mean_discrepancy`]
    num_train_samples: int = 1  # K of [`objectives.importance_weighted_bound`], in place of the ELBO above 1
    svi_steps: int = 0  # of [`inference.refine`], from the encoder's posterior
    pad_token_id: int | None = 0
    unk_token_id: int | None = 1
    bos_token_id: int | None = 2
    eos_token_id: int | None = 3
    decoder_start_token_id: int | None = 2
    is_encoder_decoder: bool = True
    use_cache: bool = True

    def __post_init__(self, **kwargs):
        known = set(self.__dataclass_fields__) | set(self.attribute_map) | _BASE_KEYS
        known |= set(GenerationConfig._get_default_generation_params())
        for key in kwargs:
            if key not in known and not key.startswith("_"):
                nearest = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.0)[0]
                raise ValueError(f"`{key}` is not a field of VRAEConfig; did you mean `{nearest}`?")
        if self.latent_size == 0:
            self.latent_conditioning = []
        super().__post_init__(**kwargs)
        # `strict` runs the validators too, but would wrap this ValueError in an exception that is none.
        self.validate_architecture()

    def validate_architecture(self):
        """Checked at construction and when saving."""
        sizes = "vocab_size embedding_size encoder_hidden_size encoder_layers decoder_hidden_size decoder_layers"
        for name in [*sizes.split(), "num_train_samples"]:
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in ("dropout", "encoder_dropout", "weight_dropout", "word_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` is a probability and must be in [0, 1), got {getattr(self, name)}.")
        for name in ("latent_size", "free_bits", "mmd_weight", "svi_steps", "bag_of_words_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")
        ranges = ("initializer_range", "embedding_initializer_range")
        for name in (*ranges, "batch_norm_gamma", "committed_rate", "concentration"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)}.")
        for senseless, reason in self._combinations():
            if senseless:
                raise ValueError(reason)
        if self.bidirectional_encoder and self.encoder_hidden_size % 2:
            raise ValueError(
                "`encoder_hidden_size` is split between two directions and must be even, got "
                f"{self.encoder_hidden_size}."
            )
        if self.latent_size > 0 and not self.latent_conditioning:
            raise ValueError(
                "`latent_conditioning` must name at least one of initial_state, input, output: without it the "
                "decoder never sees z. Got []."
            )
        if len(set(self.latent_conditioning)) < len(self.latent_conditioning):
            raise ValueError(f"`latent_conditioning` names a place twice: {self.latent_conditioning}.")
        for name in ("pad_token_id", "unk_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
            token_id = getattr(self, name)
            if token_id is not None and token_id >= self.vocab_size:
                raise ValueError(
                    f"`vocab_size` must hold the special tokens, but `{name}` is {token_id} and `vocab_size` is "
                    f"{self.vocab_size}. Raise `vocab_size`."
                )
        if self.word_dropout and self.unk_token_id is None:
            raise ValueError("`word_dropout` replaces tokens by `unk_token_id`, which is None. Set it, or set 0.")

    def _combinations(self) -> list[tuple[bool, str]]:
        """Whether each combination that makes no sense is there, and why it makes none."""
        several = self.num_train_samples > 1
        free = f"`free_bits` {self.free_bits}"
        return [
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
