"""Transformers and steps that do not meet: against GPT-2, by their invariants, and with pretrained parts."""

import pytest
import torch
from torch import nn
from torch.nn.functional import pad
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, GPT2Model, GPTJConfig, GPTJForCausalLM
from transformers.cache_utils import StaticCache

from hf_vrae import VRAEConfig, VRAEForSequenceGeneration
from tests.models import BERT, GPT2, make_frame_model, make_frames, make_model, make_tokens

TRANSFORMERS = {"encoder_type": "transformer", "decoder_type": "transformer"}


def labels_of(model, batch):
    return model.labels_from_input_ids(batch["input_ids"], batch["attention_mask"])


def test_without_latents_it_is_gpt2():
    """Its weights in our layers give its logits."""
    config = GPT2Config(vocab_size=40, n_positions=12, n_embd=16, n_layer=3, n_head=4, initializer_range=0.5)
    theirs = GPT2LMHeadModel(config).eval()
    ours = make_model(
        latent_size=0,
        decoder_type="transformer",
        decoder_layers=3,
        tie_word_embeddings=True,
        max_position_embeddings=12,
    )
    assert ours.num_parameters() == theirs.num_parameters()
    source, decoder = theirs.transformer, ours.model.decoder
    pairs = [(decoder.embed_tokens, source.wte), (decoder.transformer.positions, source.wpe)]
    pairs.append((decoder.transformer.norm, source.ln_f))
    for layer, block in zip(decoder.transformer.layers, source.h, strict=True):
        pairs += [(layer.attention_norm, block.ln_1), (layer.feed_forward_norm, block.ln_2)]
        pairs += [(layer.attention.qkv, block.attn.c_attn), (layer.attention.out, block.attn.c_proj)]
        pairs += [(layer.feed_forward[0], block.mlp.c_fc), (layer.feed_forward[2], block.mlp.c_proj)]
    with torch.no_grad():
        for ours_, theirs_ in pairs:
            transposed = isinstance(ours_, nn.Linear)  # theirs are [in, out]
            ours_.weight.copy_(theirs_.weight.t() if transposed else theirs_.weight)
            if not isinstance(ours_, nn.Embedding):
                ours_.bias.copy_(theirs_.bias)
    ids = torch.randint(0, 40, (3, 12))
    logits = ours(latents=torch.zeros(3, 0), decoder_input_ids=ids).logits
    torch.testing.assert_close(logits, theirs(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "place"),
    [("transformer", p) for p in ("memory", "prefix", "input", "output")]
    + [("gpt2", p) for p in ("prefix", "input", "output")]
    + [("independent", "input")],
)
def test_z_reaches_the_decoder_at_each_place(kind, place, batch):
    options = {"decoder_config": GPT2} if kind == "gpt2" else {"decoder_type": kind}
    model = make_model(latent_conditioning=[place], **options)
    z = torch.randn(4, 6, requires_grad=True)
    logits = model(latents=z, decoder_input_ids=batch["input_ids"]).logits
    for t in (0, 8):
        (gradient,) = torch.autograd.grad(logits[:, t].square().sum(), z, retain_graph=True)
        assert (gradient.abs() > 1e-6).all()


def test_the_prefix_is_in_the_place_of_the_start(batch):
    model = make_model(decoder_type="transformer", latent_conditioning=["prefix"])
    z, other = torch.randn(4, 6), batch["input_ids"].clone()
    other[:, 0] = 7
    logits = [model(latents=z, decoder_input_ids=ids).logits for ids in (batch["input_ids"], other)]
    torch.testing.assert_close(*logits)


@pytest.mark.parametrize("options", [TRANSFORMERS, {"decoder_config": GPT2}], ids=["ours", "gpt2"])
def test_attention_implementations_agree(options, batch, tmp_path):
    make_model(**options).save_pretrained(tmp_path)
    results = []
    for implementation in ("eager", "sdpa"):
        model = VRAEForSequenceGeneration.from_pretrained(tmp_path, attn_implementation=implementation).eval()
        assert model.config._attn_implementation == implementation
        outputs = model(**batch, labels=labels_of(model, batch))
        outputs.loss.backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        beginnings = torch.tensor([[2, 5, 0, 0], [2, 6, 7, 8], [0, 2, 9, 5], [2, 0, 9, 0]])
        ids = model.generate(**batch, decoder_input_ids=beginnings, max_new_tokens=6)
        results.append([outputs.loss.detach(), outputs.logits.detach(), gradients, ids])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model(**batch, labels=labels_of(model, batch)).loss.isfinite()
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)


