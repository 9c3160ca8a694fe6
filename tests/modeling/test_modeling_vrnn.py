"""The VRNN: its distributions, its bounds, and generation with a latent per step."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

from hf_vrae import VRNNConfig, VRNNForFrameGeneration, VRNNForSequenceGeneration
from hf_vrae.latent import sample_frames
from hf_vrae.modeling.cache_name import CACHE
from hf_vrae.modeling.generation_vrnn import logger
from hf_vrae.modeling.vrnn import VRNNStep, over_samples
from tests.models import HEADS, SIZES_OF_HEADS

VARIANTS = {
    "lstm": {},
    "deep gru": {"rnn_type": "gru", "feature_layers": 2},
    "layer-norm lstm": {"layer_norm": True},
    "smoothing": {"smoothing_posterior": True, "rnn_type": "gru", "layer_norm": True},
    "residual": {"residual_posterior": True, "smoothing_posterior": True},
    "without latent": {"latent_size": 0},
}
KINDS = ["tokens", "frames"]


def make_model(kind="tokens", **options):
    """A small model in evaluation mode with weights large enough for everything to matter."""
    sizes = {"embedding_size": 10, "latent_size": 3, "hidden_size": 12, "feature_size": 10, "initializer_range": 0.5}
    classes = {"tokens": VRNNForSequenceGeneration, "frames": VRNNForFrameGeneration}
    own = {"tokens": {"vocab_size": 40}, "frames": {"input_size": 4, "head": "gaussian"}}
    config = VRNNConfig(**(sizes | {"dropout": 0.0, "embedding_initializer_range": 1.0} | own[kind] | options))
    return classes[kind](config).eval()


def make_batch(kind="tokens", dtype=torch.float32):
    lengths = torch.tensor([6, 4, 1])
    mask = (torch.arange(6) < lengths.unsqueeze(1)).long()
    if kind == "frames":
        features = torch.randn(3, 6, 4, dtype=dtype) * mask.unsqueeze(-1)
        return {
            "input_features": features,
            "attention_mask": mask,
            "labels": features.masked_fill(mask[..., None] == 0, math.nan),
        }
    ids = torch.randint(4, 40, (3, 7)) * nn.functional.pad(mask, (1, 0), value=1)
    ids[:, 0] = 2
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": ids.masked_fill(ids == 0, -100)}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def variant(request):
    return request.param


def step_by_step(layer, observed, noise, read=None):
    """The paper's equations, one step after the other; `read` is what the recurrence reads in place of x."""
    samples, rows = len(noise), len(noise) * noise.shape[1]
    seen = layer.what_the_posterior_sees(observed.phi_x, observed.lengths)
    state, path = layer.first_state(rows, observed.phi_x), []
    for t in range(noise.shape[2]):
        h = state[0]
        p = layer.prior(h)
        q = layer.posterior(over_samples(seen[:, t], samples), h, p)
        z = q.mean + q.stddev * noise[:, :, t].flatten(0, 1)
        features = layer.emission(z, h)
        x = observed.phi_x if read is None else read
        state = layer.advance(over_samples(x[:, t], samples), z, state)
        path.append((z, q.mean, q.logvar, p.mean, p.logvar, features, state[0]))
    return [torch.stack(part, 1) for part in zip(*path, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernels", ["auto", "plain"])
@pytest.mark.parametrize("own", [False, True], ids=["true steps", "own steps"])
def test_a_path_is_what_the_equations_say(kind, kernels, own, variant):
    model = make_model(kind, kernels=kernels, **variant).double()
    observed = model._observe(**make_batch(kind, torch.float64))
    noise = torch.randn(2, 3, 6, model.config.latent_size, dtype=torch.float64)
    read = torch.rand_like(observed.phi_x) if own else None
    expected = step_by_step(model.model.layer, observed, noise, read)
    sampled = model.model.layer.unroll(observed.phi_x, observed.lengths, noise, read)
    followed = model.model.layer.follow(observed.phi_x, observed.lengths, sampled.z.view_as(noise), read)
    real = observed.real.repeat(2, 1).unsqueeze(-1)
    for path in (sampled, followed):
        q, p = path.posterior, path.prior
        parts = (path.z, q.mean, q.logvar, p.mean, p.logvar, path.features, path.hidden)
        for part, equation in zip(parts, expected, strict=True):
            torch.testing.assert_close(part * real, equation * real)
    weights = list(model.model.layer.parameters())
    loss = lambda parts: sum((part * real).square().sum() for part in parts)  # noqa: E731
    p, q = sampled.prior, sampled.posterior
    got = (sampled.z, q.mean, q.logvar, p.mean, p.logvar, sampled.features, sampled.hidden)
    options = {"retain_graph": True, "allow_unused": True}
    for a, b in zip(
        torch.autograd.grad(loss(got), weights, **options),
        torch.autograd.grad(loss(expected), weights, **options),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_the_prior_never_sees_its_step_and_the_filtering_posterior_no_later_one():
    for smoothing in (False, True):
        model = make_model("frames", smoothing_posterior=smoothing)
        batch = make_batch("frames")
        other = {**batch, "input_features": batch["input_features"].clone()}
        other["input_features"][0, 3] += 1.0
        noise = torch.zeros(1, 3, 6, 3)
        paths = []
        for inputs in (batch, other):
            observed = model._observe(**inputs)
            paths.append(model.model.layer.unroll(observed.phi_x, observed.lengths, noise))
        moved = [[(getattr(a, d).mean[0] != getattr(b, d).mean[0]).any(-1).tolist() for d in ("prior", "posterior")]
                 for a, b in [paths]][0]  # fmt: skip
        if not smoothing:  # else the path itself changes from the first step on
            assert moved[0] == [False] * 4 + [True] * 2
            assert moved[1] == [False] * 3 + [True] * 3
        else:
            assert moved[1] == [True] * 6 and not moved[0][0]


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind, variant):
    model, batch = make_model(kind, **variant), make_batch(kind)
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    terms = model.evaluation_terms(4, generators, **batch)
    for side in ("left", "right"):
        width = (2, 0) if side == "left" else (0, 2)
        padded = {"attention_mask": nn.functional.pad(batch["attention_mask"], width)}
        if kind == "tokens":
            padded["input_ids"] = nn.functional.pad(batch["input_ids"], width)
            padded["labels"] = nn.functional.pad(batch["labels"], width, value=-100)
        else:
            padded["input_features"] = nn.functional.pad(batch["input_features"], (0, 0, *width), value=9.0)
            padded["labels"] = nn.functional.pad(batch["labels"], (0, 0, *width), value=math.nan)
        generators = [torch.Generator().manual_seed(i) for i in range(3)]
        again = model.evaluation_terms(4, generators, **padded)
        for name in ("log_weights", "reconstruction", "kl", "num_steps", "mean", "log_fivo"):
            if name not in terms:
                assert name == "log_fivo" and not model.config.latent_size
                continue
            torch.testing.assert_close(again[name], terms[name])
        torch.testing.assert_close(model(**padded).loss, model(**batch).loss)
        moved = batch["attention_mask"].shape[1] - model.encode(**batch).mean.shape[1]  # the start mark
        real = batch["attention_mask"][:, moved:].bool()
        places = padded["attention_mask"].bool()[:, moved:].clone()
        if kind == "tokens" and side == "left":
            places[:, :2] = False
        means, whole = model.encode(**padded).mean, model.encode(**batch).mean
        torch.testing.assert_close(means[places], whole[real])
        told = model.teacher_forced(means, **padded)[places]
        torch.testing.assert_close(told, model.teacher_forced(whole, **batch)[real])
        if model.config.latent_size:
            got, wanted = model(**padded), model(**batch)
            for name in ("latents", "posterior_mean", "posterior_logvar"):
                torch.testing.assert_close(got[name][places], wanted[name][real])
            weights = model.log_importance_weights(latents=got.latents.unsqueeze(0), **padded)
            expected = model.log_importance_weights(latents=wanted.latents.unsqueeze(0), **batch)
            torch.testing.assert_close(weights, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_terms_agree_with_each_other_and_with_the_loss(kind, variant):
    model, batch = make_model(kind, **variant), make_batch(kind)
    seeds = lambda: [torch.Generator().manual_seed(i) for i in range(3)]  # noqa: E731
    terms = model.evaluation_terms(500, seeds(), **batch)
    weights = model.log_importance_weights(500, generator=seeds(), **batch)
    torch.testing.assert_close(weights, terms["log_weights"].float())
    # The KL along sampled paths is what log q - log p is the mean of.
    elbo = terms["log_weights"].mean(0)
    torch.testing.assert_close(-terms["reconstruction"] - terms["kl"], elbo, atol=0.3, rtol=0)
    outputs = model(**batch)
    torch.testing.assert_close(outputs.loss, outputs.reconstruction_loss + outputs.kl)
    assert (outputs.kl > 0) == bool(model.config.latent_size)
    assert terms["num_steps"].tolist() == [6, 4, 1]
    assert not any(term.requires_grad for term in terms.values())


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_the_same_a_few_at_a_time(kind, monkeypatch):
    model, batch = make_model(kind), make_batch(kind)
    seeds = lambda: [torch.Generator().manual_seed(i) for i in range(3)]  # noqa: E731
    values = []
    for most in (2**24, 500):  # features: of all samples, and of two
        monkeypatch.setattr("hf_vrae.modeling.modeling_vrnn.MAX_AT_ONCE", most)
        weights = model.log_importance_weights(5, generator=seeds(), **batch)
        values.append(model.evaluation_terms(5, seeds(), **batch) | {"weights": weights})
    torch.testing.assert_close(*values)


@pytest.mark.parametrize(
    ("kind", "options", "width"),
    [("frames", {"head": "full_gaussian"}, 4 + 10), ("tokens", {}, 12), ("tokens", {"kernels": "plain"}, 40)],
)
@torch.no_grad()
def test_how_many_samples_are_taken_at_once_hangs_on_the_head_too(kind, options, width):
    model = make_model(kind, **options)
    assert model._samples_at_once(model._observe(**make_batch(kind))) == 2**24 // (3 * 6 * width)


def test_the_particle_filter_and_importance_weights_estimate_the_same_likelihood():
    model, batch = make_model("frames", initializer_range=0.3), make_batch("frames")
    with torch.no_grad():
        exact = model.log_importance_weights(30_000, **batch).logsumexp(0) - math.log(30_000)
        filtered = torch.stack([model.particle_filter(20, **batch) for _ in range(200)])
        weighted = model.log_importance_weights(200 * 20, **batch).view(200, 20, 3).logsumexp(1) - math.log(20)
        elbo = model.log_importance_weights(4000, **batch).mean(0)
    torch.testing.assert_close(filtered.logsumexp(0) - math.log(200), exact, atol=0.05, rtol=0)  # unbiased
    for bound in (filtered, weighted):
        assert (bound.mean(0) <= exact + 0.02).all() and (bound.mean(0) >= elbo - 0.02).all()


def filtered_step_by_step(model, observed, noise, points):
    """Algorithm 1 of Maddison et al. 2017, one step and one quantity after the other."""
    layer, (samples, count, time) = model.model.layer, noise.shape[:3]
    seen = layer.what_the_posterior_sees(observed.phi_x, observed.lengths)
    state, resampled = layer.first_state(samples * count, observed.phi_x), 0
    log_weights, estimate = noise.new_zeros(samples, count), noise.new_zeros(count)
    for t in range(time):
        p = layer.prior(state[0])
        q = layer.posterior(over_samples(seen[:, t], samples), state[0], p)
        z = q.mean + q.stddev * noise[:, :, t].flatten(0, 1)
        features = layer.emission(z, state[0]).view(samples, count, 1, -1)
        term = model._score(features, model._at_step(observed.target, t)).flatten() + p.log_prob(z) - q.log_prob(z)
        log_weights = log_weights + torch.where(t < observed.lengths, term.view(samples, count), 0.0)
        state = layer.advance(over_samples(observed.phi_x[:, t], samples), z, state)
        shares = log_weights.detach().softmax(0)
        for b in range(count):
            if 1 / shares[:, b].square().sum() < samples / 2 and t + 1 < observed.lengths[b]:
                places = (torch.arange(samples) + points[b, t]) / samples
                rows = torch.arange(samples * count).view(samples, count)
                rows[:, b] = torch.searchsorted(shares[:, b].cumsum(0), places) * count + b
                state = tuple(s[rows.flatten()] for s in state)
                estimate = estimate + (torch.arange(count) == b) * (log_weights.logsumexp(0) - math.log(samples))
                log_weights = log_weights * (torch.arange(count) != b)
                resampled += 1
    return estimate + log_weights.logsumexp(0) - math.log(samples), resampled


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernels", ["auto", "plain"])
def test_the_particle_filter_is_what_the_algorithm_says(kind, kernels, variant):
    """Value and gradients; and with dropout what is chosen by is what is charged for."""
    if "latent_size" in variant:
        pytest.skip("without latents all particles are one")
    options = {"num_train_samples": 8, "resampling": True, "kernels": kernels, "initializer_range": 0.8}
    options |= variant
    model, batch = make_model(kind, **options).double().train(), make_batch(kind, torch.float64)
    observed = model._observe(**batch)
    torch.manual_seed(0)
    loss = model(**batch).loss
    torch.manual_seed(0)
    noise, points = model._noise(8, observed), model._points(observed)
    expected, resampled = filtered_step_by_step(model, observed, noise.double(), points)
    assert resampled > 0
    torch.testing.assert_close(loss, -expected.mean(), rtol=1e-6, atol=1e-6)  # the noise is float32
    weights = list(model.parameters())
    wanted, got = (torch.autograd.grad(value, weights, allow_unused=True) for value in (-expected.mean(), loss))
    for a, b in zip(got, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)

    model.model.layer.dropout.p = 0.5
    with torch.no_grad():
        path, resampling = model._filter(observed, noise)
    terms = model._log_likelihood(path, observed) - model._log_ratio(path, observed)
    torch.testing.assert_close(terms.view(8, 3, 6), resampling.terms(), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_frames_are_generated_as_step_by_step(head, variant):
    """Greedily, behind a beginning with missing values, against the layer's own distributions."""
    own = {"input_size": 3, "head": head} | SIZES_OF_HEADS.get(head, {})
    model = make_model("frames", **(own | variant)).double()
    layer, beginning = model.model.layer, torch.randint(0, 2, (2, 4, 3)).double()
    beginning[0, 1, 2] = beginning[1, 2:] = math.nan
    embedded = model.model.embed(model.model.embed_frames(beginning))
    begun = torch.tensor([4, 2])  # NaN frames at the end of a beginning are none of it
    seen = layer.what_the_posterior_sees(embedded, begun)
    state, frames = layer.first_state(2, embedded), []
    for t in range(7):
        prior = layer.prior(state[0])
        frame = model.head(layer.emission(prior.mean, state[0])).mode
        z = prior.mean
        if t < 4:
            frame = torch.where(beginning[:, t].isnan(), frame, beginning[:, t])
            q = layer.posterior(seen[:, t], state[0], prior)
            z = torch.where((t < begun).unsqueeze(1), q.mean, z)
        state = layer.advance(model.model.embed(model.model.embed_frames(frame)), z, state)
        frames.append(frame)
    got = model.generate(beginning=beginning, max_length=7).sequences
    torch.testing.assert_close(got, torch.stack(frames, 1))
    alone = model.generate(beginning=beginning[1:, :2], max_length=7).sequences
    torch.testing.assert_close(got[1:], alone)
    # Sampled frames are those of the same random numbers, whatever layout the weights have.
    torch.manual_seed(0)
    sampled = model.generate(lengths=[5, 5], do_sample=True).sequences
    torch.manual_seed(0)
    state = layer.first_state(2, embedded)
    for t in range(5):
        z = layer.prior(state[0]).sample()
        frame = model.head(layer.emission(z, state[0])).sample()
        torch.testing.assert_close(sampled[:, t], frame)
        state = layer.advance(model.model.embed(model.model.embed_frames(frame)), z, state)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("latent_size", [3, 0])
def test_scheduled_sampling_mixes_in_what_the_model_says(kind, latent_size, monkeypatch):
    model, batch = make_model(kind, latent_size=latent_size).train(), make_batch(kind)
    with torch.no_grad():  # a model that always says 7
        if kind == "tokens":
            model.lm_head.weight.zero_()
            model.lm_head.weight[7] = 1e4
            model.model.layer.emission_features[0].bias.fill_(9)
            seven = model.model.embed(model.model.embed_tokens(torch.tensor(7)))
        else:
            model.head.projection.weight.zero_()
            model.head.projection.bias.copy_(torch.tensor([7.0] * 4 + [-20.0] * 4))
            seven = model.model.embed(model.model.embed_frames(torch.full((4,), 7.0)))
    layer, passes, unroll = model.model.layer, [], model.model.layer.unroll
    monkeypatch.setattr(layer, "unroll", lambda *args: passes.append(args) or unroll(*args))
    for share in (0.0, 1.0, 0.5):
        passes.clear()
        model.sampling_probability = share
        model.zero_grad()
        model(**{name: tensor.repeat(99, *[1] * (tensor.dim() - 1)) for name, tensor in batch.items()}).loss.backward()
        true, read = passes[-1][0], passes[-1][3]
        if share == 0:
            assert len(passes) == 1 and read is None
            continue
        own = (read - seven).abs().amax(-1) < 0.1
        assert own.float().mean().item() == pytest.approx(share, abs=0.05)
        assert torch.equal(read[~own], true[~own])
        assert torch.equal(passes[0][2], passes[1][2])  # one noise, so that what it says is of the z it is read with
        assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())
    model.eval()
    model(**batch)
    assert passes[-1][3] is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "loss", [{}, {"num_train_samples": 3}, {"num_train_samples": 3, "resampling": True}, {"free_bits": 0.5}]
)
def test_one_step_lowers_each_loss_in_bfloat16_too(kind, loss):
    for autocast in (False, True):
        torch.manual_seed(1)
        model, batch = make_model(kind, initializer_range=0.1, dropout=0.1, **loss).train(), make_batch(kind)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

        def value(model=model, batch=batch, autocast=autocast):
            torch.manual_seed(0)
            with torch.autocast("cpu", enabled=autocast):
                return model(**batch).loss

        fields = model(**batch)
        assert fields.posterior_mean.shape == fields.posterior_logvar.shape == fields.latents.shape
        before = value()
        before.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        assert value() < before


@pytest.mark.parametrize("kind", KINDS)
def test_the_importance_weighted_loss_is_its_bound(kind):
    model, batch = make_model(kind, num_train_samples=5).train(), make_batch(kind)
    model.kl_weight = 0.3
    torch.manual_seed(0)
    loss = model(**batch).loss
    torch.manual_seed(0)
    observed = model._observe(**batch)
    path = model.model.layer.unroll(observed.phi_x, observed.lengths, model._noise(5, observed))
    log_weights = (model._log_likelihood(path, observed) - 0.3 * model._log_ratio(path, observed)).sum(1).view(5, 3)
    torch.testing.assert_close(loss, -(log_weights.logsumexp(0) - math.log(5)).mean())


def test_free_bits_leave_a_floor_and_the_kl_weight_counts():
    model, batch = make_model().train(), make_batch()
    torch.manual_seed(0)
    observed = model._observe(**batch)
    path = model.model.layer.unroll(observed.phi_x, observed.lengths, model._noise(1, observed))
    kl = model._kl(path, observed)
    model.config.free_bits = kl.median().item()
    torch.manual_seed(0)
    outputs = model(**batch)
    charged = kl.clamp(min=model.config.free_bits).sum(1).mean()
    torch.testing.assert_close(outputs.loss, outputs.reconstruction_loss + charged)
    model.config.free_bits = 0.0
    model.kl_weight = 0.25
    outputs = model(**batch)
    torch.testing.assert_close(outputs.loss, outputs.reconstruction_loss + 0.25 * outputs.kl)
    model.kl_capacity = 7.0
    outputs = model(**batch)
    torch.testing.assert_close(outputs.loss, outputs.reconstruction_loss + 0.25 * (outputs.kl - 7.0).abs())


def test_the_encoder_is_what_gives_the_posterior():
    model, batch = make_model("frames", smoothing_posterior=True), make_batch("frames")
    outputs = model.encode(**batch)
    (outputs.mean.sum() + outputs.logvar.sum()).backward()
    assert all(p.grad is not None for p in model.get_encoder().parameters())
    assert all(p.grad is None for p in model.head.parameters())


def test_the_prior_is_along_the_same_path():
    model, batch = make_model("frames"), make_batch("frames")
    observed = model._observe(**batch)
    path = model.model.layer.unroll(observed.phi_x, observed.lengths, torch.zeros(1, 3, 6, 3))
    for got, expected in ((model.prior(**batch), path.prior), (model.encode(**batch), path.posterior)):
        torch.testing.assert_close(got.mean[observed.real], expected.mean[observed.real])
        torch.testing.assert_close(got.logvar[observed.real], expected.logvar[observed.real])
    torch.testing.assert_close(model.prior().mean, model.model.layer.prior(torch.zeros(12)).mean)


@pytest.mark.parametrize(
    ("option", "random"), [("dropout", {"embedded", "features"}), ("weight_dropout", {"hidden", "features"})]
)
def test_what_is_dropped_in_training_alone(option, random):
    model, x = make_model(**{option: 0.5}), torch.randn(3, 6, 10)
    for training in (True, False):
        model.train(training)
        embedded = [model.model.embed(x) for _ in range(2)]
        paths = [model.model.layer.unroll(x, torch.tensor([6, 4, 1]), torch.zeros(1, 3, 6, 3)) for _ in range(2)]
        pairs = {"embedded": embedded} | {name: [getattr(p, name) for p in paths] for name in ("hidden", "features")}
        assert {name for name, pair in pairs.items() if not torch.equal(*pair)} == (random if training else set())


# Generation of tokens.


def test_reading_is_causal(variant):
    model, batch = make_model(**variant), make_batch()
    ids = batch["input_ids"][:1]
    logits = model(ids).logits
    other = ids.clone()
    other[0, 5] = 4 if ids[0, 5] != 4 else 5
    if not model.config.smoothing_posterior:  # whose reading of given tokens knows them all
        torch.testing.assert_close(model(other).logits[:, :5], logits[:, :5])
    assert not torch.allclose(model(other).logits[:, 5], logits[:, 5])


SAMPLE = {"do_sample": True, "top_k": 0}


@pytest.mark.parametrize("options", [{}, SAMPLE, {"num_beams": 3}, {"num_beams": 3, **SAMPLE}])
def test_cached_is_uncached(options, variant):
    model, ids = make_model(**variant), make_batch()["input_ids"][:2, :4]
    results = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        results.append(model.generate(ids, max_new_tokens=6, use_cache=use_cache, eos_token_id=None, **options))
    assert torch.equal(*results)
    assert results[0].shape == (2, 10) and torch.equal(results[0][:, :4], ids)


def test_generation_goes_on_from_a_cache():
    model, ids = make_model(), make_batch()["input_ids"][:1, :3]
    options = {"eos_token_id": None, "return_dict_in_generate": True}
    whole = model.generate(ids, max_new_tokens=6, **options)
    part = model.generate(ids, max_new_tokens=2, **options)
    cache = part[CACHE]
    for name in ("cache", "past_key_values"):
        more = model.generate(part.sequences, max_new_tokens=4, **{name: cache}, **options)
        assert torch.equal(more.sequences, whole.sequences)
    assert cache.get_seq_length() == 4  # what was passed in stays as it is
    for ids in (part.sequences[:, :4], part.sequences[:, :2]):
        with pytest.raises(ValueError, match=rf"has read 4 tokens, so `inputs` must be .* got {ids.shape[1]}\."):
            model.generate(ids, max_new_tokens=4, **{CACHE: cache}, **options)


def test_given_latents_decide():
    model = make_model()
    z = 3 * torch.randn(4, 6, 3)
    for kind in ("tokens", "frames"):
        with pytest.raises(ValueError, match="`latents` must be finite numbers; row 2 has NaN"):
            make_model(kind).generate(latents=z.index_fill(0, torch.tensor(2), math.nan), max_length=6)
    ids = model.generate(latents=z, max_new_tokens=6, eos_token_id=None)
    assert ids.shape == (4, 7) and len({tuple(row) for row in ids.tolist()}) > 1
    assert torch.equal(model.generate(latents=z, max_new_tokens=6, eos_token_id=None, use_cache=False), ids)
    # What was decoded is what the model says with these latents.
    logits = model(ids, latents=z).logits
    assert torch.equal(logits[:, :-1].argmax(-1), ids[:, 1:])
    with pytest.raises(ValueError, match=r"with `latent_size` 3, got \[4, 6, 2\]"):
        model.generate(latents=z[..., :2])


def test_padded_beginnings_generate_as_without_padding(variant):
    model, ids = make_model(**variant), make_batch()["input_ids"][:1, :4]
    alone = model.generate(ids, max_new_tokens=4, eos_token_id=None)
    padded = nn.functional.pad(ids, (2, 0))
    mask = (padded != 0).long()
    together = model.generate(padded, attention_mask=mask, max_new_tokens=4, eos_token_id=None)
    assert torch.equal(together[:, 2:], alone)


def test_a_pad_that_is_generated_is_read():
    model, ids = make_model(), make_batch()["input_ids"][:1, :3]
    options = {"max_new_tokens": 3, "eos_token_id": None, "return_dict_in_generate": True, "output_logits": True}
    only_pad = model.generate(ids, **options, prefix_allowed_tokens_fn=lambda *_: [0])
    read = model(only_pad.sequences, attention_mask=torch.ones_like(only_pad.sequences), num_observed=3)
    torch.testing.assert_close(torch.stack(only_pad.logits, dim=1), read.logits[:, 2:5])


@pytest.mark.parametrize("ids", [[5, 6], [0, 5], [2, 5, 3], [2, 5, 6], [0, 2, 5]])
def test_beginnings_that_lose_a_word_or_have_ended_are_told_of(ids, caplog):
    logger.warning_once.cache_clear()
    make_model().generate(torch.tensor([ids]), max_new_tokens=1)
    assert ("add_special_tokens=False" in caplog.text) == (ids not in ([2, 5, 6], [0, 2, 5]))


def test_padding_may_go_on_behind_a_cache():
    model = make_model()
    ids = make_batch()["input_ids"][[0, 0], :6]
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]])  # the second row starts behind the cache
    whole = model(ids, attention_mask=mask).logits
    first = model(ids[:, :3], attention_mask=mask[:, :3])
    second = model(ids[:, 3:], attention_mask=mask, past_key_values=first.past_key_values).logits
    torch.testing.assert_close(second, whole[:, 3:])


