"""The benchmarks run, and write what they print. What they measure is for people to read, not for a test."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, ["--repeats", "1"]) for name in ("train", "iw_nll", "generate", "vrnn")), ("memory", [])],
)
def test_benchmark(name, options, tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, FOLDER / f"{name}.py", "--sizes", "small", *options, "--json", out]
    subprocess.run(command, check=True, capture_output=True)
    report = json.loads(out.read_text())
    assert report["ceilings"]["fp32"] > 0 and all(row["rate"] > 0 and row["ratio"] > 0 for row in report["rows"])
    assert any(row["way"].startswith("plain") or " plain " in row["way"] for row in report["rows"])


@pytest.mark.slow
def test_scaling(tmp_path):
    command = [sys.executable, FOLDER / "scaling.py", "--axes", "latent", "samples", "--repeats", "1"]
    subprocess.run([*command, "--plot", tmp_path / "out.png", "--json", tmp_path / "out.json"], check=True)
    assert (tmp_path / "out.png").stat().st_size > 10_000
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert {(row["axis"], row["name"]) for row in rows} == {
        (axis, name) for axis in ("latent", "samples") for name in ("plain", "ours")
    }