def test_a_decoder_whose_outputs_are_as_wide_as_its_embeddings(batch):
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 8, "ffn_dim": 32, "num_hidden_layers": 1, "init_std": 0.5}
    opt = {"model_type": "opt", "num_attention_heads": 2, "dropout": 0.0, **sizes}
    for tied in (True, False):
        model = make_model(decoder_config=opt, tie_word_embeddings=tied, latent_conditioning=["input"])
        assert model(**batch, labels=labels_of(model, batch)).loss.isfinite()
        options = {"latents": torch.randn(2, 6), "max_new_tokens": 5, "eos_token_id": None, "pad_token_id": 0}
        assert torch.equal(model.generate(**options), model.generate(**options, use_cache=False))


@pytest.mark.parametrize("kind", ["transformer", "independent"])
def test_several_latents_of_a_row_are_as_each_alone(kind, batch):
    model = make_model(decoder_type=kind)
    z, labels = torch.randn(3, 4, 6), labels_of(model, batch)
    together = model._log_likelihood(z, labels)
    alone = torch.stack([model._log_likelihood(z[k : k + 1], labels)[0] for k in range(3)])
    torch.testing.assert_close(together, alone)


def test_checkpointed_gradients_are_the_same(batch):
    model = make_model(**TRANSFORMERS, dropout=0.0, word_dropout=0.0).train()
    gradients = []
    for _ in range(2):
        torch.manual_seed(0)
        model.zero_grad()
        model(**batch, labels=labels_of(model, batch)).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        model.activation_checkpointing_enable()
        assert all(layer.gradient_checkpointing for layer in model.model.decoder.transformer.layers)
    torch.testing.assert_close(gradients[1], gradients[0])
    with pytest.raises(ValueError, match="does not support activation checkpointing"):
        make_model().activation_checkpointing_enable()


