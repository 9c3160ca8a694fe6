"""Frames: every way that they come in, good and bad; windows, scaling, batches; the built-in signals."""

import hashlib
import json
import math

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, concatenate_datasets
from torch.distributions import MultivariateNormal

from hf_vrae.data.collators import FrameCollator
from hf_vrae.data.datasets import attribute_values, split_validation
from hf_vrae.data.frames import (
    check_frames,
    cut_windows,
    fit_scaling,
    frames_fingerprint,
    load_frames,
    make_frames,
    num_channels,
)
from hf_vrae.data.rows import Rows
from hf_vrae.data.signals import ANGLES, DAMPING, LOADINGS, NOISE, generate_frames, log_prob

LENGTHS = np.array([3, 1, 4])
FRAMES = np.arange(16, dtype=np.float32).reshape(8, 2)
SEQUENCES = [FRAMES[:3], FRAMES[3:4], FRAMES[4:]]
LABELS = np.array([2, 0, 1])


@pytest.fixture
def write(tmp_path):
    def write(name, content=None, **arrays):
        path = tmp_path / name
        if arrays:
            np.savez(path, **arrays)
        elif isinstance(content, np.ndarray):
            np.save(path, content)
        else:
            path.write_text(content)
        return str(path)

    return write


def sequences(split):
    return [row["input_features"] for row in Rows(split).__getitems__(list(range(len(split))))]


def assert_are(split, expected):
    found = sequences(split)
    assert split["length"][:] == [len(sequence) for sequence in expected] == [len(sequence) for sequence in found]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_array_equal(one, other)


def test_arrays_of_one_split(write):
    train = load_frames(write("a.npz", x=FRAMES, lengths=LENGTHS, y=LABELS, weight=LABELS / 2))["train"]
    assert_are(train, SEQUENCES)
    assert train["label"][:] == LABELS.tolist() and train["weight"][:] == [1, 0, 0.5]
    padded = np.full((3, 4, 2), 9, dtype=np.float64)
    for row, sequence in zip(padded, SEQUENCES, strict=True):
        row[: len(sequence)] = sequence
    assert_are(load_frames(write("b.npz", x=padded, lengths=LENGTHS))["train"], SEQUENCES)
    assert_are(load_frames(write("c.npz", x=padded))["train"], padded)


def test_several_splits_in_one_file(write):
    path = write(
        "a.npz",
        train_roll=FRAMES > 7,
        train_lengths=LENGTHS,
        train_y=LABELS,
        valid_roll=FRAMES[:4].astype(np.uint8),
        valid_lengths=LENGTHS[:2],
        test_roll=FRAMES[None],
        test_y=np.array([1]),
        label_names=np.array(["a", "b", "c"]),
    )
    data = load_frames(path)
    assert list(data) == ["train", "validation", "test"]
    assert_are(data["train"], [sequence > 7 for sequence in SEQUENCES])
    assert_are(data["validation"], SEQUENCES[:2])
    assert_are(data["test"], [FRAMES])
    assert attribute_values(data["train"], "label") == ["c", "a", "b"]
    beside = load_frames(path, test_file=path)
    assert list(beside) == ["train", "test"]
    assert_are(beside["test"], [FRAMES])
    with pytest.raises(ValueError, match=r"must hold the test split it is given for; it holds \['train'\]"):
        load_frames(path, test_file=write("b.npz", train_x=FRAMES))
    with pytest.raises(ValueError, match=r"must hold the train split it is given for; it holds \['test'\]"):
        load_frames(write("c.npz", test_x=FRAMES))


def test_plain_arrays(write):
    assert_are(load_frames(write("a.npy", FRAMES.reshape(2, 4, 2)))["train"], FRAMES.reshape(2, 4, 2))
    path = write("b.npy", FRAMES)
    assert_are(load_frames(path)["train"], FRAMES[:, :, None])  # eight sequences of one channel
    assert_are(load_frames(path, window=5)["train"], [FRAMES[:5], FRAMES[5:]])  # one series of two channels
    assert_are(load_frames(write("c.npy", FRAMES[:, 0]))["train"], [FRAMES[:, :1]])


