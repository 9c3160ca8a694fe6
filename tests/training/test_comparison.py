"""Rows that are trained once, resumed where they stopped, and set beside what was published."""

import json
import logging
import math
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_vrae.data.grammar import FACTORS, generate_corpus
from hf_vrae.data.tokenization import train_tokenizer
from hf_vrae.training import accelerator, comparison
from hf_vrae.training import run as run_module
from hf_vrae.training.arguments import parse_recipe
from hf_vrae.training.checkpoints import checkpoints
from hf_vrae.training.loop import Interrupted, TrainingLoop
from hf_vrae.training.models import make_model
from tests.scripts import ROOT, fresh_accelerator, script
from tests.training.conftest import TINY


@pytest.fixture
def folder(tmp_path):
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    (recipes / "base.yaml").write_text("training:\n  learning_rate: 0.01\n")
    (recipes / "vae.yaml").write_text("base: base.yaml\ntitle: VAE\npublished: {nll_iw: 101.2, active_units: 0}\n")
    text = "base: base.yaml\ntitle: LM\nmodel:\n  latent_size: 0\ntraining:\n  kl_schedule: constant\n"
    (recipes / "lm.yaml").write_text(text)
    return recipes


VOCABULARY = 356
# A row's own settings come from its recipe: the flags of all rows leave them alone.
FLAGS = TINY.replace("--latent_size 4", "").split()


def test_rows_are_recipes_with_a_title(folder, tmp_path):
    assert [path.stem for path in comparison.find_recipes(folder)] == ["lm", "vae"]
    with pytest.raises(ValueError, match="no recipe"):
        comparison.find_recipes(tmp_path)


def test_rows_are_trained_once_and_interrupted_ones_go_on(folder, tmp_path, monkeypatch):
    recipes, calls = comparison.find_recipes(folder), []

    def stop_once(self, ask=True):
        if ask and calls[-1:] != [self.state.step]:  # at the end of an evaluation once more
            calls.append(self.state.step)
        return 15 if ask and calls == [4, 6, 8] else 0

    monkeypatch.setattr(TrainingLoop, "told_to_stop", stop_once)
    with pytest.raises(Interrupted):
        comparison.train_rows(recipes, tmp_path / "out", [1], FLAGS)
    with pytest.raises(ValueError, match="lm-1' is not finished, and was begun with max_steps 12, now 20. Finish it"):
        comparison.train_rows(recipes, tmp_path / "out", [1], [*FLAGS, "--max_steps", "20"])
    for _ in range(2):
        fresh_accelerator()
        comparison.train_rows(recipes, tmp_path / "out", [1], [*FLAGS, "--save_total_limit", "3"])  # of no matter
    assert calls == [4, 6, 8, 12, 4, 6, 8, 12]  # the first went on from step 8, and a third call trained nothing
    rows = comparison.collect(recipes, tmp_path / "out")
    assert [row["name"] for row in rows] == ["LM", "VAE"]
    assert [run["run"]["seed"] for row in rows for run in row["runs"]] == [1, 1]
    assert rows[0]["runs"][0]["kl"] == 0 < rows[1]["runs"][0]["kl"]


def test_a_table_alone_is_of_all_that_is_there(folder, tmp_path, capsys):
    for flags in ("--rows lm", "--seeds 1", "--max_steps 2"):
        words = f"{folder} --output_dir {tmp_path} --table_only {flags}".split()
        assert script(["scripts/compare.py", *words]) == 1
        assert f"trains nothing, so {flags.split()[0]} has no effect" in capsys.readouterr().err


