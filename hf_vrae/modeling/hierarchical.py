"""The network of latents at several scales (Roberts et al. 2018, MusicVAE, with z per segment too), as its equations.

    p:  z_g ~ N(0, I)                                                   the whole
        c_s = f(c_{s-1}, [z_{s-1}; z_g]),  c_0 from z_g                 conductor
        z_s ~ p(z_s | z_g, z_<s) = N(mean(c_s), diag(variance(c_s)))    a segment
        x_t ~ p(x_t | x_<t of its segment, [c_s; z_s])                  decoder, which starts anew with each segment
    q:  z_g, z_1 .. z_S independent given x, each Gaussian

Here are encoder and decoder; `hierarchical_latents` has segments, conductor, and what the flat vector of all z is.

Letters in shapes: B batch, T time, K samples, R = K * B rows, S segments, N segments or sections below one node, D
size of z_g, W of the flat vector, U of [c; z], E embedding size, H hidden size.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import can_return_tuple

from .configuration_hierarchical import HierarchicalVRAEConfig
from .decoders import VRAERecurrentDecoder
from .encoders import VRAEEncoderOutput, VRAERecurrentEncoder
from .generation import RecurrentCache
from .hierarchical_latents import (
    Conductor,
    JointGaussian,
    Segments,
    are_separators,
    complete,
    find_segments,
    first_segments,
)
from .posteriors import GaussianPosterior
from .recurrent import RecurrentEncoder, left_align, take_time


class HierarchicalEncoder(VRAERecurrentEncoder):
    """q of each scale: x is read in both directions, then its segments' summaries, and so on up to the whole.

    A segment's summary is the state at its end and, of the other direction, at its beginning: both have seen the
    segment, and together the rest of x.
    """

    def __init__(self, config: HierarchicalVRAEConfig):
        super().__init__(config)
        size, levels = config.encoder_hidden_size, len(config.section_sizes) + 1
        options = config.rnn_type, config.layer_norm, size, size, 1, config.bidirectional_encoder, config.kernels
        self.readers = nn.ModuleList(RecurrentEncoder(*options) for _ in range(levels))  # from segments to the whole
        if config.segment_latent_size:
            self.segment_posteriors = nn.ModuleList(
                GaussianPosterior(size, config.segment_latent_size) for _ in range(levels)
            )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        condition: None = None,  # the VRAE may have one; here there is none
        segment_ids: torch.LongTensor | None = None,
    ) -> VRAEEncoderOutput:
        """As in [`VRAEEncoder`]; `segment_ids` [B, T] number the segments of frames where their length is not fixed.

        Of tokens the first one starts its row and is of no segment. Moments are of the flat vector, [B, W]; NaN means
        and infinite log-variances say that a row has no such segment.
        """
        inputs_embeds, attention_mask = self.read(input_ids, attention_mask, inputs_embeds)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        order, back, lengths = left_align(attention_mask)
        steps, skipped = torch.arange(order.shape[1], device=order.device), int(self.config.input_size is None)
        tokens = None if input_ids is None else input_ids.gather(1, order)
        given = None if segment_ids is None else segment_ids.gather(1, order)
        real = steps < (lengths - skipped).clamp(min=1).unsqueeze(1)
        segments = find_segments(self.config, real, tokens, given)
        inputs = take_time(self.dropout(inputs_embeds), order)
        _, hidden_states = self.rnn(inputs, steps < lengths.unsqueeze(1), True)
        last = (lengths - 1).clamp(min=0).unsqueeze(1)
        starts = segments.starts + skipped
        ends = starts + segments.lengths.clamp(min=1) - 1
        summaries = self._between(hidden_states[-1], starts.minimum(last), ends.minimum(last))  # [B, S, H]
        summaries = summaries.masked_fill((lengths == 0)[:, None, None], 0)  # of no token: the first state
        mean, logvar = self._moments(summaries, segments.counts)
        aligned = (take_time(h, back) for h in hidden_states) if output_hidden_states else ()
        return VRAEEncoderOutput(
            last_hidden_state=mean.unsqueeze(1),
            mean=mean,
            logvar=logvar,
            hidden_states=(inputs_embeds, *aligned) if output_hidden_states else None,
        )

    def _between(self, outputs: torch.Tensor, starts: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """[B, S, H] of outputs [B, T, H]: where a span [B, S] ends and, reading the other way, where it starts."""
        if not self.config.bidirectional_encoder:
            return take_time(outputs, ends)
        return torch.cat([take_time(o, at) for o, at in zip(outputs.chunk(2, -1), (ends, starts), strict=True)], -1)

    def _moments(self, summaries: torch.Tensor, counts: torch.LongTensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the flat vector, [B, W], of summaries of segments [B, S, H] and how many a row has, [B]."""
        config = self.config
        first = first_segments(config, summaries.shape[1]).to(counts.device)
        present = first < counts.unsqueeze(1)  # [B, W - D]
        blocks = None
        for level, size in enumerate([*reversed(config.section_sizes), None]):  # from segments to the whole
            if config.segment_latent_size:
                own = self.segment_posteriors[level](self.dropout(summaries))  # [B, N, D] each
                if blocks is not None:  # behind a node's own stands what hangs below it
                    below = [block.reshape(*own[0].shape[:2], -1) for block in blocks]
                    own = [torch.cat(both, dim=2) for both in zip(own, below, strict=True)]
                blocks = own
            nodes = torch.arange(summaries.shape[1], device=counts.device)
            whole, outputs = self.readers[level](summaries, nodes < counts.unsqueeze(1), True)
            if size is not None:
                starts = nodes[::size].expand(len(counts), -1)  # [B, N]
                last = (counts - 1).unsqueeze(1)
                summaries = self._between(outputs[-1], starts.minimum(last), (starts + size - 1).minimum(last))
                counts = (counts + size - 1) // size
        of_whole = self.posterior(self.dropout(whole))  # [B, D] each
        if blocks is None:
            return of_whole
        absent = (torch.nan, torch.inf)
        return tuple(
            torch.cat([m, torch.where(present, block.flatten(1), mark)], dim=1)
            for m, block, mark in zip(of_whole, blocks, absent, strict=True)
        )

    def distribution(self, mean: torch.Tensor, logvar: torch.Tensor) -> JointGaussian:
        """q(z|x) of all scales, of the moments that `forward` gave."""
        return JointGaussian(mean, logvar, self.config.latent_size)


