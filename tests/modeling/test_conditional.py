"""Conditions: tokens and frames, every kind of condition, missing labels, guidance."""

import math

import pytest
import torch
from torch.distributions import kl_divergence
from transformers import GenerationConfig, RepetitionPenaltyLogitsProcessor

from hf_vrae import VRAEConfig, VRAEForFrameGeneration, VRAEForSequenceGeneration
from hf_vrae.modeling.conditioning import label_ids
from hf_vrae.modeling.distributions import generators_of_rows
from tests.models import CONDITIONAL, LABELS, make_frame_model, make_frames, make_model

SEMI = CONDITIONAL["semi-supervised"]
KINDS = [(make, name) for make in (make_model, make_frame_model) for name in CONDITIONAL]


@pytest.fixture(params=KINDS, ids=[f"{make.__name__.removeprefix('make_')}-{name}" for make, name in KINDS])
def model(request):
    make, name = request.param
    # Embeddings of frames' models are small by default, those of conditions too.
    return make(embedding_initializer_range=1.0, **CONDITIONAL[name])


def conditions_of(model, rows=4) -> dict[str, torch.Tensor]:
    """Something for every part, here and there missing."""
    config, given = model.config, {}
    sizes = [len(values) for values in config.condition_labels.values()]
    given["class_ids"] = torch.stack([torch.arange(rows) % size for size in sizes], dim=1)
    if not config.label_classifier:
        given["class_ids"][1, 0] = -100
    if config.condition_attributes:
        given["attributes"] = torch.randn(rows, len(config.condition_attributes))
        given["attributes"][0, 1] = given["attributes"][2] = torch.nan
    if config.condition_size:
        given["condition"] = torch.randn(rows, config.condition_size)
        given["condition"][3, 0] = torch.nan
    return given


@pytest.fixture
def example(model, batch):
    """A batch with labels to score and with conditions."""
    frames = model.config.input_size is not None
    x = make_frames(model) if frames else batch | {"labels": model.labels_from_input_ids(**batch)}
    return x | conditions_of(model)


def without(batch, *names):
    return {name: tensor for name, tensor in batch.items() if name not in names}


def rows_of(batch, rows):
    return {name: tensor[rows] for name, tensor in batch.items()}


def widened(batch):
    """The batch with padding on the right."""
    batch = dict(batch)
    pads = {"input_ids": 0, "attention_mask": 0, "labels": -100 if "input_ids" in batch else math.nan}
    for name, value in (pads | {"input_features": 0}).items():
        if name in batch:
            pad = torch.full_like(batch[name][:, :2], value)
            batch[name] = torch.cat([batch[name], pad], dim=1)
    return batch


def generated(model, length=6, **options):
    if model.config.input_size is not None:
        return model.generate(max_length=length, **options).sequences
    return model.generate(max_new_tokens=length, min_new_tokens=length, **options)


def test_everything_stands_under_the_condition(model, example):
    """Another condition changes the likelihood, the prior where it is learnt, and q where there is one."""
    other = example | {"class_ids": (example["class_ids"].clamp(min=0) + 1) % 2}
    size = model.config.latent_size
    z = torch.randn(4, size)
    losses = [model(latents=z, **without(x, "input_ids", "input_features")).loss for x in (example, other)]
    assert abs(losses[0] - losses[1]) > 1e-3
    if size:
        assert not torch.allclose(model.encode(**example).mean, model.encode(**other).mean)
        same = torch.equal(
            model.prior(**without(example, "labels")).mean, model.prior(**without(other, "labels")).mean
        )
        assert same == (not model.config.learn_prior)


def test_padding_and_other_rows_change_nothing(model, example):
    z = model.encode(**example).sample((2,))
    expected = model.log_importance_weights(latents=z, **example)
    torch.testing.assert_close(model.log_importance_weights(latents=z, **widened(example)), expected)
    for row in range(4):
        alone = model.log_importance_weights(latents=z[:, row : row + 1], **rows_of(example, slice(row, row + 1)))
        torch.testing.assert_close(alone[:, 0], expected[:, row])


def test_the_prior_sees_no_input(model, example):
    if not model.config.latent_size:
        pytest.skip("there is no z")
    conditions = without(example, "input_ids", "input_features", "labels", "attention_mask")
    p = model.prior(**conditions)
    assert torch.equal(p.mean, model.prior(**example).mean)
    # The KL that is charged is to p(z|c): by Monte Carlo.
    q = model.encode(**example)
    z = q.sample((50_000,))
    estimate = (q.log_prob(z) - p.log_prob(z)).mean(0)
    torch.testing.assert_close(estimate, kl_divergence(q, p), rtol=0.03, atol=0.03)
    torch.testing.assert_close(model(**example).kl, kl_divergence(q, p).mean())