def test_flags_that_change_are_told_and_those_of_one_run_refused(folder, tmp_path, caplog):
    """A recipe among the flags was trained in the place of each row's own."""
    row = [folder / "vae.yaml"]
    comparison.train_rows(row, tmp_path / "out", [1], [*FLAGS, "--max_steps", "2"])
    comparison.train_rows(row, tmp_path / "out", [1], [*FLAGS, "--max_steps", "2"])
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    comparison.train_rows(row, tmp_path / "out", [1], [*FLAGS, "--max_steps", "3"])
    assert "vae-1 was begun with max_steps 2, now 3; delete it" in caplog.text
    with pytest.raises(ValueError, match="--config is of a run alone"):
        comparison.train_rows(row, tmp_path / "out", [1], [f"--config={folder / 'lm.yaml'}"])
    for flag in ("--push_to_hub", "--push-to-hub=true", "--overwrite-output-dir", "--resume_from_checkpoint"):
        with pytest.raises(ValueError, match=f"{flag.split('=')[0].replace('-', '.')} is of a run alone"):
            comparison.train_rows(row, tmp_path / "out", [1], [flag])
    with pytest.raises(ValueError, match="--model_name_or_path is of a run alone.* Say `begins_at` in the recipe"):
        comparison.train_rows(row, tmp_path / "out", [1], ["--model_name_or_path", "a"])


def test_a_done_row_is_evaluated_again_with_more_samples(folder, tmp_path, caplog, monkeypatch):
    def results(samples):
        fresh_accelerator()
        flags = [*FLAGS, "--max_steps", "2", "--num_importance_samples", str(samples)]
        comparison.train_rows([folder / "vae.yaml"], tmp_path / "out", [1], flags)
        return json.loads((tmp_path / "out" / "vae-1" / "results.json").read_text())

    first = results(2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_module, "evaluate", lambda *args, **options: (_ for _ in ()).throw(KeyboardInterrupt))
        results(20)
    second, third = results(20), results(3)
    assert (first["num_samples"], second["num_samples"]) == (2, 20) and second["nll_iw"] < first["nll_iw"]
    evaluation = second["run"].pop("evaluation_command")
    assert evaluation and second["run"] == first["run"], "of its training all stays"
    assert third["num_samples"] == 20 and "num_importance_samples 20, now 3" in caplog.text, "fewer say less"


def test_broken_files_are_named(folder, tmp_path):
    recipes = comparison.find_recipes(folder)
    for broken in ('{"nll_iw": 3', "{}"):
        (tmp_path / "vae-1.json").write_text(broken)
        with pytest.raises(ValueError, match="vae-1.json' is not what a run has written, or is cut off"):
            comparison.collect(recipes, tmp_path)
    for broken, message in (
        ("title: [", "vae.yaml' cannot be read"),
        ("title", "must be of names and values"),
        ("title: 2020", "`title` of .*vae.yaml' must be text, got 2020"),
        ("title: a\npublished: 101.2", "`published` of .* must be of names and numbers, got 101.2"),
        ("title: a\npublished: {nll: 101.2}", "`published` of .*vae.yaml' names 'nll'; columns are nll_iw, ppl_iw"),
        ("title: a\npublished: {kl: '9'}", "`published` of .* must be of names and numbers, got {'kl': '9'}"),
    ):
        (folder / "vae.yaml").write_text(broken)
        with pytest.raises(ValueError, match=message):
            comparison.find_recipes(folder)


def test_a_row_begins_where_another_ended(folder, tmp_path):
    """That one is trained first, whether it was asked for or not."""
    (folder / "more.yaml").write_text("base: vae.yaml\ntitle: more\nbegins_at: vae\n")
    more, vae = folder / "more.yaml", folder / "vae.yaml"
    comparison.train_rows([more], tmp_path / "out", [1], [*FLAGS, "--learning_rate", "1e-12"])
    first, second = (load_file(tmp_path / "out" / name / "model.safetensors") for name in ("vae-1", "more-1"))
    torch.testing.assert_close(first, second)
    anew = folder / "anew.yaml"
    anew.write_text("base: more.yaml\ntitle: anew\nbegins_at: vae\ntraining:\n  reset_decoder: true\n")
    comparison.train_rows([anew], tmp_path / "out", [1], [*FLAGS, "--learning_rate", "1e-12"])
    third = load_file(tmp_path / "out" / "anew-1" / "model.safetensors")
    other = {name for name in first if not torch.allclose(first[name], third[name])}
    assert other and not any("encoder" in name for name in other)
    vae.write_text("base: base.yaml\ntitle: VAE\nbegins_at: more\n")
    with pytest.raises(ValueError, match="`begins_at` of 'more' is 'vae', which begins at that row"):
        comparison.train_rows([vae], tmp_path / "out", [1], FLAGS)
    more.unlink()
    with pytest.raises(ValueError, match="`begins_at` of 'vae' is 'more', but there is no recipe '.*more.yaml'"):
        comparison.train_rows([vae], tmp_path / "out", [1], FLAGS)


