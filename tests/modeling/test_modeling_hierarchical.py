"""The hierarchical VRAE as a probability model: exact bounds, segments that are what they say, the same everywhere."""

import inspect
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.distributions import MultivariateNormal, kl_divergence
from transformers import AutoModel, AutoModelForSeq2SeqLM, set_seed

from hf_vrae import HierarchicalVRAEConfig, HierarchicalVRAEForFrameGeneration, HierarchicalVRAEForSequenceGeneration
from hf_vrae.data.collators import AutoencodingCollator, FrameCollator
from hf_vrae.data.frames import make_frames as make_split
from hf_vrae.evaluation.free_running import evaluate_free_running
from hf_vrae.modeling.cache_name import CACHE
from hf_vrae.modeling.distributions import kl_per_dimension
from hf_vrae.modeling.hierarchical_latents import JointGaussian
from tests.models import (
    HIERARCHICAL_VARIANTS,
    SCALING,
    SEPARATORS,
    make_frame_model,
    make_frames,
    make_hierarchical_frame_model,
    make_hierarchical_model,
    make_tokens,
)

OF_TOKENS = HIERARCHICAL_VARIANTS | SEPARATORS
OF_FRAMES = HIERARCHICAL_VARIANTS | {
    "segments": {"segment_length": 3, "head": "bernoulli", "predict_length": True},
    "sections": {**HIERARCHICAL_VARIANTS["sections"], **SCALING},
}
FAMILIES = [("tokens", name) for name in OF_TOKENS] + [("frames", name) for name in OF_FRAMES]


@pytest.fixture(params=FAMILIES, ids=" ".join)
def model(request):
    kind, name = request.param
    return make_hierarchical_model(**OF_TOKENS[name]) if kind == "tokens" else (
        make_hierarchical_frame_model(**OF_FRAMES[name])
    )  # fmt: skip


@pytest.fixture
def batch(model):
    return make_tokens() if model.config.input_size is None else make_frames(model)


@pytest.fixture(params=OF_TOKENS.values(), ids=OF_TOKENS.keys())
def language(request):
    return make_hierarchical_model(**request.param)


def of_input(batch):
    return {name: batch[name] for name in ("input_ids", "input_features", "attention_mask") if name in batch}


def row_of(batch, row, length):
    """One row without its padding."""
    return {name: t[row : row + 1, : length - (name == "labels" and t.dim() == 2)] for name, t in batch.items()}


def test_an_empty_row_is_summarised_by_nothing(language):
    ids, mask = make_tokens()["input_ids"], make_tokens()["attention_mask"]
    for row in (0, 1):
        mask[row] = 0
        other = ids.clone()
        other[[row, row - 1]] = torch.randint(4, 40, (2, 11))
        modes = [language.encode(input_ids=tokens, attention_mask=mask).mode[row] for tokens in (ids, other)]
        torch.testing.assert_close(*modes, equal_nan=True)


def test_a_mask_may_tell_of_what_is_past(language):
    model, batch = language.double(), make_tokens()
    labels, mask = batch["labels"], batch["labels"] != -100
    inputs, z = model.prepare_decoder_input_ids_from_labels(labels), model.encode(**of_input(batch)).mode
    whole = model(latents=z, decoder_input_ids=inputs, decoder_attention_mask=mask, labels=labels)
    first = model(latents=z, decoder_input_ids=inputs[:, :2], decoder_attention_mask=mask[:, :2], use_cache=True)
    rest = {"decoder_input_ids": inputs[:, 2:], "decoder_attention_mask": mask, CACHE: first[CACHE]}
    scored = model(latents=z, labels=labels[:, 2:], **rest)
    torch.testing.assert_close(scored.logits[mask[:, 2:]], whole.logits[:, 2:][mask[:, 2:]])
    with pytest.raises(ValueError, match="`decoder_attention_mask`"):
        model(latents=z, decoder_input_ids=inputs, decoder_attention_mask=mask[:, 1:])


# The bound.


def test_loss_is_the_bound_and_no_larger_than_the_importance_weighted_one(model, batch):
    outputs = model(**batch)
    torch.testing.assert_close(outputs.loss, outputs.reconstruction_loss + outputs.kl)
    torch.manual_seed(1)
    with torch.no_grad():
        log_weights = model.log_importance_weights(100, **batch)  # [K, B]
    assert (log_weights.mean(0) < log_weights.logsumexp(0) - math.log(100)).all()
    q = model.encode(**batch)
    p, z = model._prior_beside(q), outputs.latents.unsqueeze(0)
    log_p = model.log_importance_weights(latents=z, **batch) + q.log_prob(z) - p.log_prob(z)
    torch.testing.assert_close(outputs.reconstruction_loss, -log_p.mean())
    torch.testing.assert_close(outputs.kl, model._kl(q, p, z).mean())
    # The KL, of each z in closed form given those above it, is the mean of log q - log p.
    z = q.sample((4000,))
    ratio = q.log_prob(z) - p.log_prob(z)  # [K, B]
    error = ratio.std(0) / math.sqrt(4000)
    assert ((model._kl(q, p, z[:1000]) - ratio.mean(0)).abs() < 6 * error + 0.05).all()


