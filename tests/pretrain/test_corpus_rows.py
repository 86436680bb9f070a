"""Corpus files in every supported format, and the messages about damaged ones."""

import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet
import pytest

from jpeft.errors import UserError
from jpeft.pretrain.corpus_rows import read_texts

ROWS = [{"text": f"line {i}\nwith a break and ü", "source": "s"} for i in range(5)]
JSON = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", JSON),
        ("a.jsonl.xz", lzma.compress(JSON)),
        ("a.jsonl.gz", gzip.compress(JSON, mtime=0)),
        ("a.jsonl.zst", zstd(JSON)),
    ],
)
def test_json_lines(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert list(read_texts(tmp_path / name, ["text"])) == [(row["text"],) for row in ROWS]


def test_parquet(tmp_path):
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert list(read_texts(tmp_path / "a.parquet", ["source", "text"])) == [("s", row["text"]) for row in ROWS]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"text", "has the ending '.txt'"),
        ("a.jsonl", b'{"text": "a"}\n{"text"', "line 2"),
        ("a.jsonl", b"[1]\n", "expected an object"),
        ("a.jsonl", b'{"input": "a"}\n', "line 1 of .*: expected text under text; there are: input"),
        ("a.jsonl", b'{"text": null}\n', "line 1 of .*: expected text under text; 'text' holds nothing; fill it in"),
        ("a.jsonl", b'{"text": ["a"], "id": 1}\n', "line 1 of .*: expected text under text; 'text' holds a list"),
        ("a.jsonl.xz", lzma.compress(JSON)[:-20], "cannot be read"),
        ("a.jsonl.xz", b"no xz", "cannot be read"),
        ("a.jsonl.zst", b"no zstd", "cannot be read"),
        ("a.parquet", b"no parquet", "cannot be read"),
    ],
)
def test_what_can_not_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_texts(tmp_path / name, ["text"]))
    with pytest.raises(UserError, match="does not exist"):
        list(read_texts(tmp_path / "absent.jsonl", ["text"]))


def test_what_has_one_plain_way_of_being_written_is_text_as_in_a_prompt(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"input": 5, "target": true}\n{"input": 1.5, "target": "x"}\n')
    assert list(read_texts(tmp_path / "a.jsonl", ["input", "target"])) == [("5", "True"), ("1.5", "x")]
    pyarrow.parquet.write_table(pa.table({"text": pa.array([0.1, 2.0], pa.float32())}), tmp_path / "a.parquet")
    assert list(read_texts(tmp_path / "a.parquet", ["text"])) == [("0.1",), ("2.0",)]


def test_of_bytes_the_row_is_named_that_holds_no_text(tmp_path):
    pyarrow.parquet.write_table(pa.table({"text": [b"ok", b"\xff"]}), tmp_path / "a.parquet")
    read = read_texts(tmp_path / "a.parquet", ["text"])
    assert next(read) == ("ok",)
    with pytest.raises(UserError, match="row 2 of .*; 'text' holds bytes that are not UTF-8 .byte 0."):
        next(read)


def test_rows_that_may_not_be_what_was_meant_are_told(tmp_path):
    (tmp_path / "a.tsv").write_text('text\tid\n"one\t1\ntwo\t2\n')
    said: list[str] = []
    assert list(read_texts(tmp_path / "a.tsv", ["text"], report=said.append)) == [('"one',), ("two",)]
    assert len(said) == 1 and "plain text" in said[0]
