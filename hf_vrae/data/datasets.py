"""From files, the Hub or the built-in corpus to token ids on disk."""

import codecs
import glob
import inspect
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher
from pandas.errors import DtypeWarning, ParserWarning
from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

# pandas would take words such as "NA" and "null" for missing values, and the first of more fields than the header has
# for a name of the row.
_AS_IT_STANDS = {"keep_default_na": False, "na_values": [""], "index_col": False}
# How `datasets` reads a file with this ending. Quotes in .tsv are ordinary characters, as in the corpora of the field.
_READERS = {
    ".txt": ("text", {}),
    ".csv": ("csv", _AS_IT_STANDS),
    ".tsv": ("csv", {"sep": "\t", "quoting": 3, **_AS_IT_STANDS}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
}
# What `tokenize` says of each text.
_OF_TOKENS = ("input_ids", "length", "num_characters", "truncated", "only_unknown", "has_unknown", "marked")
SPLITS = ("train", "validation", "test")
_SPLIT_NAMES = {"valid": "validation", "val": "validation", "dev": "validation"}


def load_text(
    train_file: str | None = None,
    validation_file: str | None = None,
    test_file: str | None = None,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    text_column: str | None = None,
    encoding: str = "utf-8",
) -> DatasetDict:
    """Read the splits of a corpus, memory-mapped from `datasets`' cache.

    A .csv or .tsv is read whole, once, which takes twice its size of memory: a column's kind is that of all its rows.

    Args:
        train_file, validation_file, test_file: .txt with a sequence per line, .csv, .tsv, .json, .jsonl or .parquet.
        dataset_name: in place of files, a data set of the Hub, a local folder of data files (a file per split, read as
            above), or one that `save_to_disk` wrote; `dataset_config_name` chooses among its configurations.
        text_column: column that holds the text; by default "text", or the only one of strings.
        encoding: of the files.

    Returns:
        a `DatasetDict` of "train", "validation" and "test" as far as they are there, whose text is in column "text".

    Raises:
        ValueError: naming the file, the rule it breaks and the remedy.
    """
    files = named_files(dataset_name, train=train_file, validation=validation_file, test=test_file)
    if dataset_name is not None:
        files = _files_of_splits(Path(dataset_name))
    splits = {split: load_file(path, encoding) for split, path in files.items()}
    splits = splits or _load_named(dataset_name, dataset_config_name)
    return DatasetDict({split: _with_text(data, text_column, split) for split, data in splits.items()})


def named_files(dataset_name: str | None, **files: str | None) -> dict[str, str]:
    """The files that are named, by split; none where a data set is."""
    files = {split: path for split, path in files.items() if path is not None}
    if bool(files) == (dataset_name is not None):
        raise ValueError(f"Name files or a `dataset_name`, one of them; got {list(files.values())}, {dataset_name!r}.")
    return files


def spread_places(size: int, count: int) -> np.ndarray:
    """So many places spread over `size`, some of them several times where there are fewer: labelled rows are often
    sorted, and the first of them then of one label."""
    return np.linspace(0, size - 1, count).astype(int)


def spread_rows(data: Dataset, count: int) -> Dataset:
    """So many rows spread over a data set, or all where there are fewer."""
    return data.select(spread_places(len(data), min(count, len(data))))


def load_file(path: str, encoding: str = "utf-8", **options) -> Dataset:
    """Read one file; see [`load_text`]. Further options go to `datasets`' reader of such files."""
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"There is no file {path!r}. Relative paths start at {Path.cwd()}.")
    if file.suffix not in _READERS:
        raise ValueError(
            f"The file {path!r} must end in one of {', '.join(_READERS)}, or of frames in .npz or .npy; got "
            f"{file.suffix!r}. Convert it first, as recipes/prepare.py does."
        )
    if file.stat().st_size == 0:
        raise ValueError(f"The file {path!r} is empty.")
    reader, usual = _READERS[file.suffix]
    how = usual | options
    if reader != "parquet":
        _check_encoding(file, encoding)
        how["encoding"] = "utf-8-sig" if encoding == "utf-8" and _has_mark(file) else encoding
    try:
        with warnings.catch_warnings():
            # Of rows with more fields than the header pandas would leave some out.
            warnings.filterwarnings("error", message="Length of header or names does not match")
            return _load_csv(file, how) if reader == "csv" else _load(reader, file, how)
    except (DatasetGenerationError, ValueError, OverflowError, ParserWarning) as error:
        raise ValueError(f"The file {path!r} cannot be read as {file.suffix}: {_reason(error)}") from error


