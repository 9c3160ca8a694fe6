"""The loop: the same update however it is shared out, exact resumption, and nothing lost when it stops."""

import functools
import gc
import itertools
import json
import os
import shutil
import signal
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator, PartialState
from datasets import Dataset
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
)

from hf_vrae import VRAEForSequenceGeneration
from hf_vrae.evaluation.likelihood import evaluate
from hf_vrae.hub import load
from hf_vrae.measure import evaluate_file
from hf_vrae.modeling import distributions
from hf_vrae.training import loop as loop_module
from hf_vrae.training.accelerator import main_process_first, make_accelerator, trackers_of, use_all_of_the_cpu
from hf_vrae.training.arguments import parse_recipe
from hf_vrae.training.batches import UpdateBatches
from hf_vrae.training.checkpoints import checkpoints, find_run
from hf_vrae.training.loop import Interrupted, TrainingLoop, TrainingState
from hf_vrae.training.optimization import learning_rate_schedule, make_optimizer
from hf_vrae.training.run import autoencoder_arguments, run
from hf_vrae.training.tasks import TextTask, task_of
from tests.models import make_hierarchical_model, make_model
from tests.scripts import fresh_accelerator


def lines(folder, kind=None):
    rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if kind in (None, row["kind"])]


def weights(folder):
    return (Path(folder) / "model.safetensors").read_bytes()


def test_a_run_leaves_a_model_its_numbers_and_its_samples(tiny, tmp_path):
    results = run(tiny("--eval_strategy steps --eval_steps 6"))
    folder = tmp_path / "run"
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
    assert results["split"] == "test" and results["num_sequences"] == 24
    described = results["run"]
    assert described["seed"] == 42 and described["steps"] == 12 and len(described["data"]["test"]["sha256"]) == 64
    assert described["data"]["train"]["sequences"] == 240 and "torch" in described["versions"]
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer) and model.generation_config.max_length > 10
    assert [row["step"] for row in lines(folder, "train")] == [4, 8, 12]
    assert {"loss", "reconstruction", "kl", "kl_weight", "learning_rate", "grad_norm", "tokens_per_second"} < set(
        lines(folder, "train")[0]
    )
    evaluation = lines(folder, "eval")[-1]
    assert {"neg_elbo", "reconstruction", "kl", "mutual_information", "active_units"} < set(evaluation)
    samples = json.loads((folder / "samples.jsonl").read_text().splitlines()[-1])
    assert len(samples["reconstructions"]) == 3 and len(samples["samples"]) == 3
    assert samples["reconstructions"][0][0].split()[-1] in ".?"


