"""Types of command-line flags, checked while they are parsed: paths, integers, numbers."""

import argparse
import math
from collections.abc import Callable, Iterable
from pathlib import Path

from jpeft.errors import UserError
from jpeft.files import why_not_writable
from jpeft.words import RENAME_OR_REENCODE, why_not_utf8

_LARGEST = 10**9
# Help text of every flag that names a model: what `jpeft.model.source.resolve` accepts.
MODEL = "mini, smollm2, a hub id, a directory or a GGUF file"


def as_path(text: str, flag: str) -> Path:
    """The value of a flag as a path, with `~` expanded. Raises `UserError` if it cannot be a path."""
    if not text.strip():
        raise UserError(f"{flag} is empty; name a path.")
    if "\0" in text:
        raise UserError(f"{flag} contains a NUL character, which no file name can; name a path without it.")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{flag} is {text[:80]!r}: there is no such home directory; write the path in full.") from None


def require_utf8(words: Iterable[str]) -> None:
    """Raises `UserError` for a word of a command line, or a path, with bytes that are not UTF-8."""
    for word in words:
        if said := why_not_utf8(word, RENAME_OR_REENCODE):
            if _is_utf8_to_others(word):
                given = word.encode(errors="surrogateescape")[:60]
                said = f"the locale of this process is not UTF-8, and what was given is: {given!r}; set PYTHONUTF8=1"
            raise UserError(f"{said}.")


def _is_utf8_to_others(word: str) -> bool:
    """Whether the bytes of a word are UTF-8 after all, which Python did not take them for because of the locale."""
    try:
        word.encode(errors="surrogateescape").decode()
    except UnicodeError:
        return False
    return True


def require_workdir(workdir: Path) -> None:
    """Makes the directory of many runs. Raises `UserError` if it cannot be written."""
    require_utf8([str(workdir.absolute())])
    reason = why_not_writable(workdir)
    if reason is not None:
        raise UserError(f"--workdir {workdir} cannot be written ({reason}); name another.")


def path(text: str) -> Path:
    """An argparse `type`: a path, as of `as_path`."""
    try:
        return as_path(text, "it")
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_what_answers(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `jpeft predict` and `jpeft evaluate` that name the model and adapter."""
    what = parser.add_argument_group("what answers")
    what.add_argument("--model", metavar="NAME", help=MODEL)
    what.add_argument("--adapter", type=path, metavar="DIR", help="a run's directory, or an adapter's")
    what.add_argument("--dtype", help="auto, float32 or bfloat16 (default: the run's, or auto)")
    what.add_argument(
        "--quantization", metavar="HOW", help="of the base: none, int8, nf4, nf4,double (default: the run's, or auto)"
    )


def whole(least: int, most: int = _LARGEST) -> Callable[[str], int]:
    """An argparse `type`: an integer from `least` to `most`."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:  # also raised for thousands of digits
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text[:40]} is not from {least:,} to {most:,}")
        return value

    return number


def wholes(least: int, most: int = _LARGEST) -> Callable[[str], tuple[int, ...]]:
    """An argparse `type`: integers separated by commas."""
    one = whole(least, most)
    return lambda text: tuple(one(part) for part in text.split(","))


def number(least: int | float = -_LARGEST, most: int | float = _LARGEST) -> Callable[[str], float]:
    """An argparse `type`: a finite number from `least` to `most`."""

    def parsed(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number") from None
        if not (math.isfinite(value) and least <= value <= most):
            raise argparse.ArgumentTypeError(f"{text[:40]} is not from {least:g} to {most:g}")
        return value

    return parsed
