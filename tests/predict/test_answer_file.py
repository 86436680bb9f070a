"""A file of answers: what is kept of it, what is refused, and when it takes its name."""

import json
import os
import re

import pytest

from jpeft.errors import Busy, RunFailed, UserError
from jpeft.predict.answer_file import AnswerFile
from jpeft.predict.questions import Question
from jpeft.predict.rows import RowToAnswer

CALL = {"model": "mini", "num_beams": 1}
ROWS = [RowToAnswer(Question.as_it_stands(text), {"input": text}) for text in ("one", "two", "three", "four")]
LINE_OF = lambda row: row.line({"prediction": row.text.upper(), "confidence": -0.5})
LINES = [LINE_OF(row) for row in ROWS]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "answers.jsonl"


def answer(path, *, rows=ROWS, call=CALL, stop_after=None, overwrite=False) -> int:
    """Answers what is left, two rows a window; how many that was."""
    written = 0
    with AnswerFile(path, call, overwrite=overwrite) as file:
        for start in range(0, len(rows), 2):
            if start == stop_after:
                return written
            window = rows[start : start + 2]
            before = file.answered(window)
            if before < len(window):
                file.write([LINE_OF(row) for row in window[before:]])
                written += len(window) - before
        file.finish()
    return written


def content(path) -> list[str]:
    return path.read_text().split("\n")[:-1]


def test_it_takes_its_name_when_all_are_there(path):
    assert answer(path, stop_after=2) == 2
    partial = path.with_name("answers.jsonl.partial")
    assert not path.exists() and content(partial) == LINES[:2]
    assert answer(path) == 2
    assert content(path) == LINES and not partial.exists()
    assert json.loads(path.with_name("answers.jsonl.call.json").read_text()) == CALL
    assert answer(path) == 0 and content(path) == LINES


def test_a_link_stays_and_what_it_leads_to_is_written(path):
    real = path.with_name("real.jsonl")
    real.write_text("old\n")
    path.symlink_to(real)
    assert answer(path, overwrite=True) == 4
    assert path.is_symlink() and content(real) == LINES


def test_a_link_to_itself_is_no_file_of_answers(path):
    path.symlink_to(path)
    with pytest.raises(UserError, match="answers.jsonl is a link that leads nowhere"):
        answer(path)


