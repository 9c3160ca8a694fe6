"""What `generate` needs from a decoder: a recurrent one's cache of fixed size, a draw that a CPU is quick at, and for
tokens and for frames a loop that does nothing but decode."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import LogitsProcessor
from transformers.cache_utils import Cache, DynamicLayer, LinearAttentionLayer
from transformers.modeling_outputs import ModelOutput

from .cache_name import CACHE
from .kernels import draw


class Draw(LogitsProcessor):
    """Sampling as the last processor: 1 at an index drawn with probability softmax(scores), 0 elsewhere."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        return torch.zeros_like(scores, dtype=torch.int8).scatter_(1, draw(scores).unsqueeze(1), 1)


class Guidance(LogitsProcessor):
    """Classifier-free guidance (Ho & Salimans 2022) of transformers' `guidance_scale`, normalised anew:

        log p(x_t | ...) = u + s (scores - u) + constant,   u the scores of the same z without its condition

    The unconditional pass goes on from a cache of its own, in which beams are found again by their tokens.

    Args:
        model: makes the unconditional scores.
        scale: s.
        encoder_outputs: what is decoded without the condition, a row for each of the caller's.
        decoder_attention_mask: of the beginning, where it has padding.
    """

    def __init__(self, model, scale: float, encoder_outputs, decoder_attention_mask: torch.Tensor | None = None):
        self.model, self.scale, self.encoder_outputs = model, scale, encoder_outputs
        self.mask, self.read, self.cache = decoder_attention_mask, None, None

    @torch.no_grad()
    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        rows, state = len(input_ids), self.encoder_outputs.last_hidden_state
        copies = rows // len(state)  # beams, or sequences of one z
        new, cache = input_ids, None
        if self.read is not None and self.read.shape[1] == input_ids.shape[1] - 1:
            # Where a beam came from: a row of the same z that has read the same tokens, and so is in the same state.
            of = torch.arange(rows, device=input_ids.device) // copies
            same = (input_ids[:, None, :-1] == self.read[None]).all(-1) & (of[:, None] == of[None])
            if same.any(1).all():  # not so where assisted decoding has gone back: all is then read anew
                self.cache.reorder_cache(same.int().argmax(1))
                new, cache = input_ids[:, -1:], self.cache
        if self.mask is not None and self.read is None:
            # `generate` has put the start before beginnings that had none.
            self.mask = nn.functional.pad(self.mask, (input_ids.shape[1] - self.mask.shape[1], 0), value=1)
        mask = self.mask
        if mask is not None:
            mask = mask.repeat_interleave(rows // len(mask), dim=0)
            mask = torch.cat([mask, mask.new_ones(rows, input_ids.shape[1] - mask.shape[1])], dim=1)
        outputs = self.model(
            decoder_input_ids=new,
            decoder_attention_mask=mask,
            encoder_outputs=type(self.encoder_outputs)(state.repeat_interleave(copies, dim=0)),
            cache=cache,
            use_cache=True,
            logits_to_keep=1,
            return_dict=True,
        )
        self.read, self.cache = input_ids, outputs[CACHE]
        u = outputs.logits[:, -1].to(scores).log_softmax(-1)
        return (u + self.scale * (scores.log_softmax(-1) - u)).log_softmax(-1)


class RecurrentCache(Cache):
    """State of a recurrent decoder after the tokens read so far.

    `layers[i].recurrent_states` holds the state of layer i: `h` for a GRU, `h` and `c` for an LSTM, each [B, H].
    An update binds new tensors and never writes into old ones, so that gradients flow through a cached run and a
    [`copy`][RecurrentCache.copy] shares its tensors safely with the original.

    Args:
        num_layers: number of recurrent layers.
        number_of_states: tensors a layer carries, 2 for an LSTM and 1 for a GRU.
    """

    is_compileable = False  # transformers would build attention masks for a compileable cache
    is_croppable = False  # a recurrent state cannot be rolled back

    def __init__(self, num_layers: int, number_of_states: int):
        super().__init__(layers=[LinearAttentionLayer(number_of_states=number_of_states) for _ in range(num_layers)])
        self.num_tokens = 0

    @property
    def is_linear(self) -> list[bool]:
        """Of each layer, whether it cannot say how many tokens it has read: `generate` would have all of them read
        again."""
        return [False] * len(self.layers)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of tokens read so far."""
        return self.num_tokens

    def states(self, batch_size: int) -> list[tuple[torch.Tensor, ...]]:
        """State of each layer, a tuple of [batch_size, H]; rows are repeated where beams were added to the batch."""
        states = [tuple(layer.recurrent_states.values()) for layer in self.layers]
        rows = states[0][0].shape[0]
        if rows == batch_size:
            return states
        if batch_size % rows:
            raise ValueError(f"`{CACHE}` holds {rows} sequences, which do not fit a batch of {batch_size}.")
        return [tuple(s.repeat_interleave(batch_size // rows, dim=0) for s in layer) for layer in states]

    def update_states(self, states: list[tuple[torch.Tensor, ...]], num_tokens: int) -> None:
        """Bind the states reached after `num_tokens` further tokens."""
        for layer, layer_states in zip(self.layers, states, strict=True):
            for i, state in enumerate(layer_states):
                layer.recurrent_states[i] = state
                layer.is_recurrent_states_initialized[i] = layer.has_previous_state[i] = True
        self.num_tokens += num_tokens

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Select the rows `beam_idx` [B] in every state."""
        for layer in self.layers:
            for i, state in layer.recurrent_states.items():
                layer.recurrent_states[i] = state.index_select(0, beam_idx.to(state.device))

    def copy(self) -> "RecurrentCache":
        """A cache of the same tensors whose updates leave this one as it is."""
        copied = RecurrentCache(len(self.layers), self.layers[0].number_of_states)
        if self.num_tokens:
            copied.update_states([tuple(layer.recurrent_states.values()) for layer in self.layers], self.num_tokens)
        return copied


def num_unread(cache: Cache, length: int, name: str) -> int:
    """How many of so many tokens, passed by this name, a cache has not read.

    Raises:
        ValueError: where it has read all.
    """
    read = cache.get_seq_length()
    if read >= length:
        raise ValueError(
            f"`{CACHE}` has read {read} tokens, so `{name}` must be those and at least one more, got {length}. Pass "
            "the whole `sequences` that the earlier call returned."
        )
    return length - read


def copy_of(cache: Cache, recurrent: bool) -> Cache:
    """A cache of the same tensors whose updates leave this one as it is; of a recurrent decoder, or of another.

    Raises:
        ValueError: for a cache of another kind.
    """
    if isinstance(cache, RecurrentCache) != recurrent or not hasattr(cache, "layers"):
        raise ValueError(
            f"`{CACHE}` must be what an earlier call of this model returned, got a {type(cache).__name__}. "
            "Leave it out to begin anew."
        )
    if not recurrent and not all(isinstance(layer, DynamicLayer) for layer in cache.layers):
        raise ValueError(
            f"`{CACHE}` must be a `DynamicCache`, which grows by binding new tensors, for the caller's own is not to "
            f"be written into; got a {type(cache).__name__}."
        )
    if recurrent:
        return cache.copy()
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]  # which bind new tensors when they grow
    return copied


