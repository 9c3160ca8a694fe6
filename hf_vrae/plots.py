"""Pictures of a run and of its latents, and a table; they need the extra `viz`.

Each returns matplotlib's `Figure`, and writes it where it is given the name of a PNG.
"""

import difflib
import json
import math
from collections import Counter
from collections.abc import Sequence
from numbers import Real
from pathlib import Path

import numpy as np

from .markdown import escaped

# Okabe & Ito's colours, told apart by the colour-blind too, without black; then three more for up to ten classes.
COLOURS = "#0072B2 #E69F00 #009E73 #D55E00 #CC79A7 #56B4E9 #B8A900 #7F4FC9 #8C564B #222222".split()
GREY = "#BBBBBB"
ACTIVE_VARIANCE = 0.01  # Var_x(E[z_j|x]) of an active unit (Burda et al. 2016, sec. 5.3)


DOTS = {"marker": "o", "markersize": 3}
WIDEST = 20  # inches


def _shown(name: str, most: int = 50) -> str:
    """A name that comes with the data, not too long; between two dollars matplotlib would read mathematics."""
    name = str(name)
    return (name if len(name) <= most else name[: most - 1] + "…").replace("$", r"\$")


def plot_training_curves(metrics_file: str | Path, picture: str | Path | None = None):
    """Draw a run's metrics.jsonl: the bound and its parts, KL with its weight, and what the latent says.

    Args:
        metrics_file: written by the training loop.
        picture: PNG to write.
    """
    if not Path(metrics_file).is_file():
        raise ValueError(f"There is no file {str(metrics_file)!r}, which a run writes. Name the folder of a run.")
    lines = Path(metrics_file).read_text().split("\n")[:-1]  # behind the last end there is nothing, or half a line
    lines = [json.loads(line) for line in lines]
    train, validation = ([line for line in lines if line["kind"] == kind] for kind in ("train", "eval"))
    without_z = bool(lines) and all(row["kl"] == 0 for row in lines)
    parts = [_draw_likelihood] if without_z else [_draw_bound, _draw_kl, _draw_information]
    figure = _figure(5 * len(parts), 4.2)
    for axis, draw in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axes = axis, *draw(axis, train, validation)
        handles, labels = zip(*(axis.get_legend_handles_labels() for axis in axes), strict=True)
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.12), "ncols": 3, "frameon": False}
        axis.legend(sum(handles, []), sum(labels, []), fontsize=8, **below)
    return _saved(figure, picture)


def _curve(axis, rows: Sequence[dict], name: str, label: str, **style) -> None:
    rows = [row for row in rows if name in row]
    axis.plot([row["step"] for row in rows], [row[name] for row in rows], label=label, **style)


def _draw_bound(axis, train, validation) -> tuple:
    _curve(axis, train, "reconstruction", "reconstruction, training", color="tab:blue", alpha=0.4)
    _curve(axis, validation, "reconstruction", "reconstruction, validation", color="tab:blue", **DOTS)
    _curve(axis, validation, "neg_elbo", "-ELBO, validation", color="tab:red", **DOTS)
    _leave_out_the_start(axis, train, validation, "reconstruction", "neg_elbo")
    axis.set(title="Bound and reconstruction", ylabel="nats per sequence")
    return ()


def _draw_likelihood(axis, train, validation) -> tuple:
    _curve(axis, train, "reconstruction", "training", color="tab:blue", alpha=0.4)
    _curve(axis, validation, "reconstruction", "validation", color="tab:blue", **DOTS)
    _leave_out_the_start(axis, train, validation, "reconstruction")
    axis.set(title="Negative log-likelihood", ylabel="nats per sequence")
    return ()


