"""`--output`: a file of answers whose making may be killed at any moment and goes on after the last whole line.

Answers are appended to `FILE.partial`, which becomes FILE when all are there; `FILE.partial.call.json` beside it, which
becomes `FILE.call.json`, says what call they are of. Nothing else is remembered: each line holds its row, so the file
itself tells how far it is and whether the rows are still those that it answers.

What was there before stays until it is replaced: a finished FILE until the new one is whole, an unfinished one until
the new call has its first answers.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jpeft.errors import Busy, RunFailed, UserError
from jpeft.files import output_path, read_json_object, write_whole
from jpeft.predict.output import Output
from jpeft.predict.rows import RowToAnswer
from jpeft.typed_config import differences
from jpeft.words import the_first

_BESIDE = (".partial", ".call.json", ".partial.call.json")


def files_beside(path: Path) -> tuple[Path, Path, Path]:
    """What is written beside a file of answers: those that are not all there yet, its record, and theirs."""
    partial, call, of_partial = (path.with_name(path.name + ending) for ending in _BESIDE)
    return partial, call, of_partial


class AnswerFile(Output):
    """Answers that stay.

    Attributes:
      complete: whether all answers were there when it was opened.
    """

    def __init__(self, path: Path, call: Mapping[str, Any], *, overwrite: bool = False):
        """Opens what is there of the same call, or begins.

        Args:
          call: all that answers depend on but the rows, as JSON can hold it.
          overwrite: whether what is there is to be done again.

        Raises:
          UserError: what is there is of another call.
          Busy: another process is at work on it.
          RunFailed: it cannot be written.
        """
        path = self.path = output_path(path, f"--output {path}")
        self._partial, self._call_file, self._partial_call_file = files_beside(path)
        self._call = call
        self._anew = overwrite  # until the first answers are written
        self._reading = not overwrite
        if path.is_dir():
            raise UserError(f"--output {path} is a directory; name a file.")
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.complete = path.exists() and not overwrite
            if self.complete:
                if self._partial_call_file.exists() and not self._partial.exists():  # killed between two renames
                    self._partial_call_file.replace(self._call_file)
                self._require_same(call, self._call_file)
                self._file = path.open("rb")
            else:
                self._partial.touch()
                self._file = self._partial.open("r+b")
                try:
                    self._go_on_or_begin(call, overwrite=overwrite)
                except BaseException:
                    self._file.close()
                    raise

    def _go_on_or_begin(self, call: Mapping[str, Any], *, overwrite: bool) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until it is closed, or the process ends
        except BlockingIOError:
            raise Busy(
                f"another process is at work on {self._partial}; wait for it or name another --output."
            ) from None
        if overwrite:
            return
        if os.fstat(self._file.fileno()).st_size:
            # Of earlier versions the unfinished file has the finished one's record.
            own = self._partial_call_file.exists() or self.path.exists()
            self._require_same(call, self._partial_call_file if own else self._call_file)
        else:
            self._anew = True

    def _require_same(self, call: Mapping[str, Any], file: Path) -> None:
        way_out = "name another --output, or give --overwrite"
        try:
            before = read_json_object(file)
        except UserError as error:
            raise UserError(
                f"{self.path} is there, and no {file.name} says of what call ({error}); {way_out}."
            ) from None
        changed = differences(before, call)
        if changed:
            raise UserError(f"{self.path} holds answers of another call ({the_first(changed)}); {way_out}.")

    def answered(self, rows: Sequence[RowToAnswer]) -> int:
        """Counts rows that have an answer, as `Output.answered`; half a line behind them is cut off.

        Raises:
          UserError: a line is of another row.
        """
        for number, row in enumerate(rows):
            line = self._file.readline() if self._reading else b""
            if not line.endswith(b"\n"):
                self._end_of_answers(len(line))
                return number
            if not line.startswith(row.opening):
                raise self._other_rows("the rows are others now")
        return len(rows)

    def _end_of_answers(self, half_line: int) -> None:
        if self.complete:
            raise self._other_rows("there are more rows now")
        self._cut_off(half_line)

    def _cut_off(self, half_line: int) -> None:
        if self._reading:
            with self._explained():
                self._file.seek(-half_line, os.SEEK_CUR)
                self._file.truncate()
            self._reading = False

    def _other_rows(self, why: str) -> UserError:
        return UserError(f"{self.path} answers another input: {why}; name another --output, or give --overwrite.")

    def write(self, lines: Sequence[str]) -> None:
        """Adds the answers that come next. Raises `RunFailed`: the disk is full."""
        with self._explained():
            self._begin()
            self._file.write("".join(f"{line}\n" for line in lines).encode())
            self._file.flush()

    def _begin(self) -> None:
        """Makes room for the first answers of this call; what was unfinished of another one ends here."""
        if not self._anew:
            return
        self._file.seek(0)
        self._file.truncate()
        with write_whole(self._partial_call_file) as beside:
            beside.write_text(json.dumps(self._call, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        self._anew = self._reading = False

    def finish(self) -> None:
        """After the last row: the file takes its name.

        Raises:
          UserError: it has more answers than there were rows.
          RunFailed: it cannot be written.
        """
        rest = self._file.readline() if self._reading else b""
        if rest.endswith(b"\n"):
            raise self._other_rows("there are fewer rows now")
        if not self.complete:
            self._cut_off(len(rest))
            with self._explained():
                self._begin()  # of no rows
                os.fsync(self._file.fileno())  # else a crash of the machine may leave the name without the bytes
                self._partial.replace(self.path)
                if self._partial_call_file.exists():
                    self._partial_call_file.replace(self._call_file)

    def after_stop(self) -> str:
        return f"they are in {self._partial}, and the same command goes on"

    def __enter__(self) -> "AnswerFile":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # what a full disk kept from being written was said before
            self._file.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise RunFailed(
                f"{self.path} cannot be written ({reason}); mend that, and the same command goes on."
            ) from None