def test_tables_of_steps(write):
    """Rows of two sequences in turns; an empty cell is missing, what changes within a sequence is not of it."""
    path = write("a.csv", "who,t,a,b,label,note\nx,0,1,,1,p\ny,0,2,5,0,q\nx,1,3,6,1,r\ny,1,4,7,0,s\n")
    train = load_frames(path, sequence_column="who", feature_columns=["a", "b"])["train"]
    assert_are(train, [[[1, np.nan], [3, 6]], [[2, 5], [4, 7]]])
    assert train.column_names == ["input_features", "length", "who", "label"]
    assert train["who"][:] == ["x", "y"] and train["label"][:] == [1, 0]
    everything = load_frames(path, sequence_column="who")["train"]
    assert_are(everything, [[[0, 1, np.nan], [1, 3, 6]], [[0, 2, 5], [1, 4, 7]]])
    assert_are(load_frames(path, feature_columns=["b"])["train"], [[[np.nan], [5], [6], [7]]])
    for begin, end in (
        ("", ""),
        ("", "\n"),
        ("", "\n\n"),
        ("\n", "\n"),
    ):  # an empty cell of the only column is a blank line
        assert_are(load_frames(write("c.csv", begin + "x\n0\n\n2\n" + end))["train"], [[[0], [np.nan], [2]]])
    assert_are(load_frames(write("d.csv", "x\n0\nNaN\n"))["train"], [[[0], [np.nan]]])
    assert_are(load_frames(write("e.csv", "x\nNaN\nNaN\n"))["train"], [[[np.nan], [np.nan]]])
    named = write(
        "n.csv", "who,a,label\nNA,1,None\nNA,NaN,None\nx,3,walk\ny,4,\n"
    )  # names are words, numbers are none
    named = load_frames(named, sequence_column="who")["train"]
    assert named["who"][:] == ["NA", "x", "y"] and named["label"][:] == ["None", "walk", None]
    assert_are(named, [[[1], [np.nan]], [[3]], [[4]]])
    for names in ("0", "0,1", "21,22"):
        row = ",".join("1" * len(names.split(",")))
        assert num_channels(load_frames(write("h.csv", f"{names}\n{row}\n"))["train"]) == len(names.split(","))
    silent = write("b.csv", "a,b\n" + "1,\n" * 20_000 + "1,0.5\n")  # a column's kind is that of the whole file
    assert sequences(load_frames(silent)["train"])[0][-1].tolist() == [1, 0.5]


