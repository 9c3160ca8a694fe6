import math

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from hf_vrae.modeling.distributions import (
    CorrelatedGaussian,
    DiagonalGaussian,
    HypersphericalUniform,
    VonMisesFisher,
    kl_per_dimension,
    log_bessel,
)


def make(*shape):
    return DiagonalGaussian(torch.randn(*shape).double(), torch.randn(*shape).double())


def as_torch(q):
    return Independent(Normal(q.mean, q.variance.sqrt()), 1)


def test_agrees_with_torch():
    q, p = make(5, 4), make(5, 4)
    z = torch.randn(3, 5, 4).double()
    torch.testing.assert_close(q.log_prob(z), as_torch(q).log_prob(z))
    torch.testing.assert_close(q.entropy(), as_torch(q).entropy())
    torch.testing.assert_close(q.stddev.square(), q.variance)
    torch.testing.assert_close(kl_divergence(q, p), kl_divergence(as_torch(q), as_torch(p)))
    assert (q.batch_shape, q.event_shape) == ((5,), (4,))


def test_kl_is_the_mean_of_the_log_ratio():
    q, p = make(3), make(3)
    z = q.sample((400_000,))
    estimate = (q.log_prob(z) - p.log_prob(z)).mean()
    torch.testing.assert_close(kl_divergence(q, p), estimate, rtol=0.01, atol=0.01)


def test_kl_of_each_dimension_is_of_gaussians_alone():
    """One of another family, with a mean and a variance, would be given a Gaussian's."""
    sphere = VonMisesFisher(torch.eye(4)[:1], torch.tensor(2.0))
    with pytest.raises(TypeError, match="of Gaussians, got VonMisesFisher, HypersphericalUniform"):
        kl_per_dimension(sphere, HypersphericalUniform(4))


def test_kl_is_never_negative_and_zero_only_at_the_prior():
    prior = DiagonalGaussian(torch.zeros(8), torch.zeros(8))
    for scale in 10.0 ** torch.arange(-9.0, 1.0):
        q = DiagonalGaussian(torch.zeros(1000, 8), scale * torch.randn(1000, 8))
        assert (kl_per_dimension(q, prior) >= 0).all()
    near = DiagonalGaussian(torch.zeros(1), torch.full((1,), 1e-3))  # the plain form gives 2.4e-7 or 3.6e-7 here
    assert kl_divergence(near, DiagonalGaussian(torch.zeros(1), torch.zeros(1))).item() == pytest.approx(
        (math.expm1(1e-3) - 1e-3) / 2, rel=1e-3
    )
    assert kl_divergence(prior, prior).item() == 0


def correlated(size):
    """A [`CorrelatedGaussian`] and torch's."""
    rows = torch.nn.functional.normalize(torch.randn(size, size).tril(-1) + torch.eye(size), dim=-1).double()
    return CorrelatedGaussian(rows), MultivariateNormal(torch.zeros(size).double(), scale_tril=rows)


def test_correlated_dimensions_agree_with_torch():
    q, (p, theirs) = make(5, 4), correlated(4)
    z = torch.randn(3, 5, 4).double()
    torch.testing.assert_close(p.log_prob(z), theirs.log_prob(z))
    wanted = kl_divergence(MultivariateNormal(q.mean, torch.diag_embed(q.variance)), theirs)
    torch.testing.assert_close(kl_divergence(q, p), wanted)
    torch.testing.assert_close(p.variance, theirs.variance)
    z = p.sample((200_000,), torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.cov(z.T), theirs.covariance_matrix, atol=0.01, rtol=0)
    assert (p.batch_shape, p.event_shape) == ((), (4,))
    with torch.autocast("cpu", torch.bfloat16):  # which would round z to 8 bits
        assert torch.equal(p.log_prob(z.float()), CorrelatedGaussian(p.factor).log_prob(z.float()))
        torch.testing.assert_close(p.log_prob(z[:9].float()), theirs.log_prob(z[:9]).float(), rtol=1e-5, atol=1e-5)


def test_the_kl_of_a_correlated_dimension_is_the_one_given_those_before_it():
    q, (p, _) = make(4), correlated(4)
    z = q.sample((400_000,))
    before, spread = torch.zeros(400_000, 4).double(), p.factor.diagonal()
    for d in range(4):  # z_d = L_d . epsilon
        epsilon = z[:, :d] @ torch.linalg.inv(p.factor[:d, :d]).T
        before[:, d] = epsilon @ p.factor[d, :d]
    of_each = kl_divergence(Normal(q.mean, q.stddev), Normal(before, spread)).mean(0)
    torch.testing.assert_close(kl_per_dimension(q, p), of_each, rtol=0.02, atol=0.02)
    torch.testing.assert_close(kl_per_dimension(q, p).sum(), kl_divergence(q, p))


