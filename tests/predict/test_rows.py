"""What is read of lines, JSON lines and arguments, and what is said of a line that cannot be used."""

import datetime
import gzip
import io
import json
import os
import sys

import pyarrow as pa
import pyarrow.parquet
import pytest

from jpeft.errors import UserError
from jpeft.predict.questions import PromptTemplate
from jpeft.predict.rows import Input, windows


@pytest.fixture
def read(tmp_path):
    """Rows of a file of these bytes."""

    def rows(content: bytes, name: str = "rows.jsonl", prompt: PromptTemplate = PromptTemplate()):  # noqa: B008
        path = tmp_path / name
        path.write_bytes(content)
        return list(Input.of((), str(path), None).rows(prompt))

    return rows


def test_a_line_of_text_ends_at_a_line_feed_alone_and_a_blank_one_is_an_input(read):
    rows = read("\ufeffone\r\n\ntwo\u2028halves\x0b\nlast".encode(), "rows.txt")
    assert [row.text for row in rows] == ["one", "", "two\u2028halves\x0b", "last"]
    assert [row.size for row in rows] == [8, 1, 14, 4]


def test_json_lines_keep_their_fields_and_blank_lines_are_no_rows(read):
    rows = read(b'{"id": 7, "input": "one", "prediction": "old"}\n\n  \n{"input": "two", "more": [1, null]}\n')
    assert [row.text for row in rows] == ["one", "two"]
    answer = {"prediction": "A", "confidence": -0.5}
    assert json.loads(rows[0].line(answer)) == {"id": 7, "input": "one", **answer}
    assert rows[1].line(answer) == '{"input": "two", "more": [1, null], "prediction": "A", "confidence": -0.5}'
    assert all(row.line(answer).encode().startswith(row.opening) for row in rows)
    assert sum(row.size for row in rows) == 47 + 1 + 3 + 36


def test_rows_that_may_not_be_what_was_meant_are_told(tmp_path, monkeypatch):
    content = 'input\tid\n"one\t1\ntwo\t2\n'
    (tmp_path / "a.tsv").write_text(content)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    for given in (Input.of((), str(tmp_path / "a.tsv"), None), Input.of((), None, "tsv")):
        said: list[str] = []
        assert [row.text for row in given.rows(PromptTemplate(), report=said.append)] == ['"one', "two"]
        assert len(said) == 1 and "plain text" in said[0]


def test_a_template_makes_the_prompt_of_other_columns(read):
    prompt = PromptTemplate.given("{a} and {b}?")
    (row,) = read(b'{"a": "x", "b": 2, "input": "not this"}', prompt=prompt)
    assert row.text == "x and 2?" and row.fields == {"a": "x", "b": 2, "input": "not this"}


def test_a_column_of_the_prompt_that_is_called_as_an_answer_is_kept_by_another_name(read):
    prompt = PromptTemplate.given("Is {prediction} right?")
    (row,) = read(b'{"id": 1, "prediction": 7, "confidence": -1}', prompt=prompt)
    assert row.text == "Is 7 right?"
    assert row.line({"prediction": "yes"}) == '{"id": 1, "input_prediction": 7, "prediction": "yes"}'
    assert row.opening == b'{"id": 1, "input_prediction": 7, "prediction": '
    with pytest.raises(UserError, match="line 1 of .* has 'prediction', .* kept as 'input_prediction', and that, too"):
        read(b'{"prediction": 7, "input_prediction": 8}', prompt=prompt)
    (line,) = read(b"7\n", "rows.txt", prompt)
    assert (line.text, line.fields) == ("Is 7 right?", {"input": "7"})


def test_the_template_of_a_run_gives_way_to_an_input_that_is_there(read):
    prompt = PromptTemplate("Topic of {text}?", required=False)
    rows = read(b'{"text": "x", "input": "y"}\n{"input": "y"}\n', prompt=prompt)
    assert [row.text for row in rows] == ["Topic of x?", "y"]
    assert [row.text for row in read(b"x\n", "rows.txt", prompt)] == ["Topic of x?"]
    assert [row.text for row in Input.of(["x", "y\nz"], None, None).rows(prompt)] == ["Topic of x?", "Topic of y\nz?"]


