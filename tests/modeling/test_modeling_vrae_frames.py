"""The VRAE over frames as a probability model: exact where it can be, blind to padding, in the caller's units."""

import copy

import pytest
import torch
from torch.distributions import MultivariateNormal
from transformers import AutoModel, AutoModelForSeq2SeqLM, set_seed

from hf_vrae import VRAEConfig, VRAEForFrameGeneration, VRAEForSequenceGeneration
from hf_vrae.modeling.distributions import DiagonalGaussian
from hf_vrae.modeling.heads import raw_log_prob_offset
from tests.models import FRAME_VARIANTS, SCALING, make_frame_model, make_frames

NAN = float("nan")
DRY = {"dropout": 0.0, "word_dropout": 0.0}


@pytest.fixture(params=FRAME_VARIANTS.values(), ids=FRAME_VARIANTS.keys())
def model(request):
    return make_frame_model(**request.param)


@pytest.fixture
def batch(model):
    return make_frames(model)


def of_input(batch):
    return {name: batch[name] for name in ("input_features", "attention_mask")}


def spread(batch, columns, width=11):
    """The same series with padding before, between or after their frames."""
    frames, mask = torch.zeros(4, width, 3), torch.zeros(4, width, dtype=torch.long)
    labels = torch.full((4, width, 3), NAN)
    frames[:, columns], mask[:, columns] = batch["input_features"], batch["attention_mask"]
    labels[:, columns] = batch["labels"]
    return {"input_features": frames, "attention_mask": mask, "labels": labels}


def trained_once(model, batch, seed=3):
    set_seed(seed)
    model.zero_grad()
    outputs = model.train()(**batch)
    outputs.loss.backward()
    return outputs, {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("columns", [range(4, 11), range(7), (0, 2, 3, 5, 8, 9, 10)], ids=["left", "right", "holes"])
def test_padding_anywhere_changes_nothing(model, batch, columns):
    model = model.double()
    columns = list(columns)
    padded = spread(batch, columns)
    wanted, got = model(**batch), model(**padded)
    torch.testing.assert_close([got.loss, got.latents], [wanted.loss, wanted.latents])
    torch.testing.assert_close(got.predictions[:, columns], wanted.predictions)
    gradients = []
    for outputs in (wanted, got):
        model.zero_grad()
        outputs.loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])
    wanted, got = model.generate(**of_input(batch)), model.generate(**of_input(padded))
    length = wanted.sequences.shape[1]
    torch.testing.assert_close(got.sequences[:, :length], wanted.sequences)


def test_what_stands_in_padding_is_not_looked_at(model, batch):
    wanted = model(**batch)
    padding = batch["attention_mask"].unsqueeze(-1) == 0
    batch["input_features"] = batch["input_features"].masked_fill(padding, 17.0)
    batch["labels"] = batch["labels"].masked_fill(padding, 17.0)
    torch.testing.assert_close(model(**batch).loss, wanted.loss)


def test_the_frame_before_is_read_and_no_later_one(model, batch):
    changed = copy.deepcopy(batch)
    changed["labels"][0, 4] = 1 - changed["labels"][0, 4].clamp(0, 1)
    given = {"latents": torch.randn(4, model.config.latent_size), "attention_mask": batch["attention_mask"]}
    before, after = (model(labels=b["labels"], **given).predictions for b in (batch, changed))
    torch.testing.assert_close(after[0, :5], before[0, :5])
    assert torch.allclose(after[0, 5], before[0, 5]) != model.config.reads_the_past


def test_loss_is_the_bound_and_no_larger_than_the_importance_weighted_one(model, batch):
    outputs = model(**batch)
    torch.testing.assert_close(outputs.loss, outputs.reconstruction_loss + outputs.kl)
    torch.manual_seed(1)
    with torch.no_grad():
        log_weights = model.log_importance_weights(500, **batch)  # [K, B]
    elbo, bound = log_weights.mean(0), log_weights.logsumexp(0) - torch.tensor(500.0).log()
    assert (elbo <= bound + 1e-4).all()
    if model.config.latent_size:
        assert (elbo < bound - 1e-3).any()
    # Labels default to the input.
    again = model.log_importance_weights(latents=torch.zeros(1, 4, model.config.latent_size), **of_input(batch))
    given = model.log_importance_weights(latents=torch.zeros(1, 4, model.config.latent_size), **batch)
    torch.testing.assert_close(again, given)


