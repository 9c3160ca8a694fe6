"""Every way that files come in, good and bad."""

import gc
import importlib
import json
import logging
import sys

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from hf_vrae.data.datasets import (
    attribute_values,
    load_file,
    load_text,
    map_rows,
    split_validation,
    tokenize,
)
from hf_vrae.data.frames import load_frames
from hf_vrae.data.tokenization import train_tokenizer

TEXTS = ["the king sold a letter .", "a queen", 'she said " yes "']


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "\n".join(TEXTS) + "\n"),
        (
            "a.csv",
            "n,text\n" + "\n".join(f'{i},"{text.replace(chr(34), chr(34) * 2)}"' for i, text in enumerate(TEXTS)),
        ),
        ("a.tsv", "label\ttext\n" + "\n".join(f"1\t{text}" for text in TEXTS)),
        ("a.jsonl", "\n".join(json.dumps({"text": text, "n": 1}) for text in TEXTS)),
        ("a.json", json.dumps([{"text": text} for text in TEXTS])),
    ],
)
def test_files_of_every_kind(name, content, write):
    assert load_text(train_file=write(name, content))["train"]["text"][:] == TEXTS


def test_parquet_and_folders(tmp_path):
    data = Dataset.from_dict({"sentence": TEXTS})
    data.to_parquet(tmp_path / "train.parquet")
    assert load_text(str(tmp_path / "train.parquet"))["train"]["text"][:] == TEXTS
    assert load_text(dataset_name=str(tmp_path))["train"]["text"][:] == TEXTS
    DatasetDict(train=data, dev=data).save_to_disk(tmp_path / "saved")
    loaded = load_text(dataset_name=str(tmp_path / "saved"))
    assert set(loaded) == {"train", "validation"} and loaded["validation"]["text"][:] == TEXTS
    (tmp_path / "folder").mkdir()
    for name in ("train", "val"):
        (tmp_path / "folder" / f"{name}.tsv").write_text('text\tlabel\nNA\t1\n"he said\t2\n')
    loaded = load_text(dataset_name=str(tmp_path / "folder"))
    assert set(loaded) == {"train", "validation"} and loaded["train"]["text"][:] == ["NA", '"he said']  # as of files


def test_text_column(write, caplog):
    path = write("a.csv", "title,body\nx,the king\n")
    assert load_text(path, text_column="body")["train"]["text"][:] == ["the king"]
    with pytest.raises(ValueError, match=r"`text_column` must name a column.*\['title', 'body'\]; got 'text'"):
        load_text(path)
    with pytest.raises(ValueError, match="must hold strings, but column 'n'"):
        load_text(write("b.csv", "n,text\n1,x\n"), text_column="n")
    with pytest.raises(ValueError, match="must hold strings, but column 'text'"):  # a label in its place says nothing
        load_text(write("f.csv", "text,label\n12,a\n9,b\n"))
    # What stands behind a last separator is no field, and nothing moves to the column beside its own.
    assert load_text(write("d.tsv", "n\ttext\n1\tthe king\t\n"))["train"]["text"][:] == ["the king"]
    with pytest.raises(ValueError, match="the one column 'n;text', whose name holds a separator"):
        load_text(write("e.csv", "n;text\n1;the king\n"))
    with pytest.raises(ValueError, match=r"no text: no column of \['a', 'b'\] .* `feature_columns`"):
        load_text(write("c.csv", "a,b\n1,2\n"))
    assert not caplog.records
    load_text(write("g.csv", "the king sold a letter\nthe queen\n"))
    assert "'the king sold a letter'. If that is a text itself, write a header above it" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.docx", "x", r"must end in one of \.txt, .*got '\.docx'"),
        ("a.txt", b"good\nbr\xfcsk\n", "is not utf-8 text: line 2 holds byte 0xfc.*--encoding"),
        ("a.csv", b"text\ngood\nbr\xfcsk\n", "is not utf-8 text: line 3"),
        ("a.jsonl", b'{"text": "br\xfcsk"}\n', "is not utf-8 text: line 1"),
        ("a.json", "{not json", r"cannot be read as \.json"),
        ("a.csv", 'text\n"never closed', r"cannot be read as \.csv"),
        (
            "a.csv",
            "text,n\nthe king, sold,1\n",
            r"a row has more fields than the header\. Name every column, and quote",
        ),
    ],
)
def test_bad_files(name, content, message, write):
    with pytest.raises(ValueError, match=message):
        load_file(write(name, content))


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # pandas leaves the file open
def test_a_number_of_more_than_64_bits_is_refused(write):
    with pytest.raises(ValueError, match=r"a\.csv' cannot be read as \.csv: .*too (large|big)"):
        load_file(write("a.csv", f"text,id\nthe king,{2**70}\n"))
    gc.collect()


