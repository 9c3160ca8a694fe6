"""From files and data sets to sequences of vectors: reading, windows, scaling, checks."""

import hashlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict, DatasetInfo, Features, List, Value

from .datasets import _SPLIT_NAMES, SPLITS, _load_named, load_file, map_rows, named_files
from .rows import PREFIX, plain, view

logger = logging.getLogger(__name__)

SEGMENTS = PREFIX + "segment_ids"
ROWS = 1000  # looked at together where a split is read through


def load_frames(
    train_file: str | None = None,
    validation_file: str | None = None,
    test_file: str | None = None,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    features_column: str | None = None,
    feature_columns: list[str] | None = None,
    sequence_column: str | None = None,
    segment_column: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    encoding: str = "utf-8",
) -> DatasetDict:
    """Read the splits of a data set of sequences of vectors. Numbers of every kind become float32, in the units of the
    file; a missing value (NaN, null, an empty cell) is NaN.

    Args:
        train_file, validation_file, test_file: one of
            .npz: an array of frames [N, T, F], or [sum of T, F] beside `lengths` [N], or [N, T, F] padded beside
                `lengths`; `y` [N] becomes the column `label`, and `label_names` its classes; other arrays [N] stay
                as they are named. With names that begin with "train_", "validation_" or "test_" a file holds several
                splits: as `train_file` alone it gives them all, beside other files the one it is named for.
            .npy: [N, T, F]; [T], one series. A matrix is [T, F], one series, where `window` is given to cut it, and
                else [N, T], of one channel (so it is in .npz without `lengths` and `y`).
            .csv, .tsv: a row per step; the columns are channels, `sequence_column` says what belongs together.
            .parquet, .json, .jsonl: a row per sequence; a column holds lists of numbers or of vectors.
        dataset_name: in place of files, a data set of the Hub, a local folder of data files, or one that
            `save_to_disk` wrote, a row per sequence; `dataset_config_name` chooses among its configurations.
        features_column: the column, or array of an .npz, that holds the frames; by default "input_features", or the
            only one that can.
        feature_columns: of a .csv, which are channels; by default all of numbers but `sequence_column` and "label".
        sequence_column: of a .csv, rows with the same value here are one sequence, in the order of the file; without
            it the file is one. It and other columns that do not change within any sequence stay as columns.
        segment_column: column, or array of an .npz shaped as the frames without their channels, with a number per
            frame, or but of rows of lists a name: frames with the same one, one after the other, are a segment (a bar,
            a phrase).
        window, stride: cut a sequence into windows of so many frames, one every `stride` (default: `window`) frames,
            as long as a window would hold frames that the one before does not; the last one may be shorter. What
            else is known of the sequence is repeated. Overlapping windows of one sequence must not be shared out
            between training and validation: give files of their own.
        encoding: of files of characters.

    Returns:
        a `DatasetDict` of "train", "validation" and "test" as far as they are there, with the columns of
        [`make_frames`].

    Raises:
        ValueError: naming the file, the rule it breaks and the remedy.
    """
    for name, value in (("window", window), ("stride", stride)):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1 frame; got {value}.")
    if stride is not None and window is None:
        raise ValueError(f"`stride` is the distance of windows and needs a `window`; got {stride} without one.")
    files = named_files(dataset_name, train=train_file, validation=validation_file, test=test_file)
    data = DatasetDict()
    if dataset_name is not None:
        for split, part in _load_named(dataset_name, dataset_config_name).items():
            data[split] = _from_rows(part, features_column, segment_column, f"The {split} split", window, stride)
    for split, path in files.items():
        suffix = Path(path).suffix
        if suffix in (".npz", ".npy"):
            columns = features_column, segment_column
            data |= _from_arrays(path, split, set(files) == {"train"}, columns, window, stride)
        elif suffix in (".csv", ".tsv"):
            # Of the other files the same channels are asked for, by name: their order is no matter.
            feature_columns = feature_columns or csv_channels(path, sequence_column, segment_column, encoding)
            marks = sequence_column, segment_column
            data[split] = _from_steps(path, encoding, feature_columns, *marks, window, stride)
        else:
            if suffix not in (".parquet", ".json", ".jsonl"):
                raise ValueError(
                    f"The file {path!r} of frames must end in .npz, .npy, .csv, .tsv, .parquet, .json or .jsonl; "
                    f"got {suffix!r}."
                )
            columns = features_column, segment_column
            data[split] = _from_rows(load_file(path, encoding), *columns, f"The file {path!r}", window, stride)
    for split, part in data.items():
        if window is not None and "true_log_prob" in part.column_names:  # which is of the whole sequence
            data[split] = part.remove_columns("true_log_prob")
    return data


