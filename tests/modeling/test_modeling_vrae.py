"""The model as a probability model: normalised, blind to padding, honest about its bound, safe to save."""

import copy
import itertools
import math
from typing import get_args

import pytest
import torch
from torch.distributions import kl_divergence
from transformers import AutoModel, AutoModelForSeq2SeqLM
from transformers.integrations import accelerate

from hf_vrae import VRAEConfig, VRAEForSequenceGeneration
from hf_vrae.modeling.cache_name import CACHE
from hf_vrae.modeling.configuration_common import FreeBitsForm
from hf_vrae.modeling.distributions import DiagonalGaussian, generators_of_rows, kl_per_dimension
from hf_vrae.modeling.objectives import free_bits
from hf_vrae.modeling.posteriors import MAX_LOGVAR, MIN_LOGVAR
from hf_vrae.modeling.recurrent import append
from tests.models import make_frame_model, make_hierarchical_model, make_model


def labels_of(model, batch):
    return model.labels_from_input_ids(batch["input_ids"], batch["attention_mask"])


def spread(batch, columns=(1, 3, 4, 6, 7, 8, 9, 11, 13), width=15):
    """The same sequences with padding before, between and after their tokens."""
    ids, mask = torch.full((4, width), 17), torch.zeros(4, width, dtype=torch.long)
    ids[:, columns], mask[:, columns] = batch["input_ids"], batch["attention_mask"]
    return {"input_ids": ids, "attention_mask": mask}


def test_padding_anywhere_changes_nothing(model, batch):
    model = model.double()
    padded = spread(batch)
    q, q_padded = model.encode(**batch), model.encode(**padded)
    for parameter in q.arg_constraints:
        torch.testing.assert_close(getattr(q_padded, parameter), getattr(q, parameter))
    wanted, got = (model(**b, labels=labels_of(model, b)) for b in (batch, padded))
    torch.testing.assert_close(got.loss, wanted.loss)
    torch.testing.assert_close(got.reconstruction_loss, wanted.reconstruction_loss)
    real, spread_real = labels_of(model, batch) != -100, labels_of(model, padded) != -100
    torch.testing.assert_close(got.logits[spread_real], wanted.logits[real])


def test_padding_changes_no_gradient(model, batch):
    grads = []
    for b in (batch, spread(batch)):
        model.zero_grad()
        model(**b, labels=labels_of(model, b)).loss.backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-5)


def test_rows_do_not_see_each_other(model, batch):
    together = model.encode(**batch)
    for row in range(4):
        length = int(batch["attention_mask"][row].sum())
        alone = model.encode(batch["input_ids"][row : row + 1, :length])
        torch.testing.assert_close(alone.mean[0], together.mean[row])


def test_attention_mask_defaults_to_what_is_no_padding(model, batch):
    torch.testing.assert_close(model.encode(batch["input_ids"]).mean, model.encode(**batch).mean)


def test_probabilities_of_all_sequences_sum_to_one():
    """p(x|z) over every sequence of up to 3 words, and what is left to longer ones."""
    model = make_model(vocab_size=6, latent_size=2).double()
    z = torch.randn(1, 2).double()
    total = 0.0
    for length in range(4):
        words = torch.tensor(list(itertools.product([0, 1, 2, 4, 5], repeat=length)), dtype=torch.long)
        labels = torch.cat([words, torch.full((len(words), 1), 3)], dim=1)
        total += model._log_likelihood(z.expand(1, len(words), 2), labels).exp().sum().item()
    words = torch.tensor(list(itertools.product([0, 1, 2, 4, 5], repeat=4)))
    total += model._log_likelihood(z.expand(1, len(words), 2), words).exp().sum().item()
    assert total == pytest.approx(1, abs=1e-9)


def test_loss_is_the_bound_and_its_parts(model, batch):
    labels = labels_of(model, batch)
    outputs = model(**batch, labels=labels)
    log_p = outputs.logits.log_softmax(-1)
    tokens = log_p.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1) * (labels != -100)
    torch.testing.assert_close(outputs.reconstruction_loss, -tokens.sum(-1).mean())
    torch.testing.assert_close(outputs.kl, kl_divergence(model.encode(**batch), model.prior()).mean())
    torch.testing.assert_close(outputs.loss, outputs.reconstruction_loss + outputs.kl)
    model.kl_weight = 0.25
    weighted = model(**batch, labels=labels)
    torch.testing.assert_close(weighted.loss, outputs.reconstruction_loss + 0.25 * outputs.kl)
    torch.testing.assert_close(weighted.kl, outputs.kl)  # never the weighted one


