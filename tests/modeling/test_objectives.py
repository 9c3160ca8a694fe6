import torch

from hf_vrae.modeling.objectives import importance_weighted_bound, negative_elbo


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