def repeat_rows(cache: Cache, batch_size: int) -> None:
    """Repeat the rows of a cache of keys and values where beams were added to the batch."""
    rows = cache.layers[0].keys.shape[0]
    if batch_size % rows:
        raise ValueError(f"`{CACHE}` holds {rows} sequences, which do not fit a batch of {batch_size}.")
    if batch_size > rows:
        cache.batch_repeat_interleave(batch_size // rows)


def decode(next_scores, scores, input_ids, logits_processor, stopping_criteria, generation_config):
    """The loop of transformers' `_sample`, its words and its results, around a step that computes nothing else.

    Args:
        next_scores: from the tokens just chosen, [B], to the logits after them, [B, V].
        scores: the logits after `input_ids`, [B, V].
        input_ids: [B, S]; the rest as in transformers.

    Returns:
        the sequences [B, S + N].
    """
    ends = any(hasattr(criteria, "eos_token_id") for criteria in stopping_criteria)
    unfinished = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
    while True:
        scores = logits_processor(input_ids, scores.float())
        tokens = draw(scores) if generation_config.do_sample else scores.max(dim=1).indices
        if ends:
            tokens = tokens.where(unfinished, generation_config._pad_token_tensor)
        input_ids = torch.cat([input_ids, tokens.unsqueeze(1)], dim=1)
        unfinished = unfinished & ~stopping_criteria(input_ids, None)
        if not unfinished.any():
            return input_ids
        scores = next_scores(tokens)


@dataclass
class GeneratedFrames(ModelOutput):
    """
    Args:
        sequences: frames in raw units, [B, T, F], 0 behind the end of a row.
        lengths: frames of each row, [B].
    """

    sequences: torch.FloatTensor | None = None
    lengths: torch.LongTensor | None = None


def lengths_of_beginnings(beginning: torch.Tensor) -> torch.LongTensor:
    """[B], of beginnings [B, S, F] with NaN frames at their ends."""
    steps = torch.arange(1, beginning.shape[1] + 1, device=beginning.device)
    return (steps * ~beginning.isnan().all(-1)).amax(1)


def decode_frames(
    next_distribution: Callable[[torch.Tensor | None], tuple[torch.distributions.Distribution, torch.Tensor | None]],
    lengths: torch.LongTensor,
    do_sample: bool = False,
    beginning: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.LongTensor]:
    """Frame after frame: a sample of each distribution, or its mode, is what the next is given.

    Args:
        next_distribution: from the frames just chosen, scaled [B, F], None at the start, to the distribution of the
            next ones, and the logit of each of these being its row's last, [B], or None where no length is learnt.
        lengths: of each row, [B]; of learnt ones the largest.
        do_sample: sample each frame, and whether a row ends with it; otherwise take modes, and end where p > 0.5.
        beginning: scaled frames to begin with, [B, S, F]. The model fills in what is NaN there, so that beginnings of
            different lengths have NaN frames at their ends. No row ends inside its beginning.

    Returns:
        scaled frames [B, T, F], which behind the end of a row mean nothing, and each row's length [B].
    """
    frame, frames = None, []
    begun = torch.zeros_like(lengths) if beginning is None else lengths_of_beginnings(beginning)  # [B]
    longest = lengths.max().item()
    while len(frames) < longest:
        distribution, last_logit = next_distribution(frame)
        frame = distribution.sample() if do_sample else distribution.mode  # [B, F]
        if beginning is not None and len(frames) < beginning.shape[1]:
            given = beginning[:, len(frames)]
            frame = torch.where(given.isnan(), frame, given)
        frames.append(frame)
        if last_logit is not None:
            threshold = torch.rand_like(last_logit) if do_sample else 0.5
            ends = (last_logit.sigmoid() > threshold) & (begun <= len(frames))
            lengths = torch.where(ends, lengths.clamp(max=len(frames)), lengths)
            longest = lengths.max().item()
    return torch.stack(frames, dim=1), lengths
