"""How well a model's likelihood tells what is unlike its training data."""

from collections.abc import Sequence

import numpy as np


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve: P(a positive scores above a negative), ties count half (Hanley & McNeil 1982).

    Args:
        scores: [N].
        positive: which are positive, bool [N].

    Raises:
        ValueError: where all are of one kind, and for a score that is not a number.
    """
    scores, positive = np.asarray(scores), np.asarray(positive, dtype=bool)
    if broken := int(np.isnan(scores).sum()):  # they would be sorted behind all others
        raise ValueError(f"{broken} of {len(scores)} scores are not numbers: the model diverges there.")
    count = int(positive.sum())
    if not 0 < count < len(positive):
        raise ValueError(f"An ROC curve needs sequences of both kinds, got {count} anomalies of {len(positive)}.")
    _, places, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(sizes) - (sizes - 1) / 2)[places]  # of ties their mean, from 1
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(scores) - count)))


def check_normal(labels: Sequence[str], normal: str) -> None:
    kinds = set(labels)
    if normal not in kinds or len(kinds) < 2:
        raise ValueError(f"`normal` must be one of two labels at least, got {normal!r} of {sorted(kinds)[:9]}.")


def detect_anomalies(nll: np.ndarray, num_steps: np.ndarray, labels: Sequence, normal: str) -> dict[str, float]:
    """Sequences whose NLL is high taken for anomalies.

    Args:
        nll: importance-weighted, of each sequence in nats, [N].
        num_steps: of each, [N].
        labels: of each, N.
        normal: the label of what is normal, as a string.

    Returns:
        `auroc`, by the NLL of the sequence; `auroc_per_step`, by its NLL a step; `num_normal`, `num_anomalous`.
    """
    labels = np.array([str(label) for label in labels])
    check_normal(labels, normal)
    anomalous = labels != normal
    return {
        "auroc": auroc(nll, anomalous),
        "auroc_per_step": auroc(nll / np.maximum(num_steps, 1), anomalous),
        "num_normal": int((~anomalous).sum()),
        "num_anomalous": int(anomalous.sum()),
    }
