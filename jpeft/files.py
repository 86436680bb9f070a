"""Atomic writes of files and directories, and strict, bounded reading of text and JSON from untrusted sources."""

import collections
import contextlib
import json
import math
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jpeft.errors import RunFailed, UserError
from jpeft.words import clipped, why_not_utf8

# Limits of untrusted JSON. Configs and weight indexes of released models stay far below both.
MOST_BYTES = 64 * 2**20
MOST_NESTING = 64
# A LoRA of full rank has twice as many numbers as the weights that it adapts, and float64 takes 8 bytes for each.
_MOST_BYTES_A_NUMBER = 16
_MOST_HEADER_BYTES = 64 * 2**20  # names, shapes, and other metadata of a file of weights
_PARTIAL = ".partial"


def cache_directory() -> Path:
    """Returns the directory of cached tokens and compiled programs: `$JPEFT_CACHE`, or `~/.cache/jpeft` if it is empty.

    Raises:
      UserError: the path is not UTF-8, which JAX's compilation cache requires.
    """
    directory = Path(os.environ.get("JPEFT_CACHE", "").strip() or "~/.cache/jpeft").expanduser()
    if reason := why_not_utf8(str(directory), "set the environment variable JPEFT_CACHE to another directory"):
        raise UserError(f"{reason}.")
    return directory


@contextlib.contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Writes a file atomically: yields a temporary path that is renamed to `path` on success and removed otherwise.

    The file gets the umask's default permissions, whichever library writes it: safetensors creates files that only
    their owner can read.
    A link is replaced; what it leads to stays (`output_path` says what to give for the opposite).

    Raises:
      UserError: `path` is a device, a pipe or a socket.
    """
    _require_no_device(path, str(path))
    beside = _unfinished(path)
    beside.touch(exist_ok=False)
    try:
        permissions = stat.S_IMODE(beside.stat().st_mode)
        yield beside
        beside.chmod(permissions)
        with beside.open("rb") as file:
            os.fsync(file.fileno())  # otherwise a crash of the machine may leave an empty file under the final name
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def output_path(path: Path, named: str) -> Path:
    """The file that is written where a user names `path`: what a link leads to, or the path itself.

    Args:
      named: how messages call it.

    Raises:
      UserError: it is a device, a pipe, a socket or a link to itself. A directory is the caller's to refuse.
    """
    _require_no_device(path, named)
    try:
        return path.resolve() if path.is_symlink() else path
    except (OSError, RuntimeError):  # RuntimeError: a loop, before Python 3.13
        raise UserError(f"{named} is a link that leads nowhere; name a file.") from None


def _require_no_device(path: Path, named: str) -> None:
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{named} is no regular file but a device, a pipe or a socket; name a file.")


def require_apart(output: Path, *, read: Iterable[Path], written: Iterable[Path] = ()) -> None:
    """Raises `UserError` if a command would overwrite a file that it reads, also through a link.

    Args:
      output: the output file as the user named it.
      read: the input files.
      written: other files that the command writes, such as a temporary file that is renamed to `output`.
    """
    for theirs in read:
        for ours in (output, *written):
            with contextlib.suppress(OSError):  # one of them does not exist
                if theirs.samefile(ours):
                    how = "" if ours == output else f", which is written by way of {ours.name},"
                    raise UserError(f"--output {output}{how} would replace the input {theirs}; name another file.")


def require_writable(path: Path) -> None:
    """Raises `RunFailed` if no file can be written at `path`. Creates its directory; keeps an existing file."""
    reason = why_not_writable(path.parent)
    if reason is not None:
        raise RunFailed(f"{path} cannot be written ({reason}).")


def why_not_writable(directory: Path) -> str | None:
    """Returns why no file can be created in a directory, or None if one can. Creates the directory if it is missing."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _unfinished(path: Path) -> Path:
    """A new temporary name beside `path`, of no other thread, process or host that writes the same file now."""
    return path.with_name(f".{path.name}.{secrets.randbits(48)}{_PARTIAL}")


def unfinished_target(path: Path) -> str | None:
    """Returns the final name of a temporary file that a killed `write_whole` left behind; None for any other file."""
    left = re.fullmatch(rf"\.(.+)\.\d+{re.escape(_PARTIAL)}", path.name)
    return left and left[1]