@pytest.mark.parametrize("kind", KINDS)
def test_saved_is_loaded(kind, variant, tmp_path):
    model, batch = make_model(kind, **variant), make_batch(kind)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(loaded(**batch).loss, model(**batch).loss)


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_hold_what_was_asked_for_in_every_form(kind, variant):
    model, batch = make_model(kind, **variant), make_batch(kind)
    for asked in (False, True):
        outputs = model(**batch, output_hidden_states=asked)
        expected = {"loss", "reconstruction_loss", "kl"} | ({"hidden_states"} if asked else set())
        expected |= {"logits"} if kind == "tokens" else set()
        expected |= {"latents", "posterior_mean", "posterior_logvar"} if model.config.latent_size else set()
        assert set(outputs) == expected and len(outputs.to_tuple()) == len(expected)
    if kind == "tokens":
        shapes = [tuple(states.shape) for states in outputs.hidden_states]
        assert shapes == [(3, 7, 10), (3, 7, 12)] and outputs.logits.shape == (3, 7, 40)


def test_auto_classes_find_it(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    assert set(model.config.auto_map) == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}
    for auto in (AutoModel, AutoModelForCausalLM):
        assert type(auto.from_pretrained(tmp_path)) is VRNNForSequenceGeneration
    with pytest.raises(ValueError, match="VRNNForFrameGeneration"):
        AutoModelForCausalLM.from_config(VRNNConfig(input_size=4))