def test_a_pipe_is_no_file_of_answers(path):
    os.mkfifo(path)
    with pytest.raises(UserError, match="answers.jsonl is no regular file but a device, a pipe or a socket"):
        answer(path, overwrite=True)
    assert path.is_fifo()


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".Parquet", ".jsonl.gz", ".zst"])
def test_the_ending_of_another_format_is_refused(ending, tmp_path):
    path = tmp_path / f"answers{ending}"
    with pytest.raises(UserError, match=f"ends in {re.escape(path.suffix)}, .* plain JSON lines; name a file"):
        answer(path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stop_after", [None, 2])
def test_what_an_earlier_version_wrote_with_another_ending_goes_on(stop_after, tmp_path):
    answer(tmp_path / "answers", stop_after=stop_after)
    for file in list(tmp_path.iterdir()):
        file.rename(file.with_name(file.name.replace("answers", "answers.csv")))
    path = tmp_path / "answers.csv"
    with pytest.raises(UserError, match="plain JSON lines"):
        answer(path, overwrite=True)
    assert answer(path) == (0 if stop_after is None else 2) and content(path) == LINES


@pytest.mark.parametrize("length", range(0, len("\n".join(LINES).encode()) + 2, 7))
def test_cut_anywhere_it_goes_on_after_the_last_whole_line(length, path):
    answer(path, stop_after=2)
    kept = "".join(f"{line}\n" for line in LINES)[:length]
    path.with_name("answers.jsonl.partial").write_text(kept)
    assert answer(path) == 4 - kept.count("\n")
    assert content(path) == LINES


@pytest.mark.parametrize("whole_lines", [1, 4])
def test_of_a_long_half_line_nothing_stays(whole_lines, path):
    answer(path, stop_after=2)
    kept = "".join(f"{line}\n" for line in LINES[:whole_lines])
    path.with_name("answers.jsonl.partial").write_text(f'{kept}{{"input": "{"x" * 1_000}')
    assert answer(path) == 4 - whole_lines
    assert content(path) == LINES and path.read_text().endswith("}\n")


@pytest.mark.parametrize("complete", [False, True])
def test_another_call_is_refused_and_named(complete, path):
    answer(path, stop_after=None if complete else 2)
    with pytest.raises(UserError, match=r"another call \(num_beams: 1 -> 4\); name another --output, or give --over"):
        answer(path, call={**CALL, "num_beams": 4})
    assert answer(path, call={**CALL, "num_beams": 4}, overwrite=True) == 4


def test_other_rows_are_refused(path):
    changed = [ROWS[0], RowToAnswer(Question.as_it_stands("zwei"), {"input": "zwei"}), *ROWS[2:]]
    answer(path, stop_after=2)
    with pytest.raises(UserError, match="another input: the rows are others now"):
        answer(path, rows=changed)
    answer(path)
    for rows, why in [(changed, "are others"), (ROWS[:3], "are fewer rows"), (ROWS + ROWS[:1], "are more rows")]:
        with pytest.raises(UserError, match=why):
            answer(path, rows=rows)
    assert content(path) == LINES


def test_a_row_that_only_begins_alike_is_another(path):
    numbered = lambda number: [RowToAnswer(Question.as_it_stands("x"), {"id": number})]
    answer(path, rows=numbered(12))
    for other in (1, 123):
        with pytest.raises(UserError, match="the rows are others now"):
            answer(path, rows=numbered(other))


def test_a_file_that_is_of_something_else_is_not_touched(path):
    path.write_text("mine\n")
    with pytest.raises(UserError, match=r"exists, and its call is not known from answers.jsonl.call.json"):
        answer(path)
    assert path.read_text() == "mine\n" and not path.with_name("answers.jsonl.partial").exists()


def everything(path) -> dict[str, str]:
    return {file.name: file.read_text() for file in path.parent.iterdir()}


def test_overwriting_keeps_the_finished_answers_until_the_new_ones_are_whole(path):
    answer(path)
    before = everything(path)
    other = {**CALL, "num_beams": 4}
    assert answer(path, call=other, stop_after=0, overwrite=True) == 0  # no model could be loaded, say
    assert {name: text for name, text in everything(path).items() if text} == before
    assert answer(path) == 0  # still the finished call's
    assert answer(path, call=other, stop_after=2, overwrite=True) == 2
    assert content(path) == LINES and everything(path)["answers.jsonl.call.json"] == before["answers.jsonl.call.json"]
    assert answer(path, call=other, overwrite=True) == 4
    assert content(path) == LINES and json.loads(path.with_name("answers.jsonl.call.json").read_text()) == other
    assert set(everything(path)) == set(before)


def test_overwriting_keeps_unfinished_answers_until_there_are_new_ones(path):
    answer(path, stop_after=2)
    answer(path, call={**CALL, "num_beams": 4}, stop_after=0, overwrite=True)
    assert answer(path) == 2  # goes on
    assert content(path) == LINES


def test_killed_between_the_two_names_it_is_the_new_call(path):
    answer(path)
    path.with_name("answers.jsonl.partial.call.json").write_text(json.dumps({**CALL, "num_beams": 4}))
    assert answer(path, call={**CALL, "num_beams": 4}) == 0
    with pytest.raises(UserError, match="another call"):
        answer(path)


def test_an_unfinished_file_of_an_earlier_version_goes_on(path):
    answer(path, stop_after=2)
    path.with_name("answers.jsonl.partial.call.json").rename(path.with_name("answers.jsonl.call.json"))
    assert answer(path) == 2 and content(path) == LINES


def test_two_processes_do_not_write_to_one_file(path):
    with AnswerFile(path, CALL), pytest.raises(Busy, match="another process is writing"):
        AnswerFile(path, CALL)


def test_a_disk_that_fails_is_said_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFailed, match="cannot be written .*same command resumes it"):
        AnswerFile(tmp_path / "file/answers.jsonl", CALL)
    with pytest.raises(UserError, match="is a directory"):
        AnswerFile(tmp_path, CALL)