@contextlib.contextmanager
def write_directory(path: Path) -> Iterator[Path]:
    """Writes a directory atomically: yields a temporary one that is renamed to `path` on success and removed otherwise.

    Raises:
      UserError: `path` exists and is not an empty directory.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists already; name a directory that is empty or does not exist yet.")
    path = path.absolute()  # `.` has no name to derive the temporary one from
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = _unfinished(path)
    beside.mkdir()
    try:
        yield beside
        beside.replace(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def most_bytes_of(numbers: int) -> int:
    """Returns the largest plausible size in bytes of the weight files of a model with `numbers` parameters.

    Larger files from untrusted sources are not read into memory.
    """
    return _MOST_HEADER_BYTES + _MOST_BYTES_A_NUMBER * numbers


def read_text(path: Path, *, error: type[Exception] = UserError, most_bytes: int = MOST_BYTES) -> str:
    """Reads a small UTF-8 text file, with or without a byte order mark.

    Raises:
      error: the file does not exist, is not a regular file (reading a pipe could block forever), is larger than
        `most_bytes`, or is not UTF-8. The message is one line that names the file.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise error(f"{path} is a directory; expected a file.")
        if not stat.S_ISREG(status.st_mode):
            raise error(f"{path} is not a regular file; copy its contents into one.")
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
    """Reads a JSON file that may be damaged or hostile.

    Raises:
      error: see `read_text` and `parse_json`; the message names the file.
    """
    return parse_json(read_text(path, error=error, most_bytes=most_bytes), str(path), error=error)


def read_json_object(path: Path, *, error: type[Exception] = UserError, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """Reads a JSON file that holds one object, `{"key": ...}`. Raises `error` like `read_json`, or for other values."""
    value = read_json(path, error=error, most_bytes=most_bytes)
    if not isinstance(value, dict):
        raise error(f"{path} holds {json_kind(value)}; expected an object, {{...}}.")
    return value


def parse_json(text: str, source: str, *, error: type[Exception] = UserError) -> Any:
    """Parses JSON strictly and within limits.

    Besides malformed JSON it refuses NaN and infinities, which other programs write although they are not JSON;
    integers of thousands of digits; nesting deeper than `MOST_NESTING`, which would break recursive code later; and
    unpaired surrogates, which UTF-8 cannot encode.

    Args:
      source: where the text is from, for messages: a path, or a path and a line.

    Raises:
      error: the message is one line that begins with `source`.
    """
    return JsonParser(error=error).parse(text, source)


class JsonParser:
    """A reusable strict JSON parser; see `parse_json` for what it refuses.

    Attributes:
      missing: whether NaN, infinities and numbers beyond the range of a float become null instead of an error.
      unique: whether a duplicate key in an object, or nested in one, is an error; otherwise the last value wins, as in
        Python.
    """

    def __init__(self, *, missing: bool = False, unique: bool = False, error: type[Exception] = UserError):
        self.missing, self.unique, self._error = missing, unique, error
        reading: dict[str, Any] = {"parse_constant": self._constant, "parse_float": self._number}
        self._decoder = json.JSONDecoder(**reading)
        self._by_pairs = json.JSONDecoder(**reading, object_pairs_hook=_unique)

    def _constant(self, constant: str) -> Any:
        if self.missing:
            return None
        raise ValueError(f"holds {constant}, which is not JSON")

    def _number(self, digits: str) -> float | None:
        value = float(digits)
        return value if math.isfinite(value) else self._constant(digits[:20])

    def parse(self, text: str, source: str) -> Any:
        """Parses a text that holds exactly one value. Raises like `parse_json`."""
        with self._explained(source):
            value = self._decoder.decode(text)
            self._check(value, text)
            return value

    def parse_at(self, text: str, start: int, source: str) -> tuple[Any, int]:
        """Parses the value that begins at `start`, and returns it with its end.

        Raises like `parse_json`, with positions counted from `start`.
        """
        with self._explained(source, start):
            value, end = self._decoder.raw_decode(text, start)
            self._check(value, text[start:end])
            return value, end

    def _check(self, value: Any, text: str) -> None:
        # Without duplicate keys there is one colon a key, and few texts have more: only those are parsed a second time.
        if self.unique and isinstance(value, dict) and text.count(":") > len(value):
            self._by_pairs.decode(text)
        # Skip the walk for most texts: few brackets cannot nest too deep, and only escapes can spell a surrogate.
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
        raise ValueError(f"has the key {ascii(twice)[:60]} twice; remove one of them")
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
                    raise ValueError("holds half of a surrogate pair, which is not valid text") from None
        level, depth = below, depth + 1
        if depth > MOST_NESTING:
            raise RecursionError


_KINDS = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}


def json_kind(value: Any) -> str:
    """Returns the type of a JSON value in words, for messages: `a list`, `a number`, `null`."""
    return _KINDS.get(type(value), "null")


def check_fields(
    values: Mapping[str, Any],
    kinds: Mapping[str, type | tuple[type, ...]],
    source: str,
    *,
    error: type[Exception] = UserError,
) -> None:
    """Checks the types of known fields of a JSON object. Missing, null and unknown fields pass.

    Args:
      kinds: the types that each field may have: `{"r": int, "target_modules": (str, list)}`. An integer passes as a
        float; true and false pass as `bool` only.

    Raises:
      error: a field has another type; the message names the field and the expected types.
    """
    for name, kind in kinds.items():
        value = values.get(name)
        allowed = kind if isinstance(kind, tuple) else (kind,)
        fits = type(value) in allowed or (float in allowed and type(value) is int)
        if value is not None and not fits:
            expected = " or ".join(dict.fromkeys(_KINDS[one] for one in allowed))
            raise error(f"{source}: {name} is {clipped(repr(value), 60)}; expected {expected}.")