def test_free_bits_are_of_the_training_loss_only(model, batch):
    if model.config.posterior == "vmf":
        pytest.skip("its KL is a constant")
    labels = model.labels_from_input_ids(**batch)
    q = model.encode(**batch)
    free = model.config.free_bits = kl_per_dimension(q, model.prior()).median().item()
    model.kl_weight = 0.5
    torch.manual_seed(1)
    outputs = model.train()(**batch, labels=labels)
    q = DiagonalGaussian(outputs.posterior_mean, outputs.posterior_logvar)
    raw = kl_per_dimension(q, model.prior())
    assert 0 < (raw > free).float().mean() < 1
    torch.testing.assert_close(outputs.kl, raw.sum(1).mean())
    charged = raw.clamp(min=free).sum(1).mean()
    torch.testing.assert_close(outputs.loss, outputs.reconstruction_loss + 0.5 * charged)
    outputs = model.eval()(**batch, labels=labels)
    torch.testing.assert_close(outputs.loss, outputs.reconstruction_loss + 0.5 * outputs.kl)


@pytest.mark.parametrize("form", get_args(FreeBitsForm))
def test_free_bits_are_in_the_form_asked_for(form, batch):
    model = make_model()
    raw = kl_per_dimension(model.encode(**batch), model.prior())
    amount = raw.median().item() if form.startswith("dimension") else raw.sum(1).median().item()
    amount *= 1.1 / (math.log(2) if form == "hinge" else 1)
    charged = {of: free_bits(raw, amount, of).item() for of in get_args(FreeBitsForm)}
    assert list(charged.values()).count(charged[form]) == 1  # no other form has the same
    model.config.free_bits, model.config.free_bits_form = amount, form
    outputs = model.train()(**batch, labels=model.labels_from_input_ids(**batch))
    assert (outputs.loss - outputs.reconstruction_loss).item() == pytest.approx(charged[form], abs=1e-5)