def test_tables_in_another_encoding(tmp_path):
    path = str(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("grün,b\n1,2\n3,4\n", "latin-1")
    with pytest.raises(ValueError, match="name its encoding with --encoding"):
        load_frames(path)
    assert sequences(load_frames(path, encoding="latin-1")["train"])[0].tolist() == [[1, 2], [3, 4]]


def test_rows_of_lists(write, tmp_path):
    rows = [{"values": sequence.tolist(), "label": int(y)} for sequence, y in zip(SEQUENCES, LABELS, strict=True)]
    rows[0]["values"][1][0] = None
    expected = [np.array([[0, 1], [np.nan, 3], [4, 5]]), *SEQUENCES[1:]]
    for name, content in (("a.json", json.dumps(rows)), ("a.jsonl", "\n".join(map(json.dumps, rows)))):
        train = load_frames(write(name, content))["train"]
        assert_are(train, expected)
        assert train["label"][:] == LABELS.tolist()
    data = (
        Dataset.from_list(rows).add_column("other", [[1, 2]] * 3).cast_column("label", ClassLabel(names=list("abc")))
    )
    DatasetDict(train=data, dev=data.select([2])).save_to_disk(tmp_path / "saved")
    loaded = load_frames(dataset_name=str(tmp_path / "saved"), features_column="values")
    assert_are(loaded["validation"], SEQUENCES[2:])
    assert attribute_values(loaded["train"], "label") == ["c", "a", "b"]
    cut = load_frames(dataset_name=str(tmp_path / "saved"), features_column="values", window=3)["train"]
    assert_are(cut, [*expected[:2], SEQUENCES[2][:3], SEQUENCES[2][3:]])
    assert cut["label"][:] == [2, 0, 1, 1] and cut["other"][:] == [[1, 2]] * 4
    with pytest.raises(ValueError, match=r"`features_column` must name.*has \['values', 'other'\]"):
        load_frames(dataset_name=str(tmp_path / "saved"))


def test_lists_of_numbers_have_one_channel(write):
    Dataset.from_dict({"heart": [[1, 2, 3], [4]], "name": ["a", "b"]}).to_parquet(path := write("a.parquet", ""))
    assert_are(load_frames(path)["train"], [[[1], [2], [3]], [[4]]])


def test_what_was_loaded_loads_again(tmp_path):
    data = generate_frames(7, 2, 2)
    data.save_to_disk(tmp_path / "saved")
    again = load_frames(dataset_name=str(tmp_path / "saved"))["train"]
    assert frames_fingerprint(again) == frames_fingerprint(data["train"])
    assert again.features == data["train"].features and again["true_log_prob"][:] == data["train"]["true_log_prob"][:]


@pytest.mark.parametrize(
    ("length", "window", "stride", "expected"),
    [
        (10, 4, 4, [(0, 4), (4, 8), (8, 10)]),
        (8, 4, 4, [(0, 4), (4, 8)]),
        (3, 4, 4, [(0, 3)]),
        (10, 4, 2, [(0, 4), (2, 6), (4, 8), (6, 10)]),
        (11, 4, 2, [(0, 4), (2, 6), (4, 8), (6, 10), (8, 11)]),
        (10, 2, 4, [(0, 2), (4, 6), (8, 10)]),
        (8, 2, 4, [(0, 2), (4, 6)]),
        (7, 2, 6, [(0, 2), (6, 7)]),
    ],
)
def test_windows(length, window, stride, expected):
    """Of the second of two sequences, behind one that fits a window."""
    series = np.arange(length, dtype=np.float32)[:, None]
    known = Dataset.from_dict({"label": ["first", "second"]})
    split = make_frames(np.concatenate([series[:1], series]), np.array([1, length]), known, window, stride)
    assert_are(split, [series[:1], *(series[start:end] for start, end in expected)])
    assert split["label"][:] == ["first"] + ["second"] * len(expected)


def test_the_truth_about_a_sequence_is_none_about_its_windows(tmp_path):
    generate_frames(3, 1, 1)["train"].to_parquet(tmp_path / "a.parquet")
    for window in (None, 5):
        columns = load_frames(str(tmp_path / "a.parquet"), window=window)["train"].column_names
        assert ("true_log_prob" in columns) == (window is None) and "label" in columns


def test_windows_of_every_kind_of_file_are_a_stride_apart(write, tmp_path):
    series = FRAMES[:5]
    Dataset.from_dict({"x": [series.tolist()]}).save_to_disk(tmp_path / "saved")
    for source in (
        {"train_file": write("a.npz", x=series[None])},
        {"train_file": write("a.npy", series)},
        {"train_file": write("a.csv", "a,b\n" + "".join(f"{a},{b}\n" for a, b in series))},
        {"train_file": write("a.jsonl", json.dumps({"x": series.tolist()}))},
        {"dataset_name": str(tmp_path / "saved")},
    ):
        assert_are(load_frames(**source, window=4, stride=1)["train"], [series[:4], series[1:]])


def test_the_number_of_a_segment_is_no_channel(write):
    train = load_frames(write("a.csv", "a,bar\n5,0\n6,0\n7,1\n"), segment_column="bar")["train"]
    assert_are(train, [[[5], [6], [7]]])
    assert [row["segment_ids"].tolist() for row in Rows(train).__getitems__([0])] == [[0, 0, 1]]


def test_segments_are_read_from_every_kind_of_file(write):
    bars = [[0, 0, 1], [0], [0, 0, 1, 2]]  # of the three sequences
    flat = np.concatenate(bars)
    steps = [
        f"{who},{a},{b},bar {bar}"
        for who, frames, ids in zip("xyz", SEQUENCES, bars, strict=True)
        for (a, b), bar in zip(frames, ids, strict=True)
    ]
    rows = [{"frames": s.tolist(), "bar": ids} for s, ids in zip(SEQUENCES, bars, strict=True)]
    padded = np.zeros((3, 4, 2)), np.zeros((3, 4), int)
    for i, (sequence, ids) in enumerate(zip(SEQUENCES, bars, strict=True)):
        padded[0][i, : len(ids)], padded[1][i, : len(ids)] = sequence, ids
    for path, options in (
        (write("a.npz", x=FRAMES, lengths=LENGTHS, bar=flat), {"features_column": "x"}),
        (write("b.npz", x=padded[0], lengths=LENGTHS, bar=padded[1]), {}),
        (write("a.csv", "\n".join(["who,a,b,bar", *steps])), {"sequence_column": "who"}),
        (write("a.jsonl", "\n".join(map(json.dumps, rows))), {}),
    ):
        train = load_frames(path, segment_column="bar", **options)["train"]
        assert_are(train, SEQUENCES)
        batch = FrameCollator(pad_to_multiple_of=5)(Rows(train).__getitems__([2, 0]))
        assert batch["segment_ids"].tolist() == [[0, 0, 1, 2, -1], [0, 0, 1, -1, -1]]
        assert batch["input_features"].shape == (2, 5, 2)
        halves = Rows(cut_windows(train, 2)).__getitems__([0, 1, 2, 3, 4])
        assert [row["segment_ids"].tolist() for row in halves] == [[0, 0], [1], [0], [0, 0], [1, 2]]
    series = load_frames(write("d.npz", x=FRAMES, bar=flat), features_column="x", segment_column="bar", window=5)
    rows = Rows(series["train"]).__getitems__([0, 1])
    assert [row["segment_ids"].tolist() for row in rows] == [[0, 0, 1, 0, 0], [0, 1, 2]]


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.npy", FRAMES, {"segment_column": "bar"}, r"`segment_column` must be an array of .*\['x'\]; got 'bar'"),
        (
            "a.npz",
            {"x": FRAMES, "lengths": LENGTHS, "bar": LENGTHS},
            {"features_column": "x", "segment_column": "bar"},
            r"'bar' of .* must have a value for each frame of 'x', whose shape is \(8, 2\); its own is \(3,\)",
        ),
        ("a.csv", "a\n1\n", {"segment_column": "s"}, r"`segment_column` must be a column of .*\['a'\]; got 's'"),
        (
            "a.jsonl",
            '{"x": [[1], [2]], "bar": [0, 1]}\n{"x": [[1], [2]], "bar": [0]}',
            {"features_column": "x", "segment_column": "bar"},
            "`segment_column` 'bar' must have a number for each frame, but row 1 .* has 1 for 2 frames",
        ),
        ("a.jsonl", '{"x": [[1]], "bar": 0}', {"segment_column": "bar"}, "`segment_column` must name a column of l"),
        ("a.wav", "x", {}, r"must end in \.npz.*got '\.wav'"),
        ("a.npz", "not a zip", {}, r"cannot be read as \.npz"),
        ("a.npz", {"x": np.array([[1], [2, 3]], dtype=object)}, {}, "of plain arrays"),
        ("a.npz", {"x": FRAMES, "z": FRAMES}, {}, r"`features_column` must name.*one of \['x', 'z'\]; got None"),
        ("a.npz", {"x": FRAMES, "lengths": LENGTHS[:2]}, {}, "are 8, but `lengths` add up to 4"),
        ("a.npz", {"x": FRAMES, "lengths": LENGTHS / 2}, {}, "`lengths` of .* must be counts"),
        (
            "a.npz",
            {"x": FRAMES, "lengths": LENGTHS / 2, "bar": np.zeros(8, dtype=int)},
            {"features_column": "x", "segment_column": "bar"},
            "`lengths` of .* must be counts",
        ),
        ("a.npz", {"x": FRAMES[None], "lengths": [9]}, {}, "which `lengths` must fit; got 1 of at most 9"),
        ("a.npz", {"x": FRAMES, "lengths": LENGTHS, "y": LABELS[:2]}, {}, "'label'.*each of the 3 sequences"),
        ("a.npz", {"x": FRAMES, "lengths": LENGTHS, "y": LABELS, "label_names": ["a"]}, {}, "number the 1 `label_n"),
        ("a.npz", {"x": FRAMES * 1j}, {}, "must be real numbers; got complex"),
        (
            "a.npz",
            {"x": FRAMES, "test_idx": LENGTHS},
            {},
            r"of splits, \['test_idx'\], and others, \['x'\]: begin the",
        ),
        ("a.csv", "a,b\n0,0,0\n1,2,3\n", {}, "a row has more fields than the header"),
        ("a.npy", FRAMES.reshape(2, 2, 2, 2), {}, "must have 1 to 3 dimensions"),
        ("a.npy", FRAMES[:0], {}, "are none"),
        (
            "a.csv",
            "a,b\n1,x\n",
            {"feature_columns": ["a", "b", "c"]},
            r"columns of numbers .*\['a'\]; got \['b', 'c'\]",
        ),
        ("a.csv", "a\nx\n", {}, "has no column of numbers"),
        ("a.csv", "a,b\n1,2\n3,?\n5,6\n", {}, r"Column 'b' .* is of numbers but for '\?': leave the cell empty"),
        ("a.csv", "a,b\n1,?\n3,4\n", {"feature_columns": ["b"]}, r"got \['b'\], where 'b' holds '\?'"),
        ("a.csv", "0.5,0.5,1e3\n1,2,3\n", {}, r"must name the columns, and it is of numbers: \['0.5', '0.5.1'"),
        (
            "a.csv",
            "5\n3\n4\n",
            {},
            r"of numbers: \['5'\]. Write a header above it, of words, or of whole numb",
        ),
        ("a.csv", "3,1,2\n0,0,0\n", {}, r"it is of numbers: \['3', '1', '2'\]"),
        ("a.jsonl", '{"x": [1, 2], "s": [0, null]}', {"segment_column": "s"}, "'s' of .* has empty values. Fill them"),
        ("a.npz", {"x": FRAMES, "y": LABELS, "label": LABELS}, {}, "has both `y` and `label`, which are one"),
        ("a.csv", "a,s\n1,x\n2,\n", {"sequence_column": "s"}, "'s' of .* is empty in 1 rows"),
        ("a.csv", "a\n1\n", {"sequence_column": "s"}, r"`sequence_column` must be a column of .*\['a'\]; got 's'"),
        ("a.jsonl", '{"x": [[1, 2]]}\n{"x": [[1, 2], [3]]}', {}, "first one, 2.*in row 1 of column 'x'.* has 1"),
        ("a.jsonl", '{"x": []}', {}, "holds no frames: its 1 rows are empty"),
        ("a.jsonl", '{"x": "text"}', {}, r"lists of numbers or of vectors.* has \[\] of its columns \['x'\]"),
        ("a.npy", FRAMES, {"window": 0}, "`window` must be at least 1 frame; got 0"),
        ("a.npy", FRAMES, {"stride": 2}, "needs a `window`; got 2"),
    ],
)
def test_bad_files(name, content, options, message, write):
    path = write(name, **content) if isinstance(content, dict) else write(name, content)
    with pytest.raises(ValueError, match=message):
        load_frames(path, **options)