def make_frames(
    frames: np.ndarray,
    lengths: np.ndarray,
    columns: Dataset | None = None,
    window: int | None = None,
    stride: int | None = None,
    segment_ids: np.ndarray | None = None,
) -> Dataset:
    """A split out of arrays.

    Args:
        frames: of all sequences, one behind the other, [sum of T, F].
        lengths: of the sequences, [N].
        columns: what else is known of them, N rows.
        window, stride: see [`load_frames`].
        segment_ids: of the frames, [sum of T].

    Returns:
        a data set with `input_features` (a list of T lists of F float32 each), `length` (T), the segments where
        they are given, and the columns.
    """
    others = columns.with_format("arrow")[:] if columns is not None else pa.table({})
    features = _features(frames.shape[1], columns.features if columns is not None else {}, segment_ids is not None)
    table = _table(frames, lengths, others, window, stride, segment_ids)
    return Dataset(table.select(list(features)), info=DatasetInfo(features=features))


def csv_channels(
    path: str, sequence_column: str | None = None, segment_column: str | None = None, encoding: str = "utf-8"
) -> list[str]:
    """The channels of a .csv of which none are named: its columns of numbers, but "label" and these two."""
    marks, steps = {"label", sequence_column, segment_column}, _steps(path, encoding)
    numbers = _of_numbers(steps)
    channels = [name for name in numbers if name not in marks]
    for name in (name for name in steps.column_names if name not in marks.union(numbers)):
        values, words = _words(steps[name])
        if words and len(words) < len(values) / 2:
            raise ValueError(
                f"Column {name!r} of {path!r} is of numbers but for {words[0]!r}: leave the cell empty where a value "
                "is missing, or name the channels with `feature_columns`."
            )
    if not channels:
        raise ValueError(f"The file {path!r} has no column of numbers for a channel.")
    logger.info("%s: channels %s", path, channels)
    return channels


def cut_windows(split: Dataset, window: int) -> Dataset:
    """The sequences of a split in windows of so many frames, one behind the other; the last may be shorter."""
    segments = SEGMENTS if SEGMENTS in split.column_names else None
    return _from_rows(split, "input_features", segments, "The split", window, None)


def num_channels(split: Dataset) -> int:
    """F of a split that [`load_frames`] or [`make_frames`] made."""
    return split.features["input_features"].feature.length


def _features(channels: int, others: dict, segments: bool) -> Features:
    frames = {"input_features": List(List(Value("float32"), length=channels)), "length": Value("int64")}
    if segments:
        frames[SEGMENTS] = List(Value("int64"))
    return Features(frames | {name: feature for name, feature in others.items() if name not in frames})


def _table(frames, lengths, others: pa.Table, window: int | None, stride: int | None, segment_ids=None) -> pa.Table:
    """The table of a split; `frames` [sum of T, F], `lengths` [N] and `segment_ids` as in [`make_frames`]."""
    others = others.drop([name for name in ("input_features", "length") if name in others.column_names])
    if window is not None:
        rows, starts, lengths = _cut(lengths, window, stride or window)
        # Of each frame kept: where its window starts, and how far behind that it stands.
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        kept, others = np.repeat(starts, lengths) + within, others.take(rows)
        frames, segment_ids = frames[kept], None if segment_ids is None else segment_ids[kept]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(_float32(frames).reshape(-1)), frames.shape[1])
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    columns = {"input_features": pa.ListArray.from_arrays(offsets, vectors), "length": np.asarray(lengths, np.int64)}
    if segment_ids is not None:
        columns[SEGMENTS] = pa.ListArray.from_arrays(offsets, pa.array(segment_ids, pa.int64()))
    return pa.table(columns | {name: others[name] for name in others.column_names})


