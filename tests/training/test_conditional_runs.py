"""Runs under conditions: the whole way, by the scripts and by the same loop."""

import json

import numpy as np
import pytest
import torch

from hf_vrae.evaluation.disentanglement import evaluate_disentanglement
from hf_vrae.hub import load
from hf_vrae.latent import interpolate_texts, move_texts, reconstruct_texts, sample_texts
from hf_vrae.measure import encode_file, evaluate_file, prior_of, walk_frames
from hf_vrae.measure_labels import label_agreement, transfer_file
from hf_vrae.training.arguments import parse_recipe
from hf_vrae.training.run import run
from tests.scripts import script


def test_a_conditional_model_from_training_to_its_texts(tiny, tmp_path):
    flags = "--label_columns tense mood --condition_dropout 0.2 --eval_strategy steps --eval_steps 6"
    flags += " --num_quality_samples 8"
    results = run(tiny(flags))
    # What the grammar knows is log p(x), which one who is told the tense can exceed.
    assert results["kl"] > 0 and not {"label_accuracy", "true_nll"} & set(results)
    model, tokenizer = load(str(tmp_path / "run"))
    assert list(model.config.condition_labels) == ["mood", "tense"]
    texts = sample_texts(model, tokenizer, 4, seed=1, labels={"tense": "future"}, max_length=8)
    assert [row["tense"] for row in texts] == ["future"] * 4
    assert texts == sample_texts(model, tokenizer, 4, seed=1, labels={"tense": ["future"] * 4}, max_length=8)
    assert [row["mood"] for row in sample_texts(model, tokenizer, 3)] == ["statement", "question", "statement"]
    own = {"tense": "past", "mood": "statement"}
    options = {"source_labels": own, "max_length": 8, "guidance_scale": 2.0}
    (row,) = reconstruct_texts(
        model, tokenizer, ["the king sold a letter ."], labels=own | {"tense": "future"}, **options
    )
    assert set(row) == {"text", "reconstruction"}
    measured = evaluate_file(model, tokenizer, max_samples=40, num_samples=2, num_text_samples=6)
    assert measured["text"]["reconstruction"]["num_texts"] == 6
    data, q = encode_file(model, tokenizer, max_samples=30)
    p = prior_of(model, tokenizer, data)
    assert p.mean.shape == q.mean.shape == (30, 4)
    assert (
        torch.equal(prior_of(model.train(), tokenizer, data).mean, p.mean) and model.training
    )  # no condition is left out
    assert script(["scripts/plot.py", str(tmp_path / "run"), "kl", "--max_samples", "30"]) == 0


def test_a_semi_supervised_run_and_its_resumption(tiny, tmp_path, monkeypatch):
    flags = "--label_columns tense --label_classifier True --max_labeled_samples 60 --classifier_weight 2"
    flags += " --labeled_share 0.6"
    results = run(tiny(f"{flags} --eval_strategy steps --eval_steps 6"))
    assert 0 <= results["label_accuracy"] <= 1
    model, tokenizer = load(str(tmp_path / "run"))
    assert sum(model.config.label_frequencies) == pytest.approx(1)
    # The test split of the corpus as a file without its labels: they are summed over.
    path = tmp_path / "texts.txt"
    path.write_text("the king sold a letter .\nwill our nurses hide many keys ?\n")
    measured = evaluate_file(model, tokenizer, str(path), num_samples=3, free_running=True)
    assert np.isfinite(measured["nll_iw"]) and measured["num_labeled"] == 0 and "label_accuracy" not in measured
    assert 0 <= measured["free_running_accuracy"] <= 1
    data, q = encode_file(model, tokenizer, str(path))
    assert prior_of(model, tokenizer, data).mean.shape == q.mean.shape == (2, 4)
    (row,) = reconstruct_texts(model, tokenizer, ["the king sold a letter ."], max_length=8)  # the label is inferred
    assert set(row) == {"text", "reconstruction"}
    ends = ["the king sold a letter .", "will our nurses hide many keys ?"]
    inferred = model.infer_labels(**tokenizer(ends, return_tensors="pt", padding=True))
    under = []

    def say_nothing(self, latents, class_ids):
        under.append(class_ids)
        return torch.ones_like(latents, dtype=torch.long)

    monkeypatch.setattr(type(model), "generate", say_nothing)
    assert len(interpolate_texts(model, tokenizer, ends)) == 7
    assert len(move_texts(model, tokenizer, ends, ends, ends)) == 2
    assert torch.equal(under[0], inferred[[0] * 4 + [1] * 3]) and torch.equal(under[1], inferred)
    monkeypatch.undo()
    checkpoint = tmp_path / "run" / "checkpoint-6"
    run(tiny(f"{flags} --eval_strategy steps --eval_steps 6 --resume_from_checkpoint {checkpoint}"))
    again = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {name: again[name] for name in ("nll_iw", "label_accuracy")} == {
        name: results[name] for name in ("nll_iw", "label_accuracy")
    }