def test_missing_file():
    with pytest.raises(ValueError, match="There is no file 'nowhere.npz'"):
        load_frames("nowhere.npz")


def splits(frames, lengths=LENGTHS):
    good = np.resize(FRAMES % 2, (8, frames.shape[1]))
    return DatasetDict(train=make_frames(good, LENGTHS), test=make_frames(frames, lengths))


def changed(frame, channel, value):
    frames = FRAMES % 2
    frames[frame, channel] = value
    return splits(frames)


def test_good_frames_pass():
    check_frames(changed(3, 1, np.nan), binary=True)
    check_frames(changed(3, 1, np.nan), levels=2)
    check_frames(changed(3, 1, -0.5))


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (splits(FRAMES, [3, 0, 5]), {}, "sequence 1 of the test split has none"),
        (splits(FRAMES[:0], []), {}, "test split holds no sequence"),
        (DatasetDict(splits(FRAMES), validation=splits(FRAMES[:, :1])["test"]), {}, "'test': 2, 'validation': 1"),
        (changed(6, 1, np.inf), {}, "finite, but in the test split sequence 2 has inf in channel 1, frame 2"),
        (changed(3, 0, -np.inf), {"binary": True}, "finite, .* sequence 1 has -inf in channel 0, frame 0"),
        (changed(2, 1, 0.5), {"binary": True}, "0 or 1 for this head, .* sequence 0 has 0.5 in channel 1, frame 2"),
        (changed(7, 1, 2), {"levels": 2}, "an integer from 0 to 1, .* sequence 2 has 2.0 in channel 1, frame 3"),
        (changed(7, 1, -1), {"levels": 2}, "sequence 2 has -1.0"),
        (changed(7, 1, 0.5), {"levels": 2}, "sequence 2 has 0.5"),
        (DatasetDict(train=make_frames(FRAMES * [1, np.nan], LENGTHS)), {}, "channel 1 is missing throughout"),
    ],
)
def test_bad_frames(data, options, message):
    with pytest.raises(ValueError, match=message):
        check_frames(data, **options)