def _cut(lengths: np.ndarray, window: int, stride: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each window: its sequence, where it starts among all frames, and its length."""
    lengths = np.asarray(lengths, np.int64)
    # Behind the first, one for each stride that brings frames not yet seen; a stride may also leap over the end.
    counts = 1 + np.minimum(np.maximum(0, -(-(lengths - window) // stride)), np.maximum(0, lengths - 1) // stride)
    rows = np.repeat(np.arange(len(lengths)), counts)
    starts = (np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)) * stride
    return rows, (np.cumsum(lengths) - lengths)[rows] + starts, np.minimum(window, lengths[rows] - starts)


def _float32(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what is too big becomes infinite, which `check_frames` reports
        return np.ascontiguousarray(array, dtype=np.float32)


def _from_arrays(path: str, split: str, alone: bool, columns: tuple, window: int | None, stride: int | None):
    """The splits in an .npz or .npy; of several in a file, all where it is alone."""
    if not Path(path).is_file():
        raise ValueError(f"There is no file {path!r}. Relative paths start at {Path.cwd()}.")
    try:
        content = np.load(path)
        arrays = {"x": content} if isinstance(content, np.ndarray) else dict(content)
    except Exception as error:  # bad zips, pickled objects and cut files raise kinds of their own
        raise ValueError(
            f"The file {path!r} cannot be read as {Path(path).suffix} of plain arrays: {error}"
        ) from error
    names = arrays.pop("label_names", None)
    parts, others = {}, []
    for name, array in arrays.items():
        prefix, _, rest = name.partition("_")
        if rest and _SPLIT_NAMES.get(prefix, prefix) in SPLITS:
            parts.setdefault(_SPLIT_NAMES.get(prefix, prefix), {})[rest] = array
        else:
            others.append(name)
    if parts and others:
        raise ValueError(
            f"The file {path!r} holds arrays of splits, {sorted(set(arrays) - set(others))}, and others, {others}: "
            "begin the names of all with train_, validation_ or test_, or of none."
        )
    if not parts:
        parts = {split: arrays}
    elif split not in parts:
        raise ValueError(f"The file {path!r} must hold the {split} split it is given for; it holds {sorted(parts)}.")
    wanted = [name for name in SPLITS if name in parts] if alone else [split]
    return {name: _from_array(parts[name], names, f"{path!r} ({name})", *columns, window, stride) for name in wanted}


def _from_array(arrays: dict, names: np.ndarray | None, where: str, column, segments, window, stride) -> Dataset:
    lengths = arrays.pop("lengths", None)
    if lengths is not None and (lengths.ndim != 1 or lengths.dtype.kind not in "iu" or lengths.min(initial=0) < 0):
        raise ValueError(
            f"`lengths` of {where} must be counts, integers [N]; got {lengths.dtype} of shape {lengths.shape}. "
            "Convert them: lengths.astype(int)."
        )
    if segments is not None and segments not in arrays:
        raise ValueError(f"`segment_column` must be an array of {where}, one of {sorted(arrays)}; got {segments!r}.")
    segment_ids = arrays.pop(segments, None)
    if {"y", "label"} <= arrays.keys():
        raise ValueError(f"{where} has both `y` and `label`, which are one. Leave one of them out of the file.")
    columns = {"label" if name == "y" else name: array for name, array in arrays.items() if array.ndim}
    deepest = max([array.ndim for name, array in columns.items() if name != "label"], default=0)
    candidates = [name for name, array in columns.items() if name != "label" and array.ndim == deepest]
    if column is None and len(candidates) == 1:
        column = candidates[0]
    if column not in columns:
        raise ValueError(
            f"`features_column` must name the array of frames in {where}, one of {sorted(candidates)}; got {column!r}."
        )
    frames = columns.pop(column)
    if frames.dtype.kind not in "biuf":
        raise ValueError(f"The frames {column!r} of {where} must be real numbers; got {frames.dtype}.")
    one_series = window is not None and not columns
    if segment_ids is not None:
        has_channels = frames.ndim == 3 or (frames.ndim == 2 and (lengths is not None or one_series))
        if segment_ids.shape != (frames.shape[:-1] if has_channels else frames.shape):
            raise ValueError(
                f"`segment_column` {segments!r} of {where} must have a value for each frame of {column!r}, whose "
                f"shape is {frames.shape}; its own is {segment_ids.shape}."
            )
        numbers = np.unique(segment_ids, return_inverse=True)[1].reshape(segment_ids.shape)
        numbers = numbers[..., None] if has_channels else numbers
        segment_ids = _flat(numbers, lengths, one_series, f"The segments {segments!r} of {where}")[0].ravel()
    frames, lengths = _flat(frames, lengths, one_series, f"The frames {column!r} of {where}")
    for name, array in columns.items():
        if array.shape != (len(lengths),):
            raise ValueError(
                f"The array {name!r} of {where} must hold one value for each of the {len(lengths)} sequences; its "
                f"shape is {array.shape}. Leave it out of the file, or name the frames with `features_column`, their "
                "segments with `segment_column`."
            )
    kinds = {}
    if names is not None and "label" in columns and columns["label"].dtype.kind in "iu":
        if not 0 <= columns["label"].min(initial=0) <= columns["label"].max(initial=0) < len(names):
            raise ValueError(
                f"`y` of {where} must number the {len(names)} `label_names` from 0; got {columns['label'].min()} to "
                f"{columns['label'].max()}. Leave rows without a label out, or leave out `label_names`."
            )
        kinds["label"] = ClassLabel(names=names.astype(str).tolist())
    others = Dataset(pa.table({name: pa.array(array.tolist()) for name, array in columns.items()}))
    others = others.cast(Features(others.features | kinds)) if kinds else others
    return make_frames(frames, lengths, others, window, stride, segment_ids)


def _flat(frames: np.ndarray, lengths: np.ndarray | None, one_series: bool, what: str):
    """All sequences one behind the other, [sum of T, F], and their lengths [N]; see [`load_frames`]."""
    if not 1 <= frames.ndim <= 3:
        raise ValueError(f"{what} must have 1 to 3 dimensions, such as [N, T, F]; their shape is {frames.shape}.")
    if frames.size == 0:
        raise ValueError(f"{what} are none: their shape is {frames.shape}.")
    if lengths is None:
        if frames.ndim == 2:
            series = "one series, [T, F]" if one_series else "sequences of one channel, [N, T]"
            logger.info("%s are read as %s", what, series)
        if frames.ndim == 1 or (frames.ndim == 2 and one_series):
            return frames.reshape(len(frames), -1), np.array([len(frames)])
        channels = frames.shape[2] if frames.ndim == 3 else 1
        return frames.reshape(-1, channels), np.full(len(frames), frames.shape[1])
    lengths = lengths.astype(np.int64)
    if frames.ndim == 3:
        if len(lengths) != len(frames) or lengths.max(initial=0) > frames.shape[1]:
            raise ValueError(
                f"{what} have the shape {frames.shape}, which `lengths` must fit; got {len(lengths)} of at most "
                f"{lengths.max(initial=0)}."
            )
        return frames[np.arange(frames.shape[1]) < lengths[:, None]], lengths
    if lengths.sum() != len(frames):
        raise ValueError(f"{what} are {len(frames)}, but `lengths` add up to {lengths.sum()}. They must agree.")
    return frames.reshape(len(frames), -1), lengths


def _is_number(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_null(kind)


def _steps(path: str, encoding: str) -> pa.Table:
    """A .csv with a row per step."""

    # A sensor's "NaN" is no word, but a label's is.
    def read(keep_default_na: bool = True, **how) -> pa.Table:
        steps = load_file(path, encoding, keep_default_na=keep_default_na, **how)
        return steps.with_format("arrow")[:].combine_chunks()

    steps = read()
    # Behind a name that was there before pandas sets a count.
    numerals = (_is_numeral(name) or _is_numeral(name.rpartition(".")[0]) for name in steps.column_names)
    if all(numerals) and not _counts_up(steps.column_names):
        raise ValueError(
            f"The first row of {path!r} must name the columns, and it is of numbers: {steps.column_names[:3]}. Write "
            "a header above it, of words, or of whole numbers each one more than the last (0 for a single column)."
        )
    numbers = _of_numbers(steps)
    if len(numbers) == len(steps.column_names):
        return steps if len(numbers) > 1 else _with_blank_lines(path, encoding, steps, read)
    as_they_stand = read(keep_default_na=False)
    return pa.table({name: (steps if name in numbers else as_they_stand)[name] for name in steps.column_names})


def _with_blank_lines(path: str, encoding: str, steps: pa.Table, read: Callable[..., pa.Table]) -> pa.Table:
    """The steps of a single column with its empty cells, which are blank lines; before the header and at the end of a
    file these are none."""
    with open(path, encoding=encoding) as lines:
        before = next(i for i, line in enumerate(lines) if line.strip())
    whole = read(skip_blank_lines=False, skiprows=before)
    ends = [1 + max(np.flatnonzero(table[0].is_valid()), default=-1) for table in (whole, steps)]
    return whole[: ends[0] + len(steps) - ends[1]]  # a NaN that is written at the end stays


def _counts_up(names: list[str]) -> bool:
    """Whether these are 0, 1, 2, or pitches 21, 22, 23, and so on: of numbers what a row of data hardly is."""
    if not all(name.isdigit() for name in names):
        return False
    numbers = [int(name) for name in names]
    return numbers == list(range(numbers[0], numbers[0] + len(numbers))) and (len(numbers) > 1 or numbers == [0])


def _is_numeral(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _words(column: pa.ChunkedArray) -> tuple[list[str], list[str]]:
    """What a column that is not of numbers holds, and of this what is no number."""
    values = [str(value) for value in column.to_pylist() if value is not None and str(value).strip()]
    return values, [value for value in values if not _is_numeral(value)]


def _of_numbers(table: pa.Table) -> list[str]:
    return [field.name for field in table.schema if _is_number(field.type)]


def _from_steps(
    path: str, encoding: str, channels: list[str], sequence: str | None, segment: str | None, window, stride
) -> Dataset:
    """A split out of a table with a row per step."""
    table = _steps(path, encoding)
    for option, name in (("sequence_column", sequence), ("segment_column", segment)):
        if name is not None and name not in table.column_names:
            raise ValueError(f"`{option}` must be a column of {path!r}, {table.column_names}; got {name!r}.")
    numbers = [name for name in _of_numbers(table) if name not in (sequence, segment)]
    if wrong := [name for name in channels if name not in numbers]:
        words = _words(table[wrong[0]])[1] if wrong[0] in table.column_names else []
        where = f", where {wrong[0]!r} holds {words[0]!r}" if words else ""
        raise ValueError(f"`feature_columns` must be columns of numbers of {path!r}, {numbers}; got {wrong}{where}.")
    ids = table[sequence].combine_chunks().dictionary_encode().indices if sequence else pa.array(np.zeros(len(table)))
    if ids.null_count:
        raise ValueError(f"`sequence_column` {sequence!r} of {path!r} is empty in {ids.null_count} rows. Fill it in.")
    ids = ids.to_numpy().astype(np.int64)
    table = table.take(np.argsort(ids, kind="stable"))
    lengths = np.bincount(ids)
    firsts = np.cumsum(lengths) - lengths
    values = [_numbers(table[name].combine_chunks()) for name in channels]
    segment_ids = _codes(table[segment]) if segment else None
    others, changing = {}, []
    for name in (name for name in table.column_names if name not in channels):
        codes = _codes(table[name])
        if np.array_equal(codes, np.repeat(codes[firsts], lengths)):
            others[name] = table[name].take(firsts)
        elif name != segment:
            changing.append(name)
    if changing:
        logger.info("%s: left out, since they change within a sequence: %s", path, changing)
    columns = Dataset(pa.table(others))
    return make_frames(np.stack(values, axis=1), lengths, columns, window, stride, segment_ids)


def _codes(values: pa.ChunkedArray) -> np.ndarray:
    """Numbers that are the same where the values are; missing is a value."""
    return values.combine_chunks().dictionary_encode("encode").indices.to_numpy()


def _numbers(values: pa.Array) -> np.ndarray:
    """float32 with NaN for null."""
    return values.cast(pa.float32(), safe=False).fill_null(np.nan).to_numpy(zero_copy_only=False)


def _lengths(lists: pa.Array) -> np.ndarray:
    """How long each list is; none at all is as one of nothing."""
    return pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)


def _from_rows(
    data: Dataset, column: str | None, segment: str | None, where: str, window: int | None, stride: int | None
) -> Dataset:
    """A split out of a data set with a row per sequence: written to `datasets`' cache, as it may be a big one."""
    depths = {field.name: _depth(field.type) for field in data.data.schema}
    able = [name for name, depth in depths.items() if depth and name != segment]
    if segment is not None and depths.get(segment) != 1:
        raise ValueError(
            f"`segment_column` must name a column of lists with a number for each frame. {where} has columns "
            f"{data.column_names}; got {segment!r}."
        )
    if column is None:
        column = "input_features" if "input_features" in able or len(able) != 1 else able[0]
    if column not in able:
        raise ValueError(
            f"`features_column` must name a column of lists of numbers or of vectors. {where} has {able} of its "
            f"columns {data.column_names}; got {column!r}."
        )
    arrow = data.with_format("arrow")
    first = next((array for array in _arrays(arrow, column) if len(array.flatten().drop_null())), None)
    if first is None:
        raise ValueError(f"{where} holds no frames: its {data.num_rows} rows are empty.")
    channels = 1 if depths[column] == 1 else len(first.flatten().drop_null()[0])
    kept = {name: feature for name, feature in data.features.items() if name not in (column, segment)}
    columns = {"column": column, "segment": segment}
    return map_rows(
        arrow,
        _convert,
        columns | {"channels": channels, "where": where, "window": window, "stride": stride},
        batch_size=ROWS,
        with_indices=True,
        features=_features(channels, kept, segment is not None),
        desc="Reading frames",
    ).with_format(None)


def _depth(kind: pa.DataType) -> int:
    """How many lists stand around the numbers, 1 or 2; 0 for every other kind of column."""
    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    depth = 0
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind, depth = kind.value_type, depth + 1
    return depth if depth <= 2 and _is_number(kind) else 0


def _arrays(arrow: Dataset, column: str) -> Iterator[pa.Array]:
    """A column in pieces of 1000 rows."""
    for start in range(0, arrow.num_rows, ROWS):
        yield plain(arrow[start : start + ROWS][column])


def _convert(
    table: pa.Table, indices: list[int], column: str, segment: str | None, channels: int, where: str, window, stride
) -> pa.Table:
    sequences = plain(table[column])
    lengths = _lengths(sequences)
    values = sequences.flatten()
    if not _is_number(values.type):
        widths = _lengths(values)
        if (wrong := np.flatnonzero(widths != channels)).size:
            row = np.searchsorted(np.cumsum(lengths), wrong[0], side="right")
            raise ValueError(
                f"Every vector must have as many numbers as the first one, {channels}. {where} breaks this in row "
                f"{indices[row]} of column {column!r}, where one has {widths[wrong[0]]}."
            )
        values = values.flatten()
    segment_ids, others = None, table.drop([column])
    if segment is not None:
        of_rows, others = plain(table[segment]), others.drop([segment])
        if (wrong := np.flatnonzero(_lengths(of_rows) != lengths)).size:
            raise ValueError(
                f"`segment_column` {segment!r} must have a number for each frame, but row {indices[wrong[0]]} of "
                f"{where} has {_lengths(of_rows)[wrong[0]]} for {lengths[wrong[0]]} frames."
            )
        ids = of_rows.flatten()
        if ids.null_count:
            raise ValueError(f"`segment_column` {segment!r} of {where} has empty values. Fill them in.")
        segment_ids = ids.cast(pa.int64()).to_numpy(zero_copy_only=False)
    return _table(_numbers(values).reshape(-1, channels), lengths, others, window, stride, segment_ids)


def _blocks(split: Dataset) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """A split in pieces: frames [sum of T, F] and lengths [N], and the index of the first sequence."""
    arrow = split.with_format("arrow", columns=["input_features"])
    for i, sequences in enumerate(_arrays(arrow, "input_features")):
        frames, bounds = view(sequences)
        yield frames[bounds[0] : bounds[-1]], np.diff(bounds), i * ROWS


def check_frames(data: DatasetDict, binary: bool = False, levels: int | None = None, unit: str = "sequence") -> None:
    """Refuse what no model of frames can be trained on or scored with.

    Args:
        data: the splits.
        binary: values must be 0 or 1, for Bernoulli and NADE heads.
        levels: values must be integers 0 .. levels - 1, for categorical heads.
        unit: what a row is, in messages.

    Raises:
        ValueError: naming the split, the first sequence at fault (by its index) and the channel.
    """
    widths = {split: num_channels(part) for split, part in data.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(f"All splits must have the same number of channels; got {widths}.")
    for split, part in data.items():
        if part.num_rows == 0:
            raise ValueError(f"The {split} split holds no {unit}.")
        seen = np.zeros(widths[split], dtype=bool)
        for frames, lengths, first in _blocks(part):
            if not lengths.all():
                raise ValueError(
                    f"Every {unit} must have a frame, but {unit} {first + np.argmin(lengths)} of the {split} split "
                    "has none. Leave it out."
                )
            seen |= (frames == frames).any(axis=0)
            _check_values(frames, lengths, first, split, binary, levels, unit)
        if not seen.any():
            raise ValueError(f"The {split} split has no value: all of it is missing.")
        if split == "train" and not seen.all():
            raise ValueError(
                f"Every channel must have a value, but channel {np.argmin(seen)} is missing throughout the train "
                "split. Leave it out."
            )


def _check_values(frames, lengths, first: int, split: str, binary: bool, levels: int | None, unit: str) -> None:
    bad, rule, remedy = np.isinf(frames), "finite", "Make it NaN if it is missing."
    if binary and not bad.any():
        bad, rule = (frames != 0) & (frames != 1) & (frames == frames), "0 or 1 for this head"
        remedy = "Make the values binary, or choose a head for real numbers, such as head='gaussian'."
    elif levels is not None and not bad.any():
        bad = (frames != np.floor(frames)) | (frames < 0) | (frames >= levels)
        bad, rule = bad & (frames == frames), f"an integer from 0 to {levels - 1}"
        remedy = "Quantise the values, or set `num_levels`."
    if bad.any():
        frame, channel = np.unravel_index(bad.argmax(), bad.shape)
        row = int(np.searchsorted(np.cumsum(lengths), frame, side="right"))
        step = frame - lengths[:row].sum()
        raise ValueError(
            f"Every value must be {rule}, but in the {split} split {unit} {first + row} has "
            f"{frames[frame, channel]} in channel {channel}, frame {step}. {remedy}"
        )


def fit_scaling(train: Dataset) -> tuple[list[float], list[float]]:
    """Mean and (population) standard deviation of each channel over the values that are there.

    In float64 and in two passes: a sum of squares would lose the deviations of a channel far from zero.

    Raises:
        ValueError: where a channel is constant or missing throughout, and so has no scale.
    """
    _extremes(train)
    count, total, squares = 0, 0, 0
    for frames, _, _ in _blocks(train):
        count = count + (frames == frames).sum(axis=0)
        total = total + np.nansum(frames, axis=0, dtype=np.float64)
    mean = total / count
    for frames, _, _ in _blocks(train):
        squares = squares + np.nansum((frames - mean) ** 2, axis=0)
    return mean.tolist(), np.sqrt(squares / count).tolist()


def fit_range(train: Dataset) -> tuple[list[float], list[float]]:
    """Middle and half width of what each channel ranges over, which scale it to [-1, 1].

    Raises:
        ValueError: as [`fit_scaling`].
    """
    low, high = _extremes(train)
    return ((low + high) / 2).tolist(), ((high - low) / 2).tolist()


def value_range(train: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest value of each channel, [F] each."""
    low, high = np.full(num_channels(train), np.inf), np.full(num_channels(train), -np.inf)
    for frames, _, _ in _blocks(train):
        low, high = np.fmin(low, np.fmin.reduce(frames)), np.fmax(high, np.fmax.reduce(frames))
    return low, high


def _extremes(train: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The same of channels that vary."""
    low, high = value_range(train)
    if not (low < high).all():
        channel = np.argmin(low < high)
        value = f"{low[channel]} wherever it is there" if low[channel] <= high[channel] else "missing throughout"
        raise ValueError(
            f"Scaling needs channels that vary, but channel {channel} of the train split is {value}, in float32. "
            "Leave the channel out, go without scaling, or take an offset from what varies little far from 0."
        )
    return low, high


def frames_fingerprint(split: Dataset) -> str:
    """SHA-256 of a split's lengths (int64) and then its values (float32), in order."""
    digest = hashlib.sha256()
    for _, lengths, _ in _blocks(split):
        digest.update(lengths.astype("<i8").tobytes())
    for frames, _, _ in _blocks(split):
        digest.update(np.ascontiguousarray(frames, dtype="<f4"))
    return digest.hexdigest()
