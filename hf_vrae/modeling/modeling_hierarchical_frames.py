"""The VRAE with latents at several scales over sequences of vectors: see `hierarchical` for its network.

Letters in shapes: B batch, T time, D size of z_g, W of the flat vector of all z, F channels of a frame.
"""

from typing import NamedTuple

import torch

from .generation import GeneratedFrames
from .modeling_frames import FrameGenerationMixin
from .modeling_hierarchical import HierarchicalVRAEModel, HierarchicalVRAEPreTrainedModel, ScalesOfLatents
from .modeling_vrae_frames import VRAEForFrameGeneration
from .recurrent import left_align


class SegmentedFrames(NamedTuple):
    """The target of a batch: as [`ScoredFrames`], and the segment of each frame where it is given.

    Args:
        values, mask, last: as there.
        segment_ids: [B, T].
    """

    values: torch.Tensor
    mask: torch.Tensor
    last: torch.Tensor
    segment_ids: torch.LongTensor | None


class HierarchicalVRAEForFrameGeneration(
    HierarchicalVRAEPreTrainedModel, ScalesOfLatents, VRAEForFrameGeneration, FrameGenerationMixin
):
    """The VRAE with latents at several scales over sequences of vectors.

    Its segments are of `segment_length` frames, or are what `segment_ids` [B, T] in a batch say: steps with the same
    number, one after the other, are a segment (a bar, a beat).

    Example:

    ```python
    >>> config = HierarchicalVRAEConfig(input_size=88, head="bernoulli", segment_length=16)
    >>> model = HierarchicalVRAEForFrameGeneration(config)
    >>> z = model.prior(num_segments=8).sample((4,))  # four tunes of eight segments
    >>> model.generate(latents=z, max_length=128, do_sample=True).sequences
    ```
    """

    inner_class = HierarchicalVRAEModel

    def target(self, labels=None, input_features=None, attention_mask=None, segment_ids=None, **batch):
        """As in [`FrameModel`], with the segments where these are given."""
        scored = super().target(labels, input_features, attention_mask)
        check_segments(segment_ids, scored.mask)
        return SegmentedFrames(*scored, segment_ids)

    def _encoder_outputs(
        self, condition, input_features, attention_mask=None, output_hidden_states=False, segment_ids=None
    ):
        frames, mask, _ = self._scaled(input_features, attention_mask, "input_features")
        check_segments(segment_ids, mask)
        embedded = self.model.encoder.embed_frames(frames)  # [B, T, E]
        return self.model.encoder(
            None,
            mask,
            embedded,
            output_hidden_states=output_hidden_states,
            segment_ids=segment_ids,
            return_dict=True,
        )

    def _decode(self, latents, target: SegmentedFrames, embedded, output_hidden_states=False):
        return self.model.decoder(
            latents,
            attention_mask=target.mask,
            inputs_embeds=embedded,
            output_hidden_states=output_hidden_states,
            segment_ids=target.segment_ids,
        )

    @torch.no_grad()
    def generate(
        self,
        input_features: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        latents: torch.FloatTensor | None = None,
        max_length: int | None = None,
        do_sample: bool = False,
        lengths: torch.LongTensor | None = None,
        beginning: torch.FloatTensor | None = None,
        segment_ids: torch.LongTensor | None = None,
    ) -> GeneratedFrames:
        """As in [`VRAEForFrameGeneration`].

        Args:
            latents: z of the whole alone, [B, D], or the flat vector of all scales, [B, W]. What is not given, NaN or
                not there, is drawn from its prior given the rest with `do_sample`, and its mean otherwise.
            segment_ids: of the input and of what is generated, [B, T]; frames beyond are of the last segment. By
                default segments are of `segment_length`.
            input_features, attention_mask, max_length, do_sample, lengths, beginning: as there.
        """
        if (input_features is None) == (latents is None):
            raise ValueError("Pass one of `input_features`, whose posterior mean is decoded, and `latents`.")
        if segment_ids is not None:
            segment_ids = segment_ids.to(self.device)
        if latents is None:
            attention_mask = self._mask(input_features, attention_mask)
            latents = self.encode(input_features, attention_mask, segment_ids=segment_ids).mode
        self._check_latents(latents)
        longest = int(self._lengths(len(latents), attention_mask, max_length, lengths).max())
        count = -(-longest // self.config.segment_length)
        if segment_ids is not None:
            if segment_ids.dim() != 2 or len(segment_ids) not in (1, len(latents)):
                raise ValueError(f"`segment_ids` must be [{len(latents)} or 1, T], got {list(segment_ids.shape)}.")
            segment_ids = segment_ids.expand(len(latents), -1)
            if attention_mask is not None and attention_mask.shape == segment_ids.shape:
                order, _, own = left_align(attention_mask.to(self.device))
                # Behind its own frames a row stays in its last segment: the ids there are of padding.
                steps = torch.arange(order.shape[1], device=self.device).minimum((own - 1).clamp(min=0).unsqueeze(1))
                segment_ids = segment_ids.gather(1, order.gather(1, steps))
            changes = segment_ids[:, 1:] != segment_ids[:, :-1]  # [B, T - 1]
            count = 1 + int(changes.sum(1).max())
        latents = self.complete_latents(latents.to(self.device), count, do_sample)
        decoder, rows, steps = self.model.decoder, len(latents), 0
        walk = decoder.start_walk(latents, count)

        def next_features(frame):
            nonlocal steps
            begins = decoder.begins(walk, None)
            if segment_ids is not None and steps:
                begins = changes[:, steps - 1] if steps <= changes.shape[1] else torch.zeros_like(begins)
            steps += 1
            return decoder.advance(walk, latents, self._embed_chosen(frame, latents), begins)[0]

        return self._generate(next_features, rows, attention_mask, max_length, do_sample, lengths, beginning)


def check_segments(segment_ids: torch.LongTensor | None, mask: torch.Tensor) -> None:
    if segment_ids is not None and segment_ids.shape != mask.shape:
        raise ValueError(f"`segment_ids` must number each frame, {list(mask.shape)}, got {list(segment_ids.shape)}.")


__all__ = ["HierarchicalVRAEForFrameGeneration"]
