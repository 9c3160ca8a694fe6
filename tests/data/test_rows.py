import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets

from hf_vrae.data.rows import Rows
from hf_vrae.data.signals import generate_frames


def tokens(n):
    return Dataset.from_dict({"input_ids": [[2, *range(4, 4 + i), 3] for i in range(n)]})


def frames(n):
    return generate_frames(n, 1, 1, seed=n)["train"]


@pytest.mark.parametrize(("pieces", "name"), [(tokens, "input_ids"), (frames, "input_features")])
@pytest.mark.parametrize("with_conditions", [False, True])
def test_rows_are_those_of_the_split(pieces, name, with_conditions):
    """Of a table in several pieces, shuffled, and asked for in any order, twice too."""
    split = concatenate_datasets([pieces(5), pieces(7)])
    if with_conditions:
        split = split.add_column("batch.class_ids", [[i, -i] for i in range(12)])
        split = split.add_column("class_ids", [[0]] * 12)  # a user's own
    split = split.shuffle(seed=0)
    indices = [3, 11, 0, 3, 7]
    rows = Rows(split)
    assert len(rows) == 12
    found = rows.__getitems__(indices)
    assert [row[name].tolist() for row in found] == [split[i][name] for i in indices]
    if with_conditions:
        assert [row["class_ids"].tolist() for row in found] == [split[i]["batch.class_ids"] for i in indices]
    assert all(row.keys() == {name, *(["class_ids"] if with_conditions else [])} for row in found)
    if name == "input_features":
        assert all(row[name].dtype == np.float32 and row[name].ndim == 2 for row in found)