def test_a_decoder_is_made_anew_and_the_encoder_kept(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(3)
    before = copy.deepcopy(model.state_dict())
    model.reset_decoder()
    shared = model.get_input_embeddings().weight.data_ptr()
    for name, tensor in model.state_dict().items():
        kept = name.startswith(("model.encoder", "model.correlated_prior")) or tensor.data_ptr() == shared
        assert torch.equal(tensor, before[name]) == kept, name
        # A start: at most 1, as forget gates and norms are; the weights of transformers' models are normal.
        assert kept or tensor.abs().max() <= (1 if model.config.decoder_config is None else 2.5), name


def test_evaluation_samples_z_and_repeats_itself(model, batch):
    first, second = (model(**batch, labels=labels_of(model, batch)) for _ in range(2))
    assert torch.equal(first.loss, second.loss)
    assert not torch.allclose(first.latents, first.posterior_mean)  # at the mean nothing would be bounded
    torch.testing.assert_close(model(**batch, decoder_input_ids=batch["input_ids"]).latents, first.posterior_mean)


def test_training_samples_z(model, batch):
    model.train()
    first, second = (model(**batch, labels=labels_of(model, batch)) for _ in range(2))
    assert not torch.equal(first.latents, second.latents)


def test_log_importance_weights_are_the_three_densities(model, batch):
    q, labels = model.encode(**batch), labels_of(model, batch)
    z = q.sample((3,))
    weights = model.log_importance_weights(latents=z, **batch)
    for k in range(3):
        outputs = model(latents=z[k], labels=labels)
        expected = model.prior().log_prob(z[k]) - q.log_prob(z[k])
        torch.testing.assert_close((weights[k] - expected).mean(), -outputs.loss)


def test_the_kl_is_what_samples_of_q_say(model, batch):
    """Of the loss and of an evaluation, whose -ELBO is then that of the importance weights."""
    torch.nn.init.normal_(model.model.encoder.posterior.weight, std=0.3)
    q, labels = model.encode(**batch), labels_of(model, batch)
    with torch.no_grad():
        z = q.rsample((20_000,))
        of_samples = (q.log_prob(z) - model.prior().log_prob(z)).mean(0)
        torch.testing.assert_close(model(**batch, labels=labels).kl, of_samples.mean(), rtol=0.02, atol=0.02)
        terms = model.evaluation_terms(1, generators_of_rows(4), labels=labels, **batch)
        torch.testing.assert_close(terms["kl"].float(), of_samples, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("with_gradient", [True, False])
def test_importance_weights_in_parts_are_the_same(model, batch, monkeypatch, with_gradient):
    with torch.set_grad_enabled(with_gradient):
        z = model.encode(**batch).sample((5,))
        whole = model.log_importance_weights(latents=z, **batch)
        monkeypatch.setattr("hf_vrae.modeling.modeling_latent.MAX_AT_ONCE", 1)
        torch.testing.assert_close(model.log_importance_weights(latents=z, **batch), whole)


def test_with_q_at_the_prior_the_weights_are_likelihoods(model, batch):
    """The sanity check of the field's trap 6: no leak from x to the decoder but through z."""
    if model.config.posterior in ("delta", "vmf"):
        pytest.skip("its posteriors cannot be the prior")
    torch.nn.init.zeros_(model.model.encoder.posterior.weight)
    z = torch.randn(2, 4, 6)
    likelihood = torch.stack([model._log_likelihood(z[k : k + 1], labels_of(model, batch))[0] for k in range(2)])
    torch.testing.assert_close(model.log_importance_weights(latents=z, **batch), likelihood)


def test_the_decoder_sees_no_later_token(model, batch):
    z = torch.randn(4, 6)
    changed = batch["input_ids"].clone()
    changed[:, 5:] = 9
    before, after = (model(latents=z, decoder_input_ids=ids).logits for ids in (batch["input_ids"], changed))
    torch.testing.assert_close(after[:, :5], before[:, :5])
    assert torch.allclose(after[:, 5:], before[:, 5:]) != model.config.reads_the_past


@pytest.mark.parametrize("place", ["initial_state", "input", "output"])
def test_z_reaches_the_decoder_at_each_place(place, batch):
    model = make_model(latent_conditioning=[place])
    logits = [model(latents=z, decoder_input_ids=batch["input_ids"]).logits for z in torch.randn(2, 4, 6)]
    assert not torch.allclose(*logits)


def test_initial_state_is_tanh_of_the_projected_latent():
    model = make_model(decoder_layers=2, latent_conditioning=["initial_state"])
    z = torch.randn(3, 6)
    (h, c), (h2, c2) = model.model.decoder.first_states(z)
    projected = model.model.decoder.initial_state(z)
    torch.testing.assert_close(torch.cat([c, c2], -1), projected)
    torch.testing.assert_close(torch.cat([h, h2], -1), projected.tanh())


def test_decoder_inputs_are_the_labels_moved_by_one():
    model = make_model()
    labels = torch.tensor([[5, 6, 3, -100], [-100, 7, -100, 3]])
    moved = model.prepare_decoder_input_ids_from_labels(labels)
    assert moved.tolist() == [[2, 5, 6, 0], [0, 2, 0, 7]]
    ids = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]])
    assert model.labels_from_input_ids(ids).tolist() == [[-100, 5, 6, 3], [-100, 7, 3, -100]]


def test_decoder_inputs_that_a_collator_made_are_read_without_their_padding(model, batch):
    """`DataCollatorForSeq2Seq(model=...)` hands them on without a mask, on the left as on the right."""
    model, right = model.double(), labels_of(model, batch)
    left = right.gather(1, (right != -100).sort(dim=1, stable=True).indices)
    for labels in (right, left):
        inputs = model.prepare_decoder_input_ids_from_labels(labels)
        given = {**batch, "labels": labels}
        torch.testing.assert_close(model(**given, decoder_input_ids=inputs).loss, model(**given).loss)
    prompted = left.clone()
    prompted[0, -4] = -100  # read, and not scored
    with_prompt = model(**{**batch, "labels": prompted}, decoder_input_ids=inputs).logits
    torch.testing.assert_close(with_prompt, model(**given, decoder_input_ids=inputs).logits)