def test_bounds_from_different_posteriors_meet_at_the_likelihood():
    set_seed(0)
    model = make_hierarchical_frame_model(
        segment_length=2, latent_size=1, segment_latent_size=1, initializer_range=0.4
    )
    x = torch.randn(2, 4, 3)
    q = model.encode(x)
    wide = JointGaussian(torch.zeros(2, 3), torch.full((2, 3), 0.4), 1)
    with torch.no_grad():
        weights = [model.log_importance_weights(20_000, input_features=x, posterior=p) for p in (q, wide)]
    bounds = [w.logsumexp(0) - math.log(20_000) for w in weights]
    torch.testing.assert_close(*bounds, rtol=0, atol=0.03)


def test_likelihood_of_a_linear_model_by_hand():
    """x_t = w z_s + b + noise in each segment, and q the true posterior: each importance weight is log p(x) itself."""
    model = make_hierarchical_frame_model(segment_length=2, segment_latent_size=1, latent_conditioning=["output"])
    model = model.double()
    with torch.no_grad():
        for part in (model.model.decoder.rnn, model.model.decoder.conductor):
            for parameter in part.parameters():
                parameter.zero_()  # h = 0 and c = 0: p(z_s | ...) = N(0, 1)
        projection = model.head.projection
        projection.weight[3:] = 0
        w, loc = projection.weight[:3, -1], projection.bias[:3]
        scale = torch.nn.functional.softplus(projection.bias[3:]) + model.config.min_scale
    x = torch.randn(1, 5, 3).double()  # segments of 2, 2 and 1 frames
    log_p, moments = 0, []
    for segment in x[0].split(2):
        w_s, loc_s, scale_s = (t.repeat(len(segment)) for t in (w, loc, scale))
        log_p += MultivariateNormal(loc_s, w_s.outer(w_s) + scale_s.square().diag()).log_prob(segment.flatten())
        variance = 1 / (1 + (w_s / scale_s).square().sum())
        moments.append((variance * (w_s * (segment.flatten() - loc_s) / scale_s.square()).sum(), variance.log()))
    mean, logvar = (torch.cat([torch.zeros(4), torch.stack(m)]).view(1, -1) for m in zip(*moments, strict=True))
    q = JointGaussian(mean, logvar, 4)
    weights = model.log_importance_weights(3, input_features=x, posterior=q)
    torch.testing.assert_close(weights, log_p.expand(3, 1))


def test_the_prior_is_what_it_samples(model):
    p = model.prior(num_segments=3)
    set_seed(1)
    z = p.rsample((50,))
    set_seed(1)
    noise = torch.randn(z.shape)
    along = p.along(z)
    # Step by step it drew, and in one run it is evaluated.
    torch.testing.assert_close((z - along.mean) / along.stddev, noise, rtol=1e-3, atol=1e-4)
    of_each = torch.distributions.Normal(along.mean, along.stddev).log_prob(z)
    torch.testing.assert_close(p.log_prob(z), of_each[..., p.present].sum(-1))
    torch.testing.assert_close(p.log_prob(z[0]), p.log_prob(z)[0])
    assert torch.equal(p.sample((2,)).isnan(), ~p.present.expand(2, -1))  # for a decoder to take of the prior
    torch.testing.assert_close(p.along(p.mean).mean, p.mean, rtol=1e-4, atol=1e-5)
    if model.config.segment_latent_size:
        other = z.clone()
        other[:, : model.config.latent_size] += 1
        assert not torch.allclose(p.along(other).mean, along.mean)  # z_g matters to the segments
        assert model.prior().event_shape == (model.config.latent_size,)


# Sequences of different lengths in one batch.


def test_a_row_is_the_same_alone(model, batch):
    model = model.double()
    batch = {name: t.double() if t.is_floating_point() else t for name, t in batch.items()}
    generators = [torch.Generator().manual_seed(row) for row in range(4)]
    terms = model.evaluation_terms(3, generators, **batch)
    for row in (1, 2, 3):
        length = int(batch["attention_mask"][row].sum())
        alone = model.evaluation_terms(3, [torch.Generator().manual_seed(row)], **row_of(batch, row, length))
        for name, dim in (("log_weights", 1), ("reconstruction", 0), ("kl", 0), ("kl_segments", 0), ("mean", 0)):
            torch.testing.assert_close(alone[name], terms[name].narrow(dim, row, 1), msg=name)
        torch.testing.assert_close(alone["posterior"].entropy()[0], terms["posterior"].entropy()[row])
        densities = (t["posterior"].log_prob(t["posterior"].mode) for t in (alone, terms))
        torch.testing.assert_close(next(densities)[0], next(densities)[row])
    of_scales = {name: terms[name] for name in terms if name.startswith("kl_")}
    assert ("kl_sections" in of_scales) == bool(model.config.section_sizes)
    torch.testing.assert_close(sum(of_scales.values()), terms["kl"])
    q = terms["posterior"]
    torch.testing.assert_close(of_scales["kl_global"], kl_divergence(q, model.prior()).double())
    assert terms["mean"].shape == terms["latents"].shape == (4, model.config.latent_size)


