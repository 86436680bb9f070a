"""Reading files of rows: real-world variants, damaged and hostile files."""

import bz2
import contextlib
import csv
import datetime
import decimal
import gzip
import io
import json
import lzma
import os
import re
import uuid

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jpeft.errors import UserError
from jpeft.rows import parquet, reading, tabbed, text
from jpeft.rows.reading import read_columns, read_rows
from jpeft.rows.values import as_json, as_text

ROWS = {"input": ["one", "two, three"], "target": ["1", "2"]}


@pytest.fixture
def read(tmp_path):
    """Writes a file and returns its columns."""

    def columns(name: str, content: bytes | str):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_columns(path)

    return columns


def says(call, *arguments) -> str:
    with pytest.raises(UserError) as raised:
        call(*arguments)
    message = str(raised.value)
    assert "\n" not in message and len(message) < 600
    return message


# CSV


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_separator_is_found(read, separator, end):
    content = end.join(f'{a}{separator}"{b}"' for a, b in [("target", "input"), ("1", "one"), ("2", "two, three")])
    assert read("a.csv", content + end) == {"target": ROWS["target"], "input": ROWS["input"]}


def test_a_separator_that_stands_in_texts_only_is_not_taken(read):
    assert read("a.csv", "input;target\na, b, c;1\nd, e;2\n") == {"input": ["a, b, c", "d, e"], "target": ["1", "2"]}
    assert read("b.csv", "input,target\na; b|c,1\nd;e;f,2\n") == {"input": ["a; b|c", "d;e;f"], "target": ["1", "2"]}
    assert read("c.tsv", "input\ttarget, or label\na, b\t1\n") == {"input": ["a, b"], "target, or label": ["1"]}
    assert read("d.csv", "input\na; b\n") == {"input": ["a; b"]}
    assert read("e.csv", "sep=;\r\ninput;target\r\na,b;1\r\n") == {"input": ["a,b"], "target": ["1"]}


def test_white_space_around_the_names_of_a_header_is_no_part_of_them(read):
    assert list(read("a.csv", "\ufeff input , target\r\na, b\r\n")) == ["input", "target"]
    assert list(read("b.jsonl", '{" input": "a", "target ": "b"}\n')) == ["input", "target"]
    assert read("a.csv", "input, target\na, b\n")["target"] == [" b"]  # of values it is


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ("input,target,input", "two columns have the same name, 'input'"),
        ("input, input ", "two columns have the same name, 'input'"),
        ("input,,target", "column 2 of .* has no name"),
        ("input,target,", "column 3 of .* has no name"),
    ],
)
def test_a_header_names_each_column_once(read, header, why):
    with pytest.raises(UserError, match=why):
        read("a.csv", f"{header}\na,b,c\n")


def test_the_index_that_pandas_writes_has_the_name_that_pandas_reads(read):
    assert list(read("a.csv", ",input,target\n0,a,b\n")) == ["Unnamed: 0", "input", "target"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (
            'input,target\na,b\n"say \\"he\\" now",c\n',
            "line 3 of .* has something other than ',' after a closing quote",
        ),
        ('input,target\n"a\nb",c\n"d\ne" x,f\n', "the row of lines 4 to 5 of .* has something other than"),
        ('input,target\na,b\n"c,d\ne,f\n', "the row of lines 3 to 4 of .* has a quote that is opened and never closed"),
        ("input,target\na,b\nc\n", "line 3 of .* has 1 value, the header names 2 columns .input, target."),
        ('input,target\n"a\nb",c\nd,e,f\n', "line 4 of .* has 3 values"),
        ("input,target\na\rb,c\n", "line 2 of .* has a carriage return outside of quotes"),
        (b"input,target\nca\xe9,b\n", "line 2 of .* is not UTF-8 .byte 0xe9 at 2.; save the file as UTF-8"),
        ("input,target\na,b\n".encode("utf-16"), "line 1 of .* begins as UTF-16 does"),
        ("input,target\na,b\n".encode("utf-16-le"), "line 1 of .* holds NUL bytes"),
        (b"input,target\na\0b,c\n", "line 2 of .* holds NUL bytes"),
    ],
)
def test_a_malformed_line_of_csv_is_named(read, content, why):
    with pytest.raises(UserError, match=why):
        read("a.csv", content)


def test_fields_of_any_length_up_to_a_row_s_limit_are_read(read, monkeypatch):
    assert len(read("a.csv", f"input,target\n{'word ' * 100_000},b\n")["input"][0]) == 500_000
    monkeypatch.setattr(text, "MOST_ROW_BYTES", 1000)
    assert read("a.csv", f"input,target\n{'w' * 900},b\n")
    with pytest.raises(UserError, match="line 2 of .* has more than 1,000 bytes"):
        read("a.csv", f"input,target\n{'w' * 1000},b\n")
    with pytest.raises(UserError, match="the row that begins in line 2 of .* more than 1,000 bytes; is a quote"):
        read("a.csv", 'input,target\n"a\n' + "b,c\n" * 1000)
    with pytest.raises(UserError, match="line 1 of .* has more than 1,000 bytes"):
        read("a.jsonl", json.dumps({"input": "w" * 1000}))
    with pytest.raises(UserError, match="row 2 of .* has more than 1,000 characters"):
        read("a.json", json.dumps([{"input": "a"}, {"input": "w" * 1000}]))
    with pytest.raises(UserError, match="line 1 of .* has more than 1,000 bytes"):
        read("a.csv.gz", gzip.compress(b"w" * 2000))


