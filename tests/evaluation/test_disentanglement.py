"""Scores of codes whose disentanglement is known, and of a model on the built-in corpus."""

import sys

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features

from hf_vrae.data.collators import AutoencodingCollator
from hf_vrae.data.grammar import FACTORS
from hf_vrae.evaluation import disentanglement
from hf_vrae.evaluation.disentanglement import (
    dci,
    evaluate_disentanglement,
    factor_information,
    mutual_information_gap,
)
from hf_vrae.evaluation.information import encode_dataset
from hf_vrae.measure import evaluate_file
from hf_vrae.modeling.distributions import DiagonalGaussian
from tests.models import make_model

VALUES = (2, 3, 5)


@pytest.fixture
def factors():
    rng = np.random.default_rng(0)
    return np.stack([rng.integers(0, values, 2000) for values in VALUES], 1)


@pytest.fixture
def perfect(factors):
    return factors + 0.01 * np.random.default_rng(1).standard_normal(factors.shape)


def mig(codes, factors):
    return mutual_information_gap(*factor_information(codes, factors)).mean()


def test_a_code_that_is_the_factor_holds_its_entropy(factors, perfect):
    information, entropies = factor_information(perfect, factors)
    assert entropies == pytest.approx(np.log(VALUES), abs=0.01)
    assert np.diag(information) == pytest.approx(entropies, abs=0.02)
    assert (information - np.diag(np.diag(information))).max() < 0.03


def test_information_against_a_sum_by_hand():
    """p(bin, value): two bins and two values, 3/8 on the diagonal and 1/8 beside it."""
    codes = np.array([0, 0, 0, 0, 1, 1, 1, 1])[:, None]
    factors = np.array([0, 0, 0, 1, 0, 1, 1, 1])[:, None] * 7 + 3  # any integers
    information, entropies = factor_information(codes, factors)
    assert information[0, 0] == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    assert entropies[0] == pytest.approx(np.log(2))


def test_information_uses_20_bins_of_equal_width():
    """Two values of a factor are told apart where they fall into different twentieths, and not within one."""
    factors = np.array([0, 1, 0, 1])[:, None]
    apart, within = np.array([[0, 20, 9.9, 10.1]]).T, np.array([[0, 20, 10.1, 10.9]]).T
    assert factor_information(apart, factors)[0][0, 0] == pytest.approx(np.log(2))
    assert factor_information(within, factors)[0][0, 0] == pytest.approx(0.5 * np.log(2))


def test_perfect_codes_score_near_one(factors, perfect):
    codes = np.concatenate([perfect, np.random.default_rng(2).standard_normal((2000, 3))], 1)
    scores = dci(codes, factors)
    assert mig(codes, factors) > 0.95
    assert scores["disentanglement"] > 0.95 and scores["completeness"] > 0.95 and scores["informativeness"] == 1
    assert (scores["importance"].argmax(0) == [0, 1, 2]).all()
    assert scores["importance"].sum(0) == pytest.approx(1)


def test_codes_of_nothing_score_near_zero(factors):
    codes = np.random.default_rng(2).standard_normal((2000, 8))
    scores = dci(codes, factors)
    assert mig(codes, factors) < 0.02
    assert scores["disentanglement"] < 0.1 and scores["completeness"] < 0.1
    assert scores["accuracy"] == pytest.approx(scores["commonest"], abs=0.06)


def test_mixed_codes_know_all_but_disentangle_little(factors, perfect):
    mixed = perfect @ np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))[0]
    scores = dci(mixed, factors)
    assert scores["informativeness"] > 0.9 and scores["disentanglement"] < 0.6
    assert mig(mixed, factors) < 0.5


def test_a_code_given_twice_has_no_gap(factors, perfect):
    assert mig(np.concatenate([perfect, perfect], 1), factors) == 0
    assert mig(perfect[:, :1], factors[:, :1]) > 0.95  # a single dimension has no second


def test_one_dimension_for_all_factors_is_complete_and_not_disentangled(factors):
    codes = np.zeros((2000, 4))
    codes[:, 2] = factors @ [15, 5, 1]
    scores = dci(codes, factors)
    assert scores["completeness"] == pytest.approx(1) and scores["disentanglement"] == pytest.approx(0, abs=1e-6)


def test_a_collapsed_code_scores_zero(factors):
    scores = dci(np.zeros((2000, 4)), factors)
    assert mig(np.zeros((2000, 4)), factors) == 0
    assert scores["disentanglement"] == scores["completeness"] == 0
    assert scores["accuracy"] == pytest.approx(scores["commonest"])