@pytest.mark.parametrize("missing", [False, True])
def test_likelihood_of_a_linear_model_by_hand(missing):
    """x_t = W z + b + noise, and q the true posterior: every importance weight is log p(x) itself."""
    model = make_frame_model(latent_size=1, latent_conditioning=["output"]).double()
    with torch.no_grad():
        for parameter in model.model.decoder.rnn.parameters():
            parameter.zero_()  # h = 0, whatever was read
        projection = model.head.projection
        projection.weight[3:] = 0
        projection.bias.copy_(torch.randn(6))
        w = projection.weight[:3, -1]
        loc, scale = projection.bias[:3], torch.nn.functional.softplus(projection.bias[3:]) + model.config.min_scale
    x = torch.randn(1, 5, 3).double()
    seen = torch.ones(5, 3, dtype=torch.bool)
    if missing:
        seen[0, 1] = seen[3] = False
    w, loc, scale = (t.expand(5, 3)[seen] for t in (w, loc, scale))
    marginal = MultivariateNormal(loc, w.outer(w) + torch.diag(scale.square()))
    variance = 1 / (1 + (w / scale).square().sum())
    mean = variance * (w * (x[0][seen] - loc) / scale.square()).sum()
    q = DiagonalGaussian(mean.view(1, 1), variance.log().view(1, 1))
    weights = model.log_importance_weights(3, input_features=x.masked_fill(~seen, NAN), posterior=q)
    torch.testing.assert_close(weights, marginal.log_prob(x[0][seen]).expand(3, 1))


def test_one_step_lowers_the_loss_and_every_gradient_is_finite(model, batch):
    for dropout in [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]:
        dropout.p = 0.0
    model.config.word_dropout = 0.0
    before, gradients = trained_once(model, batch)
    assert before.predictions is None
    for name, gradient in gradients.items():
        assert gradient.isfinite().all() and gradient.abs().max() > 0, name
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter -= 1e-3 * gradients[name]
    assert trained_once(model, batch)[0].loss < before.loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, gradients = trained_once(model, batch)
    assert outputs.loss.dtype == outputs.kl.dtype == torch.float32
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_saved_and_loaded_it_is_the_same(model, batch, tmp_path):
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    assert type(again) is VRAEForFrameGeneration
    torch.testing.assert_close(again(**batch).loss, model(**batch).loss, rtol=0, atol=0)


def test_the_class_follows_from_the_configuration(tmp_path):
    assert type(AutoModel.from_config(VRAEConfig(input_size=2))) is VRAEForFrameGeneration
    assert type(AutoModel.from_config(VRAEConfig(vocab_size=9))) is VRAEForSequenceGeneration
    make_frame_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`input_size` 3 is of frames: take `VRAEForFrameGeneration`"):
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`VRAEForFrameGeneration` needs `input_size`"):
        VRAEForFrameGeneration(VRAEConfig())


# Generation.


def record(model, seen):
    return model.head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))


@pytest.mark.parametrize("do_sample", [False, True])
def test_step_by_step_is_the_whole_decoder(model, batch, do_sample):
    """What the head read at each step, against one pass over the frames that came out."""
    latents, steps, whole = torch.randn(4, model.config.latent_size), [], []
    beginning = batch["labels"][:, :3]
    with record(model, steps):
        generated = model.generate(latents=latents, lengths=[9, 4, 3, 6], do_sample=do_sample, beginning=beginning)
    mask = torch.arange(9) < generated.lengths.unsqueeze(1)
    assert generated.lengths.tolist() == [9, 4, 3, 6] and generated.sequences.shape == (4, 9, 3)
    assert generated.sequences.isfinite().all() and (generated.sequences[~mask] == 0).all()
    given = ~beginning.isnan()
    torch.testing.assert_close(generated.sequences[:, :3][given], beginning[given])
    with record(model, whole):
        outputs = model(latents=latents, labels=generated.sequences, attention_mask=mask)
    torch.testing.assert_close(torch.stack(steps, 1)[mask], whole[0][mask], rtol=1e-4, atol=1e-5)
    if model.config.head in ("gaussian", "full_gaussian") and not do_sample:
        new = mask.clone()
        new[:, :3] = False
        torch.testing.assert_close(generated.sequences[new], outputs.predictions[new], rtol=1e-4, atol=1e-5)