def test_threads_that_a_user_names_are_kept_and_a_launchers_are_shared_out(monkeypatch):
    named = []
    monkeypatch.setattr(torch, "set_num_threads", named.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(6), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    alone, shared = (SimpleNamespace(device=torch.device("cpu"), num_processes=n) for n in (1, 2))
    use_all_of_the_cpu(alone)
    assert named == []
    use_all_of_the_cpu(shared)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    use_all_of_the_cpu(alone)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # the other process is on another machine
    use_all_of_the_cpu(shared)
    assert named == [3, 6, 6]


@pytest.mark.parametrize("first", [True, False])
def test_an_error_of_the_main_process_leaves_no_other_waiting(first):
    order = []
    state = SimpleNamespace(is_main_process=first, wait_for_everyone=lambda: order.append("wait"))
    with pytest.raises(ValueError, match="mine"), main_process_first(state):
        order.append("work")
        raise ValueError("mine")
    assert order == (["work", "wait"] if first else ["wait", "work"])


def test_training_lowers_the_bound(tiny):
    before = run(tiny("--max_steps 1", "short"))
    after = run(tiny("--max_steps 60 --learning_rate 1e-2", "long"))
    assert after["neg_elbo"] < before["neg_elbo"] - 10


RISING = "--logging_steps 1 --kl_warmup_steps 8 --kl_start 0.1 --kl_weight 9 --initializer_range 1"


@pytest.mark.parametrize(("flags", "first"), [("--kl_schedule constant --kl_weight 0.5", 0.5), (RISING, 0.1)])
def test_the_loss_of_a_line_is_that_of_its_updates(flags, first, tiny, tmp_path):
    run(tiny(flags))
    rows = lines(tmp_path / "run", "train")
    assert rows[0]["kl_weight"] == first
    for row in rows:
        assert row["loss"] == pytest.approx(row["reconstruction"] + row["kl_weight"] * row["kl"], rel=1e-5)


def test_the_time_of_an_evaluation_is_not_that_of_training(tiny, tmp_path, monkeypatch):
    original, passed = loop_module.evaluate, [0.0]

    def slow(*args, **options):
        passed[0] += 1e6
        return original(*args, **options)

    monkeypatch.setattr(loop_module, "time", SimpleNamespace(perf_counter=lambda: time.perf_counter() + passed[0]))
    monkeypatch.setattr(loop_module, "evaluate", slow)
    run(tiny("--eval_strategy steps --eval_steps 3"))
    assert all(row["tokens_per_second"] > 1 for row in lines(tmp_path / "run", "train"))


def test_the_gradient_norm_of_a_line_is_of_the_updates_that_were_taken():
    """Float16's gradient scaler skips one that overflows."""
    written = {}
    loop = SimpleNamespace(
        state=SimpleNamespace(pending=[[2, 2, 0, 2, 5, float("inf")], [2, 2, 0, 2, 5, 4.0]], step=2), clock=0,
        task=SimpleNamespace(unit="tokens"), kl_weight=lambda step: 1, learning_rate=lambda step: 1,
        args=SimpleNamespace(aggressive=False), kl_schedule=SimpleNamespace(kind="linear"),
        write=lambda kind, values: written.update(values),
    )  # fmt: skip
    TrainingLoop.log_training(loop, SimpleNamespace(set_postfix_str=lambda text: None))
    assert written["grad_norm"] == 4 and written["loss"] == 1


def same_noise(monkeypatch):
    """Take the randomness out, so that updates that should be equal can be compared."""
    monkeypatch.setattr(distributions, "_standard_normal", lambda shape, like, generator: torch.zeros(shape))
    return "--dropout 0 --word_dropout 0 --optim sgd --learning_rate 0.1 "


@pytest.mark.parametrize("steps", [2, 4])
def test_accumulation_makes_the_update_of_one_big_batch(steps, tiny, tmp_path, monkeypatch):
    """Sequences of different lengths, and a last batch smaller than the others: 250 = 15 x 16 + 10."""
    flags = same_noise(monkeypatch) + "--corpus_size 250 --max_steps 16 --max_grad_norm 1 "
    run(tiny(flags, "one"))
    run(tiny(f"{flags} --per_device_train_batch_size {16 // steps} --gradient_accumulation_steps {steps}", "parts"))
    one, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "parts"))
    for name in one:
        torch.testing.assert_close(parts[name], one[name], rtol=1e-4, atol=1e-6)
    for a, b in zip(lines(tmp_path / "one", "train"), lines(tmp_path / "parts", "train"), strict=True):
        assert [b[name] for name in ("loss", "reconstruction", "kl", "grad_norm")] == pytest.approx(
            [a[name] for name in ("loss", "reconstruction", "kl", "grad_norm")], rel=1e-4
        )


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--rnn_type gru --tie_word_embeddings --gradient_accumulation_steps 2",
        "--optim adam --layer_norm --mixed_precision bf16",
        "--optim sgd --momentum 0.9 --lr_scheduler_type reduce_lr_on_plateau --lr_decay_patience 1 --learning_rate 2",
        "--aggressive --posterior batch_norm --learn_batch_norm_scale True",
        "--minimum_rate 3 --scheduled_sampling 0.5 --mmd_weight 2 --bag_of_words_weight 0.1 --posterior delta",
        "--kl_schedule capacity --kl_capacity 4 --skip_connections True --decoder_layers 2",
        "--svi_steps 2 --kernels plain",
        "--num_train_samples 3",
        "--word_noise 0.3",
        "--latent_size 0 --kl_schedule constant",
        "--posterior vmf --kl_schedule constant",
        "--encoder_type transformer --decoder_type transformer",
        "--encoder_type independent --decoder_type independent --minimum_rate 3",
    ],
)
def test_resumption_is_exact(flags, tiny, tmp_path, monkeypatch):
    """Interrupted in the middle of an epoch and of a line of metrics, and resumed with other random states about."""
    monkeypatch.setattr(loop_module, "MAX_ENCODER_UPDATES", 20)  # of aggressive training; two windows
    flags += " --eval_strategy steps --eval_steps 5 --save_total_limit 9 --logging_steps 4"
    run(tiny(flags, "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for path in checkpoints(tmp_path / "resumed"):
        if int(path.name.split("-")[1]) > 6:
            shutil.rmtree(path)
    path = tmp_path / "resumed" / "checkpoint-6" / "state.json"
    state = json.loads(path.read_text())
    assert state["pending_seconds"] > 0
    path.write_text(json.dumps(state | {"pending_seconds": 1e6}))
    torch.rand(17)
    run(tiny(flags + " --resume_from_checkpoint latest", "resumed"))
    (row,) = (row for row in lines(tmp_path / "resumed") if (row["kind"], row["step"]) == ("train", 8))
    assert row["tokens_per_second"] < 1, "updates before the resumption take their time in the first line behind it"
    for name in ("model.safetensors", "checkpoint-12/model.safetensors", "checkpoint-12/optimizer.bin"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    states = [
        json.loads((tmp_path / name / "checkpoint-12" / "state.json").read_text()) for name in ("whole", "resumed")
    ]
    assert all(state.pop(name) > 0 for state in states for name in ("training_seconds", "pending_seconds"))
    assert states[0] == states[1]
    timeless = [[{k: v for k, v in row.items() if k != "tokens_per_second"} for row in lines(tmp_path / name)]
                for name in ("whole", "resumed")]  # fmt: skip
    assert timeless[0] == timeless[1]
    assert (tmp_path / "whole" / "samples.jsonl").read_text() == (tmp_path / "resumed" / "samples.jsonl").read_text()


def test_runs_repeat_themselves_and_seeds_differ(tiny, tmp_path):
    for name, flags in (("a", ""), ("b", ""), ("c", "--seed 1")):
        run(tiny(flags, name))
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != weights(tmp_path / "c")


def test_the_seed_makes_the_weights_the_batches_and_the_noise(tiny, monkeypatch):
    seen = []

    def first_update(self, micro_batches, indices, frozen=()):
        seen.append((self.plain_model.lm_head.weight.tolist(), indices.tolist(), torch.rand(3).tolist()))
        raise Interrupted(2, "")

    monkeypatch.setattr(TrainingLoop, "update", first_update)
    for seed in "112":
        with pytest.raises(Interrupted):
            run(tiny(f"--seed {seed} --overwrite_output_dir"))
    first, again, other = seen
    assert first == again and all(a != b for a, b in zip(first, other, strict=True))


def test_a_second_signal_is_for_whom_it_was_before():
    loop, before = TrainingLoop.__new__(TrainingLoop), [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with loop.handle_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        assert loop.stop_signal == signal.SIGTERM
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_saves_itself_and_goes_on(number, tiny, tmp_path, monkeypatch):
    handler, update = signal.getsignal(number), TrainingLoop.update

    def interrupted(self, *args):
        if self.state.step == 5:
            os.kill(os.getpid(), number)
        return update(self, *args)

    monkeypatch.setattr(TrainingLoop, "update", interrupted)
    with pytest.raises(Interrupted, match="Interrupted at step .*--resume_from_checkpoint latest") as caught:
        run(tiny("--max_steps 100000 --save_steps 100000"))
    assert caught.value.signal_number == number and signal.getsignal(number) is handler
    (saved,) = checkpoints(tmp_path / "run")
    step = json.loads((saved / "state.json").read_text())["step"]
    assert saved.name == f"checkpoint-{step}" and AutoModel.from_pretrained(saved)
    # The command that the message gives, up to the end of this test's patience.
    recipe = tiny("--max_steps 8 --resume_from_checkpoint latest")
    assert step == 6 and run(recipe)["run"]["steps"] == 8


@pytest.mark.parametrize("part", ["autoencoder", "judges/reverse_ppl/model", "other"])
def test_a_part_of_a_run_goes_on_with_the_whole(part, tmp_path):
    (tmp_path / part / "checkpoint-4").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / part):
        (folder / "recipe.yaml").write_text("{}")
    said = TrainingLoop.how_to_resume(SimpleNamespace(output_dir=tmp_path / part), "Stopped.")
    recipe = (tmp_path / part if part == "other" else tmp_path) / "recipe.yaml"
    assert f"checkpoint-4. Go on with: accelerate launch scripts/train.py --config {recipe} --resume" in said


def test_a_run_told_to_stop_in_its_last_evaluation_does(tiny, tmp_path, monkeypatch):
    validate = TrainingLoop.validate

    def told(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return validate(self)

    monkeypatch.setattr(TrainingLoop, "validate", told)
    with pytest.raises(Interrupted, match="Interrupted at step 4"):
        run(tiny("--max_steps 4 --eval_strategy steps --eval_steps 4"))
    assert checkpoints(tmp_path / "run")[-1].name == "checkpoint-4"


@pytest.mark.parametrize(("told", "heard"), [(0, signal.SIGTERM), (signal.SIGINT, signal.SIGINT)])
def test_several_processes_ask_one_another_whether_to_stop(told, heard):
    """Every few updates, since launchers wait for half a minute; what another one got is heard as SIGTERM."""
    loop = TrainingLoop.__new__(TrainingLoop)
    others = SimpleNamespace(num_processes=2, device="cpu", reduce=lambda tensor, how: tensor + signal.SIGTERM)
    loop.accelerator, loop.stop_signal, loop.state = others, told, TrainingState(step=9)
    assert loop.told_to_stop(False) == 0 and loop.told_to_stop() == heard
    loop.state.step = 10
    assert loop.told_to_stop(False) == heard
    loop.state.step, loop.state.aggressive = 9, True
    assert loop.told_to_stop(False) == heard
    others.reduce = lambda tensor, how: tensor
    assert loop.told_to_stop() == told


def test_a_loss_that_is_no_number_stops_the_run(tiny, tmp_path, monkeypatch):
    update = TrainingLoop.update

    def poisoned(self, *args):
        if self.state.step == 9:
            next(self.plain_model.parameters()).data.fill_(float("nan"))
        return update(self, *args)

    monkeypatch.setattr(TrainingLoop, "update", poisoned)
    with pytest.raises(FloatingPointError) as caught:
        run(tiny())
    message = str(caught.value)
    assert "not finite at step 9 (epoch 0.60)" in message and "checkpoint-6" in message
    batch = json.loads((tmp_path / "run" / "nan_batch.json").read_text())
    assert batch["step"] == 9 and len(batch["indices"]) == len(batch["texts"]) == 16
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-6"]
    # Of a run that was killed, and of the user.
    for name in ("partial-checkpoint-9", "partial-data"):
        (tmp_path / "run" / name).mkdir()
    for name in ("partial-results.json", "partial-notes.md"):
        (tmp_path / "run" / name).touch()
    found = {path.name for path in find_run(tmp_path / "run", True)}
    assert {"nan_batch.json", "partial-checkpoint-9", "partial-results.json"} < found
    assert not found & {"partial-data", "partial-notes.md"}
    good = AutoModel.from_pretrained(tmp_path / "run" / "checkpoint-6")
    assert all(torch.isfinite(parameter).all() for parameter in good.parameters())


def test_a_readme_alone_is_no_run(tmp_path):
    (tmp_path / "README.md").write_text("of mine")
    assert find_run(tmp_path, False) == find_run(tmp_path, True) == []


def test_checkpoints_are_few_whole_and_load(tiny, tmp_path):
    run(tiny("--max_steps 12 --save_steps 2 --save_total_limit 2"))
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-10", "checkpoint-12"]
    assert not list((tmp_path / "run").glob("partial-*"))
    assert weights(tmp_path / "run" / "checkpoint-12") == weights(tmp_path / "run")
    AutoTokenizer.from_pretrained(tmp_path / "run" / "checkpoint-10")


def test_a_checkpoint_half_written_is_none(tiny, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("iostream error")  # what torch says of a full disk

    monkeypatch.setattr(VRAEForSequenceGeneration, "save_pretrained", fail)
    with pytest.raises(OSError, match="checkpoint-6' cannot be written \\(iostream error\\). Is the disk full"):
        run(tiny())
    assert checkpoints(tmp_path / "run") == []


def test_the_best_model_is_kept_and_returned(tiny, tmp_path, monkeypatch):
    """Evaluations say 5, 3, 4, 9: the model of the second is the best, whatever the limit."""
    bounds = iter([5.0, 3.0, 4.0, 9.0])
    original = loop_module.evaluate
    monkeypatch.setattr(
        loop_module, "evaluate", lambda *args, **kwargs: original(*args, **kwargs) | {"neg_elbo": next(bounds)}
    )
    flags = "--eval_strategy steps --eval_steps 3 --save_steps 100 --save_total_limit 1 --kl_schedule constant"
    results = run(tiny(flags))
    assert results["run"]["best_step"] == 6
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-6", "checkpoint-12"]
    assert weights(tmp_path / "run") == weights(tmp_path / "run" / "checkpoint-6")


def test_no_model_is_best_before_the_kl_weight_has_arrived(tiny, tmp_path):
    run(tiny("--eval_strategy steps --eval_steps 2 --kl_warmup_steps 7"))
    assert run(tiny("--eval_strategy steps --eval_steps 2 --kl_warmup_steps 100", "never"))["run"]["best_step"] is None
    assert json.loads((tmp_path / "run" / "results.json").read_text())["run"]["best_step"] >= 8


@pytest.mark.parametrize("flags", ["--max_steps 1", "--max_steps 1 --eval_strategy no"])
def test_weights_that_the_last_update_breaks_are_told(tiny, tmp_path, flags):
    with pytest.raises(FloatingPointError, match="-ELBO is nan after step 1: lower --learning_rate"):
        run(tiny(f"{flags} --learning_rate 1e38"))
    assert not (tmp_path / "run" / "results.json").exists()


def test_early_stopping_counts_once_the_kl_weight_has_arrived(tiny, tmp_path, monkeypatch):
    bounds = iter(range(100))
    original = loop_module.evaluate
    monkeypatch.setattr(
        loop_module, "evaluate", lambda *args, **kwargs: original(*args, **kwargs) | {"neg_elbo": next(bounds)}
    )
    flags = "--max_steps 40 --eval_strategy steps --eval_steps 2 --kl_warmup_steps 9 --early_stopping_patience 3"
    assert run(tiny(flags))["run"]["steps"] == 16  # arrived at 10, which is the best; then 12, 14, 16
    assert (tmp_path / "run" / "checkpoint-16").is_dir(), "the end, where a resumption has nothing to train"
    fresh_accelerator()
    run(tiny(f"{flags} --logging_steps 1000 --num_quality_samples 2", "no_line"))  # takes a speed from the lines
    assert [row["step"] for row in lines(tmp_path / "no_line") if row["kind"] == "train"] == [16]


def test_an_improvement_begins_the_count_anew_and_an_early_plateau_is_waited_out(tiny, monkeypatch):
    original = loop_module.evaluate
    monkeypatch.setattr(
        loop_module, "evaluate", lambda *args, **kwargs: original(*args, **kwargs) | {"neg_elbo": next(bounds)}
    )
    flags = "--eval_strategy steps --eval_steps 2 --kl_schedule constant --max_steps 40 "
    bounds = iter([5.0, 6.0, 4.0, *[6.0] * 99])
    assert run(tiny(flags + "--early_stopping_patience 2"))["run"]["steps"] == 10
    fresh_accelerator()
    bounds = iter([5.0, *[6.0] * 99])
    flags += "--optim sgd --lr_scheduler_type reduce_lr_on_plateau --lr_decay_patience 1 --max_lr_decays 1"
    late = run(tiny(f"{flags} --lr_decay_start_epoch 0.3", "plateau"))  # an epoch is 15 updates
    assert late["run"]["steps"] == 6


def test_an_evaluation_ends_each_epoch_and_the_run(tiny, tmp_path):
    run(tiny("--eval_strategy epoch --corpus_size 48 --max_steps 7"))  # an epoch is 3 updates
    assert [row["step"] for row in lines(tmp_path / "run", "eval")] == [3, 6, 7]


def test_every_update_is_taken_at_the_rate_of_its_line(tiny, tmp_path):
    run(tiny("--learning_rate 0.08 --warmup_steps 4 --logging_steps 1 --save_steps 1 --save_total_limit 99"))
    said = [row["learning_rate"] for row in lines(tmp_path / "run", "train")]
    files = (tmp_path / "run" / f"checkpoint-{step}" / "optimizer.bin" for step in range(1, 13))
    assert [torch.load(file)["param_groups"][0]["lr"] for file in files] == said and len(set(said)) > 5


def test_a_run_has_the_rates_of_its_schedule_and_clips_where_it_is_told_to(tiny, tmp_path):
    run(tiny("--learning_rate 0.08 --warmup_steps 4 --logging_steps 1"))
    rates = [row["learning_rate"] for row in lines(tmp_path / "run", "train")]
    assert rates == pytest.approx([0.08 * min(t / 4, (12 - t) / 8) for t in range(12)])
    moved = {}
    for clip, rate in ((1.0, 1e-12), (1e-3, 1.0), (0.0, 1.0)):
        fresh_accelerator()
        name = f"{clip} {rate}"
        run(tiny(f"--max_steps 1 --optim sgd --learning_rate {rate} --max_grad_norm {clip} "
                 "--lr_scheduler_type constant", name))  # fmt: skip
        moved[clip] = load_file(tmp_path / name / "model.safetensors")
    first = moved.pop(1.0)
    norms = {clip: sum((new[k] - first[k]).square().sum() for k in first).sqrt() for clip, new in moved.items()}
    assert norms[1e-3] == pytest.approx(1e-3, rel=0.05) and norms[0.0] > 1


def test_decay_on_a_plateau_restores_the_best_model(tiny, tmp_path, monkeypatch):
    bounds = iter([5.0, 3.0, 4.0, 4.0, 2.0, 9.0, 9.0, 9.0, 9.0, 9.0])
    original, restored = loop_module.evaluate, []
    monkeypatch.setattr(
        loop_module, "evaluate", lambda *args, **kwargs: original(*args, **kwargs) | {"neg_elbo": next(bounds)}
    )
    load = loop_module.load_weights
    monkeypatch.setattr(
        loop_module, "load_weights", lambda model, folder: (restored.append(folder), load(model, folder))
    )
    flags = """--optim sgd --lr_scheduler_type reduce_lr_on_plateau --lr_decay_patience 2 --learning_rate 0.8
    --lr_decay_factor 0.5 --max_lr_decays 2 --kl_schedule constant --eval_strategy steps --eval_steps 2 --max_steps 40
    --logging_steps 2"""
    results = run(tiny(flags))
    assert [row["learning_rate"] for row in lines(tmp_path / "run", "train")] == [0.8] * 4 + [0.4] * 3
    assert results["run"]["steps"] == 14 and results["run"]["best_step"] == 10
    assert [Path(folder).name for folder in restored] == ["checkpoint-4", "checkpoint-10", "checkpoint-10"]


def test_aggressive_training_brings_the_encoder_up_before_each_step_of_the_decoder(tiny, monkeypatch):
    seen = []
    train_encoder, update = TrainingLoop.train_encoder, TrainingLoop.update

    def snapshot(self):
        parts = self.plain_model.named_parameters()
        return {name: parameter.detach().clone() for name, parameter in parts}

    def moved(before, after):
        return {name.split(".")[1] if "." in name else name for name in before if not before[name].equal(after[name])}

    def watched(self, micro_batches):
        before, count = snapshot(self), self.state.encoder_updates
        model = self.plain_model
        parts[:] = ({id(parameter) for parameter in part.parameters()} for part in (model.get_encoder(), model))
        train_encoder(self, micro_batches)
        seen.append((moved(before, snapshot(self)), self.state.encoder_updates - count))
        inside.clear()

    def watched_update(self, *args, **options):
        inside.append(snapshot(self))
        row = update(self, *args, **options)
        if len(inside) == 1:  # the encoder's own updates are over
            outer.append(moved(inside[0], snapshot(self)))
        return row

    def watched_clip(self, parameters, limit):
        parameters = list(parameters)
        formed.append({id(parameter) for parameter in parameters if parameter.grad is not None})
        return clip(self, parameters, limit)

    clip = Accelerator.clip_grad_norm_
    monkeypatch.setattr(Accelerator, "clip_grad_norm_", watched_clip)
    inside, outer, formed, parts = [], [], [], []
    monkeypatch.setattr(TrainingLoop, "train_encoder", watched)
    monkeypatch.setattr(TrainingLoop, "update", watched_update)
    mi = iter([1.0, 0.5, 2.0])
    original = loop_module.evaluate
    monkeypatch.setattr(
        loop_module, "evaluate", lambda *args, **kwargs: original(*args, **kwargs) | {"mutual_information": next(mi)}
    )
    run(tiny("--aggressive --max_steps 6 --eval_strategy steps --eval_steps 2"))
    assert len(seen) == 4  # it rose to 1.0 at step 2, fell at step 4, and is never looked at again
    assert all(parts == {"encoder"} for parts, _ in seen)
    assert all(count % 15 == 0 or count == 99 for _, count in seen) and min(count for _, count in seen) >= 30
    assert "decoder" in outer[1] and "encoder" not in outer[1]
    # Of the part that stands still no gradient is formed, which takes a third of the work.
    encoder, everything = parts
    of_updates = [gradients for gradients, _ in itertools.groupby(formed)]
    assert of_updates == [encoder, everything - encoder] * 4 + [everything]


@pytest.mark.parametrize(
    ("losses", "updates"),
    [([5.0, 4.0, 4.1, 3.0], 45), ([5.0, 5.1], 30), ([5.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.5], 99)],
    ids=["rises in its third window", "in its second", "falls to the end"],
)
def test_the_encoder_is_trained_until_its_loss_rises_from_one_window_to_the_next(losses, updates):
    nats = iter(loss for loss in losses for _ in range(15))
    loop = SimpleNamespace(
        plain_model=torch.nn.Module(),
        batches=SimpleNamespace(of_encoder=lambda update: np.array([update % 2])),
        update=lambda batches, indices, frozen: (torch.tensor([3 * (indices[0] + 1) * next(nats)]), None),
        state=SimpleNamespace(encoder_updates=0),
        task=SimpleNamespace(num_scored=lambda lengths: 3 * lengths.sum()),
        lengths=np.array([1, 2]),
        accelerator=SimpleNamespace(reduce=lambda tensor, how: tensor),
    )
    loop.plain_model.get_encoder = lambda: torch.nn.Linear(1, 1)
    TrainingLoop.train_encoder(loop, iter(()))
    assert loop.state.encoder_updates == updates


def test_several_processes_end_the_encoders_updates_together():
    """By the loss of all, of which one process has a part that falls, and the other one that rises more."""
    mine, theirs = ([*np.repeat(nats, 15)] for nats in ([5.0, 4.0, 3.0, 2.0], [5.0, 6.5, 7.0, 8.0]))
    loop = SimpleNamespace(
        plain_model=torch.nn.Module(),
        batches=SimpleNamespace(of_encoder=lambda update: np.array([0])),
        update=lambda batches, indices, frozen: (torch.tensor([mine[loop.state.encoder_updates]]), None),
        state=SimpleNamespace(encoder_updates=0),
        task=SimpleNamespace(num_scored=lambda lengths: 1),
        lengths=np.array([1]),
    )
    of_window = lambda: sum(theirs[loop.state.encoder_updates - 15 : loop.state.encoder_updates])  # noqa: E731
    loop.accelerator = SimpleNamespace(reduce=lambda tensor, how: tensor + of_window())
    loop.plain_model.get_encoder = lambda: torch.nn.Linear(1, 1)
    TrainingLoop.train_encoder(loop, iter(()))
    assert loop.state.encoder_updates == 30


def test_aggressive_training_ends_with_its_last_epoch(tiny, monkeypatch):
    mi = iter(range(1, 99))
    original = loop_module.evaluate
    monkeypatch.setattr(
        loop_module, "evaluate", lambda *args, **kwargs: original(*args, **kwargs) | {"mutual_information": next(mi)}
    )
    calls, train_encoder = [], TrainingLoop.train_encoder
    monkeypatch.setattr(TrainingLoop, "train_encoder", lambda *args: (calls.append(1), train_encoder(*args)))
    run(tiny("--aggressive --aggressive_max_epochs 0.2 --max_steps 6 --eval_strategy steps --eval_steps 3"))
    assert len(calls) == 3  # an epoch is 15 updates


def test_aggressive_training_is_taken_up_or_given_up_with_a_resumption(tiny, monkeypatch):
    calls, train_encoder = [], TrainingLoop.train_encoder
    monkeypatch.setattr(TrainingLoop, "train_encoder", lambda *args: (calls.append(1), train_encoder(*args)))
    flags = "--eval_strategy steps --eval_steps 5 --max_steps "
    run(tiny(flags + "2"))
    more = "--resume_from_checkpoint latest "
    run(tiny(f"{more} --aggressive --aggressive_max_epochs 9 {flags} 4"))
    assert len(calls) == 2
    run(tiny(more + flags + "6"))
    assert len(calls) == 2


def test_a_minimum_rate_is_held_where_the_posterior_would_collapse(tiny, tmp_path):
    flags = "--max_steps 250 --logging_steps 50 --kl_schedule constant"
    run(tiny(flags, "free"))
    run(tiny(flags + " --minimum_rate 3", "held"))
    free, held = (lines(tmp_path / name, "train")[-1] for name in ("free", "held"))
    assert free["kl"] < 1 and 2 < held["kl"] < 6
    assert 0 <= held["kl_weight"] < 1


def test_the_multiplier_of_a_minimum_rate_ascends_between_0_and_beta():
    loop = SimpleNamespace(
        accelerator=SimpleNamespace(reduce=lambda tensor, how: tensor),
        args=SimpleNamespace(minimum_rate=3.0, kl_weight=0.8),
        state=SimpleNamespace(rate_multiplier=0.5),
    )
    for before, kl, after in ((0.5, 1.0, 0.506), (0.5, 5.0, 0.494), (0.797, 1.0, 0.8), (0.003, 5.0, 0.0)):
        loop.state.rate_multiplier = before
        TrainingLoop.hold_rate(loop, torch.tensor([0.0, 0.0, 4 * kl]), 4)
        assert loop.state.rate_multiplier == pytest.approx(after)


def test_a_capacity_draws_the_kl_up(tiny, tmp_path):
    flags = "--max_steps 100 --logging_steps 10 --kl_schedule capacity --kl_capacity 6 --kl_weight 10"
    run(tiny(flags))
    last = lines(tmp_path / "run", "train")[-1]
    assert last["kl_capacity"] == 6 and last["kl_weight"] == 10
    assert last["kl"] == pytest.approx(6, abs=1)


def test_a_language_model_trains_and_is_called_no_collapse(tiny, caplog, tmp_path):
    with caplog.at_level("WARNING"):
        results = run(tiny("--latent_size 0 --kl_schedule constant --eval_strategy steps --eval_steps 6"))
    assert results["kl"] == results["mutual_information"] == results["active_units"] == 0
    assert results["nll_iw"] == pytest.approx(results["neg_elbo"])
    assert "collapsed" not in caplog.text and results["run"]["best_step"] == 12


def test_scheduled_sampling_rises_to_its_share(tiny, monkeypatch):
    shares = []
    mix = VRAEForSequenceGeneration._mix_in_own_words
    monkeypatch.setattr(
        VRAEForSequenceGeneration,
        "_mix_in_own_words",
        lambda self, *args: (shares.append(self.sampling_probability), mix(self, *args))[1],
    )
    run(tiny("--scheduled_sampling 0.6"))
    assert shares == pytest.approx([0.6 * step / 12 for step in range(1, 12)])


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--posterior vmf", "set `kl_schedule` constant, `kl_weight` 1 and `minimum_rate` 0, got linear, 1.0 and 0.0"),
        ("--posterior vmf --kl_schedule constant --kl_weight 0.2", "got constant, 0.2 and 0.0"),
        ("--posterior delta --minimum_rate 0.5", "never has a KL below 0.60 nats"),  # 4 x 0.15
        ("--posterior batch_norm --kl_schedule capacity --kl_capacity 0.7", "below 0.72 nats"),  # 4 x 0.6^2 / 2
        ("--latent_size 0", "which has no KL: set `kl_schedule` constant"),
        ("--aggressive --tie_word_embeddings --eval_strategy epoch", "shares its table with the decoder"),
        ("--posterior batch_norm --per_device_train_batch_size 1", "raise `per_device_train_batch_size`"),
        ("--mmd_weight 1 --per_device_train_batch_size 1", "compares a batch with the prior"),
        (
            "--latent_size 0 --kl_schedule constant --autoencoder_epochs 1",
            "no encoder to train or to keep: leave out `kl_capacity` 0.0, `minimum_rate` 0.0, `aggressive` False",
        ),
        ("--autoencoder_epochs 1 --num_train_samples 4 --free_bits 0.1", "has no KL term"),
        ("--num_train_samples 4 --free_bits 0.1", "has no KL term that `free_bits` 0.1"),
    ],
)
def test_a_run_refuses_what_makes_no_sense_for_its_model(flags, reason, tiny, tmp_path):
    with pytest.raises(ValueError, match=reason):
        run(tiny(flags))


def test_the_decoder_of_a_language_model_is_not_made_anew(tiny, tmp_path):
    flags = "--latent_size 0 --kl_schedule constant --max_steps 1"
    run(tiny(flags, "lm"))
    with pytest.raises(ValueError, match="to keep: leave out .* and `reset_decoder` True"):
        run(tiny(f"{flags} --reset_decoder --model_name_or_path {tmp_path / 'lm'}"))


def test_segments_that_tell_all_are_no_collapse(tiny, caplog):
    """Active units are those of the z of the whole alone."""
    loop = SimpleNamespace(
        plain_model=make_hierarchical_model(), args=tiny("").training, state=SimpleNamespace(step=7)
    )
    with caplog.at_level("WARNING"):
        of_the_whole = {"kl_global": 0.0, "active_units": 0, "mutual_information": 0.0, "num_sequences": 9}
        TrainingLoop.warn_of_collapse(loop, {"kl": 857.0, **of_the_whole})
        assert not caplog.text
        TrainingLoop.warn_of_collapse(loop, {"kl": 0.01, **of_the_whole})
    assert "collapsed: at step 7 the KL is 0.010" in caplog.text


def test_one_sequence_says_nothing_of_a_collapse(tiny, caplog):
    """No unit is active where nothing varies."""
    with caplog.at_level("WARNING"):
        run(tiny("--posterior delta --kl_schedule constant --max_eval_samples 1 --eval_strategy steps --eval_steps 6"))
    assert "collapsed" not in caplog.text


def test_nothing_keeps_the_model_of_a_run_that_is_over(tiny, monkeypatch):
    kept, train = [], TrainingLoop.run
    monkeypatch.setattr(TrainingLoop, "run", lambda self: kept.append(weakref.ref(self.plain_model)) or train(self))
    run(tiny("--max_steps 2"))
    fresh_accelerator()
    gc.collect()
    assert [reference() for reference in kept] == [None]


def test_a_run_may_be_in_a_thread_which_hears_of_no_signals(tiny):
    with ThreadPoolExecutor() as pool:
        assert pool.submit(run, tiny("--max_steps 2")).result()["run"]["steps"] == 2


def test_a_model_of_half_precision_is_trained_on_in_float32(tiny, tmp_path):
    run(tiny("--max_steps 2"))
    AutoModel.from_pretrained(tmp_path / "run").bfloat16().save_pretrained(tmp_path / "run")
    run(tiny(f"--max_steps 2 --model_name_or_path {tmp_path / 'run'}", "second"))
    assert AutoModel.from_pretrained(tmp_path / "second").dtype == torch.float32


def test_a_decay_leaves_the_moments_of_the_way_it_goes_back_on(tiny, monkeypatch):
    seen, decay = [], TrainingLoop.decay_learning_rate

    def watched(self):
        before = self.state.lr_decays
        decay(self)
        seen.append((self.state.lr_decays > before, len(self.optimizer.state)))

    monkeypatch.setattr(TrainingLoop, "decay_learning_rate", watched)
    original, bounds = loop_module.evaluate, itertools.count(1.0)
    worse = lambda *args, **options: original(*args, **options) | {"neg_elbo": next(bounds)}  # noqa: E731
    monkeypatch.setattr(loop_module, "evaluate", worse)
    plateau = "--lr_scheduler_type reduce_lr_on_plateau --lr_decay_patience 2 --max_lr_decays 2"
    run(tiny(f"{plateau} --kl_schedule constant --eval_strategy steps --eval_steps 2"))
    assert {bool(moments) for decayed, moments in seen if decayed} == {False}
    assert {bool(moments) for decayed, moments in seen if not decayed} == {True}


@pytest.mark.parametrize("places", ["initial_state input", "initial_state output"])
def test_collapse_is_said_in_plain_words(places, tiny, caplog):
    """And no remedy is named that is taken."""
    flags = "--eval_strategy steps --eval_steps 12 --kl_schedule constant --kl_weight 50 --initializer_range 0.001"
    with caplog.at_level("WARNING"):
        run(tiny(f"{flags} --latent_conditioning {places}"))
    assert "The posterior has collapsed: at step 12 the KL is 0.0" in caplog.text
    assert "--kl_warmup_steps" in caplog.text and "makes it worse" in caplog.text
    assert ("--latent_conditioning initial_state input output" in caplog.text) == ("output" not in places)
    assert ("--latent_conditioning" in caplog.text) == ("output" not in places)


@pytest.mark.parametrize(
    ("family", "flags", "named"),
    [
        ({}, "", "--kl_warmup_steps --free_bits --word_dropout"),
        (
            {"decoder_type": "independent", "word_dropout": 0.0},
            "",
            "--kl_warmup_steps --free_bits --latent_conditioning",
        ),
        ({"num_train_samples": 3}, "--num_train_samples 3", "--num_train_samples --word_dropout"),
        ({"condition_labels": {"a": ["b", "c"]}, "label_classifier": True}, "", "--kl_warmup_steps --word_dropout"),
        ({}, "--svi_steps 2 --kernels plain", "--kl_warmup_steps --word_dropout"),
        ({}, "--minimum_rate 3", "--kl_warmup_steps --word_dropout"),
        ({}, "--kl_schedule capacity --kl_capacity 3", "--kl_warmup_steps --word_dropout"),
    ],
)
def test_no_remedy_is_named_that_a_run_would_refuse(family, flags, named, tiny):
    said = " ".join(loop_module.remedies_of(make_model(**family).config, tiny(flags).training))
    options = "--kl_warmup_steps --free_bits --num_train_samples --word_dropout --latent_conditioning".split()
    assert [option for option in options if option in said] == named.split()


@pytest.mark.parametrize("mi", [0.01, 1.5])
def test_a_posterior_on_a_sphere_is_judged_by_what_it_tells(mi, tiny, caplog, monkeypatch):
    """Its KL is constant, and its means vary too little to be counted as active units."""
    original = loop_module.evaluate
    found = {"mutual_information": mi, "active_units": 0}
    monkeypatch.setattr(loop_module, "evaluate", lambda *args, **kwargs: original(*args, **kwargs) | found)
    with caplog.at_level("WARNING"):
        run(tiny("--posterior vmf --kl_schedule constant --eval_strategy steps --eval_steps 12"))
    assert ("collapsed: at step 12 the mutual information is 0.010" in caplog.text) == (mi < 0.1)
    assert ("--concentration" in caplog.text) == (mi < 0.1) and "--free_bits" not in caplog.text


def test_a_rate_is_held_above_the_floor_of_the_posterior_alone(tiny):
    run(tiny("--posterior batch_norm --minimum_rate 0.8 --max_steps 1"))
    # Beside a prior that follows there is no floor.
    run(tiny("--posterior batch_norm --minimum_rate 0.5 --correlated_prior True --max_steps 1", "follows"))


def test_a_kl_schedule_longer_than_the_run_is_told(tiny, caplog):
    flags = "--eval_strategy steps --eval_steps 6 --kl_warmup_steps "
    with caplog.at_level("WARNING"):
        assert run(tiny(flags + "11", "arrives"))["run"]["best_step"] == 12
        assert "rises for" not in caplog.text
        assert run(tiny(flags + "12", "never"))["run"]["best_step"] is None
    assert "rises for 12 updates (`kl_warmup_steps`), and the run has 12" in caplog.text
    caplog.clear()
    flags = "--eval_strategy steps --eval_steps 6 --kl_schedule cyclical --kl_cycles 2 --kl_warmup_steps "
    run(tiny(flags + "0.9", "cycles"))  # 5.4 of 6 updates, and the last one is at 5
    assert "rises for 5.4 updates" in caplog.text
    caplog.clear()
    run(tiny(flags + "4 --max_steps 9", "arrives_in_one"))  # at 4; the second cycle of 4.5 begins at the last but 3
    assert "rises for" not in caplog.text


def test_a_run_is_never_overwritten_unless_asked(tiny, tmp_path):
    run(tiny("--max_steps 2"))
    (tmp_path / "run" / "notes.md").write_text("mine")
    (tmp_path / "run" / "checkpoint-mine-1").mkdir()
    before = weights(tmp_path / "run")
    with pytest.raises(
        ValueError, match="already holds a run.*--resume_from_checkpoint latest.*--overwrite_output_dir"
    ):
        run(tiny("--max_steps 2 --seed 1"))
    assert weights(tmp_path / "run") == before
    run(tiny("--max_steps 2 --seed 1 --overwrite_output_dir"))
    assert weights(tmp_path / "run") != before and (tmp_path / "run" / "notes.md").read_text() == "mine"
    assert (tmp_path / "run" / "checkpoint-mine-1").is_dir()
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    for overwrite in ("", " --overwrite_output_dir"):
        with pytest.raises(ValueError, match="holds 'tokenizer.json' and no run that it is of"):
            run(tiny("--max_steps 2" + overwrite, "tokenizer"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--labeled_share 0.2", "`labeled_share` 0.2 is of training data with one label"),
        ("--kl_schedule cyclical --kl_warmup_steps 100", "`kl_warmup_steps` 100 is as long as a cycle"),
        ("--kl_start 1 --kl_weight 0.1", "`kl_weight` 0.1, where it ends, is below"),
        ("--decoder_type transformer --max_position_embeddings 4", "`max_position_embeddings` gives room for 4 steps"),
        ("--dataloader_num_workers -1", "`dataloader_num_workers` must not be negative"),
        ("--adam_beta1 1.5", "Invalid beta parameter at index 0"),
        (
            "--model_type hierarchical_vrae --segment_separators . --scheduled_sampling 0.3",
            "would put separators of the model's own among the words",
        ),
    ],
)
def test_what_is_refused_costs_no_model(tiny, tmp_path, flags, message):
    (tmp_path / "run").mkdir()
    for name in ("model.safetensors", "results.json", "recipe.yaml"):
        (tmp_path / "run" / name).write_text("trained")
    for stages in ("", " --autoencoder_epochs 1"):
        with pytest.raises(ValueError, match=message):
            run(tiny(f"--overwrite_output_dir {flags}{stages}"))
    assert (tmp_path / "run" / "model.safetensors").read_text() == "trained"


def test_a_resumption_leaves_behind_what_it_takes_away(tiny, tmp_path):
    """The weight of a minimum rate that is held no more, and the decays of a plateau that nobody asks for."""
    run(tiny("--max_steps 4 --save_steps 2 --logging_steps 1 --kl_schedule constant --minimum_rate 40"))
    file = tmp_path / "run" / "checkpoint-4" / "state.json"
    state = json.loads(file.read_text())
    assert state["rate_multiplier"] > 0
    file.write_text(json.dumps(state | {"lr_decays": 2}))
    more = "--logging_steps 1 --kl_schedule constant --lr_scheduler_type constant --resume_from_checkpoint latest"
    run(tiny(f"--max_steps 6 {more} --minimum_rate 0 --learning_rate 0.01"))
    last = lines(tmp_path / "run", "train")[-1]
    assert (last["step"], last["kl_weight"], last["learning_rate"]) == (6, 1, 0.01)


def test_resuming_what_cannot_be_resumed(tiny, tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint"):
        run(tiny("--resume_from_checkpoint latest"))
    with pytest.raises(ValueError, match="'latest' or a checkpoint folder"):
        run(tiny("--resume_from_checkpoint nowhere"))
    run(tiny("--max_steps 2"))
    with pytest.raises(ValueError, match="training data are not those of"):
        run(tiny("--resume_from_checkpoint latest --max_train_samples 100"))
    with pytest.raises(ValueError, match=r"training data are not those of .* or cut elsewhere \(`max_length`\)"):
        run(tiny("--resume_from_checkpoint latest --max_length 3"))
    with pytest.raises(ValueError, match="An update of .* was of 16 sequences, and one of this run is of 32: steps"):
        run(tiny("--resume_from_checkpoint latest --gradient_accumulation_steps 2"))
    with pytest.raises(ValueError, match="of another shape: size mismatch for"):
        run(tiny("--resume_from_checkpoint latest --decoder_hidden_size 18"))
    with pytest.raises(ValueError, match="of another model: it differs in"):
        run(tiny("--resume_from_checkpoint latest --encoder_layers 2"))
    with pytest.raises(ValueError, match="`optim` sgd is not the optimizer of the checkpoint"):
        run(tiny("--resume_from_checkpoint latest --optim sgd"))
    with pytest.raises(ValueError, match="a run goes on in its own folder"):
        run(tiny(f"--resume_from_checkpoint {tmp_path / 'run' / 'checkpoint-2'}", "elsewhere"))
    for name in ("optimizer.bin", "model.safetensors", "state.json"):  # each is read before the one before it
        os.truncate(tmp_path / "run" / "checkpoint-2" / name, 20)
        with pytest.raises(ValueError, match="checkpoint-2' cannot be read .* If it is damaged, delete it"):
            run(tiny("--resume_from_checkpoint latest"))


def test_resuming_from_an_earlier_checkpoint_leaves_the_later_ones(tiny, tmp_path):
    """They were counted as newer than what the run wrote from there on, which was deleted at once. What is said anew
    of the optimizer counts, lines that no one can read are dropped, and a best model that is gone is none."""
    flags = "--save_steps 2 --eval_strategy steps --eval_steps 4 --kl_warmup_steps 1"
    run(tiny(flags))
    early, state = tmp_path / "run" / "checkpoint-12", tmp_path / "run" / "checkpoint-6" / "state.json"
    early.rename(early.with_name("checkpoint-6"))
    state.write_text(json.dumps(json.loads(state.read_text()) | {"step": 6, "best_step": 4, "best_metric": 0.0}))
    checkpoints(tmp_path / "run")[-1].rename(tmp_path / "run" / "checkpoint-50")
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "st')
    with open(tmp_path / "run" / "samples.jsonl", "a") as file:
        file.write('{"step": 3, "samples": ["a\u2028b"]}\n')
    again = f"--max_steps 8 --weight_decay 0.25 --resume_from_checkpoint {tmp_path / 'run' / 'checkpoint-6'}"
    results = run(tiny(f"{flags} {again}"))
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-6", "checkpoint-8"]
    assert results["run"]["best_step"] == 8 and "a\u2028b" in (tmp_path / "run" / "samples.jsonl").read_text()
    recipe = parse_recipe(["--config", str(tmp_path / "run" / "recipe.yaml")])  # what an interruption says to go on by
    assert recipe.training.weight_decay == 0.25 and recipe.training.resume_from_checkpoint is None
    optimizer = torch.load(tmp_path / "run" / "checkpoint-8" / "optimizer.bin")
    assert optimizer["param_groups"][0]["weight_decay"] == 0.25


def test_results_are_described_by_the_run_that_they_are_of(tiny, tmp_path, monkeypatch):
    """One that went on, and was interrupted in its last evaluation, is not the shorter one whose results are there."""
    run(tiny("--max_steps 4"))
    monkeypatch.setattr("hf_vrae.training.run.evaluate", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tiny("--max_steps 9 --resume_from_checkpoint latest"))
    monkeypatch.undo()
    results = run(tiny("--max_steps 9 --resume_from_checkpoint latest"))
    assert results["run"]["steps"] == 9 and "evaluation_command" not in results["run"]
    results = run(tiny("--max_steps 9 --resume_from_checkpoint latest --num_importance_samples 3"))
    assert results["run"]["steps"] == 9 and "evaluation_command" in results["run"]


def test_another_evaluation_is_described_by_its_own_data(tiny, tmp_path):
    files = [tmp_path / f"{name}.txt" for name in ("train", "test")]
    for file, count in zip(files, (60, 30), strict=True):
        file.write_text("the king sold a letter .\nwill our nurses hide many keys ?\n" * (count // 2))
    flags = f"--max_steps 4 --train_file {files[0]}"
    first = run(tiny(flags))
    assert first["split"] == "validation"
    again = run(tiny(f"{flags} --test_file {files[1]} --resume_from_checkpoint latest"))
    described = again["run"]["data"]
    assert again["split"] == "test" and described["test"]["sequences"] == again["num_sequences"] == 30
    assert described["train"] == first["run"]["data"]["train"] and "evaluation_command" in again["run"]


@pytest.mark.parametrize(
    ("other", "kept"),
    [
        ("", True),
        ("--kl_weight 0.5", False),
        ("--max_eval_samples 5 --kl_weight 0", False),
        ("--svi_steps 1 --kernels plain --kl_weight 0", False),
    ],
)
def test_what_is_best_is_of_one_metric_and_one_validation_split(other, kept, tiny, tmp_path, caplog):
    """A reconstruction beats every -ELBO: all training behind the resumption was thrown away."""
    flags = "--kl_schedule constant --eval_strategy steps --eval_steps 6 "
    run(tiny(flags + "--kl_weight 0"))
    path = tmp_path / "run" / "checkpoint-12" / "state.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"best_metric": 0.0, "evaluations_without_improvement": 9})
    )
    results = run(tiny(f"{flags} {other or '--kl_weight 0'} --max_steps 18 --resume_from_checkpoint latest"))
    assert (results["run"]["best_step"] == 12) == kept and ("judged otherwise" in caplog.text) == (not kept)
    state = json.loads((tmp_path / "run" / "checkpoint-18" / "state.json").read_text())
    assert state["evaluations_without_improvement"] == (10 if kept else 0)


def test_a_run_of_before_goes_on_with_its_best_model(tiny, tmp_path, caplog):
    """Its checkpoints do not say of how many particles and steps their bounds were."""
    flags = "--svi_steps 1 --kernels plain --eval_strategy steps --eval_steps 6"
    run(tiny(flags))
    path = tmp_path / "run" / "checkpoint-12" / "state.json"
    state = json.loads(path.read_text())
    assert state["judged_by"].endswith("; particles 1, svi_steps 1")
    bare = state["judged_by"].split(";")[0]
    for judged_by in (f"{bare}, svi_steps 1", bare):
        path.write_text(json.dumps(state | {"judged_by": judged_by}))
        assert "does not say of which svi_steps 1" not in caplog.text
        again = run(tiny(f"{flags} --num_importance_samples 3 --resume_from_checkpoint latest"))
        assert again["num_samples"] == 3 and "judged otherwise" not in caplog.text
    assert "does not say of which svi_steps 1" in caplog.text


def test_what_no_evaluation_follows_is_kept(tiny, tmp_path, caplog):
    run(tiny("--eval_strategy steps --eval_steps 6"))
    results = run(tiny("--eval_strategy no --max_steps 14 --resume_from_checkpoint latest"))
    assert results["run"]["best_step"] is None and "followed by no evaluation" in caplog.text
    assert weights(tmp_path / "run") == weights(tmp_path / "run" / "checkpoint-14")


def test_a_full_disk_costs_no_numbers(tiny, tmp_path, monkeypatch):
    run(tiny("--max_steps 2"))
    before, write = (tmp_path / "run" / "results.json").read_text(), Path.write_text

    def fill(path, text, *args):
        full = path.name.endswith("results.json")
        write(path, text[: 100 if full else None], *args)
        if full:
            raise OSError(28, "No space left on device")

    again = "--max_steps 2 --num_importance_samples 3 --resume_from_checkpoint latest"
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(Path, "write_text", fill)
        run(tiny(again))
    assert (tmp_path / "run" / "results.json").read_text() == before
    with open(tmp_path / "run" / "samples.jsonl", "ab") as file:
        file.write('{"step": 1, "text": "é'.encode()[:-1])  # inside a letter
    assert run(tiny(again))["num_samples"] == 3
    assert "text" not in (tmp_path / "run" / "samples.jsonl").read_text()
    assert not list((tmp_path / "run").glob("partial-*"))


def test_a_run_at_its_end_without_its_best_model_is_left_as_it_is(tiny, tmp_path):
    """The last model would have taken the place of the best one, under that one's name."""
    flags = "--eval_strategy steps --eval_steps 6 --save_steps 12"
    run(tiny(flags))
    path = tmp_path / "run" / "checkpoint-12" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"best_step": 6}))
    before = (tmp_path / "run" / "results.json").read_text()
    shutil.rmtree(tmp_path / "run" / "checkpoint-6", ignore_errors=True)
    with pytest.raises(ValueError, match="at its end, and its best model, `checkpoint-6`, is deleted"):
        run(tiny(f"{flags} --num_importance_samples 3 --resume_from_checkpoint latest"))
    with pytest.raises(ValueError, match="is judged otherwise, by neg_elbo of .* where this run is by neg_elbo of "):
        run(tiny(f"{flags} --max_eval_samples 5 --resume_from_checkpoint latest"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lr_decays": 5}))  # which is an end too
    with pytest.raises(ValueError, match="is deleted: there is nothing to go on with"):
        flags += " --lr_scheduler_type reduce_lr_on_plateau --max_steps 18"
        run(tiny(f"{flags} --resume_from_checkpoint latest"))
    assert (tmp_path / "run" / "results.json").read_text() == before


def test_starting_from_a_model(tiny, tmp_path):
    """Other data, the same tokenizer and weights, a fresh optimizer."""
    run(tiny("--max_steps 2", "first"))
    recipe = tiny(
        f"--model_name_or_path {tmp_path / 'first'} --max_steps 1 --learning_rate 1e-9 --corpus_size 100 --seed 3"
    )
    results = run(recipe)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "run"))
    for name in first:
        torch.testing.assert_close(second[name], first[name], atol=1e-7, rtol=0)
    assert results["run"]["data"]["train"]["sequences"] == 100


def test_a_model_to_start_from_is_trained_with_its_dropout(tiny, tmp_path, monkeypatch):
    run(tiny("--max_steps 1", "first"))
    modes, update = [], TrainingLoop.update
    monkeypatch.setattr(
        TrainingLoop, "update", lambda self, *args: (modes.append(self.model.training), update(self, *args))[1]
    )
    run(tiny(f"--max_steps 2 --model_name_or_path {tmp_path / 'first'}"))
    assert modes == [True, True]


def test_a_recipe_changes_of_a_saved_model_what_no_weight_depends_on(tiny, tmp_path):
    run(tiny("--max_steps 1", "first"))
    first = f" --max_steps 1 --model_name_or_path {tmp_path / 'first'}"
    for changed in (
        {"word_dropout": 0.7, "kernels": "plain", "svi_steps": 2, "forget_bias": 0.7},
        {"free_bits": 0.3, "free_bits_form": "example", "mmd_weight": 2.0},
        {"embedding_initializer_range": 0.2},
    ):
        flags = " ".join(f"--{name} {value}" for name, value in changed.items())
        run(tiny(f"{flags} --overwrite_output_dir {first}"))
        config = json.loads((tmp_path / "run" / "config.json").read_text())
        assert {name: config[name] for name in changed} == changed
    with pytest.raises(ValueError, match="`posterior` is gaussian in the model .* the recipe asks for batch_norm"):
        run(tiny("--posterior batch_norm" + first, "third"))


def test_a_recipe_adds_correlations_of_the_prior_to_a_saved_model(tiny, tmp_path):
    run(tiny("--max_steps 1", "first"))
    run(tiny(f"--max_steps 2 --correlated_prior True --model_name_or_path {tmp_path / 'first'}"))
    assert load_file(tmp_path / "run" / "model.safetensors")["model.correlated_prior.weight"].tril(-1).abs().sum() > 0
    with pytest.raises(ValueError, match="`correlated_prior` is True in the model .* the recipe asks for False"):
        run(tiny(f"--correlated_prior False --model_name_or_path {tmp_path / 'run'}", "third"))


def test_a_model_is_not_given_the_tokens_of_another(tiny, tmp_path):
    run(tiny("--max_steps 1", "first"))
    run(tiny("--max_steps 1 --tokenizer_type char", "second"))
    first = f"--max_steps 1 --model_name_or_path {tmp_path / 'first'} --tokenizer_name "
    run(tiny(first + str(tmp_path / "first")))
    with pytest.raises(ValueError, match="`tokenizer_name` .* has other tokens than the model"):
        run(tiny(first + str(tmp_path / "second"), "third"))


def test_what_is_said_of_a_saved_model_counts_at_its_default_too(tiny, tmp_path):
    run(tiny("--max_steps 1 --dropout 0.5 --rnn_type gru", "first"))
    first = f" --max_steps 1 --save_steps 1 --model_name_or_path {tmp_path / 'first'}"
    run(tiny("--dropout 0.1" + first))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["dropout"], config["rnn_type"]) == (0.1, "gru")
    with pytest.raises(ValueError, match="`rnn_type` is gru in the model .* the recipe asks for lstm"):
        run(tiny("--rnn_type lstm" + first, "second"))
    saved = parse_recipe(["--config", str(tmp_path / "run" / "recipe.yaml"), "--resume_from_checkpoint", "latest"])
    assert saved.model.dropout == 0.1 and run(saved)["run"]["steps"] == 1  # it does not ask for an lstm


def test_autoencoder_then_a_new_decoder_with_free_bits(tiny, tmp_path):
    """Li et al. 2019: KL weight 0, judged by its reconstruction; then the encoder stays, the decoder starts anew."""
    first = "--kl_schedule constant --kl_weight 0 --max_steps 24 --learning_rate 0.1"
    run(tiny(first + " --eval_strategy steps --eval_steps 6", "first"))
    rows = [json.loads(line) for line in (tmp_path / "first" / "metrics.jsonl").read_text().splitlines()]
    best = min(row["reconstruction"] for row in rows if row["kind"] == "eval")
    state = json.loads((tmp_path / "first" / "checkpoint-24" / "state.json").read_text())
    assert state["best_metric"] == pytest.approx(best)

    second = f"--model_name_or_path {tmp_path / 'first'} --reset_decoder --free_bits 4 --max_steps 2"
    run(tiny(second + " --logging_steps 1 --learning_rate 1e-9"))
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "run"))
    for name in before:
        if name.startswith("model.encoder"):
            torch.testing.assert_close(after[name], before[name], atol=1e-7, rtol=0)
    assert not torch.allclose(after["lm_head.weight"], before["lm_head.weight"], atol=1e-2)
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1])
    assert row["loss"] >= row["reconstruction"] + row["kl_weight"] * 4 * 4 - 1e-4  # 4 nats of each of 4 dimensions
    asked = (
        "--kl_schedule cyclical --kl_cycles 2",
        "--eval_strategy epoch --aggressive --aggressive_max_epochs 2",
        "--num_quality_samples 9",
    )
    for stage in (autoencoder_arguments(tiny(f"--autoencoder_epochs 3 {flags}").training) for flags in asked):
        assert (stage.kl_schedule, stage.kl_weight, stage.aggressive) == ("constant", 0, False)
        assert stage.num_quality_samples == 0
    with pytest.raises(ValueError, match="`reset_decoder` keeps the encoder of `model_name_or_path`"):
        tiny("--reset_decoder")
    with pytest.raises(ValueError, match="`free_bits` must not be negative"):
        tiny("--free_bits -1")


