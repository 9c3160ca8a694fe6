"""Runs of frames, and of models with one latent per step: the whole way, by the scripts and by the same loop."""

import copy
import functools
import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModel

from hf_vrae.data.collators import FrameCollator
from hf_vrae.data.frames import frames_fingerprint
from hf_vrae.data.rows import Rows
from hf_vrae.data.signals import generate_frames
from hf_vrae.hub import load, write_model_card
from hf_vrae.measure import encode_file, evaluate_file, represent_file, walk_frames
from hf_vrae.training.arguments import parse_recipe
from hf_vrae.training.checkpoints import checkpoints
from hf_vrae.training.models import start_from
from hf_vrae.training.run import run
from hf_vrae.training.tasks import FrameTask, TextTask
from tests.models import make_frame_model
from tests.scripts import script

COMMON = """--embedding_size 8 --latent_size 3 --per_device_train_batch_size 16 --max_steps 4
--eval_strategy steps --eval_steps 4 --save_steps 2 --logging_steps 2 --num_importance_samples 3 --kl_warmup_steps 2"""
FAMILIES = {
    "vrae": "--encoder_hidden_size 8 --decoder_hidden_size 8",
    "vrnn": "--model_type vrnn --hidden_size 8 --feature_size 8",
    "hierarchical": "--model_type hierarchical_vrae --encoder_hidden_size 8 --decoder_hidden_size 8 "
    "--conductor_hidden_size 8 --segment_latent_size 2 --segment_length 8",
}
FRAMES = "--builtin frames"


@pytest.fixture
def recipe(tmp_path):
    """A recipe of a second; its output goes to the test's folder."""

    def recipe(family, flags="", name="run"):
        built_in = "" if "--train_file" in flags.split() else "--corpus_size 60"
        return parse_recipe(f"{COMMON} {built_in} {FAMILIES[family]} {flags} --output_dir {tmp_path / name}".split())

    return recipe


@pytest.mark.parametrize(("data", "varied"), [("", "--word_noise 0.9"), (FRAMES, "--transpose 1")])
def test_batches_are_varied_in_training_and_nowhere_else(data, varied, recipe, tmp_path):
    rows = []
    for name, flags in (("plain", data), ("varied", f"{data} {varied}")):
        run(recipe("vrae", f"{flags} --learning_rate 1e-12 --max_steps 4", name))
        rows.append([json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()])
    (plain, *_, known), (other, *_, judged) = rows
    assert plain["loss"] != other["loss"] and judged["neg_elbo"] == pytest.approx(known["neg_elbo"], rel=1e-6)


def test_the_channels_of_a_sequence_are_moved_together(recipe):
    task, splits = FrameTask.prepare(recipe("vrae", f"{FRAMES} --transpose 1"))
    batch = task.collator()(Rows(splits["train"]).__getitems__(list(range(40))))
    moved, seen = task.augment(batch), set()
    for row in range(40):
        frames, labels = batch["input_features"][row], batch["labels"][row]
        (by,) = (by for by in (-1, 0, 1) if torch.equal(moved["input_features"][row], frames.roll(by, -1)))
        torch.testing.assert_close(moved["labels"][row], labels.roll(by, -1), equal_nan=True, rtol=0, atol=0)
        seen.add(by)
    assert seen == {-1, 0, 1} and torch.equal(moved["attention_mask"], batch["attention_mask"])


def test_windows_of_training_are_of_the_training_data_alone(recipe):
    whole, cut = (FrameTask.prepare(recipe("vrae", FRAMES + more))[1] for more in ("", " --train_window 7"))
    assert max(cut["train"]["length"][:]) == 7 and sum(cut["train"]["length"][:]) == sum(whole["train"]["length"][:])
    for name in ("validation", "test"):
        assert frames_fingerprint(cut[name]) == frames_fingerprint(whole[name])


@pytest.mark.parametrize("kind", [TextTask, FrameTask])
def test_rows_and_labels_are_as_many_as_a_run_asks_for(kind, recipe):
    flags = "--label_columns tense" if kind is TextTask else f"{FRAMES} --label_columns label"
    few = "--max_train_samples 20 --max_eval_samples 4 --max_labeled_samples 6"
    _, splits = kind.prepare(recipe("vrae", f"{flags} {few}"))
    assert {name: len(split) for name, split in splits.items()} == {"train": 20, "validation": 4, "test": 4}
    labels = {name: np.array(split["batch.class_ids"][:]) for name, split in splits.items()}
    assert {name: (ids >= 0).sum() for name, ids in labels.items()} == {"train": 6, "validation": 4, "test": 4}