# JSON


def test_not_a_number_is_a_missing_value(read):
    content = '{"input": NaN, "target": 1.0}\n{"input": "a", "target": -Infinity}\n{"input": "b", "target": 1e999}\n'
    assert read("a.jsonl", content) == {"input": [None, "a", "b"], "target": [1.0, None, None]}


@pytest.mark.parametrize("indent", [None, 1])
def test_json_is_a_list_or_objects_one_after_the_other(read, indent):
    rows = [dict(zip(ROWS, values, strict=True)) for values in zip(*ROWS.values(), strict=True)]
    assert read("a.json", json.dumps(rows, indent=indent)) == ROWS
    assert read("a.json", "\ufeff\n" + "\n".join(json.dumps(row, indent=indent) for row in rows)) == ROWS
    assert read("a.json", "[]") == read("a.json", "") == {}


@pytest.mark.parametrize(
    "table",
    [
        {"input": {"0": "a", "1": "b"}, "target": {"0": "c", "1": "d"}},  # pandas' columns
        {"columns": ["input", "target"], "index": [0], "data": [["a", "b"]]},  # pandas' split
        {"0": {"input": "a", "target": "b"}},  # pandas' index
        {"input": ["a", "b"], "target": ["c", "d"]},
        {"data": [{"input": "a", "target": "b"}]},
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_table_in_one_object_is_answered_with_the_layout_that_is_read(read, name, table):
    with pytest.raises(UserError, match="holds one object, whose .* expected an object for each row, .*'records'"):
        read(name, json.dumps(table))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('[{"input": "a"} {"input": "b"}]', "row 1 of .* is not followed by a comma .line 1."),
        ('[{"input": "a"},]', "row 1 of .* is followed by a comma and no row"),
        ('[{"input": "a"}] x', "goes on after the end of its list"),
        ('[{"input": "a"},\n{"input": }]', "row 2 of .* is not valid JSON .Expecting value, 10 characters into it"),
        ("[" * 100_000, "row 1 of .* is nested more than 64 levels deep"),
        ('[{"input": ' + "[" * 100 + "]" * 100 + "}]", "row 1 of .* is nested more than 64 levels deep"),
        ('[{"input": 1' + "0" * 5000 + "}]", "row 1 of .* holds an integer of thousands of digits"),
        ('[{"input": "\\ud800"}]', "row 1 of .* holds half of a surrogate pair"),
        ('[{"\\ud800": "a"}]', "row 1 of .* holds half of a surrogate pair"),
        ('[["a", "b"]]', r"row 1 of .* is \['a', 'b'\]; expected an object with the columns"),
        ("[3]", "row 1 of .* is 3; expected an object"),
        ('{"input": "a"}\n{"input"', "row 2 of .* is not valid JSON"),
    ],
)
def test_a_malformed_row_of_json_is_named(read, content, why):
    with pytest.raises(UserError, match=why):
        read("a.json", content)


@pytest.mark.parametrize("piece", [1, 2, 7, 64])
def test_json_is_read_piece_by_piece(read, monkeypatch, piece):
    monkeypatch.setattr(text, "_PIECE", piece)
    rows = [{"input": f"é \u2028 {i} \\ ]", "target": i} for i in range(20)]
    for content in (json.dumps(rows, ensure_ascii=False), "\n".join(json.dumps(row, indent=1) for row in rows)):
        columns = read("a.json", "\ufeff" + content)
        assert columns == {column: [row[column] for row in rows] for column in ("input", "target")}
    assert "line 3" in says(read, "a.json", '[{"input": "a"},\n{"input": "b"}\n{"input": "c"}]')
    assert "is not UTF-8 (byte 0xe9)" in says(read, "a.json", b'[{"input": "caf\xe9"}]')


def test_a_row_of_json_that_never_ends_is_refused_before_it_is_in_memory(read, monkeypatch):
    monkeypatch.setattr(text, "MOST_ROW_BYTES", 2000)
    monkeypatch.setattr(text, "_PIECE", 100)
    too_long = "a row may have 2,000 characters at most"
    assert too_long in says(read, "a.json", '[{"input": "a"}, {"input": "' + "b" * 10**6 + '"}]')
    assert too_long in says(read, "a.json", '[{"input": [' + "{}," * 10**5 + "{}]}]")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.jsonl", '{"input": "a", "target": "x", "target": "y"}', r"line 1 of .* has the key 'target' twice"),
        ("a.json", '[{"a": "1"}, {"a": "x: y", "b": {"c": 1, "c": 2}}]', "row 2 of .* has the key 'c' twice"),
        ("a.jsonl", '[{"input": "a"},\n{"input": "b"}]', "line 1 of .* not one whole JSON object.* ends in .json"),
        ("a.jsonl", '{\n"input": "a"\n}', "line 1 of .* not one whole JSON object.* ends in .json"),
    ],
)
def test_what_json_would_read_otherwise_than_it_was_meant_is_refused(read, name, content, why):

    assert re.search(why, says(read, name, content))
    assert read("b.jsonl", '{"a: b": "c: d", "e": {"f": "g:h"}}') == {"a: b": ["c: d"], "e": [{"f": "g:h"}]}