def test_every_parameter_learns(model, batch):
    """What no gradient reaches, distributed training waits for."""
    model.train()(**batch, labels=labels_of(model, batch)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize("kind", ["transformer", "independent"])
def test_refined_posteriors_are_nearer_to_the_true_one(kind, batch):
    options = {"encoder_type": kind, "decoder_type": kind, "dropout": 0.0, "word_dropout": 0.0}
    model = make_model(**options, svi_steps=2, kernels="plain")
    labels, q = labels_of(model, batch), model.encode(**batch)
    better = model.refine(q, labels, 20)
    before, after = (-model.log_importance_weights(100, posterior=p, **batch).mean(0) for p in (q, better))
    assert after.mean() < before.mean() - 0.1
    model.train()(**batch, labels=labels).loss.backward()  # through the steps
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_step_of_a_vae_without_time_depends_on_its_place_and_z_alone():
    model = make_frame_model(decoder_type="independent", encoder_type="independent")
    batch = make_frames(model)
    given = {"latents": torch.randn(4, 4), "attention_mask": torch.ones(4, 7)}
    predictions = [model(labels=torch.rand(4, 7, 3), **given).predictions for _ in range(2)]
    torch.testing.assert_close(*predictions)
    torch.testing.assert_close(model.generate(latents=given["latents"], max_length=7).sequences, predictions[0])
    # And what one frame adds to the summary does not depend on the others.
    x = batch["input_features"].nan_to_num()[:1].repeat(4, 1, 1)
    x[1, 2], x[2, 5] = x[1, 2] + 1, x[2, 5] - 1
    x[3, 2], x[3, 5] = x[1, 2], x[2, 5]
    summaries = []
    model.model.encoder.posterior.register_forward_pre_hook(lambda module, args: summaries.append(args[0]))
    model.encode(x)
    none, first, second, both = summaries[0]
    torch.testing.assert_close(both - none, first - none + second - none)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "xlnet", "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16},  # of no last position
        {**BERT, "model_type": "squeezebert", "embedding_size": 16}  # reads its pooler
        | {f"{part}_groups": 1 for part in ("q", "k", "v", "post_attention", "intermediate", "output")},
    ],
    ids=lambda config: config["model_type"],
)
def test_padding_changes_nothing_in_encoders_of_transformers(config, batch):
    model = make_model(encoder_config=config).eval()
    rows = zip(batch["input_ids"], batch["attention_mask"].sum(1), strict=True)
    alone = [model.encode(ids[None, :length]).mean for ids, length in rows]
    torch.testing.assert_close(model.encode(**batch).mean, torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_sequences_longer_than_there_are_positions(batch):
    kinds = ({f"{part}_type": kind} for kind in ("transformer", "independent") for part in ("encoder", "decoder"))
    ours = [{**kind, "max_position_embeddings": 6} for kind in kinds]
    theirs = [{"decoder_config": GPT2 | {"n_positions": 6}}, {"encoder_config": BERT | {"max_position_embeddings": 6}}]
    # Of RoBERTa's 8 two are those of padding and before.
    roberta = {"encoder_config": BERT | {"model_type": "roberta", "max_position_embeddings": 8, "pad_token_id": 1}}
    short = make_tokens((6, 4))
    padded = {name: pad(ids, (0, 5), value=-100 * (name == "labels")) for name, ids in short.items()}
    for options in (*ours, *theirs, roberta):
        model = make_model(**options)
        torch.testing.assert_close(model(**padded).loss, model(**short).loss)  # padding needs no position
        with pytest.raises(ValueError, match="`max_position_embeddings` gives room for 6 steps, and a sequence has"):
            model(**batch, labels=labels_of(model, batch))
    model = make_model(decoder_type="transformer", max_position_embeddings=6)
    z = torch.randn(2, 6)
    assert model.generate(latents=z, max_length=7, eos_token_id=None).shape == (2, 7)
    with pytest.raises(ValueError, match="`max_position_embeddings` gives room for 6 steps"):
        model.generate(latents=z, max_length=8, eos_token_id=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder_type": "transformer", "latent_conditioning": ["initial_state"]}, "initial_state is no place of"),
        ({"latent_conditioning": ["memory"]}, "memory is no place of a decoder of kind rnn"),
        ({"decoder_config": GPT2, "latent_conditioning": ["memory"]}, "which has prefix, input, output"),
        ({"decoder_type": "transformer", "decoder_hidden_size": 30}, "split among `num_attention_heads` 4"),
        ({"decoder_type": "transformer", "weight_dropout": 0.1}, "`weight_dropout` 0.1 says nothing of"),
        ({"decoder_type": "transformer", "skip_connections": True}, "`skip_connections` True says nothing of"),
        ({**TRANSFORMERS, "rnn_type": "gru"}, "`rnn_type` gru says nothing of"),
        (
            {"encoder_type": "transformer", "bidirectional_encoder": False},
            "`bidirectional_encoder` False says nothing",
        ),
        ({"num_attention_heads": 8}, "`num_attention_heads` 8 says nothing of `encoder_type` rnn"),
        ({"memory_tokens": 8}, "`memory_tokens` 8 says nothing"),
        ({"decoder_type": "transformer", "memory_tokens": 1}, "`memory_tokens` must be 2 or more"),
        ({"decoder_type": "independent", "latent_size": 0}, "`decoder_type` independent reads nothing but z"),
        ({"decoder_type": "independent", "latent_conditioning": ["output"]}, "must have input in its"),
        ({"decoder_config": {"n_embd": 16}}, "`decoder_config` must have the `model_type`"),
        ({"decoder_config": {"model_type": "vit"}}, "`decoder_config` must be of a causal language model"),
        ({"decoder_config": {"model_type": "xlnet"}}, "gives other logits than in one pass"),
        ({"decoder_config": {"model_type": "openai-gpt"}}, "gives other logits than in one pass"),
        ({"decoder_config": {"model_type": "lfm2"}}, "gives other logits than in one pass"),
        ({"encoder_config": {"model_type": "t5"}}, "`encoder_config` is of an encoder with a decoder"),
        ({"encoder_config": {"model_type": "fnet"}}, "`encoder_config` of `model_type` fnet makes no encoder"),
        ({"decoder_config": GPT2, "decoder_type": "independent"}, "not of type independent"),
        ({"decoder_config": GPT2, "input_size": 3}, "are of models of words"),
        ({"encoder_type": "transformer", "latent_size": 0}, "a language model without encoder"),
    ],
)
def test_fields_that_make_no_model(options, message):
    with pytest.raises(ValueError, match=message):
        VRAEConfig(**options)


