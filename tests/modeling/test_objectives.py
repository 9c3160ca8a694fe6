import math

import pytest
import torch

from hf_vrae.modeling.distributions import DiagonalGaussian
from hf_vrae.modeling.objectives import (
    capacity_gap,
    doubly_reparameterised_weights,
    free_bits,
    importance_weighted_bound,
    maximum_mean_discrepancy,
    negative_elbo,
)


def test_negative_elbo_is_a_mean_over_examples_of_sums():
    reconstruction, kl = torch.tensor([10.0, 20.0]), torch.tensor([1.0, 3.0])
    assert negative_elbo(reconstruction, kl).item() == 17.0
    assert negative_elbo(reconstruction, kl, kl_weight=0.5).item() == 16.0


def test_importance_weighted_bound_by_hand():
    weights = torch.tensor([[0.1, 0.2], [0.3, 0.2]])
    torch.testing.assert_close(importance_weighted_bound(weights.log()).exp(), torch.tensor([0.2, 0.2]))


def test_importance_weighted_bound_is_tighter_than_the_elbo():
    log_weights = torch.randn(50, 20)
    assert (importance_weighted_bound(log_weights) >= log_weights.mean(0)).all()
    torch.testing.assert_close(importance_weighted_bound(log_weights[:1]), log_weights[0])


# Two examples of two dimensions; dimensions' means 2 and 0.5, examples' sums 1.5 and 3.5.
KL = torch.tensor([[1.0, 0.5], [3.0, 0.5]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("form", "amount", "wanted", "gradient"),
    [
        ("dimension_mean", 1.0, 3.0, [[0.5, 0], [0.5, 0]]),
        ("dimension", 2.0, (4 + 5) / 2, [[0, 0], [0.5, 0]]),
        ("example", 2.0, (2 + 3.5) / 2, [[0, 0], [0.5, 0.5]]),
        ("mean", 2.0, 2.5, [[0.5, 0.5], [0.5, 0.5]]),
        ("mean", 3.0, 3.0, [[0, 0], [0, 0]]),
        ("hinge", 2 / math.log(2), 1.5 / 2, [[0, 0], [0.5, 0.5]]),
    ],
)
def test_free_bits_by_hand(form, amount, wanted, gradient):
    """What is charged, and that what is free has no gradient."""
    kl = KL.clone().requires_grad_()
    charged = free_bits(kl, amount, form)
    assert charged.item() == pytest.approx(wanted)
    charged.backward()
    torch.testing.assert_close(kl.grad, torch.tensor(gradient, dtype=torch.float64))


@pytest.mark.parametrize("form", ["dimension_mean", "dimension", "example", "mean", "hinge"])
def test_no_free_bits_is_the_mean_kl(form):
    torch.testing.assert_close(free_bits(KL, 0.0, form), KL.sum(1).mean())


def test_free_bits_of_an_unknown_form():
    with pytest.raises(ValueError, match="must be dimension_mean, .* got 'dim'"):
        free_bits(KL, 1.0, "dim")


def test_capacity_draws_the_kl_from_both_sides():
    kl = torch.tensor([1.0, 5.0], requires_grad=True)
    for capacity, gap, slope in ((2.0, 1.0, 0.5), (4.5, 1.5, -0.5)):
        value = capacity_gap(kl, capacity)
        assert value.item() == gap
        assert torch.autograd.grad(value, kl)[0].tolist() == [slope, slope]


def test_mmd_by_hand():
    z, prior = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 0.0], [2.0, 0.0]])  # C = 4
    within = 4 / 5 + 4 / 8
    across = (1 + 4 / 8 + 4 / 5 + 4 / 5) / 4
    assert maximum_mean_discrepancy(z, prior).item() == pytest.approx(within - 2 * across)


def test_mmd_is_unbiased_and_tells_distributions_apart():
    same = [maximum_mean_discrepancy(torch.randn(32, 4), torch.randn(32, 4)).item() for _ in range(400)]
    mean = sum(same) / len(same)
    assert abs(mean) < 4 * torch.tensor(same).std().item() / 20
    assert maximum_mean_discrepancy(torch.randn(200, 4) * 0.3, torch.randn(200, 4)).item() > 0.1
    z = torch.randn(8, 4, requires_grad=True)
    maximum_mean_discrepancy(z, torch.randn(8, 4)).backward()
    assert z.grad.isfinite().all()
    with pytest.raises(ValueError, match="at least 2 samples"):
        maximum_mean_discrepancy(torch.randn(1, 4), torch.randn(1, 4))


@pytest.mark.parametrize("beta", [1.0, 0.4, 0.0])
def test_the_doubly_reparameterised_gradient_is_that_of_the_bound_and_quieter(beta):
    """p(x, z) = N(z; 0, 1) N(x; z, 1) at x = 1, q = N(0.4, 1): the gradient in q's mean, over many draws."""
    parameters = torch.full((40_000, 1), 0.4, dtype=torch.float64, requires_grad=True)
    prior = DiagonalGaussian(torch.zeros(1).double(), torch.zeros(1).double())

    def gradient(doubly):
        q = DiagonalGaussian(parameters, torch.zeros_like(parameters))
        z = q.rsample((8,))
        log_ratio = prior.log_prob(z) - (q.detach() if doubly else q).log_prob(z)
        log_weights = -0.5 * (1 - z).square().sum(-1) + beta * log_ratio
        if doubly:
            bound = (doubly_reparameterised_weights(log_weights, z, beta) * log_weights).sum(0)
        else:
            bound = importance_weighted_bound(log_weights)
        return torch.autograd.grad(bound.sum(), parameters)[0]

    plain, doubly = gradient(False), gradient(True)
    error = (plain.var() + doubly.var()).sqrt() / 40_000**0.5
    assert (plain.mean() - doubly.mean()).abs() < 4 * error
    if beta == 1:
        assert doubly.std() < 0.7 * plain.std()
