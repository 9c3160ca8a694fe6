"""Everything runs offline, on the CPU, from seeds; the built-in corpus is the data."""

import os

# Read by huggingface_hub and datasets at their import.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import datasets
import pytest
import torch
from transformers import set_seed

from hf_vrae import VRAEConfig, VRAEForSequenceGeneration
from hf_vrae.data.datasets import tokenize
from hf_vrae.data.grammar import generate_corpus
from hf_vrae.data.tokenization import train_tokenizer

datasets.disable_progress_bars()

# Every kind of layer, direction, depth and way of showing z to the decoder is in one of these.
VARIANTS = {
    "lstm": {"rnn_type": "lstm", "bidirectional_encoder": False, "latent_conditioning": ["initial_state", "input"]},
    "gru": {"rnn_type": "gru", "bidirectional_encoder": True, "latent_conditioning": ["input"]},
    "deep lstm": {"encoder_layers": 2, "decoder_layers": 2, "latent_conditioning": ["initial_state"]},
    "deep gru": {"rnn_type": "gru", "encoder_layers": 2, "decoder_layers": 2, "bidirectional_encoder": False},
    "tied": {"tie_word_embeddings": True, "decoder_hidden_size": 20, "latent_conditioning": ["output"]},
    "layer-norm lstm": {"layer_norm": True, "encoder_layers": 2},
    "layer-norm gru": {"layer_norm": True, "rnn_type": "gru", "decoder_layers": 2},
}


@pytest.fixture(autouse=True)
def seed():
    set_seed(0)


def make_model(**options) -> VRAEForSequenceGeneration:
    """A small model in evaluation mode with weights large enough for z and every token to matter."""
    sizes = {"vocab_size": 40, "embedding_size": 16, "latent_size": 6}
    hidden = {"encoder_hidden_size": 16, "decoder_hidden_size": 16, "initializer_range": 0.5}
    config = VRAEConfig(**(sizes | hidden | {"embedding_initializer_range": 1.0} | options))
    return VRAEForSequenceGeneration(config).eval()


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def model(request) -> VRAEForSequenceGeneration:
    return make_model(**request.param)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Four sequences `<s> w1 .. wn </s>` of different lengths, padded on the right."""
    ids = torch.randint(4, 40, (4, 9))
    ids[:, 0] = 2
    for row, end in enumerate([8, 5, 2, 6]):
        ids[row, end] = 3
        ids[row, end + 1 :] = 0
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


@pytest.fixture(scope="session")
def corpus():
    return generate_corpus(400, 60, 60)


@pytest.fixture(scope="session")
def tokenizer(corpus):
    return train_tokenizer(corpus["train"]["text"])


@pytest.fixture(scope="session")
def tokenized(corpus, tokenizer):
    return {split: tokenize(data, tokenizer, 64, split) for split, data in corpus.items()}
