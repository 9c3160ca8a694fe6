"""What the model does against a collapsed posterior while it trains, each against the plain form or by hand."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import kl_divergence

from hf_vrae import VRAEForSequenceGeneration
from hf_vrae.modeling.distributions import DiagonalGaussian
from hf_vrae.modeling.inference import refine
from hf_vrae.modeling.kernels import Dropout
from tests.modeling.test_modeling_vrnn import make_model as make_vrnn
from tests.models import CONDITIONAL, LANGUAGE_MODELS, make_frame_model, make_frames, make_model

DRY = {"dropout": 0.0, "word_dropout": 0.0}  # nothing random but z


def labels_of(model, batch):
    return model.labels_from_input_ids(**batch)


def trained_once(model, batch, seed=3):
    torch.manual_seed(seed)
    model.zero_grad()
    outputs = model.train()(**batch, labels=labels_of(model, batch))
    outputs.loss.backward()
    return outputs, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("kl_weight", [1.0, 0.3])
@pytest.mark.parametrize("posterior", ["gaussian", "vmf"])
def test_the_importance_weighted_loss_is_its_bound(batch, posterior, kl_weight):
    model = make_model(num_train_samples=5, posterior=posterior, **DRY)
    model.kl_weight = kl_weight
    outputs, gradients = trained_once(model, batch)
    torch.manual_seed(3)
    q = model.encode(**batch)
    sample = q.rsample((5,))
    z = sample.detach().requires_grad_()
    log_p = torch.stack([model._log_likelihood(part, labels_of(model, batch))[0] for part in z.split(1)])
    log_ratio = q.detach().log_prob(z) - model.prior().log_prob(z)
    log_ratio = log_ratio.detach() if posterior == "vmf" else log_ratio  # log q(z) stays as z turns with the mean
    log_weights = log_p - kl_weight * log_ratio
    bound = -(log_weights.logsumexp(0) - torch.tensor(5.0).log()).mean()
    torch.testing.assert_close(outputs.loss, bound)
    torch.testing.assert_close(outputs.kl, kl_divergence(q, model.prior()).mean())
    torch.testing.assert_close(outputs.posterior_mean, model.get_encoder()(**batch).mean)
    torch.testing.assert_close(outputs.reconstruction_loss, -log_p.mean())
    # The decoder's gradient is that of the bound itself, the encoder's is doubly reparameterised.
    model.zero_grad()
    bound.backward()
    once_more = 1 if posterior == "vmf" else 1 - kl_weight + kl_weight * log_weights.detach().softmax(0).unsqueeze(-1)
    sample.backward(z.grad * once_more)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_one_step_on_the_importance_weighted_loss_lowers_it(batch):
    model = make_model(num_train_samples=4, **DRY)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before, _ = trained_once(model, batch)
    optimizer.step()
    assert trained_once(model, batch)[0].loss < before.loss


@pytest.mark.parametrize("options", [{"layer_norm": True}, {"num_train_samples": 4}, {"rnn_type": "gru"}], ids=str)
def test_a_frozen_decoder_passes_on_the_gradient(options, batch, monkeypatch):
    monkeypatch.setattr("hf_vrae.modeling.kernels.PACKED_FROM", 0)
    found = []
    for kernels in ("auto", "plain"):
        torch.manual_seed(1)
        model = make_model(kernels=kernels, **options, **DRY)
        model.model.decoder.requires_grad_(False)
        _, gradients = trained_once(model, batch)
        assert gradients["lm_head.weight"] is not None and gradients["model.decoder.embed_tokens.weight"] is None
        found.append({name: g for name, g in gradients.items() if "encoder" in name})
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"num_train_samples": 3}, {"svi_steps": 2}], ids=str)
def test_a_frozen_encoder(options, batch):
    model = make_model(kernels="plain", **options, **DRY)
    model.model.encoder.requires_grad_(False)
    outputs, gradients = trained_once(model, batch)
    assert outputs.loss.isfinite() and gradients["lm_head.weight"].abs().sum() > 0


def test_mmd_under_one_condition_for_all_rows(batch, monkeypatch):
    from hf_vrae.modeling import modeling_latent

    seen, original = [], modeling_latent.maximum_mean_discrepancy
    monkeypatch.setattr(
        modeling_latent, "maximum_mean_discrepancy", lambda z, p: (seen.append((z.shape, p.shape)), original(z, p))[1]
    )
    model = make_model(mmd_weight=1.0, condition_labels={"kind": ["a", "b"]}, **DRY).train()
    for ids in (torch.zeros(1, 1, dtype=torch.long), torch.zeros(4, 1, dtype=torch.long)):
        model(**batch, labels=labels_of(model, batch), class_ids=ids)
    assert seen == [((4, model.config.latent_size),) * 2] * 2


def test_mmd_and_bag_of_words_are_of_the_training_loss_only(batch, monkeypatch):
    monkeypatch.setattr("hf_vrae.modeling.modeling_latent.maximum_mean_discrepancy", lambda z, p: z.sum())
    model = make_model(mmd_weight=2.0, bag_of_words_weight=0.5, **DRY)
    for rows in (4, 1):  # one z alone has no discrepancy
        outputs, _ = trained_once(model, {name: tensor[:rows] for name, tensor in batch.items()})
        mmd = outputs.latents.sum() if rows > 1 else 0.0
        log_p = model.bag_of_words(outputs.latents).log_softmax(-1)
        words = [row[(row >= 4)] for row in batch["input_ids"][:rows]]  # no marks
        bag = -torch.stack([log_p[i, ids].sum() for i, ids in enumerate(words)]).mean()
        expected = outputs.reconstruction_loss + outputs.kl + 2 * mmd + 0.5 * bag
        torch.testing.assert_close(outputs.loss, expected)
    outputs = model.eval()(**batch, labels=labels_of(model, batch))
    torch.testing.assert_close(outputs.loss, outputs.reconstruction_loss + outputs.kl)
    model.config.eos_token_id = None  # then no word is the mark
    assert model.train()(**batch, labels=labels_of(model, batch)).loss.isfinite()


def test_an_importance_weighted_loss_by_plain_kernels_can_be_differentiated_twice(batch):
    model = make_model(num_train_samples=3, kernels="plain", **DRY).train()
    weight = model.lm_head.weight
    (gradient,) = torch.autograd.grad(model(**batch, labels=labels_of(model, batch)).loss, weight, create_graph=True)
    assert torch.autograd.grad(gradient.square().sum(), weight)[0].abs().sum() > 0


def test_a_bag_of_words_grows_with_the_vocabulary_and_starts_anywhere(batch, tmp_path):
    make_model().save_pretrained(tmp_path)
    model = VRAEForSequenceGeneration.from_pretrained(tmp_path, bag_of_words_weight=1.0)
    assert all((layer.bias == 0).all() for layer in model.bag_of_words if isinstance(layer, nn.Linear))
    model.resize_token_embeddings(50)
    larger = batch | {"input_ids": batch["input_ids"].masked_fill(batch["input_ids"] > 30, 48)}
    assert model.train()(**larger, labels=labels_of(model, larger)).loss.isfinite()
    model.save_pretrained(tmp_path / "larger")
    again = VRAEForSequenceGeneration.from_pretrained(tmp_path / "larger")
    torch.testing.assert_close(again.bag_of_words[-1].weight, model.bag_of_words[-1].weight)


def test_a_capacity_takes_the_place_of_the_kl(batch):
    model = make_model(**DRY)
    model.kl_weight, model.kl_capacity = 3.0, 50.0
    outputs, _ = trained_once(model, batch)
    torch.testing.assert_close(outputs.loss, outputs.reconstruction_loss + 3 * (outputs.kl - 50).abs())


def test_scheduled_sampling_mixes_in_what_the_model_says(batch):
    model = make_model(**DRY).train()
    labels, latents = labels_of(model, batch), torch.randn(4, 6)
    inputs = model.prepare_decoder_input_ids_from_labels(labels)
    with torch.no_grad():  # a model that always says 7
        model.lm_head.weight.zero_()
        model.model.decoder.rnn.layers[0].bias_ih_l0.fill_(3)
        hidden, _, _ = model.model.decoder(latents, inputs, labels != -100)
        model.lm_head.weight[7] = 1000 * model.features(hidden, latents)[0, 0].sign()
        model.lm_head.weight[7, 16:] = 0
    model.sampling_probability = 1.0
    real = labels != -100
    mixed = model._mix_in_own_words(inputs, real, labels, latents)
    first = real & (real.cumsum(1) == 1)
    assert (mixed[first] == model.config.decoder_start_token_id).all()
    assert (mixed[real & ~first] == 7).all()
    assert torch.equal(mixed[~real], inputs[~real])
    model.sampling_probability = 0.5
    many = (t.repeat(99, 1) for t in (inputs, real, labels, latents))
    share = (model._mix_in_own_words(*many) == 7).sum()
    assert 0.4 < share / (99 * (real & ~first).sum()) < 0.6


def test_what_the_model_says_is_read_a_step_later(monkeypatch):
    model = make_model(**DRY).train()
    model.sampling_probability = 1.0
    labels = torch.tensor([[5, 6, 3, -100], [-100, 7, -100, 3]])
    monkeypatch.setattr("hf_vrae.modeling.modeling_vrae.draw", lambda scores: torch.tensor([15, 16, 17, 18, 19]))
    read = model.prepare_decoder_input_ids_from_labels(labels)
    mixed = model._mix_in_own_words(read, labels != -100, labels, torch.randn(2, 6))
    assert mixed[0, :3].tolist() == [2, 15, 16] and mixed[1, [1, 3]].tolist() == [2, 18]


def test_what_the_model_says_is_said_behind_all_that_it_reads(monkeypatch):
    """A prompt that is not scored is read all the same."""
    model = make_model(**DRY).train()
    model.sampling_probability = 1.0
    labels, scores = torch.tensor([[-100, -100, 7, 3]]), {}
    for prompt in (5, 15):
        read = torch.tensor([[2, prompt, 6, 7]])
        for mask in (torch.ones_like(read), labels != -100):
            monkeypatch.setattr("hf_vrae.modeling.modeling_vrae.draw", lambda s, p=prompt, m=mask: scores.setdefault(
                (p, int(m.sum())), s).argmax(-1))  # fmt: skip
            model(latents=torch.zeros(1, 6), decoder_input_ids=read, decoder_attention_mask=mask, labels=labels)
    assert torch.equal(scores[5, 2], scores[15, 2]) and not torch.equal(scores[5, 4], scores[15, 4])
    model(latents=torch.zeros(1, 6), decoder_input_ids=read, labels=labels)  # by default all that is no padding
    with pytest.raises(ValueError, match="`labels` must say what follows each step"):
        model(latents=torch.zeros(1, 6), decoder_input_ids=read[:, :3], labels=labels)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("num_train_samples", {"num_train_samples": 3}),
        ("svi_steps", {"svi_steps": 2, "kernels": "plain"}),
        ("label_classifier", CONDITIONAL["semi-supervised"]),
    ],
)
def test_losses_that_read_the_labels_refuse_other_decoder_inputs(name, options, batch):
    model = make_model(**DRY, **options).train()
    labels = labels_of(model, batch)
    read, under = model.prepare_decoder_input_ids_from_labels(labels), {}
    if model.config.condition_labels:
        under = {"class_ids": torch.zeros(4, 1, dtype=torch.long)}
    assert model(**batch, **under, labels=labels).loss.isfinite()
    embeds = model.model.decoder.embed_tokens(read)
    for given in ({"decoder_input_ids": read}, {"decoder_inputs_embeds": embeds}):
        with pytest.raises(ValueError, match=f"`{name}` .* leave out"):
            model(**batch, **under, labels=labels, **given)
        assert model.eval()(**batch, **under, labels=labels, **given).loss.isfinite()
        model.train()


@pytest.mark.parametrize("change", [torch.Tensor.int, lambda labels: labels.masked_fill(labels > 0, -100)])
def test_scheduled_sampling_of_labels_of_32_bits_and_of_none(change, batch):
    model = make_model(**DRY).train()
    labels, model.sampling_probability = change(labels_of(model, batch)), 1.0
    assert model(**batch, labels=labels).loss.isfinite()


def test_refined_posteriors_are_nearer_to_the_true_one(batch):
    model = make_model(**DRY)
    q, labels = model.encode(**batch), labels_of(model, batch)
    better = model.refine(q, labels, 20)

    def negative_elbo(posterior):
        torch.manual_seed(1)
        z = posterior.sample((64,))
        return -model.log_importance_weights(latents=z, posterior=posterior, **batch).mean(0)

    before, after = negative_elbo(q), negative_elbo(better)
    assert (after < before + 0.01).all() and after.mean() < before.mean() - 0.5
    assert not better.mean.requires_grad and all(p.grad is None for p in model.parameters())


def test_refinement_descends_the_loss_in_training_and_the_bound_in_evaluation(batch, monkeypatch):
    model, given = make_model(**DRY), []
    model.kl_weight = 0.25
    monkeypatch.setattr("hf_vrae.modeling.modeling_latent.refine", lambda q, f, *_: given.append(f) or q)
    q, labels = model.encode(**batch), labels_of(model, batch)
    z = q.sample()
    nll, kl = -model._log_likelihood(z.unsqueeze(0), labels)[0], kl_divergence(q, model.prior())
    for training, kl_weight in ((True, 0.25), (False, 1.0)):
        model.train(training).refine(q, labels, 1)
        torch.testing.assert_close(given[-1](q, z), nll + kl_weight * kl)


def test_refinement_where_there_can_be_no_gradient_is_refused(batch):
    model = make_model(**DRY)
    with torch.inference_mode(), pytest.raises(ValueError, match="which `torch.inference_mode\\(\\)` forbids"):
        model.refine(model.encode(**batch), labels_of(model, batch), 1)


def test_refinement_helps_a_posterior_that_was_trained():
    """p(x|z) = N(x; 3 z, 1) in 8 dimensions, whose p(z|x) is known: steps as large as its width throw q about."""
    torch.manual_seed(0)
    x = 3 * torch.randn(64, 8) + torch.randn(64, 8)

    def negative_elbo(q, z):
        return 0.5 * ((x - 3 * z).square() + q.mean.square() + q.variance - 1 - q.logvar).sum(-1)

    def expected(q):
        squares = (x - 3 * q.mean).square() + 9 * q.variance + q.mean.square() + q.variance
        return 0.5 * (squares - 1 - q.logvar).sum(-1).mean()

    best = DiagonalGaussian(0.3 * x, torch.full_like(x, -math.log(10)))
    start = DiagonalGaussian(best.mean + 0.15, best.logvar)
    assert expected(refine(start, negative_elbo, 20)) < expected(start) - 0.4
    assert expected(refine(best, negative_elbo, 20)) < expected(best) + 0.4


def test_refinement_of_a_sequence_does_not_depend_on_its_neighbours(batch):
    model = make_model(**DRY)
    q, labels = model.encode(**batch), labels_of(model, batch)
    generators = [torch.Generator().manual_seed(row) for row in range(4)]
    together = model.refine(q, labels, 5, generators)
    alone = model.refine(
        DiagonalGaussian(q.mean[2:3], q.logvar[2:3]), labels[2:3], 5, [torch.Generator().manual_seed(2)]
    )
    torch.testing.assert_close(together.mean[2:3], alone.mean, rtol=1e-4, atol=1e-4)


def test_gradients_flow_through_the_steps_of_refinement():
    """One step without momentum on f = |mean - a|^2 / 2, at the rate 1/32: mean_1 = mean_0 - (mean_0 - a) / 32."""
    a = torch.tensor([[0.3, -0.2]], dtype=torch.float64, requires_grad=True)
    start = DiagonalGaussian(torch.zeros(1, 2, dtype=torch.float64, requires_grad=True), torch.zeros(1, 2).double())
    once = refine(start, lambda q, z: 0.5 * (q.mean - a).square().sum(-1), 1, differentiable=True)
    torch.testing.assert_close(once.mean, a / 32)
    once.mean.sum().backward()
    torch.testing.assert_close(a.grad, torch.full_like(a, 1 / 32))
    torch.testing.assert_close(start.mean.grad, torch.full_like(start.mean, 31 / 32))


def test_refinement_has_momentum_and_a_limit_for_each_sequence():
    """On f = slope * mean, rate 1/32, limit 1, momentum 0.5: v_1 = g, v_2 = g / 2 + g, mean_2 = -(v_1 + v_2) / 32."""
    slope = torch.tensor([3.0, 0.4])
    start = DiagonalGaussian(torch.zeros(2, 1), torch.zeros(2, 1))
    twice = refine(start, lambda q, z: q.mean.squeeze(-1) * slope, 2)
    torch.testing.assert_close(twice.mean, torch.tensor([[-2.5], [-1.0]]) / 32)
    torch.testing.assert_close(twice.logvar, torch.zeros(2, 1))


def test_a_model_without_latents_has_no_posterior_to_refine(batch):
    with pytest.raises(ValueError, match="`svi_steps` refines a posterior, and `latent_size` 0 has none"):
        make_model(latent_size=0).evaluation_terms(2, None, 3, **batch)


@pytest.mark.parametrize("rnn_type", ["lstm", "gru"])
def test_semi_amortised_training_reaches_the_encoder_through_its_steps(rnn_type, batch):
    model = make_model(svi_steps=2, kernels="plain", rnn_type=rnn_type, **DRY)
    outputs, gradients = trained_once(model, batch)
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    # The gradient of the whole, by finite differences in one weight of the encoder.
    weight, step = model.model.encoder.posterior.weight, 1e-2
    with torch.no_grad():
        weight[3, 5] += step
    more = trained_once(model, batch)[0].loss
    with torch.no_grad():
        weight[3, 5] -= 2 * step
    less = trained_once(model, batch)[0].loss
    slope = gradients["model.encoder.posterior.weight"][3, 5]
    torch.testing.assert_close(slope, (more - less) / (2 * step), rtol=0.05, atol=5e-3)


@pytest.mark.parametrize("options", LANGUAGE_MODELS.values(), ids=LANGUAGE_MODELS.keys())
def test_a_language_model_is_a_decoder_alone(options, batch, tmp_path):
    model = make_model(**options)
    assert not [name for name in model.state_dict() if "encoder" in name or "initial_state" in name]
    labels = labels_of(model, batch)
    outputs = model(**batch, labels=labels)
    assert outputs.kl == 0 and torch.equal(outputs.loss, outputs.reconstruction_loss)
    weights = model.log_importance_weights(3, **batch)
    torch.testing.assert_close(weights, weights[:1].expand(3, -1))  # log p(x) itself, whatever is drawn
    torch.testing.assert_close(-weights[0].mean(), outputs.loss)
    assert model.prior().sample((5,)).shape == (5, 0)
    model.save_pretrained(tmp_path)
    again = VRAEForSequenceGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(again(**batch, labels=labels).loss, outputs.loss)
    tied = again.lm_head.weight is again.get_input_embeddings().weight
    assert tied == model.config.tie_word_embeddings
    again.resize_token_embeddings(50)
    assert again(**batch, labels=labels).logits.shape[-1] == 50


def test_a_language_model_learns_all_of_its_weights(batch):
    model = make_model(latent_size=0, decoder_layers=2, **DRY)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    before, gradients = trained_once(model, batch)
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients.values())
    optimizer.step()
    assert trained_once(model, batch)[0].loss < before.loss


def test_encoder_dropout_is_of_training_and_of_the_encoder(batch):
    model = make_model(encoder_dropout=0.5, **DRY)
    quiet = model.encode(**batch)
    torch.testing.assert_close(model.encode(**batch).mean, quiet.mean)
    model.train()
    first, second = model.encode(**batch), model.encode(**batch)
    assert not torch.equal(first.mean, second.mean)
    decoder = [model(latents=quiet.mean, decoder_input_ids=batch["input_ids"]).logits for _ in range(2)]
    torch.testing.assert_close(*decoder)


@pytest.mark.parametrize("encoder_type", ["rnn", "transformer", "independent"])
@pytest.mark.parametrize("decoder_type", ["rnn", "transformer", "independent"])
def test_variational_dropout_drops_the_same_at_every_step(batch, encoder_type, decoder_type):
    sites = {}

    def note(module, inputs, outputs):
        sites.setdefault(module, []).append((inputs[0], outputs))

    def dropped(variational_dropout):
        sites.clear()
        model = make_model(
            encoder_type=encoder_type, decoder_type=decoder_type, encoder_layers=2, decoder_layers=2, dropout=0.5,
            encoder_dropout=0.5, variational_dropout=variational_dropout,
        ).train()  # fmt: skip
        for module in model.modules():
            if isinstance(module, Dropout):
                module.register_forward_hook(note)
        model(**batch, labels=labels_of(model, batch)).loss.backward()
        seen = [pair for pairs in sites.values() for pair in pairs if pair[0].dim() == 3 and pair[0].shape[1] > 1]
        assert len(seen) >= 3  # in the encoder, in the decoder and on its output
        return [((y == 0) & (x != 0), x != 0) for x, y in seen]

    for lost, real in dropped(True):
        assert 0.1 < lost[real].float().mean() < 0.9
        kept = ~lost & real
        assert not (lost.any(1) & kept.any(1)).any()  # a unit is lost at all steps of a sequence, or at none
        assert not torch.equal(lost[0], lost[1])
    assert all((lost.any(1) & (~lost & real).any(1)).any() for lost, real in dropped(False))


@pytest.mark.parametrize(
    "options",
    [
        {"posterior": "delta", "free_bits": 0.16},
        {"posterior": "batch_norm", "free_bits": 0.1},  # of each row: batch norm keeps means over the batch
    ],
)
def test_free_bits_above_what_a_family_keeps_are_read(options, batch):
    """What is not refused makes the loss, or its gradient, another one than without."""
    plain = {name: value for name, value in options.items() if not name.startswith("free_bits")}
    made = []
    for fields in (options, plain):
        torch.manual_seed(0)
        model = make_model(**fields, **DRY).train()
        torch.manual_seed(1)
        loss = model(**batch, labels=labels_of(model, batch)).loss
        weights = next(model.model.encoder.posterior.parameters())
        made.append((loss.detach(), torch.autograd.grad(loss, weights)[0]))
    assert not torch.equal(made[0][0], made[1][0]) or not torch.equal(made[0][1], made[1][1])


@pytest.mark.parametrize("make", [make_model, make_vrnn], ids=["vrae", "vrnn"])
def test_schedules_that_the_bound_of_several_samples_does_not_know(make, batch):
    model = make(num_train_samples=3).train()
    words = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels = labels_of(model, batch) if make is make_model else words
    for name, value in (("kl_capacity", 3.0), ("sampling_probability", 0.5)):
        setattr(model, name, value)
        with pytest.raises(
            ValueError, match=f"`{name}` {value} says nothing to the bound of `num_train_samples` 3\\."
        ):
            model(**batch, labels=labels)
        delattr(model, name)
    assert model(**batch, labels=labels).loss.isfinite()
    classifier = make_model(condition_labels={"kind": ["a", "b"]}, label_classifier=True).train()
    classifier.kl_capacity = 3.0
    with pytest.raises(ValueError, match="`kl_capacity` 3.0 says nothing to the loss of `label_classifier`. Leave"):
        classifier(**batch, labels=labels_of(classifier, batch))
    model = make_vrnn(num_train_samples=3, resampling=True).train()
    model.kl_weight = 0.5
    with pytest.raises(ValueError, match="`kl_weight` 0.5 says nothing to the bound .* 3 with `resampling`"):
        model(**batch, labels=words)


def test_the_bound_of_several_samples_on_a_sphere_has_a_quiet_gradient(batch):
    """z turns with the mean, so that log q(z) has no gradient in it: the draws nearly agree on the rest."""
    model = make_model(posterior="vmf", num_train_samples=8, concentration=50.0, initializer_range=0.1, **DRY)
    name = next(name for name, _ in model.named_parameters() if "encoder.posterior" in name and "weight" in name)
    draws = torch.stack([trained_once(model, batch, seed)[1][name] for seed in range(60)])
    assert draws.std(0).norm() < draws.mean(0).norm()


def test_skip_connections_add_what_a_layer_was_given(batch):
    model = make_model(decoder_layers=2, skip_connections=True)
    decoder, latents = model.model.decoder, torch.randn(4, 6)
    hidden, _, _ = decoder(latents, batch["input_ids"])
    decoder.rnn.skip_connections = False
    plain, _, plain_layers = decoder(latents, batch["input_ids"], output_hidden_states=True)
    torch.testing.assert_close(hidden, plain + plain_layers[1])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"skip_connections": True}, "raise `decoder_layers` above 1"),
        ({"latent_size": 0, "posterior": "delta"}, "language model without z: `posterior`"),
        ({"latent_size": 0, "free_bits": 1.0}, "there is no KL for `free_bits`"),
        ({"posterior": "vmf", "latent_size": 2}, "3 or more dimensions, got 2"),
        ({"posterior": "vmf", "free_bits": 0.1}, "constant KL, which `free_bits` 0.1 cannot change"),
        ({"correlated_prior": True, "posterior": "vmf"}, "take `posterior` gaussian or batch_norm"),
        ({"correlated_prior": True, "latent_size": 1}, "of two dimensions or more"),
        ({"learn_batch_norm_scale": True}, "is of `posterior` batch_norm, got gaussian"),
        ({"batch_norm_gamma": 0.7, "posterior": "delta"}, "`batch_norm_gamma` 0.7 is of `posterior` batch_norm, got"),
        ({"concentration": 50.0}, "`concentration` 50.0 is of `posterior` vmf, got gaussian"),
        ({"posterior": "delta", "free_bits": 0.15}, "`free_bits` 0.15 in the form dimension frees nothing"),
        ({"posterior": "delta", "free_bits": 0.8, "free_bits_form": "example"}, "below 0.900 nats there"),
        ({"posterior": "delta", "free_bits": 1.2, "free_bits_form": "hinge"}, "form hinge frees nothing"),
        ({"posterior": "batch_norm", "free_bits": 0.1, "free_bits_form": "dimension_mean"}, "below 0.180 nats there"),
        ({"num_train_samples": 4, "free_bits": 0.1}, "`num_train_samples` 4 .* `free_bits` 0.1"),
        ({"num_train_samples": 4, "mmd_weight": 0.1}, "`svi_steps` are of the ELBO"),
        (
            {"num_train_samples": 4, "bag_of_words_weight": 0.1},
            "`bag_of_words_weight` and `svi_steps` are of the ELBO",
        ),
        ({"svi_steps": 4, "free_bits": 0.1, "kernels": "plain"}, "descends the whole -ELBO"),
        ({"svi_steps": 4, "bag_of_words_weight": 0.1, "kernels": "plain"}, "`bag_of_words_weight` 0.1 is no part"),
        ({"svi_steps": 4}, "needs `kernels` plain, got auto"),
        ({"svi_steps": 4, "kernels": "plain", "posterior": "delta"}, "out of the family delta"),
    ],
    ids=str,
)
def test_combinations_without_sense_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        make_model(**options)


@pytest.mark.parametrize("make", [make_model, make_frame_model])
def test_what_schedules_set_counts_in_training_alone(make, batch):
    model = make(**DRY)
    x = make_frames(model) if make is make_frame_model else batch | {"labels": labels_of(model, batch)}
    z = torch.randn(2, 4, model.config.latent_size)

    def measured():
        return model(**x).loss, model.log_importance_weights(latents=z, **x), model.teacher_forced(z[0], **x)

    wanted = measured()
    model.sampling_probability, model.kl_capacity = 1.0, 50.0
    torch.testing.assert_close(measured(), wanted)


@pytest.mark.parametrize("encoder_type", ["rnn", "transformer", "independent"])
def test_dropout_of_the_encoder_is_its_own_and_of_its_summary_too(encoder_type, batch):
    model = make_model(encoder_type=encoder_type, encoder_layers=2, dropout=0.5, word_dropout=0.0).train()
    torch.testing.assert_close(*(model.encode(**batch).mean for _ in range(2)))  # `dropout` is the decoder's
    model, read = make_model(encoder_type=encoder_type, encoder_dropout=0.5, **DRY).train(), []
    model.model.encoder.posterior.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    model.encode(**batch)
    assert 0.3 < (read[0] == 0).float().mean() < 0.7