def test_a_mask_may_tell_of_what_is_past(model, batch):
    model, labels = model.double(), labels_of(model, batch)
    inputs, mask = model.prepare_decoder_input_ids_from_labels(labels), labels != -100
    z = torch.randn(4, 6, dtype=torch.float64)
    whole = model(latents=z, decoder_input_ids=inputs, decoder_attention_mask=mask, labels=labels)
    first = model(latents=z, decoder_input_ids=inputs[:, :2], decoder_attention_mask=mask[:, :2], use_cache=True)
    rest = {"decoder_input_ids": inputs[:, 2:], "decoder_attention_mask": mask, CACHE: first[CACHE]}
    scored = model(latents=z, labels=labels[:, 2:], **rest)
    torch.testing.assert_close(scored.logits[mask[:, 2:]], whole.logits[:, 2:][mask[:, 2:]])


def test_an_empty_row_is_summarised_by_nothing(model, batch):
    mask = batch["attention_mask"].clone()
    mask[1] = 0
    other = batch["input_ids"].clone()
    other[1] = torch.randint(4, 40, other[1].shape)
    modes = [model.encode(input_ids=ids, attention_mask=mask).mode for ids in (batch["input_ids"], other)]
    torch.testing.assert_close(*modes)


def test_the_start_is_the_mark_of_the_beginning():
    config = VRAEConfig(vocab_size=200, bos_token_id=101, eos_token_id=102)
    assert config.decoder_start_token_id == 101
    assert VRAEConfig(decoder_start_token_id=3).decoder_start_token_id == 3


def test_word_dropout_replaces_words_only(batch):
    decoder = make_model(word_dropout=0.5).model.decoder
    ids = batch["input_ids"].repeat(200, 1)
    dropped = decoder.drop_words(ids)
    marks = torch.isin(ids, torch.tensor([0, 2, 3]))
    assert torch.equal(dropped[marks], ids[marks])
    changed = dropped[~marks] != ids[~marks]
    assert (dropped[~marks][changed] == 1).all()
    assert changed.float().mean().item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("dropped", ["word_dropout", "weight_dropout"])
def test_words_and_recurrent_weights_are_dropped_in_training_only(dropped, batch):
    decoder = make_model(**{"dropout": 0.0, "word_dropout": 0.0, dropped: 0.5}).model.decoder
    z = torch.randn(4, 6)
    for training in (True, False):
        decoder.train(training)
        outputs = [decoder(z, batch["input_ids"])[0] for _ in range(2)]
        assert torch.equal(*outputs) != training


def test_dropout_is_where_the_protocol_has_it(batch):
    """On the decoder's embeddings and outputs; not in the encoder, not on z (He et al. 2019, released code)."""
    model = make_model(dropout=0.5, word_dropout=0.0, latent_conditioning=["input", "output"]).train()
    encoded = [model.encode(**batch).mean for _ in range(2)]
    assert torch.equal(*encoded)
    z = torch.randn(4, 6)
    seen = []
    model.model.decoder.rnn.register_forward_pre_hook(lambda module, args: seen.append(append(args[0], args[2])))
    model.lm_head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(latents=z, decoder_input_ids=batch["input_ids"])
    for inputs, width in zip(seen, (16, 16), strict=True):
        assert (inputs[..., :width] == 0).float().mean().item() == pytest.approx(0.5, abs=0.1)
        torch.testing.assert_close(inputs[..., width:], z.unsqueeze(1).expand(-1, 9, -1))


def test_log_variance_is_bounded(batch):
    model = make_model()
    model.model.encoder.posterior.weight.data.mul_(1e4)
    q = model.encode(**batch)
    assert q.logvar.min() >= MIN_LOGVAR and q.logvar.max() <= MAX_LOGVAR
    assert torch.isfinite(kl_divergence(q, model.prior())).all()


@pytest.mark.parametrize("options", [{}, {"rnn_type": "gru"}, {"layer_norm": True}], ids=str)
def test_kl_is_float32_under_mixed_precision(options, batch):
    model = make_model(**options).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(**batch, labels=labels_of(model, batch))
    assert outputs.posterior_logvar.dtype == outputs.kl.dtype == outputs.loss.dtype == torch.float32
    outputs.loss.backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_runs_in_bfloat16(model, batch):
    model = model.to(torch.bfloat16)
    outputs = model(**batch, labels=labels_of(model, batch))
    assert outputs.logits.dtype == torch.bfloat16 and torch.isfinite(outputs.loss)
    assert model.generate(**batch, max_new_tokens=4).shape[0] == 4


