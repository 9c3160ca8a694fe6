"""What sequences stand under: from columns of a data set to what a batch has of it."""

import logging
import math
import re
from dataclasses import dataclass, field

import numpy as np
from datasets import ClassLabel, Dataset, Value

from .datasets import value_names
from .rows import PREFIX

logger = logging.getLogger(__name__)

MISSING = -100
OF_A_BATCH = ("class_ids", "attributes", "condition")  # what sequences stand under, by name


@dataclass(frozen=True)
class Conditions:
    """Which columns condition a model.

    Args:
        labels: of each column of a label the names of its values; columns in order of their names.
        attributes: columns of real numbers.
        vector: column of vectors.
        size: numbers of such a vector.
    """

    labels: dict[str, list[str]] = field(default_factory=dict)
    attributes: list[str] = field(default_factory=list)
    vector: str | None = None
    size: int = 0

    @classmethod
    def fit(
        cls, train: Dataset, labels: list[str] | None, attributes: list[str] | None, vector: str | None
    ) -> "Conditions":
        """Of the training split, whose values these are: those of a class by its names, else in order.

        Raises:
            ValueError: for a column that is not there, or that holds something else.
        """
        for name in (*(labels or ()), *(attributes or ()), *([vector] if vector else ())):
            if name not in train.column_names:
                raise ValueError(
                    f"A condition must be a column of the training data, one of {train.column_names}; got {name!r}. "
                    "(Columns of numbers of a .csv of frames are channels, unless `feature_columns` names these.)"
                )
        size = 0
        if vector is not None:
            lengths = {len(row) for row in _vectors(train, vector) if row is not None}
            if len(lengths) != 1:
                raise ValueError(f"`condition_column` {vector!r} must hold vectors of one length, got {lengths}.")
            (size,) = lengths
        names = {name: _value_names(train, name) for name in sorted(labels or ())}
        return cls(names, list(attributes or ()), vector, size)

    @classmethod
    def of_config(cls, config) -> "Conditions":
        """Those of a trained model."""
        labels, attributes = config.condition_labels or {}, config.condition_attributes or []
        vector = (config.condition_column or "condition") if config.condition_size else None
        return cls(labels, attributes, vector, config.condition_size)

    def add_to(self, split: Dataset, split_name: str = "test") -> Dataset:
        """A split with what its batches are to have; a column that it lacks is missing from every row.

        Raises:
            ValueError: for a value of a label that has no name.
        """
        wanted = [*self.labels, *self.attributes, *([self.vector] if self.vector is not None else [])]
        for name in wanted:
            if name not in split.column_names:
                message = "The %s split has no column %r, which conditions the model: it is missing from every row"
                logger.warning(message, split_name, name)
        columns = {}
        if self.labels:
            columns["class_ids"] = np.stack([self._ids(split, name, split_name) for name in self.labels], axis=1)
        if self.attributes:
            columns["attributes"] = np.stack([_numbers(split, name) for name in self.attributes], axis=1)
        if self.vector is not None:
            columns["condition"] = self._vectors(split)
        for name, values in columns.items():
            split = split.add_column(PREFIX + name, list(values))
        return split

    def _ids(self, split: Dataset, column: str, split_name: str) -> np.ndarray:
        ids = {name: i for i, name in enumerate(self.labels[column])}
        found = [None] * len(split)
        if column in split.column_names:
            found = value_names(split, column, "label_columns")
        if unknown := sorted({name for name in found if name is not None} - ids.keys()):
            raise ValueError(
                f"Label {column!r} has the values {', '.join(list(ids)[:20])}, but the {split_name} split has "
                f"{unknown[0]!r}."
            )
        return np.array([MISSING if name is None else ids[name] for name in found], dtype=np.int64)

    def _vectors(self, split: Dataset) -> np.ndarray:
        rows = _vectors(split, self.vector) if self.vector in split.column_names else [None] * len(split)
        rows = [[math.nan] * self.size if row is None else row for row in rows]
        if wrong := [len(row) for row in rows if len(row) != self.size]:
            raise ValueError(f"The vectors of {self.vector!r} must have {self.size} numbers each, one has {wrong[0]}.")
        return _finite(np.array(rows, dtype=np.float64), "condition_column", self.vector)

    def fields(self, train: Dataset, frequencies: bool) -> dict:
        """Those of a model's configuration: names, the attributes' scaling and, if asked for, how often each value is
        seen (one more time than it is, so that none is impossible)."""
        if not (self.labels or self.attributes or self.size):
            return {}
        fields = {"condition_labels": self.labels or None, "condition_attributes": self.attributes or None}
        fields |= {"condition_size": self.size, "condition_column": self.vector}
        if self.attributes:
            values = np.stack(train.with_format("numpy")[PREFIX + "attributes"][:]).astype(np.float64)
            if (empty := np.isnan(values).all(axis=0)).any():
                raise ValueError(f"Attribute {self.attributes[empty.argmax()]!r} has no value in the training data.")
            fields["attribute_mean"] = np.nanmean(values, axis=0).tolist()
            spread = np.nanstd(values, axis=0)
            fields["attribute_scale"] = np.where(spread > 0, spread, 1.0).tolist()
        if frequencies and len(self.labels) == 1:
            ids = _class_ids(train)[:, 0]
            counts = np.bincount(ids[ids != MISSING], minlength=len(next(iter(self.labels.values())))) + 1
            fields["label_frequencies"] = (counts / counts.sum()).tolist()
        return fields


