import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from hf_vrae.modeling.distributions import DiagonalGaussian, kl_per_dimension


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
