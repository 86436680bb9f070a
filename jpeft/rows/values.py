"""Conversion of a row's values to text, for values with one obvious text form, and comparison of texts."""

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
    """A date or time beyond any calendar, as its count of units since the epoch. It has no sensible text form."""

    count: str

    def __str__(self) -> str:
        return self.count


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """A value of a column whose type cannot be converted here, such as a time zone that is not installed.

    Attributes:
      reason: why, for a sentence in parentheses.
    """

    reason: str

    def __str__(self) -> str:
        return f"cannot be read ({self.reason})"


def is_missing(value: Any) -> bool:
    """Whether a value is missing: null, NaN or an infinity."""
    if value is None:
        return True
    if isinstance(value, decimal.Decimal):
        return not value.is_finite()
    if isinstance(value, float):
        return not math.isfinite(value)
    return not isinstance(value, int) and _is_number(value) and value.dtype.kind == "f" and not math.isfinite(value)


def as_text(value: Any) -> str:
    """Converts a value that is not missing to the text that a model reads.

    Bytes are decoded as UTF-8; numbers, booleans, dates and times are written as Python does.

    Raises:
      ValueError: the value is a list, an object or a date beyond any calendar, or is not valid UTF-8. The message says
        what it is and what to do, for a sentence that begins with its row and column.
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
                raise ValueError("holds half of a surrogate pair, which is not valid text; remove it") from None
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
        raise ValueError(f"{value}; write text there, or remove the column")
    if isinstance(value, NoMoment):
        raise ValueError(f"holds a date or time beyond any calendar, {clipped(value.count, _SHOWN)}; fix or remove it")
    if isinstance(value, dict):
        raise ValueError(f"holds an object, {_shown(value)}; give its parts columns of their own")
    raise ValueError(f"holds a value of the type {type(value).__name__}; write text there")


_INVISIBLE_CATEGORIES = ("Cf", "Cc")  # format characters (joiners, direction marks) and controls
# Unicode's Default_Ignorable_Code_Point that are letters or marks by category: the grapheme joiner, fillers of Hangul,
# inherent vowels of Khmer, and variation selectors.
_INVISIBLE = frozenset(
    map(chr, [0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180F, 0x3164, 0xFFA0])
).union(map(chr, range(0xFE00, 0xFE10)), map(chr, range(0xE0100, 0xE01F0)))


def _is_invisible(character: str) -> bool:
    return character in _INVISIBLE or unicodedata.category(character) in _INVISIBLE_CATEGORIES


def can_be_seen(text: str) -> bool:
    """Whether a text has a visible character: neither white space nor an invisible one, such as a joiner."""
    return any(not each.isspace() and not _is_invisible(each) for each in text)


def alike(text: str) -> str:
    """Returns a key that is equal for texts that look the same.

    It ignores case, white space, invisible characters, Unicode variants of letters, and the format of numbers (1, 1.0).
    """
    visible = "".join(each for each in text if each.isspace() or not _is_invisible(each))
    folded = " ".join(unicodedata.normalize("NFKC", visible).casefold().split())
    if not _NUMBER.fullmatch(folded):
        return folded
    try:  # exactly: as floats 2**53 and 2**53 + 1 would be equal
        number = decimal.Decimal(folded).normalize(decimal.Context(prec=max(28, len(folded))))
    except decimal.DecimalException:
        return folded
    return str(number) if number else "0"


def as_json(value: Any) -> Any:
    """Converts any value to JSON types: missing values to null, bytes to text or base64, other types to text."""
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
    # Format only the beginning, since a list may have a million values.
    part = value[:3] if isinstance(value, list | tuple) else dict(list(value.items())[:3])
    text = ascii(part) if len(part) == len(value) else f"{ascii(part)[:-1]}, ...{ascii(part)[-1]}"
    return clipped(text, _SHOWN)