@pytest.mark.parametrize(("options", "forget"), [({}, 1.0), ({"forget_bias": 0.5}, 0.5)])
def test_forget_gates_start_open_and_biases_at_zero(options, forget):
    for layer_norm in (False, True):
        model = make_model(layer_norm=layer_norm, initializer_range=0.01, **options)
        layer = model.model.decoder.rnn.layers[0]
        bias = layer.bias if layer_norm else layer.bias_ih_l0 + layer.bias_hh_l0
        assert bias.view(4, -1).tolist() == [[0.0] * 16, [forget] * 16, [0.0] * 16, [0.0] * 16]
        weight = layer.weight_hh if layer_norm else layer.weight_hh_l0
        assert 0.009 < weight.abs().max() <= 0.01
        assert 0.9 < model.model.encoder.embed_tokens.weight.abs().max() <= 1.0


def test_saving_and_loading_keeps_every_tensor(model, batch, tmp_path):
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))  # no tensor at its initial value, biases included
    model.save_pretrained(tmp_path)
    loaded, info = VRAEForSequenceGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(loaded.eval()(**batch, labels=labels_of(model, batch)).loss, model(
        **batch, labels=labels_of(model, batch)).loss)  # fmt: skip


def test_auto_classes_find_the_model(tmp_path):
    make_model().save_pretrained(tmp_path)
    for auto in (AutoModel, AutoModelForSeq2SeqLM):
        assert type(auto.from_pretrained(tmp_path)) is VRAEForSequenceGeneration
    assert AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert AutoModel.from_pretrained(tmp_path, device_map="auto").device.type == "cpu"


def test_the_weights_of_a_loaded_model_lie_together(monkeypatch, tmp_path):
    """cuDNN asks for it, and `device_map` puts them on a GPU one by one."""
    make_model(bidirectional_encoder=True).save_pretrained(tmp_path)
    flattened = []  # layers, and where their weights were
    flatten = lambda layer: flattened.append((layer, layer.weight_ih_l0.device.type))  # noqa: E731
    monkeypatch.setattr(torch.nn.RNNBase, "flatten_parameters", flatten)
    model = AutoModel.from_pretrained(tmp_path)
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.RNNBase)]
    assert len(layers) == 3 and {(layer, "cpu") for layer in layers} <= set(flattened)


@pytest.mark.parametrize("make", [make_model, make_frame_model, make_hierarchical_model])
def test_a_model_is_not_spread_over_devices(make, monkeypatch, tmp_path):
    """Of eight accelerators "auto" takes one; a map that names two places is refused, not run into a wrong device."""
    model = make()
    with monkeypatch.context() as patch:
        memory = {device: 2**30 for device in (*range(8), "cpu")}
        patch.setattr("transformers.integrations.accelerate.get_max_memory", lambda max_memory=None: memory)
        assert accelerate._get_device_map(model, "auto", None, None) == {"": 0}
    model.save_pretrained(tmp_path)
    first, *others = (name for name, _ in model.named_children())
    places = {first: "cpu"} | dict.fromkeys(others, "disk")
    with pytest.raises(ValueError, match=f"`device_map` must keep a {type(model).__name__}"):
        type(model).from_pretrained(tmp_path, device_map=places, offload_folder=str(tmp_path / "offload"))


def test_weights_that_a_checkpoint_lacks_are_initialised(model):
    """As at construction: what `from_pretrained` does on the meta device must not leave a tensor unset."""
    loaded = VRAEForSequenceGeneration.from_pretrained(None, config=model.config, state_dict={})
    for (name, made), (_, missing) in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
        assert missing.device.type == "cpu"
        # The largest of normal weights, as those of transformers' models are, varies more than that of uniform ones.
        times, most = 3 if "body" in name else 2, made.abs().max()
        assert most / times <= missing.abs().max() <= times * most, name


