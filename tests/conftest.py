"""Everything runs offline, on the CPU, from seeds; the built-in corpus is the data."""

import copy
import os

# Read by huggingface_hub and datasets at their import.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "PYTEST_XDIST_WORKER" in os.environ:  # `pytest -n`: a core each, in what they start too; read at torch's import
    os.environ["OMP_NUM_THREADS"] = "1"

import datasets
import pytest
import torch
from transformers import set_seed

from hf_vrae import VRAEForSequenceGeneration
from hf_vrae.data.datasets import tokenize
from hf_vrae.data.grammar import generate_corpus
from hf_vrae.data.tokenization import train_tokenizer
from tests.models import VARIANTS, make_model

datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def seed():
    set_seed(0)


@pytest.fixture(autouse=True)
def kernels_at_every_size(monkeypatch):
    """Small models are to test what large ones run."""
    monkeypatch.setattr("hf_vrae.modeling.recurrent.SMALL", 0)


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
def trained_tokenizer(corpus):
    return train_tokenizer(corpus["train"]["text"])


@pytest.fixture
def tokenizer(trained_tokenizer):
    """Each test's own: who trains a model of shorter texts says so on its tokenizer."""
    return copy.deepcopy(trained_tokenizer)


@pytest.fixture(scope="session")
def tokenized(corpus, trained_tokenizer):
    return {split: tokenize(data, trained_tokenizer, 64, split) for split, data in corpus.items()}