def test_under_a_header_with_spaces_behind_separators_a_quote_there_opens_a_value(read):
    content = 'input, target\n"a, b", "pos"\nc, neg\n'
    assert read("a.csv", content) == {"input": ["a, b", "c"], "target": ["pos", "neg"]}


# Quotes


def table(separator: str, **instead: str) -> str:
    """Returns a file of 60 texts and their classes, from line 2 on; `r5` is the whole line of text 5."""
    lines = [f"text {i}{separator}{'pos' if i % 2 else 'neg'}" for i in range(60)]
    for row, line in instead.items():
        lines[int(row[1:])] = line
    return "\n".join([f"input{separator}target", *lines]) + "\n"


@pytest.fixture
def heard(tmp_path):
    """Writes a file; returns its columns and the reported lines."""

    def columns(name: str, content: str):
        (tmp_path / name).write_text(content)
        said: list[str] = []
        return read_columns(tmp_path / name, report=said.append), said

    return columns


@pytest.mark.parametrize("separator", [",", ";", "|", ", "])
def test_quotes_that_make_one_row_of_many_in_a_csv_are_refused_with_their_lines(read, separator):
    content = table(separator, r5=f'"text 5{separator}pos', r25=f'text 25"{separator}pos')
    why = "lines 7 to 27 of .* are one row, for a quote that is opened in the first is closed in the last only"
    for each in (content, content.replace("input, ", "input,")):
        assert re.search(why, says(read, "a.csv", each))


def test_rows_that_leave_a_column_empty_are_rows_too(read):
    lines = ["id,text,label,note", *(f"{i},text {i},a," for i in range(60))]
    lines[6], lines[26] = '5,"text 5,a,', '25,text 25",a,'
    assert "lines 7 to 27 of" in says(read, "a.csv", "\n".join(lines))


def test_several_values_of_lines_in_a_row_are_read_without_a_word(heard):
    columns, said = heard("a.csv", 'input,target\n"a,b\nc","d\ne,f\ng,h"\n')
    assert columns == {"input": ["a,b\nc"], "target": ["d\ne,f\ng,h"]} and said == []


def test_few_lines_in_quotes_that_may_be_rows_are_said(heard, tmp_path):
    columns, said = heard("a.csv", table(",", r5='"text 5,pos', r6='text 6",neg', r8='"text 8,neg', r9='text 9",pos'))
    assert len(columns["input"]) == 58 and "text 5,pos\ntext 6" in columns["input"]
    assert len(said) == 2 and said[0].startswith("lines 7 to 8 of ") and "a.csv are one row, in quotes" in said[0]
    assert said[1] == f"1 more row of {tmp_path}/a.csv has lines that look like rows, the last in lines 10 to 11"
    columns, said = heard("b.csv", 'input\ntext 0\n"text 1\ntext 2\ntext 3\ntext 4\ntext 5"\ntext 6\n')
    assert len(columns["input"]) == 3 and len(said) == 1 and said[0].startswith("lines 3 to 7 of ")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "input\na\ninput\nb\ninput\ninput\n", "2 more rows of {} have the header again, the last in line 6"),
        ("a.csv", 'input\n"a\nb"\n"c\nd"\n', "1 more row of {} has several lines, the last in lines 4 to 5"),
        (
            "a.tsv",
            'input\ttarget\n"a\tb\n"c\td\n"e\tf\n',
            "2 more rows of {} have a value that begins with an unclosed quote, the last in line 4",
        ),
    ],
)
def test_further_rows_of_a_doubtful_kind_are_counted_in_a_sentence(name, content, says, heard, tmp_path):
    _, said = heard(name, content)
    assert len(said) == 2 and said[1] == says.format(tmp_path / name)


@pytest.mark.parametrize(
    "value",
    [
        "Dear sir,\nI write to you,\nin haste,\nyours,\nBob",
        "roses, red\nviolets, blue\nsugar, sweet\nand so, too\nare you",
        "one\ntwo\n\nthree\nfour",
        "name,age\nBob,3\nAl,4\nJo,5\nMo,6",
        "a, b, c\n" * 5,
    ],
)
def test_a_value_of_several_lines_is_read_without_a_word(heard, value):
    rest = [{"input": f"text {i}", "target": "neg"} for i in range(60)]
    for header in (["input", "target"], ["target", "input"]):
        content = io.StringIO()
        writer = csv.DictWriter(content, header, lineterminator="\n")
        writer.writeheader()
        writer.writerows([{"input": value, "target": "pos"}, *rest])
        columns, said = heard("a.csv", content.getvalue())
        assert columns["input"][0] == value and len(columns["input"]) == 61 and said == []