def test_a_row_begins_at_the_model_of_its_own_seed(folder, tmp_path, monkeypatch):
    (folder / "more.yaml").write_text("base: vae.yaml\ntitle: more\nbegins_at: vae\n")
    ran = []
    monkeypatch.setattr(comparison, "run", lambda recipe: ran.append(recipe.training))
    comparison.train_rows([folder / "more.yaml"], tmp_path, [1, 2], FLAGS)
    names = [(Path(args.output_dir).name, args.seed, Path(args.model_name_or_path or "none").name) for args in ran]
    assert names == [("vae-1", 1, "none"), ("vae-2", 2, "none"), ("more-1", 1, "vae-1"), ("more-2", 2, "vae-2")]


@pytest.mark.parametrize(
    ("left", "samples", "goes_on"),
    [
        ("metrics.jsonl", 2, [False]),  # it stopped before its first checkpoint
        ("autoencoder/checkpoint-4", 2, [True]),
        ("checkpoint-4", 20, [True]),
        ("results.json", 20, []),  # done, and with its checkpoints deleted it cannot be evaluated again
    ],
)
def test_of_a_row_no_more_is_deleted_than_has_to_be(left, samples, goes_on, folder, tmp_path, monkeypatch):
    row, ran = tmp_path / "vae-1", []
    row.mkdir()
    (row / left).write_text("{}") if "." in left else (row / left).mkdir(parents=True)
    own = ["--config", str(folder / "vae.yaml"), *FLAGS, "--output_dir", str(row), "--seed", "1"]
    parse_recipe(own).save(row / "recipe.yaml")
    monkeypatch.setattr(comparison, "run", lambda recipe: ran.append(recipe.training))
    flags = [*FLAGS, "--num_importance_samples", str(samples)]
    comparison.train_rows([folder / "vae.yaml"], tmp_path, [1], flags)
    assert [args.resume_from_checkpoint == "latest" for args in ran] == goes_on
    assert [args.overwrite_output_dir for args in ran] == [not resumed for resumed in goes_on]


def test_rows_of_several_precisions_in_one_process(folder, tmp_path, monkeypatch):
    """accelerate keeps a process to its first one."""
    monkeypatch.setattr(accelerator, "PACKED_DTYPES", (torch.float32, torch.bfloat16))
    (folder / "in_bf16.yaml").write_text("base: vae.yaml\ntitle: bf16\ntraining:\n  mixed_precision: bf16\n")
    rows = [folder / f"{name}.yaml" for name in ("lm", "in_bf16", "vae")]
    comparison.train_rows(rows, tmp_path / "out", [1], [*FLAGS, "--max_steps", "1"])
    results = [json.loads((tmp_path / "out" / f"{path.stem}-1" / "results.json").read_text()) for path in rows]
    assert [result["run"]["mixed_precision"] for result in results] == ["no", "bf16", "no"]


def test_a_row_that_was_trained_goes_before_one_that_was_copied(folder, tmp_path):
    numbers = {"run": {"seed": 2}, "nll_iw": 2.0}
    (tmp_path / "vae-2.json").write_text(json.dumps(numbers | {"nll_iw": 9.0}))
    (tmp_path / "vae-10.json").write_text(json.dumps(numbers | {"run": {"seed": 10}}))
    (tmp_path / "vae-2").mkdir()
    (tmp_path / "vae-2" / "results.json").write_text(json.dumps(numbers))
    runs = comparison._runs(folder / "vae.yaml", tmp_path)
    assert list(runs) == [2, 10] and runs[2]["nll_iw"] == 2.0