def test_faults_beyond_the_first_thousand_rows_are_found_where_they_are():
    frames = np.zeros((5000, 3), dtype=np.float32)
    frames[2 * 1717 + 1, 2] = np.inf
    split = make_frames(frames, np.full(2500, 2))
    with pytest.raises(ValueError, match="sequence 1717 has inf in channel 2, frame 1"):
        check_frames(DatasetDict(train=split))
    shuffled = split.select(range(2499, -1, -1))
    with pytest.raises(ValueError, match="sequence 782 has inf in channel 2, frame 1"):
        check_frames(DatasetDict(train=shuffled))


def test_scaling_is_of_the_values_that_are_there():
    rng = np.random.default_rng(0)
    frames = rng.standard_normal((6000, 3)) * [1, 1e-3, 100] + [0, 100, -1e4]
    frames = np.where(rng.random(frames.shape) < 0.3, np.nan, frames).astype(np.float32)
    mean, scale = fit_scaling(make_frames(frames, np.full(2000, 3)))
    np.testing.assert_allclose(mean, np.nanmean(frames.astype(np.float64), axis=0), rtol=1e-12)
    np.testing.assert_allclose(scale, np.nanstd(frames.astype(np.float64), axis=0), rtol=1e-9)


@pytest.mark.parametrize(
    ("channel", "message"),
    [([0.1, np.nan] * 4, "channel 1 .* is 0.1.* wherever"), ([np.nan] * 8, "channel 1 .* missing")],
)
def test_scaling_needs_channels_that_vary(channel, message):
    frames = np.stack([FRAMES[:, 0], np.array(channel, dtype=np.float32)], axis=1)
    with pytest.raises(ValueError, match=message):
        fit_scaling(make_frames(frames, LENGTHS))


