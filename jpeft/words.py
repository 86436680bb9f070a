"""Numbers, long texts and long lists in sentences."""

import re
import unicodedata
from collections.abc import Sequence


def counted(number: int, one: str, several: str | None = None) -> str:
    """`1 cell`, `2,500 cells`; `several` where it is not `one` with an s."""
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"


def size(amount: int | float, unit: str = "B") -> str:
    """`1.23 GB`, `41.0 MB`, `0 B`, `512 B`: with the prefix that leaves one to three digits before the point."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if amount >= 0.9995 * factor:  # 999,999 is 1.00 MB, not 1000 kB
            return f"{amount / factor:#.3g} {prefix}{unit}".replace(". ", " ")  # 123., as Python has it
    return f"{amount:.0f} {unit}"


def in_bits(quantization: str | None) -> str:
    """How a base is kept, behind the words for it: `in nf4`, or `wide`.

    Args:
      quantization: as `task.json` and `result.json` have it: `nf4,double`, or what stands for no fewer bits.
    """
    return "wide" if quantization in (None, "auto", "none") else f"in {quantization}"


def named_in_bits(name: str, quantization: str | None) -> str:
    """A model's name, and in how few bits it is kept where it is not wide: `mini in nf4`."""
    bits = in_bits(quantization)
    return name if bits == "wide" else f"{name} {bits}"


def clipped(text: str, most: int) -> str:
    """A text as it is, or its first `most` characters and `...` where it has more."""
    return text if len(text) <= most else f"{text[:most]}..."


def short(text: str, *, quoted: bool = True) -> str:
    """The beginning of a label or of what a row holds, so that what looks like another text does not.

    Args:
      quoted: whether also a text that can be read without quotes is in quotes.
    """
    text = clipped(text, 40)
    if not unicodedata.is_normalized("NFC", text):  # looks like another text and is not
        return ascii(text)
    return repr(text) if quoted or not text.isprintable() or text != " ".join(text.split()) else text


def shortened(value: object, most: int = 120) -> str:
    """A value as Python writes it, quotes included, its end left out where that is long: for messages."""
    return clipped(repr(value), most)


NAME_OR_TEXT = "rename the file, or write the text in UTF-8"  # a mend for `told_of_no_text`
_HALF = re.compile(r"[\ud800-\udfff]")


def told_of_no_text(text: str, mend: str = "remove it") -> str | None:
    """What a message says of a text, or of a file's name, that UTF-8 cannot write; None of all others.

    Python keeps bytes that are not UTF-8 as halves of surrogate pairs, which no file of ours and no tokenizer takes.

    Args:
      mend: what to do.
    """
    if text.isascii() or not (first := _HALF.search(text)):
        return None
    is_byte = _escaped(first[0]).startswith("\\x")
    shown = _HALF.sub(lambda half: _escaped(half[0]), text[max(0, first.start() - 60) : first.start() + 60])
    what = "bytes that are not UTF-8" if is_byte else "half of a surrogate pair"
    return f"'{shown}' holds {what}; {mend}"


def _escaped(half: str) -> str:
    """The byte that half of a surrogate pair stands for, as Python keeps those of names, or which half it is."""
    return f"\\x{ord(half) - 0xDC00:02x}" if "\udc80" <= half <= "\udcff" else f"\\u{ord(half):04x}"


def one_line(text: str, most: int = 120) -> str:
    """The beginning of a text whose white space, line breaks too, is single spaces: a stranger's may hold anything."""
    return " ".join(text.split())[:most]


def listed(texts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`: a list as a sentence has it."""
    *others, last = texts
    return f"{', '.join(others)} and {last}" if others else last


def the_first(texts: Sequence[str], most: int = 3) -> str:
    """Texts with semicolons between them, ` ...` in the place of those after the first `most`."""
    return "; ".join(texts[:most]) + (" ..." if len(texts) > most else "")