def test_refusals():
    with pytest.raises(ValueError, match="`latent_size` 0 leaves no posterior for `smoothing_posterior`"):
        VRNNConfig(latent_size=0, smoothing_posterior=True)
    with pytest.raises(ValueError, match="`resampling` chooses among the particles"):
        VRNNConfig(resampling=True)
    with pytest.raises(ValueError, match="`feature_size` and `embedding_size` must be equal, got 9 and 8"):
        VRNNConfig(tie_word_embeddings=True, embedding_size=8, feature_size=9)
    with pytest.raises(ValueError, match="did you mean .feature_layers"):
        VRNNConfig(feature_layer=2)
    model, batch = make_model(), make_batch()
    with pytest.raises(ValueError, match="`svi_steps` 1 refines one posterior per sequence; a VRNN has one per step"):
        model.evaluation_terms(2, None, svi_steps=1, **batch)
    with pytest.raises(ValueError, match=r"`labels` must be the input tokens, .* of shape \[3, 7\]; got \[3, 6\]"):
        model(batch["input_ids"], labels=batch["labels"][:, 1:])
    with pytest.raises(ValueError, match="With `labels` the bound is of whole sequences"):
        model(**batch, latents=torch.randn(3, 6, 3))
    with pytest.raises(ValueError, match=r"`beginning` must be \[3 or 1, S, F\], got \[2, 1, 4\]"):
        make_model("frames").generate(latents=torch.randn(3, 5, 3), max_length=5, beginning=torch.randn(2, 1, 4))
    frames = make_batch("frames")
    with pytest.raises(ValueError, match="`labels` must score the input's frames"):
        make_model("frames")(**frames | {"labels": frames["labels"][:, 1:]})
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="must hold a token at least in each row"):
            call(batch["input_ids"][:, :0])
        with pytest.raises(ValueError, match=r"must be token ids \[batch, time\]"):
            call(batch["input_ids"][0])
        with pytest.raises(ValueError, match="`latents` must have a row for each of the 3 sequences, got 5"):
            call(batch["input_ids"], latents=torch.randn(5, 6, 3))
    with pytest.raises(ValueError, match="`num_samples` must be at least 2, of which a filter chooses; got 1"):
        model.particle_filter(1, **batch)
    with pytest.raises(ValueError, match=r"`attention_mask` must say of each position .* \[3, 7\], got \[3, 2\]"):
        model(batch["input_ids"], attention_mask=batch["attention_mask"][:, :2])
    with pytest.raises(ValueError, match=r"K samples of q\(z\|x\), \[K, 3, 6, 3\], got \[4, 2, 6, 3\]"):
        model.log_importance_weights(latents=torch.randn(4, 2, 6, 3), **batch)
    for call in (model, model.log_importance_weights):
        with pytest.raises(ValueError, match="Pass one of `input_ids` and `inputs_embeds`"):
            call()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_half_precision_serve(kind, dtype, variant):
    model = make_model(kind, **variant).to(dtype)
    batch = make_batch(kind)
    if kind == "frames":
        batch = {name: t.to(dtype) if t.is_floating_point() else t for name, t in batch.items()}
    outputs = model(**batch)
    assert outputs.loss.dtype == torch.float32 and outputs.loss.isfinite()
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    assert model.log_importance_weights(2, **inputs).isfinite().all()