@pytest.mark.parametrize("side", ["left", "holes"])
def test_padding_anywhere_changes_nothing(model, batch, side):
    model = model.double()
    wanted = model(**batch)
    time = batch["attention_mask"].shape[1]
    columns = list(range(3, 3 + time)) if side == "left" else [i + (i > 1) + (i > 4) for i in range(time)]

    def spread(name, tensor):
        filler = {"labels": -100 if tensor.dim() == 2 else torch.nan}.get(name, 0)
        wide = torch.full((4, time + 3, *tensor.shape[2:]), filler, dtype=tensor.dtype)
        wide[:, columns[: tensor.shape[1]]] = tensor
        return wide

    got = model(**{name: spread(name, tensor) for name, tensor in batch.items()})
    torch.testing.assert_close([got.loss, got.latents], [wanted.loss, wanted.latents])


@pytest.mark.parametrize("kind", ["tokens", "frames"])
def test_free_running_reconstruction_of_a_row_is_its_own(kind):
    options = {"segment_length": 2, "section_sizes": [2]}
    lengths = (9, 4, 2, 6)
    if kind == "tokens":
        model, collator = make_hierarchical_model(**options), AutoencodingCollator(0)
        ids = [row[row > 0].tolist() for row in make_tokens(lengths)["input_ids"]]
        data = Dataset.from_dict({"input_ids": ids, "length": lengths})
    else:
        model, collator = make_hierarchical_frame_model(head="bernoulli", **options), FrameCollator()
        data = make_split(torch.randint(0, 2, (sum(lengths), 3)).float().numpy(), np.array(lengths))
    together, alone = (evaluate_free_running(model, data, collator, batch_size=n) for n in (4, 1))
    assert together == alone and 0 < max(together.values())


# Segments.


@pytest.mark.parametrize("kind", ["tokens", "frames"])
@pytest.mark.parametrize("carries", [False, True])
def test_segments_are_independent_given_their_latents(kind, carries):
    options = {"segment_length": 3, "autoregressive_segments": carries}
    make = make_hierarchical_model if kind == "tokens" else make_hierarchical_frame_model
    model = make(**options)
    z = model.prior(num_segments=3).sample((2,))
    labels = torch.randint(4, 40, (2, 9)) if kind == "tokens" else torch.randn(2, 9, 3)
    other = labels.clone()
    other[:, 1:3] = labels[:, 1:3].flip(1) + 1
    a, b = (model(latents=z, labels=x) for x in (labels, other))
    a, b = (o.logits if kind == "tokens" else o.predictions for o in (a, b))
    torch.testing.assert_close(a[:, :2], b[:, :2])
    assert not torch.allclose(a[:, 2], b[:, 2])
    assert torch.allclose(a[:, 3:], b[:, 3:]) == (not carries)
    # Each z is of its own segment, and with a conductor of those behind it.
    moved = z.clone()
    moved[:, -3:] += 1
    c = model(latents=moved, labels=labels)
    c = c.logits if kind == "tokens" else c.predictions
    torch.testing.assert_close(c[:, :6], a[:, :6])
    assert not torch.allclose(c[:, 6:], a[:, 6:])


