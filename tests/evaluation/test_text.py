"""Metrics of text: by hand where they are our own, against the reference libraries, and of models by definition."""

import functools
import json
import math
import os
import random
import re
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from sacrebleu.metrics import BLEU
from tokenizers import normalizers

from hf_vrae import latent as latent_module
from hf_vrae import measure_labels
from hf_vrae.data.collators import AutoencodingCollator
from hf_vrae.data.datasets import tokenize
from hf_vrae.data.grammar import generate_corpus
from hf_vrae.data.tokenization import train_tokenizer
from hf_vrae.evaluation import text as metrics
from hf_vrae.evaluation.free_running import evaluate_free_running
from hf_vrae.evaluation.text import (
    attribute_transfer,
    bleu,
    bleu_signature,
    cider_d,
    distinct_n,
    exact_match,
    forward_perplexity,
    interpolation_smoothness,
    reconstruction_quality,
    rouge,
    sample_quality,
    self_bleu,
    token_accuracy,
    train_text_classifier,
)
from hf_vrae.evaluation.text.generated import draw_samples, evaluate_text, path_smoothness
from hf_vrae.latent import draw_latents, encode_texts, interpolate_texts, reconstruct_texts
from hf_vrae.measure import evaluate_file
from hf_vrae.measure_labels import label_agreement, transfer_file
from tests.modeling.test_modeling_vrnn import make_model as make_vrnn
from tests.models import make_hierarchical_model, make_model
from tests.scripts import script


@pytest.fixture(scope="module")
def pairs(corpus):
    """Real sentences, and the same with words lost, doubled and replaced."""
    rng, references = random.Random(0), corpus["train"]["text"][:80]
    words = " ".join(references).split()
    change = lambda w: rng.choice(([w], [w], [w], [w], [], [w, w], [rng.choice(words)]))  # noqa: E731
    return [" ".join(sum(map(change, text.split()), [])) for text in references], references


@pytest.fixture
def trained(tokenizer):
    model = make_model(vocab_size=len(tokenizer))
    model.generation_config.max_length = 12
    return model


