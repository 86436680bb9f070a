"""Files: writing that leaves a whole file or none, and reading JSON that a stranger may have written."""

import collections
import contextlib
import json
import math
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jpeft.errors import RunFailed, UserError
from jpeft.words import clipped, told_of_no_text

# What foreign JSON may hold. Configs and indexes of released models stay far below either.
MOST_BYTES = 64 * 2**20
MOST_NESTING = 64
# A LoRA of full rank has twice the numbers of what it adapts, and float64 takes 8 bytes for each.
_MOST_BYTES_A_NUMBER = 16
_MOST_BYTES_BESIDE = 64 * 2**20  # names, shapes, and whatever else a file of weights holds
_PARTIAL = ".partial"


def cache_directory() -> Path:
    """Where tokens and compiled programs are kept between runs: `$JPEFT_CACHE`, or `~/.cache/jpeft` if empty.

    Raises:
      UserError: its name is not UTF-8, with which JAX could not work.
    """
    directory = Path(os.environ.get("JPEFT_CACHE", "").strip() or "~/.cache/jpeft").expanduser()
    if said := told_of_no_text(str(directory), "set the environment variable JPEFT_CACHE to another directory"):
        raise UserError(f"{said}.")
    return directory


@contextlib.contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; renames it to `path` when the block ends well, removes it otherwise.

    The file has the permissions that new files get from the umask, whoever writes it: safetensors' own are for
    their owner alone. Where `path` is a link, what it leads to is replaced and the link stays.

    Raises:
      UserError: `path` is a device, a pipe or a socket.
    """
    path = output_path(path, str(path))
    beside = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
    try:
        beside.touch()
        permissions = stat.S_IMODE(beside.stat().st_mode)
        yield beside
        beside.chmod(permissions)
        with beside.open("rb") as file:
            os.fsync(file.fileno())  # else a crash of the machine may leave the name without the bytes
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def output_path(path: Path, named: str) -> Path:
    """The file that is written where a user names `path`: what a link leads to, or the path itself.

    Args:
      named: how messages call it.

    Raises:
      UserError: it is a device, a pipe or a socket. A directory is the caller's to refuse.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{named} is no regular file but a device, a pipe or a socket; name a file.")
    return path.resolve() if path.is_symlink() else path


def require_apart(output: Path, *, read: Iterable[Path], written: Iterable[Path] = ()) -> None:
    """Raises `UserError`: a file that a command reads is one that it writes, by whatever name.

    Args:
      output: as the user named it.
      written: what else comes beside it, such as a file that becomes it.
    """
    for theirs in read:
        for ours in (output, *written):
            with contextlib.suppress(OSError):  # one of them is not there
                if theirs.samefile(ours):
                    how = "" if ours == output else f", which is written by way of {ours.name},"
                    raise UserError(f"--output {output}{how} would replace {theirs}, which is read; name another file.")


def require_writable(path: Path) -> None:
    """Raises `RunFailed`: no file can be written at a path, whose directory is made; what stands there stays."""
    reason = why_not_writable(path.parent)
    if reason is not None:
        raise RunFailed(f"{path} cannot be written ({reason}).")