def test_fingerprint_is_of_lengths_and_values_in_order():
    split = make_frames(FRAMES, LENGTHS)
    expected = hashlib.sha256(LENGTHS.astype("<i8").tobytes() + FRAMES.tobytes()).hexdigest()
    assert frames_fingerprint(split) == frames_fingerprint(concatenate_datasets([split])) == expected
    others = [make_frames(FRAMES, LENGTHS[::-1]), make_frames(FRAMES + 1, LENGTHS), split.select([1, 0, 2])]
    assert len({expected, *map(frames_fingerprint, others)}) == 4
    both = split.select([1, 0, 2]).select([1, 0, 2])
    assert frames_fingerprint(both) == expected


def test_validation_is_taken_from_frames_too():
    data = split_validation(DatasetDict(train=generate_frames(20, 1, 1)["train"]), 10, seed=0)
    assert len(data["train"]) == 18 and num_channels(data["validation"]) == 4
    check_frames(data)


def test_collator():
    first = np.array([[1, np.nan], [3, 4], [5, 6]], dtype=np.float32)
    row = {"input_features": [[7, 8], [9, 9], [9, 9]], "attention_mask": [1, 0, 0]}
    batch = FrameCollator(pad_to_multiple_of=2)([first, row])
    nan = float("nan")
    features = [[[1, nan], [3, 4], [5, 6], [0, 0]], [[7, 8], [0, 0], [0, 0], [0, 0]]]
    labels = [[[1, nan], [3, 4], [5, 6], [nan, nan]], [[7, 8], *[[nan, nan]] * 3]]
    torch.testing.assert_close(batch["input_features"], torch.tensor(features), equal_nan=True)
    torch.testing.assert_close(batch["labels"], torch.tensor(labels), equal_nan=True)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert batch["attention_mask"].dtype == torch.int64
    assert FrameCollator()([np.ones(3)])["input_features"].shape == (1, 3, 1)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([FRAMES, {"input_features": FRAMES, "attention_mask": [1] * 7}], r"in example 1 it is \[1, .* \(8, 2\)"),
        ([{"input_features": FRAMES, "attention_mask": [0, *[1] * 7]}], "ones and then zeros"),
        ([{"input_features": FRAMES, "attention_mask": [2] * 8}], "ones and then zeros"),
        ([FRAMES, FRAMES[:0]], "example 1 of the batch has none"),
        ([FRAMES, FRAMES[:, :1]], r"same number of channels; got \[2, 1\]"),
    ],
)
def test_batches_that_cannot_be(examples, message):
    with pytest.raises(ValueError, match=message):
        FrameCollator()(examples)


