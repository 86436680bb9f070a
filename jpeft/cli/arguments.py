"""Values of flags, checked as they are read: paths, whole numbers, numbers."""

import argparse
import math
from collections.abc import Callable, Iterable
from pathlib import Path

from jpeft.errors import UserError
from jpeft.files import why_not_writable
from jpeft.words import NAME_OR_TEXT, told_of_no_text

_LARGEST = 10**9
# What `jpeft.model.source.resolve` takes, in the help of every flag that names a model.
MODEL = "mini, smollm2, a hub id, a directory or a GGUF file"


def as_path(text: str, flag: str) -> Path:
    """The path that a flag gives, `~` resolved. Raises `UserError` where it can be none."""
    if not text.strip():
        raise UserError(f"{flag} is empty; name a path.")
    if "\0" in text:
        raise UserError(f"{flag} holds a NUL character, which no file's name can.")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{flag} is {text[:80]!r}: there is no such home directory; write the path in full.") from None


def require_utf8(words: Iterable[str]) -> None:
    """Raises `UserError` for a word of a command line, or a path, that holds bytes that are not UTF-8."""
    for word in words:
        if said := told_of_no_text(word, NAME_OR_TEXT):
            raise UserError(f"{said}.")


def require_workdir(workdir: Path) -> None:
    """Raises `UserError` where the directories of many runs cannot be made in `workdir`; makes it."""
    require_utf8([str(workdir.absolute())])
    reason = why_not_writable(workdir)
    if reason is not None:
        raise UserError(f"--workdir {workdir} cannot be written ({reason}); name another.")


def path(text: str) -> Path:
    """A `type` of argparse: a path, as `as_path` reads it."""
    try:
        return as_path(text, "it")
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_what_answers(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say what answers, in `jpeft predict` and `jpeft evaluate` alike."""
    what = parser.add_argument_group("what answers")
    what.add_argument("--model", metavar="NAME", help=MODEL)
    what.add_argument("--adapter", type=path, metavar="DIR", help="a run's directory, or an adapter's")
    what.add_argument("--dtype", help="auto, float32 or bfloat16 (default: the run's, or auto)")
    what.add_argument(
        "--quantization", metavar="HOW", help="of the base: none, int8, nf4, nf4,double (default: the run's, or auto)"
    )


def whole(least: int = -_LARGEST, most: int = _LARGEST) -> Callable[[str], int]:
    """A `type` of argparse: a whole number from `least` to `most`; commands say more of what is too little for them."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:  # also of thousands of digits
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text[:40]} is not from {least:,} to {most:,}")
        return value

    return number


def wholes(least: int, most: int = _LARGEST) -> Callable[[str], tuple[int, ...]]:
    """A `type` of argparse: whole numbers with commas."""
    one = whole(least, most)
    return lambda text: tuple(one(part) for part in text.split(","))


def number(least: int | float = -_LARGEST, most: int | float = _LARGEST) -> Callable[[str], float]:
    """A `type` of argparse: a finite number from `least` to `most`."""

    def parsed(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is no number") from None
        if not (math.isfinite(value) and least <= value <= most):
            raise argparse.ArgumentTypeError(f"{text[:40]} is not from {least:g} to {most:g}")
        return value

    return parsed
