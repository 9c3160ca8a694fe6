"""`generate` in every mode: with the cache as without it, and leaving the caller's tensors alone."""

import copy

import pytest
import torch
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    GenerationMixin,
    TextIteratorStreamer,
    set_seed,
)
from transformers.modeling_outputs import BaseModelOutput

from hf_vrae.modeling.cache_name import CACHE
from hf_vrae.modeling.encoders import VRAEEncoderOutput
from hf_vrae.modeling.generation import RecurrentCache
from tests.models import CONDITIONAL, LANGUAGE_MODELS, VARIANTS, make_frame_model, make_frames, make_model

MODES = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 0.8},
    "top-k, top-p": {"do_sample": True, "top_k": 10, "top_p": 0.9},
    "beams": {"num_beams": 3},
    "beam sampling": {"num_beams": 3, "do_sample": True},
    "several of one": {"do_sample": True, "num_return_sequences": 3},
    "several beams": {"num_beams": 4, "num_return_sequences": 2},
    "repetition penalty": {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
}
LENGTH = {"max_new_tokens": 7}
ALL = VARIANTS | LANGUAGE_MODELS


@pytest.fixture(params=ALL.values(), ids=ALL.keys())
def model(request):
    return make_model(**request.param)


def generate(model, seed=0, **arguments):
    set_seed(seed)
    return model.generate(**LENGTH, **arguments)


def test_a_callers_configuration_is_read_in_either_place(batch):
    model = make_model(condition_labels={"kind": ["a", "b"]}, condition_dropout=0.1)
    config = GenerationConfig(max_new_tokens=4, pad_token_id=7, eos_token_id=None)
    beginning = torch.tensor([[2, 20, 21]])
    padded = torch.cat([beginning, torch.full((1, 2), 7)], dim=1)
    z = torch.randn(1, model.config.latent_size)
    wanted = model.generate(latents=z, decoder_input_ids=beginning, generation_config=config)
    got = model.generate(latents=z, decoder_input_ids=padded, generation_config=config)
    assert torch.equal(got[:, 5:], wanted[:, 3:])
    mask = torch.tensor([[1, 1, 1, 0, 0]])  # one beginning of two latents
    both = {"latents": z.expand(2, -1), "decoder_input_ids": padded, "decoder_attention_mask": mask}
    assert torch.equal(model.generate(**both, generation_config=config)[1:, 5:], wanted[:, 3:])
    config.guidance_scale = 2.0
    named = model.generate(batch["input_ids"], generation_config=config, labels="a")
    assert torch.equal(model.generate(batch["input_ids"], config, labels="a"), named)
    with pytest.raises(ValueError, match="`cache_implementation` must be dynamic"):
        model.generate(batch["input_ids"], GenerationConfig(cache_implementation="static"))
    with pytest.raises(ValueError, match="`prefill_chunk_size` takes a beginning apart"):
        model.generate(batch["input_ids"], decoder_input_ids=beginning, prefill_chunk_size=1)
    with pytest.raises(ValueError, match="`assistant_early_exit` drafts by the first layers"):
        model.generate(batch["input_ids"], assistant_early_exit=1)
    with pytest.raises(ValueError, match="`negative_prompt_ids` are read by no one"):
        model.generate(batch["input_ids"], labels="a", guidance_scale=2.0, negative_prompt_ids=beginning)
    # What a configuration leaves out is the model's own.
    config.guidance_scale, model.generation_config.guidance_scale = None, 2.0
    assert torch.equal(model.generate(batch["input_ids"], config, labels="a"), named)
    model.generation_config.guidance_scale, model.generation_config.cache_implementation = None, "static"
    with pytest.raises(ValueError, match="`cache_implementation` must be dynamic"):
        model.generate(batch["input_ids"], config)