def test_frames_with_padding_in_front_are_reconstructed_as_without():
    model, frames = make_model("frames"), torch.randn(2, 5, 4)
    padded, mask = nn.functional.pad(frames, (0, 0, 3, 0)), torch.tensor([[0] * 3 + [1] * 5] * 2)
    expected = model.generate(input_features=frames).sequences
    torch.testing.assert_close(model.generate(input_features=padded, attention_mask=mask).sequences, expected)


@pytest.mark.parametrize("begun", [None, 5])
def test_frames_beyond_those_of_an_input_have_the_z_that_they_have_alone(begun):
    """Of the prior, or inferred from a beginning; not the last of the longer rows' padding."""
    model, batch = make_model("frames"), make_batch("frames")
    features, mask, beginning = batch["input_features"], batch["attention_mask"], None
    for rows in (slice(0, 3), slice(1, 2)):
        length = int(mask[rows].sum(1).max())
        given = features[rows, :length], mask[rows, :length]
        if begun:
            beginning = torch.ones(len(given[0]), begun, 4)
        made = model.generate(*given, max_length=8, beginning=beginning).sequences
        if rows.start == 0:
            together = made
    torch.testing.assert_close(together[1:2], made)


def test_a_prompt_of_a_model_without_a_mark_of_padding():
    model = make_model(pad_token_id=None)
    assert model.generate(torch.tensor([[2, 5, 6]]), max_new_tokens=3, eos_token_id=None).shape == (1, 6)


