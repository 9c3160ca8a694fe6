"""Posteriors q(z|x) and priors p(z) as `torch.distributions`, whose tools therefore work on them."""

import functools
import math

import torch
from torch.distributions import Distribution, constraints, kl_divergence, register_kl

WITHOUT_FLOAT64 = ("mps",)  # Apple's


def to_float64(tensor: torch.Tensor) -> torch.Tensor:
    """In double precision; brought to the CPU from a device that has none."""
    return (tensor.cpu() if tensor.device.type in WITHOUT_FLOAT64 else tensor).double()


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

        `generator` makes the noise repeatable; a list of them, one per row of the batch, ties each row's noise to the
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

    def detach(self) -> "DiagonalGaussian":
        """The same without a gradient in its parameters."""
        return DiagonalGaussian(self._mean.detach(), self.logvar.detach())


def generators_of_rows(count: int) -> list[torch.Generator]:
    """One for each row of a batch, by its place: noise that is the same each time, however long the other rows are."""
    return [torch.Generator().manual_seed(row) for row in range(count)]


def _standard_normal(shape, like: torch.Tensor, generator) -> torch.Tensor:
    if not isinstance(generator, list):
        device = like.device if generator is None else generator.device
        return torch.randn(shape, generator=generator, device=device, dtype=like.dtype).to(like.device)
    if len(generator) != like.shape[0]:
        raise ValueError(f"`generator` must hold one generator a row: got {len(generator)} for {like.shape[0]} rows.")
    row_shape = shape[: len(shape) - like.dim()] + like.shape[1:]
    rows = [torch.randn(row_shape, generator=g, device=g.device, dtype=like.dtype) for g in generator]
    return torch.stack(rows, dim=len(shape) - like.dim()).to(like.device)


class CorrelatedGaussian(Distribution):
    """N(0, R) over vectors z of D dimensions, each of variance 1, with R = L L^T their correlations.

    Args:
        factor: L, lower triangular with rows of length 1 and a diagonal above 0, [D, D].
    """

    arg_constraints = {}
    support = constraints.real_vector

    def __init__(self, factor: torch.Tensor):
        self.factor = factor
        # L^-1: epsilon = L^-1 z are independent, and epsilon_d is what z_d has beyond z_1 .. z_(d-1).
        self.whitening = torch.linalg.solve_triangular(factor, torch.eye(len(factor)).to(factor), upper=False)
        super().__init__(torch.Size(), factor.shape[-1:], validate_args=False)

    @property
    def mean(self) -> torch.Tensor:
        """[D], zeros."""
        return torch.zeros_like(self.factor[0])

    @property
    def variance(self) -> torch.Tensor:
        """[D], ones."""
        return torch.ones_like(self.factor[0])

    def sample(self, sample_shape=(), generator: torch.Generator | None = None) -> torch.Tensor:
        """z = L epsilon: [*sample_shape, D]."""
        with torch.no_grad():
            return _times(
                _standard_normal(self._extended_shape(torch.Size(sample_shape)), self.mean, generator), self.factor
            )

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """log density of `value` [..., D], in nats: [...]."""
        squares = _times(value, self.whitening).square() + math.log(2 * math.pi)
        return -0.5 * squares.sum(-1) - self.factor.diagonal().log().sum()