def test_a_quote_in_a_file_with_tabs_is_plain_text_where_no_value_stands_in_it(heard):
    columns, said = heard("a.tsv", table("\t", r5='"text 5\tpos', r25='text 25"\tpos', r30='"Oh", he said\tneg'))
    assert len(columns["input"]) == 60 and set(columns["target"]) == {"pos", "neg"}
    assert [columns["input"][i] for i in (5, 25, 30)] == ['"text 5', 'text 25"', '"Oh", he said']
    assert len(said) == 1 and said[0].startswith("line 7 of ") and "is read as plain text" in said[0]
    columns, said = heard("b.csv", table("\t", r5='"text\tpos"', r7='pos 7\t"neg', r9='"6" x 9" board"\tpos'))
    assert (columns["input"][5], columns["target"][5], columns["target"][7]) == ('"text', 'pos"', '"neg')
    assert columns["input"][9] == '"6" x 9" board"' and len(columns["input"]) == 60
    assert [line[:10] for line in said] == ["line 7 of ", "1 more row"]


def test_a_whole_value_in_quotes_of_a_file_with_tabs_is_what_stands_in_them(heard):
    values = ['a "b" c', "one\ttwo", "three\t", "\tfour", 'first\nsecond\n\nlast, "it"', '"', "", ' "x" ', "a\r\nb"]
    for header in (["input", "target"], ["target", "input"], ["id", "input", "note"]):
        content = io.StringIO()
        writer = csv.writer(content, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\r\n")
        writer.writerow(header)
        writer.writerows([value if name == "input" else f"{name} {value}" for name in header] for value in values)
        columns, said = heard("a.tsv", content.getvalue())
        assert columns["input"] == values and said == []
        assert all(columns[name] == [f"{name} {value}" for value in values] for name in header if name != "input")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ('"first\nsecond\tthird"\tpos', "line 2 of .* has 1 value, .* a quote is plain text .* tabs or line breaks"),
        ("a\rb\tpos", "line 2 of .* has a carriage return outside of quotes"),
        ('"a\nb"\tpos\tneg', "lines 2 to 3 of .* has 3 values"),
    ],
)
def test_a_malformed_line_of_a_file_with_tabs_is_named(read, row, why):
    assert re.search(why, says(read, "a.tsv", f"input\ttarget\n{row}\nc\tneg\n"))


def test_an_open_quote_in_a_file_of_one_column_with_tabs_takes_no_other_rows(heard, monkeypatch):
    columns, said = heard("a.tsv", 'input\ntext 0\n"text 1\ntext 2\n')
    assert columns == {"input": ["text 0", '"text 1', "text 2"]} and "plain text" in said[0]
    columns, said = heard("a.tsv", 'input\n"text 0\ntext 1"\ntext 2\n')
    assert columns == {"input": ["text 0\ntext 1", "text 2"]} and said[0].startswith("lines 2 to 3 of ")
    monkeypatch.setattr(tabbed, "MOST_LINES_IN_QUOTES", 3)
    columns, _ = heard("a.tsv", 'a\tb\n0\t"text 0\n' + "1\t1\n" * 5)
    assert columns["b"] == ['"text 0', *"11111"]
    assert len(heard("a.tsv", 'input\n"text 0\n1\n2\n3\n4"\n')[0]["input"]) == 5


@pytest.mark.parametrize("header", ["input,target", "input, target"])
@pytest.mark.parametrize("first", ["plain, pos", '"text, 1", "pos"', "plain,pos"])
def test_a_quote_behind_a_space_opens_a_value_wherever_the_first_one_stands(read, header, first):
    columns = read("a.csv", f'{header}\n{first}\ntext, "pos"\n"text, ""2""", "neg"\n"a\nb", "pos"\n')
    assert columns["input"][1:] == ["text", 'text, "2"', "a\nb"]
    assert columns["target"] == ["pos", "pos", "neg", "pos"]


def test_a_quote_behind_a_space_that_comes_late_is_refused_and_one_within_a_text_is_text(read):
    late = table(",") + 'text 60, "pos"\n'
    assert "line 62 of" in (message := says(read, "a.csv", late)) and "remove the space" in message
    texts = 'target,input\npos, "great" he said\nneg, "bad" too\n'
    assert read("a.csv", texts)["input"] == [' "great" he said', ' "bad" too']
    written = 'input,target\n"a, ""b"""," ""c"""\n'
    assert read("a.csv", written) == {"input": ['a, "b"'], "target": [' "c"']}
    assert read("a.tsv", 'input\ttarget\ntext\t "pos"\n') == {"input": ["text"], "target": ["pos"]}