def test_a_start_alone_is_no_sequence():
    model = make_model()
    with pytest.raises(ValueError, match="two tokens at least"):
        model(input_ids=torch.tensor([[2]]), labels=torch.tensor([[2]]))


@pytest.mark.parametrize("options", [{}, {"residual_posterior": True}, {"feature_layers": 2, "layer_norm": True}])
def test_moments_are_not_rounded_under_autocast(options):
    model, batch = make_model("frames", **options), make_batch("frames")
    observed = model._observe(**batch)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        path = model.model.layer.unroll(observed.phi_x, observed.lengths, model._noise(2, observed))
        step = VRNNStep(model.model.layer, 3)
        step.prior(), step.emission(torch.randn(3, 3)), step.advance(torch.randn(3, 10))
        alone = step.prior()
    for moments in (path.posterior.mean, path.posterior.logvar, path.prior.mean, path.prior.logvar, *alone):
        assert moments.dtype == torch.float32 and (moments != moments.bfloat16()).float().mean() > 0.5


def test_the_cell_of_an_lstm_is_not_rounded_under_autocast():
    model = make_model("frames")
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        step = VRNNStep(model.model.layer, 3)
        for _ in range(2):
            step.prior(), step.emission(torch.randn(3, 3)), step.advance(torch.randn(3, 10))
    _, c = step.state
    assert c.dtype == torch.float32 and (c != c.bfloat16()).any()


