"""The rows to answer, from arguments, lines of text or a file of rows, read as a stream."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jpeft.errors import UserError
from jpeft.predict.questions import PromptTemplate, Question
from jpeft.rows.reading import KINDS, PACKED, kind_of, read_beginning, read_rows, require_file, rows_of
from jpeft.rows.text import FileRow, Readable, beginning, is_object
from jpeft.rows.values import as_json
from jpeft.words import clipped, counted

STDIN = "-"
_ANSWER = ("prediction", "confidence", "probabilities")  # these fields replace a row's own
_LIST = re.compile(r"\[\s*($|[{\[\"])")
_OR_LINES = "or --format lines for a prompt in each line"
_ENDINGS = {**KINDS, ".tab": "tsv"}  # endings of files that are not plain lines, also before another ending
_NO_TEXT = (".xlsx", ".xls", ".ods", ".arrow", ".feather", ".zip", ".tar", ".7z", ".pkl", ".pdf", ".docx")


@dataclasses.dataclass(frozen=True)
class RowToAnswer:
    """One row to answer.

    Attributes:
      question: the prompt.
      fields: kept in its line of the output.
      size: bytes of the input since the previous row.
    """

    question: Question
    fields: Mapping[str, Any]
    size: int = 0

    @property
    def text(self) -> str:
        """The prompt, before it is cut to the maximal length."""
        return self.question.text

    def line(self, answer: Mapping[str, Any]) -> str:
        """The row with its answer as a JSON line; the answer's first field is `prediction`."""
        return json.dumps({**self.fields, **answer}, ensure_ascii=False)

    @functools.cached_property
    def opening(self) -> bytes:
        """The part of the row's line before the answer."""
        return self.line({"prediction": ""}).removesuffix('""}').encode()


@dataclasses.dataclass(frozen=True)
class Input:
    """The input of `jpeft predict`: arguments, standard input or a file.

    Attributes:
      texts: given as arguments; then there is no file.
      path: a file, or `-` for standard input.
      format: `lines` or a kind of `jpeft.rows.reading.kind_of`; None for standard input or a pipe whose format is
        detected from its first line, since it can be read only once.
      guessed: whether the format is detected, not given by the call or the file's ending.
    """

    texts: tuple[str, ...] = ()
    path: str = STDIN
    format: str | None = None
    guessed: bool = False

    @classmethod
    def of(cls, texts: Iterable[str], path: str | None, format_: str | None) -> "Input":
        """The input of a command line; None for flags that were not given.

        Raises:
          UserError: both texts and a file are given, or the file does not exist or is of another kind.
        """
        texts = tuple(texts)
        if texts and (path is not None or format_ is not None):
            raise UserError("texts were given, and --input or --format, too; give one of them.")
        if path is None or path == STDIN:
            if sys.stdin is None and not texts:
                raise UserError("standard input is closed; name a file with --input, or give texts.")
            return cls(texts, STDIN, format_, guessed=format_ is None)
        path = os.path.expanduser(path)  # shells do not expand `~` after `--input=`
        require_file(Path(path), f"--input {path}")
        suffix = Path(path).suffix.lower()
        if format_ is None and suffix in _NO_TEXT:
            raise UserError(f"--input {path} is a {suffix} file; save it as CSV, JSON lines or Parquet.")
        known = format_ or kind_of(Path(path))
        return cls((), path, known or _by_its_beginning(Path(path)), guessed=known is None)

    @property
    def file(self) -> Path | None:
        """The file; None for arguments and standard input."""
        return None if self.texts or self.path == STDIN else Path(self.path)

    @property
    def name(self) -> str:
        """The name of the input in messages."""
        return "the arguments" if self.texts else "standard input" if self.path == STDIN else self.path

    @property
    def size(self) -> int | None:
        """The size in bytes; None if unknown, as for a compressed file."""
        known = self.file is not None and self.file.is_file() and not self.path.lower().endswith(PACKED)
        return Path(self.path).stat().st_size if known else None

    @property
    def from_terminal(self) -> bool:
        """Whether the rows are typed at a terminal."""
        return not self.texts and self.path == STDIN and sys.stdin.isatty()

    def rows(
        self, prompt: PromptTemplate, *, report: Callable[[str], None] = lambda line: None
    ) -> Iterator[RowToAnswer]:
        """Yields the rows as they are read.

        Args:
          prompt: the template.
          report: called with warnings about suspicious rows.

        Raises:
          UserError: a row cannot be used; the message says which.
        """
        if self.texts:
            for number, text in enumerate(self.texts, start=1):
                yield self._row(f"line {number}", {"input": text}, _of_line(prompt), size=0)
            return
        with self._read(report) as (kind, read):
            if kind == "lines" and self.guessed and not self.from_terminal:
                report(f"{self.name} is read as plain lines, a text in each (--format says otherwise)")
            make = _of_line(prompt) if kind == "lines" else prompt.of_fields
            count = whole = 0
            for count, row in enumerate(read, start=1):  # noqa: B007  (used behind the loop)
                made = self._row(row.where, row.fields, make, row.size)
                if made.question.template != prompt.template:
                    whole += 1
                    if whole == 1:
                        report(self._taken_whole(row, prompt))
                yield made
            if whole > 1:
                report(f"{whole:,} of {counted(count, 'row')} were taken so")

    @contextlib.contextmanager
    def _read(self, report: Callable[[str], None]) -> Iterator[tuple[str, Iterator[FileRow]]]:
        """Yields the format and the rows, while the file is open."""
        if self.path != STDIN and self.format is not None:
            yield self.format, read_rows(Path(self.path), kind=self.format, name=self.path, report=report)
            return
        if self.format == "parquet":
            raise UserError("Parquet cannot be read from standard input, since it is read from its end; name a file.")
        stream = contextlib.nullcontext(sys.stdin.buffer) if self.path == STDIN else Path(self.path).open("rb")
        with stream as given:
            if self.format is not None:
                yield self.format, rows_of(given, self.format, self.name, report=report)
                return
            file = _Peeked(given)
            kind = _kind_by(file.first, self.name)
            yield kind, rows_of(file, kind, self.name, report=report)

    def _taken_whole(self, row: FileRow, prompt: PromptTemplate) -> str:
        lacking = next(column for column in prompt.columns if column not in row.fields)
        whole = "its `input` is taken as a whole prompt, without the template"
        return f"{row.where} of {self.name} has no {lacking!r}: {whole}"

    def _row(self, where: str, fields: dict[str, Any], make: Callable[[Any], Question], size: int) -> RowToAnswer:
        try:
            # The question is made of the values as read, not of `fields`, where they were converted for JSON.
            question = make(fields)
            row = RowToAnswer(question, _kept(fields, question), size)
            _ = row.text.encode(), row.opening  # both raise for an unpaired surrogate
        except UnicodeEncodeError:
            raise self._unusable(where, "holds half of a surrogate pair, which is not text; remove it") from None
        except ValueError as error:
            raise self._unusable(where, str(error)) from None
        return row

    def _unusable(self, where: str, reason: str) -> UserError:
        return UserError(f"{where} of {self.name} {reason}.")