def test_encoder_outputs_are_scored_under_their_own_condition(model, example):
    """The KL is to p(z|c), whoever ran the encoder."""
    if not model.config.latent_size:
        pytest.skip("there is no z")
    x = without(example, "labels")
    outputs = model._encoder_outputs(model.condition(**x), **without(x, "class_ids", "attributes", "condition"))
    given = {name: tensor for name, tensor in example.items() if name in ("labels", "attention_mask")}
    given = given if model.config.input_size is not None else without(given, "attention_mask")
    torch.testing.assert_close(model(encoder_outputs=outputs, **given).kl, model(**example).kl)
    with pytest.raises(ValueError, match="`encoder_outputs` are decoded as they are, c included"):
        model(encoder_outputs=outputs, class_ids=x["class_ids"], **given)


def test_log_importance_weights_are_the_three_densities(model, example):
    q = model.encode(**example)
    z, inputs = q.sample((3,)), ("input_ids", "input_features")
    weights = model.log_importance_weights(latents=z, **example)
    for k in range(3):
        loss = model(latents=z[k], **without(example, *inputs)).loss
        expected = model.prior(**without(example, "labels")).log_prob(z[k]) - q.log_prob(z[k])
        torch.testing.assert_close((weights[k] - expected).mean(), -loss, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"num_train_samples": 3}, {"svi_steps": 2, "kernels": "plain"}])
def test_one_step_lowers_the_loss_and_every_parameter_has_its_gradient(model, example, options):
    """All of them, whatever is missing: several processes would otherwise wait for each other."""
    config = model.config
    if options and (config.label_classifier or not config.latent_size or config.posterior != "gaussian"):
        pytest.skip("refused, with its reason")
    model = type(model)(type(config)(**config.to_dict() | options)).train()
    for i, x in enumerate((example, without(example, "class_ids", "attributes", "condition"))):
        model.zero_grad()
        torch.manual_seed(i)
        before = model(**x).loss
        before.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 1e-3 * parameter.grad
        torch.manual_seed(i)
        assert model(**x).loss < before


