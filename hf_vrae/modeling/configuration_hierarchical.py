"""Configuration of the VRAE with latents at several scales."""

import math
from dataclasses import field

from huggingface_hub.dataclasses import strict

from .configuration_vrae import VRAEConfig


@strict
class HierarchicalVRAEConfig(VRAEConfig):
    """Sizes and choices of a [`HierarchicalVRAEForSequenceGeneration`] or, with an `input_size`, a
    [`HierarchicalVRAEForFrameGeneration`]: those of a [`VRAEConfig`], whose z is here the global one, and these.

    Example:

    ```python
    >>> from hf_vrae import HierarchicalVRAEConfig, HierarchicalVRAEForFrameGeneration
    >>> config = HierarchicalVRAEConfig(input_size=88, head="bernoulli", segment_length=16, section_sizes=[4])
    >>> model = HierarchicalVRAEForFrameGeneration(config)  # three scales: tune, 64 frames, 16 frames
    ```
    """

    model_type = "hierarchical_vrae"
    # As wide as a batch has segments: Trainer could not put these of several batches together.
    keys_to_ignore_at_inference = [*VRAEConfig.keys_to_ignore_at_inference, "encoder_last_hidden_state"]

    segment_length: int = field(
        default=16, metadata={"help": "hierarchical: tokens, </s> included, or frames of a segment"}
    )
    section_sizes: list[int] | None = field(
        default=None,
        metadata={"help": "hierarchical: scales between the whole and its segments; 4: four segments make a section"},
    )
    segment_separator_ids: list[int] | None = None  # a segment ends behind each of these tokens, however long it is
    segment_latent_size: int = field(
        default=16,
        metadata={"help": "hierarchical: dimensions of z of each segment and section; 0: none, only the conductor"},
    )
    conductor_hidden_size: int = field(
        default=128, metadata={"help": "hierarchical: width of what leads from one segment to the next"}
    )
    autoregressive_segments: bool = field(
        default=False,
        metadata={"help": "hierarchical: a segment is told the end of the one before; else its z and place alone"},
    )
    segment_kl_weight: float | int = field(
        default=1.0,
        metadata={"help": "hierarchical: weight of the segments' KL in training, times the run's KL weight"},
    )
    segment_free_bits: float | int = field(
        default=0.0,
        metadata={"help": "hierarchical: free bits of the segments' z, below which their prior learns nothing either"},
    )
    section_kl_weight: list[float | int] | None = field(
        default=None,
        metadata={"help": "hierarchical: segment_kl_weight of each of section_sizes; by default the segments'"},
    )
    section_free_bits: list[float | int] | None = field(
        default=None,
        metadata={"help": "hierarchical: segment_free_bits of each of section_sizes; by default the segments'"},
    )

    def __post_init__(self, **kwargs):
        if self.section_sizes is None:
            self.section_sizes = []
        super().__post_init__(**kwargs)

    @property
    def decoder_latent_size(self) -> int:
        """Dimensions of what a segment's decoder is given: [c_s; z_s]."""
        return self.conductor_hidden_size + self.segment_latent_size

    @property
    def segments_of_a_node(self) -> int:
        """How many segments the largest scale below the whole has in one section; 1 where there are none."""
        return math.prod(self.section_sizes)

    @property
    def prices_below(self) -> list[tuple[float, float]]:
        """KL weight and free bits of each scale below the whole, the largest first."""
        of_sections = (
            [own] * len(self.section_sizes) if given is None else given
            for given, own in (
                (self.section_kl_weight, self.segment_kl_weight),
                (self.section_free_bits, self.segment_free_bits),
            )
        )
        return [*zip(*of_sections, strict=True), (self.segment_kl_weight, self.segment_free_bits)]

    @property
    def has_own_prices(self) -> bool:
        """Whether the KL of some scale is charged otherwise than that of the whole."""
        return any(weight != 1 or free > 0 for weight, free in self.prices_below)

    def validate_architecture(self):
        """Checked at construction and when saving."""
        for name in ("section_kl_weight", "section_free_bits"):
            given = getattr(self, name)
            if given is not None and (
                len(given) != len(self.section_sizes) or not all(0 <= number < math.inf for number in given)
            ):
                raise ValueError(
                    f"`{name}` must be a number of 0 or more for each of `section_sizes` {self.section_sizes}, got "
                    f"{given}."
                )
        self._check_at_least_1("segment_length", "conductor_hidden_size")
        self._check_not_negative("segment_latent_size", "segment_kl_weight", "segment_free_bits")
        if any(size < 2 for size in self.section_sizes):
            raise ValueError(f"`section_sizes` must each be at least 2, got {self.section_sizes}.")
        wrong = [i for i in self.segment_separator_ids or [] if not 0 <= i < self.vocab_size]
        if wrong or self.segment_separator_ids == []:
            raise ValueError(
                f"`segment_separator_ids` must be one or more of the {self.vocab_size} tokens, got "
                f"{self.segment_separator_ids}. Leave it out for segments of `segment_length`."
            )
        super().validate_architecture()

    def _combinations(self) -> list[tuple[bool, str]]:
        only_first = self.latent_conditioning == ["initial_state"]
        return [
            (
                self.condition_width > 0,
                "`condition_labels`, `condition_attributes` and `condition_size` are of `model_type` vrae: a "
                "hierarchical model has no condition. Leave them out.",
            ),
            (
                self.encoder_type != "rnn" or self.decoder_type != "rnn",
                f"`encoder_type` {self.encoder_type} and `decoder_type` {self.decoder_type} must be rnn: a segment is "
                "summarised by a state, and begins with one.",
            ),
            (
                self.latent_size == 0,
                "`latent_size` 0 leaves out z of the whole, which the segments hang on. Raise it, or take "
                "`model_type` vrae for a model without latents.",
            ),
            (
                self.posterior != "gaussian" or self.svi_steps > 0 or self.correlated_prior,
                f"`posterior` {self.posterior}, `svi_steps` {self.svi_steps} and `correlated_prior` "
                f"{self.correlated_prior} are of one z, and a segment's prior is learnt given those before it. Take "
                "`posterior` gaussian, `svi_steps` 0 and no `correlated_prior`.",
            ),
            (
                self.mmd_weight > 0 or self.bag_of_words_weight > 0,
                f"`mmd_weight` {self.mmd_weight} and `bag_of_words_weight` {self.bag_of_words_weight} say something "
                "of one z for the whole sequence. Set both to 0.",
            ),
            (
                self.autoregressive_segments and only_first,
                "`autoregressive_segments` carries the decoder's state on, so `latent_conditioning` initial_state "
                "would show it nothing of the later segments. Add input or output.",
            ),
            (
                self.segment_separator_ids is not None and self.input_size is not None,
                "`segment_separator_ids` are tokens, and `input_size` says there are none: give the batch "
                "`segment_ids`.",
            ),
            (
                self.segment_latent_size == 0 and self.has_own_prices,
                "`segment_latent_size` 0 leaves no KL for `segment_kl_weight` or `segment_free_bits`, nor for those "
                "of sections. Leave them out.",
            ),
            (
                self.num_train_samples > 1 and self.has_own_prices,
                f"`num_train_samples` {self.num_train_samples} trains the importance-weighted bound, which knows one "
                "weight of the KL: set `segment_kl_weight` 1 and `segment_free_bits` 0, and leave out sections' own.",
            ),
            *super()._combinations(),
        ]


__all__ = ["HierarchicalVRAEConfig"]
