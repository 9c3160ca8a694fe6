"""The built-in frames: noisy rotations whose likelihood is known, so that a model's can be held against the best.

A hidden point turns in a plane, by an angle that depends on the class of the sequence, and is pulled to the middle and
pushed about; four channels are linear in it, with noise:

    z_1 ~ N(0, I),   z_t = DAMPING R(angle) z_{t-1} + N(0, (1 - DAMPING^2) I),   x_t = LOADINGS z_t + N(0, NOISE^2 I)

Given the class that is a linear Gaussian state-space model, so log p(x | class) is exact by a Kalman filter (Kalman
1960), and log p(x) by the sum over the classes, which are equally likely. Lengths are uniform and not part of it.
"""

import math

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from .frames import make_frames

ANGLES = {"slow": 2 * math.pi / 40, "medium": 2 * math.pi / 15, "fast": 2 * math.pi / 6}
"""Radians a step of each class: a turn takes 40, 15 or 6 steps."""

SHORTEST, LONGEST = 20, 60
DAMPING, NOISE = 0.98, 0.3
LOADINGS = np.array([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6], [-0.5, 1.5]])  # [F, 2]


def _transition(angles: np.ndarray) -> np.ndarray:
    """[..., 2, 2]"""
    cos, sin = np.cos(angles), np.sin(angles)
    return DAMPING * np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)


def log_prob(frames: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Exact log p(x | its length) in nats, the class summed out.

    Args:
        frames: [N, T, 4]; what stands behind a sequence's end is not looked at.
        lengths: [N].

    Returns:
        [N], float64.
    """
    rotation = _transition(np.array(list(ANGLES.values())))  # [C, 2, 2]
    total = np.zeros((len(frames), len(rotation)))  # [N, C]
    mean, cov = np.zeros((*total.shape, 2)), np.broadcast_to(np.eye(2), rotation.shape)  # z_t given x_<t
    for t in range(frames.shape[1]):
        spread = LOADINGS @ cov @ LOADINGS.T + NOISE**2 * np.eye(len(LOADINGS))  # of x_t given x_<t, [C, F, F]
        error = frames[:, None, t] - mean @ LOADINGS.T  # [N, C, F]
        scaled = np.einsum("cij,ncj->nci", np.linalg.inv(spread), error)
        normaliser = np.linalg.slogdet(2 * math.pi * spread)[1]
        step = -0.5 * (normaliser + (error * scaled).sum(-1))
        total += np.where(t < lengths[:, None], step, 0.0)
        mean = mean + np.einsum("cij,ncj->nci", cov @ LOADINGS.T, scaled)  # given x_t too
        cov = cov - cov @ LOADINGS.T @ np.linalg.inv(spread) @ LOADINGS @ cov
        mean = np.einsum("cij,ncj->nci", rotation, mean)  # of z_{t+1}
        cov = rotation @ cov @ rotation.swapaxes(-1, -2) + (1 - DAMPING**2) * np.eye(2)
    return np.logaddexp.reduce(total, axis=1) - math.log(len(rotation))


def generate_frames(num_train: int = 2000, num_validation: int = 200, num_test: int = 200, seed: int = 42):
    """Draw sequences; the same seed gives the same ones.

    Args:
        num_train, num_validation, num_test: sequences per split.
        seed: of the draw; each split has a stream of its own, so it does not depend on the others' number.

    Returns:
        a `DatasetDict` of "train", "validation" and "test" as of [`load_frames`], of 4 channels and 20 to 60 steps,
        with the columns `label` (of [`ANGLES`]) and `true_log_prob` (given the length, in nats).
    """
    sizes = {"train": num_train, "validation": num_validation, "test": num_test}
    streams = np.random.SeedSequence(seed).spawn(len(sizes))
    return DatasetDict(
        {
            split: _draw(size, np.random.default_rng(stream))
            for (split, size), stream in zip(sizes.items(), streams, strict=True)
        }
    )


def _draw(num_sequences: int, rng: np.random.Generator) -> Dataset:
    labels = rng.integers(len(ANGLES), size=num_sequences)
    lengths = rng.integers(SHORTEST, LONGEST + 1, size=num_sequences)
    rotation = _transition(np.array(list(ANGLES.values())))[labels]  # [N, 2, 2]
    push = rng.standard_normal((LONGEST, num_sequences, 2))
    states = [push[0]]
    for noise in push[1:]:
        states.append(np.einsum("nij,nj->ni", rotation, states[-1]) + math.sqrt(1 - DAMPING**2) * noise)
    frames = np.stack(states, axis=1) @ LOADINGS.T  # [N, T, F]
    # Rounded before it is scored, since the model sees what is rounded.
    frames = (frames + NOISE * rng.standard_normal(frames.shape)).astype(np.float32)
    features = Features({"label": ClassLabel(names=list(ANGLES)), "true_log_prob": Value("float64")})
    columns = Dataset.from_dict({"label": labels, "true_log_prob": log_prob(frames, lengths)}, features=features)
    return make_frames(frames[np.arange(LONGEST) < lengths[:, None]], lengths, columns)
