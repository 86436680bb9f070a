"""The file of `--output`, which may be killed at any moment and is resumed after its last complete line.

Answers are appended to `FILE.partial`, which is renamed to FILE when it is complete. `FILE.partial.call.json`, which
becomes `FILE.call.json`, records the call. There is no other state: each line holds its row, so the file itself shows
how many rows are answered and whether they are still the same.

Earlier files stay until they are replaced: a finished FILE until the new one is complete, an unfinished one until the
new call has its first answers.
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
from jpeft.rows.reading import require_lines_ending
from jpeft.typed_config import differences
from jpeft.words import the_first

_BESIDE = (".partial", ".call.json", ".partial.call.json")


def files_beside(path: Path) -> tuple[Path, Path, Path]:
    """The files beside a file of answers: the partial file, the finished file's record, and the partial file's."""
    partial, call, of_partial = (path.with_name(path.name + ending) for ending in _BESIDE)
    return partial, call, of_partial


class AnswerFile(Output):
    """The output to a resumable file.

    Attributes:
      complete: whether the file was finished when it was opened.
    """

    def __init__(self, path: Path, call: Mapping[str, Any], *, overwrite: bool = False):
        """Opens the file of the same call, or begins a new one.

        Args:
          call: everything that answers depend on except the rows, as JSON values.
          overwrite: whether to start over if the file exists.

        Raises:
          UserError: the existing file is of another call, or the ending is that of another format.
          Busy: another process is writing it.
          RunFailed: it cannot be written.
        """
        if overwrite or not any(file.exists() for file in (path, *files_beside(path))):  # earlier versions took any
            require_lines_ending(path, f"--output {path}")
        path = self.path = output_path(path, f"--output {path}")
        self._partial, self._call_file, self._partial_call_file = files_beside(path)
        self._call = call
        self._anew = overwrite  # an existing file is kept until the first answers
        self._reading = not overwrite
        if path.is_dir():
            raise UserError(f"--output {path} is a directory; name a file.")
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.complete = path.exists() and not overwrite
            if self.complete:
                if self._partial_call_file.exists() and not self._partial.exists():  # killed between the two renames
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
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when it is closed or the process ends
        except BlockingIOError:
            raise Busy(f"another process is writing {self._partial}; wait for it or name another --output.") from None
        if overwrite:
            return
        if os.fstat(self._file.fileno()).st_size:
            # Earlier versions of jpeft recorded an unfinished file's call in `FILE.call.json`.
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
                f"{self.path} exists, and its call is not known from {file.name} ({error}); {way_out}."
            ) from None
        changed = differences(before, call)
        if changed:
            raise UserError(f"{self.path} holds answers of another call ({the_first(changed)}); {way_out}.")

    def answered(self, rows: Sequence[RowToAnswer]) -> int:
        """The number of rows that have an answer already, as `Output.answered`; an incomplete last line is removed.

        Raises:
          UserError: a line answers another row.
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
        """Appends answers. Raises `RunFailed` if the disk is full."""
        with self._explained():
            self._begin()
            self._file.write("".join(f"{line}\n" for line in lines).encode())
            self._file.flush()

    def _begin(self) -> None:
        """Starts the partial file of this call; an unfinished file of another call is replaced."""
        if not self._anew:
            return
        self._file.seek(0)
        self._file.truncate()
        with write_whole(self._partial_call_file) as beside:
            beside.write_text(json.dumps(self._call, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        self._anew = self._reading = False

    def finish(self) -> None:
        """Renames the complete file to its name.

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
                self._begin()  # there were no rows
                os.fsync(self._file.fileno())  # else a crash of the machine may leave an empty file
                self._partial.replace(self.path)
                if self._partial_call_file.exists():
                    self._partial_call_file.replace(self._call_file)

    def after_stop(self) -> str:
        return f"they are in {self._partial}, and the same command goes on"

    def __enter__(self) -> "AnswerFile":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # a full disk was reported before
            self._file.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise RunFailed(
                f"{self.path} cannot be written ({reason}); fix that, and the same command resumes it."
            ) from None
