"""Corpus files in every form that is read, and what is said of damaged ones."""

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
        ("a.jsonl", b'{"text": 5}\n', "line 1 of .*: expected text under text; 'text' holds 5; write text there"),
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
