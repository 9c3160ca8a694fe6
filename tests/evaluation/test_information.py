import math

import pytest
import torch

from hf_vrae.evaluation.information import active_units, mutual_information
from hf_vrae.modeling.distributions import DiagonalGaussian


def test_active_units_counts_dimensions_whose_mean_moves():
    means = torch.zeros(1000, 4)
    means[:, 0] = torch.randn(1000)
    means[:, 1] = 0.15 * torch.randn(1000)  # variance 0.0225
    means[:, 2] = 0.05 * torch.randn(1000)  # variance 0.0025
    means[:, 3] = 5.0
    assert active_units(means) == 2 and active_units(means, threshold=0.001) == 3
    assert active_units(means[:1]) == 0


def test_mutual_information_of_well_separated_posteriors_is_log_n():
    """Each of N inputs is told by its latent: I = log N, the cap of the estimate."""
    means = 100.0 * torch.eye(50)
    q = DiagonalGaussian(means, torch.zeros(50, 50))
    assert mutual_information(q, q.sample()) == pytest.approx(math.log(50), abs=1e-4)


def test_mutual_information_of_a_collapsed_posterior_is_zero():
    q = DiagonalGaussian(torch.zeros(200, 8), torch.zeros(200, 8))
    assert mutual_information(q, q.sample()) == pytest.approx(0, abs=1e-6)


def test_mutual_information_of_two_groups_is_log_two():
    means = torch.cat([torch.full((300, 1), -50.0), torch.full((300, 1), 50.0)])
    q = DiagonalGaussian(means, torch.zeros(600, 1))
    assert mutual_information(q, q.sample()) == pytest.approx(math.log(2), abs=1e-4)


def test_mutual_information_against_the_gaussian_formula():
    """x ~ N(0, s^2), z|x ~ N(x, 1): I = 0.5 log(1 + s^2)."""
    q = DiagonalGaussian(2.0 * torch.randn(4000, 1), torch.zeros(4000, 1))
    assert mutual_information(q, q.sample()) == pytest.approx(0.5 * math.log(5), abs=0.05)


def test_rows_at_once_changes_nothing():
    q = DiagonalGaussian(torch.randn(101, 3), torch.randn(101, 3))
    z = q.sample()
    assert mutual_information(q, z, rows_at_once=7) == pytest.approx(mutual_information(q, z, rows_at_once=1000))
