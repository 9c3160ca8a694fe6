"""Two processes against one: the same updates, the same numbers, and noise of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_vrae.measure import evaluate_file
from hf_vrae.modeling import distributions
from hf_vrae.training.arguments import parse_recipe
from hf_vrae.training.run import run
from tests.training.conftest import TINY

FLAGS = (
    TINY
    + """ --dropout 0 --word_dropout 0 --optim sgd --learning_rate 0.1 --max_grad_norm 1 --corpus_size 250
--max_steps 16 --eval_strategy steps --eval_steps 8 --save_steps 8"""
)


def train_and_evaluate(folder, flags):
    """Train with the randomness taken out, so that updates can be compared; then evaluate with it."""
    noise = distributions._standard_normal
    distributions._standard_normal = lambda shape, like, generator: torch.zeros(shape)
    try:
        run(parse_recipe([*FLAGS.split(), "--output_dir", folder, *flags]))
    finally:
        distributions._standard_normal = noise
    from hf_vrae.hub import load

    return evaluate_file(*load(folder), num_samples=3, max_samples=41)


def launch_two(*command):
    """`accelerate launch` starts several processes on GPUs only; on CPUs that is torchrun's work."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    done = subprocess.run([*launcher, *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_script_trains_in_two_processes(tmp_path):
    script = Path(__file__).parents[2] / "scripts" / "train.py"
    launch_two(script, *TINY.split(), "--output_dir", tmp_path / "run")
    made = json.loads((tmp_path / "run" / "results.json").read_text())["run"]
    assert made["num_processes"] == 2


@pytest.mark.parametrize(
    "flags",
    ["", "--aggressive --posterior batch_norm --minimum_rate 3 --max_steps 3 --eval_steps 2"],
    ids=["vae", "aggressive, batch norm, minimum rate"],
)
def test_two_processes_train_and_evaluate_like_one(flags, tmp_path):
    two, one, flags = str(tmp_path / "two"), str(tmp_path / "one"), flags.split()
    launch_two(__file__, two, str(tmp_path / "noise"), "--per_device_train_batch_size", "8", *flags)
    results = train_and_evaluate(one, ["--per_device_train_batch_size", "16", *flags])

    ours, theirs = (load_file(f"{folder}/model.safetensors") for folder in (one, two))
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], rtol=1e-4, atol=1e-6)
    for a, b in zip(*(Path(folder, "metrics.jsonl").read_text().splitlines() for folder in (one, two)), strict=True):
        a, b = ({k: v for k, v in json.loads(row).items() if k != "tokens_per_second"} for row in (a, b))
        assert a.pop("kind") == b.pop("kind") and b == pytest.approx(a, rel=1e-4, abs=1e-6)
    shared = json.loads((tmp_path / "noise.json").read_text())
    assert {name: shared[name] for name in results if name != "run"} == pytest.approx(
        {name: value for name, value in results.items() if name != "run"}, rel=1e-4, abs=1e-6
    )
    assert shared["run"]["num_processes"] == 2
    # Each process draws its own noise.
    draws = [json.loads((tmp_path / f"noise-{rank}.json").read_text()) for rank in range(2)]
    assert draws[0] != draws[1]


def main(folder, noise, *flags):
    """What each of the two processes runs."""
    from accelerate import PartialState

    results = train_and_evaluate(folder, flags)
    rank = PartialState().process_index
    with open(f"{noise}-{rank}.json", "w") as file:
        json.dump(torch.rand(3).tolist(), file)
    if rank == 0:
        with open(f"{noise}.json", "w") as file:
            json.dump(results, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
