"""The variational recurrent neural network over sequences of vectors: see `modeling_vrnn` for its four distributions.

Letters in shapes: B batch, T time, S frames given, D latent size, P feature size, F channels of a frame.
"""

import torch
from transformers.utils import can_return_tuple

from .configuration_vrnn import VRNNConfig
from .distributions import DiagonalGaussian
from .generation import GeneratedFrames, lengths_of_beginnings
from .modeling_frames import FrameGenerationMixin, FrameModel, ScoredFrames
from .modeling_latent import check_finite
from .modeling_vrnn import Observed, VRNNModel, VRNNOutput, VRNNPreTrainedModel
from .recurrent import left_align, take_time
from .vrnn import VRNNStep


class VRNNForFrameGeneration(VRNNPreTrainedModel, FrameModel, FrameGenerationMixin):
    """The VRNN over sequences of vectors; each frame has a latent of its own.

    Frames come and go in raw units; losses and likelihoods are of scaled ones (see `modeling_frames`).

    Example:

    ```python
    >>> model = VRNNForFrameGeneration(VRNNConfig(input_size=88, head="bernoulli"))
    >>> model.generate(beginning=roll, max_length=200, do_sample=True).sequences  # of rolls [B, S, 88]
    ```
    """

    main_input_name = "input_features"

    def __init__(self, config: VRNNConfig):
        super().__init__(config)
        self.model = VRNNModel(config)
        self._make_head(config.feature_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_features: torch.FloatTensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.FloatTensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> VRNNOutput:
        """
        Args:
            input_features: frames in raw units, NaN where a value is missing, [B, T, F].
            attention_mask: nonzero where a frame is real, [B, T]; all by default.
            labels: what is scored, NaN where nothing is, [B, T, F]; by default the input.

        Returns:
            [`VRNNOutput`]: the bound of log p(x), its path sampled from the posterior, in evaluation always with the
            same noise.

        Raises:
            ValueError: for frames that the model cannot take, see `modeling_frames.check_frames`.
        """
        return self._output(output_hidden_states, **self._bound(self._observe(labels, input_features, attention_mask)))

    def _observe(self, labels=None, input_features=None, attention_mask=None) -> Observed:
        frames = self._scaled(input_features, attention_mask, "input_features")
        if labels is not None and labels.shape != input_features.shape:
            raise ValueError(
                f"`labels` must score the input's frames, {list(input_features.shape)}, got {list(labels.shape)}."
            )
        target = frames if labels is None else self.target(labels, attention_mask=attention_mask)
        order, back, lengths = left_align(frames.mask)
        phi_x = self.model.embed(self.model.embed_frames(take_time(frames.values, order)))
        values, *marks = target
        aligned = ScoredFrames(take_time(values, order), *(mark.gather(1, order) for mark in marks))
        return Observed(phi_x, lengths, aligned, order, back)

    def evaluation_terms(self, num_samples, generators=None, svi_steps=0, **batch):
        """As in [`VRNNPreTrainedModel`], and where frames are scaled `raw_offset` [B]: it makes log p raw ones'."""
        terms = super().evaluation_terms(num_samples, generators, svi_steps, **batch)
        return terms | self._raw_offset(self.target(**batch))

    def _score_width(self) -> int:
        return self.head.projection.out_features

    def _at_step(self, target: ScoredFrames, t: int) -> ScoredFrames:
        return ScoredFrames(*(part[:, t : t + 1] for part in target))

    def _drawn_steps(self, features: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            frames = self.head(features).sample()
        return self.model.embed(self.model.embed_frames(frames))

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
    ) -> GeneratedFrames:
        """Frames from the prior, from given latents, or again from those of an input, one after the other.

        Args:
            input_features, attention_mask: the latents are then the means of q(z_t | x_t, h_{t-1}) of this input.
            latents: z of each frame, [B, S, D]; those of further frames are the prior's.
            max_length: how many frames; with `predict_length` at most so many. By default as many as the input has.
            do_sample: draw each z_t from the prior and each frame from its distribution; otherwise their mean and
                its mode.
            lengths: how many frames of each row, [B].
            beginning: frames to go on from, [B, S, F], raw; what is NaN there is filled in. Their z are inferred
                from them.

        Returns:
            [`GeneratedFrames`]: `sequences` [B, T, F], raw, beginnings included, and the `lengths` [B] of its rows.
        """
        if input_features is not None and latents is not None:
            raise ValueError("Pass one of `input_features`, whose latents are decoded, and `latents`.")
        own = None  # of how many frames a row's latents are, [B]
        if input_features is not None:
            attention_mask = self._mask(input_features, attention_mask)
            latents = self.encode(input_features=input_features, attention_mask=attention_mask).mean
            order, _, own = left_align(attention_mask)
            latents = take_time(latents, order)
        if latents is not None:
            self._check_latents(latents)
            check_finite(latents)
            latents = latents.to(self.device, self.dtype)
        rows = len(latents) if latents is not None else 1 if beginning is None else len(beginning)
        if lengths is not None and latents is None and beginning is None:
            rows = torch.as_tensor(lengths).numel()
        if own is None:
            own = torch.tensor([0 if latents is None else latents.shape[1]])
        own = own.to(self.device).unsqueeze(1)
        layer, seen = self.model.layer, None
        if beginning is not None:
            values = self._scaled(beginning, None, "beginning").values.to(self.device)
            if len(values) not in (1, rows):
                raise ValueError(f"`beginning` must be [{rows} or 1, S, F], got {list(beginning.shape)}.")
            begun = lengths_of_beginnings(values)
            seen = layer.what_the_posterior_sees(self.model.embed(self.model.embed_frames(values)), begun)
            seen, begun = seen.expand(rows, -1, -1), begun.unsqueeze(1).expand(rows, 1)
        # Chosen frames have no missing values: to embed real-valued ones is one product with what comes next.
        embed = self.model.embed_frames if self.config.head == "categorical" else None
        step = VRNNStep(layer, rows, None if embed else self.model.embed_frames.linear_in_whole_frames())
        count, z, prior = 0, None, None

        def next_features(frame):
            nonlocal count, z, prior
            if frame is not None:
                if seen is not None and count <= seen.shape[1]:
                    q = layer.posterior(seen[:, count - 1], step.state[0], DiagonalGaussian(*prior))
                    inferred = (count <= begun) & (count > own)
                    step.emission(torch.where(inferred, q.mean, z))  # of what was not given it made the frame
                step.advance(embed(frame) if embed else frame)
            z, logvar = prior = step.prior()
            if do_sample:
                z = torch.addcmul(z, (0.5 * logvar).exp(), torch.randn_like(z))
            if latents is not None and count < latents.shape[1]:
                z = torch.where(count < own, latents[:, count], z)
            count += 1
            return step.emission(z)

        return self._generate(next_features, rows, attention_mask, max_length, do_sample, lengths, beginning)


__all__ = ["VRNNForFrameGeneration"]