def _load(reader: str, file: Path, how: dict) -> Dataset:
    return load_dataset(reader, data_files=glob.escape(str(file)), split="train", **how)


def _load_csv(file: Path, how: dict) -> Dataset:
    """The kind of a column is read off all of it. `datasets` would go by the first 10,000 rows, and pandas by each
    piece of the file, where a label of 007 became 7 in one of numbers alone."""
    in_one_go = {"chunksize": 2**31 - 1}
    try:
        warnings.simplefilter("ignore", DtypeWarning)
        return _load("csv", file, how | in_one_go)
    except DatasetGenerationError:  # as of pieces of two kinds
        kinds = pa.Schema.from_pandas(pd.read_csv(file, low_memory=False, **how), preserve_index=False)
        return _load("csv", file, how | in_one_go | {"features": Features.from_arrow_schema(kinds)})


def _reason(error: BaseException) -> str:
    """In a line what an error came from."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, ParserWarning):
        return "a row has more fields than the header. Name every column, and quote a text that holds a separator."
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _has_mark(file: Path) -> bool:
    """Whether a file begins with the byte order mark that some editors write: else it is a part of the first word."""
    with open(file, "rb") as stream:
        return stream.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8


def _check_encoding(file: Path, encoding: str) -> None:
    """Name the first line that is not text in this encoding; the readers would say less, or nothing (JSON)."""
    try:
        decoder = codecs.getincrementaldecoder(encoding)()
    except LookupError as error:
        raise ValueError(f"`encoding` must be one that Python knows, such as utf-8; got {encoding!r}.") from error
    lines = 1
    with open(file, "rb") as stream:
        while chunk := stream.read(2**20):
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                line = lines + chunk[: error.start].count(b"\n")
                raise ValueError(
                    f"The file {str(file)!r} is not {encoding} text: line {line} holds byte "
                    f"0x{error.object[error.start]:02x}. Convert it, or name its encoding with --encoding."
                ) from error
            lines += chunk.count(b"\n")


def _files_of_splits(folder: Path) -> dict[str, str]:
    """The files of a folder by split, where it has one for each; else none."""
    files = [path for path in sorted(folder.glob("*")) if path.suffix in _READERS] if not _is_saved(folder) else []
    splits = {_SPLIT_NAMES.get(path.stem, path.stem): str(path) for path in files}
    return splits if len(splits) == len(files) and splits.keys() <= set(SPLITS) else {}


def _is_saved(folder: Path) -> bool:
    return any((folder / file).exists() for file in ("dataset_dict.json", "dataset_info.json"))


def _load_named(name: str, config_name: str | None) -> dict[str, Dataset]:
    try:
        data = load_from_disk(name) if _is_saved(Path(name)) else load_dataset(name, config_name)
    except Exception as error:  # the Hub client, the network and each reader raise kinds of their own
        raise ValueError(f"The data set {name!r} cannot be loaded: {_reason(error)}") from error
    if isinstance(data, Dataset):
        return {"train": data}
    return {_SPLIT_NAMES.get(split, split): part for split, part in data.items()}


def _with_text(data: Dataset, column: str | None, split: str) -> Dataset:
    """The data set with its text in column "text"."""
    strings = [name for name, feature in data.features.items() if feature in (Value("string"), Value("large_string"))]
    if column is None:
        if not strings:
            raise ValueError(
                f"The {split} split has no text: no column of {data.column_names} holds strings. Of sequences of "
                "numbers name the channels with `feature_columns`, or say how to read them with `sequence_column` or "
                "`window`."
            )
        column = "text" if "text" in data.column_names or len(strings) != 1 else strings[0]
        if " " in column:
            said = "%s split: the text is in the column %r. If that is a text itself, write a header above it."
            logger.warning(said, split, column)
        if ";" in column or "\t" in column:
            raise ValueError(
                f"The {split} split has the one column {column!r}, whose name holds a separator: a .csv is separated "
                "by commas, a .tsv by tabs. Convert the file, or name the column with `text_column`."
            )
    if column not in data.column_names:
        raise ValueError(
            f"`text_column` must name a column of the {split} split, which has {data.column_names}; got {column!r}."
        )
    if column not in strings:
        raise ValueError(
            f"`text_column` must hold strings, but column {column!r} of the {split} split is "
            f"{data.features[column]}. Its columns of strings are {strings}."
        )
    if column == "text":
        return data
    return data.remove_columns([name for name in ("text",) if name in data.column_names]).rename_column(column, "text")


def attribute_values(data: Dataset, column: str, option: str = "label") -> list:
    """What each row has in a column of names or numbers; a class is given by its name, what is missing by None.
    Messages say that `option` named the column.

    Raises:
        ValueError: where there is no such column, or it holds something else.
    """
    named = {name: f for name, f in data.features.items() if isinstance(f, (ClassLabel, Value)) and name != "text"}
    if column not in named:
        raise ValueError(f"`{option}` must be a column of names or numbers, one of {sorted(named)}; got {column!r}.")
    values, kind = data[column][:], named[column]
    if isinstance(kind, ClassLabel):
        return [None if value is None or value < 0 else kind.names[value] for value in values]
    if kind == Value("bool"):
        return [value_name(value) for value in values]
    values = [None if value_name(value) is None else value for value in values]
    # Integers of which some are missing are read as real numbers.
    whole = None in values and all(isinstance(v, float) and v.is_integer() for v in values if v is not None)
    return [int(value) if whole and value is not None else value for value in values]


def value_names(data: Dataset, column: str, option: str = "label") -> list[str | None]:
    """The same by name, as labels have them."""
    return [value_name(value) for value in attribute_values(data, column, option)]


def value_name(value) -> str | None:
    """The name of a label's value; None where it is missing."""
    if value is None or value == "" or value != value:
        return None
    # A column of integers of which some are missing is read as one of floats.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def split_validation(data: DatasetDict, percentage: float, seed: int = 42) -> DatasetDict:
    """Where there is no validation split, take one out of the training split, chosen by the seed, not that of a run:
    runs that are set beside one another are of the same sequences."""
    if "validation" in data:
        return data
    rows = data["train"].num_rows
    if rows < 2:
        raise ValueError(
            f"The training data hold {rows} sequence(s), which leaves none for validation. Give a `validation_file`."
        )
    held_out = min(rows - 1, max(1, round(rows * percentage / 100)))
    parts = data["train"].train_test_split(test_size=held_out, seed=seed)
    return DatasetDict(data | {"train": parts["train"], "validation": parts["test"]})