def why_not_writable(directory: Path) -> str | None:
    """Why no file can be made in a directory, which is made where it is missing; None if one can."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def unfinished_target(path: Path) -> str | None:
    """The name that a path was to become, where it is what `write_whole` leaves when it is killed; else None."""
    left = re.fullmatch(rf"\.(.+)\.\d+{re.escape(_PARTIAL)}", path.name)
    return left and left[1]


@contextlib.contextmanager
def write_directory(path: Path) -> Iterator[Path]:
    """Writes a directory whole or not at all: what the block puts into the one given becomes `path` if it ends well.

    Raises:
      UserError: `path` is there already and is not an empty directory.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} is there already; name a directory that is empty or still to be made.")
    path = path.absolute()  # `.` has no name to write beside
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
    shutil.rmtree(beside, ignore_errors=True)  # left by a killed process of the same number
    beside.mkdir()
    try:
        yield beside
        beside.replace(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def most_bytes_of(numbers: int) -> int:
    """How large a stranger's files of weights may be, of a model of so many numbers, to be read whole."""
    return _MOST_BYTES_BESIDE + _MOST_BYTES_A_NUMBER * numbers


def read_text(path: Path, *, error: type[Exception] = UserError, most_bytes: int = MOST_BYTES) -> str:
    """The text of a small file in UTF-8, with or without a byte order mark.

    Raises:
      error: it is not there, is no regular file (reading a pipe would wait forever), is larger than `most_bytes`, or is
        not UTF-8. The message is one line that names the file.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise error(f"{path} is a directory; expected a file.")
        if not stat.S_ISREG(status.st_mode):
            raise error(f"{path} is no regular file; copy what it holds into one.")
        if status.st_size > most_bytes:
            raise error(f"{path} has {status.st_size:,} bytes; expected {most_bytes:,} at most.")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise error(f"{path} does not exist.") from None
    except UnicodeDecodeError as cause:
        raise error(f"{path} is not UTF-8 (byte {cause.start}); convert or copy it again.") from None
    except (OSError, ValueError) as cause:  # ValueError: a NUL in the name
        if isinstance(cause, error):
            raise
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
        raise error(f"{str(path)!r} cannot be read ({reason}).") from None


def read_json(path: Path, *, error: type[Exception] = UserError, most_bytes: int = MOST_BYTES) -> Any:
    """Reads a JSON file that may come from anywhere, and be damaged or hostile.

    Raises:
      error: as `read_text` and `parse_json`; the message names the file.
    """
    return parse_json(read_text(path, error=error, most_bytes=most_bytes), str(path), error=error)


def read_json_object(path: Path, *, error: type[Exception] = UserError, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """As `read_json`, for files that hold one object: `{"key": ...}`. Raises `error` also where it is anything else."""
    value = read_json(path, error=error, most_bytes=most_bytes)
    if not isinstance(value, dict):
        raise error(f"{path} holds {json_kind(value)}; expected an object, {{...}}.")
    return value


def parse_json(text: str, source: str, *, error: type[Exception] = UserError) -> Any:
    """JSON in the strict sense, bounded.

    Refused besides what is malformed: NaN and infinities, which JSON does not have and other programs write; integers
    of thousands of digits; nesting deeper than `MOST_NESTING`, on which recursive code would fail later; halves of
    surrogate pairs, which no text encoding can write.

    Args:
      source: what the text is, for messages: a path, or a path and a line.

    Raises:
      error: with one line that begins with `source`.
    """
    return JsonParser(error=error).parse(text, source)


class JsonParser:
    """Parses many JSON texts, each as `parse_json` does.

    Attributes:
      missing: whether NaN, infinities and numbers past the range of a float are read as null instead of being refused.
      unique: whether an object that has a key twice is refused; otherwise the last one counts, as Python has it.
    """

    def __init__(self, *, missing: bool = False, unique: bool = False, error: type[Exception] = UserError):
        self.missing, self.unique, self._error = missing, unique, error
        reading: dict[str, Any] = {"parse_constant": self._constant, "parse_float": self._number}
        self._decoder = json.JSONDecoder(**reading)
        self._by_pairs = json.JSONDecoder(**reading, object_pairs_hook=_unique)

    def _constant(self, constant: str) -> Any:
        if self.missing:
            return None
        raise ValueError(f"holds {constant}, which is no JSON")

    def _number(self, digits: str) -> float | None:
        value = float(digits)
        return value if math.isfinite(value) else self._constant(digits[:20])

    def parse(self, text: str, source: str) -> Any:
        """The one value of a text. Raises as `parse_json`."""
        with self._explained(source):
            value = self._decoder.decode(text)
            self._check(value, text)
            return value

    def parse_at(self, text: str, start: int, source: str) -> tuple[Any, int]:
        """The value that begins at `start`, and where it ends. Raises as `parse_json`, places from `start`."""
        with self._explained(source, start):
            value, end = self._decoder.raw_decode(text, start)
            self._check(value, text[start:end])
            return value, end

    def _check(self, value: Any, text: str) -> None:
        # An object without a key twice has a colon for each key, and few texts have more: only those are read again.
        if self.unique and isinstance(value, dict) and text.count(":") > len(value):
            self._by_pairs.decode(text)
        # Most texts need no closer look: so few brackets nest no deeper, and without escapes there is no surrogate.
        surrogates = "\\u" in text
        if surrogates or text.count("[") + text.count("{") > MOST_NESTING:
            _check_nesting(value, surrogates=surrogates)

    @contextlib.contextmanager
    def _explained(self, source: str, start: int | None = None) -> Iterator[None]:
        try:
            yield
        except RecursionError:
            raise self._error(f"{source} is nested more than {MOST_NESTING} levels deep.") from None
        except json.JSONDecodeError as cause:
            where = f"line {cause.lineno}, column {cause.colno}" if cause.lineno > 1 else f"column {cause.colno}"
            if start is not None:
                where = f"{cause.pos - start:,} characters into it"
            raise self._error(f"{source} is not valid JSON ({cause.msg}, {where}).") from None
        except ValueError as cause:
            if isinstance(cause, self._error):
                raise
            reason = str(cause)
            if "integer string conversion" in reason:
                reason = "holds an integer of thousands of digits"
            raise self._error(f"{source} {reason}.") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        counts = collections.Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"has the key {ascii(twice)[:60]} twice; leave one of them")
    return made


def _check_nesting(value: Any, *, surrogates: bool) -> None:
    level, depth = [value], 0
    while level:
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
                if surrogates:
                    below += item
            elif isinstance(item, list):
                below += item
            elif surrogates and isinstance(item, str) and not item.isascii():
                try:
                    item.encode()
                except UnicodeEncodeError:
                    raise ValueError("holds half of a surrogate pair, which is no text") from None
        level, depth = below, depth + 1
        if depth > MOST_NESTING:
            raise RecursionError


_KINDS = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}


def json_kind(value: Any) -> str:
    """The type of a JSON value in words, for messages: `a list`, `a number`, `null`."""
    return _KINDS.get(type(value), "null")


def check_fields(
    values: Mapping[str, Any],
    kinds: Mapping[str, type | tuple[type, ...]],
    source: str,
    *,
    error: type[Exception] = UserError,
) -> None:
    """Checks the types of those fields of a JSON object that are there and not null; other fields are left alone.

    Args:
      kinds: what each field may be: `{"r": int, "target_modules": (str, list)}`. A whole number passes for a float;
        true and false pass for nothing but `bool`.

    Raises:
      error: a field is of another type; the message says which, and what was expected.
    """
    for name, kind in kinds.items():
        value = values.get(name)
        allowed = kind if isinstance(kind, tuple) else (kind,)
        fits = type(value) in allowed or (float in allowed and type(value) is int)
        if value is not None and not fits:
            expected = " or ".join(dict.fromkeys(_KINDS[one] for one in allowed))
            raise error(f"{source}: {name} is {clipped(repr(value), 60)}; expected {expected}.")