def test_bleu_by_hand():
    """First 5 of 6 words match, 3 of 5 pairs and 1 of 4 triples; no 4-gram, which counts as half a match of 3."""
    expected = 100 * (5 / 6 * 3 / 5 * 1 / 4 * 0.5 / 3) ** 0.25
    assert bleu(["the cat sat on a mat"], ["the cat sat in a mat"]) == pytest.approx(expected)
    assert bleu(["a b c d x y"], ["a b c d"]) == pytest.approx(100 * (4 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert bleu(["a b c d"], ["a b c d e f"]) == pytest.approx(100 * math.exp(1 - 6 / 4))


def test_bleu_takes_tokens_and_case_as_they_are():
    assert bleu(["it 's a b c-d , e."], ["it 's a b c-d , e."]) == pytest.approx(100)
    assert bleu(["a b c D"], ["a b c d"]) < bleu(["a b c d ."], ["a b c d ."])
    assert bleu(["don't go there now."], ["don 't go there now ."]) < 30  # 13a would make them alike
    assert bleu_signature().startswith("nrefs:1|case:mixed|eff:no|tok:none|smooth:exp|version:")


def test_rouge_by_hand():
    """Text 1: 3 of 4 and 6 words, 1 of 3 and 5 pairs, subsequence of 3. Text 2: the same text."""
    scores = rouge(["the cat mat on", "Run ?"], ["the cat sat on the mats", "Run ?"])
    assert scores["rouge1"] == pytest.approx((2 * 3 / 10 + 1) / 2)
    assert scores["rouge2"] == pytest.approx((2 * 1 / 8 + 1) / 2)
    assert scores["rougeL"] == pytest.approx((2 * 3 / 10 + 1) / 2)
    assert rouge(["mat sat"], ["sat mat"]) == {"rouge1": 1.0, "rouge2": 0.0, "rougeL": 0.5}
    assert rouge(["run"], ["Runs"])["rouge1"] == 0  # neither stemmed nor in lower case


def test_cider_d_by_hand():
    """Two references, no n-gram of both: all weights are log 2. Counts: x 2 y 1 beside x 1 y 1, clipped at 1."""
    one, two = 2 / math.sqrt(5 * 2), 1 / math.sqrt(2)  # cosines of uni- and bigrams; there are no longer ones
    first = 10 * math.exp(-1 / (2 * 36)) * (one + two) / 4
    assert cider_d(["x x y", "other"], ["x y", "z"]) == pytest.approx(first / 2)


def test_cider_d_weighs_by_document_frequency():
    """`a` is in all three references, `b` in two, `c` and `d` in one: weights 0, log 1.5, log 3, log 3."""
    b, c = math.log(3 / 2), math.log(3)
    expected = 10 / 4 * b * b / (b * b + c * c)  # "b c" and "b d" share the unigram b alone
    scores = [cider_d([text, "-", "-"], ["a b c", "a b", "a d"]) * 3 for text in ("a", "b d", "d")]
    assert scores == pytest.approx([0, math.exp(-1 / 72) * expected, 0])


def test_cider_d_of_equal_texts(pairs):
    assert cider_d(pairs[1], pairs[1]) == pytest.approx(10)
    assert cider_d(["x y", "z w"], ["x y", "z w"]) == pytest.approx(5)  # no tri- and 4-grams
    with pytest.raises(ValueError, match="at least two"):
        cider_d(["a"], ["a"])


def test_token_accuracy_and_exact_match():
    predictions, references = ["a b c", "b c", "a b c d e", ""], ["a b c", "a b c", "a b c", "a"]
    assert token_accuracy(predictions, references) == (3 + 0 + 3 + 0) / (3 + 3 + 5 + 1)
    assert exact_match(predictions, references) == 1 / 4
    assert exact_match(["a  b"], ["a b "]) == 1


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [(["a"], ["a", "b"], "got 1 and 2"), ([], [], "at least one"), ("a", ["a"], "lists"), (["a"], [" "], "number 0")],
)
def test_pairs_that_make_no_sense(predictions, references, message):
    for metric in (bleu, rouge, cider_d, token_accuracy, exact_match):
        with pytest.raises(ValueError, match=message):
            metric(predictions, references)


@pytest.mark.parametrize("order", [2, 4, 5])
def test_self_bleu_is_the_mean_of_sacrebleus_sentence_scores(pairs, order):
    texts = [*pairs[0][:30], *pairs[1][:20], pairs[1][0], "a", "the", "the king", ""]
    reference = BLEU(tokenize="none", smooth_method="floor", max_ngram_order=order, effective_order=True)
    scores = [reference.sentence_score(text, texts[:i] + texts[i + 1 :]).score for i, text in enumerate(texts)]
    result = self_bleu(texts, order)
    assert 0 < result["self_bleu"] == pytest.approx(np.mean(scores))
    assert result["max_order"] == order and result["num_texts"] == len(texts)


def test_self_bleu_at_its_ends():
    assert self_bleu(["a b c d"] * 3)["self_bleu"] == pytest.approx(100)
    assert self_bleu(["a b", "c d", "e f"])["self_bleu"] == 0
    # Precisions of 1 for all but the longest text; the closest *other* length, of two as close the shorter one.
    longest = (4 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert self_bleu(["a b c d", "a b c d e f"])["self_bleu"] == pytest.approx(50 * (math.exp(1 - 6 / 4) + longest))
    longest = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    expected = 100 * (math.exp(1 - 4 / 3) + 1 + longest) / 3
    assert self_bleu(["a b c", "a b c d", "a b c d e"])["self_bleu"] == pytest.approx(expected)
    with pytest.raises(ValueError, match="at least two"):
        self_bleu(["a"])


def test_distinct_n():
    texts = ["a b a b", "a b", "c"]  # words a b c; pairs ab ba; 7 tokens
    assert [distinct_n(texts, n) for n in (1, 2, 3, 5)] == [3 / 7, 2 / 7, 2 / 7, 0]
    assert distinct_n([""], 1) == 0


def test_sample_quality():
    results = sample_quality(["a b", "a b", "c"], ["a b c d"] * 2)
    assert results["distinct_1"] == 3 / 5 and results["mean_length"] == 5 / 3
    assert results["self_bleu"] == pytest.approx(200 / 3) and results["reference_self_bleu"] == pytest.approx(100)
    assert (results["num_texts"], results["reference_num_texts"]) == (3, 2)


def test_interpolation_smoothness():
    """Steps: one of three words replaced; two of three lost; the same; one added and one replaced of two."""
    path = ["a b c", "a x c", "x", "x", "y z"]
    result = interpolation_smoothness(path)
    assert result["mean_step"] == pytest.approx((1 / 3 + 2 / 3 + 0 + 1) / 4) and result["max_step"] == 1
    reference = BLEU(tokenize="none", smooth_method="floor", effective_order=True)
    for name, end in (("bleu_to_start", path[0]), ("bleu_to_end", path[-1])):
        assert result[name] == pytest.approx([reference.sentence_score(text, [end]).score for text in path])
    assert result["bleu_to_start"][0] == pytest.approx(100) and 0 < result["bleu_to_start"][1] < 100
    with pytest.raises(ValueError, match="both ends"):
        interpolation_smoothness(["a"])


def test_edit_distance_of_a_shifted_text_is_two():
    assert interpolation_smoothness(["a b c d", "b c d e"])["mean_step"] == 2 / 4


def test_the_classifier_learns_an_attribute_and_no_noise():
    texts = generate_corpus(600, 1, 1)["train"]["text"][:]
    classifier = train_text_classifier(texts, [" will " in f" {text}" for text in texts])
    assert classifier.accuracy > 0.95 and (classifier.num_train, classifier.num_held_out) == (480, 120)
    assert classifier.majority == pytest.approx(np.mean([" will " not in f" {text}" for text in texts]), abs=0.01)
    noise = train_text_classifier(texts, [i % 2 for i in range(600)])
    assert 0.3 < noise.accuracy < 0.7  # on texts it did not see
    with pytest.raises(ValueError, match="at least two values"):
        train_text_classifier(texts, [1] * 600)
    for few, labels in ((["a"] * 20, [0] * 19 + [1]), (["a"] * 4, [0, 0, 1, 1])):
        with pytest.raises(ValueError, match="must hold two of each label, and the held-out share of them, 0.2, one"):
            train_text_classifier(few, labels)


def test_attribute_transfer():
    source = [f"{word} b c d e" for word in "uvwx"]
    classifier = train_text_classifier(["good a"] * 10 + ["bad a"] * 10, [1] * 10 + [0] * 10)
    assert classifier.accuracy == 1
    moved = ["good b c d e", "good b c d e", "good b c d e", "bad b c d e"]
    result = attribute_transfer(source, moved, [1] * 4, classifier)
    similarity = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert result["accuracy"] == 0.75 and result["source_bleu"] == pytest.approx(similarity)
    assert result["g_score"] == pytest.approx(math.sqrt(75 * similarity)) and result["classifier_accuracy"] == 1
    with pytest.raises(ValueError, match="one a moved text"):
        attribute_transfer(source, moved, [1], classifier)


def test_reconstructions_are_those_of_generate(trained, tokenizer, pairs):
    # As references, what beams find: random weights would reconstruct no text either way.
    texts = [row["reconstruction"] for row in reconstruct_texts(trained, tokenizer, pairs[1][:10], num_beams=4)]
    results = reconstruction_quality(trained, tokenizer, texts, batch_size=4, seed=1)
    for name, beams in (("mean_greedy", 1), ("mean_beams", 4)):
        rows = reconstruct_texts(trained, tokenizer, texts, num_beams=beams)
        assert results[name] == pytest.approx(metrics.compare([row["reconstruction"] for row in rows], texts))
    assert results["sample_greedy"] != results["mean_greedy"] != results["mean_beams"]
    assert (results["num_texts"], results["num_beams"]) == (10, 4)
    assert reconstruction_quality(trained, tokenizer, texts, batch_size=10, seed=1) == results
    assert reconstruction_quality(trained, tokenizer, texts, seed=2)["sample_greedy"] != results["sample_greedy"]


@pytest.mark.parametrize("options", [{}, {"section_sizes": [2]}], ids=str)
def test_texts_of_several_scales_are_theirs_whatever_is_beside_them(tokenizer, pairs, options):
    model = make_hierarchical_model(vocab_size=len(tokenizer), segment_length=2, **options)
    model.generation_config.max_length = 12
    texts = sorted(pairs[1][:6], key=len)
    alone, together = (reconstruction_quality(model, tokenizer, texts, size, num_beams=2) for size in (1, 6))
    assert alone == together
    way = path_smoothness(model, tokenizer, [texts[0], texts[-1]], num_steps=2)
    decoded = [row["reconstruction"] for row in reconstruct_texts(model, tokenizer, [texts[0], texts[-1]])]
    assert way["max_step"] == interpolation_smoothness(decoded)["max_step"]


def test_ways_are_spread_over_the_texts(trained, tokenizer, pairs):
    """Which are often sorted."""
    texts, options = sorted(pairs[1])[:11], {"num_steps": 3, "max_length": 9}
    some = path_smoothness(trained, tokenizer, texts, num_pairs=2, **options)
    assert some == path_smoothness(trained, tokenizer, texts[:2] + texts[8:10], **options)


def test_samples_are_repeatable_and_leave_random_state_and_mode_alone(trained, tokenizer, monkeypatch):
    trained.train()
    state = torch.get_rng_state()
    texts = draw_samples(trained, tokenizer, 9, batch_size=4, seed=3)
    torch.rand(1)
    assert draw_samples(trained, tokenizer, 9, batch_size=4, seed=3) == texts and len(set(texts)) > 5
    assert draw_samples(trained, tokenizer, 9, batch_size=4, seed=4) != texts
    assert draw_samples(trained, tokenizer, 9, batch_size=4, seed=3, top_k=50) != texts
    trained.generation_config.update(top_p=0.5, temperature=0.5)  # of the whole distribution all the same
    assert draw_samples(trained, tokenizer, 9, batch_size=4, seed=3) == texts
    torch.set_rng_state(state)
    draw_samples(trained, tokenizer, 2)
    assert torch.equal(torch.get_rng_state(), state) and trained.training
    # Words are drawn by other numbers than z: the same ones would tie x to z beyond p(x|z).
    seen = {}
    monkeypatch.setattr(trained, "generate", lambda latents, **options: seen.update(z=latents, x=torch.randn(2, 40)))
    monkeypatch.setattr(latent_module, "decode", lambda tokenizer, ids: [])
    draw_samples(trained, tokenizer, 1)
    assert not torch.isclose(seen["x"].flatten()[:, None], seen["z"].flatten()).any()


def test_forward_perplexity_by_its_definition(trained, tokenizer, pairs):
    texts = pairs[1][:9]
    results = forward_perplexity(trained, tokenizer, texts, num_samples=500, batch_size=4)
    nats = 0
    for text in texts:
        weights = trained.log_importance_weights(2000, **tokenizer([text], return_tensors="pt")).double()
        nats -= (weights.logsumexp(0) - math.log(2000)).item()
    tokens = sum(len(text.split()) + 1 for text in texts)
    assert results["num_tokens"] == tokens and results["num_sequences"] == 9 and results["num_unknown"] == 0
    strange = [f"{texts[0]} xyzzy xyzzy", texts[1]]
    assert forward_perplexity(trained, tokenizer, strange)["num_unknown"] == 2
    assert results["nll"] == pytest.approx(nats / 9, rel=0.02)
    assert results["perplexity"] == pytest.approx(math.exp(results["nll"] * 9 / tokens))
    other = forward_perplexity(trained, tokenizer, texts, num_samples=500, batch_size=9)
    assert other == pytest.approx(results)
    assert forward_perplexity(trained, tokenizer, texts)["nll"] > results["nll"]  # one sample: a looser bound
    with pytest.raises(ValueError, match="at least one text"):
        forward_perplexity(trained, tokenizer, [])


def test_texts_of_a_model_with_a_latent_a_token(tokenizer, pairs):
    texts, sizes = pairs[1][:5], {"vocab_size": len(tokenizer), "latent_size": 0}
    model = make_vrnn(**sizes)
    model.generation_config.max_length = 12
    results = forward_perplexity(model, tokenizer, texts)  # exact: there is nothing to sample
    ids = tokenizer(texts, return_tensors="pt", padding=True)
    loss = model(**ids, labels=ids["input_ids"].masked_fill(ids["attention_mask"] == 0, -100)).loss
    assert results["num_tokens"] == sum(len(text.split()) + 1 for text in texts)
    assert results["nll"] == pytest.approx(loss.item(), rel=1e-5)
    model = make_vrnn(vocab_size=len(tokenizer))
    model.generation_config.max_length = 12
    samples = draw_samples(model, tokenizer, 5, batch_size=2)
    assert len(samples) == 5 and len(set(samples)) > 2
    # A short text's sequence of z ends with it, whatever is beside it.
    texts = sorted(pairs[1][:12], key=len)
    alone, together = (reconstruction_quality(model, tokenizer, texts, size, num_beams=2) for size in (1, 12))
    assert alone == together and alone["num_texts"] == 12


def test_evaluate_loads_the_folder_offline(pairs, tmp_path, monkeypatch):
    import evaluate

    assert os.environ["HF_HUB_OFFLINE"] == "1"
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("asked the network"))
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path / "modules")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    metric = evaluate.load(str(Path(metrics.__file__).parent), cache_dir=str(tmp_path))
    copied = sys.modules[type(metric).__module__]
    assert Path(copied.__file__).is_relative_to(tmp_path) and copied.compare is not metrics.compare
    metric.add_batch(predictions=pairs[0][:30], references=pairs[1][:30])
    metric.add_batch(predictions=pairs[0][30:], references=pairs[1][30:])
    results = metric.compute()
    assert results.pop("bleu_signature") == bleu_signature()
    assert results == metrics.compare(*pairs)
    folder = str(Path(metrics.__file__).parent)
    samples = evaluate.load(folder, "samples", cache_dir=str(tmp_path))
    assert samples.compute(predictions=pairs[0], references=pairs[1]) == metrics.sample_quality(*pairs)
    with pytest.raises(ValueError, match="`config_name` must be samples, or left out .*; got words"):
        evaluate.load(folder, "words", cache_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("missing", "metric"),
    [
        ("sacrebleu", lambda: bleu(["a"], ["a"])),
        ("rouge_score", lambda: rouge(["a"], ["a"])),
        ("sklearn", lambda: train_text_classifier(["a", "b"], [0, 1])),
    ],
)
def test_a_missing_extra_is_named(missing, metric, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match=r"pip install 'hf_vrae\[metrics\]'"):
        metric()


