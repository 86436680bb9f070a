"""What a value of a row must be to be read by a model: text, or what has one plain way of being written as text."""

import base64
import dataclasses
import datetime
import decimal
import math
import re
import unicodedata
import uuid
from typing import Any

from jpeft.words import clipped

_PLAIN = (int, float, decimal.Decimal, datetime.date, datetime.time, datetime.timedelta, uuid.UUID)
_SHOWN = 60
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?")


@dataclasses.dataclass(frozen=True)
class NoMoment:
    """A day or a time of a year that no calendar has, by its count, which is no text that anybody meant."""

    count: str

    def __str__(self) -> str:
        return self.count


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """A value of a column whose type cannot be converted here, such as a time zone that is not installed.

    Attributes:
      reason: why, as the library that reads the file says it.
    """

    reason: str


def is_missing(value: Any) -> bool:
    """Whether there is no value: null; or NaN or an infinity, by which pandas and NumPy say so."""
    if value is None:
        return True
    if isinstance(value, decimal.Decimal):
        return not value.is_finite()
    if isinstance(value, float):
        return not math.isfinite(value)
    return not isinstance(value, int) and _is_number(value) and value.dtype.kind == "f" and not math.isfinite(value)


def as_text(value: Any) -> str:
    """The text that a model reads for a value that is not missing.

    Text stays as it is, bytes are read as UTF-8; numbers, true and false, dates and times as Python writes them.

    Raises:
      ValueError: a list, an object, a moment past any calendar, bytes or text that are no text. The message says what
        the value is and what to do, for a sentence that begins with row and column.
    """
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"holds bytes that are not UTF-8 (byte {error.start}); write text there") from None
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ValueError("holds half of a surrogate pair, which is no text; remove it") from None
        return value
    if isinstance(value, decimal.Decimal):
        return format(value, "f")  # not 0E-18
    if isinstance(value, _PLAIN):
        return str(value)
    if _is_number(value):  # NumPy's
        return str(value.item())
    if isinstance(value, list | tuple):
        raise ValueError(f"holds a list, {_shown(value)}; join it to one text, or write a row for each of its values")
    if isinstance(value, Unreadable):
        raise ValueError(f"cannot be read ({value.reason}); mend or remove the column")
    if isinstance(value, NoMoment):
        raise ValueError(f"holds a moment past any calendar, {clipped(value.count, _SHOWN)}; mend or remove it")
    if isinstance(value, dict):
        raise ValueError(f"holds an object, {_shown(value)}; give its parts columns of their own")
    raise ValueError(f"holds a value of the type {type(value).__name__}; write text there")


_UNSEEN = ("Cf", "Cc")  # categories of characters that a reader does not see: joiners, marks of direction, controls


def can_be_seen(text: str) -> bool:
    """Whether a reader sees anything of a text: white space, joiners and controls leave no mark."""
    return any(not each.isspace() and unicodedata.category(each) not in _UNSEEN for each in text)


def alike(text: str) -> str:
    """A key that is equal for texts that a reader takes for the same.

    Case, white space, what cannot be seen and the way in which a letter or a number (1, 1.0) is written are left aside.
    """
    composed = unicodedata.normalize("NFKC", text)
    visible = "".join(each for each in composed if each.isspace() or unicodedata.category(each) not in _UNSEEN)
    folded = " ".join(visible.casefold().split())
    if not _NUMBER.fullmatch(folded):
        return folded
    try:  # every digit counts: of 2**53 and 2**53 + 1 a float makes one
        number = decimal.Decimal(folded).normalize(decimal.Context(prec=max(28, len(folded))))
    except decimal.DecimalException:
        return folded
    return str(number) if number else "0"


def as_json(value: Any) -> Any:
    """A value of whatever kind as JSON has it: null where it is missing, text for what JSON lacks, base64 for bytes."""
    if isinstance(value, dict):
        return {str(key): as_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(part) for part in value]
    if is_missing(value):
        return None
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    if isinstance(value, decimal.Decimal):
        return format(value, "f")
    return value if isinstance(value, str | int | float) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (hasattr(value, "dtype") and getattr(value, "ndim", 1) == 0)


def _shown(value: Any) -> str:
    # Of a list of a million texts only the beginning is written out.
    part = value[:3] if isinstance(value, list | tuple) else dict(list(value.items())[:3])
    text = ascii(part) if len(part) == len(value) else f"{ascii(part)[:-1]}, ...{ascii(part)[-1]}"
    return clipped(text, _SHOWN)