def map_rows(data: Dataset, function: Callable, fn_kwargs: dict, **options) -> Dataset:
    """`data.map` in batches, whose cache goes by the source of the function's module too. By itself it goes by the
    name of a function that can be imported, and after an update would give the rows that another version made."""
    made_by = [function.__qualname__, inspect.getsource(inspect.getmodule(function))]
    fingerprint = Hasher.hash([data._fingerprint, made_by, fn_kwargs])
    return data.map(function, batched=True, fn_kwargs=fn_kwargs, new_fingerprint=fingerprint, **options)


def tokenize(
    data: Dataset,
    tokenizer: PreTrainedTokenizerFast,
    max_length: int,
    split: str = "given",
    num_proc: int | None = None,
) -> Dataset:
    """Add token ids to a data set, and say what was dropped and what was cut.

    Args:
        data: has the column "text"; rows without a word are dropped.
        tokenizer: writes `<s> w1 .. wn </s>`.
        max_length: tokens per sequence at most, marks included; longer ones are cut and still end in `</s>`.
        split: its name, for messages.
        num_proc: processes to tokenise with.

    Returns:
        the data set with `input_ids`, `length` (tokens), `num_characters` (of the text kept that the
        tokenizer's decoding would say again, and one for its end),
        `truncated` and `has_unknown` (`<unk>` stands for a word; where the text itself has it, it does not) added.

    Raises:
        ValueError: where nothing is left, or no row has a word that the tokenizer knows.
    """
    if max_length < 3:
        raise ValueError(
            f"`max_length` must leave room for a word between <s> and </s>: at least 3, got {max_length}."
        )
    # What a call with padding or truncation has left in it would come into the data, and into the cache's fingerprint.
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    if taken := [name for name in data.column_names if name in _OF_TOKENS]:
        logger.warning("%s split: columns of ours take the place of %s. Rename these to keep them.", split, taken)
        data = data.remove_columns(taken)  # whose kinds would become ours'
    tokenized = map_rows(
        data,
        _tokenize_rows,
        {"tokenizer": tokenizer, "max_length": max_length},
        num_proc=num_proc,
        desc=f"Tokenizing the {split} split",
    )
    dropped, kept = data.num_rows - tokenized.num_rows, tokenized.num_rows
    if kept == 0:
        raise ValueError(f"The {split} split holds no text: its {data.num_rows} rows are empty.")
    columns = tokenized.with_format("numpy")
    truncated, unknown, marked = (int(columns[name][:].sum()) for name in ("truncated", "only_unknown", "marked"))
    if unknown == kept:
        raise ValueError(
            f"No row of the {split} split has a word that the tokenizer knows. If it is new, give more data, a "
            "`validation_file`, or `tokenizer_type` bpe; if not, do the tokenizer and the data belong together?"
        )
    said = [
        (dropped, "empty rows dropped"),
        (truncated, f"sequences cut to `max_length` {max_length} tokens"),
        (unknown, "sequences of only unknown words kept"),
        (marked, "sequences with a mark such as </s> written out, which was left out"),
    ]
    notes = [f"{count:,} {what}" for count, what in said if count]
    logger.info("%s split: %s sequences%s", split, f"{kept:,}", "".join(f"; {note}" for note in notes))
    return tokenized.remove_columns(["only_unknown", "marked"])


