"""From columns of a data set to what a batch stands under."""

import math

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value

from hf_vrae.data.collators import AutoencodingCollator, FrameCollator
from hf_vrae.data.conditions import Conditions, hide_labels, rows_of_epoch
from hf_vrae.data.datasets import load_text
from hf_vrae.data.frames import load_frames
from hf_vrae.data.rows import Rows


def rows(**columns):
    count = len(next(iter(columns.values())))
    ids = [[2, *range(4, 5 + i), 3] for i in range(count)]
    return Dataset.from_dict({"text": ["a"] * count, "input_ids": ids, "length": list(map(len, ids)), **columns})


def batch_of(split, collator=None):
    return (collator or AutoencodingCollator(0))(Rows(split).__getitems__(list(range(len(split)))))


def test_columns_become_what_a_batch_has():
    train = rows(
        mood=["sad", None, "glad", ""],
        stars=[10, 9, 2, 9],
        length_in_words=[1.0, 2.0, math.nan, 3.0],
        vector=[[1.0, 2.0], [3.0, 4.0], None, [5.0, 6.0]],
    )
    conditions = Conditions.fit(train, ["stars", "mood"], ["length_in_words"], "vector")
    assert conditions.labels == {"mood": ["glad", "sad"], "stars": ["2", "9", "10"]}  # labels in order, as a config
    split = conditions.add_to(train, "train")
    batch = batch_of(split)
    assert batch["class_ids"].tolist() == [[1, 2], [-100, 1], [0, 0], [-100, 1]]
    np.testing.assert_array_equal(batch["attributes"].numpy(), [[1], [2], [math.nan], [3]])
    np.testing.assert_array_equal(batch["condition"].numpy()[[0, 2]], [[1, 2], [math.nan] * 2])
    assert batch["input_ids"].shape == (4, 6) and batch["class_ids"].dtype == torch.int64
    fields = conditions.fields(split, frequencies=False)
    assert fields["condition_size"] == 2 and "label_frequencies" not in fields
    assert fields["attribute_mean"] == [2.0] and fields["attribute_scale"] == pytest.approx([math.sqrt(2 / 3)])


def test_without_conditions_rows_are_as_ever():
    split = Conditions().add_to(rows(attributes=[[1.0], [2.0]]))
    assert set(batch_of(split)) == {"input_ids", "attention_mask", "labels"}
    assert Conditions().fields(split, True) == {}


def test_classes_keep_their_order_and_what_lacks_a_column_is_missing():
    features = Features({"text": Value("string"), "kind": ClassLabel(names=["z", "a"])})
    train = Dataset.from_dict({"text": ["x", "y", "w"], "kind": [0, 1, -1]}, features=features)
    conditions = Conditions.fit(train, ["kind"], None, None)
    assert conditions.labels == {"kind": ["z", "a"]}
    for values, named in ((["1", "01", "10", "-2"], ["-2", "01", "1", "10"]), (["--1", "2"], ["--1", "2"])):
        assert Conditions.fit(rows(kind=values), ["kind"], None, None).labels == {"kind": named}
    test = conditions.add_to(rows(other=[1, 2]))
    assert batch_of(test)["class_ids"].tolist() == [[-100], [-100]]
    with pytest.raises(ValueError, match="'kind' has the values z, a, but the test split has 'new'"):
        conditions.add_to(rows(kind=["a", "new"]), "test")
    with pytest.raises(ValueError, match="must be a column of the training data"):
        Conditions.fit(train, ["colour"], None, None)
    for numbers in (rows(kind=["a", "b"], vector=[1.0, 2.0]), rows(kind=["a", "b"], vector=["x", "y"])):
        with pytest.raises(ValueError, match="must be of vectors of numbers"):
            Conditions.fit(numbers, None, None, "vector")