def test_an_input_that_is_a_part_of_the_prompt_is_not_taken_for_a_whole_one(read):
    prompt = PromptTemplate("{instruction}\n{input}", required=False)
    with pytest.raises(UserError, match="line 1 of .* has no column 'instruction', only instrction, input; --template"):
        read(b'{"instrction": "Classify", "input": "a good film"}\n', prompt=prompt)


def test_it_is_told_where_a_runs_template_gives_way(read, tmp_path):
    prompt, said = PromptTemplate("Topic of {text}, {title}?", required=False), []
    content = b'{"text": "x", "title": "t"}\n{"input": "y", "text": "x"}\n{"input": "y"}\n'
    (tmp_path / "rows.jsonl").write_bytes(content)
    list(Input.of((), str(tmp_path / "rows.jsonl"), None).rows(prompt, report=said.append))
    assert said == [
        f"line 2 of {tmp_path}/rows.jsonl has no 'title': its `input` is taken as a whole prompt, without the template",
        "2 of 3 rows were taken so",
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"input": "x"', "line 2 of .*rows.jsonl is not valid JSON"),
        (b'{"input": 1' + b"0" * 5000 + b"}", "line 2 of .* holds an integer of thousands of digits"),
        (b"[" * 100_000, "line 2 of .* is nested more than 64 levels deep"),
        (b'["x"]', "line 2 of .* is .*; expected an object"),
        (b"null", "line 2 of .* is None; expected an object"),
        (b'{"text": "x"}', "line 2 of .* has no column 'input', only text; --template"),
        (b'{"Input": "x"}', "line 2 of .* has no column 'input', .*It is written 'Input' there, not 'input'.$"),
        (b'{"v": 1, "data": [{"input": "x"}]}', "The row's 'data' is a list of objects: if they are the rows"),
        (b'{"input": null}', "line 2 of .* has nothing in 'input'"),
        (b'{"input": "\\ud800"}', "line 2 of .* holds half of a surrogate pair"),
        (b'{"input": "x", "id": "\\ud800"}', "line 2 of .* holds half of a surrogate pair"),
        (b'{"input": "\xff"}', "line 2 of .* is not UTF-8"),
    ],
)
def test_an_unusable_line_is_named(line, says, read):
    with pytest.raises(UserError, match=says) as raised:
        read(b'{"input": "fine"}\n' + line + b"\n")
    assert "\n" not in str(raised.value)


TABLE = {"input": ["one", "two; three"], "id": [7, None], "score": [0.5, float("nan")]}
KEPT = [{"input": "one", "id": 7, "score": 0.5}, {"input": "two; three", "id": None, "score": None}]


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv", "json", "jsonl.gz"])
def test_a_table_in_any_format_is_read_and_what_it_keeps_is_json(kind, tmp_path):
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        columns = {**TABLE, "image": [b"\xff", None], "day": [datetime.date(2020, 1, 2), None], "tags": [["a"], []]}
        pyarrow.parquet.write_table(pa.table(columns), path)
    elif kind in ("csv", "tsv"):
        tab = "\t" if kind == "tsv" else ","
        path.write_text(f"input{tab} id {tab}score\r\none{tab}7{tab}0.5\r\ntwo; three{tab}{tab}\r\n")
    else:
        text = '{"input": "one", "id": 7, "score": 0.5}\n{"input": "two; three", "id": null, "score": NaN}\n'
        path.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())
    given = Input.of((), str(path), None)
    rows = list(given.rows(PromptTemplate()))
    assert [row.text for row in rows] == TABLE["input"]
    kept = [json.loads(row.line({}), parse_constant=pytest.fail) for row in rows]
    if kind in ("csv", "tsv"):
        assert kept == [{k: "" if v is None else str(v) for k, v in row.items()} for row in KEPT]
    else:
        assert [{column: row[column] for column in TABLE} for row in kept] == KEPT
    if kind == "parquet":
        assert (kept[0]["image"], kept[0]["day"], kept[0]["tags"]) == ("/w==", "2020-01-02", ["a"])
    assert given.size is None if kind.endswith("gz") else sum(row.size for row in rows) <= given.size


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("NaN", "line 1 of .* has nothing in 'input'"),
        ('["a", "b"]', "line 1 of .* has a column 'input' that holds a list"),
        ('{"a": 1}', "line 1 of .* has a column 'input' that holds an object"),
    ],
)
def test_a_value_that_is_no_text_is_refused_by_line_and_column(value, says, read):
    with pytest.raises(UserError, match=says):
        read(f'{{"input": {value}, "id": 1}}\n'.encode())


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (pa.array([b"caf\xe9"]), "row 1 of .* has a column 'input' that holds bytes that are not UTF-8"),
        (pa.array([2**60], pa.timestamp("ms")), "row 1 of .* has a column .input. that holds a date or time beyond"),
    ],
)
def test_what_is_no_text_in_parquet_is_kept_beside_the_prompt_and_never_asked(column, says, tmp_path):
    pyarrow.parquet.write_table(pa.table({"input": ["x"], "more": column}), tmp_path / "kept.parquet")
    (row,) = Input.of((), str(tmp_path / "kept.parquet"), None).rows(PromptTemplate())
    assert row.text == "x" and isinstance(json.loads(row.line({}))["more"], str)
    pyarrow.parquet.write_table(pa.table({"input": column}), tmp_path / "asked.parquet")
    with pytest.raises(UserError, match=says):
        list(Input.of((), str(tmp_path / "asked.parquet"), None).rows(PromptTemplate()))