def test_frames_generated_under_autocast_are_near_those_in_float32(variant):
    model, beginning = make_model("frames", initializer_range=0.2, **variant), torch.randn(2, 3, 4)
    expected = model.generate(beginning=beginning, max_length=6).sequences
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = model.generate(beginning=beginning, max_length=6).sequences
    torch.testing.assert_close(made, expected, rtol=0.05, atol=0.05)


def test_what_a_conditional_model_takes_is_refused():
    model, ids = make_model(), torch.tensor([[2, 5, 6]])
    for options in ({"labels": "past"}, {"labels": ["past"]}, {"guidance_scale": 2.0}):
        with pytest.raises(ValueError, match="`labels` and `guidance_scale` are of a conditional model"):
            model.generate(ids, **options)
    beside = model.generate(ids, labels=ids, guidance_scale=None, max_length=6, do_sample=False)
    assert torch.equal(beside, model.generate(ids, max_length=6, do_sample=False))


def test_a_likelihood_of_embeddings_is_of_the_labels_that_are_said():
    model, batch = make_model(), make_batch()
    embedded = {
        "inputs_embeds": model.get_input_embeddings()(batch["input_ids"]),
        "attention_mask": batch["attention_mask"],
    }
    torch.testing.assert_close(model.encode(**embedded).mean, model.encode(**batch).mean)
    for ask in (lambda: model.log_importance_weights(2, **embedded), lambda: model.evaluation_terms(2, **embedded)):
        with pytest.raises(ValueError, match="beside `inputs_embeds` the `labels`"):
            ask()
    assert model.evaluation_terms(2, **embedded, labels=batch["labels"])["num_steps"].tolist() == [6, 4, 1]


