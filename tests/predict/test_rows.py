"""What is read of lines, JSON lines and arguments, and what is said of a line that can not be used."""

import io
import json
import sys

import pytest

from jpeft.errors import UserError
from jpeft.predict.prompt import Prompt
from jpeft.predict.rows import Input, windows


@pytest.fixture
def read(tmp_path):
    """Rows of a file of these bytes."""

    def rows(content: bytes, name: str = "rows.jsonl", prompt: Prompt = Prompt()):  # noqa: B008
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


def test_a_template_makes_the_prompt_of_other_columns(read):
    prompt = Prompt.given("{a} and {b}?")
    (row,) = read(b'{"a": "x", "b": 2, "input": "not this"}', prompt=prompt)
    assert row.text == "x and 2?" and row.fields == {"a": "x", "b": 2, "input": "not this"}


def test_the_template_of_a_run_gives_way_to_an_input_that_is_there(read):
    prompt = Prompt("Topic of {text}?", required=False)
    rows = read(b'{"text": "x", "input": "y"}\n{"input": "y"}\n', prompt=prompt)
    assert [row.text for row in rows] == ["Topic of x?", "y"]
    assert [row.text for row in read(b"x\n", "rows.txt", prompt)] == ["Topic of x?"]
    assert [row.text for row in Input.of(["x", "y\nz"], None, None).rows(prompt)] == ["Topic of x?", "Topic of y\nz?"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"input": "x"', "line 2 of .*rows.jsonl is not valid JSON"),
        (b'{"input": 1' + b"0" * 5000 + b"}", "line 2 of .* holds an integer of thousands of digits"),
        (b"[" * 100_000, "line 2 of .* is nested more than 64 levels deep"),
        (b'["x"]', "line 2 of .* is .*; expected an object"),
        (b"null", "line 2 of .* is None; expected an object"),
        (b'{"text": "x"}', "line 2 of .* has no column 'input', only text; --template"),
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


def test_a_bare_text_does_not_fit_a_template_of_several_columns(read):
    with pytest.raises(UserError, match="line 1 of .* is one text and the template names a and b; give rows with"):
        read(b"x\n", "rows.txt", Prompt("{a} {b}", required=False))


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
    ],
)
def test_standard_input_tells_by_its_first_line_what_it_is(format_, first, texts, monkeypatch):
    content = f'{first}\n{{"input": "y"}}\n'.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert [row.text for row in Input.of((), "-", format_).rows(Prompt())] == texts


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
    upcoming = windows(Input.of((), None, None).rows(Prompt()), 3)
    assert [row.text for row in next(upcoming)] == ["0", "1", "2"] and len(read) == 3
    assert [len(window) for window in upcoming] == [3, 1]
