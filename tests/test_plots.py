import json

import pytest

from hf_vrae.plots import plot_training_curves

TRAIN = {"loss": 30.0, "reconstruction": 25.0, "kl": 5.0, "kl_weight": 0.5}
EVAL = {"neg_elbo": 30.0, "reconstruction": 24.0, "kl": 6.0, "mutual_information": 4.0, "active_units": 3}


@pytest.mark.parametrize("kinds", [("train", "eval"), ("train",), ()], ids=str)
def test_curves_are_drawn_of_whatever_a_run_left(kinds, tmp_path):
    from PIL import Image

    rows = [{"kind": kind, "step": s} | {"train": TRAIN, "eval": EVAL}[kind] for s in range(1, 50) for kind in kinds]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plot_training_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size[0] > 1000 and len(picture.convert("RGB").getcolors(2**24)) > 10