@pytest.mark.parametrize("tied", [False, True])
def test_resizing_the_vocabulary_resizes_every_table(tied, batch):
    model = make_model(tie_word_embeddings=tied)
    before = model(**batch, labels=labels_of(model, batch)).logits
    model.resize_token_embeddings(50, mean_resizing=False)
    tables = (model.model.encoder.embed_tokens, model.model.decoder.embed_tokens, model.lm_head)
    assert [len(table.weight) for table in tables] == [50] * 3 and model.config.vocab_size == 50
    torch.testing.assert_close(model(**batch, labels=labels_of(model, batch)).logits[..., :40], before)
    assert (tables[0].weight is tables[1].weight) == (tables[0].weight is tables[2].weight) == tied


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latents": torch.zeros(2, 5)}, r"\[batch, latent_size\] with `latent_size` 6, got \[2, 5\]"),
        ({"latents": torch.zeros(6)}, r"got \[6\]"),
        ({"latents": torch.zeros(2, 6, dtype=torch.long)}, "must be a tensor of floats, got torch.int64"),
        ({"latents": [[0.0] * 6]}, "must be a tensor of floats, got list"),
        ({"latents": torch.zeros(2, 6), "input_ids": torch.ones(2, 3).long()}, "take the place of the encoder"),
        ({}, "one of `input_ids` and `inputs_embeds`"),
    ],
)
def test_bad_latents(arguments, message):
    model = make_model()
    with pytest.raises(ValueError, match=message):
        if arguments:
            model.generate(**arguments)
        else:
            model(decoder_input_ids=torch.ones(1, 2).long())


@pytest.mark.parametrize("training", [True, False])
def test_labels_are_of_the_steps_that_are_read(training, batch):
    model = make_model().train(training)
    labels = labels_of(model, batch)
    with pytest.raises(ValueError, match=r"follows each step that the decoder reads, \[4, 8\], got \[4, 9\]"):
        model(**batch, decoder_input_ids=batch["input_ids"][:, 1:], labels=labels)
    with pytest.raises(ValueError, match=r"follows each step that the decoder reads, \[8, 9\], got \[4, 9\]"):
        model(latents=torch.randn(8, model.config.latent_size), labels=labels)
    model.sampling_probability = 1.0
    encoded = model.get_encoder()(**batch)
    assert model(encoder_outputs=encoded, labels=labels).loss.isfinite()
    with pytest.raises(ValueError, match="The decoder needs"):
        model(**batch, decoder_attention_mask=batch["attention_mask"])


def test_labels_of_32_bits(batch):
    model = make_model().eval()
    labels = model.labels_from_input_ids(**batch)
    assert model(**batch, labels=labels.int()).loss == model(**batch, labels=labels).loss


def test_bad_token_ids(batch):
    model = make_model()
    labels = labels_of(model, batch)
    with pytest.raises(ValueError, match=r"`labels` must be in \[0, 40\) or -100, got 40"):
        model(**batch, labels=labels.masked_fill(labels == 3, 40))
    with pytest.raises(ValueError, match=r"`labels` must be in \[0, 40\) or -100, got -7"):
        model(**batch, labels=labels.masked_fill(labels == 3, -7))
    with pytest.raises(ValueError, match=r"`input_ids` must be in \[0, 40\), got 99"):
        model.encode(batch["input_ids"] + 99 * (batch["input_ids"] == 3) - 3 * (batch["input_ids"] == 3))
    with pytest.raises(ValueError, match=r"`input_ids` must hold a token at least in each row, got \[4, 0\]"):
        model.encode(batch["input_ids"][:, :0])
    with pytest.raises(ValueError, match="decoder needs `decoder_input_ids`, or `labels`"):
        model(**batch)
    for ids in batch["input_ids"][0], batch["input_ids"].float():
        for call in model, model.encode, model.generate:
            with pytest.raises(ValueError, match=r"`input_ids` must be token ids \[batch, time\], integers; got \["):
                call(ids)