def test_order_and_scale_of_dimensions_and_order_of_sequences_change_nothing(factors, perfect):
    mixed = perfect + 0.3 * perfect[:, ::-1] + 0.1 * np.random.default_rng(4).standard_normal(perfect.shape)
    rows = np.random.default_rng(5).permutation(2000)
    other = mixed[rows][:, [2, 0, 1]] * [4.0, 2.0, 8.0] + 1
    assert mig(other, factors[rows]) == pytest.approx(mig(mixed, factors), abs=0.01)
    mixed, other = dci(mixed, factors), dci(other, factors[rows])
    for name in ("disentanglement", "completeness", "informativeness"):
        assert other[name] == pytest.approx(mixed[name], abs=0.04)


@pytest.mark.parametrize(
    "codes, factors, said",
    [
        (np.zeros((5, 2)), np.zeros((4, 2)), "same N"),
        (np.zeros((50, 2)), np.zeros((50, 1)), "must vary"),
        (np.zeros((50, 2)), np.arange(50)[:, None], "4 rows per value"),
    ],
)
def test_what_cannot_be_scored_is_said(codes, factors, said):
    with pytest.raises(ValueError, match=said):
        dci(codes, factors)


def test_a_missing_extra_is_named(factors, perfect, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(ValueError, match=r"pip install 'hf_vrae\[metrics\]'"):
        dci(perfect, factors)


def test_encoding_a_data_set_is_encoding_each_sequence(tokenizer, tokenized):
    model = make_model(vocab_size=len(tokenizer)).train()
    q = encode_dataset(model, tokenized["test"], AutoencodingCollator(0), batch_size=7)
    assert model.training and q.mean.shape == (60, 6)
    batch = AutoencodingCollator(0)(tokenized["test"][41:42]["input_ids"])
    alone = model.eval().encode(**batch)
    assert q.mean[41].tolist() == pytest.approx(alone.mean[0].tolist(), abs=1e-5)
    assert q.stddev[41].tolist() == pytest.approx(alone.stddev[0].tolist(), abs=1e-5)


def test_a_model_on_the_built_in_corpus(tokenizer):
    model = make_model(vocab_size=len(tokenizer))
    results = evaluate_file(model, tokenizer, max_samples=300, num_samples=2, disentanglement=True)
    scores = results["disentanglement"]
    assert list(scores["factors"]) == list(FACTORS) and scores["num_sequences"] == results["num_sequences"] == 300
    assert scores["mig"] == pytest.approx(np.mean([row["mig"] for row in scores["factors"].values()]))
    assert scores["factors"]["mood"]["entropy"] == pytest.approx(0.5, abs=0.1)  # nats, of 0.8 and 0.2
    assert 0 <= scores["mig"] < 0.5 and scores["informativeness"] > 0.2


def test_only_the_built_in_corpus_has_factors(tokenizer, tokenized):
    model = make_model(vocab_size=len(tokenizer))
    with pytest.raises(ValueError, match="only the built-in corpus"):
        evaluate_file(model, tokenizer, "my_test.txt", disentanglement=True)
    with pytest.raises(ValueError, match="ClassLabel"):
        evaluate_disentanglement(model, tokenized["test"].select_columns(["input_ids"]), AutoencodingCollator(0))
    with pytest.raises(ValueError, match=r"at least two .* got \['mood'\]"):
        evaluate_disentanglement(model, tokenized["test"].select_columns(["input_ids", "mood"]), None)


def test_a_factor_of_two_of_four_dimensions_is_half_complete():
    """H_4 of (1/2, 1/2, 0, 0) is 1/2."""
    codes = np.zeros((2000, 4))
    codes[:, :2] = np.random.default_rng(0).integers(0, 2, (2000, 2))
    assert dci(codes, codes[:, :1] * 2 + codes[:, 1:2])["completeness"] == pytest.approx(0.5, abs=0.03)


def test_each_factor_is_told_of_the_dimension_that_knows_most_of_it(monkeypatch):
    rng = np.random.default_rng(0)
    factors = {"first": rng.integers(0, 2, 400), "second": (rng.random(400) < 0.2).astype(int)}
    codes = np.stack([factors["second"], rng.standard_normal(400), factors["first"]], axis=1)
    data = Dataset.from_dict(factors, Features({name: ClassLabel(names=["a", "b"]) for name in factors}))
    monkeypatch.setattr(
        disentanglement, "encode_dataset", lambda *args: DiagonalGaussian(torch.tensor(codes), torch.zeros(400, 3))
    )
    rows = evaluate_disentanglement(make_model(), data, None)["factors"]
    assert [row["dimension"] for row in rows.values()] == [2, 0]
    for name, row in rows.items():
        assert row["information"] == pytest.approx(row["entropy"]) and row["accuracy"] == 1
        assert row["commonest"] == pytest.approx(max(np.bincount(factors[name])) / 400, abs=0.05)