def test_files_are_read_as_a_run_and_who_measures_it_say(recipe, tmp_path):
    (tmp_path / "a.csv").write_text("text,body\nno,grün\nno,blau und grün\n", "latin-1")
    (tmp_path / "b.csv").write_text("grün,b\n1,2\n3,4\n5,9\n", "latin-1")
    texts, frames = (
        f"--train_file {tmp_path / name} --validation_file {tmp_path / name} --encoding latin-1"
        for name in ("a.csv", "b.csv")
    )
    task, splits = TextTask.prepare(recipe("vrae", f"{texts} --text_column body"))
    measured = task.read(str(tmp_path / "a.csv"), text_column="body", encoding="latin-1")
    for split in (splits["train"], splits["validation"], measured):
        assert split["text"][:] == ["grün", "blau und grün"]
    task, splits = FrameTask.prepare(recipe("vrae", f"{frames} --window 2"))
    assert splits["train"]["input_features"][:] == [[[1, 2], [3, 4]], [[5, 9]]]
    assert task.read(str(tmp_path / "b.csv"), encoding="latin-1")["length"][:] == [3]


def test_columns_that_are_said_go_before_those_that_a_model_remembers(tmp_path):
    (tmp_path / "a.csv").write_text("who,day,a,b\nx,m,1,2\nx,n,3,4\ny,n,5,6\n")
    task = FrameTask("gaussian", 2, 1, columns={"feature_columns": ["a"], "sequence_column": "who"})
    assert task.read(str(tmp_path / "a.csv"))["input_features"][:] == [[[1], [3]], [[5]]]
    other = task.read(str(tmp_path / "a.csv"), feature_columns=["b"], sequence_column="day")
    assert other["input_features"][:] == [[[2]], [[4], [6]]]


def test_a_model_to_start_from_reads_the_columns_of_the_run(tmp_path):
    known = {"condition_attributes": ["tempo"], "condition_size": 3, "condition_column": "image"}
    model = make_frame_model(**known, feature_columns=["a", "b", "c"], sequence_column="who")
    model.save_pretrained(tmp_path)
    wanted = copy.deepcopy(model.config)
    said = {"feature_columns": ["d", "e", "f"], "sequence_column": "id", "condition_column": "picture"}
    for name, value in said.items():
        setattr(wanted, name, value)
    config = start_from(str(tmp_path), wanted, []).config
    assert {name: getattr(config, name) for name in said} == said
    for name, value in (("condition_attributes", ["heat"]), ("condition_size", 2)):
        other = copy.deepcopy(model.config)
        setattr(other, name, value)
        with pytest.raises(ValueError, match=f"`{name}` is .* in the model"):
            start_from(str(tmp_path), other, [])


@pytest.mark.parametrize("family", FAMILIES)
def test_frames_from_training_to_the_card(family, recipe, tmp_path):
    results = run(recipe(family, FRAMES))
    folder = tmp_path / "run"
    described = results["run"]
    assert described["data"]["train"]["sequences"] == 60 and described["data"]["train"]["frames"] > 60 * 20
    assert results["num_steps"] == described["data"]["test"]["frames"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert "frames_per_second" in rows[0] and "neg_elbo_per_step" in rows[-1] and "nll_iw" not in rows[-1]
    shown = np.load(folder / "samples.npz")
    assert {"real", "reconstruction", "sample"} <= set(shown) and shown["real"].shape == shown["sample"].shape
    assert np.array_equal(np.isnan(shown["real"]), np.isnan(shown["reconstruction"]))

    model, tokenizer = load(str(folder))
    assert tokenizer is None and type(model) is type(AutoModel.from_pretrained(folder))
    # Standardised by the training split, whose mean and deviation the model keeps.
    train = np.concatenate([np.array(row) for row in generate_frames(60, 6, 6)["train"]["input_features"]])
    assert model.config.input_mean == pytest.approx(train.mean(0).tolist(), abs=1e-5)
    assert model.config.input_scale == pytest.approx(train.std(0).tolist(), rel=1e-5)

    text = write_model_card(folder, "org/mine").read_text()
    for part in ('from_pretrained("org/mine"', "4 channels each", "densities of scaled frames", "| seed | 42 |"):
        assert part in text, part
    assert "AutoTokenizer" not in text and "{{" not in text and "None" not in text
    program = text.split("```python\n")[2].split("```")[0]
    exec(program, {"model": model})


@pytest.mark.parametrize(
    ("family", "flags"),
    [
        ("vrae", f"{FRAMES} --head gaussian_mixture --scheduled_sampling 0.5 --minimum_rate 1 --predict_length True"),
        ("vrnn", f"{FRAMES} --smoothing_posterior True --free_bits 0.1 --scheduled_sampling 0.5"),
        ("vrnn", f"{FRAMES} --num_train_samples 3 --resampling True --kl_schedule constant"),
        ("vrnn", "--residual_posterior True"),
        ("hierarchical", "--segment_separators . ? --section_sizes 2 --segment_free_bits 0.1 --section_kl_weight 0.5"),
    ],
)
def test_resumption_is_exact_and_its_time_is_of_the_whole_run(family, flags, recipe, tmp_path):
    run(recipe(family, flags, "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(checkpoints(tmp_path / "resumed")[-1])
    state = checkpoints(tmp_path / "resumed")[-1] / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"training_seconds": 1000.0}))
    torch.rand(17)
    results = run(recipe(family, flags + " --resume_from_checkpoint latest", "resumed"))
    for name in ("model.safetensors", "checkpoint-4/optimizer.bin", "samples.jsonl"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    described = results["run"]
    assert described["resumed_from_step"] == 2 and 1000 < described["training_seconds"] < 1100
    assert described["steps_per_second"] == pytest.approx(4 / described["training_seconds"])


def test_a_particle_filter_is_judged_by_its_own_bound(recipe, tmp_path):
    run(recipe("vrnn", f"{FRAMES} --num_train_samples 3 --resampling True --kl_schedule constant"))
    rows = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    (evaluated,) = (row for row in rows if row["kind"] == "eval")
    state = json.loads((tmp_path / "run" / "checkpoint-4" / "state.json").read_text())
    assert state["best_metric"] == evaluated["nll_fivo"] != evaluated["neg_elbo"]


def test_a_model_to_start_from_takes_the_separators_of_the_run(recipe, tmp_path):
    run(recipe("hierarchical", "--segment_separators .", "first"))
    for asked, name in (("--segment_separators ?", "second"), ("", "third")):
        run(recipe("hierarchical", f"--model_name_or_path {tmp_path / 'first'} {asked}", name))
    ends = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("first", "second", "third")]
    first, second, third = (config["segment_separator_ids"] for config in ends)
    assert first == third != second


