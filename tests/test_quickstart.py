"""The README's first command in full: what it promises."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hf_vrae.data.grammar import parse
from hf_vrae.hub import load
from hf_vrae.latent import sample_texts

TRAIN = Path(__file__).parents[1] / "scripts" / "train.py"


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--seed", "1"]], ids=["as it is", "another seed"])
def test_quick_start(flags, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", str(TRAIN), *flags]
    subprocess.run(launch, cwd=tmp_path, check=True, capture_output=True)
    results = json.loads((tmp_path / "output" / "results.json").read_text())
    assert results["true_nll"] < results["nll_iw"] < 1.03 * results["true_nll"]
    assert results["kl"] > 3 and results["mutual_information"] > 3 and results["active_units"] >= 10
    model, tokenizer = load(str(tmp_path / "output"))
    samples = [row["text"] for row in sample_texts(model, tokenizer, 500, seed=0)]
    assert len(set(samples)) > 400
    assert sum(parse(text) is not None for text in samples) > 350