def _kept(fields: Mapping[str, Any], question: Question) -> dict[str, Any]:
    """The fields of a row's line as JSON values, including all columns of its question, by which it is recognised.

    Raises:
      ValueError: a column would be kept under the name of another.
    """
    kept = {key: as_json(value) for key, value in fields.items() if key not in _ANSWER}
    for key in _ANSWER:
        if key in fields and key in question.fields:
            name = f"input_{key}"
            if name in fields:
                raise ValueError(f"has {key!r}, of the prompt, which is kept as {name!r}, and that, too; rename one")
            kept[name] = as_json(fields[key])
    return kept


def _of_line(prompt: PromptTemplate) -> Callable[[Mapping[str, Any]], Question]:
    return lambda fields: prompt.of_text(fields["input"])


def _by_its_beginning(path: Path) -> str | None:
    """The format, `jsonl` or `lines`, of a file with an unknown ending; None for a pipe, which can be read only once.

    Raises:
      UserError: it may be neither: a JSON list, or another kind of rows with a further ending.
    """
    if not path.is_file():  # a pipe
        return None
    name = f"--input {path}"
    kind = _kind_by(read_beginning(path, name), name)
    inner = next((suffix for suffix in path.suffixes if suffix.lower() in _ENDINGS), None)
    if kind == "jsonl" or inner is None:
        return kind
    packed = next((suffix for suffix in path.suffixes if suffix.lower() in PACKED), None)
    if packed:
        raise UserError(f"{name} looks like a packed {inner} file; let its name end in {inner}{packed}.")
    raise UserError(
        f"{name} looks like a {inner} file, and its ending says nothing; give --format {_ENDINGS[inner.lower()]}, "
        f"{_OR_LINES}."
    )


def _kind_by(first: bytes, name: str) -> str:
    """The format, `jsonl` or `lines`, by the first line that is not blank.

    Raises:
      UserError: it begins like JSON and is not an object: a list, an object over several lines, or malformed.
    """
    if is_object(first):
        return "jsonl"
    begun = first.decode("utf-8-sig", errors="replace").lstrip()
    if _LIST.match(begun):
        raise UserError(f"{name} looks like a list in JSON; give --format json, {_OR_LINES}.")
    if begun.startswith("{"):
        raise UserError(
            f"{name} begins with {clipped(begun.rstrip(), 40)!r}, which is no whole JSON object; give --format json "
            f"for objects over several lines, --format jsonl for one in each line, {_OR_LINES}."
        )
    return "lines"


class _Peeked:
    """A file whose first line was read to detect its format.

    Attributes:
      first: the first line that is not blank.
    """

    def __init__(self, file: Readable):
        self._file, self._waiting = file, collections.deque(beginning(file))
        self.first = self._waiting[-1] if self._waiting else b""

    def readline(self, size: int = -1, /) -> bytes:
        return self._waiting.popleft() if self._waiting else self._file.readline(size)

    def read(self, size: int = -1, /) -> bytes:
        waiting = b"".join(self._waiting)
        self._waiting.clear()
        return waiting + self._file.read(size if size < 0 else max(0, size - len(waiting)))


def windows(rows: Iterable[RowToAnswer], size: int) -> Iterator[list[RowToAnswer]]:
    """Consecutive rows in lists of `size`; the last may be shorter."""
    rows = iter(rows)
    while window := list(itertools.islice(rows, size)):
        yield window
