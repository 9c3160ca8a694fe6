"""Small models of every kind."""

import torch

from hf_vrae import (
    HierarchicalVRAEConfig,
    HierarchicalVRAEForFrameGeneration,
    HierarchicalVRAEForSequenceGeneration,
    VRAEConfig,
    VRAEForFrameGeneration,
    VRAEForSequenceGeneration,
)

# Models of transformers in the place of ours.
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.5}
GPT2 |= {"bos_token_id": 2, "eos_token_id": 3, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
BERT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
BERT |= {"intermediate_size": 32, "initializer_range": 0.5}
# Every kind of layer, direction, depth and way of showing z to the decoder is in one of these.
VARIANTS = {
    "lstm": {"rnn_type": "lstm", "bidirectional_encoder": False, "latent_conditioning": ["initial_state", "input"]},
    "gru": {"rnn_type": "gru", "bidirectional_encoder": True, "latent_conditioning": ["input"]},
    "deep lstm": {"encoder_layers": 2, "decoder_layers": 2, "latent_conditioning": ["initial_state"]},
    "deep gru": {"rnn_type": "gru", "encoder_layers": 2, "decoder_layers": 2, "bidirectional_encoder": False},
    "tied": {"tie_word_embeddings": True, "decoder_hidden_size": 20, "latent_conditioning": ["output"]},
    "layer-norm lstm": {"layer_norm": True, "encoder_layers": 2},
    "layer-norm gru": {"layer_norm": True, "rnn_type": "gru", "decoder_layers": 2},
    "skip connections": {"skip_connections": True, "decoder_layers": 3, "posterior": "delta"},
    "batch norm": {"posterior": "batch_norm", "learn_batch_norm_scale": True, "correlated_prior": True},
    "vmf": {"posterior": "vmf", "rnn_type": "gru"},
    "transformer": {"encoder_type": "transformer", "decoder_type": "transformer", "max_position_embeddings": 20},
    "transformer prefix": {
        "decoder_type": "transformer",
        "decoder_layers": 2,
        "latent_conditioning": ["prefix", "output"],
        "decoder_hidden_size": 20,
        "tie_word_embeddings": True,
    },
    "independent": {"encoder_type": "independent", "decoder_type": "independent", "decoder_layers": 2},
    "gpt2": {"decoder_config": GPT2, "tie_word_embeddings": True},
    "bert gpt2": {"encoder_config": BERT, "decoder_config": GPT2, "latent_conditioning": ["input", "output"]},
}
# Under a condition: of every kind at once, of one label that q(c|x) infers, and without z.
LABELS = {"tense": ["past", "present", "future"], "mood": ["statement", "question"]}
CONDITIONAL = {
    "conditional": {
        "condition_labels": LABELS,
        "condition_attributes": ["length", "tempo"],
        "attribute_mean": [3.0, -1.0],
        "attribute_scale": [2.0, 0.5],
        "condition_size": 3,
        "condition_embedding_size": 4,
        "condition_dropout": 0.2,
    },
    "one prior": {"condition_labels": {"kind": ["a", "b", "c"]}, "learn_prior": False, "posterior": "delta"},
    "semi-supervised": {
        "condition_labels": {"kind": ["a", "b", "c"]},
        "label_classifier": True,
        "label_frequencies": [0.5, 0.3, 0.2],
    },
    "conditional language model": {"condition_labels": LABELS, "condition_dropout": 0.2, "latent_size": 0},
}
# Without z: an encoder, a posterior and a KL are what these lack, and nothing else.
LANGUAGE_MODELS = {
    "language model": {"latent_size": 0},
    "tied language model": {"latent_size": 0, "tie_word_embeddings": True, "rnn_type": "gru", "decoder_layers": 2},
    "transformer language model": {"latent_size": 0, "decoder_type": "transformer"},
}


def make_model(**options) -> VRAEForSequenceGeneration:
    """A small model in evaluation mode with weights large enough for z and every token to matter."""
    sizes = {"vocab_size": 40, "embedding_size": 16, "latent_size": 6}
    hidden = {"encoder_hidden_size": 16, "decoder_hidden_size": 16, "initializer_range": 0.5}
    config = VRAEConfig(**(sizes | hidden | {"embedding_initializer_range": 1.0} | options))
    return VRAEForSequenceGeneration(config).eval()


HEADS = ["bernoulli", "nade", "gaussian", "full_gaussian", "gaussian_mixture", "logistic_mixture", "categorical"]
SCALING = {"input_mean": [0.5, -1.0, 3.0], "input_scale": [2.0, 0.5, 1.5]}
# Between them every head, kind of layer and place of z, with and without a learnt length.
FRAME_VARIANTS = {head: {"head": head} for head in HEADS} | {
    "scaled gru": {"rnn_type": "gru", "decoder_layers": 2, "latent_conditioning": ["input"], **SCALING},
    "layer norm": {"layer_norm": True, "predict_length": True, "posterior": "vmf", "latent_conditioning": ["output"]},
    "bernoulli length": {"head": "bernoulli", "predict_length": True, "rnn_type": "gru", "posterior": "delta"},
    "transformer": {"encoder_type": "transformer", "decoder_type": "transformer", "num_attention_heads": 2, **SCALING},
    "transformer prefix": {"head": "bernoulli", "decoder_type": "transformer", "latent_conditioning": ["prefix"]},
    "independent": {"decoder_type": "independent", "latent_conditioning": ["input", "output"], "predict_length": True},
    "no latent": {"head": "full_gaussian", "latent_size": 0, "predict_length": True},
}


SIZES_OF_HEADS = {
    "nade": {"nade_hidden_size": 6},
    "gaussian_mixture": {"num_mixtures": 2},
    "logistic_mixture": {"num_mixtures": 2, "num_levels": 5},
    "categorical": {"num_levels": 5},
}


def make_frame_model(**options) -> VRAEForFrameGeneration:
    """As [`make_model`], of frames with three channels."""
    sizes = {"input_size": 3, "embedding_size": 8, "latent_size": 4} | SIZES_OF_HEADS.get(options.get("head"), {})
    hidden = {"encoder_hidden_size": 8, "decoder_hidden_size": 8, "initializer_range": 0.5}
    return VRAEForFrameGeneration(VRAEConfig(**(sizes | hidden | options))).eval()


def make_frames(model: VRAEForFrameGeneration) -> dict[str, torch.Tensor]:
    """Four series of up to seven frames that the model's head knows, padded on the right, with values missing."""
    config, shape = model.config, (4, 7, 3)
    if config.head in ("bernoulli", "nade"):
        frames = torch.randint(0, 2, shape).float()
    elif config.head == "categorical":
        frames = torch.randint(0, config.num_levels, shape).float()
    else:
        frames = torch.randn(shape).clamp(-1, 1)
    frames[0, 2, 1] = frames[1, 3] = frames[3, 1, :2] = torch.nan
    mask = (torch.arange(7) < torch.tensor([[7], [5], [1], [6]])).long()
    frames = frames.masked_fill(mask.unsqueeze(-1) == 0, 0)
    labels = frames.masked_fill(mask.unsqueeze(-1) == 0, torch.nan)
    return {"input_features": frames, "attention_mask": mask, "labels": labels}


# Every kind of segment, number of scales and way from one segment to the next.
HIERARCHICAL_VARIANTS = {
    "segments": {"segment_length": 3},
    "sections": {"segment_length": 2, "section_sizes": [2], "rnn_type": "gru", "segment_latent_size": 2},
    "conductor alone": {"segment_length": 3, "section_sizes": [2], "segment_latent_size": 0},
    "autoregressive": {"segment_length": 3, "autoregressive_segments": True, "layer_norm": True},
    "one direction": {
        "segment_length": 2,
        "bidirectional_encoder": False,
        "latent_conditioning": ["initial_state"],
        "decoder_layers": 2,
    },
}
SEPARATORS = {
    "separators": {"segment_separator_ids": list(range(5, 15)), "tie_word_embeddings": True, "section_sizes": [2]}
}
HIERARCHY = {"conductor_hidden_size": 8, "segment_latent_size": 3, "dropout": 0.0, "word_dropout": 0.0}


def make_hierarchical_model(**options) -> HierarchicalVRAEForSequenceGeneration:
    """As [`make_model`]."""
    sizes = {"vocab_size": 40, "embedding_size": 16, "latent_size": 6} | HIERARCHY
    hidden = {"encoder_hidden_size": 16, "decoder_hidden_size": 16, "initializer_range": 0.5}
    config = HierarchicalVRAEConfig(**(sizes | hidden | {"embedding_initializer_range": 1.0} | options))
    return HierarchicalVRAEForSequenceGeneration(config).eval()


def make_hierarchical_frame_model(**options) -> HierarchicalVRAEForFrameGeneration:
    """As [`make_frame_model`]."""
    sizes = {"input_size": 3, "embedding_size": 8, "latent_size": 4} | SIZES_OF_HEADS.get(options.get("head"), {})
    hidden = {"encoder_hidden_size": 8, "decoder_hidden_size": 8, "initializer_range": 0.5} | HIERARCHY
    return HierarchicalVRAEForFrameGeneration(HierarchicalVRAEConfig(**(sizes | hidden | options))).eval()


def make_tokens(lengths=(11, 8, 3, 6), vocab_size: int = 40) -> dict[str, torch.Tensor]:
    """Sequences `<s> w1 .. wn </s>`, padded on the right, as the collator makes them."""
    ids = torch.randint(4, vocab_size, (len(lengths), max(lengths)))
    ends = torch.tensor(lengths).unsqueeze(1)
    steps = torch.arange(max(lengths))
    ids[:, 0] = 2
    ids = ids.masked_fill(steps == ends - 1, 3).masked_fill(steps >= ends, 0)
    mask = (steps < ends).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)[:, 1:]}