def test_a_header_that_comes_again_is_refused_with_its_line(read, heard):
    for name, separator in (("a.csv", ","), ("a.tsv", "\t")):
        whole = table(separator)
        assert "line 62 of" in (message := says(read, name, whole + whole)) and "repeats the header" in message
        assert "line 62 of" in says(read, name, whole + "\ufeff" + whole)
        assert "line 62 of" in says(read, name, whole + f'"target"{separator} input \na{separator}b\n')
    columns, said = heard("a.csv", "word\none\nword\ntwo\n")
    assert columns == {"word": ["one", "word", "two"]} and said[0].startswith("line 3 of ")


def test_the_line_that_names_the_separator_may_stand_in_quotes(read):
    for line in ('"sep=;"', "sep=;", "\ufeffsep=;"):
        assert read("a.csv", f"{line}\r\ninput;target\r\na,b;1\r\n") == {"input": ["a,b"], "target": ["1"]}


# Parquet


def write(path, table, **how):
    pyarrow.parquet.write_table(table if isinstance(table, pa.Table) else pa.table(table), path, **how)
    return path


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.string_view()])
@pytest.mark.parametrize(
    "how", [{}, {"use_dictionary": False}, {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"}]
)
def test_text_of_a_parquet_file_is_text_however_it_is_stored(tmp_path, kind, how):
    values = ["a", None, "é", "a"] * 200
    array = pa.array(values, pa.string()).cast(kind)
    assert read_columns(write(tmp_path / "a.parquet", {"input": array}, **how)) == {"input": values}


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("begin", [b"", b"\xef\xbb\xbf"], ids=["", "byte order mark"])
def test_sizes_of_rows_are_bytes_of_the_file(name, begin, tmp_path):
    rows = [json.dumps({"input": text}, ensure_ascii=False) for text in ("天地玄黄" * 50, "plain", "宇宙😀" * 30)]
    content = begin + ("\n".join(rows) if name == "a.jsonl" else f"[{', '.join(rows)}]").encode()
    (tmp_path / name).write_bytes(content)
    counted = sum(row.size for row in read_rows(tmp_path / name))
    # Of a .json file the end of the list, after the last row, is of no row, nor is a byte order mark.
    assert len(content) - len(begin) - 1 <= counted <= len(content)


@pytest.mark.parametrize("size", [3, 5])
def test_text_of_a_fixed_size_is_text_without_what_fills_it_up(tmp_path, size):
    array = pa.array([text.encode().ljust(size, b"\0") for text in ("pos", "neg")], pa.binary(size))
    for each in (array, array.dictionary_encode()):
        assert read_columns(write(tmp_path / "a.parquet", {"target": each})) == {"target": ["pos", "neg"]}


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.float64(), [0.1, 0.7, None, 2.0, -1e-3]),
        (pa.float32(), [0.1, 0.7, None, 2.0, -1e-3, 100000008.0]),
        (pa.float16(), [0.1, 0.7, None, 2.0, 65504.0]),
    ],
)
def test_numbers_of_few_bits_are_the_numbers_that_were_written(kind, values, tmp_path):
    assert read_columns(write(tmp_path / "a.parquet", {"a": pa.array(values, kind)})) == {"a": values}


class Ordinal(pa.ExtensionType):
    """A type like pandas' Period, whose storage is not what its values mean."""

    def __init__(self):
        super().__init__(pa.int64(), "pandas.ordinal")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized) -> "Ordinal":
        return cls()


@pytest.mark.parametrize("is_registered", [True, False])
def test_values_of_an_unknown_extension_type_are_refused_by_its_name_and_never_its_storage(is_registered, tmp_path):
    columns = {"month": pa.ExtensionArray.from_storage(Ordinal(), pa.array([600, 601])), "input": pa.array(["a", "b"])}
    with contextlib.ExitStack() as stack:
        if is_registered:
            pa.register_extension_type(Ordinal())
            stack.callback(pa.unregister_extension_type, "pandas.ordinal")
        read = read_columns(write(tmp_path / "a.parquet", columns))
    assert read["input"] == ["a", "b"] and "cannot be read" in str(as_json(read["month"][0]))
    with pytest.raises(ValueError, match="its type is 'pandas.ordinal', an unknown extension of Arrow.*; write text"):
        as_text(read["month"][1])


def test_text_and_moments_of_an_unknown_extension_type_are_read_as_they_are_stored(tmp_path):
    named = {b"ARROW:extension:name": b"sql:json"}
    fields = [pa.field("text", pa.string(), metadata=named), pa.field("at", pa.timestamp("us"), metadata=named)]
    table = pa.table([["{}"], pa.array([0], pa.timestamp("us"))], schema=pa.schema(fields))
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    columns = read_columns(tmp_path / "a.parquet")
    assert columns["text"] == ["{}"] and str(columns["at"][0]) == "1970-01-01 00:00:00"


def test_floats_are_read_as_their_shortest_digits_but_integers_exactly(tmp_path):
    pa.parquet.write_table(pa.table({"x": pa.array([0.1, 100000008.0, 1e20], pa.float32())}), tmp_path / "a.parquet")
    assert read_columns(tmp_path / "a.parquet")["x"] == [0.1, 100000008.0, 1e20]