def _times(vectors: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """The matrix times each of the vectors [..., D], in their own precision under autocast too."""
    with torch.autocast(vectors.device.type, enabled=False):
        return vectors @ matrix.to(vectors.dtype).T


def kl_per_dimension(q: DiagonalGaussian, p: DiagonalGaussian | CorrelatedGaussian) -> torch.Tensor:
    """KL(q || p) of each latent dimension, in nats: [*batch, D]; never negative (Kingma & Welling 2014, appendix B).

    -0.5 (1 + log r - r - (mean_q - mean_p)^2 / variance_p) with r = variance_q / variance_p, where r - 1 is taken as
    expm1(log r): near the prior the plain form loses all its digits and its sign.

    Where p's dimensions are correlated, that of q(z_d) to p(z_d | z_1 .. z_(d-1)) in the mean over q: they sum to the
    KL, as the others do.
    """
    if not isinstance(q, DiagonalGaussian) or not isinstance(p, (DiagonalGaussian, CorrelatedGaussian)):
        raise TypeError(f"The KL of each dimension is that of Gaussians, got {type(q).__name__}, {type(p).__name__}.")
    if isinstance(p, CorrelatedGaussian):
        beyond = p.whitening.square() - torch.eye(len(p.factor)).to(p.factor)  # 0 beside N(0, I)
        squares = _times(q.mean, p.whitening).square() + _times(q.variance, beyond)  # E[epsilon^2] - variance_q
        return 0.5 * (squares + torch.expm1(q.logvar) - q.logvar) + p.factor.diagonal().log()
    log_ratio = q.logvar - p.logvar
    distance = (q.mean - p.mean).square() * torch.exp(-p.logvar)
    return 0.5 * (torch.expm1(log_ratio) - log_ratio + distance)


@register_kl(DiagonalGaussian, CorrelatedGaussian)
@register_kl(DiagonalGaussian, DiagonalGaussian)
def _kl_gaussian_gaussian(q: DiagonalGaussian, p: DiagonalGaussian | CorrelatedGaussian) -> torch.Tensor:
    return kl_per_dimension(q, p).sum(-1)


class HypersphericalUniform(Distribution):
    """The uniform distribution over unit vectors z of D dimensions: the prior beside a [`VonMisesFisher`] posterior.

    Args:
        latent_size: D.
        device: of what it gives.
    """

    arg_constraints = {}
    support = constraints.real_vector

    def __init__(self, latent_size: int, device: torch.device | str = "cpu"):
        self.device, half = torch.device(device), latent_size / 2
        self._log_surface = math.log(2) + half * math.log(math.pi) - math.lgamma(half)
        super().__init__(torch.Size(), torch.Size([latent_size]), validate_args=False)

    @property
    def mean(self) -> torch.Tensor:
        """[D], zeros."""
        return torch.zeros(self.event_shape, device=self.device)

    def sample(self, sample_shape=(), generator: torch.Generator | None = None) -> torch.Tensor:
        """[*sample_shape, D]: a direction of the standard normal distribution."""
        z = _standard_normal(self._extended_shape(torch.Size(sample_shape)), self.mean, generator)
        return z / z.norm(dim=-1, keepdim=True)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """log density of unit vectors `value` [..., D] on the sphere, in nats: [...]."""
        return value.new_full(value.shape[:-1], -self._log_surface)

    def entropy(self) -> torch.Tensor:
        """log of the sphere's surface 2 pi^(D/2) / Gamma(D/2), in nats: []."""
        return torch.tensor(self._log_surface, device=self.device)


class VonMisesFisher(Distribution):
    """vMF(loc, concentration) over unit vectors z of D dimensions, with density C_D(kappa) exp(kappa loc . z).

    As the posterior of a text VAE with one kappa for all (Xu & Durrett 2018) its KL to the uniform prior is a
    constant, which no training can bring to zero.

    Args:
        loc: unit vectors, [*batch, D], D at least 3.
        concentration: kappa, above 0, [*batch]; there is no gradient in it.
    """

    arg_constraints = {"loc": constraints.real_vector, "concentration": constraints.positive}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: torch.Tensor, concentration: torch.Tensor):
        if loc.shape[-1] < 3:
            raise ValueError(f"`loc` must have at least 3 dimensions, got {loc.shape[-1]}.")
        self.loc, self.concentration = loc, concentration.detach().expand(loc.shape[:-1])
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    @property
    def mean(self) -> torch.Tensor:
        """E[z] = I_{D/2}(kappa) / I_{D/2-1}(kappa) loc, inside the sphere, [*batch, D]"""
        return self._resultant_length().to(self.loc).unsqueeze(-1) * self.loc

    @property
    def variance(self) -> torch.Tensor:
        """Of each coordinate, [*batch, D]: E[w^2] - E[w]^2 along loc, and (1 - E[w^2]) / (D - 1) across it, with
        w = loc . z and E[w^2] = 1 - (D - 1) E[w] / kappa."""
        length, across = self._resultant_length(), self.event_shape[0] - 1
        beside = length / to_float64(self.concentration)  # = (1 - E[w^2]) / (D - 1)
        along = 1 - across * beside - length.square()
        along, beside, share = along.to(self.loc).unsqueeze(-1), beside.to(self.loc).unsqueeze(-1), self.loc.square()
        return along * share + beside * (1 - share)

    @property
    def mode(self) -> torch.Tensor:
        """[*batch, D]"""
        return self.loc

    def rsample(self, sample_shape=(), generator: torch.Generator | list[torch.Generator] | None = None):
        """z = w loc + sqrt(1 - w^2) v, v a unit vector orthogonal to loc (Ulrich 1984), differentiable in loc.

        w is drawn by its inverse cumulative distribution, not by rejection: the noise of a row is then always as
        long, and `generator` is used as in [`DiagonalGaussian.rsample`].
        """
        size = self.event_shape[0]
        shape = torch.Size(sample_shape) + self.batch_shape + (size + 1,)
        noise = _standard_normal(shape, self.loc.new_empty(*self.batch_shape, size + 1), generator)
        w = self._cosine(torch.special.ndtr(to_float64(noise[..., 0]))).to(self.loc).unsqueeze(-1)
        v = noise[..., 1:]
        v = v - (v * self.loc).sum(-1, keepdim=True) * self.loc
        return w * self.loc + (1 - w.square()).clamp(min=0).sqrt() * v / v.norm(dim=-1, keepdim=True)

    def sample(self, sample_shape=(), generator=None):
        """[`rsample`][VonMisesFisher.rsample] without a gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape, generator)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """log density of unit vectors `value` [..., D] on the sphere, in nats: [...]."""
        return self.concentration * (value * self.loc).sum(-1) + self._log_normaliser().to(value)

    def entropy(self) -> torch.Tensor:
        """In nats: [*batch]."""
        return -(to_float64(self.concentration) * self._resultant_length() + self._log_normaliser()).to(self.loc)

    def expand(self, batch_shape, _instance=None):
        batch_shape = torch.Size(batch_shape)
        return VonMisesFisher(self.loc.expand(batch_shape + self.event_shape), self.concentration.expand(batch_shape))

    def detach(self) -> "VonMisesFisher":
        """The same without a gradient in its parameters."""
        return VonMisesFisher(self.loc.detach(), self.concentration)

    def _log_normaliser(self) -> torch.Tensor:
        """log C_D(kappa), C_D(kappa) = kappa^nu / ((2 pi)^(D/2) I_nu(kappa)) with nu = D/2 - 1; float64."""
        half, kappa = self.event_shape[0] / 2, to_float64(self.concentration)
        return (half - 1) * kappa.log() - half * math.log(2 * math.pi) - log_bessel(half - 1, kappa)

    def _resultant_length(self) -> torch.Tensor:
        half, kappa = self.event_shape[0] / 2, to_float64(self.concentration)
        return (log_bessel(half, kappa) - log_bessel(half - 1, kappa)).exp()

    def _cosine(self, u: torch.Tensor) -> torch.Tensor:
        """w = loc . z at which its distribution, of density ~ exp(kappa w) (1 - w^2)^((D-3)/2), has reached `u`."""
        w = torch.empty_like(u)
        for kappa in self.concentration.unique().tolist():
            w_grid, cumulative = (t.to(u.device) for t in _cosine_table(self.event_shape[0], kappa))
            here = (self.concentration == kappa).to(u.device).expand(u.shape)
            inside = torch.searchsorted(cumulative, u[here]).clamp(1, len(cumulative) - 1)
            low, high = cumulative[inside - 1], cumulative[inside]
            share = ((u[here] - low) / (high - low).clamp(min=1e-300)).clamp(0, 1)
            w[here] = torch.lerp(w_grid[inside - 1], w_grid[inside], share)
        return w


@functools.lru_cache(maxsize=16)
def _cosine_table(size: int, kappa: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A grid over where w = loc . z of a vMF has its mass, and its cumulative distribution there; float64 [8192]."""
    low, high = -1.0, 1.0
    for _ in range(3):  # narrower each time, to what is not below exp(-40) of the mode
        w = torch.linspace(low, high, 8192, dtype=torch.float64)
        log_density = kappa * w + torch.special.xlog1py((size - 3) / 2, -w.square())
        mass = (log_density > log_density.max() - 40).nonzero().squeeze(1)
        low, high = w[max(mass[0] - 1, 0)].item(), w[min(mass[-1] + 1, len(w) - 1)].item()
    density = (log_density - log_density.max()).exp()
    cumulative = torch.cat([density.new_zeros(1), ((density[1:] + density[:-1]) / 2).cumsum(0)])
    return w, cumulative / cumulative[-1]


def log_bessel(order: float, x: torch.Tensor) -> torch.Tensor:
    """log I_order(x), the modified Bessel function of the first kind (DLMF 10.25.2), for x > 0, in float64.

    All terms of its series are positive, and the largest stands near x / 2: the sum takes all that count.
    """
    x = to_float64(x)
    k = torch.arange(int(x.max()) + 200, dtype=torch.float64, device=x.device)
    terms = 2 * k * (x.unsqueeze(-1) / 2).log() - torch.lgamma(k + 1) - torch.lgamma(k + order + 1)
    return order * (x / 2).log() + terms.logsumexp(-1)


@register_kl(VonMisesFisher, HypersphericalUniform)
def _kl_vmf_uniform(q: VonMisesFisher, p: HypersphericalUniform) -> torch.Tensor:
    return p.entropy() - q.entropy()


__all__ = [
    "CorrelatedGaussian",
    "DiagonalGaussian",
    "HypersphericalUniform",
    "VonMisesFisher",
    "kl_divergence",
    "kl_per_dimension",
]