def test_likelihood_of_signals_is_that_of_the_joint_normal():
    """cov(z_s, z_t) = (DAMPING R)^(t-s), since z is stationary with covariance I."""
    frames = np.random.default_rng(0).standard_normal((5, 6, 4))
    lengths = np.array([6, 1, 4, 6, 2])
    of_classes = []
    for angle in ANGLES.values():
        step = DAMPING * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        blocks = [[np.linalg.matrix_power(step, s - t) if s >= t else np.linalg.matrix_power(step, t - s).T
                   for t in range(6)] for s in range(6)]  # fmt: skip
        spread = np.kron(np.eye(6), LOADINGS) @ np.block(blocks) @ np.kron(np.eye(6), LOADINGS).T
        spread = torch.from_numpy(spread + NOISE**2 * np.eye(24))
        of_classes.append(
            [
                MultivariateNormal(torch.zeros(4 * n).double(), spread[: 4 * n, : 4 * n])
                .log_prob(torch.from_numpy(x[:n].reshape(-1)))
                .item()
                for x, n in zip(frames, lengths, strict=True)
            ]
        )
    expected = np.logaddexp.reduce(of_classes, axis=0) - math.log(3)
    np.testing.assert_allclose(log_prob(frames, lengths), expected, rtol=1e-10)


def test_signals_are_drawn_from_what_scores_them():
    """Their scale is that of the model, and their class is the likeliest one for nearly all."""
    train = generate_frames(1000, 1, 1)["train"]
    _, scale = fit_scaling(train)
    np.testing.assert_allclose(scale, np.sqrt((LOADINGS**2).sum(1) + NOISE**2), rtol=0.05)
    angles = []
    for sequence in sequences(train):
        z = sequence @ np.linalg.pinv(LOADINGS).T @ [1, 1j]
        angles.append(np.angle((z[1:] * z[:-1].conj()).sum()))
    nearest = np.abs(np.array(angles)[:, None] - list(ANGLES.values())).argmin(1)
    assert (nearest == train["label"][:]).mean() > 0.95
    assert min(train["length"][:]) == 20 and max(train["length"][:]) == 60


def test_the_seed_makes_the_signals_and_splits_do_not_hang_together():
    first, again, other = (generate_frames(5, 3, 3, seed=seed) for seed in (5, 5, 6))
    assert frames_fingerprint(first["train"]) == frames_fingerprint(again["train"])
    assert frames_fingerprint(first["train"]) != frames_fingerprint(other["train"])
    more = generate_frames(9, 3, 2, seed=5)
    assert frames_fingerprint(more["validation"]) == frames_fingerprint(first["validation"])
    assert frames_fingerprint(first["validation"]) != frames_fingerprint(first["test"])


def test_channels_of_several_tables_are_matched_by_name(write):
    """They were taken in the order of each file, so that a pressure was read as a temperature."""
    train, test = write("a.csv", "hot,dry\n1,10\n2,20\n"), write("b.csv", "dry,hot\n30,3\n")
    data = load_frames(train, test_file=test)
    assert data["train"]["input_features"][:] == [[[1, 10], [2, 20]]] and data["test"]["input_features"][:] == [
        [[3, 30]]
    ]
    with pytest.raises(ValueError, match="`feature_columns` must be columns of numbers of .*got .'dry'"):
        load_frames(train, test_file=write("c.csv", "wet,hot\n30,3\n"))


def test_a_split_without_a_value_is_refused(write):
    data = load_frames(write("a.csv", "a\n1\n2\n"), test_file=write("b.csv", "a,s\nNaN,x\nNaN,x\n"))
    with pytest.raises(ValueError, match="The test split has no value"):
        check_frames(data)
