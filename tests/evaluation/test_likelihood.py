"""Numbers that can be trusted: against brute force, and exact under batch size, padding and order."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

from hf_vrae.data.collators import AutoencodingCollator, FrameCollator
from hf_vrae.data.conditions import MISSING
from hf_vrae.data.datasets import tokenize
from hf_vrae.data.frames import PREFIX
from hf_vrae.data.signals import generate_frames
from hf_vrae.evaluation.information import active_units, encode_dataset, mutual_information
from hf_vrae.evaluation.likelihood import bits, evaluate, noise_generators, perplexity
from hf_vrae.modeling.distributions import DiagonalGaussian
from tests.evaluation.test_free_running import series
from tests.models import CONDITIONAL, make_frame_model, make_hierarchical_model, make_model

KEYS = """neg_elbo reconstruction kl nll_iw ppl_iw ppl_elbo bits_per_token mutual_information active_units num_samples
num_sequences num_tokens""".split()


@pytest.fixture
def trained(tokenizer):
    return make_model(vocab_size=len(tokenizer))


def run(model, data, **options):
    return evaluate(model, data, AutoencodingCollator(0, options.pop("multiple", 1)), **({"num_samples": 4} | options))


def test_all_keys_are_there(trained, tokenized):
    results = run(trained, tokenized["test"])
    assert set(KEYS) <= set(results)
    assert results["num_sequences"] == 60 and results["num_samples"] == 4
    # <s> does not count, </s> does: words plus one per sentence.
    assert results["num_tokens"] == sum(len(text.split()) + 1 for text in tokenized["test"]["text"])
    assert results["mi_num_sequences"] == 60


def test_the_true_likelihood_is_of_data_that_know_it(trained, tokenized):
    """And that are all words: <unk> is likelier than each of the words it stands for."""
    known = tokenized["test"].filter(lambda row: 1 not in row["input_ids"])
    assert 40 < len(known) < 60 and "true_nll" not in run(trained, tokenized["test"])
    assert run(trained, known)["true_nll"] == pytest.approx(-np.mean(known["true_log_prob"]))
    # A user's own column, be it called as torch calls it, is not the truth.
    assert "true_nll" not in run(trained, known.rename_column("true_log_prob", "log_prob"))


def test_the_true_likelihood_of_frames_is_given_their_number():
    """A model that says where they end pays for that too."""
    data = generate_frames(1, 1, 5)["test"]
    for says_where in (False, True):
        model = make_frame_model(input_size=4, predict_length=says_where)
        assert ("true_nll" in evaluate(model, data, FrameCollator(), num_samples=2)) != says_where


def test_batch_size_padding_and_order_change_nothing(trained, tokenized):
    data = tokenized["test"]
    wanted = run(trained, data)
    for options in ({"batch_size": 1}, {"batch_size": 7}, {"multiple": 16}):
        assert run(trained, data, **options) == pytest.approx(wanted, rel=1e-5)
    assert run(trained, data, seed=1)["nll_iw"] != pytest.approx(wanted["nll_iw"], rel=1e-6)


def test_evaluation_leaves_random_state_and_mode_alone(trained, tokenized):
    trained.train()
    state = torch.get_rng_state()
    run(trained, tokenized["test"])
    assert torch.equal(torch.get_rng_state(), state) and trained.training


def test_metrics_against_their_definitions(trained, tokenized):
    data = tokenized["test"].select(range(10))
    results = run(trained, data, num_samples=300, batch_size=3)
    neg_elbo, nll = [], []
    for ids in data["input_ids"]:
        batch = {"input_ids": torch.tensor([ids])}
        weights = trained.log_importance_weights(3000, **batch).double()
        neg_elbo.append(-weights.mean().item())
        nll.append(-(weights.logsumexp(0) - math.log(3000)).item())
        assert kl_divergence(trained.encode(**batch), trained.prior()).item() > 0
    assert results["neg_elbo"] == pytest.approx(np.mean(neg_elbo), rel=0.02)
    assert np.mean(nll) < results["nll_iw"] < results["neg_elbo"]  # more samples, tighter bound
    assert results["nll_iw"] == pytest.approx(np.mean(nll), rel=0.05)
    assert results["neg_elbo"] == pytest.approx(results["reconstruction"] + results["kl"])
    tokens = sum(len(ids) - 1 for ids in data["input_ids"])
    assert results["ppl_iw"] == pytest.approx(math.exp(results["nll_iw"] * 10 / tokens))
    assert results["bits_per_token"] == pytest.approx(math.log2(results["ppl_iw"]))


def test_what_is_told_of_z_is_of_the_samples_that_were_evaluated(trained, tokenized):
    data = tokenized["test"].select(range(40))
    results = run(trained, data, num_samples=1)
    q = encode_dataset(trained, data, AutoencodingCollator(0))
    z = q.rsample((1,), noise_generators(0, np.arange(40)))[0]
    assert len({tuple(row) for row in (z - q.mean).div(q.stddev).round(decimals=3).tolist()}) == 40

    def told(rows):
        return mutual_information(DiagonalGaussian(q.mean[rows], q.logvar[rows]), z[rows])

    of_32 = (32 * told(slice(32)) + 8 * told(slice(32, 40))) / 40
    assert results["mutual_information"] == pytest.approx(told(slice(40)), rel=1e-4)
    assert results["mutual_information_32"] == pytest.approx(of_32, rel=1e-4)


def test_the_parts_of_a_kl_of_scales_add_up(tokenizer, tokenized):
    results = run(make_hierarchical_model(vocab_size=len(tokenizer)), tokenized["test"].select(range(20)))
    assert results["kl_global"] + results["kl_segments"] == pytest.approx(results["kl"])
    assert results["marginal_kl"] == pytest.approx(results["kl_global"] - results["mutual_information"])


def test_what_the_posteriors_together_are_from_the_prior(trained, tokenized):
    """KL(q(z) || p(z)) by samples of the mixture itself."""
    few = 4
    data = tokenized["test"].select(list(range(few)) * 500)
    with torch.no_grad():
        trained.model.encoder.posterior.weight.mul_(2)  # or x would hardly tell
    results = run(trained, data, num_samples=1, batch_size=500)
    q = trained.encode(**AutoencodingCollator(0)([{"input_ids": ids} for ids in data[:few]["input_ids"]]))
    mixture = MixtureSameFamily(Categorical(torch.ones(few)), Independent(Normal(q.mean, q.stddev), 1))
    z = mixture.sample((100_000,))
    wanted = (mixture.log_prob(z) - trained.prior().log_prob(z)).mean().item()
    assert results["mutual_information"] > 0.2
    assert results["marginal_kl"] == pytest.approx(wanted, abs=0.06)


def test_reconstruction_and_kl_add_up_with_one_sample(trained, tokenized):
    results = run(trained, tokenized["test"], num_samples=1)
    assert results["neg_elbo"] == results["reconstruction"] + results["kl"]


def test_a_model_without_z_is_asked_once(tokenizer, tokenized):
    results = run(make_model(vocab_size=len(tokenizer), latent_size=0), tokenized["test"], num_samples=7)
    assert results["num_samples"] == 1 and results["nll_iw"] == results["neg_elbo"] == results["reconstruction"]


def test_perplexity_is_of_totals_not_a_mean_of_means():
    assert perplexity(nll_per_sequence=30.0, num_sequences=2, num_tokens=20) == pytest.approx(math.exp(3))
    assert perplexity(nll_per_sequence=1e5, num_sequences=2, num_tokens=20) == math.inf
    assert bits(30.0, 2, 20) == pytest.approx(3 / math.log(2))


def test_published_pair_of_the_protocol():
    """PTB test: NLL 101.04 nats per sentence is perplexity 100.5 at 82,430 tokens (Li et al. 2020, table 8)."""
    assert perplexity(101.04, 3761, 78_669 + 3761) == pytest.approx(100.5, abs=0.1)


def test_bits_a_character_are_of_texts_without_unknown_words(trained, tokenizer):
    known, unknown = ({"text": ["the king sold a letter .", last]} for last in ("the <unk> .", "the xyzzy ."))
    known, unknown = (tokenize(Dataset.from_dict(rows), tokenizer, 64) for rows in (known, unknown))
    assert known["input_ids"][:] == unknown["input_ids"][:]  # nor would the nats be those of the word
    results = run(trained, known)
    assert results["num_characters"] == 25 + 12
    assert results["bits_per_character"] == pytest.approx(2 * results["nll_iw"] / 37 / math.log(2))
    assert "bits_per_character" not in run(trained, unknown)


def test_data_without_characters_or_truth(trained):
    data = Dataset.from_dict({"input_ids": [[2, 5, 3]], "length": [3]})
    results = run(trained, data)
    assert "bits_per_character" not in results and "true_nll" not in results and results["num_tokens"] == 2


def test_of_many_sequences_some_from_all_over_the_data_are_compared(trained, tokenized, monkeypatch):
    monkeypatch.setattr("hf_vrae.evaluation.likelihood.MI_SEQUENCES", 10)
    with torch.no_grad():
        trained.model.encoder.posterior.weight[:2] = 0  # two means that never move, of samples that do
    data, some = tokenized["test"].select(range(30)), np.linspace(0, 29, 10).astype(int)
    results, q = run(trained, data, num_samples=1), encode_dataset(trained, data, AutoencodingCollator(0))
    z = q.rsample((1,), noise_generators(0, np.arange(30)))[0]
    told = mutual_information(DiagonalGaussian(q.mean[some], q.logvar[some]), z[some])
    assert results["mi_num_sequences"] == 10 and results["mutual_information"] == pytest.approx(told, rel=1e-4)
    kl = kl_divergence(q, trained.prior())[some].mean().item()
    assert results["marginal_kl"] == pytest.approx(kl - told, rel=1e-4)
    assert results["active_units"] == active_units(q.mean) < 5


def test_labels_are_told_of_rows_that_have_one(tokenizer, tokenized):
    """And where p(z|c) is learnt the posteriors together are from no one prior."""
    model = make_model(vocab_size=len(tokenizer), **CONDITIONAL["semi-supervised"])
    data = tokenized["test"].select(range(12))
    right = [model.classify(input_ids=torch.tensor([ids])).probs.argmax().item() for ids in data["input_ids"]]
    said = [MISSING] * 4 + right[4:7] + [(label + 1) % 3 for label in right[7:]]
    results = run(model, data.add_column(PREFIX + "class_ids", [[label] for label in said]))
    assert (results["label_accuracy"], results["num_labeled"]) == (3 / 8, 8) and "marginal_kl" not in results


@pytest.mark.parametrize("head", ["categorical", "logistic_mixture"])
def test_frames_on_a_grid_of_several_channels(head):
    """Their bits are no channel's, and what is told of a density is not of them."""
    model, data = make_frame_model(head=head), series(np.random.default_rng(0).integers(0, 2, (6, 5, 3)))
    results = evaluate(model, data.add_column("true_log_prob", [-3.0] * 6), FrameCollator(), num_samples=2)
    assert results["kl_per_step"] == pytest.approx(results["kl"] / 5) and "bits_per_value" not in results
    assert ("true_nll" in results) == (head == "categorical")