def test_padding_behind_a_beginning_takes_no_place_in_a_sliding_window():
    body = {"model_type": "mistral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    body |= {"num_attention_heads": 2, "num_key_value_heads": 2, "sliding_window": 3, "initializer_range": 0.5}
    model = make_model(decoder_config=body)
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "output_logits": True, "return_dict_in_generate": True}
    z, beginning = torch.randn(2, 6), torch.tensor([[2, 9, 0, 0, 0, 0], [2, 9, 8, 7, 6, 5]])
    mask = (beginning != 0).long()
    padded = model.generate(latents=z, decoder_input_ids=beginning, decoder_attention_mask=mask, **options)
    alone = model.generate(latents=z[:1], decoder_input_ids=beginning[:1, :2], **options)
    for found, wanted in zip(padded.logits, alone.logits, strict=True):
        torch.testing.assert_close(found[:1], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
@pytest.mark.parametrize("source", ["input", "latents", "beginnings"])
def test_cached_equals_uncached(model, batch, mode, source):
    arguments = {
        "input": batch,
        "latents": {"latents": torch.randn(4, model.config.latent_size)},
        "beginnings": {
            "latents": torch.randn(4, model.config.latent_size),
            "decoder_input_ids": torch.tensor([[2, 5, 0, 0], [2, 6, 7, 8], [0, 2, 9, 5], [2, 0, 9, 0]]),
        },
    }[source]
    cached = generate(model, **arguments, **mode)
    assert torch.equal(cached, generate(model, **arguments, **mode, use_cache=False))


@pytest.mark.parametrize(
    "mode", [mode for mode in MODES.values() if "num_beams" not in mode], ids=[n for n in MODES if "beam" not in n]
)
@pytest.mark.parametrize("ends", [None, 3, [3, 7, 9]], ids=str)
def test_our_loop_is_that_of_transformers(model, mode, ends, monkeypatch):
    """Tokens, padding after the end, and a criterion of the caller's own; the draws are the same by the same seed."""

    def no_nines(input_ids, scores, **kwargs):
        return (input_ids[:, -2:] == 9).all(-1)

    options = {"eos_token_id": ends, "pad_token_id": 0, "stopping_criteria": [no_nines]}
    options["latents"] = torch.randn(5, model.config.latent_size)
    theirs = generate(model, **options, **mode, return_dict_in_generate=True).sequences
    monkeypatch.setattr(GenerationMixin, "_sample", None)  # not called any more
    assert torch.equal(generate(model, **options, **mode), theirs)


@pytest.mark.parametrize("part", ["", "model", "model.decoder", "model.decoder.rnn", "model.decoder.rnn.layers.0"])
def test_a_hook_is_called_at_every_step(part):
    model, calls = make_model(**VARIANTS["deep lstm"]), []
    options = {"latents": torch.randn(2, 6), "max_new_tokens": 4, "min_new_tokens": 4}
    wanted = model.generate(**options)
    model.get_submodule(part).register_forward_hook(lambda *_: calls.append(part))
    assert torch.equal(model.generate(**options), wanted) and len(calls) == 4


def test_steps_with_a_cache_give_the_logits_of_the_whole(model, batch):
    z = torch.randn(4, model.config.latent_size)
    whole = model(latents=z, decoder_input_ids=batch["input_ids"]).logits
    cache, steps = None, []
    for token in batch["input_ids"].split([1, 3, 2, 3], dim=1):
        outputs = model(latents=z, decoder_input_ids=token, past_key_values=cache, use_cache=True)
        cache = outputs.past_key_values
        steps.append(outputs.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole)
    assert cache.get_seq_length() == 9


@pytest.mark.parametrize("starts", [None, [11, 12, 13]], ids=["read", "told"])
def test_padding_of_beginnings_changes_nothing(model, starts):
    """Beginnings of different lengths in one batch, padded on either side, against each on its own, which has its
    start in front."""
    z, words = torch.randn(3, model.config.latent_size), [[5], [6, 7, 8], [9, 5]]
    alone = [[start, *row] for start, row in zip(starts or [2] * 3, words, strict=True)]
    beginnings, width = (alone, 4) if starts is None else (words, 3)
    for left in (False, True):
        rows = [[0] * (width - len(b)) + b if left else b + [0] * (width - len(b)) for b in beginnings]
        options = {"decoder_input_ids": torch.tensor(rows)} | ({"decoder_start_token_id": starts} if starts else {})
        together = generate(model, latents=z, **options)[:, 4:]
        for row, beginning in enumerate(alone):
            options = {"decoder_input_ids": torch.tensor([beginning]), "decoder_start_token_id": beginning[0]}
            wanted = generate(model, latents=z[row : row + 1], **options)[0, len(beginning) :]
            length = min(len(wanted), together.shape[1])
            assert together[row, :length].tolist() == wanted[:length].tolist()


def test_an_input_is_reconstructed_from_its_posterior_mean(model, batch):
    by_latents = generate(model, latents=model.encode(**batch).mode)
    assert torch.equal(generate(model, **batch), by_latents)
    beside = {"labels": batch["input_ids"]}  # a target, as trainers hand it on
    assert torch.equal(generate(model, encoder_outputs=model.model.encoder(**batch), **beside), by_latents)


def test_one_beginning_serves_all_latents(model):
    z = torch.randn(4, model.config.latent_size)
    beginning = torch.tensor([[2, 5, 6]])
    assert torch.equal(
        generate(model, latents=z, decoder_input_ids=beginning),
        generate(model, latents=z, decoder_input_ids=beginning.repeat(4, 1)),
    )
    embeddings = model.get_input_embeddings()(torch.randint(4, 40, (4, 6)))
    assert torch.equal(
        generate(model, inputs_embeds=embeddings, decoder_input_ids=beginning),
        generate(model, inputs_embeds=embeddings, decoder_input_ids=beginning.repeat(4, 1)),
    )


@pytest.mark.parametrize(
    "beginnings",
    [
        [[2, 7, 0], [8, 5, 6]],
        [[0, 2, 7], [8, 5, 6]],
        [[2, 7, 9], [8, 5, 6]],
        [[0, 0, 2], [0, 8, 5]],
        [[0, 7, 0], [2, 5, 6]],
    ],
)
def test_a_row_without_its_start_gets_it_whatever_the_others_have(model, beginnings):
    z = torch.randn(2, model.config.latent_size)
    options = {"output_logits": True, "return_dict_in_generate": True, "max_new_tokens": 3, "min_new_tokens": 3}
    both = model.generate(latents=z, decoder_input_ids=torch.tensor(beginnings), **options)
    for i, row in enumerate(beginnings):
        alone = [2, *(token for token in row if token not in (0, 2))]
        wanted = model.generate(latents=z[i : i + 1], decoder_input_ids=torch.tensor([alone]), **options)
        torch.testing.assert_close(both.logits[0][i], wanted.logits[0][0], rtol=1e-4, atol=1e-4)
        assert torch.equal(both.sequences[i, -3:], wanted.sequences[0, -3:])
    # What came of it is a beginning again.
    more = model.generate(
        latents=z, decoder_input_ids=both.sequences[:, :-1], **options | {"max_new_tokens": 1, "min_new_tokens": 1}
    )
    rows = (both.sequences[:, -3:] != 0).all(1)  # a <pad> that was said is padding then
    assert torch.equal(more.sequences[rows, -1], both.sequences[rows, -1])


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
def test_the_callers_tensors_stay_as_they_are(model, batch, mode):
    with torch.no_grad():
        encoder_outputs = model.model.encoder(**batch)
    given = {
        "encoder_outputs": encoder_outputs,
        "decoder_input_ids": torch.tensor([[2, 5, 6, 7]] * 4),
        "decoder_attention_mask": torch.tensor([[1, 1, 0, 1]] * 4),
    }
    before = copy.deepcopy(given)
    first, second = (generate(model, **given, **mode) for _ in range(2))
    assert torch.equal(first, second)
    assert list(given["encoder_outputs"]) == list(before["encoder_outputs"])
    for name, tensor in before["encoder_outputs"].items():
        assert torch.equal(given["encoder_outputs"][name], tensor), name
    for name in ("decoder_input_ids", "decoder_attention_mask"):
        assert torch.equal(given[name], before[name])


def tensors_of(cache):
    if isinstance(cache, RecurrentCache):
        return [tensor for layer in cache.states(4) for tensor in layer]
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


@pytest.mark.parametrize("mode", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_continuation_from_a_cache(model, mode):
    """Go on twice from the same state: neither run may change it, and both must equal the run from the start."""
    z, beginning = torch.randn(4, model.config.latent_size), torch.tensor([[2, 5, 6]] * 4)
    options = {"eos_token_id": None, "pad_token_id": 0, "return_dict_in_generate": True}
    first = model.generate(latents=z, decoder_input_ids=beginning, max_new_tokens=3, **options)
    state = first.past_key_values
    assert state.get_seq_length() == 5  # the last token is not read yet
    kept = [tensor.clone() for tensor in tensors_of(state)]
    whole = model.generate(latents=z, decoder_input_ids=first.sequences, max_new_tokens=4, **options, **mode)
    for _ in range(2):
        further = model.generate(
            latents=z, decoder_input_ids=first.sequences, past_key_values=state, max_new_tokens=4, **options, **mode
        )
        assert torch.equal(further.sequences, whole.sequences)
    assert state.get_seq_length() == 5
    assert all(torch.equal(a, b) for a, b in zip(kept, tensors_of(state), strict=True))
    with pytest.raises(ValueError, match="has read 5 tokens.*at least one more, got 3"):
        model.generate(latents=z, decoder_input_ids=beginning, past_key_values=state, **LENGTH)


def test_a_cache_has_the_name_of_either_version_of_transformers():
    model, beginning = make_model(), torch.tensor([[2, 5, 6]] * 2)
    z = torch.randn(2, model.config.latent_size)
    options = {"latents": z, "eos_token_id": None, "pad_token_id": 0, "return_dict_in_generate": True}
    first = model.generate(decoder_input_ids=beginning, max_new_tokens=3, **options)
    whole = model.generate(decoder_input_ids=first.sequences, max_new_tokens=4, **options).sequences
    last = {"latents": z, "decoder_input_ids": first.sequences[:, -1:]}
    logits = model(latents=z, decoder_input_ids=first.sequences).logits[:, -1:]
    for name in ("cache", "past_key_values"):
        state = {name: first[CACHE]}
        further = model.generate(decoder_input_ids=first.sequences, max_new_tokens=4, **state, **options)
        assert torch.equal(further.sequences, whole)
        torch.testing.assert_close(model(**last, **{name: first[CACHE].copy()}).logits, logits)
    both = {"cache": first[CACHE], "past_key_values": first[CACHE]}
    with pytest.raises(ValueError, match="two names of one thing"):
        model(**last, **both)
    with pytest.raises(ValueError, match="two names of one thing"):
        model.generate(decoder_input_ids=first.sequences, **both, **options)


def test_scores_are_log_probabilities_of_the_choice(model):
    z = torch.randn(4, model.config.latent_size)
    outputs = generate(model, latents=z, return_dict_in_generate=True, output_scores=True, output_hidden_states=True)
    scores = model.compute_transition_scores(outputs.sequences, outputs.scores, normalize_logits=True)
    log_p = model(latents=z, decoder_input_ids=outputs.sequences[:, :-1]).logits.log_softmax(-1)
    chosen = log_p.gather(-1, outputs.sequences[:, 1:].unsqueeze(-1)).squeeze(-1)
    real = (outputs.sequences[:, 1:] != 0).cumprod(-1).bool()
    torch.testing.assert_close(scores[real], chosen[real], rtol=1e-4, atol=1e-4)


def test_streaming(tokenizer):
    model = make_model(vocab_size=len(tokenizer))
    streamer = TextIteratorStreamer(tokenizer, skip_special_tokens=True)
    z = torch.randn(1, model.config.latent_size)
    ids = model.generate(latents=z, streamer=streamer, **LENGTH)
    assert "".join(streamer).strip() == tokenizer.decode(ids[0], skip_special_tokens=True)


def test_gradients_flow_through_a_cached_run(model, batch):
    model = model.double()
    z = torch.randn(4, model.config.latent_size, dtype=torch.float64, requires_grad=True)
    cache = model(latents=z, decoder_input_ids=batch["input_ids"][:, :3], use_cache=True).past_key_values
    cache = model(latents=z, decoder_input_ids=batch["input_ids"][:, 3:5], past_key_values=cache).past_key_values
    cached = model(latents=z, decoder_input_ids=batch["input_ids"][:, 5:], past_key_values=cache).logits.sum()
    whole = model(latents=z, decoder_input_ids=batch["input_ids"]).logits[:, 5:].sum()
    inputs = {"inputs": (z, *model.model.decoder.parameters()), "materialize_grads": True}
    torch.testing.assert_close(torch.autograd.grad(cached, **inputs), torch.autograd.grad(whole, **inputs))


def test_cache_of_another_batch_is_refused():
    cache = RecurrentCache(1, 2)
    cache.update_states([(torch.zeros(3, 4), torch.zeros(3, 4))], 1)
    assert cache.states(6)[0][0].shape == (6, 4)
    with pytest.raises(ValueError, match="3 sequences, which do not fit a batch of 4"):
        cache.states(4)


def test_latents_in_place_of_an_input_only(model, batch):
    for other in (batch, {"encoder_outputs": VRAEEncoderOutput(torch.zeros(4, 1, model.config.latent_size))}):
        with pytest.raises(ValueError, match="not both"):
            model.generate(latents=torch.zeros(4, model.config.latent_size), **other)
    if model.config.latent_size:
        with pytest.raises(ValueError, match="finite numbers; row 2 has NaN"):
            model.generate(latents=torch.zeros(4, model.config.latent_size).index_fill(0, torch.tensor(2), torch.nan))


def test_encoder_outputs_of_any_kind():
    """Of another encoder the last hidden state is z; a tuple says what it was made of."""
    labels = torch.tensor([[5, 3]])
    vmf = {"posterior": "vmf"}
    for options in ({}, vmf, vmf | CONDITIONAL["semi-supervised"] | {"learn_prior": False}):
        model = make_model(**options)
        given = model._encoder_outputs(model.condition(input_ids=labels), labels, output_hidden_states=True)
        told, wanted = (dict(model(encoder_outputs=e, labels=labels)) for e in (given.to_tuple(), given))
        torch.testing.assert_close(told, wanted)
    model, z = make_model().eval(), torch.randn(3, 6)
    wanted = model.generate(latents=z, max_length=9)
    for given in (BaseModelOutput(z.unsqueeze(1)), (z.unsqueeze(1),), VRAEEncoderOutput(z.unsqueeze(1))):
        assert torch.equal(model.generate(encoder_outputs=given, max_length=9), wanted)
    frames = make_frame_model().eval()
    batch = {name: tensor for name, tensor in make_frames(frames).items() if name != "input_features"}
    ones = torch.ones(len(batch["labels"]), 1, frames.config.latent_size)
    wanted = frames(latents=ones[:, 0], **batch).reconstruction_loss
    for given in (BaseModelOutput(ones), (ones,), VRAEEncoderOutput(ones)):
        torch.testing.assert_close(frames(encoder_outputs=given, **batch).reconstruction_loss, wanted)


def test_assisted_decoding_is_greedy_decoding_where_the_cache_rolls_back(model, batch):
    row = {name: tensor[:1] for name, tensor in batch.items()}
    if model.config.decoder_type != "transformer":
        with pytest.raises(ValueError, match="not supported with stateful models"):
            model.generate(**row, prompt_lookup_num_tokens=2)
        return
    options = {"max_new_tokens": 12, "eos_token_id": None, "pad_token_id": 0}
    z = torch.randn(1, model.config.latent_size)
    assistant = copy.deepcopy(model)
    with torch.no_grad():  # one that errs now and then
        for parameter in assistant.model.decoder.parameters():
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    for given in ({"latents": z}, row, {"latents": z, "decoder_input_ids": torch.tensor([[2, 5, 6, 5, 6]])}):
        greedy = model.generate(**given, **options)
        assert torch.equal(model.generate(**given, **options, prompt_lookup_num_tokens=2), greedy)
    greedy = model.generate(**row, **options)
    assert torch.equal(model.generate(**row, **options, assistant_model=assistant), greedy)
    with pytest.raises(ValueError, match="pass `input_ids` in place of `latents`"):
        model.generate(latents=z, assistant_model=assistant, **options)


@pytest.mark.parametrize("kind", ["lstm", "transformer"])
def test_a_beginning_alone_may_be_padded(kind):
    """Where all rows had padding in front, transformers put another `<s>` before it."""
    model = make_model(**VARIANTS[kind]).eval()
    z = torch.randn(1, 6)
    plain = model.generate(latents=z, decoder_input_ids=torch.tensor([[2, 5]]), max_new_tokens=6)
    padded = model.generate(latents=z, decoder_input_ids=torch.tensor([[0, 0, 2, 5]]), max_new_tokens=6)
    assert torch.equal(padded, plain)


@pytest.mark.parametrize("kind", ["lstm", "transformer"])
def test_what_generate_cannot_go_on_from_is_refused(kind):
    model = make_model(**VARIANTS[kind]).eval()
    z = torch.randn(2, 6)
    embedded = model.model.decoder.embed_tokens(torch.tensor([[2, 5]] * 2))
    with pytest.raises(ValueError, match="pass `decoder_input_ids`"):
        model.generate(latents=z, decoder_inputs_embeds=embedded)
    stateful = "not supported with stateful models" if kind == "lstm" else "pass `input_ids` in place of `latents`"
    with pytest.raises(ValueError, match=stateful):
        model.generate(latents=z, assistant_model=model)
    other = DynamicCache() if kind == "lstm" else RecurrentCache(1, 1)
    for cache in (other, EncoderDecoderCache(DynamicCache(), DynamicCache())):
        with pytest.raises(ValueError, match="must be what an earlier call of this model returned"):
            model.generate(latents=z, past_key_values=cache)


def test_attentions_are_asked_for_by_name_and_refused(model, batch):
    """peft and transformers say `output_attentions` to every model."""
    given = batch | {"labels": batch["input_ids"]}
    torch.testing.assert_close(
        model(**given, output_attentions=None).loss, model(**given, output_attentions=False).loss
    )
    with pytest.raises(ValueError, match="`output_attentions` cannot be had"):
        model.generate(**batch, output_attentions=True, return_dict_in_generate=True, max_length=9)


@pytest.mark.parametrize("options", [{}, {"condition_labels": {"kind": ["a", "b"]}}], ids=["plain", "conditional"])
def test_what_a_mask_leaves_out_of_an_input_is_not_decoded(options, batch):
    """Nor of embeddings; what is `pad_token_id` is left out without a mask too."""
    model, mask = make_model(**options), batch["attention_mask"]
    ids = batch["input_ids"].masked_fill(mask == 0, 17)
    wanted = generate(model, latents=model.encode(ids, mask).mode)
    assert torch.equal(generate(model, input_ids=ids, attention_mask=mask), wanted)
    embedded = model.get_input_embeddings()(ids)
    assert torch.equal(generate(model, inputs_embeds=embedded, attention_mask=mask), wanted)
    assert not torch.equal(generate(model, input_ids=ids), wanted)
