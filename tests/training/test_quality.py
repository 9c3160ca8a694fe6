"""What a run measures of its model beside the likelihood."""

import json
import re

import pytest
import torch
from accelerate import Accelerator

from hf_vrae.data.datasets import spread_places, tokenize
from hf_vrae.data.grammar import generate_corpus
from hf_vrae.data.tokenization import train_tokenizer
from hf_vrae.training import accelerator, quality
from hf_vrae.training.arguments import parse_recipe
from hf_vrae.training.loop import Interrupted, TrainingLoop
from hf_vrae.training.run import run
from tests.scripts import fresh_accelerator
from tests.training.conftest import TINY

OF_TEXT = {"self_bleu", "reference_self_bleu", "reverse_ppl", "reference_reverse_ppl", "teacher_forced_accuracy"}


@pytest.fixture(autouse=True)
def quick_judges(monkeypatch):
    monkeypatch.setattr(quality, "JUDGE", quality.JUDGE.replace("--num_train_epochs 10", "--num_train_epochs 2"))


@pytest.mark.parametrize("family", ["vrae", "vrnn", "lm"])
def test_of_text(family, tmp_path):
    flags = {"vrae": "", "vrnn": "--model_type vrnn", "lm": "--latent_size 0 --kl_schedule constant"}[family]
    sizes = TINY
    if family == "vrnn":
        sizes = sizes.replace("decoder_hidden", "hidden").replace("encoder_hidden", "feature")
    words = f"{sizes} {flags} --num_quality_samples 40 --output_dir {tmp_path / 'run'}"
    results = run(parse_recipe(words.split()))
    assert set(results) >= OF_TEXT | {"tokens_per_second", "generated_tokens_per_second"}
    assert ("free_running_accuracy" in results) == (family != "lm")
    assert results["num_quality_samples"] == 40 and results["run"]["peak_memory_mib"] > 100
    assert 0 < results["self_bleu"] < 100 and results["reference_reverse_ppl"] > 1
    assert results["generated_tokens_per_second"] > 0 and 0 <= results["teacher_forced_accuracy"] <= 1
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results
    samples = (tmp_path / "run/judges/reverse_ppl/train.txt").read_text().splitlines()
    real = (tmp_path / "run/judges/reference_reverse_ppl/train.txt").read_text().splitlines()
    assert len(samples) == len(real) == 40
    assert real == generate_corpus(240, 24, 24)["train"].select(spread_places(240, 40))["text"][:]


def test_real_texts_are_in_the_words_of_the_samples(tiny, tmp_path):
    lines = ["the king sold a letter ."] * 30 + ["the queen sold a ring ."] * 30
    (tmp_path / "train.txt").write_text("\n".join(lines))
    (tmp_path / "test.txt").write_text("\n".join(lines[::3]))
    files = f"--train_file {tmp_path / 'train.txt'} --test_file {tmp_path / 'test.txt'} --min_frequency 31"
    run(tiny(f"{files} --num_quality_samples 2"))
    real = (tmp_path / "run/judges/reference_reverse_ppl/train.txt").read_text().splitlines()
    assert real == ["the <unk> sold a <unk> ."] * 2


def test_each_number_is_of_the_texts_it_is_named_for(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "draw_samples", lambda *args: ["the king sold a letter ."] * 4)
    results = run(tiny("--num_quality_samples 4"))
    assert results["self_bleu"] == pytest.approx(100) and results["reference_self_bleu"] < 90
    samples = (tmp_path / "run" / "judges" / "reverse_ppl" / "train.txt").read_text().splitlines()
    assert samples == ["the king sold a letter ."] * 4
    for name in ("reverse_ppl", "reference_reverse_ppl"):
        judged = (tmp_path / "run" / "judges" / name / "test.txt").read_text().splitlines()
        assert judged == generate_corpus(240, 24, 24)["test"]["text"][:]
    rows = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    speeds = [row["tokens_per_second"] for row in rows if row["kind"] == "train"]
    assert len(speeds) == 3 and results["tokens_per_second"] == sorted(speeds)[1]


def test_what_is_interrupted_in_a_judge_goes_on_as_the_run(tiny, tmp_path, monkeypatch):
    told_to_stop = TrainingLoop.told_to_stop
    in_a_judge = lambda self, ask=True: 15 * (self.output_dir.name == "model")  # noqa: E731
    monkeypatch.setattr(TrainingLoop, "told_to_stop", in_a_judge)
    recipe = f"--config {tmp_path / 'run' / 'recipe.yaml'} --resume_from_checkpoint latest"
    with pytest.raises(Interrupted, match=re.escape(recipe)):
        run(tiny("--num_quality_samples 5"))
    monkeypatch.setattr(TrainingLoop, "told_to_stop", told_to_stop)
    fresh_accelerator()
    assert run(parse_recipe(recipe.split()))["reverse_ppl"] > 1


def test_of_frames(tiny):
    results = run(tiny("--builtin frames --corpus_size 60 --num_quality_samples 9"))
    assert {"teacher_forced_rmse", "free_running_rmse", "frames_per_second"} <= set(results)
    assert results["num_quality_samples"] == 6  # as many as the split has sequences
    assert results["generated_frames_per_second"] > 0 and "self_bleu" not in results


def test_samples_almost_all_empty_do_not_cost_the_run_its_results(tiny, monkeypatch):
    monkeypatch.setattr(quality, "draw_samples", lambda *args: [""] * 3 + ["the king ."])
    results = run(tiny("--num_quality_samples 4"))
    assert "reverse_ppl" not in results and results["nll_iw"] > 0 and results["reference_reverse_ppl"] > 1


def test_all_else_is_as_without(tiny):
    without = run(tiny("", "without"))
    fresh_accelerator()
    with_it = run(tiny("--num_quality_samples 5", "with"))
    assert {name: with_it[name] for name in without if name != "run"} == {
        name: value for name, value in without.items() if name != "run"
    }


def test_a_run_in_bfloat16_has_its_judges_too(tiny, monkeypatch):
    monkeypatch.setattr(accelerator, "PACKED_DTYPES", (torch.float32, torch.bfloat16))
    results = run(tiny("--mixed_precision bf16 --num_quality_samples 5"))
    assert results["reverse_ppl"] > 1 and results["run"]["mixed_precision"] == "bf16"


def test_dull_samples_make_a_worse_judge(tiny, tmp_path):
    corpus = generate_corpus(400, 20, 50)
    recipe, texts = tiny("", "tokens"), corpus["train"]["text"][:]
    tokenizer = train_tokenizer(texts)
    tokenizer.save_pretrained(recipe.training.output_dir)
    real = tokenize(corpus["test"], tokenizer, 64, "test")
    found = {}
    for name, samples in (("real", texts), ("dull", texts[:2] * 200)):
        found[name] = quality._perplexity_under_a_model_of(samples, real, tmp_path / name, recipe, Accelerator())
    assert found["real"] < 0.8 * found["dull"]


def test_one_sample_is_too_few(tiny):
    with pytest.raises(ValueError, match="`num_quality_samples` 1 leaves no other"):
        tiny("--num_quality_samples 1")
    with pytest.raises(ValueError, match="`num_quality_samples` must not be negative"):
        tiny("--num_quality_samples -1")