def test_marks_that_a_model_lacks():
    model = make_model(bos_token_id=None, eos_token_id=None)
    assert model.generate(torch.tensor([[2, 5, 6]]), max_new_tokens=3).shape == (1, 6)
    with pytest.raises(ValueError, match="`bos_token_id`, which is None"):
        model.generate(latents=torch.randn(2, 3, 3), max_new_tokens=3)


def test_attentions_are_asked_for_by_name_and_refused():
    model, batch = make_model(), make_batch()
    assert model(**batch, output_attentions=None).loss == model(**batch).loss
    with pytest.raises(ValueError, match="`output_attentions` cannot be had"):
        model(**batch, output_attentions=True)


def test_a_token_that_is_sampled_has_a_z_that_is_drawn(variant):
    """z_t ~ p(z_t | h_{t-1}) and x_t ~ p(x_t | z_t, h_{t-1}), by the same random numbers."""
    model, ids = make_model(**variant), torch.full((2, 1), 2)
    layer, wanted = model.model.layer, {"return_dict_in_generate": True, "output_logits": True}
    torch.manual_seed(0)
    made = model.generate(ids, max_new_tokens=5, eos_token_id=None, **SAMPLE, **wanted)
    torch.manual_seed(0)
    state = layer.first_state(2, model.lm_head.weight)
    for logits, words in zip(made.logits, made.sequences[:, 1:].unbind(1), strict=True):
        z = layer.prior(state[0]).sample()
        expected = model.lm_head(layer.emission(z, state[0]))
        torch.testing.assert_close(logits, expected)
        assert torch.equal(torch.multinomial(expected.softmax(-1), 1).squeeze(1), words)
        state = layer.advance(model.model.embed(model.model.embed_tokens(words)), z, state)


