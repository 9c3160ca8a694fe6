"""The rows of a split, as collators take them."""

import itertools

import numpy as np
import pyarrow as pa
from datasets import Dataset

PREFIX = "batch."  # of columns made here for the batches: a user's own "segment_ids" or "attributes" is none of them


class Rows:
    """The sequences of a split for a `DataLoader`: a batch of them in one look at the memory-mapped table.

    `datasets` would make an array of each by itself; a small model would wait for that.

    Args:
        split: with a column `input_ids` or `input_features`, and beside it what [`Conditions.add_to`] and
            [`load_frames`] make for the batches.
    """

    def __init__(self, split: Dataset):
        self.name = "input_features" if "input_features" in split.column_names else "input_ids"
        self.sequences = split.with_format("arrow", columns=[self.name])
        beside = [name for name in split.column_names if name.startswith(PREFIX)]
        self.beside = split.with_format("numpy", columns=beside) if beside else None

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitems__(self, indices: list[int]) -> list[dict[str, np.ndarray]]:
        """Dictionaries of `input_ids` [T], or of `input_features` [T, F], float32; beside them conditions and
        segments."""
        steps, bounds = view(plain(self.sequences[indices][self.name]))
        rows = [{self.name: steps[start:end]} for start, end in itertools.pairwise(bounds)]
        for name, values in (self.beside[indices] if self.beside else {}).items():
            for row, value in zip(rows, values, strict=True):
                row[name.removeprefix(PREFIX)] = value
        return rows


def plain(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece, and without what `datasets` wraps around arrays."""
    array = column.combine_chunks()
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def view(sequences: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [sum of T] or frames [sum of T, F], not copied, and the bounds of the sequences [N + 1] among them."""
    steps = sequences.values
    if pa.types.is_fixed_size_list(steps.type):
        return steps.flatten().to_numpy().reshape(-1, steps.type.list_size), sequences.offsets.to_numpy()
    return steps.to_numpy(), sequences.offsets.to_numpy()
