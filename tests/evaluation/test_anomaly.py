import numpy as np
import pytest
import torch

from hf_vrae.data.collators import CausalCollator, FrameCollator
from hf_vrae.evaluation.anomaly import auroc, detect_anomalies
from hf_vrae.evaluation.likelihood import evaluate
from hf_vrae.evaluation.probe import probe, representations
from hf_vrae.measure import encode_file, evaluate_file
from tests.evaluation.test_free_running import series, texts
from tests.modeling.test_modeling_vrnn import make_model as make_vrnn
from tests.models import make_frame_model


def test_auroc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 9, 60), rng.random(60) < 0.3  # with ties
    above = scores[positive][:, None] - scores[~positive]
    assert auroc(scores, positive) == pytest.approx(((above > 0) + 0.5 * (above == 0)).mean())
    assert (
        auroc(np.arange(4), [False, False, True, True]) == 1 and auroc(np.zeros(4), [True, False, True, False]) == 0.5
    )
    with pytest.raises(ValueError, match="both kinds, got 0 anomalies of 2"):
        auroc(np.zeros(2), [False, False])
    with pytest.raises(ValueError, match="1 of 2 scores are not numbers"):
        auroc(np.array([0.0, np.nan]), [False, True])


def test_anomalies_are_what_is_not_normal():
    found = detect_anomalies(np.array([1.0, 2, 9, 40]), np.array([1, 1, 1, 100]), [0, 0, 1, 2], "0")
    assert found == {"auroc": 1.0, "auroc_per_step": 0.5, "num_normal": 2, "num_anomalous": 2}
    for labels in (["a", "b"], ["c", "c"]):
        with pytest.raises(ValueError, match="`normal` must be one of two labels at least, got 'c'"):
            detect_anomalies(np.zeros(2), np.ones(2), labels, "c")


def test_a_sequence_with_a_latent_a_step_stands_as_their_mean_and_the_last():
    """Of its own steps: those of padding are none."""
    model = make_vrnn("frames")
    rows = [np.random.default_rng(n).standard_normal((n, 4)).astype(np.float32) for n in (6, 3, 1)]
    for point, x in zip(representations(model, series(rows), FrameCollator(), batch_size=3), rows, strict=True):
        z = model.encode(input_features=torch.from_numpy(x).unsqueeze(0)).mode[0].detach()
        np.testing.assert_allclose(point, torch.cat([z.mean(0), z[-1]]), rtol=1e-4, atol=1e-5)


def test_a_probe_reads_what_is_linear_and_no_more():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    points = rng.standard_normal((200, 3)) * [1, 100, 1]
    labels = points[:, 0] > 0
    result = probe(points[:100], labels[:100], points[100:], labels[100:])
    assert result["accuracy"] > 0.95 and 0.5 <= result["majority"] < 0.7
    hidden = (points[:, 0] > 0) != (points[:, 2] > 0)
    assert probe(points[:100], hidden[:100], points[100:], hidden[100:])["accuracy"] < 0.7
    with pytest.raises(ValueError, match="two labels at least"):
        probe(points, ["a"] * 200, points, labels)
    with pytest.raises(ValueError, match="is to be tested on others"):
        probe(points, labels, points, ["1.0"] * 200)


def test_a_probe_is_judged_by_what_it_was_not_fitted_on():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((40, 60)), rng.random(40) < 0.5  # by so many dimensions all of these are told apart
    result = probe(*noise, rng.standard_normal((200, 60)), np.arange(200) % 4 == 0)
    assert result["accuracy"] < 0.8 and result["majority"] == 0.75
    assert (result["num_train"], result["num_test"]) == (40, 200)


def test_a_probe_learns_from_its_own_file_and_anomalies_are_what_is_not_named_normal(tmp_path, monkeypatch):
    rng, path = np.random.default_rng(0), str(tmp_path / "both.npz")
    sizes = {"train": 8, "test": 40}
    frames = {f"{split}_x": rng.standard_normal((n, 6, 3)) for split, n in sizes.items()}
    np.savez(path, **frames, **{f"{split}_y": np.arange(n) % 2 for split, n in sizes.items()})
    monkeypatch.setattr("hf_vrae.measure.probe", lambda *parts: [len(part) for part in parts])
    asked = {"probe_label": "label", "probe_train": path, "anomaly_label": "label", "normal": "1"}
    model = make_frame_model()
    measured = evaluate_file(model, None, path, num_samples=5, **asked)
    assert measured["probe"] == [8, 8, 40, 40]
    data, _ = encode_file(model, None, path)
    each = evaluate(model, data, FrameCollator(), num_samples=5, seed=42, per_sequence=True)["per_sequence"]
    assert measured["anomaly"] == detect_anomalies(each["nll_iw"], each["num_steps"], data["label"][:], "1")


def test_a_text_with_a_latent_a_token_stands_as_their_mean_and_the_last():
    model, rows = make_vrnn(), [[2, 5, 6, 7, 3], [2, 8, 3], [2, 3]]
    for point, ids in zip(representations(model, texts(*rows), CausalCollator(0)), rows, strict=True):
        z = model.encode(input_ids=torch.tensor([ids])).mode[0].detach()
        np.testing.assert_allclose(point, torch.cat([z.mean(0), z[-1]]), rtol=1e-4, atol=1e-5)
