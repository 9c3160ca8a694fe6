"""Pictures of a run; they need the extra `viz`."""

import json
from pathlib import Path


def plot_training_curves(metrics_file: str | Path, picture: str | Path) -> None:
    """Draw a run's metrics.jsonl: the bound and its parts, KL with its weight, and what the latent says.

    Args:
        metrics_file: written by the training loop.
        picture: PNG to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = [json.loads(line) for line in Path(metrics_file).read_text().splitlines()]
    train, validation = ([line for line in lines if line["kind"] == kind] for kind in ("train", "eval"))

    def curve(axis, rows, name, label, **style):
        axis.plot([row["step"] for row in rows], [row[name] for row in rows], label=label, **style)

    figure, (bound, kl, information) = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    curve(bound, train, "reconstruction", "reconstruction, training", color="tab:blue", alpha=0.4)
    dots = {"marker": "o", "markersize": 3}
    curve(bound, validation, "reconstruction", "reconstruction, validation", color="tab:blue", **dots)
    curve(bound, validation, "neg_elbo", "-ELBO, validation", color="tab:red", **dots)
    # The first updates are worth hundreds of nats and would flatten the rest.
    later = [row["reconstruction"] for row in train[len(train) // 20 :]] + [row["neg_elbo"] for row in validation]
    if later:
        low, high = min(later + [row["reconstruction"] for row in validation]), max(later)
        bound.set_ylim(low - 0.05 * (high - low) - 1e-3, high + 0.05 * (high - low) + 1e-3)
    bound.set(title="Bound and reconstruction", ylabel="nats a sequence")
    curve(kl, train, "kl", "KL, training", color="tab:green", alpha=0.4)
    curve(kl, validation, "kl", "KL, validation", color="tab:green", **dots)
    kl.set(title="KL, and its weight", ylabel="nats a sequence")
    kl.set_ylim(bottom=0)
    weight = kl.twinx()
    curve(weight, train, "kl_weight", "KL weight (right)", color="tab:gray", linestyle="--")
    weight.set_ylim(0, 1.05 * max([1.0] + [row["kl_weight"] for row in train]))
    curve(information, validation, "mutual_information", "mutual information", color="tab:purple", **dots)
    information.set(title="What the latent says", ylabel="nats")
    information.set_ylim(bottom=0)
    units = information.twinx()
    curve(units, validation, "active_units", "active units (right)", color="tab:orange", linestyle="--", **dots)
    units.set_ylim(bottom=0)
    for axes in ((bound,), (kl, weight), (information, units)):
        axes[0].set_xlabel("step")
        axes[0].grid(alpha=0.3)
        handles, labels = zip(*(axis.get_legend_handles_labels() for axis in axes), strict=True)
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.12), "ncols": 3, "frameon": False}
        axes[0].legend(sum(handles, []), sum(labels, []), fontsize=8, **below)
    figure.savefig(picture, dpi=110)
    plt.close(figure)