def test_the_table_has_means_deviations_published_numbers_and_empty_rows(folder, tmp_path):
    numbers = {key: 1.0 for _, key, _ in comparison.COLUMNS}
    described = {"num_parameters": 1234, "training_seconds": 120.0}
    for seed, nll in ((1, 100.0), (2, 102.0)):
        results = numbers | {"nll_iw": nll, "run": described | {"seed": seed}}
        (tmp_path / f"vae-{seed}.json").write_text(json.dumps(results))
    rows = comparison.collect(comparison.find_recipes(folder), tmp_path)
    head, _, lm, vae = comparison.comparison_table(rows).splitlines()
    assert (
        "| 101.00 ± 1.41 (101.20) |" in vae and "| 1 ± 0 (0) |" in vae and vae.endswith("| 1,234 | 2.0 ± 0.0 | 1, 2 |")
    )
    assert lm.count("|") == head.count("|") and lm.endswith("| not run |") and "1" not in lm
    assert comparison.points(rows) == [{"name": "VAE", "kl": 1.0, "reconstruction": 1.0}]
    # The minutes of a row that begins at another are those of both, where both are known.
    (folder / "more.yaml").write_text("base: vae.yaml\ntitle: more\nbegins_at: vae\n")
    for seed in (2, 3):
        (tmp_path / f"more-{seed}.json").write_text(json.dumps(numbers | {"run": described | {"seed": seed}}))
    (tmp_path / "more-2.json").write_text(json.dumps(numbers | {"ppl_iw": math.inf, "run": described | {"seed": 2}}))
    rows = comparison.collect(comparison.find_recipes(folder), tmp_path)
    assert "| inf |" in comparison.comparison_table(rows), "two seeds, of which one diverged"
    more = rows[1]
    assert more["name"] == "more" and len(more["runs"]) == 2 and more["minutes"] == [4.0]


def test_a_table_of_frames_is_of_steps(folder, tmp_path):
    (folder / "vae.yaml").write_text("title: VAE | frames\npublished: {nll_iw_per_step: 6.29}\n")
    results = {
        "nll_iw_per_step": 6.2,
        "nll_iw_mean_of_means": 6.4,
        "num_samples": 9,
        "num_sequences": 3,
        "num_steps": 7,
    }
    run = {"num_parameters": 99, "training_seconds": 60.0, "seed": 1, "hardware": "a CPU", "versions": {"torch": "2"}}
    run |= {"mixed_precision": "no", "num_processes": 1}
    results |= {"split": "test", "run": run | {"data": {"test": {"sha256": "0" * 64}}}}
    (tmp_path / "vae-1.json").write_text(json.dumps(results))
    rows = comparison.collect(comparison.find_recipes(folder), tmp_path)
    head, _, lm, vae = comparison.comparison_table(rows).splitlines()
    assert "| IW | IW (mean) | FIVO |" in head
    assert "| 6.200 (6.290) | 6.400 |  |" in vae and vae.endswith("| 99 | 1.0 | 1 |")
    assert lm.count("|") == head.count("|") and vae.startswith(r"| VAE \| frames |")
    rows[1]["name"] = "VAE"
    notes = comparison.comparison_notes(rows)
    assert "steps: 7;" in notes and "Nats per step" in notes and "MI" not in notes and "bf16" not in notes
    rows[1]["runs"][0]["run"]["mixed_precision"] = "bf16"
    assert "in bf16: all;" in comparison.comparison_notes(rows)
    assert "processes" not in notes and "starts from" not in notes
    rows[1]["runs"][0]["run"]["num_processes"], rows[1]["begins_at"] = 2, "lm"
    notes = comparison.comparison_notes(rows)
    assert "in several processes: all;" in notes and notes.endswith(
        "include those of the row that a row starts from.\n"
    )
    rows[0]["runs"] = [{**results, "run": run | {"mixed_precision": "no", "data": {"test": {"sha256": "0" * 64}}}}]
    assert "in bf16: VAE;" in comparison.comparison_notes(rows) and notes.startswith("K: 9;")
    rows[0]["runs"][0]["num_samples"] = 1
    assert comparison.comparison_notes(rows).startswith(f"K: 1, but 9 of {rows[1]['name']};")
    rows.append({**rows[0], "name": "ours, without z"})
    rows[1]["runs"] *= 3  # seeds of one row are one row
    assert comparison.comparison_notes(rows).startswith(f"K: 1, but 9 of {rows[1]['name']};")
    rows[0]["runs"] = [rows[1]["runs"][0] | {"num_samples": 500}]
    assert comparison.comparison_notes(rows).startswith(
        f"K: 1, but 9 of {rows[1]['name']} and 500 of {rows[0]['name']};"
    )
    assert "hardware: a CPU;" in comparison.comparison_notes(rows)
    rows[2]["runs"] = [{**results, "run": run | {"hardware": "a GPU", "data": {"test": {"sha256": "0" * 64}}}}]
    assert f"hardware: a CPU, but a GPU of {rows[2]['name']};" in comparison.comparison_notes(rows)


