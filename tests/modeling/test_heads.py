import itertools
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import gradcheck
from torch.distributions import (
    Bernoulli,
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
)

from hf_vrae.modeling import heads
from hf_vrae.modeling.heads import FrameEmbedding, NADEFrames, make_head, raw_log_prob_offset, standardise, to_raw
from hf_vrae.modeling.kernels import nade_logits

KINDS = ["bernoulli", "nade", "gaussian", "full_gaussian", "gaussian_mixture", "logistic_mixture", "categorical"]
EXACT = [kind for kind in KINDS if kind != "nade"]  # those whose marginals are
NAN = float("nan")
every_kind = pytest.mark.parametrize("kind", KINDS)


def make_config(kind="gaussian", size=3, **fields):
    defaults = dict(
        head=kind,
        input_size=size,
        num_mixtures=2,
        num_levels=5,
        min_scale=1e-3,
        nade_hidden_size=4,
        input_mean=None,
        kernels="auto",
    )
    return SimpleNamespace(**defaults | fields)


def make(kind, *batch, size=3, dtype=torch.float64, **fields):
    """A distribution with random parameters."""
    head = make_head(make_config(kind, size, **fields), 8).to(dtype)
    return head(3 * torch.randn(*batch, 8, dtype=dtype))


def as_torch(p, keep):
    """The same distribution over the features `keep` alone, by torch."""
    if isinstance(p, heads.BernoulliFrames):
        return Independent(Bernoulli(logits=p.logits[..., keep]), 1)
    if isinstance(p, heads.GaussianFrames):
        return Independent(Normal(p.loc[..., keep], p.scale[..., keep]), 1)
    if isinstance(p, heads.FullGaussianFrames):
        covariance = (p.scale_tril @ p.scale_tril.mT)[..., keep, :][..., keep]
        return MultivariateNormal(p.loc[..., keep], covariance)
    if isinstance(p, heads.GaussianMixtureFrames):
        parts = Independent(Normal(p.loc[..., keep, :].mT, p.scale[..., keep, :].mT), 1)
        return MixtureSameFamily(Categorical(logits=p.log_weights.squeeze(-2)), parts)
    if isinstance(p, heads.CategoricalFrames):
        return Independent(Categorical(logits=p.logits[..., keep, :]), 1)
    return Independent(DiscretisedLogistics(p, keep), 1)


class DiscretisedLogistics(torch.distributions.Distribution):
    """The mass of every level as the plain difference of distribution functions."""

    def __init__(self, p, keep):
        self.weights, self.loc, self.scale = (
            p.log_weights.exp()[..., keep, :],
            p.loc[..., keep, :],
            p.scale[..., keep, :],
        )
        self.half = 1 / (p.num_levels - 1)
        super().__init__(self.loc.shape[:-1], validate_args=False)

    def log_prob(self, value):
        x = value.unsqueeze(-1)
        above = torch.where(x > 1 - self.half, 1, ((x + self.half - self.loc) / self.scale).sigmoid())
        below = torch.where(x < self.half - 1, 0, ((x - self.half - self.loc) / self.scale).sigmoid())
        return ((above - below) * self.weights).sum(-1).log()