def test_segments_at_given_boundaries():
    model = make_hierarchical_frame_model(segment_length=3)
    x = torch.randn(2, 7, 3)
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    same = torch.tensor([[4, 4, 4, 7, 7, 7, 8]]).expand(2, -1)  # what `segment_length` makes, by any numbers
    wanted = model(x, mask, labels=x)
    got = model(x, mask, labels=x, segment_ids=same)
    torch.testing.assert_close([got.loss, got.latents], [wanted.loss, wanted.latents])
    uneven = torch.tensor([[0, 1, 1, 1, 1, 2, 2], [0, 0, 0, 0, 1, 1, 1]])
    q = model.encode(x, mask, segment_ids=uneven)
    assert q.present.sum(1).tolist() == [4 + 3 * 3, 4 + 2 * 3]
    z = q.sample((2,))
    weights = model.log_importance_weights(latents=z, input_features=x, attention_mask=mask, segment_ids=uneven)
    alone = {"input_features": x[1:, :5], "segment_ids": uneven[1:, :5]}
    torch.testing.assert_close(model.log_importance_weights(latents=z[:, 1:, :10], **alone), weights[:, 1:])
    generated = model.generate(latents=q.mode, lengths=[7, 5], segment_ids=uneven).sequences
    predictions = model(latents=model.complete_latents(q.mode, do_sample=False), labels=generated, attention_mask=mask,
                        segment_ids=uneven).predictions  # fmt: skip
    torch.testing.assert_close(generated[mask.bool()], predictions[mask.bool()], rtol=1e-4, atol=1e-5)
    wide = [torch.nn.functional.pad(t, pad) for t, pad in ((x, (0, 0, 2, 0)), (mask, (2, 0)), (uneven, (2, 0)))]
    padded_left = model.generate(wide[0], wide[1], segment_ids=wide[2]).sequences
    torch.testing.assert_close(padded_left, model.generate(x, mask, segment_ids=uneven).sequences)
    collated = uneven.masked_fill(mask == 0, -1)  # which is no segment that a row goes on with
    beyond = model.generate(x, mask, lengths=[7, 7], segment_ids=collated).sequences
    alone = model.generate(x[1:, :5], lengths=[7], segment_ids=collated[1:, :5]).sequences
    torch.testing.assert_close(beyond[1:], alone)
    with pytest.raises(ValueError, match=r"`segment_ids` must be \[2 or 1, T\], got \[3, 7\]"):
        model.generate(latents=q.mode, lengths=[7, 5], segment_ids=uneven[[0, 1, 1]])
    for use in (lambda **given: model(x, labels=x, **given), lambda **given: model.encode(x, **given)):
        with pytest.raises(ValueError, match="`segment_ids` must number each frame"):
            use(segment_ids=uneven[:, :4])
    # Trainer hands on what the signature names, and a misspelt argument is no boundary.
    assert "segment_ids" in inspect.signature(model.forward).parameters
    with pytest.raises(TypeError, match="label_s"):
        make_frame_model()(x, label_s=x)


def test_a_separator_ends_its_segment():
    model = make_hierarchical_model(segment_separator_ids=[7])
    ids = torch.tensor([[2, 9, 7, 7, 8, 8, 3], [2, 9, 9, 9, 9, 9, 3]])
    q = model.encode(ids)
    assert q.present.sum(1).tolist() == [6 + 3 * 3, 6 + 3]  # 9 7, 7, 8 8 </s>
    z = q.sample()
    other = ids.clone()
    other[0, 1] = 10
    a, b = (model(latents=z, labels=x[:, 1:]).logits[0] for x in (ids, other))
    assert not torch.allclose(a[1], b[1])
    torch.testing.assert_close(a[2:], b[2:])
    with pytest.raises(ValueError, match="there are embeddings alone: pass the ids"):
        model.encode(inputs_embeds=model.get_input_embeddings()(ids))


# Loading, saving, training.


def test_saved_and_loaded_it_is_the_same(model, batch, tmp_path):
    model.save_pretrained(tmp_path)
    of_tokens = model.config.input_size is None
    again = (AutoModelForSeq2SeqLM if of_tokens else AutoModel).from_pretrained(tmp_path).eval()
    assert type(again) is (HierarchicalVRAEForSequenceGeneration if of_tokens else HierarchicalVRAEForFrameGeneration)
    torch.testing.assert_close(again(**batch).loss, model(**batch).loss, rtol=0, atol=0)


def trained_once(model, batch):
    set_seed(3)
    model.zero_grad()
    outputs = model.train()(**batch)
    outputs.loss.backward()
    return outputs, {name: p.grad.clone() for name, p in model.named_parameters()}


def test_one_step_lowers_the_loss_and_every_gradient_is_finite(model, batch):
    before, gradients = trained_once(model, batch)
    for name, gradient in gradients.items():
        assert gradient.isfinite().all() and gradient.abs().max() > 0, name
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter -= 1e-4 * gradients[name]
    assert trained_once(model, batch)[0].loss < before.loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, gradients = trained_once(model, batch)
    assert outputs.loss.dtype == outputs.kl.dtype == torch.float32
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_each_scale_has_its_own_price():
    options = {"segment_length": 3, "free_bits": 2.0, "segment_free_bits": 0.5, "free_bits_form": "example"}
    model = make_hierarchical_model(**options, segment_kl_weight=0.25)
    batch = make_tokens()
    model.kl_weight = 0.5
    outputs, _ = trained_once(model, batch)
    q = model.encode(**batch)
    of_each = kl_per_dimension(q, model._prior_beside(q).along(outputs.latents))
    of_whole, below = of_each[:, :6].sum(1), of_each[:, 6:].sum(1)
    charged = of_whole.clamp(min=2).mean() + 0.25 * below.clamp(min=0.5).mean()
    torch.testing.assert_close(outputs.loss, outputs.reconstruction_loss + 0.5 * charged)
    torch.testing.assert_close(outputs.kl, (of_whole + below).mean())  # reported as it is
    model.kl_capacity = 30.0
    outputs, _ = trained_once(model, batch)
    torch.testing.assert_close(outputs.loss, outputs.reconstruction_loss + 0.5 * (outputs.kl - 30).abs())