def test_values_of_arrows_own_extension_types_are_read(tmp_path):
    one = uuid.UUID(int=7)
    stored = {
        "uuid": (pa.uuid(), pa.array([one.bytes], pa.binary(16))),
        "bool8": (pa.bool8(), pa.array([1], pa.int8())),
        "json": (pa.json_(), pa.array(['{"a": 1}'])),
    }
    columns = {name: pa.ExtensionArray.from_storage(*each) for name, each in stored.items()}
    read = read_columns(write(tmp_path / "a.parquet", columns))
    assert read == {"uuid": [one], "bool8": [True], "json": ['{"a": 1}']}


def test_other_values_of_a_parquet_file_keep_their_kinds(tmp_path):
    columns = {
        "float": pa.array([1.5, float("nan"), float("inf"), None]),
        "int": pa.array([1, 2, None, 2**60]),
        "bool": pa.array([True, False, None, True]),
        "list": pa.array([["a"], [], None, ["b", "c"]]),
        "struct": pa.array([{"x": 1}, {"x": None}, None, {"x": 2}]),
        "category": pa.array(["p", "n", None, "p"]).dictionary_encode(),
        "image": pa.array([b"\xff\xd8", b"\xff", None, b"ok"]),
        "nanoseconds": pa.array([1, 2, None, 3], pa.timestamp("ns")),
        "far": pa.array([2**40, 0, None, 0], pa.timestamp("s")),
    }
    read = read_columns(write(tmp_path / "a.parquet", columns))
    assert read["float"] == [1.5, None, None, None]
    assert read["int"] == [1, 2, None, 2**60]
    assert read["bool"] == [True, False, None, True]
    assert read["list"] == [["a"], [], None, ["b", "c"]]
    assert read["struct"] == [{"x": 1}, {"x": None}, None, {"x": 2}]
    assert read["category"] == ["p", "n", None, "p"]
    assert read["image"] == [b"\xff\xd8", b"\xff", None, "ok"]
    assert read["nanoseconds"][2] is None and read["far"][2] is None


def test_moments_that_differ_by_nanoseconds_stay_apart(tmp_path):
    times = pa.array([1, 2, 3000, None, 12 * 3600 * 10**9], pa.time64("ns"))
    columns = {
        "time": times,
        "again": times.dictionary_encode(),
        "stamp": pa.array([1, 2, 3000, None, 0], pa.timestamp("ns")),
        "struct": pa.StructArray.from_arrays([times], ["t"]),
        "list": pa.array([[1, 2], [3000], [], None, [None]], pa.list_(pa.time64("ns"))),
        "large": pa.array([[1, 2], [3000], [], None, [None]], pa.large_list(pa.time64("ns"))),
        # Without a missing pair: pyarrow 21 cannot write one.
        "pair": pa.array([[1, 2], [3000, 1], [4, 5], [6, 7], [None, 2]], pa.list_(pa.time64("ns"), 2)),
        "map": pa.array([[("a", 1)], [("a", 2)], [], None, [("b", 3)]], pa.map_(pa.string(), pa.time64("ns"))),
    }
    read = read_columns(write(tmp_path / "a.parquet", columns))
    shown = ["00:00:00.000000001", "00:00:00.000000002", "00:00:00.000003", "None", "12:00:00"]
    assert [str(value) for value in read["time"]] == shown
    assert [str(value) for value in read["again"]] == shown
    assert len({str(value) for value in read["stamp"]}) == 5
    assert [str(value and value["t"])[:18] for value in read["struct"]][:2] == shown[:2]
    assert all([str(each) for each in read[column][0]] == shown[:2] for column in ("list", "large", "pair"))
    assert [read["map"][i][0][1] for i in (0, 1)] == shown[:2]


def test_bytes_are_text_value_by_value_whatever_stands_beside_them(tmp_path):
    path = write(tmp_path / "a.parquet", {"input": pa.array([b"ok", b"\xff", None])})
    assert read_columns(path) == {"input": ["ok", b"\xff", None]}


def test_values_of_a_parquet_file_do_not_depend_on_how_they_are_stored(tmp_path):
    digits = pa.array([decimal.Decimal(0), decimal.Decimal("1.5"), None], pa.decimal128(38, 18))
    read = read_columns(write(tmp_path / "a.parquet", {"a": digits}))
    assert read == {"a": ["0." + 18 * "0", "1.5" + 17 * "0", None]}
    lasting = datetime.timedelta(days=1, seconds=1)
    for unit in ("s", "us", "ns"):
        (read,) = read_columns(write(tmp_path / "a.parquet", {"a": pa.array([lasting], pa.duration(unit))}))["a"]
        assert str(read) == "1 day, 0:00:01"


def test_a_column_that_cannot_be_read_is_refused_where_it_is_used(tmp_path):
    times = pa.array([0, 1], pa.timestamp("s", "Mars/Olympus"))
    read = read_columns(write(tmp_path / "a.parquet", {"text": ["a", "b"], "time": times}))
    assert read["text"] == ["a", "b"]
    with pytest.raises(ValueError, match="cannot be read .*Mars/Olympus"):
        as_text(read["time"][0])
    assert read_columns(write(tmp_path / "b.parquet", {"": [0], "b": ["c"]})) == {"Unnamed: 0": [0], "b": ["c"]}
    assert "has a column without a name" in says(read_columns, write(tmp_path / "b.parquet", {"b": ["c"], "": ["a"]}))


