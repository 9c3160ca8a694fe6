"""What models of frames share, whatever their latents are: what they are given and score, p(x_t | ...), generation.

Frames come and go in raw units. The network, its losses and its likelihoods are of scaled ones,
(x - `config.input_mean`) / `config.input_scale`; `heads.raw_log_prob_offset` is what makes these likelihoods ones in
raw units. A missing value is NaN everywhere, never zero.

Letters in shapes: B batch, T time, K samples, F channels of a frame, H hidden size.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import logsigmoid

from .generation import GeneratedFrames, decode_frames
from .heads import make_head, raw_log_prob_offset, standardise, to_raw
from .kernels import not_rounded
from .modeling_latent import LatentSequenceModel
from .recurrent import predecessors


class ScoredFrames(NamedTuple):
    """The target of a batch.

    Args:
        values: scaled, [B, T, F], NaN where missing or padded.
        mask: true where a frame is real, [B, T].
        last: true where it is its row's last, [B, T].
    """

    values: torch.Tensor
    mask: torch.Tensor
    last: torch.Tensor


class FrameModel(LatentSequenceModel):
    """A model of frames. A subclass calls `_make_head` where it makes its layers, and gives the rest of a family."""

    @classmethod
    def can_generate(cls) -> bool:
        """Not by transformers' `generate`, which is of tokens, and its `generation_config`."""
        return False

    def _make_head(self, size: int) -> None:
        """What reads p(x_t | ...), and whether x_t is the last, from a hidden vector of this size."""
        if self.config.input_size is None:
            raise ValueError(
                f"`{type(self).__name__}` needs `input_size`, the number of channels of a frame; got None."
            )
        self.head = make_head(self.config, size)
        if self.config.predict_length:
            self.length_head = nn.Linear(size, 1)

    def _scaled(self, frames: torch.Tensor, attention_mask: torch.Tensor | None, name: str) -> ScoredFrames:
        """Raw frames [B, T, F] that a caller gave by this name, checked."""
        check_frames(name, frames, attention_mask, self.config)
        if attention_mask is None:
            attention_mask = torch.ones_like(frames[..., 0])
        values = standardise(frames.to(torch.promote_types(self.dtype, torch.float32)), self.config)
        mask = attention_mask.bool()
        count = mask.cumsum(1)
        return ScoredFrames(values.masked_fill(~mask.unsqueeze(-1), torch.nan), mask, mask & (count == count[:, -1:]))

    def target(
        self,
        labels: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **batch,
    ) -> ScoredFrames:
        """What is scored: `labels` [B, T, F] in raw units, NaN where nothing is; by default the input.

        A real frame of nothing but NaN is a step in time like any other.
        """
        if labels is None:
            return self._scaled(input_features, attention_mask, "input_features")
        return self._scaled(labels, attention_mask, "labels")

    def num_steps(self, target: ScoredFrames) -> torch.LongTensor:
        """Frames that are scored, [B]: those with a value that is not missing."""
        return (~target.values.isnan()).any(-1).sum(-1)

    def _raw_offset(self, target: ScoredFrames) -> dict[str, torch.Tensor]:
        """`raw_offset` [B], for evaluation, where likelihoods in scaled units are not those in raw ones."""
        if self.config.input_mean is None or self.config.head == "logistic_mixture":
            return {}
        return {"raw_offset": raw_log_prob_offset(target.values, self.config).sum(-1)}

    def _score(self, features: torch.Tensor, target: ScoredFrames) -> torch.Tensor:
        """log p(x_t | ...) of each step in scaled units, in nats: [..., B, T] of features [..., B, T, H].

        With `predict_length` that of each frame being the last one, or not, is part of it.
        """
        log_p = self.head(features).log_prob(target.values)
        if self.config.predict_length:
            logits = self._last_logit(features)
            log_p = log_p + logsigmoid(torch.where(target.last, logits, -logits)) * target.mask
        return log_p

    def _last_logit(self, features: torch.Tensor) -> torch.Tensor:
        """Of this frame being the last one, [...] of features [..., H]."""
        return not_rounded(self.length_head)(features).squeeze(-1)

    def _predictions(self, features: torch.Tensor, target: ScoredFrames) -> torch.Tensor:
        """Means of p(x_t | ...) in raw units, 0 at padding: [B, T, F]."""
        return to_raw(self.head(features).mean, self.config).masked_fill(~target.mask.unsqueeze(-1), 0)

    def _likeliest(self, features: torch.Tensor) -> torch.Tensor:
        """Modes of p(x_t | ...) in raw units, [B, T, F] of features [B, T, H]."""
        return to_raw(self.head(features).mode, self.config)

    @torch.no_grad()
    def _mix_in_own_frames(self, frames: torch.Tensor, features: torch.Tensor, target: ScoredFrames) -> torch.Tensor:
        """Replace frames that the decoder reads, [B, T, F], by samples of what the model expected there, each with
        the scheduled probability.

        Scheduled sampling (Bengio et al. 2015) with one teacher-forced pass, which gave `features` [B, T, H], for all
        steps (Duckworth et al. 2019).
        """
        said, _ = predecessors(self.head(features).sample(), target.mask)
        chosen = torch.rand(target.mask.shape, device=frames.device) < self.sampling_probability
        return torch.where(chosen.unsqueeze(-1), said, frames)