@pytest.mark.parametrize("missing", [[], [1], [0, 3], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("kind", EXACT)
def test_log_prob_is_torchs_and_a_missing_feature_is_marginalised(kind, missing):
    p = make(kind, 2, 5, size=4)
    x = p.sample((6,))
    keep = [i for i in range(4) if i not in missing]
    expected = as_torch(p, keep).log_prob(x[..., keep])
    x[..., missing] = NAN
    torch.testing.assert_close(p.log_prob(x), expected)
    assert (p.batch_shape, p.event_shape, x.shape) == ((2, 5), (4,), (6, 2, 5, 4))


@every_kind
def test_frames_of_one_batch_may_miss_different_features(kind):
    head, hidden = make_head(make_config(kind), 8).double(), torch.randn(8, 8).double()
    x = head(hidden).sample()
    for row, missing in enumerate(itertools.product([False, True], repeat=3)):
        x[row, list(missing)] = NAN
    alone = [head(h).log_prob(value) for h, value in zip(hidden, x, strict=True)]
    torch.testing.assert_close(head(hidden).log_prob(x), torch.stack(alone))


@pytest.mark.parametrize("num_levels", [2, 5, 256])
def test_logistic_mixture_sums_to_one(num_levels):
    p = make("logistic_mixture", 20, size=1, num_levels=num_levels)
    levels = torch.linspace(-1, 1, num_levels).double()
    torch.testing.assert_close(p.log_prob(levels.view(-1, 1, 1)).exp().sum(0), torch.ones(20).double())


def test_logistic_mixture_in_float32_far_from_its_components():
    """Where the difference of sigmoids is 0 / 0 even in float64, its logarithm is linear in the distance."""
    loc, scale = torch.tensor([[-0.9]]), torch.tensor([[1e-3]])
    p = heads.LogisticMixtureFrames(torch.zeros(1, 1), loc, scale, 256)
    x = torch.tensor([203 / 255 * 2 - 1])
    expected = -(x - 1 / 255 - loc.squeeze(-1)) / 1e-3  # the bin's near edge; its width adds exp(-7.8) to the mass
    torch.testing.assert_close(p.log_prob(x), expected.squeeze(-1), rtol=1e-4, atol=1e-2)
    wide = heads.LogisticMixtureFrames(torch.zeros(1, 1), loc, torch.tensor([[1e5]]), 256)
    torch.testing.assert_close(wide.log_prob(x).exp(), torch.tensor(2 / 255 / 4e5), rtol=1e-4, atol=0)


@pytest.mark.parametrize("shape", [(), (2, 3)], ids=str)
def test_nade_sums_to_one(shape):
    p = make("nade", *shape, size=6)
    x = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6))).double()
    total = p.log_prob(x.view(64, *[1] * len(shape), 6)).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(shape).double())


def test_nade_is_its_equations():
    p, x = make("nade", size=4), torch.tensor([1.0, 0.0, NAN, 1.0]).double()
    expected = 0
    for i in (0, 1, 3):
        before = sum((x[j] * p.W[j] for j in range(i) if j != 2), start=p.c)
        expected = expected + Bernoulli(logits=p.b[i] + p.V[i] @ before.sigmoid()).log_prob(x[i])
    torch.testing.assert_close(p.log_prob(x), expected)


def test_the_mean_of_nade_goes_on_from_means():
    p, means = make("nade", size=4), []
    before = p.c
    for b, W, V in zip(p.b, p.W, p.V, strict=True):
        means.append((b + V @ before.sigmoid()).sigmoid())
        before = before + means[-1] * W
    torch.testing.assert_close(p.mean, torch.stack(means))


@pytest.mark.parametrize("rows", [5, 1])
def test_nade_kernel_is_its_plain_form(rows):
    x = (torch.rand(rows, 7) > 0.5).double()
    inputs = [
        torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        for shape in ((rows, 7), (rows, 4), (7, 4), (7, 4))
    ]
    (b, c, W, V), given = inputs, inputs[0].detach().clone()
    before = torch.cat([c.unsqueeze(1), x[:, :-1].unsqueeze(-1) * W[:-1]], 1).cumsum(1)  # [N, F, Hn]
    plain = b + torch.einsum("nfh,fh->nf", before.sigmoid(), V)
    torch.testing.assert_close(nade_logits(x, *inputs), plain)
    weights = torch.randn(rows, 7, dtype=torch.float64)
    expected = torch.autograd.grad((plain * weights).sum(), inputs)
    torch.testing.assert_close(torch.autograd.grad((nade_logits(x, *inputs) * weights).sum(), inputs), expected)
    log_p, again = (NADEFrames(b, c, W, V, plain).log_prob(x) for plain in (True, False))
    torch.testing.assert_close(log_p, again)
    assert torch.equal(b, given)


@pytest.mark.parametrize("kind", ["bernoulli", "nade", "logistic_mixture", "categorical"])
def test_samples_of_discrete_kinds_come_as_often_as_they_are_probable(kind):
    p = make(kind, num_levels=3)
    values = {"logistic_mixture": [-1.0, 0.0, 1.0], "categorical": [0.0, 1.0, 2.0]}.get(kind, [0.0, 1.0])
    x = p.sample((40_000,))
    vectors = torch.tensor(list(itertools.product(values, repeat=3))).double()
    often = (x.unsqueeze(1) == vectors).all(-1).double().mean(0)
    torch.testing.assert_close(often, p.log_prob(vectors).exp(), atol=0.01, rtol=0)
    assert often.sum() == pytest.approx(1)


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian", "full_gaussian", "gaussian_mixture", "categorical"])
def test_moments_of_samples(kind):
    p = make(kind, 2)
    x = p.sample((100_000,))
    torch.testing.assert_close(x.mean(0), p.mean, atol=0.03, rtol=0.01)
    if kind in ("gaussian", "full_gaussian"):
        factor = p.scale_tril if kind == "full_gaussian" else torch.diag_embed(p.scale)
        covariance = torch.stack([x[:, row].T.cov() for row in range(2)])
        torch.testing.assert_close(covariance, factor @ factor.mT, atol=0.1, rtol=0.03)


