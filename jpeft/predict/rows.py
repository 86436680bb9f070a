"""What is to be answered: arguments, lines of text or JSON lines, read one after the other and never all at once."""

import contextlib
import dataclasses
import functools
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from jpeft.errors import UserError
from jpeft.predict.prompt import Prompt, Question

FORMATS = ("lines", "jsonl")
STDIN = "-"
_ANSWER = ("prediction", "confidence", "probabilities")  # a row's own fields of these names are replaced
_OTHER_KINDS = (".json", ".csv", ".tsv", ".parquet", ".gz", ".xz", ".zst")


@dataclasses.dataclass(frozen=True)
class Row:
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
    """Where rows come from.

    Attributes:
      texts: given in the call; then there is no file.
      path: a file, or `-` for standard input.
      format: of `FORMATS`; None is JSON lines where the first line is a JSON object, plain lines otherwise.
    """

    texts: tuple[str, ...] = ()
    path: str = STDIN
    format: str | None = None

    @classmethod
    def of(cls, texts: Iterable[str], path: str | None, format_: str | None) -> "Input":
        """From a call's arguments; None for those not given.

        Raises:
          UserError: both texts and a file, a file that is not there, or one of another kind.
        """
        texts = tuple(texts)
        if texts and (path is not None or format_ is not None):
            raise UserError("texts were given, and --input or --format, too; give one of them.")
        if path is None or path == STDIN:
            return cls(texts, STDIN, format_)
        if not Path(path).exists() or Path(path).is_dir():
            raise UserError(f"--input {path} is {'a directory' if Path(path).exists() else 'not there'}; name a file.")
        suffix = Path(path).suffix
        if format_ is None and suffix in _OTHER_KINDS:
            raise UserError(f"--input {path} is a {suffix} file; expected plain lines, or JSON lines (.jsonl).")
        return cls((), path, format_ or ("jsonl" if suffix == ".jsonl" else "lines"))

    @property
    def name(self) -> str:
        """For messages."""
        return "the arguments" if self.texts else "standard input" if self.path == STDIN else self.path

    @property
    def size(self) -> int | None:
        """In bytes, where that is known."""
        return Path(self.path).stat().st_size if not self.texts and Path(self.path).is_file() else None

    @property
    def from_terminal(self) -> bool:
        """Whether a person types them."""
        return not self.texts and self.path == STDIN and sys.stdin.isatty()

    def rows(self, prompt: Prompt) -> Iterator[Row]:
        """The rows, as they are read. Raises `UserError`: one can not be used; the message says which."""
        of_text = lambda fields: prompt.of_text(fields["input"])
        for number, text in enumerate(self.texts, start=1):
            yield self._row(number, {"input": text}, of_text, size=0)
        if self.texts:
            return
        size = 0
        with self._open() as file:
            first = file.readline()
            is_json = self.format == "jsonl" or (self.format is None and _is_object(first))
            make = prompt.of_fields if is_json else of_text
            for number, line in enumerate(itertools.chain([first] if first else [], file), start=1):
                size += len(line)
                fields = self._fields(number, line, is_json=is_json)
                if fields is not None:
                    yield self._row(number, fields, make, size)
                    size = 0

    def _open(self) -> contextlib.AbstractContextManager[IO[bytes]]:
        if self.path == STDIN:
            return contextlib.nullcontext(sys.stdin.buffer)
        try:
            return open(self.path, "rb")
        except OSError as error:
            raise UserError(f"--input {self.path} can not be read ({error.strerror}).") from None

    def _fields(self, number: int, line: bytes, *, is_json: bool) -> dict[str, Any] | None:
        """The fields of a line; None where JSON lines leave one blank. A blank line of text is an input like others."""
        try:
            # \n and \r\n alone end a line, not the other separators that Unicode has, which may stand within a text.
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\n").removesuffix("\r")
            if not is_json:
                return {"input": text}
            fields = json.loads(text) if text.strip() else None
        except UnicodeDecodeError as error:
            raise self._unusable(number, f"is no UTF-8 ({error.reason} at byte {error.start})") from None
        except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
            reason = getattr(error, "msg", str(error).partition(";")[0])
            raise self._unusable(number, f"is no JSON ({reason}); mend it or remove it") from None
        if text.strip() and not isinstance(fields, dict):
            raise self._unusable(number, f"is {text[:40]!r}; expected a JSON object with `input`")
        return fields

    def _row(self, number: int, fields: dict[str, Any], make: Callable[[Any], Question], size: int) -> Row:
        try:
            row = Row(make(fields), {key: value for key, value in fields.items() if key not in _ANSWER}, size)
            (row.text.encode(), row.opening)
        except UnicodeEncodeError:
            raise self._unusable(number, "holds half of a surrogate pair, which is no text; remove it") from None
        except ValueError as error:
            raise self._unusable(number, str(error)) from None
        return row

    def _unusable(self, number: int, reason: str) -> UserError:
        return UserError(f"line {number} of {self.name} {reason}.")


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode("utf-8-sig")), dict)
    except (ValueError, RecursionError):
        return False


def windows(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Consecutive rows in lists of `size`, the last one shorter."""
    rows = iter(rows)
    while window := list(itertools.islice(rows, size)):
        yield window