def test_standard_input_may_be_any_text_format_and_no_parquet(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"input;id\none;1\n")))
    assert [row.fields for row in Input.of((), None, "csv").rows(PromptTemplate())] == [{"input": "one", "id": "1"}]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'[{"input": "one"},\n {"input": "two"}]')))
    assert [row.text for row in Input.of((), None, "json").rows(PromptTemplate())] == ["one", "two"]
    with pytest.raises(UserError, match="Parquet cannot be read from standard input"):
        list(Input.of((), None, "parquet").rows(PromptTemplate()))


def test_standard_input_that_is_closed_is_said_so(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="standard input is closed; name a file with --input, or give texts"):
        Input.of((), None, None)
    assert [row.text for row in Input.of(["x"], None, None).rows(PromptTemplate())] == ["x"]


def test_what_a_shell_puts_in_a_files_place_is_read(tmp_path):
    read, write = os.pipe()
    os.write(write, b"one\ntwo\n")
    os.close(write)
    assert [row.text for row in Input.of((), f"/dev/fd/{read}", None).rows(PromptTemplate())] == ["one", "two"]
    os.close(read)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="--input .*pipe is not a regular file"):
        Input.of((), str(tmp_path / "pipe"), None)


def test_a_bare_text_does_not_fit_a_template_of_several_columns(read):
    with pytest.raises(UserError, match="line 1 of .* is one text and the template names a and b; give rows with"):
        read(b"x\n", "rows.txt", PromptTemplate("{a} {b}", required=False))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((["x"], "y.txt", None), "give one of them"),
        ((["x"], None, "jsonl"), "give one of them"),
        (((), "absent.txt", None), "absent.txt does not exist"),
        (((), ".", None), "is a directory"),
        (((), "table.xlsx", None), "is a .xlsx file; save it as CSV"),
    ],
)
def test_an_input_that_is_none(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.xlsx").write_text("a,b\n")
    with pytest.raises(UserError, match=says):
        Input.of(*arguments)


@pytest.mark.parametrize(
    ("format_", "first", "texts"),
    [
        (None, '{"input": "x"}', ["x", "y"]),
        (None, "x", ["x", '{"input": "y"}']),
        (None, '"x"', ['"x"', '{"input": "y"}']),
        ("lines", '{"input": "x"}', ['{"input": "x"}', '{"input": "y"}']),
        ("jsonl", "\ufeff", ["y"]),
        (None, "\ufeff\n \n", ["y"]),
        (None, "\n[1] x", ["", "[1] x", '{"input": "y"}']),
    ],
)
def test_standard_input_tells_by_its_first_line_what_it_is(format_, first, texts, monkeypatch):
    content = f'{first}\n{{"input": "y"}}\n'.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert [row.text for row in Input.of((), "-", format_).rows(PromptTemplate())] == texts


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("m.jsonlines", '{"input": "x"}\n{"input": "y"}\n', ["x", "y"]),
        ("rows", '{"input": "x"}\n', ["x"]),
        ("rows.txt", "x\n[1] y\n", ["x", "[1] y"]),
        ("rows.txt", "[1] y\nx\n", ["[1] y", "x"]),
        ("a.csv.bak", "input\nx\n", "looks like a .csv file, and its ending says nothing; give --format csv, or"),
        ("c.csv.gz.bak", "x", "looks like a packed .csv file; let its name end in .csv.gz"),
        ("a.txt", '[{"input": "x"}]', "looks like a list in JSON; give --format json, or --format lines"),
        ("a.txt", '[\n{"input": "x"}]', "looks like a list in JSON"),
        ("a.txt", '\n\n{"input": "x"}\n', ["x"]),
        ("a.txt", '{\n "input": "x"}\n', "begins with '{', which is no whole JSON object; give --format json for"),
        ("a.txt", '{"input": "x"\n{"input": "y"}\n', "--format jsonl for one in each line, or --format lines for"),
        ("a.tab", "input\tid\nx\t1\n", "looks like a .tab file, and its ending says nothing; give --format tsv, or"),
        ("a.txt", "", []),
    ],
)
def test_a_file_whose_ending_says_nothing_tells_by_its_beginning(name, content, texts, tmp_path):
    (tmp_path / name).write_text(content)
    if isinstance(texts, list):
        assert [row.text for row in Input.of((), str(tmp_path / name), None).rows(PromptTemplate())] == texts
    else:
        with pytest.raises(UserError, match=texts):
            Input.of((), str(tmp_path / name), None)
        Input.of((), str(tmp_path / name), "lines")