def test_rows_that_do_not_fit(model, batch):
    rows, ids = torch.randn(2, model.config.latent_size), batch["input_ids"][:3]
    with pytest.raises(ValueError, match="must have a row for each of the 2 latents, got 3"):
        model(latents=rows, decoder_input_ids=ids)
    with pytest.raises(ValueError, match="a row for each of the 2 sequences, or one for all; got 3"):
        model.generate(latents=rows, decoder_input_ids=ids)
    size = model.config.latent_size
    with pytest.raises(ValueError, match=rf"K samples of q\(z\|x\), \[K, 4, {size}\], got \[5, 3, {size}\]"):
        model.log_importance_weights(latents=torch.randn(5, 3, size), **batch)
    with pytest.raises(ValueError, match="Pass `input_ids`, or with `inputs_embeds` the `labels`"):
        model.log_importance_weights()
    with pytest.raises(ValueError, match="`num_samples` must be 1 or more, got 0"):
        model.log_importance_weights(0, **batch)
    with pytest.raises(TypeError, match="`num_sample` is of no batch of a .* Did you mean `num_samples`"):
        model.log_importance_weights(num_sample=3, **batch)
    with pytest.raises(TypeError, match="`token_type_ids` tell apart the texts of a pair.*model_input_names"):
        model.encode(**batch, token_type_ids=batch["input_ids"])
    with pytest.raises(TypeError, match="`label` is of no batch of a .* Did you mean `labels`"):
        model.prior(label="past")
    with pytest.raises(TypeError, match="`label` is of no batch of a .* Did you mean `labels`"):
        model.encode(label=1, **batch)
    with pytest.raises(
        ValueError, match=r'must be a tensor of token ids, got list. Tokenize with `return_tensors="pt"`'
    ):
        model.encode(["a text"])


def test_a_mask_of_another_shape(model, batch):
    ids, width, z = batch["input_ids"], batch["input_ids"].shape[1], torch.zeros(4, model.config.latent_size)
    for mask in (torch.ones(4, width - 1), torch.ones(1, width), torch.ones(width)):
        if model.config.latent_size:
            with pytest.raises(ValueError, match=r"`attention_mask` must say of each position .* got"):
                model.encode(ids, mask)
        with pytest.raises(ValueError, match=r"`decoder_attention_mask` must say of each position .* got"):
            model(latents=z, decoder_input_ids=ids, decoder_attention_mask=1 - mask)
    with pytest.raises(ValueError, match=r"`decoder_attention_mask` must say of each position .* got"):
        model(latents=z, decoder_input_ids=ids[:, :3], decoder_attention_mask=torch.ones(4, width).tril())
    with pytest.raises(ValueError, match="`logits_to_keep` 1 leaves out what `labels` score"):
        model(latents=z, labels=ids, logits_to_keep=1)


def test_outputs_as_tuples_and_hidden_states_by_configuration(model, batch):
    labels = labels_of(model, batch)
    wanted = model(**batch, labels=labels)
    model.config.return_dict, model.config.output_hidden_states = False, True
    loss, logits, *_ = model(**batch, labels=labels)
    assert torch.equal(loss, wanted.loss) and torch.equal(logits, wanted.logits)
    assert torch.equal(model.encode(**batch).mode, wanted.posterior_mean)
    outputs = model(**batch, labels=labels, return_dict=True)
    config = model.config
    assert [h.shape[-1] for h in outputs.encoder_hidden_states] == [16] * (config.encoder_layers + 1)
    sizes = [config.embedding_size] + [config.decoder_hidden_size] * config.decoder_layers
    assert [h.shape[-1] for h in outputs.decoder_hidden_states] == sizes and outputs.last_hidden_state is None


class PassingOn(VRAEForSequenceGeneration):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


def test_a_subclass_may_pass_on_what_forward_is_given(batch):
    model = PassingOn(make_model().config).eval()
    assert model.encode(**batch, labels=batch["input_ids"]).mean.shape[0] == len(batch["input_ids"])
    with pytest.raises(TypeError, match="`latent` is of no batch of a PassingOn. Did you mean `latents`"):
        model.encode(**batch, latent=1)


def test_without_labels_z_is_sampled_in_training_too(model, batch):
    model.train()
    first, second = (model(**batch, decoder_input_ids=batch["input_ids"]) for _ in range(2))
    assert not torch.equal(first.latents, second.latents)


def test_as_many_of_the_last_logits_as_asked_for(model, batch):
    given = {"latents": torch.randn(4, 6), "decoder_input_ids": batch["input_ids"]}
    torch.testing.assert_close(model(**given, logits_to_keep=2).logits, model(**given).logits[:, -2:])