def test_an_input_is_reconstructed_from_its_posterior_mean(model, batch):
    given = of_input(batch)
    generated = model.generate(**given)
    if not model.config.predict_length:
        assert torch.equal(generated.lengths, batch["attention_mask"].sum(1))
    by_latents = model.generate(latents=model.encode(**given).mode, lengths=generated.lengths)
    torch.testing.assert_close(by_latents.sequences, generated.sequences)
    marked = given | {"attention_mask": 2.0 * given["attention_mask"]}  # nonzero where frames are real
    assert torch.equal(model.generate(**marked).lengths, generated.lengths)
    for wrong in ({"input_features": [[[1.0]]]}, {**given, "beginning": [[[1.0]]]}):
        with pytest.raises(ValueError, match="` must be a tensor of floats, got list"):
            model.generate(**wrong)


def test_beginnings_of_different_lengths_in_one_batch():
    model = make_frame_model(**SCALING)
    latents, beginning = torch.randn(2, 4), torch.randn(2, 4, 3)
    beginning[0, 2:] = NAN
    together = model.generate(latents=latents, max_length=6, beginning=beginning).sequences
    alone = model.generate(latents=latents[:1], max_length=6, beginning=beginning[:1, :2]).sequences
    torch.testing.assert_close(together[:1], alone)
    one_for_all = model.generate(latents=latents, max_length=6, beginning=beginning[1:]).sequences
    torch.testing.assert_close(one_for_all[1], together[1])


