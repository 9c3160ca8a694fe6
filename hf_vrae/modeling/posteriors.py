"""From the encoder's summary of x to q(z|x): the families of posteriors, each a remedy against collapse of its own."""

import math

import torch
from torch import nn

from .distributions import CorrelatedGaussian, DiagonalGaussian, VonMisesFisher
from .kernels import as_weight_of

# Bounds of the log-variance: wide enough not to bind where the KL is paid (an autoencoder, which pays none, may reach
# the lower one), narrow enough for exp in float16.
MIN_LOGVAR, MAX_LOGVAR = -10.0, 10.0


class GaussianPosterior(nn.Module):
    """N(mean, diag(exp(logvar))), both linear in the summary (Kingma & Welling 2014)."""

    numbers = 2  # that are read from the summary for each dimension

    def __init__(self, hidden_size: int, latent_size: int):
        super().__init__()
        # Not an nn.Linear itself, which adapters and quantization would take for one that returns a tensor.
        self.weight = nn.Linear(hidden_size, self.numbers * latent_size, bias=False).weight

    def forward(self, summary: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mean and log-variance, float32 [B, D] each, of a summary [B, H]."""
        # A log-variance rounded to 8 bits would spoil the KL: this one projection stays float32 in mixed precision.
        with torch.autocast(summary.device.type, enabled=False):
            wide = torch.promote_types(summary.dtype, torch.float32)
            return self.read(nn.functional.linear(summary.to(wide), self.weight.to(wide)))

    def read(self, projected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What `forward` returns, of the projected summary [B, 2 D]."""
        return self.moments(*projected.chunk(2, dim=-1))

    def moments(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """From two unbounded numbers a dimension, [B, D] each, to mean and log-variance."""
        return a, b.clamp(MIN_LOGVAR, MAX_LOGVAR)

    def distribution(self, mean: torch.Tensor, logvar: torch.Tensor | None) -> DiagonalGaussian:
        """q(z|x) of what `forward` gave, with batch shape [B] and event shape [D]."""
        return DiagonalGaussian(mean, logvar)


class BatchNormPosterior(GaussianPosterior):
    """BN-VAE (Zhu et al. 2020): means normalised over the batch, with a scale that is not learnt and a shift that is.

    The mean KL is then at least D (gamma^2 + shift^2) / 2 nats (eq. 7): 5.76 with 32 dimensions and gamma 0.6. The
    statistics are those of all processes' batches in training, and running ones in evaluation and for a batch of one:
    the mean of the first ten batches', and then a moving one, so that the floor holds there from the first ones on.

    Args:
        hidden_size, latent_size: sizes.
        gamma: the scale.
        learn_scale: let the dimensions share it out, with root mean square gamma (DU-VAE, Shen et al. 2021).
    """

    # The recipes of the field start the means at a variance of 1e-8: torch's eps of 1e-5 would leave no floor, and its
    # running variance, which moves from 1, none in the first hundred updates.
    momentum, eps = 0.1, 1e-12

    def __init__(self, hidden_size: int, latent_size: int, gamma: float, learn_scale: bool = False):
        super().__init__(hidden_size, latent_size)
        self.gamma = gamma
        self.shift = nn.Parameter(torch.zeros(latent_size))
        self.scale = nn.Parameter(torch.ones(latent_size)) if learn_scale else None
        self.register_buffer("running_mean", torch.zeros(latent_size))
        self.register_buffer("running_var", torch.ones(latent_size))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def moments(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        centre, variance = self.running_mean, self.running_var
        count = len(a)
        if self.training and _several_processes():
            count = _sum_over_processes(a.new_tensor([float(count)])).item()
        if self.training and count > 1:
            centre = _sum_over_processes(a.sum(0)) / count
            variance = _sum_over_processes((a - centre).square().sum(0)) / count
            with torch.no_grad():
                self.num_batches_tracked += 1
                share = (1 / self.num_batches_tracked).clamp(min=self.momentum)
                for running, now in ((self.running_mean, centre), (self.running_var, variance * count / (count - 1))):
                    running.lerp_(now.to(running.dtype), share.to(running.dtype))
        scale = self.gamma
        if self.scale is not None:
            scale = self.gamma * self.scale / self.scale.square().mean().sqrt()
        mean = scale * (a - centre) * (variance + self.eps).rsqrt() + self.shift
        return super().moments(mean, b)


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        torch.distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient):
        return _AllReduce.apply(gradient)  # every process's loss depends on every process's summand


def _several_processes() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _sum_over_processes(x: torch.Tensor) -> torch.Tensor:
    return _AllReduce.apply(x) if _several_processes() else x


class CommittedRatePosterior(GaussianPosterior):
    """delta-VAE (Razavi et al. 2019), independent dimensions: no q of the family is nearer to N(0, I) than its rate.

    With s the variance, KL_j = delta + max(0, a) / 2, whatever s in [s_l, s_u], the roots of ln s - s + 2 delta + 1.
    The floor can be met by one and the same q for all x: a KL at the floor says nothing of what z says about x.

    Args:
        hidden_size, latent_size: sizes.
        rate: delta, the committed KL of each dimension in nats.
    """

    def __init__(self, hidden_size: int, latent_size: int, rate: float):
        super().__init__(hidden_size, latent_size)
        self.rate = rate
        self.bounds = committed_rate_bounds(rate)

    def moments(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = (math.sqrt(s) for s in self.bounds)
        variance = (low + (high - low) * b.sigmoid()).square()
        square = 2 * self.rate + 1 + variance.log() - variance + a.clamp(min=0)
        return square.clamp(min=1e-8).sqrt(), variance.log()  # the root of 0 would have no gradient


class VonMisesFisherPosterior(GaussianPosterior):
    """vMF of a direction that is linear in the summary, with one concentration for all x (Xu & Durrett 2018)."""

    numbers = 1

    def __init__(self, hidden_size: int, latent_size: int, concentration: float):
        super().__init__(hidden_size, latent_size)
        self.concentration = concentration

    def read(self, projected: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Directions, unit vectors [B, D], of the projected summary [B, D]."""
        return nn.functional.normalize(projected, dim=-1), None

    def distribution(self, mean: torch.Tensor, logvar: None) -> VonMisesFisher:
        return VonMisesFisher(mean, mean.new_tensor(self.concentration))


class ConditionalPrior(nn.Module):
    """p(z|c) = N(mean(c), diag(exp(logvar(c)))), by one hidden layer (Sohn et al. 2015, the prior network).

    Args:
        condition_width, hidden_size, latent_size: of c, between, and of z.
    """

    def __init__(self, condition_width: int, hidden_size: int, latent_size: int):
        super().__init__()
        self.hidden = nn.Linear(condition_width, hidden_size)
        self.moments = GaussianPosterior(hidden_size, latent_size)

    def forward(self, condition: torch.Tensor) -> DiagonalGaussian:
        """p(z|c), with batch shape [*batch] and event shape [D], in float32, of c [*batch, C]."""
        return DiagonalGaussian(*self.moments(self.hidden(as_weight_of(self.hidden, condition)).tanh()))


class CorrelatedPrior(nn.Module):
    """p(z) = N(0, R) with learnt correlations R, which at first are 0.

    What a posterior says of x twice, in two dimensions, is then paid for once. The variances stay 1: with scales of
    its own the prior could follow a posterior that says less and less.

    Args:
        latent_size: D.
    """

    def __init__(self, latent_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(latent_size, latent_size))  # what stands below the diagonal is read

    def forward(self) -> CorrelatedGaussian:
        """p(z), with event shape [D], in float32."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        rows = self.weight.to(wide).tril(-1) + torch.eye(len(self.weight), dtype=wide, device=self.weight.device)
        return CorrelatedGaussian(nn.functional.normalize(rows, dim=-1))


def committed_rate_bounds(rate: float) -> tuple[float, float]:
    """The variances s_l < 1 < s_u at which N(0, s) is `rate` nats from N(0, 1): ln s - s + 2 rate + 1 = 0."""

    def solve(inside: float, outside: float) -> float:
        for _ in range(200):
            middle = (inside + outside) / 2
            if math.log(middle) - middle + 2 * rate + 1 > 0:
                inside = middle
            else:
                outside = middle
        return inside

    return solve(1.0, math.exp(-2 * rate - 1)), solve(1.0, 2 * (2 * rate + 2))