def test_saved_and_loaded_it_is_the_same(model, example, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert loaded.config.condition_labels == model.config.condition_labels
    assert torch.equal(loaded(**example).loss, model(**example).loss)
    if len(model.config.condition_labels) == 1:
        assert loaded.config.id2label == {0: "a", 1: "b", 2: "c"} and loaded.config.label2id["c"] == 2


def test_runs_in_bfloat16(model, example):
    assert model.to(torch.bfloat16)(**example).loss.isfinite()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model.float().train()(**example)
    assert outputs.loss.isfinite() and outputs.kl.dtype == torch.float32


def said(model, value=0):
    names = model.config.condition_labels
    return {name: values[value] for name, values in names.items()}


def test_the_same_z_under_another_label(model, example):
    z = torch.randn(3, model.config.latent_size)
    first, second = (generated(model, latents=z, labels=said(model, value)) for value in (0, 1))
    assert not torch.equal(first, second)
    ids = torch.zeros(3, len(model.config.condition_labels), dtype=torch.long)
    assert torch.equal(first, generated(model, latents=z, class_ids=ids))
    if len(model.config.condition_labels) == 1:  # one z, every label; by name, by id
        several = generated(model, latents=z[:1], labels=["a", "b", "c"])
        torch.testing.assert_close(several[:2], torch.cat([first[:1], second[:1]]))
        assert torch.equal(several, generated(model, latents=z[:1], labels=[0, 1, 2]))
        by_name, by_id = (model.prior(labels=said).mean for said in (["c", "a"], torch.tensor([2, 0])))
        assert torch.equal(by_name, by_id)
    else:  # what is not said is as in the batch
        mood = generated(model, latents=z, labels={"mood": "question"}, class_ids=ids)
        assert torch.equal(mood, generated(model, latents=z, class_ids=ids + torch.tensor([1, 0])))


def test_the_encoder_s_hidden_states_are_returned_where_asked_for(batch):
    """As `generate` of transformers' own encoder-decoder models does."""
    model, ids = make_model(condition_labels={"kind": ["a", "b", "c"]}), torch.tensor([1] * len(batch["input_ids"]))
    wanted = {"return_dict_in_generate": True, "output_hidden_states": True, "max_new_tokens": 3}
    states = model.generate(**batch, class_ids=ids, **wanted).encoder_hidden_states
    inputs = {**batch, "condition": model.condition(class_ids=ids), "output_hidden_states": True}
    for state, own in zip(states, model.get_encoder()(**inputs).hidden_states, strict=True):
        assert torch.equal(state, own)
    assert model.generate(latents=torch.randn(2, 6), **wanted).encoder_hidden_states is None


def test_an_input_is_decoded_under_its_own_label_or_another(model, example):
    x = without(example, "labels")
    z = model.encode(**x).mode
    own = generated(model, latents=z, **without(x, "input_ids", "input_features", "attention_mask"))
    assert torch.equal(generated(model, **x), own)
    attributes = without(x, "input_ids", "input_features", "attention_mask", "class_ids")
    moved = generated(model, latents=z, labels=said(model, 1), **attributes)
    assert torch.equal(generated(model, labels=said(model, 1), **x), moved)
    one = rows_of(x, slice(0, 1))
    under_both = {name: values[:2] for name, values in model.config.condition_labels.items()}
    several = generated(model, labels=under_both, **one)
    torch.testing.assert_close(several[1], generated(model, labels=said(model, 1), **one)[0])


def test_without_input_and_latents_z_is_drawn(model):
    labels = {name: [values[0], values[1], values[1]] for name, values in model.config.condition_labels.items()}
    torch.manual_seed(3)
    drawn = generated(model, labels=labels)
    torch.manual_seed(3)
    z = model.prior(labels=labels).sample((3,) if model.prior(labels=labels).batch_shape == () else ())
    assert torch.equal(drawn, generated(model, latents=z, labels=labels))


def test_without_input_and_latents_an_unconditional_model_draws_z_too():
    model, beginning = make_model(), torch.tensor([[2, 5], [2, 6], [2, 7]])
    for options, rows in (({}, 1), ({"decoder_input_ids": beginning}, 3)):
        torch.manual_seed(3)
        drawn = model.generate(max_length=9, **options)
        torch.manual_seed(3)
        z = model.prior().sample((rows,))
        assert torch.equal(drawn, model.generate(latents=z, max_length=9, **options))


def test_unconditional_models_have_no_conditions(batch):
    model = make_model()
    for bad in ({"labels": "past"}, {"class_ids": torch.tensor([1])}):
        with pytest.raises(ValueError, match="no condition"):
            model.generate(latents=torch.randn(1, 6), **bad)
    with pytest.raises(ValueError, match="no condition"):
        model(**batch, class_ids=torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match="no condition"):
        model.prior(labels="past")


def test_a_condition_is_of_tensors():
    model, z = make_model(**CONDITIONAL["conditional"]), torch.randn(2, 6)
    with pytest.raises(ValueError, match=r"`class_ids` must be a tensor, got list. Use `torch.tensor\(class_ids\)`"):
        model(latents=z, class_ids=[[0, 1], [1, 0]], decoder_input_ids=torch.ones(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="`attributes` must be finite, or NaN where missing"):
        model.prior(attributes=torch.tensor([[1.0, math.inf]]))


@pytest.mark.parametrize(
    "labels, message",
    [
        ({"tense": "pluperfect"}, "'tense' has the values past, present, future; got 'pluperfect'"),
        ({"tense": 3}, "'tense' has the ids 0 to 2, past, present, future.* got 3"),
        ({"aspect": "past"}, r"must be of \['mood', 'tense'\], got 'aspect'"),
        ("past", "dictionary where there are several labels"),
        ({"tense": ["past", "past"], "mood": [0, 1, 1]}, "one value for all rows, or one per row"),
        (
            {"tense": ["past", None, "past", "past"]},
            "must be a name or an id, .* got None",
        ),
        (
            {"tense": torch.zeros(4, 1, dtype=torch.long)},
            r"must be a name or an id, .* got \[0\]",
        ),
    ],
)
def test_unknown_labels_are_named(labels, message):
    model = make_model(**CONDITIONAL["conditional"])
    with pytest.raises(ValueError, match=message):
        model.generate(latents=torch.randn(4, 6), labels=labels)


def test_bad_conditions_are_named(batch):
    model = make_model(**CONDITIONAL["conditional"])
    for bad, message in [
        ({"class_ids": torch.tensor([[0, 5]] * 4)}, "'tense' has the ids 0 to 2"),
        ({"class_ids": torch.tensor([0] * 4)}, r"\[batch, 2\] for the model's `condition_labels`"),
        ({"class_ids": torch.zeros(4, 2)}, "must be integers"),
        ({"attributes": torch.zeros(4, 3)}, r"\[batch, 2\] for the model's `condition_attributes`"),
        ({"condition": torch.zeros(3, 3), "attributes": torch.zeros(4, 2)}, "as many rows"),
        ({"condition": torch.zeros(3, 3)}, "one per row of the 4; got 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.encode(**batch, **bad)


def test_attributes_are_standardised_and_missing_is_a_value_of_its_own():
    embed = make_model(**CONDITIONAL["conditional"]).model.embed_condition
    at_mean, none = torch.tensor([[3.0, -1.0]]), torch.tensor([[torch.nan, torch.nan]])
    c = embed(attributes=at_mean)
    assert torch.equal(c[0, 8:12], torch.zeros(4)) and not torch.allclose(embed(attributes=none)[0, 8:12], c[0, 8:12])
    assert torch.equal(embed(attributes=none)[0], embed())
    one_up = embed(attributes=torch.tensor([[5.0, -1.0]]))
    torch.testing.assert_close(one_up[0, 8:12], embed.attributes.weight[:, 0])
    halves = make_model(condition_attributes=["length"], attribute_mean=[10.5], attribute_scale=[0.5])
    told = [halves.condition(attributes=value) for value in (torch.tensor([[14]]), torch.tensor([[14.0]]))]
    assert torch.equal(*told)  # an integer is no reason to round


def test_a_model_with_a_condition_learns_to_go_without_it_unless_it_infers_it():
    """Else what is decoded where no label is said, on a path for example, would stand under a vector never trained."""
    shares = [make_model(**c).config.condition_dropout for c in ({"condition_labels": LABELS}, SEMI, {})]
    assert shares == [0.1, 0.0, 0.0]


def test_condition_dropout_takes_all_of_a_row_and_in_training_only():
    embed = make_model(**CONDITIONAL["conditional"] | {"condition_dropout": 0.5}).model.embed_condition
    given = {"class_ids": torch.ones(400, 2, dtype=torch.long), "attributes": torch.zeros(400, 2)}
    given["condition"] = torch.ones(400, 3)
    kept = embed(**given)[0]
    assert torch.equal(embed(**given), kept.expand(400, -1))
    rows = embed.train()(**given)
    lost = (rows == embed()).all(1)
    assert ((rows == kept).all(1) | lost).all() and 150 < lost.sum() < 250


# A missing label.


def marginal_setup(make, batch):
    model = make(embedding_initializer_range=1.0, **SEMI)
    x = make_frames(model) if make is make_frame_model else batch | {"labels": model.labels_from_input_ids(**batch)}
    return model, x, torch.tensor([0.5, 0.3, 0.2]).log()


@pytest.mark.parametrize("make", [make_model, make_frame_model])
def test_a_missing_label_is_summed_over(make, batch):
    model, x, log_p = marginal_setup(make, batch)
    q = model.encode(**x)
    z = q.sample((5,))
    of_each = [
        model.log_importance_weights(latents=z, posterior=q, class_ids=torch.full((4,), c), **x) for c in range(3)
    ]
    expected = torch.stack([w + p for w, p in zip(of_each, log_p, strict=True)]).logsumexp(0)
    known = torch.tensor([-100, 2, -100, 0])
    for labels in (None, known):
        weights = model.log_importance_weights(latents=z, posterior=q, class_ids=labels, **x)
        torch.testing.assert_close(weights[:, 0], expected[:, 0])
    torch.testing.assert_close(weights[:, 1], of_each[2][:, 1])
    terms = model.evaluation_terms(4, class_ids=known, **x)
    again = model.log_importance_weights(latents=z[:4], posterior=q, class_ids=known, **x)
    assert terms["log_weights"].shape == again.shape
    assert terms["label_known"].tolist() == [False, True, False, True]
    assert terms["label_right"].tolist() == (model.classify(**x).probs.argmax(-1) == known).tolist()


def test_weights_where_a_label_is_missing_take_as_many_samples_as_any(batch):
    model = make_model(**SEMI)
    with pytest.raises(ValueError, match="`num_samples` must be 1 or more, got 0"):
        model.log_importance_weights(0, **batch)
    with pytest.raises(ValueError, match="`latents` must be K samples of"):
        model.log_importance_weights(latents=torch.randn(2, 4, 5), **batch)


@pytest.mark.parametrize("make", [make_model, make_frame_model])
@pytest.mark.parametrize("learn_prior", [True, False])
def test_the_semi_supervised_loss_by_hand(make, learn_prior, batch, monkeypatch):
    """Each row by each label on its own, as a labelled one; noise and dropout are switched off."""
    options = {"dropout": 0, "word_dropout": 0, "classifier_weight": 0.7, "learn_prior": learn_prior}
    model = make(embedding_initializer_range=1.0, **SEMI | options)
    _, x, log_p = marginal_setup(make, batch)
    monkeypatch.setattr("hf_vrae.modeling.distributions._standard_normal", lambda shape, *_: torch.full(shape, 0.3))
    model.kl_weight = 0.6
    known = torch.tensor([1, -100, -100, 2])
    q_c = model.classify(**x).logits
    torch.testing.assert_close(q_c.exp().sum(1), torch.ones(4))
    total = torch.zeros(())
    for row in range(4):
        one = rows_of(x, slice(row, row + 1))
        bounds = []
        for c in range(3):
            q = model.encode(class_ids=torch.tensor([c]), **one)
            z = q.rsample()
            outputs = model(latents=z, class_ids=torch.tensor([c]), **without(one, "input_ids", "input_features"))
            bounds.append(outputs.loss + 0.6 * kl_divergence(q, model.prior(class_ids=torch.tensor([c])))[0])
        if known[row] >= 0:
            c = known[row]
            total += bounds[c] - log_p[c] - 0.7 * q_c[row, c]
        else:
            q = q_c[row].exp()
            total += (q * (torch.stack(bounds) + q_c[row] - log_p)).sum()
    outputs = model.train()(class_ids=known, **x)
    torch.testing.assert_close(outputs.loss, total / 4, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [make_model, make_frame_model])
def test_one_label_for_all_rows_trains_them_all(make, batch):
    model, x, _ = marginal_setup(make, batch)
    losses = []
    for rows in (1, 4):
        torch.manual_seed(0)
        losses.append(model.train()(class_ids=torch.ones(rows, dtype=torch.long), **x).loss)
    torch.testing.assert_close(*losses)
    with pytest.raises(ValueError, match="one per row of the 4; got 3"):
        model(class_ids=torch.tensor([1, 1, 1]), **x)


def test_a_missing_label_is_inferred_or_asked_for(batch):
    model, x, _ = marginal_setup(make_model, batch)
    likeliest = model.classify(**x).probs.argmax(-1)
    assert torch.equal(model.encode(**x).mean, model.encode(class_ids=likeliest, **x).mean)
    known = torch.where(torch.tensor([True, False, True, False]), -100, (likeliest + 1) % 3)
    mixed = torch.where(known == -100, likeliest, known)
    assert torch.equal(model.encode(class_ids=known, **x).mean, model.encode(class_ids=mixed, **x).mean)
    for ask in (model.prior, lambda: model.generate(latents=torch.randn(2, 6))):
        with pytest.raises(ValueError, match="say one of"):
            ask()
    with pytest.raises(ValueError, match="needs a model with `label_classifier`"):
        make_model().classify(**batch)


# Guidance.


GUIDED = {"condition_labels": {"kind": ["a", "b", "c"]}, "condition_dropout": 0.3}
MODES = {"greedy": {}, "sampling": {"do_sample": True}, "beams": {"num_beams": 3}}


def guided_step(model, ids, z, labels, scale):
    """The scores of the next token by two whole passes."""
    with torch.no_grad():
        given = {"latents": z, "decoder_input_ids": ids}
        c = model(class_ids=labels, **given).logits[:, -1].log_softmax(-1)
        u = model(**given).logits[:, -1].log_softmax(-1)
    return (u + scale * (c - u)).log_softmax(-1)


@pytest.mark.parametrize("options", [{}, {"latent_size": 0}, {"rnn_type": "gru", "kernels": "plain"}])
def test_guided_scores_are_of_two_passes(options):
    model = make_model(**GUIDED, **options)
    z, labels = torch.randn(3, model.config.latent_size), torch.tensor([0, 2, 1])
    wanted = {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 5, "min_new_tokens": 5}
    outputs = model.generate(latents=z, labels=labels, guidance_scale=2.5, **wanted, eos_token_id=None)
    for step, scores in enumerate(outputs.scores):
        expected = guided_step(model, outputs.sequences[:, : step + 1], z, labels, 2.5)
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
    plain = {"max_new_tokens": 5, "eos_token_id": None}
    assert torch.equal(model.generate(latents=z, labels=labels, guidance_scale=2.5, **plain), outputs.sequences)
    by_config = GenerationConfig(guidance_scale=2.5, max_new_tokens=5, pad_token_id=0, decoder_start_token_id=2)
    assert torch.equal(model.generate(latents=z, labels=labels, generation_config=by_config), outputs.sequences)
    assert by_config.guidance_scale == 2.5
    unguided = model.generate(latents=z, labels=labels, **plain)
    assert torch.equal(model.generate(latents=z, labels=labels, guidance_scale=1, **plain), unguided)


def test_a_penalty_is_of_the_guided_scores():
    model = make_model(**GUIDED)
    z, labels = torch.randn(3, 6), torch.tensor([0, 2, 1])
    wanted = {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 5, "eos_token_id": None}
    outputs = model.generate(latents=z, labels=labels, guidance_scale=3.0, repetition_penalty=1.7, **wanted)
    penalty = RepetitionPenaltyLogitsProcessor(1.7)
    for step, scores in enumerate(outputs.scores):
        ids = outputs.sequences[:, : step + 1]
        torch.testing.assert_close(scores, penalty(ids, guided_step(model, ids, z, labels, 3.0)), rtol=1e-4, atol=1e-4)


def test_guided_beams_are_scored_by_whole_passes():
    """Beams change places, and the unconditional state with them: the score of the best is that of its own tokens."""
    model = make_model(**GUIDED)
    z, labels = torch.randn(3, 6), torch.tensor([0, 2, 1])
    wanted = {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 6, "eos_token_id": None}
    outputs = model.generate(latents=z, labels=labels, guidance_scale=3.0, num_beams=4, length_penalty=0.0, **wanted)
    total = torch.zeros(3)
    for step in range(6):
        scores = guided_step(model, outputs.sequences[:, : step + 1], z, labels, 3.0)
        total += scores.gather(1, outputs.sequences[:, step + 1 : step + 2]).squeeze(1)
    torch.testing.assert_close(outputs.sequences_scores, total, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
def test_guidance_with_beginnings_and_several_sequences_of_one(mode):
    model = make_model(**GUIDED)
    z, several = torch.randn(2, 6), {"num_return_sequences": 2} if mode else {}
    padded = torch.tensor([[2, 5, 0], [2, 6, 7]])
    options = {"guidance_scale": 2.0, "labels": ["a", "b"], "max_new_tokens": 4, **mode, **several}
    torch.manual_seed(0)
    together = model.generate(latents=z, decoder_input_ids=padded, **options)
    torch.manual_seed(0)
    assert torch.equal(model.generate(latents=z, decoder_input_ids=padded, use_cache=False, **options), together)
    if not mode:
        alone = model.generate(latents=z[:1], decoder_input_ids=padded[:1, :2], **options | {"labels": "a"})
        assert torch.equal(alone[0, 2:], together[0, 3 : 3 + alone.shape[1] - 2])


@pytest.mark.parametrize("decoder_type", ["rnn", "transformer"])
def test_guidance_of_beginnings_without_their_start(decoder_type):
    """`generate` puts it before them, and before their mask."""
    model, z = make_model(**GUIDED, decoder_type=decoder_type), torch.randn(2, 6)
    wanted = {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 4, "eos_token_id": None}
    options = {"guidance_scale": 3.0, "labels": ["a", "b"], **wanted}
    bare = model.generate(latents=z, decoder_input_ids=torch.tensor([[5, 0], [6, 7]]), **options)
    begun = model.generate(latents=z, decoder_input_ids=torch.tensor([[2, 5, 0], [2, 6, 7]]), **options)
    assert torch.equal(bare.sequences, begun.sequences)
    for own, expected in zip(bare.scores, begun.scores, strict=True):
        torch.testing.assert_close(own, expected)


@pytest.mark.parametrize("places", [["initial_state", "input", "output"], ["initial_state"]], ids=str)
@pytest.mark.parametrize("head", ["bernoulli", "categorical"])
def test_guided_frames_have_guided_logits(head, places):
    """log p = u + s (h - u), frame after frame, of the logits of two whole passes."""
    options = {"latent_conditioning": places, "embedding_initializer_range": 1.0}
    model = make_frame_model(head=head, **GUIDED, **options)
    z, beginning, logits = torch.randn(2, 4), torch.randint(0, 2, (2, 3, 3)).float(), []
    model.head.register_forward_hook(lambda module, inputs, outputs: logits.append(outputs.logits))

    def logits_of(**options):
        logits.clear()
        model.generate(latents=z, beginning=beginning, max_length=4, **options)
        return torch.stack(logits)

    under, without = logits_of(labels=["a", "c"]), logits_of()
    assert not torch.allclose(under, without, atol=0.1) and len(under) == 4
    guided = logits_of(labels=["a", "c"], guidance_scale=2.5)
    expected = without + 2.5 * (under - without)
    expected = expected.log_softmax(-1) if head == "categorical" else expected
    torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits_of(labels=["a", "c"], guidance_scale=1), under)


def test_frames_are_of_the_length_of_their_input_under_each_of_several_labels():
    model = make_frame_model(**GUIDED)
    frames = torch.randn(1, 7, 3)
    both = model.generate(input_features=frames, labels=["a", "b"])
    assert both.sequences.shape == (2, 7, 3) and both.lengths.tolist() == [7, 7]
    alone = model.generate(input_features=frames, labels="b")
    torch.testing.assert_close(both.sequences[1:], alone.sequences)


def test_one_label_for_all_frames_that_are_generated():
    model = make_frame_model(**GUIDED)
    for lengths, beginning in (([3, 4], None), ([3, 4], torch.randn(2, 1, 3)), (None, torch.randn(2, 1, 3))):
        made = model.generate(labels="a", lengths=lengths, max_length=4, beginning=beginning)
        assert made.lengths.tolist() == (lengths or [4, 4]) and not torch.equal(*made.sequences[:, 1:3])


def test_labels_beside_ids_of_another_shape_are_refused():
    model = make_model(condition_labels=LABELS)
    beside = {"latents": torch.randn(3, 6), "labels": {"mood": "question"}}
    with pytest.raises(ValueError, match=r"must be \[batch, 2\].*got \[3\]"):
        model.generate(**beside, class_ids=torch.tensor([0, 1, 0]))
    with pytest.raises(ValueError, match=r"for each of the 3 of `labels`.*got \[2, 2\]"):
        model.generate(**beside | {"labels": {"mood": ["question"] * 3}}, class_ids=torch.zeros(2, 2).long())
    with pytest.raises(ValueError, match="one label, or one per row of the 4; got 3"):
        make_model(**SEMI).infer_labels(torch.tensor([0, -100, 1]), input_ids=torch.randint(4, 40, (4, 5)))


def test_guided_decoding_may_be_assisted():
    """Drafts that are not taken are no part of what the unconditional pass has read."""
    model = make_model(**GUIDED, decoder_type="transformer")
    z = torch.randn(1, 6)
    for label in ("a", "b"):
        options = {"guidance_scale": 3.0, "labels": label, "max_new_tokens": 20, "eos_token_id": None}
        guided = model.generate(latents=z, **options, pad_token_id=0)
        drafted = model.generate(latents=z, **options, pad_token_id=0, prompt_lookup_num_tokens=3)
        assert torch.equal(guided, drafted)


def test_guidance_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="`condition_dropout` above 0"):
        make_model(**GUIDED | {"condition_dropout": 0}).generate(latents=torch.randn(1, 6), guidance_scale=2.0)
    with pytest.raises(ValueError, match="above 0"):
        make_model(**GUIDED).generate(latents=torch.randn(1, 6), guidance_scale=-1.0)
    with pytest.raises(ValueError, match="got gaussian, whose distributions guidance would leave"):
        make_frame_model(**GUIDED).generate(latents=torch.randn(1, 4), max_length=2, guidance_scale=2.0)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
def test_cached_is_uncached(mode):
    model = make_model(**CONDITIONAL["conditional"])
    given = {"latents": torch.randn(4, 6), **conditions_of(model), "max_new_tokens": 6, **mode}
    torch.manual_seed(0)
    cached = model.generate(**given)
    torch.manual_seed(0)
    assert torch.equal(model.generate(**given, use_cache=False), cached)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"condition_dropout": 0.1}, "the model has none"),
        ({"condition_embedding_size": 9}, "`condition_embedding_size` 9 is of a condition"),
        ({"learn_prior": False}, "`learn_prior` False is of a condition"),
        ({"classifier_weight": 5.0, "condition_labels": LABELS}, "`classifier_weight` 5.0 is of `label_classifier`"),
        ({"label_classifier": True}, "exactly one label"),
        ({"label_classifier": True, "condition_labels": LABELS}, "exactly one label"),
        (SEMI | {"latent_size": 0}, "model without encoder"),
        (SEMI | {"condition_dropout": 0.1}, "no row is without one"),
        (SEMI | {"free_bits": 0.1}, "weighted by"),
        (SEMI | {"posterior": "batch_norm", "learn_prior": False}, "statistics of all of these together"),
        (SEMI | {"label_frequencies": [0.5, 0.5]}, "one for each value"),
        (GUIDED | {"posterior": "vmf"}, "`learn_prior` false"),
        (GUIDED | {"correlated_prior": True}, "`correlated_prior` is one for all"),
        ({"condition_labels": {"a": ["x", "x"]}}, "each value of label 'a' once"),
        ({"condition_attributes": ["a"], "attribute_mean": [0.0, 1.0]}, "each of the 1"),
        ({"condition_attributes": ["a"], "attribute_scale": [0.0]}, "above 0"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        VRAEConfig(**options)


def test_labels_by_name_and_id():
    names = {"kind": ["a", "b"]}
    assert label_ids(["b", 0], names).tolist() == [[1], [0]] and label_ids("a", names).tolist() == [[0]]
    assert label_ids({}, names).tolist() == [[-100]]


def test_classes():
    config = VRAEConfig(condition_labels={"kind": ["a", "b"]})
    assert isinstance(VRAEForSequenceGeneration(config).model.conditional_prior, torch.nn.Module)
    assert (
        VRAEForFrameGeneration(VRAEConfig(input_size=2, latent_size=0, condition_size=2)).config.condition_width == 16
    )


def test_each_beginning_has_a_latent_of_its_own():
    """As without a condition: one label said of all is no reason to draw one z for all."""
    model = make_model(condition_labels={"kind": ["a", "b"]})
    beginnings = torch.tensor([[2, 5], [2, 6], [2, 7]])
    for labels in ("a", ["a"], ["a", "b", "a"]):
        assert len(model.generate(decoder_input_ids=beginnings, labels=labels, max_length=6)) == 3
    with pytest.raises(ValueError, match="a row for each of the 2 sequences"):
        model.generate(decoder_input_ids=beginnings, labels=["a", "b"], max_length=6)


@pytest.mark.parametrize("make", [make_model, make_frame_model])
def test_other_conditions_count_beside_a_label_that_is_inferred(make, batch):
    """In the bound where a label is missing, and in the loss."""
    options = {"condition_attributes": ["length"], "embedding_initializer_range": 1.0, "dropout": 0, "word_dropout": 0}
    model = make(**SEMI, **options)
    x = make_frames(model) if make is make_frame_model else batch | {"labels": model.labels_from_input_ids(**batch)}
    q = model.encode(**x)
    z, bounds, losses = q.sample((3,)), [], []
    for length in (0.0, 2.0):
        given = {"class_ids": torch.tensor([1, -100, -100, 2]), "attributes": torch.full((4, 1), length), **x}
        bounds.append(model.eval().log_importance_weights(latents=z, posterior=q, **given))
        torch.manual_seed(0)
        losses.append(model.train()(**given).loss)
    assert not torch.isclose(*bounds).any() and not torch.isclose(*losses)


@pytest.mark.parametrize("make", [make_model, make_frame_model])
def test_mmd_is_to_the_prior_of_the_condition(make, batch, monkeypatch):
    monkeypatch.setattr("hf_vrae.modeling.modeling_latent.maximum_mean_discrepancy", lambda z, prior_z: prior_z.sum())
    monkeypatch.setattr("hf_vrae.modeling.distributions._standard_normal", lambda shape, *_: torch.zeros(shape))
    labels = {"condition_labels": {"kind": ["a", "b"]}, "condition_dropout": 0.0}
    model = make(mmd_weight=2.0, **labels).train()
    x = make_frames(model) if make is make_frame_model else batch | {"labels": model.labels_from_input_ids(**batch)}
    ids = torch.tensor([0, 1, 1, 0])
    outputs, drawn = model(class_ids=ids, **x), model.prior(class_ids=ids).mean
    torch.testing.assert_close(outputs.loss, outputs.reconstruction_loss + outputs.kl + 2 * drawn.sum())


def test_refinement_goes_by_the_prior_of_the_condition(batch, monkeypatch):
    model, given = make_model(condition_labels={"kind": ["a", "b"]}), []
    monkeypatch.setattr("hf_vrae.modeling.modeling_latent.refine", lambda q, f, *_: given.append(f) or q)
    x = batch | {"class_ids": torch.tensor([0, 1, 1, 0])}
    q, p = model.encode(**x), model.prior(**x)
    z = q.sample()
    log_p = model.log_importance_weights(latents=z.unsqueeze(0), **x)[0] + q.log_prob(z) - p.log_prob(z)
    model.refine(q, model.target(**x), 1, condition=model.condition(**x))
    torch.testing.assert_close(given[0](q, z), kl_divergence(q, p) - log_p)


def test_frequencies_of_labels_are_shares_whatever_their_sum():
    models = [make_model(**SEMI | {"label_frequencies": counts}) for counts in ([5, 3, 2], None)]
    shares = [model._log_label_prior().exp() for model in models]
    torch.testing.assert_close(shares, [torch.tensor([0.5, 0.3, 0.2]), torch.full((3,), 1 / 3)])


def test_a_vector_with_a_missing_number_is_missing():
    embed = make_model(**CONDITIONAL["conditional"]).model.embed_condition
    assert torch.equal(embed(condition=torch.tensor([[torch.nan, 1.0, 2.0]]))[0], embed())


def test_scheduled_sampling_is_under_the_condition(batch):
    model = make_model(**CONDITIONAL["conditional"]).train()
    model.sampling_probability = 1.0
    assert model(labels=model.labels_from_input_ids(**batch), **conditions_of(model), **batch).loss.isfinite()


def test_what_an_evaluation_takes_of_a_batch_is_under_its_condition(model, example):
    """The KL is to p(z|c), and the rest of the weight of one z is its log p(x|z, c)."""
    terms = model.evaluation_terms(1, generators_of_rows(4), **example)
    expected = kl_divergence(model.encode(**example), model.prior(**without(example, "labels")))
    torch.testing.assert_close(terms["kl"].float(), expected, rtol=1e-4, atol=1e-5)
    loss = model(latents=terms["latents"], **without(example, "input_ids", "input_features")).loss
    torch.testing.assert_close(terms["reconstruction"].mean().float(), loss, rtol=1e-4, atol=1e-4)