QUALITY = {"teacher_forced_accuracy": 0.5, "self_bleu": 40.04, "reverse_ppl": 9.0, "tokens_per_second": 12345.6}
REFERENCES = {"reference_self_bleu": 50.0, "reference_reverse_ppl": 8.0, "num_quality_samples": 20, "true_nll": 23.4}


def quality_rows(folder, tmp_path):
    described = {"num_parameters": 9, "training_seconds": 60.0, "seed": 1, "hardware": "a CPU"}
    described |= {"mixed_precision": "no", "num_processes": 1}
    described |= {"versions": {"torch": "2"}, "data": {"test": {"sha256": "0" * 64}}, "peak_memory_mib": 600.4}
    numbers = {key: 1.0 for _, key, _ in comparison.COLUMNS} | {"num_samples": 9, "num_sequences": 3, "split": "test"}
    own = {"lm": {}, "vae": {"free_running_accuracy": 0.25, "nll_fivo": 0.9, "ppl_fivo": 2.5}}
    for name, more in own.items():
        results = numbers | QUALITY | REFERENCES | more | {"run": described}
        (tmp_path / f"{name}-1.json").write_text(json.dumps(results))
    return comparison.collect(comparison.find_recipes(folder), tmp_path)


def test_a_table_of_quality_has_the_columns_that_some_row_has(folder, tmp_path):
    rows = quality_rows(folder, tmp_path)
    lines = comparison.comparison_table(rows).splitlines()
    head, _, lm, vae = ([cell.strip() for cell in line.split("|")] for line in lines)
    assert dict(zip(head, vae, strict=True)) == {
        "": "", "NLL (IW)": "1.00 (101.20)", "PPL (IW)": "1.00", "NLL (FIVO)": "0.90", "PPL (FIVO)": "2.50",
        "-ELBO": "1.00",
        "KL": "1.00", "MI": "1.00", "AU": "1 (0)", "accuracy, teacher-forced": "0.500", "free-running": "0.250",
        "self-BLEU": "40.0", "reverse PPL": "9.00", "tokens/s, training": "12,346", "peak MiB": "600",
        "parameters": "9", "minutes": "1.0", "seeds": "1",
    }  # fmt: skip
    assert lm[head.index("free-running")] == "" and len(lm) == len(head)
    notes = comparison.comparison_notes(rows)
    assert "samples: 20; self-BLEU of as many real texts: 50.0; reverse PPL of as many real texts: 8.00;" in notes
    assert comparison.NOTE_OF_RECONSTRUCTION in notes and comparison.NOTE_OF_REVERSE_PPL in notes
    for row in rows:
        for run in row["runs"]:
            run.pop("reverse_ppl", None)
    notes = comparison.comparison_notes(rows)
    assert comparison.NOTE_OF_RECONSTRUCTION in notes and comparison.NOTE_OF_REVERSE_PPL not in notes  # of frames
    for row in rows:  # FIVO has its columns without quality too
        for run in row["runs"]:
            for _, key, _ in comparison.COLUMNS_OF_QUALITY:
                run.pop(key, None), run["run"].pop(key, None)
    assert "| NLL (FIVO) | PPL (FIVO) | -ELBO | reconstruction |" in comparison.comparison_table(rows)
    rows[1]["runs"].append(rows[1]["runs"][0] | {"num_samples": 500})
    assert "but 500 of VAE (not the same for all seeds of VAE)" in comparison.comparison_notes(rows)


