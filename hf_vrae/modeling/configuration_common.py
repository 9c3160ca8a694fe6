"""What the configurations of all models share."""

import difflib
import math
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
Head = Literal[
    "bernoulli", "nade", "gaussian", "full_gaussian", "gaussian_mixture", "logistic_mixture", "categorical"
]  # `heads` says which
_SCALED_HEADS = ("gaussian", "full_gaussian", "gaussian_mixture", "logistic_mixture")
_OF_HEADS = {
    "num_mixtures": ("gaussian_mixture", "logistic_mixture"),
    "num_levels": ("categorical", "logistic_mixture"),
    "nade_hidden_size": ("nade",),
    "min_scale": _SCALED_HEADS,
}

DATA_COLUMNS = ("feature_columns", "sequence_column", "segment_column")
"""What a model of frames keeps of how its data were read: it would else be misread in silence."""


def _lacking(value) -> property:
    """What a family without such a field is asked for all the same; it cannot be set there."""
    return property(lambda self: value)


@strict
class LatentSequenceConfig(PreTrainedConfig):
    """The fields of every latent-variable sequence model: what its sequences are of, and how it is made and trained.

    Raises:
        ValueError: for an unknown key, naming the nearest known one, and for values that make no model.
        StrictDataclassError: for a value of the wrong type, at construction and on assignment.
    """

    has_no_defaults_at_init = False  # asked for by transformers' configuration tests

    vocab_size: int = field(default=10_000, metadata={"help": "Number of tokens, special ones included"})
    input_size: int | None = None  # F, the channels of a frame; None where the sequences are of tokens
    head: Head = field(default="gaussian", metadata={"help": "frames: p(x_t | ...), the distribution of a frame"})
    num_mixtures: int = field(default=10, metadata={"help": "frames: components of a mixture"})
    num_levels: int = field(default=256, metadata={"help": "frames: values of categorical and logistic_mixture"})
    nade_hidden_size: int = field(default=64, metadata={"help": "frames: hidden units of the nade head"})
    min_scale: float | int = field(
        default=1e-3, metadata={"help": "frames: floor of learnt scales, in units of the channel's own deviation"}
    )
    predict_length: bool = field(
        default=False, metadata={"help": "frames: learn where a sequence ends, as part of its likelihood"}
    )
    input_mean: list[float | int] | None = None  # of each channel; a model of frames sees (x - mean) / scale
    input_scale: list[float | int] | None = None
    # Columns of the frames' data, by which scripts read more of it: [`DATA_COLUMNS`].
    feature_columns: list[str] | None = None  # of a .csv, the channels in order
    sequence_column: str | None = None
    segment_column: str | None = None
    embedding_size: int = field(default=128, metadata={"help": "Width of the embedded tokens or frames"})
    latent_size: int = field(default=32, metadata={"help": "D, the dimensions of z; 0 is a model without"})
    rnn_type: Literal["lstm", "gru"] = field(default="lstm", metadata={"help": "Kind of the recurrent layers"})
    layer_norm: bool = field(default=False, metadata={"help": "Layer-normalised cells (Ba et al. 2016)"})
    dropout: float | int = field(
        default=0.1, metadata={"help": "Dropout on the decoder's embeddings, between its layers and on its output"}
    )
    weight_dropout: float | int = field(
        default=0.0, metadata={"help": "Dropout on the decoder's recurrent weights (Merity et al. 2018)"}
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
    forget_bias: float | int = field(
        default=1.0,
        metadata={"help": "LSTMs' forget gates start with it; 1 is Jozefowicz et al. 2015, 0 is He et al. 2019"},
    )
    kernels: Literal["auto", "plain"] = field(
        default="auto",
        metadata={
            "help": "plain: torch's own operations wherever there is a gradient, slower and twice differentiable"
        },
    )
    # Of the training loss alone; a run's arguments set them.
    free_bits: float | int = 0.0  # as in [`objectives.free_bits`]
    free_bits_form: FreeBitsForm = "dimension"
    num_train_samples: int = 1  # K of [`objectives.importance_weighted_bound`], in place of the ELBO above 1
    pad_token_id: int | None = 0
    unk_token_id: int | None = 1
    bos_token_id: int | None = 2
    eos_token_id: int | None = 3
    use_cache: bool = True
    # Fields of some families alone.
    posterior = _lacking("gaussian")
    condition_labels = condition_attributes = condition_column = _lacking(None)
    condition_size = svi_steps = _lacking(0)
    label_classifier = _lacking(False)

    def __post_init__(self, **kwargs):
        known = set(self.__dataclass_fields__) | set(self.attribute_map) | _BASE_KEYS
        known |= set(GenerationConfig._get_default_generation_params())
        for key in kwargs:
            if key not in known and not key.startswith("_"):
                nearest = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.0)[0]
                raise ValueError(f"`{key}` is not a field of {type(self).__name__}; did you mean `{nearest}`?")
        super().__post_init__(**kwargs)
        if self.architectures is None:  # by which `AutoModel` chooses among the classes of a configuration
            kind = "Sequence" if self.input_size is None else "Frame"
            self.architectures = [f"{type(self).__name__.removesuffix('Config')}For{kind}Generation"]
        # `strict` runs the validators too, but would wrap this ValueError in an exception that is none.
        self.validate_architecture()

    def validate_architecture(self):
        """Checked at construction and when saving."""
        self._check_at_least_1("vocab_size", "embedding_size", "num_mixtures", "nade_hidden_size", "num_train_samples")
        self._check_probabilities("dropout", "weight_dropout")
        self._check_not_negative("latent_size", "free_bits")
        self._check_above_0("initializer_range", "embedding_initializer_range", "min_scale")
        if self.num_levels < 2:
            raise ValueError(f"`num_levels` must be at least 2, got {self.num_levels}.")
        if self.input_size is None:
            self._check_tokens()
        else:
            self._check_frames()
        for senseless, reason in self._combinations():
            if senseless:
                raise ValueError(reason)

    def _combinations(self) -> list[tuple[bool, str]]:
        """Whether each combination that makes no sense is there, and why it makes none."""
        head = None if self.input_size is None else self.head
        return [
            (
                self.rnn_type != "lstm" and self.forget_bias != 1,
                f"`forget_bias` {self.forget_bias} is of LSTMs, and `rnn_type` is {self.rnn_type}. Leave it out.",
            ),
            *(
                (
                    head not in heads and getattr(self, name) != self.__dataclass_fields__[name].default,
                    f"`{name}` {getattr(self, name)} is of models of frames with `head` {' or '.join(heads)}; got "
                    f"`input_size` {self.input_size} and `head` {self.head}. Leave it out.",
                )
                for name, heads in _OF_HEADS.items()
            ),
        ]

    def _check_tokens(self):
        for name in ("pad_token_id", "unk_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
            token_id = getattr(self, name, None)
            if token_id is not None and not 0 <= token_id < self.vocab_size:
                raise ValueError(
                    f"`vocab_size` must hold the special tokens, but `{name}` is {token_id} and `vocab_size` is "
                    f"{self.vocab_size}. Raise `vocab_size`, or set another id, or None."
                )
        for name in ("input_mean", "input_scale", "predict_length", *DATA_COLUMNS):
            if getattr(self, name):
                raise ValueError(f"`{name}` {getattr(self, name)} is of a model of frames: set `input_size`.")

    def _check_frames(self):
        self._check_at_least_1("input_size")
        if (self.input_mean is None) != (self.input_scale is None):
            raise ValueError("`input_mean` and `input_scale` belong together: give both, or neither.")
        for name in ("input_mean", "input_scale", "feature_columns"):
            entries = getattr(self, name)
            if entries is not None and len(entries) != self.input_size:
                raise ValueError(
                    f"`{name}` must have an entry for each of `input_size` {self.input_size} channels, got "
                    f"{len(entries)}."
                )
        self._check_numbers("input_mean", "input_scale")
        if self.input_scale is not None and self.head not in _SCALED_HEADS:
            raise ValueError(
                f"`head` {self.head} is of values that stand for themselves, which `input_mean` and `input_scale` "
                "would change. Leave them out."
            )
        if self.tie_word_embeddings:
            raise ValueError("`tie_word_embeddings` ties tables of words, and `input_size` says there are none.")

    def _check_at_least_1(self, *names: str):
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")

    def _check_probabilities(self, *names: str):
        for name in names:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` is a probability and must be in [0, 1), got {getattr(self, name)}.")

    def _check_not_negative(self, *names: str):
        for name in names:
            if not 0 <= getattr(self, name) < math.inf:  # NaN is neither
                raise ValueError(f"`{name}` must be at least 0 and finite, got {getattr(self, name)}.")

    def _check_above_0(self, *names: str):
        for name in names:
            if not 0 < getattr(self, name) < math.inf:  # NaN is neither
                raise ValueError(f"`{name}` must be above 0 and finite, got {getattr(self, name)}.")

    def _check_numbers(self, mean: str, scale: str):
        """Lists of the numbers that data are scaled by, where there are any."""
        for name, least, rule in ((mean, -math.inf, "finite numbers"), (scale, 0, "above 0 and finite")):
            if wrong := [number for number in getattr(self, name) or () if not least < number < math.inf]:
                raise ValueError(f"`{name}` must be {rule}, got {wrong[0]}.")


__all__ = ["LatentSequenceConfig"]
