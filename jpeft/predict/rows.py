"""What is to be answered: arguments, lines of text or a file of rows, read one after the other, never all at once."""

import dataclasses
import functools
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jpeft.errors import UserError
from jpeft.predict.questions import PromptTemplate, Question
from jpeft.rows.reading import KINDS, PACKED, kind_of, read_first_line, read_rows, require_file, rows_of
from jpeft.rows.text import MOST_ROW_BYTES, FileRow, Readable, is_object
from jpeft.rows.values import as_json

STDIN = "-"
_ANSWER = ("prediction", "confidence", "probabilities")  # a row's own fields of these names are replaced
_LIST = re.compile(rb"\s*\[\s*($|[{\[\"])")
_NO_TEXT = (".xlsx", ".xls", ".ods", ".arrow", ".feather", ".zip", ".tar", ".7z", ".pkl", ".pdf", ".docx")


@dataclasses.dataclass(frozen=True)
class RowToAnswer:
    """One row to be answered.

    Attributes:
      question: what the model is asked.
      fields: that its line of the output keeps.
      size: bytes of the input up to its end, since the row before.
    """

    question: Question
    fields: Mapping[str, Any]
    size: int = 0

    @property
    def text(self) -> str:
        """The whole prompt, before it is cut to the model's length."""
        return self.question.text

    def line(self, answer: Mapping[str, Any]) -> str:
        """The row with its answer, whose first field is `prediction`, as a JSON line."""
        return json.dumps({**self.fields, **answer}, ensure_ascii=False)

    @functools.cached_property
    def opening(self) -> bytes:
        """What the row's line begins with, whatever the answer is."""
        return self.line({"prediction": ""}).removesuffix('""}').encode()


@dataclasses.dataclass(frozen=True)
class Input:
    """The input of `jpeft predict`: arguments, standard input or a file.

    Attributes:
      texts: given in the call; then there is no file.
      path: a file, or `-` for standard input.
      format: `lines` or a kind of `jpeft.rows.reading.kind_of`; None, of standard input, is JSON lines where the first
        line is a JSON object, plain lines otherwise.
    """

    texts: tuple[str, ...] = ()
    path: str = STDIN
    format: str | None = None

    @classmethod
    def of(cls, texts: Iterable[str], path: str | None, format_: str | None) -> "Input":
        """The input that a call's arguments name; None for arguments that were not given.

        Raises:
          UserError: both texts and a file, a file that is not there, or one of another kind.
        """
        texts = tuple(texts)
        if texts and (path is not None or format_ is not None):
            raise UserError("texts were given, and --input or --format, too; give one of them.")
        if path is None or path == STDIN:
            return cls(texts, STDIN, format_)
        require_file(Path(path), f"--input {path}")
        suffix = Path(path).suffix.lower()
        if format_ is None and suffix in _NO_TEXT:
            raise UserError(f"--input {path} is a {suffix} file; save it as CSV, JSON lines or Parquet.")
        return cls((), path, format_ or kind_of(Path(path)) or _by_its_beginning(Path(path)))

    @property
    def file(self) -> Path | None:
        """The file that is read; None for arguments and standard input."""
        return None if self.texts or self.path == STDIN else Path(self.path)

    @property
    def name(self) -> str:
        """The name of the input in messages: the file, `standard input`, or that it was given as arguments."""
        return "the arguments" if self.texts else "standard input" if self.path == STDIN else self.path

    @property
    def size(self) -> int | None:
        """The size in bytes; None if it is not known, as of a compressed file."""
        known = self.file is not None and self.file.is_file() and not self.path.lower().endswith(PACKED)
        return Path(self.path).stat().st_size if known else None

    @property
    def from_terminal(self) -> bool:
        """Whether a person types the rows at a terminal."""
        return not self.texts and self.path == STDIN and sys.stdin.isatty()

    def rows(
        self, prompt: PromptTemplate, *, report: Callable[[str], None] = lambda line: None
    ) -> Iterator[RowToAnswer]:
        """The rows, as they are read; `report` hears of those that may not be what was meant.

        Raises:
          UserError: one cannot be used; the message says which.
        """
        of_text = lambda fields: prompt.of_text(fields["input"])
        for number, text in enumerate(self.texts, start=1):
            yield self._row(f"line {number}", {"input": text}, of_text, size=0)
        if self.texts:
            return
        if self.path == STDIN:
            kind, read = self._standard_input(report)
        else:
            kind = self.format or "lines"
            read = read_rows(Path(self.path), kind=self.format, name=self.path, report=report)
        make = of_text if kind == "lines" else prompt.of_fields
        for row in read:
            yield self._row(row.where, row.fields, make, row.size)

    def _standard_input(self, report: Callable[[str], None]) -> tuple[str, Iterator[FileRow]]:
        if self.format == "parquet":
            raise UserError("Parquet cannot be read from standard input, since it is read from its end; name a file.")
        file = _Peeked(sys.stdin.buffer)
        kind = self.format or ("jsonl" if is_object(file.first) else "lines")
        return kind, rows_of(file, kind, self.name, report=report)

    def _row(self, where: str, fields: dict[str, Any], make: Callable[[Any], Question], size: int) -> RowToAnswer:
        try:
            # The question is made of what was read: what is kept as JSON may look like text that nobody wrote.
            kept = {key: as_json(value) for key, value in fields.items() if key not in _ANSWER}
            row = RowToAnswer(make(fields), kept, size)
            _ = row.text.encode(), row.opening  # neither can be written where a text holds half of a surrogate pair
        except UnicodeEncodeError:
            raise self._unusable(where, "holds half of a surrogate pair, which is no text; remove it") from None
        except ValueError as error:
            raise self._unusable(where, str(error)) from None
        return row

    def _unusable(self, where: str, reason: str) -> UserError:
        return UserError(f"{where} of {self.name} {reason}.")


def _by_its_beginning(path: Path) -> str:
    """Whether a file whose ending says nothing has JSON lines or plain ones.

    Raises:
      UserError: it may be neither: a list in JSON, or another kind of rows under one more ending.
    """
    if not path.is_file():  # a pipe, which can be read only once
        return "lines"
    beginning = read_first_line(path, f"--input {path}")
    if is_object(beginning):
        return "jsonl"
    inner = next((suffix for suffix in path.suffixes if suffix.lower() in KINDS), None)
    looks = f"a {inner} file" if inner else "a list in JSON" if _LIST.match(beginning) else None
    if looks is None:
        return "lines"
    packed = next((suffix for suffix in path.suffixes if suffix.lower() in PACKED), None)
    if inner and packed:
        raise UserError(f"--input {path} looks like a packed {inner} file; let its name end in {inner}{packed}.")
    kind = KINDS[inner.lower()] if inner else "json"
    raise UserError(
        f"--input {path} looks like {looks}, and its ending says nothing; give --format {kind}, or --format lines for "
        "a prompt in each line."
    )


class _Peeked:
    """A file whose first line was read before."""

    def __init__(self, file: Readable):
        self._file = file
        self.first = self._waiting = file.readline(MOST_ROW_BYTES + 1)

    def readline(self, size: int = -1, /) -> bytes:
        line, self._waiting = self._waiting, b""
        return line or self._file.readline(size)

    def read(self, size: int = -1, /) -> bytes:
        line, self._waiting = self._waiting, b""
        return line + self._file.read(size if size < 0 else max(0, size - len(line)))


def windows(rows: Iterable[RowToAnswer], size: int) -> Iterator[list[RowToAnswer]]:
    """Consecutive rows in lists of `size`, the last one shorter."""
    rows = iter(rows)
    while window := list(itertools.islice(rows, size)):
        yield window
