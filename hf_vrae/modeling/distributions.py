"""Posteriors q(z|x) and priors p(z) as `torch.distributions`, whose tools therefore work on them."""

import math

import torch
from torch.distributions import Distribution, constraints, kl_divergence, register_kl


class DiagonalGaussian(Distribution):
    """N(mean, diag(exp(logvar))) over vectors z of D dimensions.

    Args:
        mean: [*batch, D].
        logvar: log-variance, [*batch, D]: the log of the *variance*, in every use.
    """

    arg_constraints = {"mean": constraints.real_vector, "logvar": constraints.real_vector}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, mean: torch.Tensor, logvar: torch.Tensor):
        self._mean, self.logvar = torch.broadcast_tensors(mean, logvar)
        # Checking the arguments would cost a host-device synchronisation at every step.
        super().__init__(self._mean.shape[:-1], self._mean.shape[-1:], validate_args=False)

    @property
    def mean(self) -> torch.Tensor:
        """[*batch, D]"""
        return self._mean

    @property
    def mode(self) -> torch.Tensor:
        """[*batch, D]"""
        return self._mean

    @property
    def variance(self) -> torch.Tensor:
        """[*batch, D]"""
        return self.logvar.exp()

    @property
    def stddev(self) -> torch.Tensor:
        """[*batch, D]"""
        return (0.5 * self.logvar).exp()

    def rsample(self, sample_shape=(), generator: torch.Generator | list[torch.Generator] | None = None):
        """z = mean + stddev * epsilon, differentiable (Kingma & Welling 2014, eq. 4); [*sample_shape, *batch, D].

        `generator` makes the noise repeatable; a list of them, one a row of the batch, ties each row's noise to the
        row itself, whatever batch it stands in.
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        return self._mean + self.stddev * _standard_normal(shape, self._mean, generator)

    def sample(self, sample_shape=(), generator=None):
        """[`rsample`][DiagonalGaussian.rsample] without a gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape, generator)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """log density of `value` [..., D], in nats: [...]."""
        distance = (value - self._mean).square() * torch.exp(-self.logvar)
        return -0.5 * (distance + self.logvar + math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> torch.Tensor:
        """In nats: [*batch]."""
        return 0.5 * (self.logvar + math.log(2 * math.pi) + 1).sum(-1)

    def expand(self, batch_shape, _instance=None):
        shape = torch.Size(batch_shape) + self.event_shape
        return DiagonalGaussian(self._mean.expand(shape), self.logvar.expand(shape))


def _standard_normal(shape, like: torch.Tensor, generator) -> torch.Tensor:
    if not isinstance(generator, list):
        device = like.device if generator is None else generator.device
        return torch.randn(shape, generator=generator, device=device, dtype=like.dtype).to(like.device)
    if len(generator) != like.shape[0]:
        raise ValueError(f"`generator` must hold one generator a row: got {len(generator)} for {like.shape[0]} rows.")
    row_shape = shape[: len(shape) - like.dim()] + like.shape[1:]
    rows = [torch.randn(row_shape, generator=g, device=g.device, dtype=like.dtype) for g in generator]
    return torch.stack(rows, dim=len(shape) - like.dim()).to(like.device)


def kl_per_dimension(q: DiagonalGaussian, p: DiagonalGaussian) -> torch.Tensor:
    """KL(q || p) of each latent dimension, in nats: [*batch, D]; never negative (Kingma & Welling 2014, appendix B).

    -0.5 (1 + log r - r - (mean_q - mean_p)^2 / variance_p) with r = variance_q / variance_p, where r - 1 is taken as
    expm1(log r): near the prior the plain form loses all its digits and its sign.
    """
    log_ratio = q.logvar - p.logvar
    distance = (q.mean - p.mean).square() * torch.exp(-p.logvar)
    return 0.5 * (torch.expm1(log_ratio) - log_ratio + distance)


@register_kl(DiagonalGaussian, DiagonalGaussian)
def _kl_gaussian_gaussian(q: DiagonalGaussian, p: DiagonalGaussian) -> torch.Tensor:
    return kl_per_dimension(q, p).sum(-1)


__all__ = ["DiagonalGaussian", "kl_divergence", "kl_per_dimension"]