@pytest.mark.parametrize("content", ['[{"input": "x"}]', '\n{\n "input": "x"}', '{"input": "x"\n{"input": "y"}\n'])
def test_what_begins_as_json_and_is_no_object_is_no_line_of_text(content, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    with pytest.raises(UserError, match="standard input .*; give --format json.*, or --format lines for a prompt"):
        list(Input.of((), None, None).rows(PromptTemplate()))
    read, write = os.pipe()
    os.write(write, content.encode())
    os.close(write)
    with pytest.raises(UserError, match="/dev/fd/.*; give --format json"):
        list(Input.of((), f"/dev/fd/{read}", None).rows(PromptTemplate()))
    os.close(read)


def test_it_is_said_once_that_lines_are_plain_where_nobody_said_so(tmp_path, monkeypatch):
    (tmp_path / "rows.txt").write_text("x\ny\n")

    def said(*given) -> list[str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x\ny\n")))
        heard: list[str] = []
        assert [row.text for row in Input.of((), *given).rows(PromptTemplate(), report=heard.append)] == ["x", "y"]
        return heard

    assert said(None, None) == ["standard input is read as plain lines, a text in each (--format says otherwise)"]
    assert "rows.txt is read as plain lines, a text in each" in said(str(tmp_path / "rows.txt"), None)[0]
    assert said(None, "lines") == said(str(tmp_path / "rows.txt"), "lines") == []


def test_a_template_that_names_a_part_of_a_column_is_told_the_whole(read):
    with pytest.raises(UserError, match=r"has no column 'text.lower', .* A template names whole columns: {text}.$"):
        read(b'{"text": "x"}', prompt=PromptTemplate.given("{text.lower}"))


def test_windows_read_no_further_than_they_must(monkeypatch):
    read = []

    class Lines(io.BytesIO):
        def __next__(self):
            read.append(line := super().__next__())
            return line

        def readline(self, *arguments):
            read.append(line := super().readline(*arguments))
            return line

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Lines(b"".join(b"%d\n" % i for i in range(7)))))
    upcoming = windows(Input.of((), None, None).rows(PromptTemplate()), 3)
    assert [row.text for row in next(upcoming)] == ["0", "1", "2"] and len(read) == 3
    assert [len(window) for window in upcoming] == [3, 1]