def _leave_out_the_start(axis, train, validation, *names: str) -> None:
    """The first updates are worth hundreds of nats and would flatten the rest."""
    drawn = train[len(train) // 20 :] + validation
    values = [row[name] for row in drawn for name in names if row.get(name) is not None]
    if later := [value for value in values if math.isfinite(value)]:
        low, high = min(later), max(later)
        axis.set_ylim(low - 0.05 * (high - low) - 1e-3, high + 0.05 * (high - low) + 1e-3)


def _draw_kl(axis, train, validation) -> tuple:
    _curve(axis, train, "kl", "KL, training", color="tab:green", alpha=0.4)
    _curve(axis, validation, "kl", "KL, validation", color="tab:green", **DOTS)
    if any("kl_capacity" in row for row in train):  # there the weight is constant, and this is the schedule
        _curve(axis, train, "kl_capacity", "capacity C, what the KL is held to", color="tab:gray", linestyle=":")
    axis.set(title="KL, and its weight", ylabel="nats per sequence")
    _leave_out_the_start(axis, train, validation, "kl", "kl_capacity")
    axis.set_ylim(bottom=0)
    weight = axis.twinx()
    _curve(weight, train, "kl_weight", "KL weight (right)", color="tab:gray", linestyle="--")
    weight.set_ylim(0, 1.05 * max([1.0] + [row["kl_weight"] for row in train]))
    weight.set_ylabel("weight")
    return (weight,)


def _draw_information(axis, train, validation) -> tuple:
    if validation and "mutual_information" not in validation[0]:  # of one latent per step there is none
        axis.set(title="Active units", yticks=[])
    else:
        _curve(axis, validation, "mutual_information", "mutual information", color="tab:purple", **DOTS)
        axis.set(title="What the latent says", ylabel="mutual information, nats")
        told = [row["mutual_information"] for row in validation]  # an estimate, which may be below 0
        axis.set_ylim(min([0, *told]), 1.05 * max([0.1, *told]))
    units = axis.twinx()
    _curve(units, validation, "active_units", "active units (right)", color="tab:orange", linestyle="--", **DOTS)
    # Room above, so that all units active is a line and not the frame; whole numbers only.
    units.set_ylim(0, 1.1 * max([1] + [row["active_units"] for row in validation]))
    units.yaxis.get_major_locator().set_params(integer=True)
    units.set_ylabel("active units")
    return (units,)


def plot_kl_per_dimension(
    kl: Sequence[float], variances: Sequence[float], picture: str | Path | None = None, of: str = ""
):
    """Bars of what each latent dimension costs, the dearest first; active units are coloured.

    Args:
        kl: mean over the data of KL(q(z_j|x) || p(z_j)) in nats, [D].
        variances: Var_x(E[z_j|x]), [D]; an active unit's is above 0.01 (Burda et al. 2016, sec. 5.3).
        picture: PNG to write.
        of: what part of z it is of, where it is not all.
    """
    kl, active = np.asarray(kl), np.asarray(variances) > ACTIVE_VARIANCE
    order = np.argsort(-kl, kind="stable")
    figure = _figure(min(max(6, 2 + 0.24 * len(kl)), WIDEST), 4)
    axis = figure.subplots()
    for is_active, colour, label in ((True, COLOURS[0], "active"), (False, GREY, "inactive")):
        places = np.flatnonzero(active[order] == is_active)
        axis.bar(places, kl[order][places], color=colour, label=f"{label} units: {len(places)}")
    every = -(-len(kl) // 64)  # numbers of more than 64 bars would touch
    axis.set_xticks(range(0, len(kl), every), order[::every], fontsize=8, rotation=90 if len(kl) > 40 else 0)
    axis.set(title=f"KL{of} {kl.sum():.2f} nats per sequence, by latent dimension", xlabel="dimension", ylabel="nats")
    axis.margins(x=0.01)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    axis.legend(frameon=False)
    return _saved(figure, picture)


def plot_latent_map(
    means, labels: Sequence, method: str = "pca", picture: str | Path | None = None, attribute: str = "", seed: int = 0
):
    """Latents in the plane, coloured by an attribute.

    Args:
        means: posterior means, [N, D].
        labels: the attribute of each, N strings or numbers (None: missing); numbers of more than ten values make a
            colour bar, and what is missing is left out.
        method: "pca", or "tsne" (van der Maaten & Hinton 2008), whose distances between groups mean nothing.
        picture: PNG to write.
        attribute: its name, for the legend.
        seed: of t-SNE, and of the order in which points are drawn.
    """
    means = np.asarray(means, dtype=np.float64)
    values = {label for label in labels if label is not None}
    of_numbers = len(values) > len(COLOURS) and all(isinstance(value, Real) for value in values)
    if of_numbers:
        labels = np.asarray([math.nan if label is None else label for label in labels], dtype=float)
    else:
        labels = np.asarray(["missing" if label is None else str(label) for label in labels])
    if len(means) != len(labels) or len(means) < 3:
        raise ValueError(f"`labels` must be one per row of `means`, 3 at least; got {len(labels)} and {len(means)}.")
    if method == "pca":
        points, shares = principal_components(means)
        names = [f"component {i + 1} ({100 * share:.1f} % of the variance)" for i, share in enumerate(shares)]
    elif method == "tsne":
        points, names = _tsne(means, seed), ["t-SNE 1", "t-SNE 2"]
    else:
        raise ValueError(f"`method` must be 'pca' or 'tsne', got {method!r}.")
    shuffled = np.random.default_rng(seed).permutation(len(points))  # no class lies on top of the others
    points, labels = points[shuffled], labels[shuffled]
    figure = _figure(8, 6)
    axis = figure.subplots()
    dots = {"s": float(np.clip(20_000 / len(points), 8, 40)), "alpha": 0.7, "linewidths": 0}
    if of_numbers:
        drawn = axis.scatter(*points.T, c=labels, cmap="viridis", **dots)
        figure.colorbar(drawn, label=_shown(attribute)).solids.set_alpha(1)
    else:
        _draw_classes(axis, points, labels, attribute, dots)
    axis.set(
        xlabel=names[0], ylabel=names[1], title=f"{len(points):,} posterior means by {_shown(attribute) or 'label'}"
    )
    axis.set_aspect("equal", adjustable="datalim")
    axis.grid(alpha=0.2)
    return _saved(figure, picture)


def _draw_classes(axis, points, labels, attribute, dots) -> None:
    """The commonest classes in colours of their own with their centres, all others in grey beneath them."""
    counts = sorted(Counter(labels.tolist()).items(), key=lambda item: (-item[1], item[0]))
    shown = counts if len(counts) <= len(COLOURS) else counts[: len(COLOURS) - 1]
    colours = dict(zip((name for name, _ in shown), COLOURS, strict=False))
    named = [(f"{_shown(name)} ({count:,})", colours[name]) for name, count in shown]
    if others := sum(count for _, count in counts[len(shown) :]):
        axis.scatter(*points[~np.isin(labels, list(colours))].T, color=GREY, **(dots | {"alpha": 0.4}))
        named.append((f"{len(counts) - len(shown)} others ({others:,})", GREY))
    own = np.isin(labels, list(colours))
    axis.scatter(*points[own].T, c=[colours[name] for name in labels[own]], **dots)
    for name, _ in shown:
        centre = points[labels == name].mean(0)
        axis.scatter(*centre, s=110, color=colours[name], edgecolors="white", linewidths=1.5, zorder=3)
    beside = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "frameon": False}
    title = f"{_shown(attribute)}\n(large: the mean)".strip()
    # Given beside their dots: of labels of artists matplotlib leaves out what begins with "_".
    handles = [axis.scatter([], [], s=40, color=colour) for _, colour in named]
    axis.legend(handles, [name for name, _ in named], title=title, alignment="left", **beside)


def principal_components(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first two principal components, of the singular value decomposition of the centred means.

    Args:
        means: [N, D]; where D is 1, the second component is zero.

    Returns:
        the points [N, 2], and the share of the variance that each component has [2].
    """
    centred = means - means.mean(0)
    _, s, directions = np.linalg.svd(centred, full_matrices=False)
    # A direction and its opposite are one: the largest coordinate is made positive.
    signs = np.sign(directions[np.arange(len(directions)), np.abs(directions).argmax(1)])
    points, shares = centred @ (directions * signs[:, None])[:2].T, s[:2] ** 2 / max((s**2).sum(), 1e-30)
    missing = 2 - len(shares)
    return np.pad(points, ((0, 0), (0, missing))), np.pad(shares, (0, missing))


def _tsne(means: np.ndarray, seed: int) -> np.ndarray:
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ValueError("`method` 'tsne' needs scikit-learn: pip install 'hf_vrae[metrics]'") from error
    # 30 neighbours are the method's usual choice; it wants fewer than the points.
    init = "pca" if means.shape[1] > 1 else "random"
    return TSNE(perplexity=min(30, (len(means) - 1) / 3), init=init, random_state=seed).fit_transform(means)


def interpolation_table(rows: Sequence[dict]) -> str:
    """An interpolation as a Markdown table; words that are not in the row above, at their place, are bold.

    Args:
        rows: with `t` and `text`, as `latent.interpolate_texts` returns them.
    """
    lines, before = ["| t | text |", "| ---: | --- |"], None
    for row in rows:
        words = row["text"].split()
        changed = set()
        for kind, _, _, start, end in difflib.SequenceMatcher(
            None, words if before is None else before, words, False
        ).get_opcodes():
            changed |= set(range(start, end)) if kind != "equal" else set()
        shown = [f"**{escaped(word)}**" if i in changed else escaped(word) for i, word in enumerate(words)]
        lines.append(f"| {row['t']:.2f} | {' '.join(shown).replace('** **', ' ')} |")
        before = words
    return "\n".join(lines) + "\n"


MANY_ROWS = 8


def rows_of_runs(folders: Sequence[str | Path]) -> list[dict]:
    """The results.json of each folder, and as `name` the last part of its path, or all where two would be alike.

    Raises:
        ValueError: where there is none of a trained model, or they were measured on other data.
    """
    names = [Path(folder).name for folder in folders]
    names = names if len(set(names)) == len(names) else list(map(str, folders))
    rows = []
    for folder, name in zip(folders, names, strict=True):
        file = Path(folder) / "results.json"
        results = json.loads(file.read_text()) if file.is_file() else {}
        if not {"kl", "reconstruction"} <= results.keys():
            raise ValueError(
                f"{str(file)!r} must hold the `kl` and `reconstruction` of a model; train or evaluate it."
            )
        rows.append({"name": name, **results})
    measured = {row["name"]: _sha256(row) for row in rows if _sha256(row)}
    if len(set(measured.values())) > 1:
        on = ", ".join(f"{name!r} on {sha256[:8]}" for name, sha256 in measured.items())
        raise ValueError(
            f"Runs are compared on the same data, and these were measured on others, by SHA-256: {on}. Leave some out."
        )
    return rows


def _sha256(results: dict) -> str | None:
    """Of the data that a results.json is of."""
    data = results.get("run", {}).get("data", {})
    return data.get(results.get("split", "test"), {}).get("sha256")


def plot_rate_distortion(rows: Sequence[dict], picture: str | Path | None = None):
    """Models as points of rate and distortion, with lines of equal -ELBO, their sum (Alemi et al. 2018, fig. 1).

    Args:
        rows: a model each: `name`, `kl` and `reconstruction`, nats per sequence, as in results.json; where the data
            know it, `true_nll`, below which no sum lies on average of a model that is told nothing.
        picture: PNG to write.
    """
    if not rows:
        raise ValueError("`rows` must hold one model at least, got none.")
    from matplotlib.ticker import MaxNLocator

    rate, distortion = (np.array([row[name] for row in rows]) for name in ("kl", "reconstruction"))
    names, many = [_shown(row["name"]) for row in rows], len(rows) > MANY_ROWS
    for name, there in zip(names, np.isfinite(rate + distortion), strict=True):
        if not there:
            raise ValueError(f"`kl` and `reconstruction` must be finite numbers, and of {name!r} one is not.")
    columns = -(-len(rows) // 24)  # of the list of many
    figure = _figure(min(8 + 3 * columns, WIDEST) if many else 8, 6)
    axis = figure.subplots()
    axis.set_title("Rate and distortion; on a grey line, -ELBO is the same")
    axis.set(xlabel="rate: KL, nats per sequence", ylabel="distortion: reconstruction, nats per sequence")
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(rows))]
    for place, (x, y, name, colour) in enumerate(zip(rate, distortion, names, colours, strict=True), start=1):
        axis.scatter(x, y, color=colour, s=60, zorder=3, label=f"{place}  {name}" if many else name)
    if many:  # their names would cover one another: numbers, and a list of them
        figure.legend(loc="outside right center", fontsize=9, frameon=False, ncols=columns)
        names = [str(place) for place in range(1, len(rows) + 1)]
    room = max(np.ptp(rate), np.ptp(distortion), 1.0)
    right, low, high = rate.max() + 0.3 * room, distortion.min() - 0.15 * room, distortion.max() + 0.2 * room
    axis.set(xlim=(min(0, rate.min()) - 0.02 * room, right), ylim=(low, high))
    levels = MaxNLocator(8).tick_values(low, right + high)
    truth = [row["true_nll"] for row in rows if "true_nll" in row][:1]
    lines = [(level, {"color": GREY, "linewidth": 0.8}, f"{level:g}") for level in levels]
    best, said = {"color": "black", "linewidth": 1.2, "linestyle": "--"}, []
    for level, style, text in lines + [(level, best, f"best possible p(x) {level:.2f}") for level in truth]:
        ends = [max(axis.get_xlim()[0], level - high), min(right, level - low)]
        if ends[1] <= ends[0]:
            continue
        axis.plot(ends, [level - end for end in ends], zorder=1, **style)
        x = ends[0] + 0.04 * (ends[1] - ends[0])
        angled = {"rotation": -45, "rotation_mode": "anchor", "transform_rotates_text": True, "fontsize": 8}
        said.append(axis.text(x, level - x, text, color=style["color"], va="bottom", **angled))
    _label_points(figure, axis, rate, distortion, names, colours, said)
    return _saved(figure, picture)


def _label_points(figure, axis, xs, ys, names, colours, said) -> None:
    """Write each name at the nearest place around its point where it covers no point, no other name, and nothing of
    what is said already, of which is taken away what the frame would cut off."""
    from matplotlib.text import Text

    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the places found here stay
    points, taken = axis.transData.transform(np.column_stack([xs, ys])), []
    frame = axis.get_window_extent()
    for text in said:
        box = text.get_window_extent()
        if _within(box, frame):
            taken.append(box)
        else:
            text.remove()
    circle = [(math.cos(a), math.sin(a)) for a in np.linspace(0, 2 * math.pi, 16, endpoint=False)]
    places = [(radius * dx, radius * dy) for radius in (12, 24, 36, 54, 72, 96) for dx, dy in circle]
    for x, y, name, colour in zip(xs, ys, names, colours, strict=True):
        for dx, dy in places:
            arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.8} if math.hypot(dx, dy) > 12 else None
            text = axis.annotate(
                *(name, (x, y), (dx, dy)), textcoords="offset points", color=colour, fontsize=9, arrowprops=arrow,
                ha="left" if dx > 1 else "right" if dx < -1 else "center", va="center", zorder=4,
            )  # fmt: skip
            text.get_window_extent()  # brings it to its place
            box = Text.get_window_extent(text)  # without its line
            free = not any(box.overlaps(other) for other in taken) and not any(
                box.padded(9).contains(*other) for other in points
            )
            if _within(box, frame) and free:
                break
            if (dx, dy) != places[-1]:
                text.remove()
        taken.append(box)


def _within(box, frame) -> bool:
    return frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1


def plot_comparison(
    names: Sequence[str], panels: dict[str, dict], lines: dict[str, float], picture: str | Path | None = None
):
    """Models beside each other, a panel a measure, a line a model.

    Args:
        names: of the models.
        panels: by the measure's name, by the name of each of its one or two series, a number a model, None where
            there is none.
        lines: by the measure's name, what to hold it against: a dashed line.
        picture: PNG to write.
    """
    if not names or not panels:
        raise ValueError("`names` and `panels` must hold one model and one measure at least, got none.")
    columns = min(3, len(panels))
    rows, places = -(-len(panels) // columns), np.arange(len(names))
    figure = _figure(2 + 3.4 * columns, rows * (1.2 + 0.36 * len(names)))
    axes = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for axis, (measure, series) in zip(axes, panels.items(), strict=False):
        if measure in lines:
            axis.axvline(lines[measure], color="black", linestyle="--", linewidth=1)
        values = np.array([[np.nan if v is None else v for v in numbers] for numbers in series.values()], dtype=float)
        axis.plot(values, np.tile(places, (len(series), 1)), color=GREY, linewidth=2, zorder=1)
        for label, numbers, colour, above in zip(series, values, COLOURS, (5, -12), strict=False):
            axis.scatter(numbers, places, color=colour, s=40, label=label, zorder=2)
            for x, y in zip(numbers, places, strict=True):
                if not np.isnan(x):
                    text = f"{x:,.0f}" if x >= 1000 or x.is_integer() else f"{x:.1f}" if x >= 100 else f"{x:.2f}"
                    axis.annotate(
                        *(text, (x, y), (0, above)), textcoords="offset points", ha="center", fontsize=7,
                        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.4},
                    )  # fmt: skip
        axis.set_title(measure, fontsize=10)
        axis.locator_params(axis="x", nbins=5)
        axis.set_yticks(places, [_shown(name) for name in names])
        axis.set_ylim(len(names) - 0.5, -0.6)  # the first on top, with room for its number
        axis.grid(alpha=0.3)
        axis.margins(x=0.15)
        if len(series) > 1:
            axis.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    return _saved(figure, picture)


def plot_schedules(curves: dict[str, Sequence[float]], picture: str | Path | None = None):
    """Each course of the KL weight, or of a KL capacity, over a run, a panel each.

    Args:
        curves: by the schedule's name, its value at equal steps from the run's start to its end.
        picture: PNG to write.
    """
    if not curves:
        raise ValueError("`curves` must hold one schedule at least, got none.")
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = _figure(3.6 * columns, 2.6 * rows)
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False).flat
    for place, (name, values) in enumerate(curves.items()):
        axis = panels[place]
        axis.plot(np.linspace(0, 100, len(values)), values, color=COLOURS[0], linewidth=2)
        axis.set(title=name, xlim=(0, 100), ylim=(0, 1.1 * max([1e-9, *values])))
        axis.grid(alpha=0.3)
        if place % columns == 0:
            axis.set_ylabel("KL weight, or C / last C")
        if place + columns >= len(curves):
            axis.set_xlabel("share of the run, %")
            axis.tick_params(labelbottom=True)
    for axis in list(panels)[len(curves) :]:
        axis.set_visible(False)
    return _saved(figure, picture)


MOST_LINES = 12  # channels; more are drawn as a picture of their own


def plot_frames(
    arrays: dict[str, np.ndarray],
    picture: str | Path | None = None,
    most_rows: int = 8,
    names: Sequence[str] | None = None,
):
    """Sequences of frames, a row each, side by side under their names: of 0 and 1 as piano rolls, up to 12 channels as
    lines, more as a heat map.

    Args:
        arrays: by name, frames [N, T, F], NaN where there is none; `lengths` [N], and numbers [N] to name the rows by.
        picture: PNG to write.
        most_rows: sequences to draw: the first, or of a way (`t`) some from end to end.
        names: of the channels; by default their numbers.
    """
    panels = {name: array for name, array in arrays.items() if array.ndim == 3}
    titles = {name: array for name, array in arrays.items() if array.ndim == 1 and name != "lengths"}
    if not panels:
        raise ValueError(f"`arrays` must hold frames [N, T, F], got {sorted(arrays)}.")
    count = len(next(iter(panels.values())))
    some = np.arange(min(count, most_rows))
    if "t" in arrays and count > most_rows:
        some = np.linspace(0, count - 1, most_rows).round().astype(int)
    panels, titles = ({name: array[some] for name, array in part.items()} for part in (panels, titles))
    rows = len(next(iter(panels.values())))
    values = np.concatenate([array[~np.isnan(array)] for array in panels.values()])
    binary = bool(np.isin(values, (0, 1)).all())
    channels = next(iter(panels.values())).shape[2]
    used = np.flatnonzero(np.any([np.nansum(array, axis=(0, 1)) > 0 for array in panels.values()], axis=0))
    low, high = (used[0], used[-1] + 1) if binary and len(used) else (0, channels)
    lines = channels <= MOST_LINES and not binary
    named = None if names is None else [_shown(name) for name in names]
    width = max(5.0, 4.2 * len(panels))
    figure = _figure(width, 0.6 + 1.7 * rows)
    axes = figure.subplots(rows, len(panels), sharex="row", sharey="row", squeeze=False)
    for column, (name, array) in enumerate(panels.items()):
        for row, frames in enumerate(array):
            there = np.flatnonzero(~np.isnan(frames).all(1))
            axis, frames = axes[row, column], frames[: there[-1] + 1 if len(there) else 0]  # missing ones are gaps
            if lines:
                for channel in range(channels):
                    style = "-" if channel < len(COLOURS) else "--"
                    axis.plot(frames[:, channel], style, color=COLOURS[channel % len(COLOURS)], linewidth=1)
                axis.grid(alpha=0.3)
            else:
                limits = (0, 1) if binary else (values.min(), values.max())
                scale = {"cmap": "Greys" if binary else "viridis", "vmin": limits[0], "vmax": limits[1]}
                extent = (-0.5, len(frames) - 0.5, low - 0.5, high - 0.5)
                shown = frames[:, low:high].T
                drawn = axis.imshow(
                    shown, aspect="auto", origin="lower", interpolation="nearest", extent=extent, **scale
                )
                if named and high - low <= MOST_LINES:
                    axis.set_yticks(range(low, high), named[low:high], fontsize=7)
                else:
                    axis.yaxis.get_major_locator().set_params(integer=True)
            axis.xaxis.get_major_locator().set_params(integer=True)
            if row == 0:
                axis.set_title(name)
            if row == rows - 1:
                axis.set_xlabel("frame")
    if lines and channels > 1:
        named = named or [f"channel {channel}" for channel in range(channels)]
        columns = max(1, int(width / (0.5 + 0.075 * max(map(len, named)))))  # inches of a line, and of a letter
        below = {"loc": "outside lower center", "ncols": min(columns, channels), "fontsize": 8, "frameon": False}
        figure.legend(axes[0, 0].lines, named, **below)
    elif not lines and not binary:
        figure.colorbar(drawn, ax=axes.ravel().tolist(), label="value")
    for row in range(rows):
        places = [f"{name} {array[row]:.2f}" for name, array in titles.items()]
        axes[row, 0].set_ylabel(", ".join(places) or ("value" if lines else "channel"))
    return _saved(figure, picture)


def _figure(width: float, height: float):
    """A figure of its own: pyplot would keep it, and need a display or to be told of none."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: pip install 'hf_vrae[viz]'") from error
    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _saved(figure, picture: str | Path | None):
    if picture is not None:
        figure.savefig(picture)
    return figure
