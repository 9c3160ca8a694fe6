"""Whether single latent dimensions hold single factors of the data, where the true factors are known.

Both scores are of posterior means and estimated from N sequences: with few of them and factors of many values the
information in the codes is estimated too high, so compare models on the same N.
"""

import numpy as np
from datasets import ClassLabel

from ..data.conditions import Conditions
from .information import encode_dataset

BINS = 20  # equal widths, as in Locatello et al. 2019, appendix C
TREES = 20


def factor_information(codes: np.ndarray, factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mutual information of each latent dimension, cut into 20 bins of equal width, with each factor, in nats.

    I = sum_bv p(b, v) log [p(b, v) / (p(b) p(v))] with the frequencies for p (Locatello et al. 2019, appendix C). It
    exceeds the truth by about 19 (V - 1) / (2 N) for a factor of V values; in a gap between two dimensions most
    of that cancels.

    Args:
        codes: a code for each of N sequences, [N, D].
        factors: the true value of each factor, as integers, [N, F].

    Returns:
        the information [D, F], and the entropy of each factor [F].

    Raises:
        ValueError: where the shapes do not fit, or a factor does not vary.
    """
    codes, factors = _check(codes, factors)
    low, high = codes.min(0), codes.max(0)
    bins = (BINS * (codes - low) / np.where(high > low, high - low, 1)).astype(int).clip(max=BINS - 1)  # [N, D]
    joint_bins = np.eye(BINS)[bins].transpose(1, 2, 0)  # [D, BINS, N]
    information, entropies = [], []
    for factor in factors.T:
        joint = joint_bins @ np.eye(factor.max() + 1)[factor] / len(codes)  # [D, BINS, V]
        of_bin, of_value = joint.sum(2, keepdims=True), joint.sum(1, keepdims=True)
        ratio = np.divide(joint, of_bin * of_value, out=np.ones_like(joint), where=joint > 0)
        information.append((joint * np.log(ratio)).sum((1, 2)))
        entropies.append(_entropy(np.bincount(factor) / len(factor)))
    return np.stack(information, 1).clip(min=0), np.array(entropies)


def mutual_information_gap(information: np.ndarray, entropies: np.ndarray) -> np.ndarray:
    """(I of the dimension that knows most of a factor - I of the second) / H(factor), between 0 and 1: [F].

    MIG is their mean (Chen et al. 2018, eq. 6). Where there is a single dimension the second knows nothing.

    Args:
        information, entropies: of [`factor_information`], [D, F] and [F].
    """
    top, second = np.sort(np.pad(information, ((1, 0), (0, 0))), axis=0)[:-3:-1]
    return (top - second) / entropies


def dci(codes: np.ndarray, factors: np.ndarray, seed: int = 0) -> dict:
    """Disentanglement, completeness and informativeness (Eastwood & Williams 2018, sec. 2) by random forests.

    A forest of 20 trees learns each factor from the codes of half of the sequences; R_ij is what dimension i
    contributes to the forest of factor j (the fall of Gini impurity, which sums to 1 over the dimensions).

    - disentanglement = sum_i rho_i (1 - H_F(R_i. / sum_k R_ik)), rho_i = sum_j R_ij / sum_kj R_kj: whether a dimension
      serves one factor; entropies to the base F, the number of factors;
    - completeness = mean_j (1 - H_D(R_.j / sum_k R_kj)): whether a factor needs one dimension;
    - informativeness = share of the other half of the sequences whose factor is told rightly.

    The paper has random forests and lasso; the boosted trees of Locatello et al. 2019 give other numbers, and one for
    each value of a factor would take minutes. Importance sums to 1 even where a forest tells nothing: read the first
    two beside the third, and that beside `commonest`.

    Args:
        codes: [N, D].
        factors: the true value of each factor, as integers, [N, F].
        seed: of the split and the forests.

    Returns:
        `disentanglement`, `completeness`, `informativeness`, and as arrays `importance` [D, F], `accuracy` [F] and
        `commonest` [F]: the accuracy of always saying the commonest value.

    Raises:
        ValueError: where scikit-learn is missing, a factor does not vary, or there are too few sequences.
    """
    try:
        from sklearn.ensemble import RandomForestClassifier
    except ImportError as error:
        raise ValueError("`dci` needs scikit-learn: pip install 'hf_vrae[metrics]'") from error
    codes, factors = _check(codes, factors)
    most = int(factors.max()) + 1
    if len(codes) < 4 * most:  # two per value in the half that teaches
        raise ValueError(
            f"`codes` must hold 4 rows per value of a factor, here {4 * most}; got {len(codes)}. Take more."
        )
    order = np.random.default_rng(seed).permutation(len(codes))
    train, test = order[: len(order) // 2], order[len(order) // 2 :]
    importance, accuracy, commonest = [], [], []
    for factor in factors.T:
        # A tree that chooses among some of the dimensions only must now and then split on noise, and one grown to
        # leaves of single sequences mostly does: the importance of dimensions that say nothing would not be zero.
        forest = RandomForestClassifier(TREES, max_features=None, min_samples_leaf=5, random_state=seed)
        forest.fit(codes[train], factor[train])
        importance.append(forest.feature_importances_)
        accuracy.append(np.mean(forest.predict(codes[test]) == factor[test]))
        commonest.append(np.mean(factor[test] == np.bincount(factor[train]).argmax()))
    importance = np.stack(importance, 1)  # [D, F]
    one_factor = 1 - _entropy(_normalised(importance, 1), 1) / np.log(max(importance.shape[1], 2))  # [D]
    one_dimension = 1 - _entropy(_normalised(importance, 0), 0) / np.log(max(importance.shape[0], 2))  # [F]
    return {
        "disentanglement": float(_normalised(importance.sum(1), 0) @ one_factor),
        # A factor that no dimension serves is not complete.
        "completeness": float(np.mean(np.where(importance.sum(0) > 0, one_dimension, 0))),
        "informativeness": float(np.mean(accuracy)),
        "importance": importance,
        "accuracy": np.array(accuracy),
        "commonest": np.array(commonest),
    }


def evaluate_disentanglement(model, dataset, collator, batch_size: int = 64, seed: int = 0) -> dict:
    """MIG and DCI of a model's posterior means on a data set whose true factors are known.

    Args:
        model: has `encode`.
        dataset: rows with `input_ids` and a `ClassLabel` column for each factor, as in the built-in corpus. A factor
            that conditions the model is left out: its encoder is told it.
        collator: makes a batch of a list of sequences of token ids.
        batch_size: sequences per batch.
        seed: of [`dci`].

    Returns:
        `mig`, `disentanglement`, `completeness`, `informativeness`, `num_sequences`, and under `factors`, for each,
        its `entropy` in nats, the `dimension` that knows most of it, that one's `information` in nats, `mig`,
        `accuracy` and `commonest`: the accuracy of always saying the commonest value.
    """
    told = Conditions.of_config(model.config).labels
    names = [n for n, kind in dataset.features.items() if isinstance(kind, ClassLabel) and n not in told]
    if len(names) < 2:  # every dimension that says anything would be of one factor alone
        raise ValueError(
            "`dataset` must have the true factors in ClassLabel columns, at least two that do not condition the "
            f"model, got {names} of the columns {dataset.column_names}; the built-in corpus has them."
        )
    codes = encode_dataset(model, dataset, collator, batch_size).mean.numpy()  # [N, D]
    columns = dataset.with_format("numpy")
    factors = np.stack([columns[name][:] for name in names], 1)  # [N, F]
    information, entropies = factor_information(codes, factors)
    gaps, scores = mutual_information_gap(information, entropies), dci(codes, factors, seed)
    rows = {
        "entropy": entropies,
        "dimension": information.argmax(0),
        "information": information.max(0),
        "mig": gaps,
        "accuracy": scores["accuracy"],
        "commonest": scores["commonest"],
    }
    return {
        "mig": float(gaps.mean()),
        **{name: scores[name] for name in ("disentanglement", "completeness", "informativeness")},
        "num_sequences": len(codes),
        "factors": {name: {row: values[j].item() for row, values in rows.items()} for j, name in enumerate(names)},
    }


def _check(codes, factors) -> tuple[np.ndarray, np.ndarray]:
    """Codes in double precision and each factor's values counted from 0."""
    codes, factors = np.asarray(codes, dtype=np.float64), np.asarray(factors)
    if codes.ndim != 2 or factors.ndim != 2 or len(codes) != len(factors) or not len(codes):
        raise ValueError(
            f"`codes` [N, D] and `factors` [N, F] must have the same N above 0; got {codes.shape} and {factors.shape}."
        )
    factors = np.stack([np.unique(factor, return_inverse=True)[1] for factor in factors.T], 1)
    for j in np.flatnonzero(factors.max(0) == 0):
        raise ValueError(f"Factor {j} of `factors` must vary, but has one value in all {len(codes)} rows. Take more.")
    return codes, factors


def _normalised(weights: np.ndarray, axis: int) -> np.ndarray:
    total = weights.sum(axis, keepdims=True)
    return weights / np.where(total > 0, total, 1)


def _entropy(p: np.ndarray, axis: int = 0) -> np.ndarray:
    return -(p * np.log(np.where(p > 0, p, 1))).sum(axis)