def test_learnt_lengths():
    model = make_frame_model(predict_length=True, latent_conditioning=["output"])
    features = torch.randn(3, 5, model.length_head.in_features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model._last_logit(features)
    assert torch.equal(logits, model._last_logit(features))
    latents = torch.randn(3, 4)
    with torch.no_grad():
        model.length_head.weight.zero_()
        model.length_head.bias.fill_(-1.0)  # each frame is the last one with this chance:
    p = torch.tensor(-1.0).sigmoid()
    x = torch.randn(3, 5, 3)
    mask = (torch.arange(5) < torch.tensor([[5], [1], [3]])).long()
    target = model.target(x, attention_mask=mask)
    learnt = model._log_likelihood(latents.unsqueeze(0), target)[0]
    model.config.predict_length = False
    without = model._log_likelihood(latents.unsqueeze(0), target)[0]
    model.config.predict_length = True
    expected = p.log() + (mask.sum(1) - 1) * (1 - p).log()
    torch.testing.assert_close(learnt - without, expected)
    assert model.generate(latents=latents, max_length=4).lengths.tolist() == [4, 4, 4]  # p < 0.5: it never ends
    set_seed(0)
    lengths = model.generate(latents=torch.randn(2000, 4), max_length=50, do_sample=True).lengths.float()
    assert lengths.mean().item() == pytest.approx(1 / p.item(), rel=0.05)
    with torch.no_grad():
        model.length_head.bias.fill_(1.0)
    assert model.generate(latents=latents, max_length=4).sequences.shape == (3, 1, 3)
    # No row ends inside its beginning, and lengths that are given are kept.
    beginning = x[:, :2].clone()
    beginning[0, 1] = NAN
    generated = model.generate(latents=latents, max_length=4, beginning=beginning)
    assert generated.lengths.tolist() == [1, 2, 2]
    assert model.generate(latents=latents, lengths=torch.tensor([3, 1, 2])).lengths.tolist() == [3, 1, 2]


def test_hidden_states_and_encoder_outputs(model, batch):
    outputs = model(**of_input(batch), output_hidden_states=True)
    assert len(outputs.decoder_hidden_states) == 1 + model.config.decoder_layers and outputs.loss is None
    assert outputs.decoder_hidden_states[0].shape == (4, 7, 8)
    torch.testing.assert_close(outputs.latents, model.encode(**batch).mode)
    encoder_outputs = model._encoder_outputs(**of_input(batch))
    again = model(**batch, encoder_outputs=encoder_outputs)
    torch.testing.assert_close(again.predictions, outputs.predictions)
    torch.testing.assert_close(again.kl, model(**batch).kl)


# Units, and what is missing.


def test_raw_units_outside_and_scaled_ones_inside():
    torch.manual_seed(0)
    scaled = make_frame_model()
    raw = make_frame_model(**SCALING)
    raw.load_state_dict(scaled.state_dict())
    mean, scale = (torch.tensor(SCALING[name]) for name in ("input_mean", "input_scale"))
    batch = make_frames(scaled)
    in_raw = {name: batch[name] * scale + mean for name in ("input_features", "labels")}
    wanted, got = scaled(**batch), raw(**(batch | in_raw))
    torch.testing.assert_close(got.loss, wanted.loss)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(got.predictions[real], (wanted.predictions * scale + mean)[real])
    assert (got.predictions[~real] == 0).all()
    given = {"latents": got.latents, "lengths": [7, 5, 1, 6]}
    wanted, got = scaled.generate(**given).sequences, raw.generate(**given).sequences
    torch.testing.assert_close(got[real], (wanted * scale + mean)[real])
    # And the density of raw frames: that of a head whose places and scales are raw.
    normal = scaled.head(torch.randn(4, 7, 8 + 4))
    offset = raw_log_prob_offset(in_raw["labels"], raw.config)
    by_hand = type(normal)(normal.loc * scale + mean, normal.scale * scale).log_prob(in_raw["labels"])
    torch.testing.assert_close(normal.log_prob(batch["labels"]) + offset, by_hand)


def test_missing_is_not_zero_and_scores_nothing(model, batch):
    x, mask = torch.zeros(1, 4, 3), torch.ones(1, 4)
    one_less = x.clone()
    one_less[0, 1, 2] = NAN
    if model.config.latent_size:
        assert not torch.allclose(model.encode(one_less, mask).mean, model.encode(x, mask).mean)
    z = torch.randn(1, 1, model.config.latent_size)
    nothing = model._log_likelihood(z, model.target(torch.full_like(x, NAN), attention_mask=mask))
    if not model.config.predict_length:
        assert nothing.item() == 0
    # Its likelihood is that of what is seen: later frames left out are as if they were not there.
    cut = x.clone()
    cut[0, 2:] = NAN
    a = model._log_likelihood(z, model.target(cut, attention_mask=mask))
    b = model._log_likelihood(z, model.target(x[:, :2]))
    if not model.config.predict_length:
        torch.testing.assert_close(a, b)
    terms = model.evaluation_terms(2, **batch)
    assert terms["num_steps"].tolist() == [7, 4, 1, 6]  # of the second row one frame is missing, all of it


def test_evaluation_terms(model, batch):
    generators = [torch.Generator().manual_seed(row) for row in range(4)]
    terms = model.evaluation_terms(3, generators, **batch)
    assert ("raw_offset" in terms) == (model.config.input_mean is not None)
    shapes = {name: tuple(term.shape) for name, term in terms.items() if name not in ("posterior", "raw_offset")}
    assert shapes == {
        "log_weights": (3, 4),
        "reconstruction": (4,),
        "kl": (4,),
        "num_steps": (4,),
        "mean": (4, model.config.latent_size),
        "latents": (4, model.config.latent_size),
    }
    row = {name: tensor[2:3, :1] for name, tensor in batch.items()}
    alone = model.evaluation_terms(3, [torch.Generator().manual_seed(2)], **row)
    for name, dim in (("log_weights", 1), ("reconstruction", 0), ("kl", 0)):
        torch.testing.assert_close(alone[name], terms[name].narrow(dim, 2, 1), rtol=1e-5, atol=1e-5)


# Training.


def test_the_importance_weighted_loss_is_its_bound():
    model = make_frame_model(num_train_samples=5, **DRY)
    batch = make_frames(model)
    model.kl_weight = 0.3
    outputs, gradients = trained_once(model, batch)
    set_seed(3)
    q = model.encode(**batch)
    sample = q.rsample((5,))
    z = sample.detach().requires_grad_()
    log_p = model._log_likelihood(z, model.target(**batch))
    log_weights = log_p + 0.3 * (model.prior().log_prob(z) - q.detach().log_prob(z))
    bound = -(log_weights.logsumexp(0) - torch.tensor(5.0).log()).mean()
    torch.testing.assert_close(outputs.loss, bound)
    torch.testing.assert_close(outputs.reconstruction_loss, -log_p.mean())
    model.zero_grad()
    bound.backward()
    sample.backward(z.grad * (0.7 + 0.3 * log_weights.detach().softmax(0).unsqueeze(-1)))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_what_is_charged_in_training():
    model = make_frame_model(free_bits=1.0, **DRY)
    batch = make_frames(model)
    outputs, _ = trained_once(model, batch)
    assert outputs.loss >= outputs.reconstruction_loss + 4.0  # of four dimensions
    model.kl_capacity, model.kl_weight = 50.0, 3.0
    outputs, _ = trained_once(model, batch)
    torch.testing.assert_close(outputs.loss, outputs.reconstruction_loss + 3 * (outputs.kl - 50).abs())
    model = make_frame_model(mmd_weight=2.0, **DRY)
    outputs, _ = trained_once(model, batch)
    assert outputs.loss != outputs.reconstruction_loss + outputs.kl


@pytest.mark.parametrize("head", ["gaussian", "nade"])
def test_refined_posteriors_are_nearer_to_the_true_one(head):
    model = make_frame_model(head=head, svi_steps=2, kernels="plain", **DRY)
    batch = make_frames(model)
    q = model.encode(**batch)
    better = model.refine(q, model.target(**batch), 20)
    set_seed(0)
    before, after = (-model.log_importance_weights(200, posterior=p, **batch).mean(0) for p in (q, better))
    assert after.mean() < before.mean() - 0.1
    _, gradients = trained_once(model, batch)  # through the steps
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_a_decoder_is_made_anew_and_the_encoder_kept():
    model = make_frame_model(predict_length=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(3)
    before = copy.deepcopy(model.state_dict())
    model.reset_decoder()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("model.encoder"), name
    assert model.get_encoder() is model.model.encoder


def test_frames_that_the_decoder_reads_are_dropped_or_its_own(monkeypatch):
    model = make_frame_model(dropout=0.0, word_dropout=0.5).train()
    batch = {name: tensor.repeat(100, 1, *[1] * (tensor.dim() - 2)) for name, tensor in make_frames(model).items()}
    target, latents, read = model.target(**batch), torch.randn(400, 4), []
    decoder, embed = model.model.decoder, model.model.decoder.read_frames
    monkeypatch.setattr(decoder, "read_frames", lambda f, first: read.append((f, first)) or embed(f, first))
    model._features(latents, target)
    frames, first = read[-1]
    assert torch.equal(first, torch.arange(7).expand(400, 7) == 0)
    whole = target.values[:, :-1].isfinite().all(-1) & target.mask[:, 1:]  # what a later frame could read
    assert frames[:, 1:][whole].isnan().all(-1).float().mean().item() == pytest.approx(0.5, abs=0.05)
    kept = whole & ~frames[:, 1:].isnan().all(-1)
    assert torch.equal(frames[:, 1:][kept], target.values[:, :-1][kept])
    model.eval()._features(latents, target)
    assert torch.equal(read[-1][0][:, 1:][whole], target.values[:, :-1][whole])
    # Its own frames: of a model that always says 7, or nearly.
    model.train().config.word_dropout = 0.0
    with torch.no_grad():
        model.head.projection.weight.zero_()
        model.head.projection.bias.copy_(torch.tensor([7.0] * 3 + [-20.0] * 3))
    model.sampling_probability = 0.5
    model._features(latents, target)
    frames = read[-1][0]
    own = ((frames - 7).abs() < 0.1).all(-1)[:, 1:]
    assert own[whole].float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(frames[:, 1:][whole & ~own], target.values[:, :-1][whole & ~own])


def test_a_frame_that_the_model_says_is_read_a_step_later(monkeypatch):
    model = make_frame_model()
    target, said = model.target(**make_frames(model)), torch.randn(4, 7, 3)
    monkeypatch.setattr("hf_vrae.modeling.heads.GaussianFrames.sample", lambda self: said)
    model.sampling_probability = 1.0
    mixed = model._mix_in_own_frames(target.values, torch.zeros(4, 7, 12), target)
    later = target.mask[:, 1:]
    assert torch.equal(mixed[:, 1:][later], said[:, :-1][later])


# Bad input.


@pytest.mark.parametrize(
    "head, change, message",
    [
        ("gaussian", {"input_features": torch.zeros(2, 5, 4)}, "`input_size` 3, got .2, 5, 4."),
        ("gaussian", {"input_features": torch.zeros(2, 0, 3)}, "time 1 or more"),
        ("gaussian", {"input_features": torch.zeros(2, 5, 3, dtype=torch.long)}, "tensor of floats, got torch.int64"),
        ("gaussian", {"attention_mask": torch.ones(2, 4)}, "`attention_mask` must have .* .2, 5., got .2, 4."),
        ("gaussian", {"attention_mask": torch.ones(2, 5) * torch.tensor([[1], [0]])}, "row 1 has no frame"),
        ("gaussian", {"labels": torch.zeros(2, 4, 3)}, "`attention_mask` must have .* `labels`, .2, 4."),
        (
            "gaussian",
            {"input_features": torch.full((2, 5, 3), torch.inf)},
            "`input_features` must be finite.* got inf",
        ),
        ("bernoulli", {"labels": torch.full((2, 5, 3), 0.5)}, "`labels` must be 0 or 1.* got 0.5"),
        ("nade", {"input_features": torch.full((2, 5, 3), 2.0)}, "`input_features` must be 0 or 1.* got 2"),
        ("categorical", {"input_features": torch.full((2, 5, 3), 5.0)}, r"integers in \[0, 5\).* got 5"),
        ("categorical", {"input_features": torch.full((2, 5, 3), 0.5)}, "integers in .* got 0.5"),
        ("logistic_mixture", {"labels": torch.full((2, 5, 3), 2.0)}, r"in \[-1, 1\] without `input_mean`.* got 2"),
        (
            "gaussian",
            {"input_features": None, "latents": torch.zeros(3, 4)},
            "`labels` must have a row for each of the 3 latents, got 2",
        ),
        ("gaussian", {"latents": torch.zeros(2, 4)}, "`latents` take the place of the encoder"),
        ("gaussian", {"input_features": None, "latents": torch.zeros(2, 5)}, "`latents` must have shape"),
        ("gaussian", {"input_features": None, "labels": None}, "Pass `input_features`"),
    ],
)
def test_bad_input_is_named(head, change, message):
    model = make_frame_model(head=head)
    x = torch.zeros(2, 5, 3)
    good = {"input_features": x, "attention_mask": torch.ones(2, 5), "labels": x}
    model(**good)
    with pytest.raises(ValueError, match=message):
        model(**(good | change))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "no input to take a length from"),
        ({"max_length": 0}, "a length of 1 or more"),
        ({"lengths": [3]}, r"`lengths` must be \[2\]"),
        ({"lengths": [3, 1], "beginning": torch.zeros(2, 2, 3)}, "at most the shortest length 1"),
        ({"max_length": 3, "beginning": torch.zeros(3, 1, 3)}, r"`beginning` must be \[2 or 1, S, F\]"),
        ({"max_length": 3, "beginning": torch.zeros(2, 1, 2)}, "`beginning` must have shape"),
        ({"max_length": 3, "input_features": torch.zeros(2, 5, 3)}, "Pass one of `input_features`"),
        ({"max_length": 3, "latents": torch.full((2, 4), torch.nan)}, "finite numbers; row 0"),
    ],
)
def test_bad_arguments_of_generate_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_frame_model().generate(**{"latents": torch.zeros(2, 4)} | arguments)


@pytest.mark.parametrize("decoder_type", ["rnn", "transformer"])
def test_without_autoregression_a_frame_depends_on_latents_alone(decoder_type):
    model = make_frame_model(decoder_type=decoder_type, autoregressive=False, **DRY)
    batch = make_frames(model)
    z = torch.randn(4, model.config.latent_size)
    given = {"latents": z, "attention_mask": torch.ones(4, 7)}
    predictions = [model(labels=torch.rand(4, 7, 3), **given).predictions for _ in range(2)]
    torch.testing.assert_close(*predictions)
    torch.testing.assert_close(model.generate(latents=z, max_length=7).sequences, predictions[0])
    outputs, gradients = trained_once(model, batch)
    assert outputs.loss.isfinite() and all(gradient.isfinite().all() for gradient in gradients.values())
