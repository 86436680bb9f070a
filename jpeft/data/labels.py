"""Comma-separated lists of labels; as in CSV, a label that contains a comma is quoted."""

import re

from jpeft.errors import UserError

_PIECE = re.compile(r'\s*(?:"([^"]*(?:""[^"]*)*)")?([^,]*),')


def labels_between_commas(given: str, key: str, *, behind: str = "") -> list[str]:
    """Parses a list of labels and removes their quotes. An empty text is an empty list.

    Args:
      given: the text, `A,"B, C"`.
      key: of the text, for messages.
      behind: a separator that may follow the closing quote, such as `=`; the text from it to the comma is kept.

    Raises:
      UserError: a quote is not closed, or other text follows it.
    """
    labels = []
    for piece in _PIECE.finditer(f"{given},") if given else ():
        quoted, rest = piece.groups()
        follows = rest.strip()
        if follows.startswith('"') if quoted is None else follows and not (behind and follows.startswith(behind)):
            raise UserError(
                f'{key} {given[:80]!r} has a misplaced quote; write labels as A,B and one with a comma as "A, B".'
            )
        labels.append(rest if quoted is None else quoted.replace('""', '"') + follows)
    return labels


def as_listed(label: str) -> str:
    """Returns a label as an entry of such a list: quoted if it contains a comma or begins with a quote."""
    quoted = label.replace('"', '""')
    return f'"{quoted}"' if "," in label or label.startswith('"') else label