def test_a_beginning_for_all_samples_has_the_z_that_is_inferred_from_it():
    model, beginning = make_model("frames"), torch.randn(1, 3, 4)
    made = sample_frames(model, [6, 6], beginning=beginning[0].numpy())["sample"]
    expected = model.generate(beginning=beginning, max_length=6).sequences.expand(2, -1, -1)
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_hidden_layers": 2}, "`num_hidden_layers` is 1 in a VRNN"),
        ({"latent_size": 0, "free_bits": 0.5}, "leaves no KL for `free_bits`"),
        ({"latent_size": 0, "num_train_samples": 3}, "nothing to sample for `num_train_samples`"),
        ({"num_train_samples": 3, "free_bits": 0.5}, "`num_train_samples` 3 trains an importance-weighted bound"),
    ],
)
def test_combinations_that_make_no_vrnn(options, message):
    with pytest.raises(ValueError, match=message):
        VRNNConfig(**options)


def test_learnt_lengths_are_part_of_every_bound_wherever_padding_stands():
    model, batch = make_model("frames", predict_length=True), make_batch("frames")
    with torch.no_grad():
        model.length_head.weight.zero_()
        model.length_head.bias.fill_(-1.0)  # each frame is the last one with this chance:
    p = torch.tensor(-1.0).double().sigmoid()
    expected = p.log() + (batch["attention_mask"].sum(1) - 1) * (1 - p).log()
    for width in ((0, 2), (2, 0)):
        padded = {"attention_mask": nn.functional.pad(batch["attention_mask"], width)}
        padded["input_features"] = nn.functional.pad(batch["input_features"], (0, 0, *width))
        terms = []
        for learnt in (True, False):
            model.config.predict_length = learnt
            seeds = [torch.Generator().manual_seed(row) for row in range(3)]
            terms.append(model.evaluation_terms(4, seeds, **padded))
        for name in ("log_weights", "log_fivo"):
            difference = terms[0][name] - terms[1][name]
            torch.testing.assert_close(difference, expected.expand_as(difference), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_model_says_is_drawn_and_not_its_likeliest(kind):
    model = make_model(kind, initializer_range=0.1)
    said = model._drawn_steps(torch.rand(10).expand(40, 5, 10))
    assert len(said.flatten(0, 1).unique(dim=0)) > 10
