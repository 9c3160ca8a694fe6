import math

import pytest
import torch

from hf_vrae.modeling.objectives import free_bits, importance_weighted_bound, negative_elbo


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