def test_each_of_three_scales_has_its_own_price():
    options = {"segment_length": 2, "section_sizes": [2], "free_bits_form": "example", "segment_latent_size": 2}
    own = {"segment_kl_weight": 0.25, "segment_free_bits": 0.5, "section_kl_weight": [3.0]}
    model = make_hierarchical_model(**options, **own, section_free_bits=[0.7])
    batch = make_tokens()
    outputs, _ = trained_once(model, batch)
    q = model.encode(**batch)
    of_each = kl_per_dimension(q, model._prior_beside(q).along(outputs.latents))
    of_nodes = of_each[:, 6:].unflatten(1, (-1, 6))  # a section: its own two dimensions, and two segments'
    sections, segments = of_nodes[..., :2].sum((1, 2)), of_nodes[..., 2:].sum((1, 2))
    charged = of_each[:, :6].sum(1) + 3 * sections.clamp(min=0.7) + 0.25 * segments.clamp(min=0.5)
    torch.testing.assert_close(outputs.loss, outputs.reconstruction_loss + charged.mean())
    # By default a section costs what its segments do.
    both = make_hierarchical_model(**options, segment_kl_weight=0.25, segment_free_bits=0.5).config
    assert both.prices_below == [(0.25, 0.5)] * 2 and both.has_own_prices


def test_sections_of_two_scales_have_each_their_own_kl():
    model = make_hierarchical_model(segment_length=2, section_sizes=[2, 3], segment_latent_size=2)
    # Of two large sections the first has 2 of 3 segments, 18 dimensions, the second one of one.
    assert model.prior(num_segments=7).present.sum() == 6 + 18 + 6
    batch = make_tokens((15, 8, 3, 6))
    seeds = lambda: [torch.Generator().manual_seed(row) for row in range(4)]  # noqa: E731
    terms, q = model.evaluation_terms(1, seeds(), **batch), model.encode(**batch)
    of_each = kl_per_dimension(q, model._prior_beside(q).along(q.rsample((1,), seeds())[0]))
    large, inner = of_each[:, 6:].unflatten(1, (-1, 18)).split([2, 16], dim=-1)
    small, segments = inner.unflatten(-1, (-1, 8)).split([2, 6], dim=-1)
    for name, kl in (("sections_0", large), ("sections_1", small), ("segments", segments)):
        torch.testing.assert_close(terms[f"kl_{name}"], kl.flatten(1).sum(1).double())


@pytest.mark.parametrize("held", [(), (0,), (1,), (0, 1)], ids=["whole", "sections", "segments", "all"])
def test_each_of_three_scales_is_held_drawn_or_interpolated_apart(held):
    model = make_hierarchical_model(segment_length=2, section_sizes=[2], segment_latent_size=3)
    z = model.prior(num_segments=4).sample((2,))
    of_whole, *below = model.split_latents(z)
    assert [list(part.shape) for part in below] == [[2, 2, 3], [2, 4, 3]]
    torch.testing.assert_close(below[0][:, 1], z[:, 6 + 9 : 6 + 12])  # [z_g, [section, segment, segment], [section, ..
    torch.testing.assert_close(below[1][:, 1], z[:, 6 + 6 : 6 + 9])
    torch.testing.assert_close(model.join_latents(of_whole, *below), z)
    given = [part if i in held else part * torch.nan for i, part in enumerate(below)]
    drawn = model.complete_latents(model.join_latents(of_whole, *given), generator=torch.manual_seed(0))
    _, *after = model.split_latents(drawn)
    for i, (part, new) in enumerate(zip(below, after, strict=True)):
        assert torch.equal(part, new) if i in held else not torch.isclose(part, new).any()
    # Half way from one sequence to the other in one scale alone.
    path = [part.mean(0, keepdim=True) if i in held else part[:1] for i, part in enumerate(below)]
    between = model.split_latents(model.join_latents(of_whole[:1], *path))
    assert all(torch.equal(part, new) for part, new in zip(path, between[1:], strict=True))
    with pytest.raises(ValueError, match="as many nodes as `section_sizes`"):
        model.join_latents(of_whole, below[0], below[1][:, :3])


@pytest.mark.parametrize("form", ["dimension_mean", "dimension"])
def test_segments_that_a_row_lacks_have_nothing_free(form):
    """They were averaged as zeros: the last segment of a long row among short ones cost and taught nothing."""
    model = make_hierarchical_model(segment_length=3, segment_free_bits=0.05, free_bits_form=form)
    batch = make_tokens()
    outputs, _ = trained_once(model, batch)
    q = model.encode(**batch)
    below = kl_per_dimension(q, model._prior_beside(q).along(outputs.latents))[:, 6:]
    present = q.present[:, 6:]
    assert not present.all()
    if form == "dimension":
        charged = sum(row[has].clamp(min=0.05).sum() for row, has in zip(below, present, strict=True)) / len(below)
    else:
        of_each = [(column[has], has.sum()) for column, has in zip(below.T, present.T, strict=True)]
        charged = sum(kl.mean().clamp(min=0.05) * count for kl, count in of_each if count) / len(below)
    of_whole = outputs.kl - below.sum(1).mean()
    torch.testing.assert_close(outputs.loss, outputs.reconstruction_loss + of_whole + charged)