def test_a_component_is_drawn_for_the_whole_frame():
    loc = torch.tensor([-5.0, 5.0]).expand(3, 2)
    p = heads.GaussianMixtureFrames(torch.zeros(1, 2), loc, torch.full((3, 2), 0.1))
    x = p.sample((1000,))
    assert (x.sign() == x.sign()[:, :1]).all() and 400 < (x[:, 0] > 0).sum() < 600


def test_the_mode_of_a_mixture_is_the_place_of_its_likeliest_component():
    loc, scale, weights = torch.tensor([[-1.0, 1.0]] * 3), torch.ones(3, 2), torch.tensor([[0.0, 3.0]])
    assert heads.GaussianMixtureFrames(weights, loc, scale).mode.tolist() == [1.0] * 3
    weights = torch.tensor([[0.0, 3.0], [3.0, 0.0], [0.0, 3.0]])
    assert heads.LogisticMixtureFrames(weights, loc, scale, 5).mode.tolist() == [1.0, -1.0, 1.0]


@every_kind
def test_mode(kind):
    p = make(kind, 50)
    mode, others = p.mode, p.sample((50,))
    assert mode.shape == (50, 3) and p.mean.shape == (50, 3)
    if kind in ("bernoulli", "gaussian", "full_gaussian", "categorical"):
        assert (p.log_prob(mode) >= p.log_prob(others)).all()
    if kind == "nade":  # greedy: no feature is likelier the other way, given those before it
        for i in range(3):
            prefix, flipped = mode.clone(), mode.clone()
            flipped[:, i] = 1 - mode[:, i]
            prefix[:, i + 1 :] = flipped[:, i + 1 :] = NAN
            assert (p.log_prob(prefix) >= p.log_prob(flipped)).all()
    if kind == "logistic_mixture":
        torch.testing.assert_close((mode + 1) * 2, ((mode + 1) * 2).round())


@every_kind
def test_gradients(kind):
    head = make_head(make_config(kind, num_levels=3, min_scale=0.1), 4).double()
    hidden = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    x = head(hidden).sample()
    x[0, 1], x[1, :2] = NAN, NAN
    assert gradcheck(lambda h, *_: head(h).log_prob(x), (hidden, *head.parameters()))


@every_kind
def test_a_frame_with_nothing_observed_counts_for_nothing(kind):
    head = make_head(make_config(kind), 8)
    hidden = (torch.linspace(0, 100, 50).unsqueeze(1) * torch.randn(50, 8)).requires_grad_()
    value = head(hidden).log_prob(torch.full((50, 3), NAN))
    assert (value == 0).all()
    for gradient in torch.autograd.grad(value.sum(), [hidden, *head.parameters()]):
        assert (gradient == 0).all()


@every_kind
@pytest.mark.parametrize("scale", [1, 1e4])
@pytest.mark.parametrize("precision", ["float32", "autocast", "bfloat16"])
def test_finite_in_low_precision_and_far_out(kind, precision, scale):
    head = make_head(make_config(kind), 8)
    hidden = scale * torch.randn(20, 8)
    if precision == "bfloat16":
        head, hidden = head.bfloat16(), hidden.bfloat16()
    hidden.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "autocast"):
        p = head(hidden)
        x = p.sample()
        x[3:6, 1], x[:, 2] = NAN, 1.0
        value = p.log_prob(x)
    assert value.dtype == x.dtype == p.mode.dtype == torch.float32
    assert value.isfinite().all() and x.isfinite().logical_or(x.isnan()).all()
    for gradient in torch.autograd.grad(value.sum(), [hidden, *head.parameters()]):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", ["nade", "full_gaussian"])  # those with products of matrices