def test_missing_file_and_data_set(tmp_path):
    with pytest.raises(ValueError, match="There is no file 'nowhere.txt'"):
        load_file("nowhere.txt")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_text(dataset_name=str(tmp_path / "nowhere"))
    for load in (load_text, load_frames):
        with pytest.raises(ValueError, match=r"Name files or a `dataset_name`, one of them; got \[\], None"):
            load()
        with pytest.raises(ValueError, match=r"one of them; got \['a.txt'\], 'some'"):
            load(test_file="a.txt", dataset_name="some")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", "a b\nc"), ("a.csv", "text\na b\nc\n"), ("a.jsonl", '{"text": "a b"}\n{"text": "c"}\n')],
)
def test_a_byte_order_mark_is_no_part_of_the_first_word(name, content, write):
    path = write(name, b"\xef\xbb\xbf" + content.encode())
    assert load_text(path)["train"]["text"][:] == ["a b", "c"]


def test_other_encodings(write):
    path = write("a.txt", "brüsk\n".encode("latin-1"))
    assert load_text(path, encoding="latin-1")["train"]["text"][:] == ["brüsk"]
    with pytest.raises(ValueError, match="`encoding` must be one that Python knows"):
        load_file(path, encoding="utf-9")


def test_byte_order_mark_and_line_ends(write):
    path = write("a.txt", "\ufeffthe king\r\n\r\n  a queen \r\n")
    tokenizer = train_tokenizer(["the king a queen"])
    assert tokenize(load_file(path), tokenizer, 16)["text"][:] == ["the king", "a queen"]