def test_separators_of_a_model_without_segments_are_refused(recipe):
    with pytest.raises(ValueError, match=r"`segment_separators` \['\.'\] are of a hierarchical_vrae, and this is a "):
        run(recipe("vrae", "--segment_separators . --autoencoder_epochs 1"))


@pytest.mark.parametrize("family", ["vrae", "vrnn"])
def test_frames_without_z_have_samples_and_no_reconstructions(family, recipe, tmp_path):
    results = run(recipe(family, f"{FRAMES} --latent_size 0 --kl_schedule constant --kl_warmup_steps 0"))
    shown = np.load(tmp_path / "run" / "samples.npz")
    assert set(shown) == {"real", "lengths", "sample"} and "kl" in results
    text = write_model_card(tmp_path / "run").read_text()
    assert "reconstruct" not in text and "# a new sequence" in text and "# log p(x), nats" in text


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trained_model_of_frames_is_measured_and_walked_in(family, recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = generate_frames(90, 1, 1)["train"]
    frames, lengths, labels = (data[name][:] for name in ("input_features", "length", "label"))
    rows = {"x": np.concatenate([np.array(row, np.float32) for row in frames]), "lengths": lengths, "y": labels}
    np.savez("my.npz", **{f"train_{k}": v for k, v in rows.items()}, **{f"test_{k}": v for k, v in rows.items()})
    trained = run(recipe(family, "--train_file my.npz"))
    assert trained["run"]["data"]["train"]["sequences"] == 86  # the rest validates
    command = "--model run --data my.npz --num_samples 3 --output r.json --seed 42"
    probe = "--probe label --probe_train my.npz --anomaly label --normal 0"
    assert script(["scripts/evaluate.py", *command.split(), *probe.split()]) == 0
    measured = json.loads((tmp_path / "r.json").read_text())
    numbers = {name: value for name, value in trained.items() if isinstance(value, float)}
    assert {name: measured[name] for name in numbers} == pytest.approx(numbers, rel=1e-5)
    assert measured["probe"]["num_train"] == 90 and 0.2 < measured["probe"]["accuracy"] <= 1
    assert 0 < measured["anomaly"]["auroc"] < 1 and measured["anomaly"]["num_normal"] == labels.count(0)
    _, points = represent_file(load("run")[0], None, "my.npz", 7)
    assert points.shape == (7, 6 if family == "vrnn" else 3)
    modes = "reconstruct --indices 4 2", "interpolate --steps 2", "attribute --with 2 --without 0 --strength 0 1"
    for mode in (*(f"{mode} --data my.npz" for mode in modes), "sample --count 2 --max_length 9"):
        words = f"run {mode} --output {mode[:4]}.npz".split()
        assert script(["scripts/generate.py", *words]) == 0
        assert (tmp_path / f"{mode[:4]}.png").is_file()
    before = (tmp_path / "my.npz").read_bytes()
    for words in ("reconstruct --data my.npz", "reconstruct --data my.npz --output my", "sample --count 2"):
        assert script(["scripts/generate.py", "run", *words.split()]) == 1
        assert "`output` names the .npz that frames are written to" in capsys.readouterr().err
    assert (tmp_path / "my.npz").read_bytes() == before
    for words in ("reconstruct --data my.npz --max_length 5", "interpolate --window 5"):
        assert script(["scripts/generate.py", "run", *words.split(), "--output", "no.npz"]) == 1
        assert "Leave it out." in capsys.readouterr().err and not (tmp_path / "no.npz").exists()
    assert script(["scripts/evaluate.py", "--model", "run", "--window", "5"]) == 1
    assert "`data` must name what to read: the model 'run' was trained on 'my.npz'" in capsys.readouterr().err
    made = np.load("reco.npz")
    assert made["lengths"].tolist() == [lengths[4], lengths[2]]
    np.testing.assert_allclose(made["real"][1, : lengths[2]], frames[2], rtol=1e-6)
    # Moved by nothing it is the reconstruction; so are both ends of a path (one latent per frame: of equal lengths).
    moved, again = np.load("attr.npz"), walk_frames(load("run")[0], "reconstruct", "my.npz")
    np.testing.assert_allclose(moved["moved 0"], again["reconstruction"], rtol=1e-4, atol=1e-5)
    assert np.nanmax(np.abs(moved["moved 1"] - moved["moved 0"])) > 0  # little, so short a training
    assert np.load("samp.npz")["sample"].shape == (2, 9, 4) and np.load("inte.npz")["t"].tolist() == [0, 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_bounds_a_step_against_their_definitions(family, recipe, tmp_path):
    """Totals over totals, means of means, and raw units, from the terms of each sequence."""
    run(recipe(family, f"{FRAMES} --head full_gaussian --max_steps 2"))
    from hf_vrae.evaluation.likelihood import evaluate

    model = AutoModel.from_pretrained(tmp_path / "run")
    task, data = FrameTask("gaussian", 2, 4), generate_frames(1, 1, 9)["test"]
    results = evaluate(model, data, task.collator(), num_samples=4, per_sequence=True)
    each, steps = results.pop("per_sequence"), np.array(data["length"][:])
    assert each["num_steps"].tolist() == steps.tolist()
    bounds = {"neg_elbo", "nll_iw"} | ({"nll_fivo"} if family == "vrnn" else set())
    offset = np.log(model.config.input_scale).sum()
    for name in bounds:
        assert results[name] == pytest.approx(each[name].mean())
        assert results[f"{name}_per_step"] == pytest.approx(each[name].sum() / steps.sum())
        assert results[f"{name}_mean_of_means"] == pytest.approx(np.mean(each[name] / steps))
        assert results[f"{name}_raw_per_step"] == pytest.approx(results[f"{name}_per_step"] + offset, rel=1e-5)
        assert results[f"{name}_raw"] == pytest.approx(results[name] + offset * steps.mean(), rel=1e-5)
    assert results["true_nll"] == pytest.approx(results["true_nll_raw"] - offset * steps.mean(), rel=1e-4)
    assert results["true_nll_raw"] == pytest.approx(-np.mean(data["true_log_prob"][:]))
    assert results["units"] == "scaled"
    assert not any(name.startswith(("ppl", "bits")) for name in results)
    if family == "vrnn":
        with pytest.raises(ValueError, match=r"no q\(z\|x\) of a sequence"):
            encode_file(model, None)
    state = torch.get_rng_state()
    other = evaluate(model, data, FrameCollator(pad_to_multiple_of=8), num_samples=4, batch_size=2)
    assert torch.equal(torch.get_rng_state(), state)
    same = [name for name in other if name != "units"]
    assert {k: other[k] for k in same} == pytest.approx({k: results[k] for k in same}, rel=1e-4, abs=1e-6)


def test_a_grid_of_values_is_scaled_to_it_and_counted_in_bits(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = np.random.default_rng(0).integers(0, 16, (40, 12, 1))
    values[0, :2, 0] = 0, 15
    np.savez("grid.npz", x=values)
    common = "--train_file grid.npz --validation_file grid.npz --max_steps 3"
    levels = f"{common} --num_levels 16"
    mixture = run(recipe("vrae", f"{levels} --head logistic_mixture --num_mixtures 2", "mixture"))
    config = json.loads((tmp_path / "mixture" / "config.json").read_text())
    assert (config["input_mean"], config["input_scale"]) == ([7.5], [7.5]) and "units" not in mixture
    categorical = run(recipe("vrnn", f"{levels} --head categorical", "categorical"))
    assert json.loads((tmp_path / "categorical" / "config.json").read_text())["input_scale"] is None
    for results in (mixture, categorical):
        assert results["bits_per_value"] == pytest.approx(results["nll_iw_per_step"] / np.log(2))
    assert categorical["bits_per_value"] == pytest.approx(4, abs=0.5)
    with_lengths = run(recipe("vrnn", f"{levels} --head categorical --predict_length True", "with_lengths"))
    assert "bits_per_value" not in with_lengths  # which also pays for the length
    assert run(recipe("vrae", f"{common} --head gaussian --scale_features False", "raw")).get("units") is None
    begins = f"{common} --head gaussian --model_name_or_path {tmp_path / 'raw'}"
    assert run(recipe("vrae", f"{begins} --scale_features False", "second")).get("units") is None
    with pytest.raises(ValueError, match="`scale_features` is True, and the model .* was trained without scaling"):
        run(recipe("vrae", f"{begins} --scale_features True", "third"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_table_of_sensors_with_missing_values(family, recipe, tmp_path):
    """A row per step; empty cells, a channel that is silent in what is shown, and a word for each sequence."""
    rng = np.random.default_rng(0)
    lines = [
        f"{name},{rng.normal():.3f},{'' if name < 3 or rng.random() < 0.3 else f'{rng.normal():.3f}'},{name % 2}"
        for name in range(20)
        for _ in range(6)
    ]
    (tmp_path / "sensors.csv").write_text("\n".join(["id,a,b,label", *lines]))
    files = " ".join(f"--{split}_file {tmp_path / 'sensors.csv'}" for split in ("train", "validation"))
    results = run(recipe(family, f"{files} --sequence_column id"))
    assert results["num_sequences"] == 20 and results["num_steps"] == 120 and results["split"] == "validation"
    assert all(np.isfinite(value) for value in results.values() if isinstance(value, float))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["input_size"] == 2 and config["feature_columns"] == ["a", "b"] and config["sequence_column"] == "id"
    # Another file has them in another order, and other numbers; the model knows its channels by their names.
    rows = [line.split(",") for line in ["id,a,b,label", *lines]]
    (tmp_path / "moved.csv").write_text("\n".join(f"{i},{b},{label},9.5,{a}" for i, a, b, label in rows))
    model = load(str(tmp_path / "run"))
    files = (str(tmp_path / name) for name in ("sensors.csv", "moved.csv"))
    first, second = (evaluate_file(*model, file, num_samples=2) for file in files)
    assert first["nll_iw"] == second["nll_iw"] and first["num_sequences"] == 20
    start = f"--train_file {tmp_path / 'moved.csv'} --model_name_or_path {tmp_path / 'run'} --feature_columns"
    with pytest.raises(ValueError, match=r"are \['a', 'b'\], in this order, and this run's are \['b', 'a'\]"):
        run(recipe(family, f"{start} b a --sequence_column id", "other"))


def test_a_sequence_at_fault_is_named_by_its_place_in_the_file(recipe, tmp_path):
    """Validation data are taken out of the training data, which mixes these."""
    x = np.random.default_rng(0).normal(size=(20, 6, 2))
    x[1, 3, 1] = np.inf
    np.savez(tmp_path / "x.npz", x=x)
    with pytest.raises(ValueError, match="sequence 1 has inf in channel 1, frame 3"):
        run(recipe("vrae", f"--train_file {tmp_path / 'x.npz'}"))
    with pytest.raises(ValueError, match="window 3 has inf in channel 1, frame 0"):
        run(recipe("vrae", f"--train_file {tmp_path / 'x.npz'} --window 3"))


def test_what_is_of_texts_or_of_no_samples_is_refused_of_frames(recipe, tmp_path):
    run(recipe("vrae", FRAMES))
    model, tokenizer = load(str(tmp_path / "run"))
    with pytest.raises(ValueError, match="`max_length` cuts texts"):
        evaluate_file(model, tokenizer, max_length=5)
    with pytest.raises(ValueError, match="`anomaly_label` must be a column of names"):
        evaluate_file(model, tokenizer, anomaly_label="nowhere")
    with pytest.raises(ValueError, match="length of 1 or more"):
        walk_frames(model, "sample", count=2, max_length=0)
    with pytest.raises(ValueError, match="`guidance_scale` of frames is an option of the model's `generate` alone"):
        walk_frames(model, "sample", count=2, guidance_scale=2.0)


def test_segments_of_a_file_are_those_of_training_and_evaluation(recipe, tmp_path):
    """Every four frames, they are as segments of length 4; elsewhere they are others."""
    rng, results = np.random.default_rng(0), {}
    x, places = rng.normal(size=(20, 10, 2)), np.tile(np.arange(10), (20, 1))
    for name, ids in (("fours", places // 4), ("others", (places + 1) // 4)):
        np.savez(tmp_path / f"{name}.npz", x=x, bar=ids)
        files = " ".join(f"--{split}_file {tmp_path / name}.npz" for split in ("train", "validation"))
        flags = f"{files} --features_column x --segment_column bar --overwrite_output_dir"
        results[name] = run(recipe("hierarchical", f"{flags} --segment_length 7"))
    np.savez(tmp_path / "plain.npz", x=x)
    files = " ".join(f"--{split}_file {tmp_path / 'plain'}.npz" for split in ("train", "validation"))
    plain = run(recipe("hierarchical", f"{files} --segment_length 4 --overwrite_output_dir"))
    assert results["fours"]["nll_iw"] == plain["nll_iw"] and results["fours"]["kl"] == plain["kl"]
    assert results["others"]["nll_iw"] != plain["nll_iw"]


def test_what_is_walked_in_has_the_segments_of_its_file(recipe, tmp_path):
    rng = np.random.default_rng(0)
    x, bars = rng.normal(size=(20, 10, 2)), np.sort(rng.integers(0, 3, (20, 10)))
    for name, ids in (("own", bars), ("other", np.tile(np.arange(10) // 2, (20, 1)))):
        np.savez(tmp_path / f"{name}.npz", x=x, bar=ids, side=(x[:, 0, 0] > 0).astype(int))
    files = " ".join(f"--{split}_file {tmp_path / 'own'}.npz" for split in ("train", "validation"))
    results = run(recipe("hierarchical", f"{files} --features_column x --segment_column bar"))
    model, own = load(str(tmp_path / "run")), {"features_column": "x"}
    path, other = str(tmp_path / "own.npz"), str(tmp_path / "other.npz")
    measured = evaluate_file(*model, path, num_samples=3, **own)
    assert measured["kl"] == pytest.approx(results["kl"], rel=1e-5)  # without a word of the column
    assert evaluate_file(*model, other, num_samples=2, **own)["kl"] != pytest.approx(measured["kl"], rel=1e-3)
    options = {"path": path, "indices": [3, 4], **own}
    whole = walk_frames(model[0], "reconstruct", **options)["reconstruction"]
    with pytest.raises(ValueError, match=r"`indices` must be the two ends of an interpolation, got \[3, 4, 5\]"):
        walk_frames(model[0], "interpolate", **options | {"indices": [3, 4, 5]})
    way = walk_frames(model[0], "interpolate", steps=2, **options)["path"]
    groups = {"label": "side", "examples": "1", "without": "0", "strength": [0.0]}
    moved = walk_frames(model[0], "attribute", **groups, **options)["moved 0"]
    for frames in (way, moved):
        np.testing.assert_allclose(frames, whole, rtol=1e-4, atol=1e-5)
    elsewhere = walk_frames(model[0], "reconstruct", **options | {"path": other})["reconstruction"]
    assert not np.allclose(elsewhere, whole, rtol=1e-3)


@pytest.mark.parametrize(
    ("family", "flags", "message"),
    [
        ("vrae", "--hidden_size 16", "`hidden_size` 16 is not of a model of type vrae, whose nearest field is"),
        ("vrnn", "--encoder_hidden_size 16", "is not of a model of type vrnn, whose nearest field is `hidden_size`"),
        (
            "vrae",
            "--head bernoulli",
            "`head` 'bernoulli' is of frames, and the data are text. Leave it out, or name data of frames",
        ),
        ("vrae", "--scale_features True", "`scale_features` True is of frames"),
        ("vrnn", "--transpose 2", "`transpose` 2 is of frames"),
        ("vrae", f"{FRAMES} --word_noise 0.2", "`word_noise` 0.2 is of text, and the data are frames"),
        ("vrae", "--word_noise 1.2", "`word_noise` is a share and must be in [0, 1], got 1.2"),
        ("vrnn", "--word_noise 0.2", "a vrae without `label_classifier`; this is a vrnn"),
        ("hierarchical", "--word_noise 0.2", "a vrae without `label_classifier`; this is a hierarchical_vrae"),
        ("hierarchical", "--minimum_rate 3 --segment_free_bits 0.1", "hold the KL of all scales together"),
        ("vrae", "--word_noise 0.2 --svi_steps 2 --kernels plain", "is of the ELBO of one sample"),
        ("vrae", "--word_noise 0.2 --bag_of_words_weight 0.5", "changes the words that `bag_of_words_weight` 0.5"),
        ("vrae", "--train_file a.npz --segment_column bar", "segments of a hierarchical_vrae lie, and this is a vrae"),
        ("vrae", f"{FRAMES} --tokenizer_type char", "`tokenizer_type` 'char' is of text, and the data are frames"),
        ("vrae", "--text_column words", "`text_column` 'words' says how to read data, and none are named"),
        (
            "vrae",
            "--train_file a.txt --corpus_size 9",
            "`corpus_size` 9 is of what is built in, and other data are named",
        ),
        (
            "vrae",
            f"{FRAMES} --train_file a.csv",
            "`builtin` 'frames' is of what is built in, and other data are named",
        ),
        (
            "vrae",
            "--train_file a.parquet --encoding latin-1",
            "`encoding` 'latin-1' is of files of characters, and these",
        ),
        ("vrae", "--dataset_config_name a", "`dataset_config_name` 'a' is of `dataset_name`, which is not given"),
        (
            "vrae",
            "--train_file a.txt --validation_file b.txt --validation_split_percentage 9",
            "`validation_split_percentage` 9.0 takes apart what `validation_file` leaves whole",
        ),
        ("vrae", "--tokenizer_name a --vocab_size 9", "`vocab_size` 9 is of a new tokenizer, and `tokenizer_name` or"),
        (
            "vrae",
            "--decoder_name_or_path a --tokenizer_type bpe",
            "`tokenizer_type` 'bpe' is of a new tokenizer, and `tokenizer_name` or the",
        ),
        ("vrae", f"{FRAMES} --attribute_columns length", "A condition is of column 'length', which is remade of the"),
        ("vrae", "--window 3", "`window` 3 says how to read data, and none are named"),
        (
            "vrae",
            "--validation_split_percentage 9",
            "`validation_split_percentage` 9.0 says how to read data, and none",
        ),
        (
            "vrae",
            f"{FRAMES} --train_window 7 --predict_length True",
            "`train_window` 7 cuts sequences of training alone, and `predict_length` would learn of ends",
        ),
        ("vrae", f"{FRAMES} --head bernoulli", "0 or 1 for this head"),
        ("vrae", f"{FRAMES} --tie_word_embeddings", "ties tables of words"),
        ("vrae", f"{FRAMES} --head logistic_mixture --scale_features False", "with `scale_features` false they reach"),
        ("vrae", f"{FRAMES} --autoregressive False --scheduled_sampling 0.5", "without `autoregressive`, or with"),
        ("vrae", "--num_train_samples 3 --resampling True", "Take `model_type` vrnn"),
        (
            "vrnn",
            "--resampling True --kl_schedule constant",
            "particles of `num_train_samples`, which must be above 1, got 1",
        ),
        (
            "vrnn",
            "--resampling True --num_train_samples 3",
            "set `kl_schedule` constant and `kl_weight` 1, got linear",
        ),
        ("vrnn", "--svi_steps 2", "`svi_steps` 2 and `mmd_weight` 0.0 are of one posterior per sequence"),
        ("vrnn", "--mmd_weight 1", "`mmd_weight` 1.0 are of one posterior per sequence"),
        ("vrnn", "--aggressive", "`aggressive` ends when the mutual information of x and one z falls"),
        ("vrnn", "--autoencoder_epochs 1", "make the decoder anew, which a vrnn shares"),
        (
            "vrnn",
            "--scheduled_sampling 0.2 --num_train_samples 3 --resampling True --kl_schedule constant",
            "needs one decoder pass of one latent",
        ),
        ("vrnn", "--latent_size 0", "`latent_size` 0 is a model without z"),
    ],
)
def test_what_makes_no_sense_of_frames_or_steps_is_refused(family, flags, message, recipe):
    with pytest.raises(ValueError) as caught:
        run(recipe(family, flags))
    assert message in str(caught.value)


def test_noise_is_of_training_and_of_what_the_decoder_reads_and_says(recipe):
    task, splits = TextTask.prepare(recipe("vrae", "--word_noise 1"))
    batch = task.collator()(splits["train"].select(range(20)).to_list())
    noised = task.augment(batch)
    assert torch.equal(noised["input_ids"], batch["input_ids"])
    assert torch.equal(noised["decoder_attention_mask"], batch["labels"] != -100)
    for name, true in (("decoder_input_ids", batch["input_ids"][:, :-1]), ("labels", batch["labels"])):
        assert noised[name].shape == true.shape and (noised[name] != true).any()
    assert "decoder_input_ids" not in task.collator()(splits["test"].select(range(2)).to_list())


def test_a_model_goes_on_only_as_what_it_is(recipe, tmp_path):
    run(recipe("vrae", FRAMES + " --max_steps 1", "first"))
    start = f"--max_steps 1 --model_name_or_path {tmp_path / 'first'} "
    again = run(recipe("vrae", start + FRAMES + " --dropout 0.5 --seed 3", "again"))
    first, second = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("first", "again"))
    assert first["input_mean"] == second["input_mean"] and second["dropout"] == 0.5 and again["split"] == "test"
    with pytest.raises(ValueError, match="`model_type` is vrae in the model"):
        run(recipe("vrnn", start + FRAMES, "other"))
    np.savez(tmp_path / "wide.npz", x=np.random.default_rng(0).normal(size=(30, 5, 7)))
    with pytest.raises(ValueError, match="No tokenizer can be loaded from .*first': it must be a folder"):
        run(recipe("vrae", start, "text"))
    with pytest.raises(ValueError, match="`model_name_or_path` 'no/where' cannot be loaded as a model"):
        run(recipe("vrae", FRAMES + " --model_name_or_path no/where", "nothing"))
    with pytest.raises(ValueError, match="`input_size` is 4 in the model .* and this run's is 7"):
        run(recipe("vrae", start + f"--train_file {tmp_path / 'wide.npz'}", "wide"))
    binary = f"--train_file {tmp_path / 'binary.npz'} --max_steps 1"
    np.savez(tmp_path / "binary.npz", x=np.random.default_rng(0).integers(0, 2, (30, 5, 4)))
    np.savez(tmp_path / "real.npz", x=np.random.default_rng(0).normal(size=(30, 5, 4)))
    run(recipe("vrae", f"{binary} --head bernoulli", "binary"))
    real = recipe("vrae", f"--train_file {tmp_path / 'real.npz'} --model_name_or_path {tmp_path / 'binary'}")
    task, splits = FrameTask.prepare(real)  # by the recipe, which names no head, these may be any numbers
    with pytest.raises(ValueError, match="0 or 1 for this head"):
        task.make_model(real, splits["train"])
    model = AutoModel.from_pretrained(tmp_path / "first")
    with pytest.raises(ValueError, match="have 7 channels, and the model's `input_size` is 4"):
        evaluate_file(model, None, str(tmp_path / "wide.npz"))
    with pytest.raises(ValueError, match="`text_column` 'text' says nothing to a model of frames"):
        evaluate_file(model, None, text_column="text")


@pytest.mark.parametrize("flags", ["", FRAMES])
def test_a_recurrent_network_without_latents_is_a_vrnn_of_none(flags, recipe):
    results = run(recipe("vrnn", f"{flags} --latent_size 0 --kl_schedule constant"))
    assert results["kl"] == 0 and results["nll_iw"] == pytest.approx(results["neg_elbo"])
    assert "nll_fivo" not in results and results["active_units"] == 0


@pytest.mark.parametrize("source", ["text", "frames", "file"])
def test_the_data_are_the_same_whatever_the_seed_of_a_run(source, tmp_path):
    """Else the deviation over seeds would be also that of the sequences that are held out."""
    (tmp_path / "my.txt").write_text("\n".join(f"it was {i} times so ." for i in range(40)))
    kind = FrameTask if source == "frames" else TextTask
    flags = ["--train_file", str(tmp_path / "my.txt")] if source == "file" else ["--corpus_size", "40"]
    (task, first), (_, second) = (kind.prepare(parse_recipe([*flags, "--seed", seed])) for seed in "12")
    assert first.keys() == second.keys() >= {"train", "validation"}
    assert all(task.fingerprint(first[name]) == task.fingerprint(second[name]) for name in first)


def test_windows_that_overlap_are_not_shared_out(recipe, tmp_path):
    """Validation would be on frames that others train on."""
    np.save(tmp_path / "long.npy", np.random.default_rng(0).normal(size=(400, 2)))
    flags = f"--train_file {tmp_path / 'long.npy'} --window 50 --stride "
    with pytest.raises(ValueError, match="`stride` 5 below `window` 50 cuts windows that overlap"):
        run(recipe("vrae", flags + "5"))
    assert run(recipe("vrae", flags + "50"))["nll_iw"]
    assert run(recipe("vrae", f"{flags}5 --validation_file {tmp_path / 'long.npy'}", "apart"))["nll_iw"]


@pytest.mark.parametrize(
    ("measure_it", "message"),
    [
        (functools.partial(evaluate_file, probe_label="label"), "give both, or neither"),
        (functools.partial(evaluate_file, probe_train="a.npz"), "give both, or neither"),
        (functools.partial(evaluate_file, num_text_samples=4), "are of text, and this is a model of frames"),
    ],
)
def test_what_frames_cannot_be_asked_is_refused(measure_it, message):
    with pytest.raises(ValueError, match=message):
        measure_it(make_frame_model(), None)