def test_dropout_spares_the_latents():
    """Of [h; c_s; z_s] that the words are read from, h alone is dropped."""
    model = make_hierarchical_model(segment_length=3, dropout=0.5, latent_conditioning=["output"]).train()
    batch = make_tokens()
    z = model.encode(**batch).mode
    hidden, _, _ = model.model.decoder(z, batch["input_ids"], batch["attention_mask"])
    features = model.model.decoder.beside_latents(hidden, z)
    h, nodes = features.tensor_split([model.config.decoder_hidden_size], dim=-1)
    assert 0.3 < (h == 0).float().mean() < 0.7 and (nodes != 0).all()


def test_the_importance_weighted_loss_is_its_bound():
    model = make_hierarchical_model(segment_length=3, num_train_samples=5)
    batch = make_tokens()
    outputs, gradients = trained_once(model, batch)
    set_seed(3)
    q = model.encode(**batch)
    sample = q.rsample((5,))
    z = sample.detach().requires_grad_()
    log_weights = model.log_importance_weights(latents=z, posterior=q.detach(), **batch)
    bound = -(log_weights.logsumexp(0) - math.log(5)).mean()
    torch.testing.assert_close(outputs.loss, bound)
    model.zero_grad()
    bound.backward()
    sample.backward(z.grad * log_weights.detach().softmax(0).unsqueeze(-1))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


# Generation.


def test_cached_is_uncached(language):
    ids = torch.randint(4, 40, (3, 10))
    ids[:, 0] = 2
    mask = torch.ones_like(ids)
    mask[1, :2], mask[2, 5] = 0, 0
    with pytest.raises(ValueError, match="`latents` must be a tensor of floats, got list"):
        language.generate(latents=[[0.0]])
    z = language.prior(num_segments=10).sample((3,))
    z[:, 6:][:, -3:] = torch.nan  # the prior's mean
    whole = language(latents=z, decoder_input_ids=ids, decoder_attention_mask=mask, use_cache=False)
    cache, logits = None, []
    for part in ids.split([1, 4, 1, 1, 3], dim=1):
        done = sum(part.shape[1] for part in logits)
        read = mask[:, : done + part.shape[1]]
        outputs = language(
            latents=z, decoder_input_ids=part, decoder_attention_mask=read, past_key_values=cache, use_cache=True
        )
        cache = outputs.past_key_values
        logits.append(outputs.logits)
    real = mask.bool()
    torch.testing.assert_close(torch.cat(logits, dim=1)[real], whole.logits[real], rtol=1e-4, atol=1e-5)


def test_padding_behind_a_beginning_changes_nothing(language):
    z = language.prior(num_segments=10).sample((1,))
    beginning = torch.tensor([[2, 20, 21]])
    padded = torch.cat([beginning, torch.zeros(1, 2, dtype=torch.long)], dim=1)
    wanted, got = (
        language.generate(latents=z, decoder_input_ids=ids, max_new_tokens=5) for ids in (beginning, padded)
    )
    assert torch.equal(got[:, 5:], wanted[:, 3:])


def test_segments_that_were_decoded_stay_when_a_sampled_text_goes_on(language):
    first = language.generate(latents=language.prior().sample((2,)), do_sample=True, max_length=6,
                              return_dict_in_generate=True)  # fmt: skip
    *_, before, place = first.past_key_values.states(2)[0]
    begun = int(place[:, 0].min()) + 1
    more = language.generate(latents=language.prior().sample((2,)), decoder_input_ids=first.sequences, max_length=30,
                             past_key_values=first.past_key_values, return_dict_in_generate=True)  # fmt: skip
    after = more.past_key_values.states(2)[0][-2]
    torch.testing.assert_close(after[:, :begun], before[:, :begun])


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True}, {"num_beams": 2, "do_sample": True}],
                         ids=["greedy", "beams", "sampled", "sampled beams"])  # fmt: skip
def test_generation_with_and_without_a_cache(language, options):
    z = language.prior().sample((2,))
    generated = []
    for use_cache in (True, False):
        set_seed(5)
        generated.append(language.generate(latents=z, max_length=12, use_cache=use_cache, **options))
    assert torch.equal(*generated)
    given = of_input(make_tokens())
    assert language.generate(**given, max_length=9, num_return_sequences=2, do_sample=True).shape[0] == 8


def test_what_given_latents_leave_open_is_the_priors_mean_in_training_too(language):
    if not language.config.segment_latent_size:
        pytest.skip("there is no z of segments")
    z = language.prior(num_segments=4).sample((4,))
    z[:, -3:] = torch.nan
    labels = make_tokens()["labels"]
    loss = language(latents=z, labels=labels).loss
    torch.testing.assert_close(language.train()(latents=z, labels=labels).loss, loss)