def test_quality_of_a_semi_supervised_model_on_texts_without_labels(tiny, tmp_path, corpus):
    rows = "".join(f"{i % 2}\t{text}\n" for i, text in enumerate(corpus["train"]["text"]))
    (tmp_path / "train.tsv").write_text("mood\ttext\n" + rows)
    (tmp_path / "test.tsv").write_text("text\n" + "\n".join(corpus["test"]["text"]) + "\n")
    files = f"--train_file {tmp_path / 'train.tsv'} --test_file {tmp_path / 'test.tsv'} --label_columns mood"
    results = run(tiny(f"{files} --label_classifier True --num_quality_samples 4"))
    assert np.isfinite(results["reverse_ppl"]) and 0 <= results["free_running_accuracy"] <= 1


def test_a_language_model_under_a_label(tiny, tmp_path):
    results = run(tiny("--label_columns tense --latent_size 0 --kl_schedule constant --condition_dropout 0.2"))
    assert results["kl"] == 0
    model, tokenizer = load(str(tmp_path / "run"))
    options = {"seed": 1, "max_length": 8, "guidance_scale": 2.0, "num_beams": 2}
    texts = sample_texts(model, tokenizer, 3, labels=["past", "future", "past"], **options)
    assert [row["tense"] for row in texts] == ["past", "future", "past"] and texts[0] == texts[2]


def test_two_stages_under_a_condition(tiny, tmp_path):
    results = run(tiny("--label_columns mood --autoencoder_epochs 0.2"))
    assert results["run"]["steps"] == 12
    with pytest.raises(ValueError, match="`condition_labels` is"):
        run(tiny(f"--model_name_or_path {tmp_path / 'run'}", name="other"))


def test_frames_under_a_label(tiny, tmp_path):
    run(
        tiny(
            "--builtin frames --label_columns label --attribute_columns true_log_prob "
            "--eval_strategy steps --eval_steps 6"
        )
    )
    model, _ = load(str(tmp_path / "run"))
    assert model.config.condition_attributes == ["true_log_prob"] and len(model.config.condition_labels["label"]) > 1
    names = model.config.condition_labels["label"]
    arrays = walk_frames(model, "sample", count=2, max_length=5, labels=names[0])
    assert arrays["sample"].shape == (2, 5, 4)
    own, other = (walk_frames(model, "reconstruct", indices=[0], labels=labels) for labels in (None, names[:1]))
    assert own["reconstruction"].shape == other["reconstruction"].shape
    options = {"attribute": {"examples": names[0], "without": names[1]}, "interpolate": {"steps": 3}}
    for mode, more in options.items():
        first, second = (walk_frames(model, mode, indices=[0, 1], labels=name, **more) for name in names[:2])
        (what,) = (name for name in first if name in ("moved 1", "path"))
        assert not np.array_equal(first[what], second[what], equal_nan=True)
    # Under their own conditions the ends of a path and what is not moved are the reconstructions.
    whole = walk_frames(model, "reconstruct", indices=[0, 1])["reconstruction"]
    path = walk_frames(model, "interpolate", indices=[0, 1], steps=2)["path"]
    moved = walk_frames(model, "attribute", indices=[0, 1], strength=[0.0], **options["attribute"])["moved 0"]
    np.testing.assert_allclose(path, whole, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moved, whole, rtol=1e-4, atol=1e-5)


def test_the_column_of_vectors_is_found_by_every_script(tiny, tmp_path, corpus):
    for split in ("train", "test"):
        rows = [{"text": row["text"], "image": [float(row["mood"]), 1.0]} for row in corpus[split]]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train, test = (str(tmp_path / f"{split}.jsonl") for split in ("train", "test"))
    results = run(tiny(f"--train_file {train} --test_file {test} --condition_column image"))
    model = load(str(tmp_path / "run"))
    assert model[0].config.condition_size == 2 and model[0].config.condition_column == "image"
    assert evaluate_file(*model, test, num_samples=2)["nll_iw"] == pytest.approx(results["nll_iw"], rel=1e-5)
    data, q = encode_file(*model, test)
    assert prior_of(*model, data).mean.shape == q.mean.shape and "batch.condition" in data.column_names