def test_a_parquet_file_of_kilobytes_that_holds_gigabytes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MOST_BYTES", 10**6)
    monkeypatch.setattr(parquet, "_SUSPECT_BYTES", 10**6)
    monkeypatch.setattr(parquet, "MOST_VALUES", 10**5)
    monkeypatch.setattr(parquet, "_MOST_NESTED_BYTES", 10**5)
    text_ = "a" * 10**5
    same = write(tmp_path / "same.parquet", {"input": [text_] * 100})
    assert "holds more than 1,000,000 bytes of rows" in says(read_columns, same)
    packed = write(tmp_path / "packed.parquet", {"input": [text_] * 100}, use_dictionary=False, compression="zstd")
    assert "which no text does" in says(read_columns, packed)
    starts = write(
        tmp_path / "starts.parquet",
        {"input": [f"{text_}{i}" for i in range(100)]},
        use_dictionary=False,
        column_encoding="DELTA_BYTE_ARRAY",
    )
    assert "holds more than 1,000,000 bytes of rows" in says(read_columns, starts)
    missing = write(tmp_path / "missing.parquet", {"input": pa.nulls(200_000, pa.string())})
    assert "has 200,000 values in one row group" in says(read_columns, missing)
    lists = pa.ListArray.from_arrays([0, 50_000], pa.nulls(50_000, pa.int32()))
    assert "holds lists or objects of more than" in says(read_columns, write(tmp_path / "l.parquet", {"input": lists}))
    assert all(os.path.getsize(file) < 200_000 for file in tmp_path.iterdir())
    monkeypatch.setattr(parquet, "MOST_ROW_BYTES", 1000)
    assert "has a value of 100,000 bytes" in says(read_columns, same)


def test_rows_times_columns_are_bounded(read, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MOST_CELLS", 1000)
    many = "".join(json.dumps({f"c{i}": 1}) + "\n" for i in range(200))  # each row a column of its own
    assert "holds more than 1,000 values, rows times columns" in says(read, "a.jsonl", many)
    path = write(tmp_path / "a.parquet", {"a": pa.nulls(600), "b": pa.nulls(600)})
    assert "holds more than 1,000 values, rows times columns" in says(read_columns, path)


def test_columns_are_bounded(read, tmp_path, monkeypatch):
    monkeypatch.setattr(text, "MOST_COLUMNS", 3)
    assert "has 4 columns; expected 3 at most" in says(read, "a.csv", "a,b,c,d\n1,2,3,4\n")
    assert "has 4 columns; expected 3 at most" in says(read, "a.jsonl", '{"a": 1, "b": 2, "c": 3, "d": 4}')
    path = write(tmp_path / "a.parquet", {column: [1] for column in "abcd"})
    assert "has 4 columns; expected 3 at most" in says(read_columns, path)


def test_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["input", "input "])
    with pytest.raises(UserError, match="two columns have the same name, 'input'"):
        read_columns(write(tmp_path / "a.parquet", table))


# Files


def zst(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("ending", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zst)]
)
@pytest.mark.parametrize("name", ["a.csv", "a.JSONL", "a.json", "a.ndjson"])
def test_text_may_be_packed_and_endings_be_in_capitals(read, name, ending, pack):
    content = b"input,target\na,b\n" if name == "a.csv" else b'{"input": "a", "target": "b"}\n'
    assert read(name + ending, pack(content)) == {"input": ["a"], "target": ["b"]}
    assert "cannot be read (" in says(read, name + ending, pack(content)[:-4])
    assert "cannot be read (" in says(read, name + ending, b"not packed")


@pytest.mark.parametrize(
    ("ending", "pack", "damage"),
    [
        (".bz2", bz2.compress, lambda stream: b"x" + stream[1:]),
        (".xz", lzma.compress, lambda stream: b"x" + stream[1:]),
        (".gz", gzip.compress, lambda stream: b"x" + stream[1:]),
        (".bz2", bz2.compress, lambda stream: stream[:-5]),
        (".xz", lzma.compress, lambda stream: stream[:-5]),
        (".bz2", bz2.compress, lambda stream: b"garbage"),
        (".zst", zst, lambda stream: b"x" + stream[1:]),
        (".zst", zst, lambda stream: stream[:-5]),
    ],
)
def test_all_streams_of_a_packed_file_are_read_or_it_is_refused(read, ending, pack, damage):
    """As written by parallel compressors, or by `cat` of several files."""
    first, second = pack(b"input,target\na,b\n"), pack(b"c,d\n" * 5_000)
    whole = {"input": ["a", *["c"] * 5_000], "target": ["b", *["d"] * 5_000]}
    assert read("a.csv" + ending, first + second) == whole
    assert "cannot be read (" in says(read, "a.csv" + ending, first + damage(second))


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_what_follows_a_packed_file_and_is_something_else_is_said_alike_of_every_kind(read, ending, pack):
    first, second = pack(b"input,target\na,b\n"), pack(b"c,d\n")
    for behind in (b"garbage", second + b"ga"):
        said = says(read, "a.csv" + ending, first + behind)
        which = 2 if behind == b"garbage" else 3
        assert f"(its compressed stream {which} is damaged, or other data follows the last one; pack it again)" in said