def test_what_is_given_is_held_and_the_rest_is_drawn(model):
    z = model.prior(num_segments=4).sample((3,))
    of_whole, *below = model.split_latents(z)
    torch.testing.assert_close(model.join_latents(of_whole, *below), z)
    torch.testing.assert_close(model.complete_latents(z), z)
    partly = z.clone()
    partly[:, model.config.latent_size + 3 :] = torch.nan
    drawn = model.complete_latents(partly, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn[~partly.isnan()], z[~partly.isnan()])
    assert drawn.isfinite().all()
    longer = model.complete_latents(of_whole, num_segments=8, do_sample=False)
    conditional = model.prior(num_segments=8).along(longer)
    torch.testing.assert_close(longer[:, of_whole.shape[1] :], conditional.mean[:, of_whole.shape[1] :])
    for wrong, message in ((torch.randn(3, 5000), "`latents` must be"), (z * torch.nan, "must give z of the whole")):
        with pytest.raises(ValueError, match=message):
            model.complete_latents(wrong)


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("options", OF_FRAMES.values(), ids=OF_FRAMES.keys())
def test_frames_step_by_step_are_the_whole_decoder(options, do_sample):
    model = make_hierarchical_frame_model(**options)
    batch = make_frames(model)
    latents, steps, whole = model.prior(num_segments=6).sample((4,)), [], []

    def record(seen):
        return model.head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))

    beginning = batch["labels"][:, :3]
    with record(steps):
        generated = model.generate(latents=latents, lengths=[9, 4, 3, 6], do_sample=do_sample, beginning=beginning)
    assert generated.lengths.tolist() == [9, 4, 3, 6] and generated.sequences.isfinite().all()
    mask = torch.arange(9) < generated.lengths.unsqueeze(1)
    with record(whole):
        model(latents=latents, labels=generated.sequences, attention_mask=mask)
    torch.testing.assert_close(torch.stack(steps, 1)[mask], whole[0][mask], rtol=1e-4, atol=1e-5)
    again = model.generate(**of_input(batch))
    if not model.config.predict_length:
        assert torch.equal(again.lengths, batch["attention_mask"].sum(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"condition_labels": {"kind": ["a", "b"]}}, "a hierarchical model has no condition"),
        ({"encoder_type": "transformer"}, "must be rnn: a segment is summarised by a state"),
        ({"latent_size": 0}, "`latent_size` 0 leaves out z of the whole"),
        ({"decoder_type": "transformer"}, "must be rnn: a segment is summarised by a state"),
        ({"posterior": "vmf"}, "a segment's prior is learnt"),
        ({"correlated_prior": True}, "no `correlated_prior`"),
        ({"mmd_weight": 1.0}, "say something of one z for the whole sequence"),
        ({"section_sizes": [1]}, "`section_sizes` must each be at least 2"),
        ({"segment_separator_ids": [99]}, "must be one or more of the 40 tokens"),
        ({"autoregressive_segments": True, "latent_conditioning": ["initial_state"]}, "Add input or output"),
        ({"segment_latent_size": 0, "segment_free_bits": 1.0}, "leaves no KL for"),
        ({"section_kl_weight": [0.5]}, r"for each of `section_sizes` \[\], got \[0.5\]"),
        ({"section_sizes": [2], "section_free_bits": [-1.0]}, "`section_free_bits` must be a number of 0 or more"),
        ({"num_train_samples": 2, "section_sizes": [2], "section_kl_weight": [0.5]}, "knows one weight of the KL"),
        ({"num_train_samples": 2, "segment_kl_weight": 0.5}, "knows one weight of the KL"),
        ({"segment_length": 0}, "`segment_length` must be at least 1"),
        ({"section_sizes": [2], "section_kl_weight": [math.nan]}, "`section_kl_weight` must be a number of 0 or more"),
        ({"section_sizes": [2], "section_free_bits": [math.inf]}, "`section_free_bits` must be a number of 0 or more"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalVRAEConfig(**({"vocab_size": 40} | options))


def test_separators_are_no_frames_and_a_learnt_prior_is_not_refined():
    with pytest.raises(ValueError, match="give the batch `segment_ids`"):
        HierarchicalVRAEConfig(input_size=3, segment_separator_ids=[5])
    model = make_hierarchical_model(segment_length=3)
    with pytest.raises(ValueError, match="`svi_steps` refines one z with a fixed prior"):
        model.evaluation_terms(2, None, 3, **make_tokens())


def test_latents_that_diverge_are_told_of():
    """NaN below the whole is what is not given; infinity is nothing."""
    model = make_hierarchical_frame_model()
    for place in (0, 5):
        latents = torch.zeros(2, 7)
        latents[1, place] = torch.inf
        with pytest.raises(ValueError, match="`latents` must be finite numbers; row 1 has NaN or infinity"):
            model.generate(latents=latents, max_length=4)
    latents[1, 5] = torch.nan
    assert model.generate(latents=latents, max_length=4).sequences.isfinite().all()


def test_the_number_of_segments_is_a_batchs_own():
    with pytest.raises(ValueError, match="`num_segments` 99 or a batch"):
        make_hierarchical_model().prior(num_segments=99, **make_tokens())
    with pytest.raises(ValueError, match="`num_segments` must be at least 1, got 0"):
        make_hierarchical_model(segment_length=3).prior(num_segments=0)


def test_texts_without_a_label_cost_their_kl():
    for segments in ({"segment_length": 3}, SEPARATORS["separators"]):
        model, batch = make_hierarchical_model(**segments), make_tokens()
        outputs = model(**batch | {"labels": torch.full_like(batch["labels"], -100)})
        assert outputs.reconstruction_loss == 0 and outputs.loss == outputs.kl > 0


def test_conditions_are_refused_of_frames_too():
    model = make_hierarchical_frame_model()
    with pytest.raises(ValueError, match="`class_ids`"):
        model.encode(**make_frames(model), class_ids=torch.zeros(4, 1).long())


def test_a_length_below_one_is_refused_of_frames_too():
    model = make_hierarchical_frame_model(segment_length=3)
    for length in (0, -3):
        with pytest.raises(ValueError, match="needs a length of 1 or more"):
            model.generate(latents=torch.randn(2, 4), max_length=length)
    with pytest.raises(ValueError, match="`latents` must be a tensor of floats, got list"):
        model.generate(latents=[[0.0] * 4], max_length=3)


def test_rows_without_a_segment_give_gradients_that_are_numbers():
    """What an encoder gave has NaN in the place of a segment that is not there."""
    model = make_hierarchical_model(segment_length=3).train()
    batch = make_tokens()
    labels = batch.pop("labels")
    outputs = model(**batch, labels=labels, encoder_outputs=model.get_encoder()(**batch))
    outputs.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert {"model.encoder", "model.decoder"} <= {".".join(name.split(".")[:2]) for name in gradients}
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_several_latents_of_each_text_with_a_cache_too():
    model = make_hierarchical_model()
    width = model.encode(torch.tensor([[2, 5, 6, 7, 3]])).mean.shape[1]
    z = torch.randn(6, width)
    read = {"latents": z, "decoder_input_ids": torch.tensor([[2, 5, 6], [2, 7, 8]])}
    torch.testing.assert_close(model(**read, use_cache=True).logits, model(**read, use_cache=False).logits)


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize("kind", ["tokens", "frames"])
def test_the_posterior_of_a_segment_has_seen_all_of_it(kind, both_ways):
    """And read in one direction nothing behind it."""
    make = make_hierarchical_model if kind == "tokens" else make_hierarchical_frame_model
    model = make(segment_length=4, bidirectional_encoder=both_ways)
    first = int(kind == "tokens")  # the mark is of no segment
    x = torch.randint(4, 40, (1, 12 + first)) if kind == "tokens" else torch.randn(1, 12, 3)
    _, z = model.split_latents(model.encode(x).mode)  # [1, 3, D]
    for step in range(12):
        other = x.clone()
        other[0, first + step] = 1 if kind == "tokens" else 0
        moved = (model.split_latents(model.encode(other).mode)[1] != z).any(-1)[0].tolist()
        assert moved == [both_ways or step // 4 <= segment for segment in range(3)], step


@pytest.mark.parametrize("make", [make_hierarchical_model, make_hierarchical_frame_model])
def test_what_is_below_a_given_whole_is_drawn_where_the_sequence_is(make, monkeypatch):
    """And where the likeliest is taken it is the prior's mean."""
    model, done = make(segment_length=3), []
    complete, size = model.complete_latents, model.config.latent_size
    monkeypatch.setattr(model, "complete_latents", lambda *args: done.append(complete(*args)) or done[-1])
    for do_sample in (True, True, False, False):
        model.generate(latents=torch.ones(2, size), max_length=9, do_sample=do_sample)
    first, second, mean, again = (z[:, size:] for z in done)
    assert not torch.isclose(first, second).any() and torch.equal(mean, again)


def test_words_are_dropped_in_training_only():
    decoder = make_hierarchical_model(segment_length=3, word_dropout=0.5).model.decoder
    z, ids = torch.randn(4, 6), make_tokens()["input_ids"]
    for training in (True, False):
        decoder.train(training)
        outputs = [decoder(z, ids)[0] for _ in range(2)]
        assert torch.equal(*outputs) != training


def test_many_samples_are_the_same_a_few_at_a_time(model, batch, monkeypatch):
    """In parts of two, two and one; by default a hundred of a batch do not go through the conductor at once."""
    seeds = lambda: [torch.Generator().manual_seed(row) for row in range(4)]  # noqa: E731
    whole = model.evaluation_terms(5, seeds(), **batch)
    two = 2 * model.encode(**batch).mean.numel() * model.config.conductor_hidden_size
    monkeypatch.setattr("hf_vrae.modeling.hierarchical_latents.MAX_AT_ONCE", two)
    parts = model.evaluation_terms(5, seeds(), **batch)
    for name in ("log_weights", "reconstruction", *(name for name in whole if name.startswith("kl"))):
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-4, msg=name)