def test_the_script_measures_text(trained, tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trained.save_pretrained("model")
    tokenizer.save_pretrained("model")
    lines = generate_corpus(12, 1, 1)["train"]["text"][:]
    lines[3], lines[4] = "xyzzy " + lines[3], "plugh " + lines[4]  # unknown, and one word to the samples
    Path("texts.txt").write_text("\n".join(lines))
    texts = [lines[i] for i in (0, 1, 3, 4, 6, 7, 9, 11)]  # spread over the file
    command = "scripts/evaluate.py --model model --data texts.txt --num_samples 2 --output results.json".split()
    assert script([*command, "--text_metrics", "--num_text_samples", "8", "--judge", "model"]) == 0
    text = json.loads(Path("results.json").read_text())["text"]
    named = {"reconstruction", "samples", "bleu_signature", "interpolation"}
    assert set(text) == named | {"forward_perplexity", "reference_perplexity"}
    assert text["reconstruction"] == reconstruction_quality(trained, tokenizer, texts, seed=42)
    ways = [interpolate_texts(trained, tokenizer, texts[i : i + 2]) for i in (0, 2, 4, 6)]
    of_each = [interpolation_smoothness([point["text"] for point in way]) for way in ways]
    assert (text["interpolation"].pop("num_pairs"), text["interpolation"].pop("num_steps")) == (4, 7)
    for name in ("mean_step", "max_step", "bleu_to_start", "bleu_to_end"):
        assert text["interpolation"].pop(name) == pytest.approx(np.mean([way[name] for way in of_each], axis=0))
    middle = forward_perplexity(trained, tokenizer, [way[3]["text"] for way in ways], seed=42)["perplexity"]
    perplexities = text["interpolation"].pop("perplexity")
    assert len(perplexities) == 7 and perplexities[3] == pytest.approx(middle)
    assert not text["interpolation"]
    samples = draw_samples(trained, tokenizer, 8, seed=42)
    assert text["samples"] == sample_quality(samples, [re.sub("xyzzy|plugh", "<unk>", words) for words in texts])
    assert text["forward_perplexity"] == pytest.approx(forward_perplexity(trained, tokenizer, samples, seed=42))
    assert text["reference_perplexity"]["num_tokens"] == sum(len(words.split()) + 1 for words in texts)
    assert script([*command, "--free_running"]) == 0
    results = json.loads(Path("results.json").read_text())
    assert "text" not in results
    data = tokenize(Dataset.from_dict({"text": lines}), tokenizer, 128)
    wanted = evaluate_free_running(trained, data, AutoencodingCollator(tokenizer.pad_token_id))
    assert {name: results[name] for name in wanted} == pytest.approx(wanted)
    capsys.readouterr()
    assert script([*command, "--judge", "model"]) == 1 and "--text_metrics" in capsys.readouterr().err
    assert script([*command, "--text_metrics", "--num_text_samples", "1"]) == 1
    assert "`num_text_samples` must be at least 2" in capsys.readouterr().err
    assert script([*command, "--text_metrics", "--max_samples", "1"]) == 1
    assert "compare texts, at least two; the data has 1" in capsys.readouterr().err


def test_an_unfit_judge_is_found_out_first(trained, tokenizer, monkeypatch):
    """Not after the likelihoods, which would be lost, nor after the samples."""
    judge = make_model(vocab_size=len(tokenizer), latent_size=0, decoder_type="transformer", max_position_embeddings=4)
    for late in ("hf_vrae.measure.evaluate", "hf_vrae.evaluation.text.generated.draw_samples"):
        monkeypatch.setattr(late, lambda *args, **options: 1 / 0)
    with pytest.raises(ValueError, match="`max_position_embeddings` gives room for 4 steps"):
        evaluate_file(trained, tokenizer, None, max_samples=10, num_text_samples=4, judge=(judge, tokenizer))


def test_few_samples_are_spread_over_the_file(trained, tokenizer, tmp_path):
    """Where labelled rows are sorted, the first ones would be of one label."""
    short, long = "the king sold a letter .", "the old king sold a letter ."
    (tmp_path / "sorted.txt").write_text("\n".join([short] * 50 + [long] * 50))
    options = {"num_samples": 2, "max_samples": 10, "num_text_samples": 4}
    results = evaluate_file(trained, tokenizer, str(tmp_path / "sorted.txt"), **options)
    assert (results["num_sequences"], results["num_tokens"]) == (10, 5 * 7 + 5 * 8)
    assert results["text"]["samples"]["reference_mean_length"] == 6.5


def test_a_text_that_was_cut_is_measured_as_the_model_read_it(trained, tokenizer, tmp_path, monkeypatch):
    (tmp_path / "long.txt").write_text("\n".join(["the king sold a letter .", "the queen found the old map ."]))
    results = evaluate_file(trained, tokenizer, str(tmp_path / "long.txt"), max_length=5, num_text_samples=2)
    assert results["text"]["samples"]["reference_mean_length"] == 3
    # As it stands, up to there: a word that the tokenizer does not know is still one that cannot be reconstructed.
    (tmp_path / "odd.txt").write_text("\n".join(["the zyx sold a letter .", "the king ."]))
    seen = []
    monkeypatch.setattr("hf_vrae.measure.evaluate_text", lambda model, tokenizer, texts, *more: seen.append(texts))
    evaluate_file(trained, tokenizer, str(tmp_path / "odd.txt"), max_length=5, num_text_samples=2)
    assert seen == [["the zyx sold", "the king ."]]


def test_the_true_likelihood_is_of_whole_sentences():
    tokenizer = train_tokenizer(generate_corpus()["train"]["text"][:4000])  # which has all words
    trained = make_model(vocab_size=len(tokenizer))
    whole, cut = (evaluate_file(trained, tokenizer, None, size, 30, num_samples=2) for size in (None, 4))
    assert whole["true_nll"] > 0 and cut["num_truncated"] == 30 and "true_nll" not in cut


def test_texts_are_moved_between_two_labels_of_a_file(trained, tokenizer, tmp_path):
    """Strength 0 reconstructs; a direction far beyond any text's own takes all texts to the same end."""
    corpus = generate_corpus(120, 60, 1)
    for split in ("train", "validation"):
        rows = [f"{'q' if text.endswith('?') else 's'}\t{text}" for text in corpus[split]["text"]]
        (tmp_path / f"{split}.tsv").write_text("\n".join(["label\ttext", *rows, "x\tsome text"]) + "\n")
    paths = str(tmp_path / "train.tsv"), str(tmp_path / "validation.tsv")
    results = transfer_file(
        trained, tokenizer, *paths, values=["q", "s"], strengths=[50.0], judge=(trained, tokenizer), max_samples=20
    )
    assert results["labels"] == ["q", "s"] and set(results["strengths"]) == {"0", "50"}
    for scores in results["strengths"].values():
        assert scores["num_texts"] == 20 and scores["perplexity"] > 1
    assert results["strengths"]["50"]["source_bleu"] <= results["strengths"]["0"]["source_bleu"]
    command = [
        "scripts/evaluate.py",
        "--model",
        str(tmp_path / "model"),
        "--data",
        paths[1],
        "--transfer_train",
        paths[0],
    ]
    for part in trained, tokenizer:
        part.save_pretrained(tmp_path / "model")
    command += "--label_values q s --num_text_samples 6 --num_samples 1 --max_samples 9 --output".split()
    assert script([*command, str(tmp_path / "results.json")]) == 0
    moved = json.loads((tmp_path / "results.json").read_text())["transfer"]["strengths"]
    assert {scores["num_texts"] for scores in moved.values()} == {6}
    with pytest.raises(ValueError, match="two labels of column 'label'"):
        transfer_file(trained, tokenizer, *paths)
    with pytest.raises(ValueError, match="'label' does not condition this model"):
        transfer_file(trained, tokenizer, *paths, values=["q", "s"], guidance_scale=2.0)


def test_texts_are_moved_to_the_other_label(trained, tokenizer, tmp_path, monkeypatch):
    """By the direction and by the condition, with a z that says the label and nothing else."""
    say = {"q": "will the king .", "s": "the king sold a letter ."}
    # Texts are moved, and judged, as the tokenizer reads them.
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    paths = [tmp_path / "texts.tsv", tmp_path / "questions.tsv", tmp_path / "others.tsv"]
    for path, labels in zip(paths, (["q", "s"], ["q"], ["x"]), strict=True):
        rows = [f"{label}\t{say.get(label, 'a').capitalize()}\n" for label in labels]
        path.write_text("label\ttext\n" + "".join(rows) * 30)
    path, questions, others = map(str, paths)

    def encode(model, tokenizer, texts, **under):
        return torch.tensor([[1.0 if text == say["q"] else -1.0] * 6 for text in texts])

    def decode(model, tokenizer, latents, labels=None, **under):
        said = ["q" if z > 0 else "s" for z in latents[:, 0]] if labels is None else labels["label"]
        return [say[label] for label in said]

    monkeypatch.setattr(measure_labels, "encode_texts", encode)
    monkeypatch.setattr(measure_labels, "decode_latents", decode)
    for file, count in ((path, 10), (questions, 5)):
        scores = transfer_file(trained, tokenizer, path, file, strengths=[1.0], max_samples=10)["strengths"]
        assert (scores["0"]["accuracy"], scores["1"]["accuracy"]) == (0, 1)
        assert (scores["0"]["source_bleu"], scores["0"]["num_texts"]) == (pytest.approx(100), count)
    with pytest.raises(ValueError, match="others.tsv has no text whose 'label' is one of"):
        transfer_file(trained, tokenizer, path, others)
    conditional = make_model(vocab_size=len(tokenizer), condition_labels={"label": ["q", "s"]})
    scores = transfer_file(conditional, tokenizer, path, path, max_samples=10)
    assert (scores["own_label"]["accuracy"], scores["other_label"]["accuracy"]) == (0, 1)
    monkeypatch.setattr(
        measure_labels, "draw_samples",
        lambda model, *args, conditions, **options: [say["qs"[i]] for i in conditions["class_ids"].flatten().tolist()],
    )  # fmt: skip
    assert label_agreement(conditional, tokenizer, path, num_samples=5)["agreement"] == 1


@pytest.mark.parametrize("kind", ["vmf", "classifier", "transformer"])
def test_texts_are_moved_by_models_of_every_kind(kind, tokenizer, corpus, tmp_path, monkeypatch):
    """Unit vectors stay on their sphere, a label that the model infers is inferred, and long texts are cut."""
    options = {
        "vmf": {"posterior": "vmf"},
        "classifier": {"condition_labels": {"kind": ["a", "b"]}, "label_classifier": True},
        "transformer": {"encoder_type": "transformer", "max_position_embeddings": 8},
    }[kind]
    model = make_model(vocab_size=len(tokenizer), **options)
    model.generation_config.max_length = tokenizer.model_max_length = 8
    rows = [f"{'q' if text.endswith('?') else 's'}\t{text}" for text in corpus["train"]["text"][:60]]
    (tmp_path / "texts.tsv").write_text("\n".join(["mood\ttext", *rows]) + "\n")
    latents, decode = [], measure_labels.decode_latents

    def spy(model, tokenizer, z, **under):
        latents.append(z)
        return decode(model, tokenizer, z, **under)

    monkeypatch.setattr(measure_labels, "decode_latents", spy)
    paths = [str(tmp_path / "texts.tsv")] * 2
    results = transfer_file(model, tokenizer, *paths, "mood", strengths=[3.0], max_samples=10)
    assert set(results["strengths"]) == {"0", "3"} and not torch.allclose(*latents)
    if kind == "vmf":
        torch.testing.assert_close(torch.stack(latents).norm(dim=-1), torch.ones(2, 10))


def test_texts_are_measured_under_their_own_conditions(tokenizer, corpus, monkeypatch):
    """A way under what its start stands under."""
    model = make_model(vocab_size=len(tokenizer), condition_labels={"kind": ["a", "b", "c"]})
    model.generation_config.max_length = 9
    under, seen, drawn = torch.tensor([[0], [1], [2], [0], [1], [2]]), {"encode": [], "generate": []}, []

    def spy(name, original, *args, **options):
        seen[name].append(options["class_ids"].flatten().tolist())
        drawn.append(options.get("latents"))
        return original(*args, **options)

    for name in seen:
        monkeypatch.setattr(model, name, functools.partial(spy, name, getattr(model, name)))
    evaluate_text(model, tokenizer, corpus["train"]["text"][:6], batch_size=4, conditions={"class_ids": under})
    assert seen["encode"] == [[0, 1, 2, 0], [1, 2]] * 2
    samples, *others = seen["generate"]
    assert samples == [0, 1, 2, 0, 1, 2] and others[:8] == [[0, 1, 2, 0]] * 4 + [[1, 2]] * 4
    assert sum(others[8:], []) == [0] * 7 + [2] * 7 + [1] * 7
    assert torch.equal(drawn[0], draw_latents(model, 6, torch.Generator().manual_seed(0), class_ids=under))
    seen["generate"].clear()
    draw_samples(model, tokenizer, 6, batch_size=4, conditions={"class_ids": under})
    assert seen["generate"] == [[0, 1, 2, 0], [1, 2]]


def test_the_conditions_of_a_file_go_to_the_metrics_of_its_texts(tokenizer, tmp_path, monkeypatch):
    model = make_model(vocab_size=len(tokenizer), condition_labels={"kind": ["a", "b"]})
    (tmp_path / "texts.tsv").write_text("kind\ttext\n" + "".join(f"{kind}\tthe king .\n" for kind in "bab"))
    monkeypatch.setattr("hf_vrae.measure.evaluate_text", lambda *args: args[-1])
    measured = evaluate_file(model, tokenizer, str(tmp_path / "texts.tsv"), num_samples=1, num_text_samples=3)
    assert measured["text"]["class_ids"].tolist() == [[1], [0], [1]]


def test_a_direction_and_its_judge_are_of_other_texts_than_are_moved(trained, tokenizer, tmp_path, monkeypatch):
    learnt, moved = (["the king .", "will the king ?"] * 9, ["the queen .", "will the queen ?"] * 2)
    for name, texts in (("train", learnt), ("test", moved)):
        rows = [f"{'q' if text.endswith('?') else 's'}\t{text}" for text in texts]
        (tmp_path / f"{name}.tsv").write_text("\n".join(["label\ttext", *rows]) + "\n")
    paths, judged, encoded, scales = [str(tmp_path / f"{name}.tsv") for name in ("train", "test")], [], [], []

    def judge(texts, labels):
        judged.extend(texts)
        return train_text_classifier(texts, labels)

    def encode(model, tokenizer, texts, **under):
        encoded.append(sorted(texts))
        return encode_texts(model, tokenizer, texts, **under)

    def decode(model, tokenizer, latents, labels, guidance_scale):
        scales.append(guidance_scale)
        return ["the king ."] * len(latents)

    monkeypatch.setattr(measure_labels, "train_text_classifier", judge)
    monkeypatch.setattr(measure_labels, "encode_texts", encode)
    transfer_file(trained, tokenizer, *paths)
    assert judged == learnt and sorted(encoded[0] + encoded[1]) == sorted(learnt) and encoded[2] == sorted(moved)
    conditional = make_model(vocab_size=len(tokenizer), condition_labels={"label": ["q", "s"]})
    monkeypatch.setattr(measure_labels, "decode_latents", decode)
    transfer_file(conditional, tokenizer, *paths, guidance_scale=2.0)
    drawn = lambda *args, guidance_scale, **options: scales.append(guidance_scale) or ["the king ."] * 3  # noqa: E731
    monkeypatch.setattr(measure_labels, "draw_samples", drawn)
    label_agreement(conditional, tokenizer, paths[0], num_samples=3, guidance_scale=2.0)
    assert scales == [2.0] * 4