def test_a_name_with_brackets_is_that_of_a_file_and_no_pattern(write):
    write("a1.txt", "another\n")
    assert load_file(write("a[1].txt", "this one\n"))["text"][:] == ["this one"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a file that `datasets` leaves open
def test_a_columns_kind_is_that_of_the_whole_file(write):
    """It was that of the first 10,000 rows, or of the first 200,000."""
    for count, first, read in ((10_500, "", None), (9_990, "x", "x"), (300_000, "1", "1")):
        rows = f"{first},a b\n" * count + "007,c d\n" * 20
        data = load_file(write(f"{count}.csv", "label,text\n" + rows + "y,e\n"))
        assert data.unique("label") == [read, "007", "y"]
    gc.collect()  # else the warning is of the next test


def test_marks_written_out_in_a_text_are_not_the_marks(caplog):
    tokenizer = train_tokenizer(["it was 40 30"])
    with caplog.at_level(logging.INFO):
        data = tokenize(Dataset.from_dict({"text": ["it was <s>40</s> 30", "<pad>", "it was"]}), tokenizer, 16)
    assert data["text"][:] == ["it was 40 30", "it was"] and "1 sequences with a mark such as </s>" in caplog.text
    assert data["input_ids"][0] == tokenizer("it was 40 30")["input_ids"] and "marked" not in data.column_names


def test_tokenizing_counts_what_it_drops_and_cuts(caplog):
    tokenizer = train_tokenizer(["the king"])
    texts = ["the king", "", "  ", None, "zzz yyy", "king " * 10_000, "king"]
    with caplog.at_level(logging.INFO):
        data = tokenize(Dataset.from_dict({"text": texts, "n": range(7)}), tokenizer, 8, "train")
    said = "train split: 4 sequences; 3 empty rows dropped; 1 sequences cut to `max_length` 8 tokens; "
    assert said + "1 sequences of only unknown words kept" in caplog.text
    assert data["n"][:] == [0, 4, 5, 6]
    assert data["input_ids"][:] == [[2, 5, 4, 3], [2, 1, 1, 3], [2, *[4] * 6, 3], [2, 4, 3]]
    assert data["length"][:] == [4, 4, 8, 3] and data["truncated"][:] == [False, False, True, False]
    assert data["num_characters"][:] == [9, 8, 30, 5]  # the end of the sequence is one
    assert data["has_unknown"][:] == [False, True, False, False]
    written = tokenize(Dataset.from_dict({"text": ["the <unk>", "the <unk> zzz"]}), tokenizer, 8)
    assert written["input_ids"][0] == [2, 5, 1, 3] and written["has_unknown"][:] == [False, True]


@pytest.mark.parametrize(("kind", "characters"), [("word", 9), ("char", 11), ("bpe", 11)])
def test_characters_that_the_tokenizer_drops_are_not_counted(kind, characters):
    texts = ["the   king", "the king"]
    data = tokenize(Dataset.from_dict({"text": texts}), train_tokenizer(texts, kind, 400), 16)
    assert data["num_characters"][:] == [characters, 9]


def test_columns_of_the_users_own_give_way(caplog):
    texts = {"text": ["the king"] * 2, "length": ["short", "long"], "truncated": [None, None], "marked": ["x", "y"]}
    data = tokenize(Dataset.from_dict(texts), train_tokenizer(["the king"]), 8, "train")
    assert data["length"][:] == [4, 4] and data["truncated"][:] == [False, False]
    assert "train split: columns of ours take the place of ['length', 'truncated', 'marked']" in caplog.text


def test_what_a_call_left_in_the_tokenizer_is_not_in_the_data():
    tokenizer = train_tokenizer(["the king sold a letter"])
    data = Dataset.from_dict({"text": ["the king", "the king sold a letter"]})
    before = tokenize(data, tokenizer, 16)["input_ids"][:]
    tokenizer(["the king", "king"], padding=True, truncation=True, max_length=3)
    assert tokenize(data, tokenizer, 16)["input_ids"][:] == before


def test_nothing_left_to_tokenize():
    tokenizer = train_tokenizer(["the king"])
    with pytest.raises(ValueError, match="test split holds no text: its 2 rows are empty"):
        tokenize(Dataset.from_dict({"text": ["", " "]}), tokenizer, 8, "test")
    with pytest.raises(ValueError, match="No row of the test split has a word that the tokenizer knows"):
        tokenize(Dataset.from_dict({"text": ["zzz", "yyy"]}), tokenizer, 8, "test")
    with pytest.raises(ValueError, match="`max_length` must leave room.*at least 3, got 2"):
        tokenize(Dataset.from_dict({"text": ["king"]}), tokenizer, 2)


def test_tokenizing_is_cached_and_memory_mapped(write):
    """A second run finds the first one's files, whatever was tokenized between; nothing is held in memory."""
    data = load_file(write("a.txt", "the king\nthe queen\n"))
    first = tokenize(data, train_tokenizer(["the king"]), 8)
    again = train_tokenizer(["the king"])
    again(["the king"], padding=True, truncation=True, max_length=4)
    second = tokenize(data, again, 8)
    assert first.cache_files and first.cache_files == second.cache_files


def test_rows_that_another_version_tokenized_are_not_taken_from_the_cache(write, tmp_path, monkeypatch):
    """They had other columns after an update, and the run ended with "Column 'marked' doesn't exist."."""
    module = tmp_path / "version.py"
    monkeypatch.syspath_prepend(tmp_path)
    data, values = load_file(write("a.txt", "the king\nthe queen\n")), []
    for number in (1, 1, 22):
        module.write_text(f"def number(rows, more):\n    return {{'n': [{number} + more for _ in rows['text']]}}\n")
        sys.modules.pop("version", None)
        importlib.invalidate_caches()
        values.append(map_rows(data, importlib.import_module("version").number, {"more": 5}))
    assert [rows["n"][:] for rows in values] == [[6, 6], [6, 6], [27, 27]]
    assert values[0].cache_files == values[1].cache_files != values[2].cache_files


def test_several_processes_tokenize_the_same(write):
    data = load_file(write("a.txt", "the king\n\nthe queen\nking queen\n"))
    tokenizer = train_tokenizer(["the king queen"])
    assert tokenize(data, tokenizer, 8, num_proc=2)["input_ids"][:] == tokenize(data, tokenizer, 8)["input_ids"][:]


def test_validation_is_taken_by_the_seed():
    data = DatasetDict(train=Dataset.from_dict({"text": [str(i) for i in range(100)]}))
    first, again, other = (split_validation(data, 10, seed) for seed in (1, 1, 2))
    assert first["validation"]["text"][:] == again["validation"]["text"][:] != other["validation"]["text"][:]
    assert sorted(first["train"]["text"][:] + first["validation"]["text"][:], key=int) == [str(i) for i in range(100)]
    assert len(first["validation"]) == 10
    assert split_validation(DatasetDict(first), 50, 0)["validation"]["text"][:] == first["validation"]["text"][:]
    with pytest.raises(ValueError, match="hold 1 sequence"):
        split_validation(DatasetDict(train=Dataset.from_dict({"text": ["x"]})), 5, 0)


def test_lengths_are_numbers_that_numpy_reads(tokenized):
    lengths = np.asarray(tokenized["train"].with_format("numpy")["length"])
    assert lengths.tolist() == [len(ids) for ids in tokenized["train"]["input_ids"]]


def test_words_that_pandas_takes_for_missing_are_text(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nNA,null\nNone,x\n,y\n")
    data = load_file(str(tmp_path / "a.csv"))
    assert data["text"][:] == ["NA", "None", None] and data["label"][:] == ["null", "x", "y"]


def test_attributes_are_named_as_in_the_data(corpus):
    data = corpus["test"]
    assert set(attribute_values(data, "tense")) == {"past", "present", "future"}
    assert attribute_values(data, "true_log_prob") == data["true_log_prob"][:]
    missing = Dataset.from_dict({"text": ["a", "b", "c"], "label": [1.0, None, 0.0]})
    assert attribute_values(missing, "label") == [1, None, 0]  # integers, as they are without the gap
    missing = Dataset.from_dict({"text": ["a", "b", "c"], "label": [0.5, float("nan"), 0.0]})
    assert attribute_values(missing, "label") == [0.5, None, 0]
    for column in ("text", "topic"):
        with pytest.raises(ValueError, match="`label`.*'tense'"):
            attribute_values(data, column)