def test_panels_of_quality(folder, tmp_path):
    names, panels, lines = comparison.panels(quality_rows(folder, tmp_path))
    assert names == ["LM", "VAE"] and panels["reconstruction, accuracy"]["free-running"] == [None, 0.25]
    assert list(lines.values()) == [23.4, 8.0, 50.0] and set(lines) < set(panels)
    rows = quality_rows(folder, tmp_path)
    rows[1]["runs"] = [run | {"kl_global": 0.25} for run in rows[1]["runs"]]  # what MI is of, where z has scales
    assert comparison.panels(rows)[1]["what z of the whole tells, nats"]["KL"] == [1.0, 0.25]


def test_rows_whose_memory_is_measured_are_processes_of_their_own(folder, tmp_path, monkeypatch):
    (folder / "vae.yaml").write_text("title: VAE\ntraining:\n  num_quality_samples: 3\n")
    apart, here = [], []
    monkeypatch.setattr(comparison, "_run_apart", apart.append)
    monkeypatch.setattr(comparison, "run", lambda recipe: here.append(recipe.training.output_dir))
    recipes = comparison.find_recipes(folder)
    comparison.train_rows(recipes, tmp_path / "out", [1], FLAGS, "train.py")
    assert here == [str(tmp_path / "out/lm-1")]
    assert apart[0][:4] == [sys.executable, "train.py", "--config", str(folder / "vae.yaml")]
    assert apart[0][-4:] == ["--output_dir", str(tmp_path / "out/vae-1"), "--seed", "1"]
    (tmp_path / "out/lm-1").mkdir(parents=True)
    (tmp_path / "out/lm-1/results.json").write_text("{}")  # done
    (tmp_path / "out/vae-1/checkpoint-4").mkdir(parents=True)
    comparison.train_rows(recipes, tmp_path / "out", [1], FLAGS, "train.py")
    assert len(here) == 1 and apart[1][-2:] == ["--resume_from_checkpoint", "latest"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_of_a_row_hears_a_signal_once_and_its_failure_is_ours(number):
    program = f"""
import os, signal, sys, time
heard = []
signal.signal({number}, lambda *args: heard.append(args))
time.sleep(0.3)
os.kill(os.getppid(), {number})
while not heard:
    time.sleep(0.01)
time.sleep(0.2)
sys.exit(100 + len(heard))
"""
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as failure:
        comparison._run_apart([sys.executable, "-c", program])
    assert failure.value.code == 101 and signal.getsignal(number) is before
    comparison._run_apart([sys.executable, "-c", ""])


def test_the_rows_of_the_comparison_are_of_one_size():
    """Within 10 % of the VRAE, on the vocabulary and under the conditions of the whole built-in corpus."""
    recipes = comparison.find_recipes(ROOT / "recipes" / "comparison")
    sizes = {}
    for path in recipes:
        recipe = parse_recipe(["--config", str(path)])
        assert recipe.data.corpus_size is None and recipe.data.train_file is None
        labels = {name: sorted(FACTORS[name]) for name in recipe.data.label_columns or ()}
        of_the_data = {"vocab_size": VOCABULARY} | ({"condition_labels": labels} if labels else {})
        sizes[path.stem] = make_model(recipe, **of_the_data).num_parameters()
    assert {"vrae", "vrnn", "rnn_lm", "conditional"} <= set(sizes)
    assert all(0.9 <= size / sizes["vrae"] <= 1.1 for size in sizes.values()), sizes


@pytest.mark.parametrize("folder", ["recipes/comparison", "recipes/text/ptb_systems"])
def test_the_rows_that_were_measured_are_of_one_size(folder):
    rows = comparison.collect(comparison.find_recipes(ROOT / folder), ROOT / folder / "results")
    sizes = {row["name"]: run["run"]["num_parameters"] for row in rows for run in row["runs"]}
    assert len(sizes) >= 7 and all(0.9 <= size / sizes["VRAE"] <= 1.1 for size in sizes.values()), sizes


def test_that_vocabulary_is_the_built_in_corpus():
    assert len(train_tokenizer(generate_corpus(20_000, 1, 1, seed=42)["train"]["text"])) == VOCABULARY


def test_a_table_takes_its_place_in_a_document(folder, tmp_path):
    document, rows = tmp_path / "doc.md", quality_rows(folder, tmp_path)
    rows[0]["runs"][0]["nll_iw"] = 2.0
    rows.append(rows[0] | {"name": "other", "runs": []})
    mark, short = (f"<!-- compare.py recipes/mine{form} -->\n" for form in ("", " short"))
    document.write_text(f"before\n{mark}old\n{mark}after\n{short}{short}end\n")
    table = comparison.comparison_table(rows) + "\n" + comparison.comparison_notes(rows)
    brief = comparison.comparison_table(rows, short=True)
    for _ in range(2):
        comparison.insert_tables(document, "recipes/mine/", rows)
        assert document.read_text() == f"before\n{mark}\n{table}\n{mark}after\n{short}\n{brief}\n{short}end\n"
    assert [line.split(" | ")[0] for line in brief.splitlines()[2:]] == ["| VAE", "| " + rows[0]["name"]]
    assert brief.splitlines()[0] == "|  | NLL (IW) | PPL (IW) | KL | MI | AU | seeds |"
    document.write_text(f"no place {mark}")
    with pytest.raises(ValueError, match="must have two lines .*got 1 and 0"):
        comparison.insert_tables(document, "recipes/mine", rows)


def test_an_autoencoder_first_is_part_of_the_run_and_of_its_resumption(tiny, tmp_path, monkeypatch):
    from hf_vrae.training.run import run

    flags = "--autoencoder_epochs 0.4 --free_bits 0.1 --eval_strategy epoch"
    run(tiny(flags + " --max_steps 2 --autoencoder_epochs 0.1", "whole"))
    fresh_accelerator()
    whole = run(tiny(flags + " --overwrite_output_dir", "whole"))
    assert json.loads((tmp_path / "whole" / "autoencoder" / "results.json").read_text())["run"]["steps"] == 6
    told_to_stop = TrainingLoop.told_to_stop
    for stop_at in (("autoencoder", 4), ("resumed", 6)):  # in the first stage, then in the second

        def stop(self, ask=True, stop_at=stop_at):
            return 15 if (self.output_dir.name, self.state.step) == stop_at else 0

        monkeypatch.setattr(TrainingLoop, "told_to_stop", stop)
        fresh_accelerator()
        resumed = "" if stop_at[0] == "autoencoder" else " --resume_from_checkpoint latest"
        with pytest.raises(Interrupted):
            run(tiny(flags + resumed, "resumed"))
    monkeypatch.setattr(TrainingLoop, "told_to_stop", told_to_stop)
    fresh_accelerator()
    again = run(tiny(flags + " --resume_from_checkpoint latest", "resumed"))
    assert again["nll_iw"] == pytest.approx(whole["nll_iw"])
    # With its checkpoints deleted, a finished run is not to be trained again from the autoencoder on.
    for path in checkpoints(tmp_path / "resumed"):
        shutil.rmtree(path)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "resumed").iterdir()}
    with pytest.raises(ValueError, match="There is no file 'misspelt.txt'"):
        run(tiny(f"{flags} --overwrite_output_dir --train_file misspelt.txt", "resumed"))
    for name, message in (("latest", "holds no checkpoint"), ("nowhere", "'latest' or a checkpoint folder")):
        with pytest.raises(ValueError, match=message):
            run(tiny(f"{flags} --resume_from_checkpoint {name}", "resumed"))
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "resumed").iterdir()}


def test_minutes_are_those_of_the_autoencoder_too(tiny, tmp_path):
    results = run_module.run(tiny("--autoencoder_epochs 0.1 --max_steps 1"))
    first = json.loads((tmp_path / "run" / "autoencoder" / "results.json").read_text())
    seconds = first["run"]["training_seconds"] + results["run"]["training_seconds"]
    assert comparison._minutes([results]) == pytest.approx(seconds / 60)


def test_a_point_is_the_mean_of_the_seeds_that_know_it():
    runs = [{"kl": 1.0, "reconstruction": 2.0, "true_nll": 3.0}, {"kl": 3.0, "reconstruction": 6.0}]
    rows = [{"name": "a", "runs": [run | {"run": {}} for run in runs]}, {"name": "b", "runs": []}]
    assert comparison.points(rows) == [{"name": "a", "kl": 2.0, "reconstruction": 4.0, "true_nll": 3.0}]