def test_autocast_leaves_the_likelihood_in_float32(kind):
    p = make(kind, 10, dtype=torch.float32)
    x = p.sample()
    x[:5, 0] = NAN
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = p.log_prob(x)
    torch.testing.assert_close(value, p.log_prob(x), rtol=0, atol=0)


@every_kind
def test_autocast_leaves_the_parameters_in_float32(kind):
    head, hidden = make_head(make_config(kind), 8), torch.randn(20, 8)
    x = head(hidden).sample()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = head(hidden).log_prob(x)
    torch.testing.assert_close(value, head(hidden).log_prob(x), rtol=0, atol=0)


@every_kind
def test_weights_of_16_bits_leave_the_parameters_in_float32(kind):
    head, hidden = make_head(make_config(kind), 8).bfloat16(), torch.randn(20, 8).bfloat16()
    x, found = head(hidden).sample(), head(hidden)
    torch.testing.assert_close(found.log_prob(x), head.float()(hidden.float()).log_prob(x), rtol=1e-5, atol=1e-5)


def test_missing_features_of_an_ill_conditioned_covariance():
    """Condition number 1e4 of the factor, 1e8 of the covariance: more than float32 could take the product of."""
    factor = torch.tensor([[1.0, 0, 0], [1, 1e-4, 0], [1, 1, 1e-4]])
    p = heads.FullGaussianFrames(torch.zeros(3), factor)
    x = torch.tensor([0.3, 0.3001, NAN])
    expected = MultivariateNormal(torch.zeros(2).double(), scale_tril=factor[:2, :2].double()).log_prob(x[:2].double())
    torch.testing.assert_close(p.log_prob(x).double(), expected, rtol=1e-2, atol=0)


def test_the_scale_has_its_floor():
    head = make_head(make_config("gaussian", min_scale=0.25), 8)
    head.projection.bias.data.fill_(-100)
    torch.testing.assert_close(head(torch.zeros(8)).scale, torch.full((3,), 0.25))


def test_units():
    config = make_config(input_mean=[1.0, -2.0, 3.0], input_scale=[0.5, 2.0, 10.0])
    raw = 5 * torch.randn(7, 3)
    scaled = standardise(raw, config)
    torch.testing.assert_close(to_raw(scaled, config), raw)
    loc, scale = torch.randn(3), torch.rand(3) + 0.5
    in_raw = Normal(to_raw(loc, config), scale * torch.tensor(config.input_scale)).log_prob(raw)
    raw[0, 1], raw[1] = NAN, NAN
    value = heads.GaussianFrames(loc, scale).log_prob(standardise(raw, config)) + raw_log_prob_offset(raw, config)
    torch.testing.assert_close(value, torch.where(raw.isnan(), 0, in_raw).sum(-1))


def test_probabilities_know_no_units():
    labels = torch.randn(4, 3)
    scaled = make_config("logistic_mixture", input_mean=[0.0] * 3, input_scale=[2.0] * 3)
    for config in (make_config("bernoulli"), scaled):
        assert (raw_log_prob_offset(labels, config) == torch.zeros(4)).all()
    assert standardise(labels, make_config()) is to_raw(labels, make_config()) is labels


@pytest.mark.parametrize("num_levels", [None, 5])
def test_embedding(num_levels):
    embed = FrameEmbedding(3, 6, num_levels)
    x = torch.tensor([[1.0, 0.0, 2.0], [1.0, NAN, 2.0], [1.0, 2.0, 0.0], [NAN, 1.0, 2.0], [NAN, NAN, 2.0]])
    y = embed(x.expand(2, 5, 3))
    assert y.shape == (2, 5, 6) and y.isfinite().all()
    for one, other in itertools.combinations(y[0], 2):  # zero is not missing, nor one feature another
        assert not torch.allclose(one, other)
    # What a missing feature adds does not depend on the others.
    learnt = embed(torch.tensor([[NAN, 1.0, 4.0], [NAN, NAN, 4.0], [0.0, 1.0, 0.0], [0.0, NAN, 0.0]]))
    torch.testing.assert_close(learnt[1] - learnt[0], learnt[3] - learnt[2])
    assert embed.bfloat16()(x).dtype == torch.bfloat16


def test_no_such_head():
    with pytest.raises(ValueError, match="`head` must be .* got 'poisson'"):
        make_head(make_config("poisson"), 8)
