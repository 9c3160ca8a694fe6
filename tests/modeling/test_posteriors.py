"""Families of posteriors: what each promises of its KL, and how it is made."""

import math

import pytest
import torch
from torch.distributions import kl_divergence

from hf_vrae import VRAEForSequenceGeneration
from hf_vrae.modeling.distributions import DiagonalGaussian, kl_per_dimension
from hf_vrae.modeling.posteriors import (
    BatchNormPosterior,
    CommittedRatePosterior,
    ConditionalPrior,
    CorrelatedPrior,
    GaussianPosterior,
    VonMisesFisherPosterior,
    committed_rate_bounds,
)
from tests.models import make_model


def summary(rows=64):
    return torch.randn(rows, 8) * 3 + 1


@pytest.mark.parametrize("batches", [3, 12])
def test_batch_norm_is_torchs_with_a_fixed_scale(batches):
    """Up to ten batches its running statistics are torch's cumulative ones, and then its moving ones."""
    posterior, torchs = BatchNormPosterior(8, 4, gamma=0.6), torch.nn.BatchNorm1d(4, momentum=None)
    torch.nn.init.constant_(torchs.weight, 0.6)
    for i in range(batches):
        torchs.momentum = None if i < 10 else 0.1
        x = summary()
        wanted = torchs((x @ posterior.weight.t())[:, :4])
        torch.testing.assert_close(posterior(x)[0], wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(posterior.running_mean, torchs.running_mean)
    torch.testing.assert_close(posterior.running_var, torchs.running_var)
    posterior.eval(), torchs.eval()
    x = summary(1)
    torch.testing.assert_close(posterior(x)[0], torchs((x @ posterior.weight.t())[:, :4]))
    assert "scale" not in dict(posterior.named_parameters())  # gamma is no weight: nothing trains or decays it


@pytest.mark.parametrize(("gamma", "floor"), [(0.5, 4.0), (0.6, 5.76), (0.7, 7.84)])
def test_batch_norm_keeps_the_mean_kl_above_its_floor(gamma, floor):
    """Zhu et al. 2020, eq. 7, with 32 dimensions and no shift; with unit variances the floor is met exactly."""
    posterior = BatchNormPosterior(8, 32, gamma)
    with torch.no_grad():
        posterior.weight[32:].zero_()  # log-variances 0
    mean, logvar = posterior(summary(256))
    q = posterior.distribution(mean, logvar)
    p = posterior.distribution(torch.zeros(32), torch.zeros(32))
    assert kl_divergence(q, p).mean().item() == pytest.approx(floor, rel=1e-3)


def test_the_floor_holds_from_the_first_step_of_the_recipes():
    """Weights of U(-0.01, 0.01) make means with a variance of 1e-8, far below torch's eps."""
    posterior = BatchNormPosterior(256, 32, gamma=0.6)
    torch.nn.init.uniform_(posterior.weight, -0.01, 0.01)
    mean, logvar = posterior(torch.randn(64, 256) * 1e-3 + 5)
    q = posterior.distribution(mean, logvar)
    kl = kl_divergence(q, posterior.distribution(torch.zeros(32), torch.zeros(32))).mean().item()
    assert kl > 5.7
    posterior.eval()  # and in evaluation: the running variance does not begin at 1
    mean, logvar = posterior(torch.randn(64, 256) * 1e-3 + 5)
    q = posterior.distribution(mean, logvar)
    assert kl_divergence(q, posterior.distribution(torch.zeros(32), torch.zeros(32))).mean().item() > 5
    assert posterior.bfloat16()(torch.randn(2, 256).bfloat16())[0].isfinite().all()


def test_learnt_scales_share_out_gamma():
    posterior = BatchNormPosterior(8, 4, 0.6, learn_scale=True)
    with torch.no_grad():
        posterior.scale.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    spread = posterior(summary(512))[0].std(0, unbiased=False)
    assert spread.square().mean().sqrt().item() == pytest.approx(0.6, rel=1e-3)
    torch.testing.assert_close(spread / spread[0], posterior.scale.detach(), rtol=1e-3, atol=0)


def test_a_batch_of_one_is_normalised_by_the_running_statistics():
    posterior = BatchNormPosterior(8, 4, 0.6)
    posterior(summary())
    x = summary(1)
    alone = posterior(x)[0]
    torch.testing.assert_close(alone, posterior.eval()(x)[0])


@pytest.mark.parametrize(("rate", "low", "high"), [(0.15, 0.411, 1.986), (0.10, 0.493, 1.772)])
def test_committed_rate_bounds(rate, low, high):
    assert committed_rate_bounds(rate) == pytest.approx((low, high), abs=1e-3)
    for s in committed_rate_bounds(rate):
        assert 0.5 * (s - 1 - math.log(s)) == pytest.approx(rate)  # KL of N(0, s) to N(0, 1)


def test_no_posterior_of_a_delta_vae_is_nearer_than_its_rate():
    posterior = CommittedRatePosterior(8, 4, 0.15)
    x = summary(2000) * 5
    mean, logvar = posterior(x)
    q = posterior.distribution(mean, logvar)
    kl = kl_per_dimension(q, posterior.distribution(torch.zeros(4), torch.zeros(4)))
    a = (x @ posterior.weight.t())[:, :4]
    torch.testing.assert_close(kl, 0.15 + a.clamp(min=0) / 2, rtol=1e-3, atol=1e-4)
    mean.sum().backward()
    assert posterior.weight.grad.isfinite().all()


def test_a_vmf_posterior_has_one_kl_for_all():
    posterior = VonMisesFisherPosterior(8, 6, 13.0)
    q = posterior.distribution(*posterior(summary(5)))
    torch.testing.assert_close(q.loc.norm(dim=-1), torch.ones(5))
    model = make_model(posterior="vmf", latent_size=6)
    kl = kl_divergence(q, model.prior())
    torch.testing.assert_close(kl, kl[:1].expand(5))
    assert kl[0] > 1


@pytest.mark.parametrize("posterior", ["batch_norm", "delta", "vmf"])
def test_every_family_trains(posterior, batch):
    model = make_model(posterior=posterior, latent_conditioning=["initial_state", "input"]).train()
    model(**batch, labels=model.labels_from_input_ids(**batch)).loss.backward()
    gradient = model.model.encoder.posterior.weight.grad
    assert gradient.isfinite().all() and gradient.abs().max() > 0


def test_a_correlated_prior_begins_at_the_standard_one():
    model = make_model(correlated_prior=True)
    p, z = model.prior(), torch.randn(3, 6)
    torch.testing.assert_close(p.log_prob(z), make_model().prior().log_prob(z))
    torch.nn.init.normal_(model.model.correlated_prior.weight, std=5.0)
    p = model.prior()
    torch.testing.assert_close((p.factor @ p.factor.T).diagonal(), torch.ones(6))  # whatever it learns
    assert (p.log_prob(z) - make_model().prior().log_prob(z)).abs().min() > 0.01


def test_a_correlated_prior_learns_what_is_said_twice():
    said = torch.randn(5_000, 1)
    q = DiagonalGaussian(0.6 * said.expand(-1, 3), torch.full((5_000, 3), math.log(0.64)))  # 0.36 + 0.64: variance 1
    prior = CorrelatedPrior(3)
    optimizer = torch.optim.Adam(prior.parameters(), 0.02)
    first = kl_divergence(q, prior()).mean().item()
    for _ in range(300):
        optimizer.zero_grad()
        kl_divergence(q, prior()).mean().backward()
        optimizer.step()
    p = prior()
    torch.testing.assert_close((p.factor @ p.factor.T)[0, 1].item(), 0.36, atol=0.03, rtol=0)
    # The mutual information of a Gaussian said in Gaussian noise: nothing of the KL is wasted any more.
    assert kl_divergence(q, p).mean().item() == pytest.approx(0.5 * math.log(1 + 3 * 0.36 / 0.64), abs=0.02)
    assert first > 1.1 * kl_divergence(q, p).mean().item()


def test_a_correlated_prior_is_trained_saved_and_measured(batch, tmp_path):
    model = make_model(correlated_prior=True, posterior="batch_norm", free_bits=0.1).train()
    with torch.autocast("cpu", torch.bfloat16):
        model(**batch, labels=model.labels_from_input_ids(**batch)).loss.backward()
    gradient = model.model.correlated_prior.weight.grad
    assert gradient.tril(-1).ne(0).sum() == 15 and gradient.triu().eq(0).all()
    torch.nn.init.normal_(model.model.correlated_prior.weight)
    model.eval().save_pretrained(tmp_path)
    again = VRAEForSequenceGeneration.from_pretrained(tmp_path)
    assert torch.equal(again.prior().factor, model.prior().factor)
    terms = again.evaluation_terms(8, **batch, labels=model.labels_from_input_ids(**batch))
    q, z = terms["posterior"], again.prior().sample((4,))
    torch.testing.assert_close(terms["kl"], kl_divergence(q, model.prior()).double(), rtol=1e-4, atol=1e-4)
    assert again.generate(latents=z, max_new_tokens=5).shape[0] == 4


def test_autocast_leaves_moments_in_float32():
    """A log-variance rounded to 8 bits would spoil the KL."""
    posterior, x = GaussianPosterior(8, 4), summary()
    for read in (x, x.bfloat16()):  # as a recurrent layer under autocast may give it
        wanted = posterior(read.float())
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(posterior(read), wanted, rtol=0, atol=0)


def test_a_conditional_prior_has_a_hidden_layer():
    prior, c = ConditionalPrior(3, 5, 2), torch.randn(4, 3)
    mean, logvar = ((c @ prior.hidden.weight.T + prior.hidden.bias).tanh() @ prior.moments.weight.T).chunk(2, dim=-1)
    p = prior(c)
    torch.testing.assert_close([p.mean, p.logvar], [mean, logvar])