def test_hidden_labels_are_as_many_of_each_value():
    train = rows(kind=["a"] * 30 + ["b"] * 6 + ["c"] * 4 + [None] * 5)
    conditions = Conditions.fit(train, ["kind"], None, None)
    split = conditions.add_to(train)
    hidden = batch_of(hide_labels(split, 15, seed=1))["class_ids"][:, 0]
    own = batch_of(split)["class_ids"][:, 0]
    kept = hidden != -100
    assert torch.equal(hidden[kept], own[kept]) and torch.bincount(hidden[kept]).tolist() == [6, 5, 4]
    again, other = (batch_of(hide_labels(split, 15, seed=s))["class_ids"][:, 0] for s in (1, 2))
    assert torch.equal(again, hidden) and not torch.equal(other, hidden)
    frequencies = conditions.fields(hide_labels(split, 15, seed=1), frequencies=True)["label_frequencies"]
    assert frequencies == pytest.approx([7 / 18, 6 / 18, 5 / 18])
    with pytest.raises(ValueError, match="there are 1 columns and 40 labels"):
        hide_labels(split, 41, seed=1)


def test_labelled_rows_come_so_often_that_they_are_a_share_of_an_epoch():
    train = rows(kind=["a", None, "b"] + [None] * 27)
    split = Conditions.fit(train, ["kind"], None, None).add_to(train)
    assert rows_of_epoch(split).tolist() == list(range(30))
    for share, times in ((0.5, 14), (0.2, 4), (0.01, 1)):  # 28 of 56, 8 of 36, at least once
        counts = np.bincount(rows_of_epoch(split, share))
        assert counts[[0, 2]].tolist() == [times] * 2 and counts.sum() == 28 + 2 * times and counts.min() == 1
    for kind in (["a", "b"], [None, None]):
        split = Conditions.fit(train, ["kind"], None, None).add_to(rows(kind=kind))
        with pytest.raises(ValueError, match="one label, which some rows have and others have not"):
            rows_of_epoch(split, 0.5)
    with pytest.raises(ValueError, match="there are 0 labels"):
        rows_of_epoch(train, 0.5)


def test_labels_of_files(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text('label\ttext\n1\tso "good\n0\tbad\n')
    train = load_text(str(path))["train"]
    conditions = Conditions.fit(train, ["label"], None, None)
    assert conditions.labels == {"label": ["0", "1"]}
    np.savez(tmp_path / "a.npz", train_x=np.zeros((3, 4, 2)), train_y=np.array([2, 0, 2]))
    train = load_frames(str(tmp_path / "a.npz"))["train"]
    split = Conditions.fit(train, ["label"], None, None).add_to(train)
    batch = batch_of(split, FrameCollator())
    assert batch["class_ids"].tolist() == [[1], [0], [1]] and batch["input_features"].shape == (3, 4, 2)


def test_a_column_that_is_not_there_is_told(caplog):
    train = rows(kind=["a", "b"], score=[1.0, 2.0])
    conditions = Conditions.fit(train, ["kind"], ["score"], None)
    conditions.add_to(train, "train")
    assert not caplog.records
    conditions.add_to(rows(Kind=["a", "b"], score=[1.0, 2.0]), "validation")
    assert "The validation split has no column 'kind', which conditions the model" in caplog.text


@pytest.mark.parametrize("value", [math.inf, 1e39])
def test_an_attribute_without_end_is_refused(value):
    train = rows(score=[1.0, value])
    with pytest.raises(ValueError, match="of finite numbers, but 'score' has inf in row 1"):
        Conditions.fit(train, None, ["score"], None).add_to(train)
    train = rows(vector=[[1.0, 2.0], [3.0, value]])
    with pytest.raises(ValueError, match="`condition_column` must be of finite numbers, but 'vector' has inf in row"):
        Conditions.fit(train, None, None, "vector").add_to(train)


def test_an_attribute_without_a_value_is_refused():
    train = rows(score=[math.nan, math.nan])
    conditions = Conditions.fit(train, None, ["score"], None)
    with pytest.raises(ValueError, match="'score' has no value in the training data"):
        conditions.fields(conditions.add_to(train, "train"), frequencies=False)