def test_an_xz_file_may_be_filled_up_with_zeros(read):
    first, second = lzma.compress(b"input,target\na,b\n"), lzma.compress(b"c,d\n")
    zeros = b"\0" * 2**17
    assert read("a.csv.xz", first + zeros + second + zeros) == {"input": ["a", "c"], "target": ["b", "d"]}


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_a_text_of_parquet_that_is_none_stays_bytes_as_in_a_column_of_bytes(kind, tmp_path):
    """An error names the row only if the column is needed."""
    values = [b"fine"] * 300 + [b"a\xff", None, b"other"]
    texts = pa.array(values, pa.binary()).view(pa.string()).cast(kind)
    pyarrow.parquet.write_table(pa.table({"input": texts}), tmp_path / "a.parquet")
    assert read_columns(tmp_path / "a.parquet")["input"] == ["fine"] * 300 + [b"a\xff", None, "other"]


def test_a_list_of_texts_of_parquet_that_are_none_is_told_of_with_its_column(tmp_path):
    texts = pa.ListArray.from_arrays([0, 1], pa.array([b"a\xff"], pa.binary()).view(pa.string()))
    pyarrow.parquet.write_table(pa.table({"tags": texts}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"column 'tags' of .*a\.parquet holds bytes that are not UTF-8"):
        read_columns(tmp_path / "a.parquet")


@pytest.mark.parametrize("column", [pa.array([13_890_172], pa.date32()), pa.array([10**15], pa.timestamp("s"))])
def test_a_moment_past_any_calendar_is_no_text(tmp_path, column):
    path = write(tmp_path / "a.parquet", pa.table({"input": ["a"], "when": column}))
    [value] = read_columns(path)["when"]
    with pytest.raises(ValueError, match="holds a date or time beyond any calendar, 1"):
        as_text(value)
    assert as_json(value) == str(value)


def test_what_is_no_file_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    (tmp_path / "d.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    assert "cannot be read (" in says(read_columns, tmp_path / "loop.csv")
    assert "is a directory" in says(read_columns, tmp_path / "d.csv")
    assert "is not a regular file" in says(read_columns, tmp_path / "pipe.csv")
    assert "does not exist" in says(read_columns, tmp_path / "absent.csv")
    assert "cannot be read (" in says(read_columns, tmp_path / f"{'long' * 2000}.csv")
    assert "cannot be read (" in says(read_columns, tmp_path / "nul\0.csv")
    assert "has the ending '.xlsx'; jpeft reads .jsonl" in says(read_columns, write(tmp_path / "a.xlsx", {"a": [1]}))


SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAMES = st.sampled_from(["a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet", "a.csv.gz", "a.jsonl.zst", "a.json.bz2"])
PIECES = st.sampled_from(
    [*(bytes([byte]) for byte in b'"\\{}[]:,;\n\r\t\0\xff '), b"NaN", b"1e9", b'{"a": 1}', b'"input"', b"null"]
    + [b"\xef\xbb\xbf", b"sep=", b"\\ud800", b"PAR1", b"input,target\n", "é".encode()]
)


@given(name=NAMES, pieces=st.lists(PIECES, max_size=12), packed=st.booleans())
@SETTINGS
def test_whatever_a_file_holds_it_is_read_or_refused_in_one_line(read, name, pieces, packed):
    content = b"".join(pieces)
    content = gzip.compress(content) if packed and name.endswith(".gz") else content
    try:
        columns = read(name, content)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert len({len(values) for values in columns.values()}) <= 1


@given(damage=st.integers(0, 800), byte=st.integers(0, 255))
@example(damage=196, byte=0)  # over these pyarrow ends the process if it is asked for a column's metadata
@example(damage=198, byte=5)
@SETTINGS
def test_a_damaged_parquet_file_is_read_or_refused_in_one_line(tmp_path, damage, byte):
    path = write(tmp_path / "a.parquet", {"input": ["a", "b"] * 5, "target": [1, 2] * 5})
    content = bytearray(path.read_bytes())
    content[damage % len(content)] = byte
    path.write_bytes(content)
    try:
        list(read_rows(path))
    except UserError as error:
        assert "\n" not in str(error)


@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "input": st.text(st.characters(exclude_characters="\0\r", codec="utf-8")),
                "target": st.text("ab,;|\"' \n"),
            }
        ),
        min_size=2,
    )
)
@SETTINGS
def test_what_pythons_csv_writer_writes_is_read_back(tmp_path, rows):
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["input", "target"])
        writer.writeheader()
        writer.writerows(rows)
    assert read_columns(tmp_path / "a.csv") == {column: [row[column] for row in rows] for column in ("input", "target")}