@pytest.fixture
def pretrained(tmp_path):
    """A small GPT-2 and a small BERT, as they would lie on the Hub."""
    torch.manual_seed(1)
    sizes = {"vocab_size": 30, "bos_token_id": 2, "eos_token_id": 3, "initializer_range": 0.5}
    GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, **sizes)).save_pretrained(tmp_path / "gpt2")
    bert = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    BertModel(BertConfig(**bert, **sizes)).save_pretrained(tmp_path / "bert")
    return tmp_path


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("places", [["input"], ["input", "output"]], ids=str)
def test_a_pretrained_decoder_begins_as_the_language_model_it_is(pretrained, tied, places):
    model = VRAEForSequenceGeneration.from_encoder_decoder_pretrained(
        pretrained / "bert", pretrained / "gpt2", latent_size=4, latent_conditioning=places, tie_word_embeddings=tied
    )
    theirs, ids = GPT2LMHeadModel.from_pretrained(pretrained / "gpt2").eval(), torch.randint(4, 30, (2, 6))
    logits = model(latents=torch.zeros(2, 4), decoder_input_ids=ids).logits
    torch.testing.assert_close(logits, theirs(ids).logits, rtol=1e-4, atol=1e-4)
    bert = BertModel.from_pretrained(pretrained / "bert").eval()
    summaries = []
    model.model.encoder.posterior.register_forward_pre_hook(lambda module, args: summaries.append(args[0]))
    model.encode(ids, torch.tensor([[1] * 6, [0] + [1] * 5]))
    torch.testing.assert_close(summaries[0][0], bert(ids[:1]).last_hidden_state[0].mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(summaries[0][1], bert(ids[1:, 1:]).last_hidden_state[0].mean(0), rtol=1e-4, atol=1e-4)
    model.save_pretrained(pretrained / "both")
    assert str(pretrained) not in (pretrained / "both" / "config.json").read_text()
    again = VRAEForSequenceGeneration.from_pretrained(pretrained / "both")
    torch.testing.assert_close(again(latents=torch.zeros(2, 4), decoder_input_ids=ids).logits, logits)


def test_a_frozen_decoder_learns_to_read_z_alone(pretrained):
    model = VRAEForSequenceGeneration.from_encoder_decoder_pretrained(
        None, pretrained / "gpt2", freeze_decoder=True, latent_size=4, encoder_hidden_size=8, vocab_size=33
    )
    assert (
        model.config.vocab_size == len(model.lm_head.weight) == model.model.decoder.embed_tokens.num_embeddings == 33
    )
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in learning if "encoder" not in name} == {
        "model.decoder.prefix.weight",
        "model.decoder.beside_input.weight",
    }
    ids = torch.randint(4, 33, (2, 6))
    model.train()(ids, torch.ones_like(ids), labels=ids).loss.backward()
    assert all(parameter.grad.any() for parameter in model.parameters() if parameter.requires_grad)


def test_a_projection_that_is_more_than_a_matrix_is_told(pretrained, monkeypatch):
    said = []
    monkeypatch.setattr("hf_vrae.modeling.pretrained.logger.warning", lambda message, *args: said.append(args))
    sizes = {"vocab_size": 30, "n_embd": 16, "n_layer": 1, "n_head": 2, "rotary_dim": 4, "eos_token_id": [3, 5]}
    gptj = GPTJForCausalLM(GPTJConfig(**sizes, bos_token_id=2))  # its projection has a bias
    nn.init.normal_(gptj.lm_head.bias)
    with torch.no_grad():
        gptj.lm_head.bias[0] = 0  # nor is the mark of padding, of zeros, all that is looked at
        gptj.get_input_embeddings().weight[0] = 0
    gptj.save_pretrained(pretrained / "gptj")
    options = {"latent_size": 4, "encoder_hidden_size": 8}
    for name in ("gpt2", "gptj"):
        model = VRAEForSequenceGeneration.from_encoder_decoder_pretrained(None, pretrained / name, **options)
    assert said == [("GPTJForCausalLM",)] and model.config.eos_token_id == 3


def test_pretrained_parts_that_do_not_fit(pretrained):
    with pytest.raises(ValueError, match="Name a pretrained encoder"):
        VRAEForSequenceGeneration.from_encoder_decoder_pretrained()
    with pytest.raises(ValueError, match="`freeze_decoder` is of `decoder_pretrained_model_name_or_path`"):
        VRAEForSequenceGeneration.from_encoder_decoder_pretrained(pretrained / "bert", freeze_decoder=True)
    GPT2Model(GPT2Config(vocab_size=20, n_embd=4, n_layer=1, n_head=1)).save_pretrained(pretrained / "small")
    with pytest.raises(ValueError, match="must read the same tokens, but they know 20 and 30"):
        VRAEForSequenceGeneration.from_encoder_decoder_pretrained(pretrained / "small", pretrained / "gpt2")


