import json

import numpy as np
import pytest

from hf_vrae.plots import (
    COLOURS,
    interpolation_table,
    plot_comparison,
    plot_frames,
    plot_kl_per_dimension,
    plot_latent_map,
    plot_rate_distortion,
    plot_schedules,
    plot_training_curves,
    principal_components,
    rows_of_runs,
)

TRAIN = {"loss": 30.0, "reconstruction": 25.0, "kl": 5.0, "kl_weight": 0.5}
EVAL = {"neg_elbo": 30.0, "reconstruction": 24.0, "kl": 6.0, "mutual_information": 4.0, "active_units": 3}


def legend(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


@pytest.mark.parametrize("kinds", [("train", "eval"), ("train",), ()], ids=str)
def test_curves_are_drawn_of_whatever_a_run_left(kinds, tmp_path):
    from PIL import Image

    rows = [{"kind": kind, "step": s} | {"train": TRAIN, "eval": EVAL}[kind] for s in range(1, 50) for kind in kinds]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    figure = plot_training_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size[0] > 1000 and len(picture.convert("RGB").getcolors(2**24)) > 10
    assert figure.axes[2].get_title() == "What the latent says"
    (units,) = (axis for axis in figure.axes if axis.get_ylabel() == "active units")
    if "eval" in kinds:
        assert set(units.lines[0].get_ydata()) == {3} and units.get_ylim()[1] > 3  # below the frame


def test_curves_of_an_estimate_below_0_are_not_upside_down(tmp_path):
    rows = [{"kind": "eval", "step": s} | EVAL | {"mutual_information": -0.005} for s in range(1, 5)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bottom, top = plot_training_curves(tmp_path / "metrics.jsonl").axes[2].get_ylim()
    assert bottom <= -0.005 < 0 < top


def test_curves_show_the_capacity_where_that_is_the_schedule(tmp_path):
    rows = [{"kind": "train", "step": s, **TRAIN, "kl_capacity": s / 2} for s in range(1, 5)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    axis = plot_training_curves(tmp_path / "metrics.jsonl").axes[1]
    (capacity,) = (line for line in axis.lines if "capacity" in line.get_label())
    assert list(capacity.get_ydata()) == [0.5, 1.0, 1.5, 2.0]


def test_curves_of_one_latent_a_step_speak_of_no_mutual_information(tmp_path):
    rows = [{"kind": "eval", "step": s} | EVAL for s in range(1, 5)]
    rows = [{name: value for name, value in row.items() if name != "mutual_information"} for row in rows]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    axis = plot_training_curves(tmp_path / "metrics.jsonl").axes[2]
    assert (axis.get_title(), axis.get_ylabel()) == ("Active units", "")
    assert legend(axis) == ["active units (right)"]


def test_runs_of_one_name_are_told_apart(tmp_path):
    for name in ("a/run", "b/run", "b/other"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "results.json").write_text('{"kl": 1.0, "reconstruction": 2.0}')
    folders = [tmp_path / name for name in ("a/run", "b/run", "b/other")]
    assert [row["name"] for row in rows_of_runs(folders)] == list(map(str, folders))
    assert rows_of_runs(folders[1:])[0] == {"name": "run", "kl": 1.0, "reconstruction": 2.0}
    (folders[0] / "results.json").write_text("{}")
    for folder in (folders[0], tmp_path):
        with pytest.raises(ValueError, match="results.json' must hold the `kl` and `reconstruction` of a model"):
            rows_of_runs([folder])


def test_kl_by_dimension_is_sorted_and_tells_active_units(tmp_path):
    figure = plot_kl_per_dimension([0.1, 2.0, 0.0, 0.5], [0.02, 0.9, 0.001, 0.009], tmp_path / "kl.png")
    (axis,) = figure.axes
    active, inactive = axis.containers
    assert [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in active] == [(0, 2.0), (2, 0.1)]
    assert [bar.get_height() for bar in inactive] == [0.5, 0.0]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["1", "3", "0", "2"]
    assert legend(axis) == ["active units: 2", "inactive units: 2"] and "2.60 nats" in axis.get_title()
    assert (tmp_path / "kl.png").stat().st_size > 1000
    (axis,) = plot_kl_per_dimension([0.1], [0.02], of=" of the z of the whole,").axes
    assert axis.get_title() == "KL of the z of the whole, 0.10 nats per sequence, by latent dimension"


def test_principal_components_against_known_directions():
    rng = np.random.default_rng(0)
    plane = rng.standard_normal((5000, 2)) * [3, 1]
    turn = np.linalg.qr(rng.standard_normal((5, 5)))[0][:2]
    points, shares = principal_components(plane @ turn + 7)
    assert shares == pytest.approx([0.9, 0.1], abs=0.01)
    assert abs(np.corrcoef(points[:, 0], plane[:, 0])[0, 1]) > 0.999
    assert points.var(0) == pytest.approx([9, 1], rel=0.1)
    points, shares = principal_components(plane[:, :1])  # one dimension has no second component
    assert points.shape == (5000, 2) and shares == pytest.approx([1, 0])


def test_a_map_draws_each_sequence_in_its_class(tmp_path):
    means = np.array([[5.0, 0, 0], [-5, 0, 0], [5, 1, 0], [-5, -1, 0]] * 10)
    figure = plot_latent_map(means, ["right", "left"] * 20, picture=tmp_path / "map.png", attribute="side")
    (axis,) = figure.axes
    points = axis.collections[0]
    assert len(points.get_offsets()) == 40
    sides = [x > 0 for x, _ in points.get_offsets()]
    assert len({(side, tuple(colour)) for side, colour in zip(sides, points.get_facecolors(), strict=True)}) == 2
    assert legend(axis) == ["left (20)", "right (20)"] and "% of the variance" in axis.get_xlabel()


def test_rare_classes_of_a_map_are_grey_and_many_numbers_a_scale():
    means = np.random.default_rng(0).standard_normal((300, 4))
    names = [f"class {min(i // 10, 25)}" for i in range(300)]
    (axis,) = plot_latent_map(means, names).axes
    assert len(legend(axis)) == len(COLOURS) and legend(axis)[-1] == "17 others (170)"
    numbers, bar = plot_latent_map(means, np.arange(300) / 3, attribute="length").axes
    assert bar.get_ylabel() == "length" and numbers.get_legend() is None
    assert sorted(numbers.collections[0].get_array()) == pytest.approx(np.arange(300) / 3)
    numbers, bar = plot_latent_map(means, [None, *np.arange(299)], attribute="length").axes
    assert bar.get_ylabel() == "length" and np.ma.count(numbers.collections[0].get_array()) == 299


def test_tsne_keeps_groups_together():
    pytest.importorskip("sklearn")
    means = np.random.default_rng(0).standard_normal((60, 5)) + 30 * (np.arange(60) % 2)[:, None]
    (axis,) = plot_latent_map(means, ["even", "odd"] * 30, "tsne").axes
    points, colours = axis.collections[0].get_offsets(), axis.collections[0].get_facecolors()[:, 0]
    first = colours == colours[0]
    centres = points[first].mean(0), points[~first].mean(0)
    spread = np.linalg.norm(points[first] - centres[0], axis=1).mean()
    assert np.linalg.norm(centres[0] - centres[1]) > 2 * spread


def test_what_cannot_be_mapped_is_said():
    with pytest.raises(ValueError, match="`labels`"):
        plot_latent_map(np.zeros((4, 2)), ["a"])
    with pytest.raises(ValueError, match="'pca' or 'tsne'"):
        plot_latent_map(np.zeros((4, 2)), list("abab"), method="umap")


def test_an_interpolation_is_a_table_with_what_changes_in_bold():
    texts = ["the king sold a letter .", "the king sold two old letters .", "the king sold two letters .", "a|b *"]
    lines = interpolation_table([{"t": i / 3, "text": text} for i, text in enumerate(texts)]).splitlines()
    assert lines[:2] == ["| t | text |", "| ---: | --- |"]
    assert lines[2] == "| 0.00 | the king sold a letter . |"
    assert lines[3] == "| 0.33 | the king sold **two old letters** . |"
    assert lines[4] == "| 0.67 | the king sold two letters . |"
    assert lines[5] == r"| 1.00 | **a\|b \*** |"


def test_many_rows_are_numbered_and_listed():
    rows = [{"name": f"model {i}", "kl": float(i), "reconstruction": 18.0 - i} for i in range(1, 12)]
    figure = plot_rate_distortion(rows)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [f"{i}  model {i}" for i in range(1, 12)]
    assert {str(i) for i in range(1, 12)} <= {text.get_text() for text in figure.axes[0].texts}


def test_rate_and_distortion_are_points_with_names_that_do_not_meet(tmp_path):
    rows = [{"name": f"model {i}", "kl": 5 + 0.02 * i, "reconstruction": 18.0, "true_nll": 22.5} for i in range(6)]
    figure = plot_rate_distortion(rows, tmp_path / "rate_distortion.png")
    (axis,) = figure.axes
    drawn = [points.get_offsets().tolist()[0] for points in axis.collections]
    assert drawn == [[row["kl"], 18.0] for row in rows]
    for line in axis.lines:
        assert np.ptp(line.get_xdata() + np.asarray(line.get_ydata())) < 1e-9  # -ELBO is the same along it
    assert any("best possible p(x) 22.50" in text.get_text() for text in axis.texts)
    from matplotlib.text import Text

    names = [text for text in axis.texts if text.get_text().startswith("model")]
    boxes = [Text.get_window_extent(text) for text in names]
    assert len(boxes) == 6
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    frame = axis.get_window_extent()
    assert all(frame.x0 < box.x0 and box.x1 < frame.x1 for box in boxes)


def test_schedules_have_a_panel_each(tmp_path):
    figure = plot_schedules({"constant": [1, 1], "linear": [0, 0.5, 1], "a": [1], "b": [2, 4]}, tmp_path / "s.png")
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in shown] == ["constant", "linear", "a", "b"]
    assert shown[1].lines[0].get_xydata().tolist() == [[0, 0], [50, 0.5], [100, 1]]
    assert shown[3].get_ylim()[1] > 4


def test_frames_are_piano_rolls_lines_or_heat_maps(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((2, 9, 3))
    values[1, 5:] = np.nan
    figure = plot_frames({"real": values, "made": values, "lengths": np.array([9, 5]), "t": np.array([0, 0.5])})
    assert [axis.get_title() for axis in figure.axes] == ["real", "made", "", ""]
    assert [len(axis.lines) for axis in figure.axes] == [3] * 4 and figure.axes[2].get_ylabel() == "t 0.50"
    assert len(figure.axes[2].lines[0].get_xdata()) == 5
    named = plot_frames({"real": values[:1]}, tmp_path / "lines.png", names=["x", "y", "z"])
    for one, names in ((figure, ["channel 0", "channel 1", "channel 2"]), (named, ["x", "y", "z"])):
        assert [text.get_text() for text in one.legends[0].get_texts()] == names
    roll = np.zeros((2, 9, 88))
    roll[:, :, 40:45] = 1
    (axis, _) = plot_frames({"sample": roll}, tmp_path / "roll.png").axes
    assert axis.images[0].get_array().shape == (5, 9) and axis.images[0].get_extent()[2:] == [39.5, 44.5]
    assert plot_frames({"x": rng.standard_normal((1, 9, 20))}).axes[0].images[0].get_array().shape == (20, 9)
    assert (tmp_path / "roll.png").stat().st_size > 1000
    way = plot_frames({"path": np.repeat(values[:1], 11, 0), "t": np.linspace(0, 1, 11)})
    assert [axis.get_ylabel() for axis in (way.axes[0], way.axes[-1])] == ["t 0.00", "t 1.00"] and len(way.axes) == 8
    with pytest.raises(ValueError, match="must hold frames"):
        plot_frames({"lengths": np.ones(2)})


def test_models_beside_each_other(tmp_path):
    panels = {
        "NLL": {"": [23.5, 23.7, 1234.0]},
        "accuracy": {"teacher-forced": [0.5, 0.6, 0.4], "free-running": [0.3, None, 0.4]},
        "no one": {"": [1.0, 2.0, 3.0]},
        "AU": {"": [1, 2, 3]},
    }
    figure = plot_comparison(["A", "B", "C"], panels, {"NLL": 23.4}, tmp_path / "comparison.png")
    nll, accuracy, _, units, *hidden = figure.axes
    assert [axis.get_visible() for axis in (units, *hidden)] == [True, False, False]
    assert [tick.get_text() for tick in nll.get_yticklabels()] == ["A", "B", "C"]
    assert [text.get_text() for text in nll.texts] == ["23.50", "23.70", "1,234"]
    assert [text.get_text() for text in accuracy.texts] == ["0.50", "0.60", "0.40", "0.30", "0.40"]
    assert list(nll.lines[0].get_xdata()) == [23.4, 23.4] and nll.get_ylim()[0] > nll.get_ylim()[1]  # first on top
    assert legend(accuracy) == ["teacher-forced", "free-running"] and nll.get_legend() is None
    assert (tmp_path / "comparison.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="one model and one measure"):
        plot_comparison([], panels, {})


def test_curves_of_a_model_without_z_are_of_its_likelihood_alone(tmp_path):
    rows = [
        {"kind": kind, "step": 1} | {"train": TRAIN, "eval": EVAL}[kind] | {"kl": 0.0} for kind in ("train", "eval")
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (axis,) = plot_training_curves(tmp_path / "metrics.jsonl").axes
    assert axis.get_title() == "Negative log-likelihood" and legend(axis) == ["training", "validation"]


def test_curves_are_of_what_they_are_named(tmp_path):
    train = [{"kind": "train", "step": s} | {name: s + value for name, value in TRAIN.items()} for s in (1, 2)]
    validation = [{"kind": "eval", "step": s} | {name: s + value for name, value in EVAL.items()} for s in (2, 4)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in train + validation))
    figure = plot_training_curves(tmp_path / "metrics.jsonl")
    drawn = {line.get_label(): line.get_xydata().T.tolist() for axis in figure.axes for line in axis.lines}
    of = {"reconstruction, training": (train, "reconstruction"), "KL, training": (train, "kl")}
    of |= {"reconstruction, validation": (validation, "reconstruction"), "KL, validation": (validation, "kl")}
    of |= {"-ELBO, validation": (validation, "neg_elbo"), "mutual information": (validation, "mutual_information")}
    of |= {"active units (right)": (validation, "active_units"), "KL weight (right)": (train, "kl_weight")}
    assert drawn == {
        label: [[row["step"] for row in rows], [row[name] for row in rows]] for label, (rows, name) in of.items()
    }


def test_axes_are_named_by_what_is_on_them():
    (axis,) = plot_rate_distortion([{"name": "a", "kl": 1.0, "reconstruction": 9.0}]).axes
    assert axis.get_xlabel().startswith("rate") and axis.get_ylabel().startswith("distortion")
    assert axis.collections[0].get_offsets().tolist() == [[1.0, 9.0]]
    (axis,) = plot_latent_map(np.random.default_rng(0).standard_normal((9, 3)), ["a"] * 9).axes
    assert axis.get_xlabel().startswith("component 1") and axis.get_ylabel().startswith("component 2")


def test_the_first_channel_of_a_picture_is_at_its_foot():
    roll = np.zeros((1, 9, 88))
    roll[0, 2:5, 40] = roll[0, :, 44] = 1
    (picture,) = plot_frames({"sample": roll}).axes[0].images
    assert picture.origin == "lower" and picture.get_array()[0].tolist() == roll[0, :, 40].tolist()


def test_names_are_shown_as_they_stand(tmp_path):
    means = np.random.default_rng(0).standard_normal((40, 3))
    names = ["_news", "$sport$", r"$\foo$", "a" * 60] * 10
    figure = plot_latent_map(means, names, picture=tmp_path / "map.png", attribute="$topic$")
    shown = [name.replace("$", r"\$") for name in ("_news", "$sport$", r"$\foo$", "a" * 49 + "…")]
    assert set(legend(figure.axes[0])) == {f"{name} (10)" for name in shown}
    rows = [{"name": name, "kl": 1.0 + i, "reconstruction": 2.0} for i, name in enumerate(names[:4])]
    plot_rate_distortion(rows, tmp_path / "rate_distortion.png")
    (axis,) = plot_comparison(names[:4], {"KL": {"": [1.0, 2.0, 3.0, 4.0]}}, {}, tmp_path / "comparison.png").axes
    assert [tick.get_text() for tick in axis.get_yticklabels()] == shown


def test_runs_on_other_data_are_not_compared(tmp_path):
    for name, sha256 in (("a", "1" * 64), ("b", "2" * 64), ("c", None)):
        (tmp_path / name).mkdir()
        results = {"kl": 1.0, "reconstruction": 2.0, "split": "test"}
        results |= {"run": {"data": {"test": {"sha256": sha256}, "train": {"sha256": name}}}} if sha256 else {}
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    assert len(rows_of_runs([tmp_path / "a", tmp_path / "c"])) == 2
    with pytest.raises(ValueError, match="measured on others, by SHA-256: 'a' on 11111111, 'b' on 22222222"):
        rows_of_runs([tmp_path / name for name in "abc"])
    with pytest.raises(ValueError, match="must be finite numbers, and of 'bad' one is not"):
        plot_rate_distortion([{"name": "bad", "kl": float("nan"), "reconstruction": 2.0}])


def test_pictures_of_much_stay_of_a_size(tmp_path):
    assert plot_kl_per_dimension(np.ones(512), np.ones(512)).get_size_inches()[0] <= 20
    rows = [{"name": f"m{i}", "kl": float(i), "reconstruction": 2.0} for i in range(40)]
    figure = plot_rate_distortion(rows, tmp_path / "rate_distortion.png")
    (box,) = (shown.get_window_extent() for shown in figure.legends)
    assert len(figure.legends[0].get_texts()) == 40
    assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 and box.x1 <= figure.bbox.x1


def test_the_start_of_a_kl_does_not_flatten_the_rest(tmp_path):
    rows = [{"kind": "train", "step": s} | TRAIN | {"kl": 5000.0 if s == 1 else 5.0} for s in range(1, 101)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "tr')
    axis = plot_training_curves(tmp_path / "metrics.jsonl").axes[1]
    assert axis.get_ylim()[0] == 0 and 5 < axis.get_ylim()[1] < 10
    with pytest.raises(ValueError, match="There is no file .*nowhere.*Name the folder of a run"):
        plot_training_curves(tmp_path / "nowhere")


def test_channels_have_their_names(tmp_path):
    names = [f"the temperature of wall number {i}" for i in range(12)]
    figure = plot_frames({"real": np.random.default_rng(0).random((2, 9, 12))}, tmp_path / "lines.png", names=names)
    (drawn,) = figure.legends
    assert [text.get_text() for text in drawn.get_texts()] == names
    box = drawn.get_window_extent()
    assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
    roll = np.array([[[0, 1], [1, 1], [0, 1]]], dtype=float)
    rolls = {"real": roll, "sample": roll}
    axis, *_ = plot_frames(rolls, names=["drum", "bell"]).axes
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["drum", "bell"]
    wide = plot_frames({"real": np.random.default_rng(0).random((1, 9, 20))}, tmp_path / "heat.png")
    assert wide.axes[-1].get_ylabel() == "value"  # the scale