def test_log_variance_means_variance_everywhere():
    q = DiagonalGaussian(torch.tensor([1.0]), torch.tensor([math.log(4.0)]))
    z = q.sample((200_000,))
    assert z.std().item() == pytest.approx(2.0, rel=0.01)
    assert q.log_prob(torch.tensor([1.0])).item() == pytest.approx(-math.log(2.0 * math.sqrt(2 * math.pi)))


def test_rsample_is_differentiable_and_sample_is_not():
    mean, logvar = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    q = DiagonalGaussian(mean, logvar)
    q.rsample((7,)).sum().backward()
    assert mean.grad.tolist() == [7.0] * 3 and logvar.grad.abs().sum() > 0
    assert not q.sample().requires_grad


def test_a_generator_a_row_ties_noise_to_the_row():
    q = make(4, 3)
    streams = lambda rows: [torch.Generator().manual_seed(row) for row in rows]  # noqa: E731
    together = q.rsample((5,), streams(range(4)))
    assert together.shape == (5, 4, 3)
    for row in range(4):
        alone = DiagonalGaussian(q.mean[row : row + 1], q.logvar[row : row + 1]).rsample((5,), streams([row]))
        assert torch.equal(alone[:, 0], together[:, row])
    with pytest.raises(ValueError, match="one generator a row: got 1 for 4 rows"):
        q.rsample((), streams([0]))


def test_one_generator_makes_a_sample_repeatable():
    q = make(4, 3)
    draws = [q.sample((2,), torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*draws) and not torch.equal(draws[0], q.sample((2,)))


def vmf(kappa, size=6, rows=1):
    loc = torch.nn.functional.normalize(torch.randn(rows, size, dtype=torch.float64), dim=-1)
    return VonMisesFisher(loc, torch.tensor(kappa, dtype=torch.float64))


def test_bessel_functions_of_half_and_whole_orders():
    x = torch.tensor([0.01, 1.0, 13.0, 300.0], dtype=torch.float64)
    torch.testing.assert_close(log_bessel(0, x), torch.special.i0e(x).log() + x)
    torch.testing.assert_close(log_bessel(1, x), torch.special.i1e(x).log() + x)
    log_sinh = x + torch.log1p(-(-2 * x).exp()) - math.log(2)
    torch.testing.assert_close(log_bessel(0.5, x), 0.5 * (2 / (math.pi * x)).log() + log_sinh)


def test_vmf_density_in_three_dimensions_is_the_textbooks():
    q = vmf(5.0, size=3)
    z = HypersphericalUniform(3).sample((10,)).double()
    wanted = math.log(5 / (4 * math.pi * math.sinh(5))) + 5 * (z * q.loc).sum(-1)
    torch.testing.assert_close(q.log_prob(z), wanted)


@pytest.mark.parametrize(("kappa", "size"), [(0.5, 3), (13.0, 6), (13.0, 32), (100.0, 32), (1000.0, 3)])
def test_vmf_samples_have_its_mean_and_its_kl(kappa, size):
    q, p = vmf(kappa, size), HypersphericalUniform(size)
    z = q.sample((40_000,))
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(40_000, 1, dtype=torch.float64))
    torch.testing.assert_close(z.mean(0), q.mean, rtol=0, atol=0.02)
    torch.testing.assert_close(z.var(0), q.variance, rtol=0.05, atol=1e-4)
    ratio = q.log_prob(z) - p.log_prob(z).double()
    error = ratio.std() / 200
    assert (ratio.mean() - kl_divergence(q, p)).abs() < 4 * error + 1e-5
    # E_q[p / q] = 1: the two densities are of the same measure.
    uniform = p.sample((40_000,)).double()
    if kappa < 20:
        assert (q.log_prob(uniform) - p.log_prob(uniform)).exp().mean().item() == pytest.approx(1, abs=0.15)


def test_vmf_noise_is_the_rows_own_and_reaches_the_direction():
    q = vmf(13.0, rows=3)
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)]
    together = q.rsample((2,), generators)
    alone = VonMisesFisher(q.loc[1:2], q.concentration[1:2]).sample((2,), [torch.Generator().manual_seed(6)])
    torch.testing.assert_close(together[:, 1], alone[:, 0])
    loc = q.loc.clone().requires_grad_()
    VonMisesFisher(loc, q.concentration).rsample().square()[:, 0].sum().backward()
    assert loc.grad.abs().sum() > 0


def test_vmf_needs_three_dimensions():
    with pytest.raises(ValueError, match="at least 3 dimensions, got 2"):
        VonMisesFisher(torch.ones(1, 2), torch.tensor(1.0))
