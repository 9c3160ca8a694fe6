"""Latents at several scales: where segments lie, p(z) by a conductor that goes from segment to segment, and q(z|x).

A scale between the whole and its segments, sections, is a conductor below a conductor: a section's [c; z] is to its
segments what z_g is to the sections. All z of a sequence are one flat vector, [z_g, first section, second, ..] with a
section [its z, first segment, ..], so that a row with fewer segments has a beginning of it. In there NaN is what is
not given: decoding takes the prior's mean, or a sample, given what is.

Letters in shapes as in `hierarchical`, which has the equations.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributions import Distribution, constraints

from .configuration_hierarchical import HierarchicalVRAEConfig
from .distributions import DiagonalGaussian
from .posteriors import GaussianPosterior
from .recurrent import LAYERS, one_step_back, run_layer

MAX_AT_ONCE = 2**22  # conductor outputs held at once where a prior is evaluated: 16 MiB in float32


@dataclass
class Segments:
    """Where the segments of left-aligned sequences lie.

    Args:
        ids: the segment of each step, [B, T].
        starts, lengths: first step and number of steps of each segment, [B, S]; S is a whole number of sections.
    """

    ids: torch.LongTensor
    starts: torch.LongTensor
    lengths: torch.LongTensor

    @property
    def counts(self) -> torch.LongTensor:
        """Segments of each row, [B]."""
        return (self.lengths > 0).sum(1)


def find_segments(config, real: torch.Tensor, tokens=None, segment_ids=None) -> Segments:
    """
    Args:
        config: says where a segment ends: behind a separator, or after `segment_length` steps.
        real: the steps there are, left-aligned, [B, T].
        tokens: what the decoder reads at each step, the one before, [B, T]; looked at where there are separators.
        segment_ids: where they are given, steps with the same number in a row are a segment, [B, T].
    """
    steps = torch.arange(real.shape[1], device=real.device)
    if segment_ids is not None or config.segment_separator_ids is not None:
        if segment_ids is not None:
            begins = segment_ids != segment_ids.roll(1, dims=1)
        else:
            begins = are_separators(config, tokens)
        ids = (begins & (steps > 0)).cumsum(1)
    else:
        ids = (steps // config.segment_length).expand(real.shape)
    count = 1 + int((ids * real).max())
    count += -count % config.segments_of_a_node
    ids = ids.clamp(max=count - 1)
    lengths = ids.new_zeros(len(ids), count).scatter_add(1, ids, real.long())
    return Segments(ids, lengths.cumsum(1) - lengths, lengths)


def are_separators(config, tokens: torch.LongTensor | None) -> torch.Tensor:
    """Which of `tokens` [..] end a segment, [..]."""
    if tokens is None:
        raise ValueError(
            "`segment_separator_ids` are looked for among tokens, and there are embeddings alone: pass the ids."
        )
    return torch.isin(tokens, torch.tensor(config.segment_separator_ids, device=tokens.device))


def first_segments(config, num_segments: int) -> torch.LongTensor:
    """The first segment of the node that each dimension behind z_g is of, for a whole number of sections: [W - D]."""
    size = config.segment_latent_size
    places = torch.arange(num_segments).unsqueeze(1).expand(-1, size)
    for count in reversed(config.section_sizes if size else []):
        places = places.reshape(len(places) // count, -1)
        places = torch.cat([places[:, :1].expand(-1, size), places], dim=1)
    return places.flatten()


def scales_of_a_node(config) -> list[int]:
    """The scale of each dimension of a node just below the whole with all that hangs on it, 0 its own."""
    size, sections = config.segment_latent_size, config.section_sizes
    scales = [len(sections)] * size
    for scale in reversed(range(len(sections))):
        scales = [scale] * size + scales * sections[scale]
    return scales


class JointGaussian(DiagonalGaussian):
    """q(z|x) of all scales: independent Gaussians, and N(0, I), as in the prior, where a row has no such segment.

    Args:
        mean, logvar: [*batch, W]; NaN and infinity where a row has no such segment.
        global_size: D.
    """

    def __init__(self, mean: torch.Tensor, logvar: torch.Tensor, global_size: int):
        self.present, self.global_size = logvar != torch.inf, global_size
        super().__init__(*(torch.where(self.present, moment, 0) for moment in (mean, logvar)))

    @property
    def global_scale(self) -> DiagonalGaussian:
        """q(z_g|x)."""
        return DiagonalGaussian(self.mean[..., : self.global_size], self.logvar[..., : self.global_size])

    @property
    def mode(self) -> torch.Tensor:
        """The mean, [*batch, W], and NaN where a row has no such segment."""
        return self.mean.masked_fill(~self.present, torch.nan)

    def rsample(self, sample_shape=(), generator: torch.Generator | list[torch.Generator] | None = None):
        """As in [`DiagonalGaussian`]; of a row's own generator the row's own segments are drawn first, so that they do
        not depend on how many others have."""
        if not isinstance(generator, list):
            return super().rsample(sample_shape, generator)
        shape = torch.Size(sample_shape)
        noise = self.mean.new_empty(shape + self.mean.shape)
        for row, (own, here) in enumerate(zip(generator, self.present.cpu(), strict=True)):
            for part in (here, ~here):
                drawn = torch.randn(*shape, int(part.sum()), generator=own, device=own.device, dtype=noise.dtype)
                noise[..., row, part.to(noise.device)] = drawn.to(noise.device)
        return self.mean + self.stddev * noise

    def sample(self, sample_shape=(), generator=None):
        """[`rsample`][JointGaussian.rsample] without a gradient, and NaN where a row has no such segment: a decoder
        that goes on there takes that of the prior."""
        with torch.no_grad():
            return self.rsample(sample_shape, generator).masked_fill(~self.present, torch.nan)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """log density of `value` [..., *batch, W], in nats: [..., *batch]; of what is not there, nothing."""
        return _log_prob_of_present(self, value, self.present)

    def entropy(self) -> torch.Tensor:
        """In nats: [*batch]; of what is not there, nothing."""
        return super().entropy() - 0.5 * (math.log(2 * math.pi) + 1) * (~self.present).sum(-1)

    def expand(self, batch_shape, _instance=None):
        shape = torch.Size(batch_shape) + self.event_shape
        return JointGaussian(*(moment.expand(shape) for moment in self._given), self.global_size)

    def detach(self) -> "JointGaussian":
        return JointGaussian(*(moment.detach() for moment in self._given), self.global_size)

    @property
    def _given(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.mode, self.logvar.masked_fill(~self.present, torch.inf)


def _log_prob_of_present(gaussian: DiagonalGaussian, value: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """log density of those dimensions of `value` that a row has; the others of the Gaussian are N(0, 1)."""
    density = DiagonalGaussian.log_prob(gaussian, value.masked_fill(~present, 0))
    return density + 0.5 * math.log(2 * math.pi) * (~present).sum(-1)


class JointPrior(Distribution):
    """p(z) = p(z_g) prod_s p(z_s | z_g, z_<s), and N(0, I) where a row has no such segment.

    Args:
        conductor: gives the conditional priors.
        present: which dimensions a row has, [*batch, W].
        global_size: D.
    """

    arg_constraints = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, conductor: "Conductor", present: torch.Tensor, global_size: int):
        self.conductor, self.present, self.global_size = conductor, present, global_size
        super().__init__(present.shape[:-1], present.shape[-1:], validate_args=False)

    def along(self, z: torch.Tensor) -> DiagonalGaussian:
        """p(z_g) and each p(z_s | z_g, z_<s) given the z above and before it in `z` [..., W]."""
        z = z.masked_fill(~self.present, 0)  # a NaN would reach the gradients even through the `where` below
        z_g, below = z.reshape(-1, z.shape[-1]).tensor_split([self.global_size], dim=1)
        moments = [torch.zeros_like(z_g)] * 2
        if below.shape[1]:
            _, *of_segments = self.conductor(z_g, below.unflatten(1, (-1, self.conductor.width)))
            moments = [torch.cat([m, m_s.flatten(1)], 1) for m, m_s in zip(moments, of_segments, strict=True)]
        return DiagonalGaussian(*(torch.where(self.present, m.view(z.shape), 0) for m in moments))

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """log density of `value` [..., *batch, W], in nats: [..., *batch]; as of [`JointGaussian`]."""
        parts = [value] if value.dim() <= self.present.dim() else self.parts(value)
        of_each = [_log_prob_of_present(self.along(part), part, self.present) for part in parts]
        return of_each[0] if len(of_each) == 1 else torch.cat(of_each)

    def parts(self, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Samples [K, *batch, W], so many at a time as one run of the conductor shall take."""
        return value.split(max(1, MAX_AT_ONCE // (value[0].numel() * self.conductor.rnn.hidden_size)))

    def rsample(self, sample_shape=(), generator: torch.Generator | None = None) -> torch.Tensor:
        """The whole first, then segment after segment, [*sample_shape, *batch, W]."""
        like = next(self.conductor.parameters())
        zeros = torch.zeros(self._extended_shape(torch.Size(sample_shape)), device=like.device)
        return self._complete(DiagonalGaussian(zeros, zeros).sample(generator=generator))

    def sample(self, sample_shape=(), generator: torch.Generator | None = None) -> torch.Tensor:
        """[`rsample`][JointPrior.rsample] without a gradient, NaN as in [`JointGaussian.sample`]."""
        with torch.no_grad():
            return self.rsample(sample_shape, generator).masked_fill(~self.present, torch.nan)

    @property
    def mean(self) -> torch.Tensor:
        """[*batch, W], of each z given that those above and before it are means."""
        return self._complete(self.present.float() * 0)

    mode = mean

    def _complete(self, noise: torch.Tensor) -> torch.Tensor:
        flat = noise.reshape(-1, noise.shape[-1])
        z = flat.clone()
        z[:, self.global_size :] = torch.nan
        return torch.where(self.present, complete(self.conductor, z, flat).view(noise.shape), noise)


class Conductor(nn.Module):
    """From one node to those below it: their c_s and p(z_s | node, z_<s), and what hangs below these in turn.

    Args:
        config: its `section_sizes` say how many conductors there are.
        parent_size: of what stands for the node above, z_g or [c; z].
        section_sizes: of the scales below these nodes.
    """

    def __init__(self, config: HierarchicalVRAEConfig, parent_size: int, section_sizes: list[int]):
        super().__init__()
        size, self.latent_size = config.conductor_hidden_size, config.segment_latent_size
        self.initial_state = nn.Linear(parent_size, size, bias=False)
        self.rnn = LAYERS[config.rnn_type, config.layer_norm](self.latent_size + parent_size, size)
        self.rnn.kernels = config.kernels
        if self.latent_size:
            self.prior = GaussianPosterior(size, self.latent_size)
        self.num_below = section_sizes[0] if section_sizes else 0
        if section_sizes:
            self.below = Conductor(config, size + self.latent_size, section_sizes[1:])
        # Of the flat vector, the dimensions of a node with all that is below it.
        self.width = self.latent_size + (self.num_below * self.below.width if section_sizes else 0)

    def first_state(self, parent: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As a decoder's: c_0 = W [node], h_0 = tanh(c_0)."""
        c0 = self.initial_state(parent)
        return (c0.tanh(), c0)[: self.rnn.number_of_states]

    def forward(self, parent: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Args:
            parent: [R, parent_size].
            z: of all that is below, [R, N, width].

        Returns:
            [c_s; z_s] of each segment, [R, S, U]; means and log-variances of p(z_s | ...), float32 [R, N, width].
        """
        rows, count = z.shape[:2]
        parent = parent.to(self.rnn.input_weight.dtype)
        own, below = z.tensor_split([self.latent_size], dim=2)
        before = one_step_back(own).to(parent.dtype)  # z_{s-1}
        c, _ = run_layer(self.rnn, before, self.first_state(parent), constant=parent)  # [R, N, H]
        node = torch.cat([c, own.to(c.dtype)], dim=-1)  # [R, N, U]
        moments = self.prior(c) if self.latent_size else (own, own)
        if not self.num_below:
            return node, *moments
        below_shape = below.shape
        below = below.reshape(rows * count, self.num_below, self.below.width)
        nodes, *of_below = self.below(node.flatten(0, 1), below)
        of_below = (moment.reshape(below_shape) for moment in of_below)
        mean, logvar = (torch.cat(both, dim=2) for both in zip(moments, of_below, strict=True))
        return nodes.reshape(rows, -1, nodes.shape[-1]), mean, logvar

    def complete(self, parent: torch.Tensor, z: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Ancestral sampling of what in `z` [R, N, width] is NaN, by standard normal `noise` of the same shape."""
        parent = parent.to(self.rnn.input_weight.dtype)
        state, own, done = self.first_state(parent), parent.new_zeros(len(z), self.latent_size), []
        for given, epsilon in zip(z.unbind(1), noise.unbind(1), strict=True):
            c, state = run_layer(self.rnn, own.unsqueeze(1), state, constant=parent)
            own, below = given.tensor_split([self.latent_size], dim=1)
            epsilon, noise_below = epsilon.tensor_split([self.latent_size], dim=1)
            if self.latent_size:
                mean, logvar = self.prior(c.squeeze(1))
                own = torch.where(own.isnan(), mean + (0.5 * logvar).exp() * epsilon, own).to(parent.dtype)
            if self.num_below:
                shape = len(z), self.num_below, self.below.width
                node = torch.cat([c.squeeze(1), own.to(c.dtype)], dim=-1)
                below = self.below.complete(node, below.reshape(shape), noise_below.reshape(shape)).flatten(1)
            done.append(torch.cat([own.to(z.dtype), below], dim=1))
        return torch.stack(done, dim=1)


def complete(conductor: Conductor, latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Flat latents [R, W] with z_g, whose NaN are filled from their priors, with noise [R, W]; zeros give means."""
    size = conductor.initial_state.in_features
    if latents.shape[1] == size:
        return latents
    z_g, below = latents.tensor_split([size], dim=1)
    shape = (-1, conductor.width)
    done = conductor.complete(z_g, below.unflatten(1, shape), noise[:, size:].unflatten(1, shape))
    return torch.cat([z_g, done.flatten(1)], dim=1)
