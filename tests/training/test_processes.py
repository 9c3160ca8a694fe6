"""Two processes against one: the same updates, the same numbers, and noise of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file

from hf_vrae.measure import evaluate_file
from hf_vrae.modeling import distributions
from hf_vrae.modeling.modeling_vrnn import VRNNPreTrainedModel
from hf_vrae.modeling.posteriors import BatchNormPosterior
from hf_vrae.training.arguments import parse_recipe
from hf_vrae.training.run import run
from tests.scripts import fresh_accelerator, script
from tests.training.conftest import TINY

FLAGS = (
    TINY
    + """ --dropout 0 --word_dropout 0 --optim sgd --learning_rate 0.1 --max_grad_norm 1 --corpus_size 250
--max_steps 16 --eval_strategy steps --eval_steps 8 --save_steps 8"""
)

FRAMES = """--builtin frames --corpus_size 60 --embedding_size 8 --latent_size 3 --dropout 0 --predict_length
--optim sgd --learning_rate 0.01 --max_grad_norm 1 --max_steps 3 --eval_strategy steps --eval_steps 2 --save_steps 3
--logging_steps 1 --num_importance_samples 3 --kl_warmup_steps 2"""
VRNN = f"{FRAMES} --model_type vrnn --hidden_size 8 --feature_size 8"
# Between them every part of a model that might go without a gradient in one process: it would stop the other.
RUNS = {
    "vae": FLAGS,
    "aggressive": f"{FLAGS} --aggressive --posterior batch_norm --minimum_rate 3 --max_steps 3 --eval_steps 2",
    "semi-supervised": f"{FLAGS} --label_columns tense --label_classifier True --max_labeled_samples 90",
    "frames": f"{FRAMES} --encoder_hidden_size 8 --decoder_hidden_size 8 --word_dropout 0",
    "vrnn": f"{VRNN} --smoothing_posterior --free_bits 0.1",
    "fivo": f"{VRNN} --residual_posterior --num_train_samples 3 --resampling --kl_schedule constant",
}


def noise_of_places(self, draw, samples, size, observed, generator):
    """In place of a VRNN's noise, the same for each sequence, but not for each particle: one that is resampled."""
    count, time = observed.phi_x.shape[:2]
    k, t, d = torch.meshgrid(*(torch.arange(n) for n in (samples, time, size)), indexing="ij")
    noise = 2 * torch.sin(1 + 7 * k + 3 * t + 11 * d).unsqueeze(1).expand(-1, count, -1, -1)
    return noise.abs() / 2.1 if draw is torch.rand else noise


def train_and_evaluate(folder, name, batch_size):
    """Train with the randomness taken out, so that updates can be compared; then evaluate with it."""
    noise, drawn = distributions._standard_normal, VRNNPreTrainedModel._drawn
    distributions._standard_normal = lambda shape, like, generator: torch.zeros(shape)
    VRNNPreTrainedModel._drawn = noise_of_places
    try:
        flags = f"{RUNS[name]} --per_device_train_batch_size {batch_size}"
        run(parse_recipe([*flags.split(), "--output_dir", folder]))
    finally:
        distributions._standard_normal, VRNNPreTrainedModel._drawn = noise, drawn
    from hf_vrae.hub import load

    return evaluate_file(*load(folder), num_samples=3, max_samples=41)


def launch_two(*command):
    """`accelerate launch` starts several processes on GPUs only; on CPUs that is torchrun's work."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    done = subprocess.run([*launcher, *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def same_run_and_results(one, two, results, shared):
    """The same weights and records in two folders, and the same numbers of an evaluation."""
    ours, theirs = (load_file(f"{folder}/model.safetensors") for folder in (one, two))
    for name in ours:
        torch.testing.assert_close(
            theirs[name], ours[name], rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
    rows = [[json.loads(row) for row in Path(f, "metrics.jsonl").read_text().splitlines()] for f in (one, two)]
    for a, b in [*zip(*rows, strict=True), (results, shared)]:
        assert set(a) == set(b)
        for name, value in a.items():
            if isinstance(value, str):
                assert b[name] == value
            elif name != "run" and not name.endswith("_per_second"):
                assert b[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def batch_norm_and_summaries():
    torch.manual_seed(0)
    return BatchNormPosterior(8, 4, 0.6), torch.randn(12, 8) * 3 + 1


def normalise(posterior, summaries):
    mean, _ = posterior(summaries)
    mean.pow(3).sum().backward()
    return mean.detach(), posterior.weight.grad, posterior.running_var


def test_two_processes_are_like_one(tmp_path, subtests):
    launch_two(__file__, tmp_path)
    for name in RUNS:
        with subtests.test(name):
            fresh_accelerator()
            one, two = str(tmp_path / f"{name}-one"), str(tmp_path / name)
            results = train_and_evaluate(one, name, batch_size=16)
            shared = json.loads((tmp_path / f"{name}.json").read_text())
            same_run_and_results(one, two, results, shared)
            assert shared["run"]["num_processes"] == 2
            # Each process draws its own noise.
            draws = [json.loads((tmp_path / f"{name}-{rank}.json").read_text()) for rank in range(2)]
            assert draws[0] != draws[1]
    with subtests.test("batches of different sizes are normalised as one"):
        mean, gradient, variance = normalise(*batch_norm_and_summaries())
        parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
        torch.testing.assert_close(torch.cat([part[0] for part in parts]), mean)
        torch.testing.assert_close(parts[0][1] + parts[1][1], gradient, rtol=1e-4, atol=1e-4)
        for part in parts:
            torch.testing.assert_close(part[2], variance)
    with subtests.test("the script"):
        made = json.loads((tmp_path / "script" / "results.json").read_text())["run"]
        assert made["num_processes"] == 2


def main(folder):
    """What each of the two processes runs, one after the other: starting them takes most of the time."""
    for name in RUNS:
        fresh_accelerator()
        results = train_and_evaluate(f"{folder}/{name}", name, batch_size=8)
        rank = PartialState().process_index
        Path(folder, f"{name}-{rank}.json").write_text(json.dumps(torch.rand(3).tolist()))
        if rank == 0:
            Path(folder, f"{name}.json").write_text(json.dumps(results))
    posterior, x = batch_norm_and_summaries()
    torch.save(normalise(posterior, x[:5] if rank == 0 else x[5:]), f"{folder}/{rank}.pt")
    assert script(["scripts/train.py", *TINY.split(), "--output_dir", f"{folder}/script"]) == 0


if __name__ == "__main__":
    main(sys.argv[1])
