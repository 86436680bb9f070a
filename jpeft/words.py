"""Formatting for messages: counts, sizes, lists, and values that may be long or not printable."""

import re
import unicodedata
from collections.abc import Sequence


def counted(number: int, one: str, several: str | None = None) -> str:
    """Returns a number with its noun: `1 cell`, `2,500 cells`. `several` is the plural, by default `one` with an s."""
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"


def size(amount: int | float, unit: str = "B") -> str:
    """Returns an amount with three significant digits and a decimal prefix: `1.23 GB`, `41.0 MB`, `512 B`."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if amount >= 0.9995 * factor:  # 999,999 is 1.00 MB, not 1000 kB
            return f"{amount / factor:#.3g} {prefix}{unit}".replace(". ", " ")  # Python writes 123.
    return f"{amount:.0f} {unit}"


def in_bits(quantization: str | None) -> str:
    """Returns how a base's weights are stored, in words: `in nf4`, or `wide` if they are not quantized.

    Args:
      quantization: the value in `task.json` or `result.json`, such as `nf4,double`; None, `auto` and `none` are wide.
    """
    return "wide" if quantization in (None, "auto", "none") else f"in {quantization}"


def named_in_bits(name: str, quantization: str | None) -> str:
    """Returns a model's name, with its quantization if it has one: `mini`, `mini in nf4`."""
    bits = in_bits(quantization)
    return name if bits == "wide" else f"{name} {bits}"


def clipped(text: str, most: int) -> str:
    """Returns a text, cut to its first `most` characters and `...` if it is longer."""
    return text if len(text) <= most else f"{text[:most]}..."


def short(text: str, *, quoted: bool = True) -> str:
    """Returns a label or a row's text for a message: at most 40 characters, escaped if it looks like another text.

    Args:
      quoted: whether to quote a plain text, too; one with unusual white space or characters is always quoted.
    """
    text = clipped(text, 40)
    if not unicodedata.is_normalized("NFC", text):  # it looks the same as its composed form and differs from it
        return ascii(text)
    return repr(text) if quoted or not text.isprintable() or text != " ".join(text.split()) else text


def shortened(value: object, most: int = 120) -> str:
    """Returns the `repr` of a value, cut to `most` characters, for messages."""
    return clipped(repr(value), most)


RENAME_OR_REENCODE = "rename the file, or write the text in UTF-8"  # a remedy for `why_not_utf8`
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def why_not_utf8(text: str, remedy: str = "remove it") -> str | None:
    """Returns why UTF-8 cannot encode a text or a file name, and what to do; None if it can.

    Python decodes arguments and file names that are not UTF-8 to unpaired surrogates, which can neither be written to a
    file nor be tokenised.

    Args:
      remedy: what the user should do, as the end of the message.
    """
    if text.isascii() or not (first := _SURROGATE.search(text)):
        return None
    is_byte = _escaped(first[0]).startswith("\\x")
    shown = _SURROGATE.sub(lambda half: _escaped(half[0]), text[max(0, first.start() - 60) : first.start() + 60])
    what = "bytes that are not UTF-8" if is_byte else "half of a surrogate pair"
    return f"'{shown}' holds {what}; {remedy}"


def _escaped(surrogate: str) -> str:
    """Returns the escape of the byte that a surrogate stands for (PEP 383), `\\xff`, or of the surrogate, `\\ud83d`."""
    return f"\\x{ord(surrogate) - 0xDC00:02x}" if "\udc80" <= surrogate <= "\udcff" else f"\\u{ord(surrogate):04x}"


def one_line(text: str, most: int = 120) -> str:
    """Returns the first `most` characters of a text with all white space, line breaks included, as single spaces."""
    return " ".join(text.split())[:most]


def listed(texts: Sequence[str]) -> str:
    """Joins texts as a sentence does: `a`, `a and b`, `a, b and c`."""
    *others, last = texts
    return f"{', '.join(others)} and {last}" if others else last


def the_first(texts: Sequence[str], most: int = 3) -> str:
    """Joins the first `most` texts with semicolons, followed by ` ...` if there are more."""
    return "; ".join(texts[:most]) + (" ..." if len(texts) > most else "")
