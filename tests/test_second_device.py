"""Models, training and scripts on a device that is not the CPU, in processes of their own: torch keeps a backend for
the life of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13),
    reason="the stand-in for a device goes by the inside of torch 2.13 and later",
)
@pytest.mark.parametrize("checks", ["texts", "frames", "runs"])
def test_everything_stays_on_a_second_device(checks, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, ROOT / "tests" / "on_second_device.py", checks]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) > 3 and {name: error for name, error in found.items() if error} == {}
