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
    latent_size: int = field(default=32, metadata={"help": "D, the number of dimensions of z"})
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
    kernels: Literal["auto", "plain"] = field(
        default="auto", metadata={"help": "plain: torch's own operations throughout, slower and twice differentiable"}
    )
    free_bits: float | int = 0.0  # of the training loss, as in [`objectives.free_bits`]; a run's arguments set it
    free_bits_form: FreeBitsForm = "dimension"
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
        super().__post_init__(**kwargs)
        # `strict` runs the validators too, but would wrap this ValueError in an exception that is none.
        self.validate_architecture()

    def validate_architecture(self):
        """Checked at construction and when saving."""
        sizes = "vocab_size embedding_size latent_size encoder_hidden_size encoder_layers decoder_hidden_size"
        for name in [*sizes.split(), "decoder_layers"]:
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in ("dropout", "word_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` is a probability and must be in [0, 1), got {getattr(self, name)}.")
        if self.free_bits < 0:
            raise ValueError(f"`free_bits` must not be negative, got {self.free_bits}.")
        for name in ("initializer_range", "embedding_initializer_range"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)}.")
        if self.bidirectional_encoder and self.encoder_hidden_size % 2:
            raise ValueError(
                "`encoder_hidden_size` is split between two directions and must be even, got "
                f"{self.encoder_hidden_size}."
            )
        if not self.latent_conditioning:
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


__all__ = ["VRAEConfig"]