class FrameGenerationMixin:
    """What each `generate` of frames does in the end.

    By this word among its direct bases transformers knows a class that came with a checkpoint and has a `generate` of
    its own; without it, it would put its mixin of tokens there (`add_generation_mixin_to_remote_model`), in a class
    that no pickle finds again.
    """

    def _mask(self, input_features: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Of the real frames, [B, T], by default all of them."""
        check_frames("input_features", input_features, attention_mask, self.config)
        if attention_mask is None:
            return torch.ones_like(input_features[..., 0], dtype=torch.long)
        return attention_mask

    def _lengths(self, rows: int, attention_mask=None, max_length=None, lengths=None) -> torch.LongTensor:
        """How many frames each row gets, at most where its end is learnt, [B]; for the arguments see [`_generate`]."""
        if lengths is not None:
            lengths = torch.as_tensor(lengths, device=self.device)
        elif max_length is not None:
            lengths = torch.full((rows,), max_length, device=self.device)
        elif attention_mask is not None:
            lengths = attention_mask.bool().sum(1).to(self.device)
            lengths = lengths.max().expand(rows) if self.config.predict_length else lengths
        else:
            raise ValueError("There is no input to take a length from: pass `max_length`, or `lengths` of each row.")
        if lengths.shape != (rows,) or lengths.min() < 1:
            raise ValueError(
                f"Each of the {rows} rows needs a length of 1 or more: `lengths` must be [{rows}], got "
                f"{lengths.tolist()}."
            )
        return lengths

    def _generate(
        self,
        next_features,
        rows: int,
        attention_mask: torch.Tensor | None = None,
        max_length: int | None = None,
        do_sample: bool = False,
        lengths: torch.LongTensor | None = None,
        beginning: torch.Tensor | None = None,
    ) -> GeneratedFrames:
        """[`decode_frames`] with the caller's arguments, checked, from and to raw units.

        Args:
            next_features: from the frames just chosen, scaled [B, F], None at the start, to what `head` reads, [B, H].
            rows: B.
            attention_mask: of the input's real frames, [B, T], where there is one.
            max_length, do_sample, lengths, beginning: as in `generate`.
        """
        learnt = self.config.predict_length and lengths is None
        lengths = self._lengths(rows, attention_mask, max_length, lengths)
        if beginning is not None:
            beginning = self._scaled(beginning, None, "beginning").values.to(self.device)
            if len(beginning) not in (1, rows) or beginning.shape[1] > lengths.min():
                raise ValueError(
                    f"`beginning` must be [{rows} or 1, S, F] with S at most the shortest length "
                    f"{lengths.min().item()}, got {list(beginning.shape)}."
                )
            beginning = beginning.expand(rows, -1, -1)

        def next_distribution(frame):
            features = next_features(frame)
            return self.head(features), self._last_logit(features) if learnt else None

        frames, lengths = decode_frames(next_distribution, lengths, do_sample, beginning)
        behind = torch.arange(frames.shape[1], device=frames.device) >= lengths.unsqueeze(1)
        return GeneratedFrames(to_raw(frames, self.config).masked_fill(behind.unsqueeze(-1), 0), lengths)


def check_frames(name: str, frames: torch.Tensor, attention_mask: torch.Tensor | None, config) -> None:
    """Name what is wrong with frames and their mask. Values are looked at on a CPU alone: elsewhere that would cost a
    synchronisation at every step."""
    if not isinstance(frames, torch.Tensor) or not frames.is_floating_point():
        kind = frames.dtype if isinstance(frames, torch.Tensor) else type(frames).__name__
        raise ValueError(f"`{name}` must be a tensor of floats, got {kind}. Use `torch.as_tensor(frames).float()`.")
    if frames.dim() != 3 or frames.shape[-1] != config.input_size or 0 in frames.shape:
        raise ValueError(
            f"`{name}` must have shape [batch, time, input_size], time 1 or more and `input_size` "
            f"{config.input_size}, got {list(frames.shape)}."
        )
    if attention_mask is not None and attention_mask.shape != frames.shape[:2]:
        raise ValueError(
            f"`attention_mask` must have the batch and time of `{name}`, {list(frames.shape[:2])}, got "
            f"{list(attention_mask.shape)}."
        )
    if frames.device.type != "cpu" or torch.compiler.is_compiling():
        return
    real = ~frames.isnan()
    if attention_mask is not None:
        mask = attention_mask.bool()
        empty = (~mask.any(1)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"`attention_mask` says that row {empty[0]} has no frame; every row needs one. Drop it.")
        real &= mask.unsqueeze(-1)
    bad = frames.isinf()
    allowed = "finite, or NaN where missing"
    if config.head in ("bernoulli", "nade"):
        bad, allowed = (frames != 0) & (frames != 1), "0 or 1, or NaN where missing"
    elif config.head == "categorical":
        bad = (frames != frames.round()) | (frames < 0) | (frames >= config.num_levels)
        allowed = f"integers in [0, {config.num_levels}), or NaN where missing"
    elif config.head == "logistic_mixture" and config.input_mean is None:
        bad, allowed = frames.abs() > 1, "in [-1, 1] without `input_mean` and `input_scale`, or NaN where missing"
    bad &= real
    if bad.any():
        raise ValueError(
            f"`{name}` must be {allowed}, for `head` {config.head}; got {frames[bad][0].item()}. Prepare the data so, "
            "or take another head."
        )