@dataclass
class Walk:
    """Where a decoder is that takes a step after the other.

    Args:
        states: of each layer, [R, H] each; before the first step they mean nothing.
        nodes: [c_s; z_s] of each segment, [R, S, U].
        segment, step: which the last step was of, -1 before the first one, and how many of it are done, [R].
    """

    states: list[tuple[torch.Tensor, ...]]
    nodes: torch.Tensor
    segment: torch.LongTensor
    step: torch.LongTensor


class HierarchicalDecoder(VRAERecurrentDecoder):
    """Conductor and segment decoder: what the VRAE's does with z, this does with [c_s; z_s] in each segment."""

    def __init__(self, config: HierarchicalVRAEConfig):
        super().__init__(config)
        self.conductor = Conductor(config, config.latent_size, config.section_sizes)

    def nodes(self, latents: torch.Tensor, num_segments: int) -> torch.Tensor:
        """[c_s; z_s] of at least so many segments, [R, S, U], of flat latents [R, W]; NaN in these, and what they
        lack, is the prior's mean."""
        config, conductor = self.config, self.conductor
        count = -(-num_segments // config.segments_of_a_node)
        lacking = config.latent_size + count * conductor.width - latents.shape[1]
        if lacking > 0:
            latents = nn.functional.pad(latents, (0, lacking), value=torch.nan)
        if lacking > 0 or latents.isnan().any():
            latents = complete(conductor, latents, torch.zeros_like(latents))
        z_g, below = latents.tensor_split([config.latent_size], dim=1)
        shape = (-1, conductor.width) if conductor.width else (count, 0)
        return conductor(z_g, below.unflatten(1, shape))[0]

    def start(self) -> torch.Tensor:
        """The embedding that a segment begins with, where it is not told the end of the one before: [E]."""
        if self.config.input_size is None:
            # Filled where it is, not copied there: this is asked at each step of `generate`.
            where = {"dtype": torch.long, "device": self.embed_tokens.weight.device}
            return self.embed_tokens(torch.full((), self.config.decoder_start_token_id, **where))
        return self.embed_start.weight[0]

    def beside_latents(self, hidden: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        return hidden  # `forward` has dropped out of it and put [c_s; z_s], of each segment its own, beside it

    def forward(
        self,
        latents: torch.FloatTensor,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cache: RecurrentCache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool = False,
        output_hidden_states: bool = False,
        segment_ids: torch.LongTensor | None = None,
    ) -> tuple[torch.Tensor, RecurrentCache | None, tuple[torch.Tensor, ...] | None]:
        """As in [`VRAEDecoder`], of flat latents [K * B, W]. The outputs are [K * B, T, H], or [h; c_s; z_s] where
        `latent_conditioning` names output."""
        tokens = input_ids
        if inputs_embeds is None:
            inputs_embeds = self.read_dropped(input_ids)  # [B, T, E]
        mask = self.mask_of_read(attention_mask, inputs_embeds, cache)
        mask = torch.ones_like(inputs_embeds[..., 0]) if mask is None else mask
        if use_cache or cache is not None and cache.get_seq_length() > 0:
            outputs, cache, states = self._walk_on(latents, inputs_embeds, tokens, mask.bool(), cache)
            hidden_states = states if output_hidden_states else None
            return outputs, cache if use_cache else None, hidden_states
        order, back, lengths = left_align(mask)
        real = torch.arange(order.shape[1], device=order.device) < lengths.unsqueeze(1)
        tokens, given = (None if ids is None else ids.gather(1, order) for ids in (tokens, segment_ids))
        segments = find_segments(self.config, real, tokens, given)
        inputs = take_time(inputs_embeds, order)
        count = segments.lengths.shape[1]
        nodes = self.nodes(latents, count)[:, :count]  # [K * B, S, U]
        run = self._carry_on if self.config.autoregressive_segments else self._run_apart
        outputs, hidden_states = run(inputs, nodes, segments, output_hidden_states)
        back = back.repeat(len(latents) // len(back), 1)
        ids = segments.ids.repeat(len(back) // len(order), 1)
        outputs = take_time(self._beside(outputs, take_time(nodes, ids)), back)
        if output_hidden_states:
            hidden_states = (inputs_embeds, *(take_time(h, back) for h in hidden_states))
        return outputs, None, hidden_states if output_hidden_states else None

    def _run_apart(self, inputs, nodes, segments: Segments, output_hidden_states: bool):
        """All segments as rows of one batch, each from its first state and the learnt start: outputs [K * B, T, H]."""
        (batch, time), width = segments.ids.shape, max(1, int(segments.lengths.max()))  # 0 of texts without a label
        steps = torch.arange(time, device=inputs.device)
        offset = steps - segments.starts.gather(1, segments.ids)  # [B, T]
        inputs = self.dropout(torch.where((offset == 0).unsqueeze(-1), self.start().to(inputs.dtype), inputs))
        grid = (segments.starts.unsqueeze(2) + steps[:width]).flatten(1).clamp(max=time - 1)  # [B, S * L]
        inputs = take_time(inputs, grid).unflatten(1, (-1, width)).flatten(0, 1)  # [B * S, L, E]
        rows = nodes.flatten(0, 1)  # [K * B * S, U]
        outputs, _, hidden_states = self.rnn(
            inputs, self.first_states(rows), self.seen_at_every_step(rows), None, False, output_hidden_states
        )
        place = segments.ids * width + offset.clamp(max=width - 1)  # [B, T]
        place = place.repeat(len(nodes) // batch, 1)

        def in_time(outputs):  # [K * B * S, L, H]
            return take_time(outputs.reshape(len(nodes), -1, outputs.shape[-1]), place)

        return in_time(outputs), [in_time(h) for h in hidden_states]

    def _carry_on(self, inputs, nodes, segments: Segments, output_hidden_states: bool):
        """One run through time, told of each step's segment: outputs [K * B, T, H]."""
        repeats = len(nodes) // len(inputs)
        inputs = self.dropout(inputs).repeat(repeats, 1, 1)
        seen = take_time(self.seen_at_every_step(nodes.flatten(0, 1)).view(*nodes.shape[:2], -1),
                         segments.ids.repeat(repeats, 1))  # fmt: skip
        inputs = torch.cat([inputs, seen.to(inputs.dtype)], dim=-1)
        outputs, _, hidden_states = self.rnn(
            inputs, self.first_states(nodes[:, 0]), None, None, False, output_hidden_states
        )
        return outputs, hidden_states

    def _beside(self, outputs: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
        outputs = self.dropout(outputs)
        if "output" not in self.config.latent_conditioning:
            return outputs
        return torch.cat([outputs, nodes.to(outputs.dtype)], dim=-1)

    # A step after the other.

    def _walk_on(self, latents, inputs_embeds, tokens, mask, cache: RecurrentCache | None):
        """Outputs [R, T, H], cache and hidden states, from where the cache is on."""
        rows, time, layers = len(latents), inputs_embeds.shape[1], self.config.decoder_layers
        repeats = rows // len(inputs_embeds)
        if repeats > 1:
            inputs_embeds, mask = inputs_embeds.repeat(repeats, 1, 1), mask.repeat(repeats, 1)
            tokens = None if tokens is None else tokens.repeat(repeats, 1)
        if cache is not None and cache.get_seq_length() > 0:
            *states, nodes, place = cache.states(rows)[0]
            count = self.rnn.number_of_states
            states = [tuple(states[i * count : (i + 1) * count]) for i in range(layers)]
            walk = Walk(states, nodes, *place.unbind(1))
        else:
            walk = self.start_walk(latents, 1)
        outputs, hidden = [], []
        for t in range(time):
            token = None if tokens is None else tokens[:, t]
            begins = self.begins(walk, token) & mask[:, t]
            out, of_layers = self.advance(walk, latents, inputs_embeds[:, t], begins, mask[:, t])
            outputs.append(out)
            hidden.append(of_layers)
        if cache is None:
            cache = RecurrentCache(1, layers * self.rnn.number_of_states + 2)
        place = torch.stack([walk.segment, walk.step], dim=1)
        cache.update_states([(*(s for state in walk.states for s in state), walk.nodes, place)], time)
        # At a masked position stands what the latest real one gave.
        latest = (torch.arange(time, device=mask.device) * mask).cummax(1).values.expand(rows, -1)
        outputs, *hidden = (take_time(torch.stack(o, dim=1), latest) for o in (outputs, *zip(*hidden, strict=True)))
        return outputs, cache, (inputs_embeds, *hidden)

    def start_walk(self, latents: torch.Tensor, num_segments: int) -> Walk:
        """Before the first step, with flat latents [R, W]."""
        nodes = self.nodes(latents, num_segments)
        zeros = nodes.new_zeros(len(nodes), self.config.decoder_hidden_size)
        states = [(zeros,) * self.rnn.number_of_states] * self.config.decoder_layers
        nowhere = torch.zeros(len(nodes), dtype=torch.long, device=nodes.device)
        return Walk(states, nodes, nowhere - 1, nowhere)

    def begins(self, walk: Walk, tokens: torch.LongTensor | None) -> torch.Tensor:
        """Whether the step that reads `tokens` [R] is the first of a segment, [R]."""
        if self.config.segment_separator_ids is None:
            ended = walk.step == self.config.segment_length
        else:
            ended = are_separators(self.config, tokens)
        return ended | (walk.segment < 0)

    def advance(
        self,
        walk: Walk,
        latents: torch.Tensor,
        inputs: torch.Tensor,
        begins: torch.Tensor,
        real: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """One step of all rows.

        Args:
            walk: moved on.
            latents: [R, W].
            inputs: embedded, [R, E].
            begins: whether it is the first of a segment, [R].
            real: rows that are not move nothing, [R].

        Returns:
            the output [R, H], with [c_s; z_s] as in `forward`, and that of each layer.
        """
        segment, step = walk.segment + begins, torch.where(begins, 0, walk.step) + 1
        if int(segment.max()) >= walk.nodes.shape[1]:
            # Those begun stay: a call that goes on from a cache may have drawn others for them.
            nodes = self.nodes(latents, 2 * walk.nodes.shape[1])
            walk.nodes = torch.cat([walk.nodes, nodes[:, walk.nodes.shape[1] :].to(walk.nodes.dtype)], dim=1)
        node = walk.nodes[torch.arange(len(segment), device=segment.device), segment.clamp(min=0)]  # [R, U]
        anew = begins & (segment == 0) if self.config.autoregressive_segments else begins
        if not self.config.autoregressive_segments:
            inputs = torch.where(begins.unsqueeze(-1), self.start().to(inputs.dtype), inputs)
        states = walk.states
        if anew.any():
            first = [(torch.zeros_like(s[0]),) * len(s) if f is None else f
                     for f, s in zip(self.first_states(node), states, strict=True)]  # fmt: skip
            states = _chosen(anew, first, states)
        outputs, states, hidden = self.rnn(
            self.dropout(inputs).unsqueeze(1), states, self.seen_at_every_step(node), None, True, True
        )
        if real is not None and not real.all():
            states = _chosen(real, states, walk.states)
            segment, step = torch.where(real, segment, walk.segment), torch.where(real, step, walk.step)
        walk.states, walk.segment, walk.step = states, segment, step
        return self._beside(outputs.squeeze(1), node), [h.squeeze(1) for h in hidden]


def _chosen(rows: torch.Tensor, states: list[tuple], others: list[tuple]) -> list[tuple]:
    """Of each layer the first states in some rows [R], and the others in the rest."""
    rows = rows.unsqueeze(-1)
    return [
        tuple(torch.where(rows, new, old.to(new.dtype)) for new, old in zip(*layer, strict=True))
        for layer in zip(states, others, strict=True)
    ]