def test_transfer_and_agreement_of_a_label(tiny, tmp_path, corpus, capsys, monkeypatch):
    for split in ("train", "test"):
        names = corpus[split].features["mood"].names
        rows = "".join(f"{names[row['mood']]}\t{row['text']}\n" for row in corpus[split])
        (tmp_path / f"{split}.tsv").write_text("mood\ttext\n" + rows)
    train, test = (str(tmp_path / f"{split}.tsv") for split in ("train", "test"))
    run(tiny(f"--train_file {train} --test_file {test} --label_columns mood --condition_dropout 0.1"))
    folder = str(tmp_path / "run")
    model, tokenizer = load(folder)
    moved = transfer_file(model, tokenizer, train, test, "mood", max_samples=6, guidance_scale=2.0)
    assert moved["own_label"]["num_texts"] == 6 and {"accuracy", "source_bleu"} <= set(moved["other_label"])
    options = {"num_samples": 10, "max_length": 8, "judge": (model, tokenizer)}
    agreement = label_agreement(model, tokenizer, train, **options)
    assert agreement["label"] == "mood" and set(agreement["values"]) == {"statement", "question"}
    shares = [value["agreement"] for value in agreement["values"].values()]
    assert agreement["agreement"] == pytest.approx(np.mean(shares)) and agreement["classifier"]["accuracy"] > 0.9
    assert all({"self_bleu", "perplexity"} <= set(value) for value in agreement["values"].values())
    with pytest.raises(ValueError, match="one that conditions the model"):
        label_agreement(model, tokenizer, train, "tense")
    # The self-BLEU of both labels is of texts that do not share their noise.
    seen, twins = [], {"statement": "abcdefghij", "question": "ABCDEFGHIJ"}
    drawn = iter([list(twins[name]) for name in model.config.condition_labels["mood"]])
    monkeypatch.setattr("hf_vrae.measure_labels.draw_samples", lambda *args, **options: next(drawn))
    monkeypatch.setattr("hf_vrae.measure_labels.self_bleu", lambda texts: seen.append(texts) or {"self_bleu": 0.0})
    label_agreement(model, tokenizer, train, num_samples=10)
    assert "".join(seen[-1]).upper() == "ABCDEFGHIJ" and len({text.isupper() for text in seen[-1]}) == 2
    with pytest.raises(ValueError, match="`probe_label` 'mood' conditions the model"):
        evaluate_file(model, tokenizer, test, probe_label="mood", probe_train=train)
    with pytest.raises(ValueError, match="`anomaly_label` 'mood' conditions the model"):
        evaluate_file(model, tokenizer, test, anomaly_label="mood", normal="question")
    unlabelled = tmp_path / "unlabelled.txt"
    unlabelled.write_text("a text .\n" * 20)
    with pytest.raises(ValueError, match="`label_agreement` learns the label 'mood' from a column of that name"):
        label_agreement(model, tokenizer, str(unlabelled))
    questions = [
        line for line in (tmp_path / "train.tsv").read_text().splitlines() if not line.startswith("statement")
    ]
    (tmp_path / "questions.tsv").write_text("\n".join(questions))
    with pytest.raises(
        ValueError, match="needs texts of every value of the label 'mood', and the file .* 'statement'"
    ):
        label_agreement(model, tokenizer, str(tmp_path / "questions.tsv"))
    with pytest.raises(ValueError, match="`max_samples` must be at least 2, a text of each label; got 1"):
        transfer_file(model, tokenizer, train, test, "mood", max_samples=1)
    with pytest.raises(ValueError, match="`max_samples` must be at least 1, got 0"):
        evaluate_file(model, tokenizer, test, max_samples=0)
    with pytest.raises(ValueError, match="ClassLabel"):
        evaluate_disentanglement(model, corpus["test"].select_columns(["text", "mood"]), None)
    assert script(["scripts/generate.py", folder, "sample", "--labels", "question", "--count", "2"]) == 0
    assert capsys.readouterr().out.count("question  |") == 2


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--max_labeled_samples 5", "hides values of one label"),
        ("--label_columns tense --labeled_share 0.5", "one label, which some rows have and others have not"),
        ("--label_columns tense --labeled_share 1.0", "must be in"),
        ("--condition_dropout 0.1", "the model has none"),
        ("--label_columns text", "`label_columns` must be a column of names or numbers"),
        ("--label_columns tense mood --label_classifier True", "exactly one label"),
        ("--label_columns tense --label_classifier True --scheduled_sampling 0.1", "`label_classifier` trains"),
    ],
)
def test_what_makes_no_sense_of_a_run_is_refused(tiny, flags, message):
    with pytest.raises(ValueError, match=message):
        run(tiny(flags))


def test_a_vrnn_has_no_conditions():
    with pytest.raises(ValueError, match="condition a vrae"):
        parse_recipe(["--model_type", "vrnn", "--label_columns", "tense"]).check_data()