def test_a_frozen_pretrained_decoder(tiny, tmp_path, tokenizer):
    """It is interrupted and goes on, and stays what it was."""
    config = GPT2Config(vocab_size=len(tokenizer) - 2, n_embd=16, n_layer=1, n_head=2, bos_token_id=2, eos_token_id=3)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    flags = f"--decoder_name_or_path {tmp_path / 'gpt2'} --freeze_decoder --save_total_limit 9 "
    results = run(tiny(flags, "whole"))
    model = AutoModel.from_pretrained(tmp_path / "whole")
    assert model.config.vocab_size == len(tokenizer) and results["nll_iw"] > 0
    kept = GPT2LMHeadModel.from_pretrained(tmp_path / "gpt2").transformer.h.state_dict()
    for name, tensor in model.model.decoder.body.h.state_dict().items():
        assert torch.equal(tensor, kept[name]), name
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoint-12")
    run(tiny(flags + "--resume_from_checkpoint latest", "resumed"))
    assert weights(tmp_path / "resumed") == weights(tmp_path / "whole")
    with pytest.raises(ValueError, match="are parts of a vrae of words"):
        run(tiny(flags + "--builtin frames", "frames"))


def test_checkpoints_have_the_names_of_the_modules(tiny, tmp_path, tokenizer):
    """transformers would write those of a mixture of experts as they were published, which no module of it has."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MixtralConfig(
        vocab_size=len(tokenizer), num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1,
        pad_token_id=0, bos_token_id=2, eos_token_id=3, **sizes,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(tmp_path / "experts")
    tokenizer.save_pretrained(tmp_path / "experts")
    flags = f"--decoder_name_or_path {tmp_path / 'experts'} --max_steps 4 --save_steps 2"
    run(tiny(flags, "whole"))
    assert AutoModel.from_pretrained(tmp_path / "whole/checkpoint-2").config.vocab_size == len(tokenizer)
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed/checkpoint-4")
    run(tiny(flags + " --resume_from_checkpoint latest", "resumed"))
    assert weights(tmp_path / "resumed") == weights(tmp_path / "whole")


def test_another_optimizer_or_precision_does_not_go_on(tiny, tmp_path, monkeypatch):
    """But Adam goes on for AdamW: they have the same moments."""
    run(tiny("--optim adamw --weight_decay 0.1 --max_steps 6"))
    for flags, decoupled in (("adam", False), ("adamw", True)):
        loops = []
        monkeypatch.setattr(TrainingLoop, "run", lambda self, loops=loops: (loops.append(self), 1 / 0))
        with pytest.raises(ZeroDivisionError):
            run(tiny(f"--optim {flags} --resume_from_checkpoint latest --max_steps 9"))
        assert loops[0].optimizer.param_groups[0]["decoupled_weight_decay"] is decoupled
    for flags in ("lamb", "sgd"):
        with pytest.raises(ValueError, match=f"`optim` {flags} is not the optimizer of the checkpoint"):
            run(tiny(f"--optim {flags} --resume_from_checkpoint latest --max_steps 9"))
    monkeypatch.setattr(loop_module, "use_plain_model_files", lambda accelerator: setattr(accelerator, "scaler", 1))
    with pytest.raises(ValueError, match="`mixed_precision` fp16 goes on with .* was not trained in fp16"):
        run(tiny("--optim adamw --resume_from_checkpoint latest --max_steps 9"))


@pytest.mark.parametrize(
    ("optim", "anew", "name", "value"),
    [("adam", "--adam_beta1 0.5", "betas", (0.5, 0.999)), ("sgd", "--momentum 0.5", "momentum", 0.5)],
)
def test_what_is_said_anew_of_the_optimizer_counts(optim, anew, name, value, tiny, tmp_path):
    run(tiny(f"--optim {optim} --max_steps 1"))
    run(tiny(f"--optim {optim} {anew} --max_steps 2 --resume_from_checkpoint latest"))
    optimizer = torch.load(tmp_path / "run" / "checkpoint-2" / "optimizer.bin")
    assert optimizer["param_groups"][0][name] == value


def test_own_files_by_another_tokenizer(tiny, tmp_path, corpus):
    for split in ("train", "test"):
        (tmp_path / f"{split}.txt").write_text("\n".join(corpus[split]["text"]) + "\n\n")
    files = (
        f"--train_file {tmp_path / 'train.txt'} --test_file {tmp_path / 'test.txt'} --validation_split_percentage 10"
    )
    results = run(tiny(f"{files} --tokenizer_type char --max_steps 2"))
    assert results["run"]["data"]["train"]["sequences"] == 360 and results["num_sequences"] == 60
    assert "true_nll" not in results
    assert results["num_tokens"] == results["num_characters"]  # a character is a token, and so is the end
    named = run(tiny(f"{files} --tokenizer_name {tmp_path / 'run'} --max_steps 2 --max_eval_samples 5", "named"))
    assert named["num_sequences"] == 5


def test_a_model_is_measured_on_texts_cut_as_in_its_training(tiny, tmp_path):
    """Also where no training sequence was as long."""
    (tmp_path / "train.txt").write_text("a b c\nb c\na c b a\n" * 30)
    (tmp_path / "test.txt").write_text("a b c a b c a\nb a\n" + "a b " * 80 + "\n")
    files = f"--train_file {tmp_path / 'train.txt'} --test_file {tmp_path / 'test.txt'}"
    results = run(tiny(f"{files} --max_length 140"))
    model, tokenizer = load(str(tmp_path / "run"))
    measured = evaluate_file(model, tokenizer, str(tmp_path / "test.txt"), num_samples=2)
    assert measured["num_truncated"] == results["num_truncated"] == 1
    assert measured["nll_iw"] == pytest.approx(results["nll_iw"]) and measured["num_tokens"] == 8 + 3 + 139


def test_a_semi_amortised_model_is_measured_as_it_was_trained(tiny, tmp_path):
    results = run(tiny("--svi_steps 2 --kernels plain --eval_strategy steps --eval_steps 12"))
    model = load(str(tmp_path / "run"))
    (validated,) = lines(tmp_path / "run", "eval")
    data = task_of(*model).ready(TextTask.prepare(tiny("", "data"))[1]["validation"])
    measure = functools.partial(evaluate, model[0], data, task_of(*model).collator(), num_samples=1, seed=42)
    refined, as_encoded = (measure(svi_steps=steps) for steps in (2, 0))
    assert validated["neg_elbo"] == pytest.approx(refined["neg_elbo"], rel=1e-5)
    assert abs(as_encoded["neg_elbo"] - refined["neg_elbo"]) > 1e-3
    options = {"path": None, "num_samples": 2}
    measured = evaluate_file(*model, **options)
    assert measured["svi_steps"] == results["svi_steps"] == 2
    plain = evaluate_file(*model, **options, svi_steps=0)
    assert "svi_steps" not in plain and plain["neg_elbo"] > measured["neg_elbo"]
    with pytest.raises(ValueError, match="`svi_steps` must not be negative, got -1"):
        evaluate_file(*model, **options, svi_steps=-1)


def test_too_little_data(tiny):
    with pytest.raises(ValueError, match="has 3 sequences, fewer than the 4 parts of an update"):
        run(tiny("--corpus_size 3 --gradient_accumulation_steps 4"))


def test_bfloat16_keeps_float32_master_weights(tiny, tmp_path):
    run(tiny("--mixed_precision bf16 --max_steps 3"))
    assert all(tensor.dtype == torch.float32 for tensor in load_file(tmp_path / "run" / "model.safetensors").values())


def test_bfloat16_on_a_processor_without_it_is_float32(tiny, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("hf_vrae.training.accelerator.PACKED_DTYPES", (torch.float32,))
    run(tiny("--mixed_precision bf16 --max_steps 1"))
    assert "this processor has none (no AVX512), so it trains in float32" in caplog.text
    assert json.loads((tmp_path / "run" / "results.json").read_text())["run"]["mixed_precision"] == "no"


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lamb"])
def test_optimizers(name, tiny):
    flags = f"--optim {name} --weight_decay 0.1 --learning_rate 0.01"
    recipe = tiny(f"{flags} --momentum 0.7" if name == "sgd" else f"{flags} --adam_beta1 0.8 --adam_beta2 0.98")
    model = make_model()
    optimizer = make_optimizer(model, recipe.training)
    group = optimizer.param_groups[0]
    assert group["lr"] == 0.01 and group["weight_decay"] == 0.1
    assert group["momentum"] == 0.7 if name == "sgd" else group["betas"] == (0.8, 0.98)
    before = [parameter.clone() for parameter in model.parameters()]
    ids = torch.tensor([[2, 5, 6, 3]])
    model(ids, labels=ids[:, 1:]).loss.backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    "name", ["linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"]
)
def test_learning_rate_schedules_are_transformers(name, tiny):
    from transformers import get_scheduler

    warmup = {"linear": "--warmup_steps 4", "constant": ""}.get(name, "--warmup_steps 0.2")
    ours = learning_rate_schedule(tiny(f"--lr_scheduler_type {name} {warmup}").training, 20)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=4, num_training_steps=20)
    for step in range(20):
        assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()


def test_trackers(tiny, tmp_path):
    pytest.importorskip("tensorboard")
    run(tiny("--report_to tensorboard --max_steps 4"))
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))
    assert trackers_of("tensorboard, all") == ["tensorboard", "all"] and trackers_of("none") is None
    with pytest.raises(ValueError, match="`report_to` names 'tensorbord', and of trackers there are .*tensorboard"):
        make_accelerator(tiny("--report_to tensorbord").training)


def test_what_the_launcher_says_counts_where_the_recipe_says_nothing(tiny, monkeypatch):
    monkeypatch.setattr("hf_vrae.training.accelerator.PACKED_DTYPES", (torch.float32, torch.bfloat16))
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "3")
    split = Dataset.from_dict({"input_ids": [[2, 5, 3]] * 80})
    accelerator = make_accelerator(tiny().training)
    assert accelerator.mixed_precision == "bf16"
    assert UpdateBatches(split, np.full(80, 3), None, tiny().training, accelerator).batch_size == 3 * 16
    fresh_accelerator()
    assert make_accelerator(tiny("--mixed_precision no").training).mixed_precision == "no"


def test_on_a_mac_a_run_takes_the_cpu(tiny, monkeypatch):
    monkeypatch.setattr("accelerate.state.is_mps_available", lambda *args, **options: True)
    assert PartialState().device.type == "mps"
    fresh_accelerator()
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert make_accelerator(tiny().training).device.type == "cpu"


def test_fp16_needs_a_gpu(tiny):
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="fp16 needs a GPU; a CPU has bf16"):
            make_accelerator(tiny("--mixed_precision fp16").training)