def _tokenize_rows(rows: dict[str, list], tokenizer: PreTrainedTokenizerFast, max_length: int) -> dict[str, list]:
    texts = [(text or "").replace("\ufeff", "").strip() for text in rows["text"]]
    # Written out in a text they would be read as the marks themselves, in its midst.
    marks = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token} - {None}
    marked = [any(mark in text for mark in marks) for text in texts]
    for i in np.flatnonzero(marked):
        for mark in marks:
            texts[i] = texts[i].replace(mark, " ")
        texts[i] = " ".join(texts[i].split())
    keep = [i for i, text in enumerate(texts) if text]
    columns = {name: [values[i] for i in keep] for name, values in rows.items() if name != "text"}
    columns["text"] = [texts[i] for i in keep]
    columns["marked"] = [marked[i] for i in keep]
    columns |= {name: [] for name in _OF_TOKENS if name != "marked"}
    # The tokenizer's own truncation would change its state, and with it the fingerprint that the cache goes by.
    encodings = tokenizer.backend_tokenizer.encode_batch(columns["text"]) if keep else []
    unk, unk_id = tokenizer.unk_token, tokenizer.unk_token_id  # looked up in the vocabulary each time
    for text, encoding in zip(columns["text"], encodings, strict=True):
        ids, offsets = encoding.ids, encoding.offsets
        truncated = len(ids) > max_length
        if truncated:
            ids, offsets = [*ids[: max_length - 1], tokenizer.eos_token_id], offsets[:max_length]
        columns["input_ids"].append(ids)
        columns["length"].append(len(ids))
        columns["num_characters"].append(offsets[-2][1])
        columns["truncated"].append(truncated)
        unknown = [i for i in range(1, len(ids) - 1) if ids[i] == unk_id]
        columns["only_unknown"].append(len(unknown) == len(ids) - 2)
        columns["has_unknown"].append(any(text[slice(*offsets[i])] != unk for i in unknown))
    # Of white space that the tokenizer drops the model says nothing; what decoding puts in did not stand there.
    told = tokenizer.backend_tokenizer.decode_batch([ids[1:-1] for ids in columns["input_ids"]], False)
    counts = zip(columns["num_characters"], told, strict=True)
    columns["num_characters"] = [min(count, len(text.strip())) + 1 for count, text in counts]
    return columns
