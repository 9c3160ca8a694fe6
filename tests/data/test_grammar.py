"""The built-in corpus: its probabilities are exact, and its sentences say what their factors are."""

import math
from itertools import islice

import numpy as np
import pytest

from hf_vrae.data.grammar import _MEANINGS, FACTORS, NONE, entropy, generate_corpus, log_prob, parse, realise


def rows(data):
    names = {name: data.features[name].names for name in FACTORS}
    for row in data.to_list():
        yield row, {name: names[name][row[name]] for name in FACTORS}


def test_factors_are_named_distributions_of_different_sizes():
    assert len(FACTORS) >= 6 and len({len(values) for values in FACTORS.values()}) >= 6
    for name, values in FACTORS.items():
        assert sum(values.values()) == pytest.approx(1), name


def test_sentences_parse_to_the_factors_that_made_them():
    for row, factors in rows(generate_corpus(3000, 1, 1)["train"]):
        assert parse(row["text"]) == factors
        assert realise(factors) == row["text"]
        assert row["true_log_prob"] == pytest.approx(log_prob(factors))


def test_no_word_or_phrase_means_two_things():
    """So that no two choices of factors give one sentence, and its probability is that of its factors."""
    words = 5 + sum(len(FACTORS[name]) - (NONE in FACTORS[name]) for name in ("quality", "adverb", "place", "time"))
    words += 2 * len(FACTORS["subject"]) + 2 * len(FACTORS["object"]) + 3 * len(FACTORS["verb"])
    assert len(_MEANINGS) == words


def test_every_factor_changes_the_sentence():
    factors = {name: next(iter(values)) for name, values in FACTORS.items()}
    for name, values in FACTORS.items():
        assert len({realise(factors | {name: value}) for value in values}) == len(values), name


def test_entropy_is_the_mean_negative_log_probability():
    sample = np.array(generate_corpus(20_000, 1, 1, seed=3)["train"]["true_log_prob"])
    assert -sample.mean() == pytest.approx(entropy(), abs=4 * sample.std() / math.sqrt(len(sample)))


def test_frequencies_are_the_probabilities():
    data = generate_corpus(20_000, 1, 1, seed=1)["train"]
    for name, values in FACTORS.items():
        counts = np.bincount(data[name], minlength=len(values)) / len(data)
        np.testing.assert_allclose(counts, list(values.values()), atol=0.012, err_msg=name)


def test_the_seed_makes_the_corpus_and_splits_do_not_hang_together():
    first, again, other = (generate_corpus(50, 20, 20, seed=seed) for seed in (5, 5, 6))
    assert first["train"]["text"][:] == again["train"]["text"][:] != other["train"]["text"][:]
    more = generate_corpus(70, 20, 10, seed=5)
    assert more["validation"]["text"][:] == first["validation"]["text"][:]
    assert first["train"]["text"][:20] != first["validation"]["text"][:]


def test_size_of_the_language():
    data = generate_corpus(5000, 1, 1)["train"]
    words = {word for text in data["text"] for word in text.split()}
    assert 300 <= len(words) <= 400
    lengths = {len(text.split()) for text in data["text"]}
    assert min(lengths) <= 6 and max(lengths) >= 16


@pytest.mark.parametrize(
    "sentence",
    ["", ".", "the king", "the king sold a letter", "the kings sells a letter .", "the king did sold a letter .",
     "the king sold a letter ?", "the king sold a letters .", "the king sold a letter . .", "a king sold a letter .",
     "the king sold a letter at dawn in the garden .", "king the sold a letter ."],
)  # fmt: skip
def test_other_sentences_are_not_of_the_grammar(sentence):
    assert parse(sentence) is None


def test_a_thousand_random_changes_never_parse_to_another_text():
    for row, _ in islice(rows(generate_corpus(1000, 1, 1)["train"]), 1000):
        words = row["text"].split()
        changed = " ".join(words[:2] + words[3:])
        factors = parse(changed)
        assert factors is None or realise(factors) == changed