@pytest.mark.parametrize("options", [TRANSFORMERS, {"decoder_config": GPT2}], ids=["ours", "gpt2"])
def test_caches_of_one_size_are_refused(options):
    model, z = make_model(**options), torch.randn(1, 6)
    with pytest.raises(ValueError, match="`cache_implementation` must be dynamic.*got static"):
        model.generate(latents=z, cache_implementation="static")
    given = {"decoder_input_ids": torch.tensor([[2, 5]]), "max_new_tokens": 3}
    with pytest.raises(ValueError, match="must be a `DynamicCache`.*got a StaticCache"):
        model.generate(latents=z, past_key_values=StaticCache(config=model.config, max_cache_len=16), **given)
    assert model.generate(latents=z, cache_implementation="dynamic", **given).shape == (1, 5)


def test_without_a_padding_token_all_is_real():
    model = make_model(decoder_config=GPT2, pad_token_id=None)
    ids = torch.randint(4, 40, (2, 5))
    assert torch.equal(model.labels_from_input_ids(ids), ids)
    mask = torch.ones_like(ids)
    expected = model.log_importance_weights(input_ids=ids, attention_mask=mask, generator=torch.manual_seed(0))
    assert torch.equal(model.log_importance_weights(input_ids=ids, generator=torch.manual_seed(0)), expected)


def test_a_mask_beside_a_cache_says_of_the_tokens_before_too():
    model, z = make_model(**TRANSFORMERS), torch.randn(2, 6)
    read = {"latents": z, "decoder_input_ids": torch.tensor([[2, 5, 6], [2, 0, 7]])}
    mask = torch.tensor([[1, 1, 1], [1, 0, 1]])
    cache = model(**read, decoder_attention_mask=mask, use_cache=True).past_key_values
    more = {"latents": z, "decoder_input_ids": torch.tensor([[7, 8], [9, 0]]), "past_key_values": cache}
    with pytest.raises(ValueError, match=r"which of the 3 tokens before are real.*\[2, 5\], got \[2, 2\]"):
        model(**more, decoder_attention_mask=torch.tensor([[1, 1], [1, 0]]))
    whole = torch.cat([mask, torch.tensor([[1, 1], [1, 0]])], 1)
    assert model(**more, decoder_attention_mask=whole).logits.isfinite().all()


def test_dropout_is_where_gpt2_has_it():
    """On the weights of attention, in training alone, and on what each branch adds (Radford et al. 2019)."""
    layer = make_model(decoder_type="transformer", dropout=0.5).model.decoder.transformer.layers[0]
    x, memory, dropped = torch.randn(4, 9, 16), torch.randn(4, 4, 16), []
    layer.dropout.register_forward_hook(lambda module, inputs, output: dropped.append((output == 0).float().mean()))
    for training in (True, False):
        layer.train(training)
        assert torch.equal(layer.attention(x), layer.attention(x)) != training
        assert torch.equal(layer.memory_attention(x, memory), layer.memory_attention(x, memory)) != training
    layer.train()(x, memory)
    assert len(dropped) == 3 and all(0.4 < share < 0.6 for share in dropped)


def test_sizes_of_a_transformer_are_those_asked_for(batch):
    sizes = {"num_attention_heads": 2, "intermediate_size": 24, "memory_tokens": 3}
    model, memories = make_model(**TRANSFORMERS, **sizes), []
    for part in (model.model.encoder, model.model.decoder):
        (layer,) = part.transformer.layers
        heads = layer.attention.heads(torch.zeros(1, 5, 16))
        assert heads.shape == (1, 2, 5, 8) and layer.attention.scaling == 8**-0.5
        assert layer.feed_forward[0].out_features == 24
    layer.register_forward_pre_hook(lambda module, args: memories.append(args[1]))
    model(latents=torch.randn(4, 6), decoder_input_ids=batch["input_ids"])
    assert memories[0].shape == (4, 3, 16)


def test_marks_are_those_of_the_pretrained_decoder(pretrained):
    """BERT's family has no mark of an end."""
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    BertModel(BertConfig(vocab_size=30, **sizes)).save_pretrained(pretrained / "unmarked")
    model = VRAEForSequenceGeneration.from_encoder_decoder_pretrained(
        pretrained / "unmarked", pretrained / "gpt2", latent_size=4
    )
    config = model.config
    assert (config.bos_token_id, config.eos_token_id, config.decoder_start_token_id) == (2, 3, 2)
    assert model.generation_config.eos_token_id == 3


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_models_of_transformers_attend_as_asked_for(implementation, tmp_path):
    make_model(encoder_config=BERT, decoder_config=GPT2).save_pretrained(tmp_path)
    model = VRAEForSequenceGeneration.from_pretrained(tmp_path, attn_implementation=implementation)
    for part in (model.model.encoder, model.model.decoder):
        assert part.body.config._attn_implementation == implementation