def hide_labels(split: Dataset, keep: int, seed: int) -> Dataset:
    """A split with the labels of `keep` of its rows, as many of each value as there are, and the others missing.

    Raises:
        ValueError: where there is not exactly one label, or fewer labelled rows.
    """
    column, ids = PREFIX + "class_ids", _class_ids(split)
    if ids.shape[1] != 1 or keep > (ids != MISSING).sum():
        raise ValueError(
            f"`max_labeled_samples` {keep} keeps labels of one label column that has so many; there are "
            f"{ids.shape[1]} columns and {(ids != MISSING).sum()} labels."
        )
    shuffled = np.random.default_rng([seed, keep]).permutation(len(ids))
    shuffled = shuffled[ids[shuffled, 0] != MISSING]
    # In turns: the first of each value, then the second of each, and so on.
    turns = np.zeros(len(shuffled), int)
    for value in np.unique(ids[shuffled, 0]):
        of_value = ids[shuffled, 0] == value
        turns[of_value] = np.arange(of_value.sum())
    kept = shuffled[np.argsort(turns, kind="stable")[:keep]]
    hidden = np.full_like(ids, MISSING)
    hidden[kept] = ids[kept]
    return split.remove_columns(column).add_column(column, list(hidden))


def rows_of_epoch(split: Dataset, labeled_share: float = 0.0) -> np.ndarray:
    """Which rows an epoch has: each once, or those with a label repeated until they are this share of all.

    Few labels would else be seen once among thousands of rows, and teach a classifier next to nothing.

    Raises:
        ValueError: where there is not one label which some rows have and others have not.
    """
    rows = np.arange(len(split))
    if not labeled_share:
        return rows
    ids = _class_ids(split)
    known = (ids != MISSING).all(axis=1)
    if ids.shape[1] != 1 or known.all() or not known.any():
        raise ValueError(
            f"`labeled_share` {labeled_share} is of training data with one label, which some rows have and others "
            f"have not; there are {ids.shape[1]} labels, and {known.sum()} of {len(split)} rows have one."
        )
    others = len(split) - known.sum()
    times = max(1, round(labeled_share / (1 - labeled_share) * others / known.sum()))
    return np.concatenate([rows[~known], np.repeat(rows[known], times)])


def _class_ids(split: Dataset) -> np.ndarray:
    """Ids of each row's labels, [N, L]; [0, 0] where there is no label."""
    column = PREFIX + "class_ids"
    return np.stack(split.with_format("numpy")[column][:]) if column in split.column_names else np.zeros((0, 0), int)


def _value_names(split: Dataset, column: str) -> list[str]:
    feature = split.features[column]
    if isinstance(feature, ClassLabel):
        return feature.names
    if not isinstance(feature, Value):
        raise ValueError(f"`label_columns` must be of names or numbers, and {column!r} is of {feature}.")
    names = {name for name in value_names(split, column, "label_columns") if name is not None}
    if not names:
        raise ValueError(f"Label {column!r} has no value in the training data.")
    numeric = all(re.fullmatch("-?[0-9]+", name) for name in names)
    return sorted(names, key=lambda name: (int(name), name)) if numeric else sorted(names)


def _vectors(split: Dataset, column: str) -> list[list[float] | None]:
    rows = split[column][:]
    if wrong := [row for row in rows if not (row is None or isinstance(row, (list, np.ndarray)))]:
        raise ValueError(f"`condition_column` must be of vectors of numbers; {column!r} has {wrong[0]!r}.")
    return rows


def _numbers(split: Dataset, column: str) -> np.ndarray:
    if column not in split.column_names:
        return np.full(len(split), np.nan, dtype=np.float32)
    try:
        values = np.array([math.nan if v is None else float(v) for v in split[column][:]])
    except (TypeError, ValueError) as error:
        raise ValueError(f"`attribute_columns` must be of numbers; {column!r} is {split.features[column]}.") from error
    return _finite(values, "attribute_columns", column)


def _finite(values: np.ndarray, option: str, column: str) -> np.ndarray:
    """Values of each row, in float32."""
    with np.errstate(over="ignore"):  # what is too big becomes infinite
        values = values.astype(np.float32)
    infinite = np.isinf(values)
    if infinite.any():
        raise ValueError(
            f"`{option}` must be of finite numbers, but {column!r} has {values[infinite][0]} in row "
            f"{np.argwhere(infinite)[0, 0]}. Leave the value out where it is missing."
        )
    return values
