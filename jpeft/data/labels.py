"""Labels that a user lists in one text: between commas, as in CSV, where one that holds a comma stands in quotes."""

import re

from jpeft.errors import UserError

_PIECE = re.compile(r'\s*(?:"([^"]*(?:""[^"]*)*)")?([^,]*),')


def labels_between_commas(given: str, key: str, *, behind: str = "") -> list[str]:
    """The labels of a list, without the quotes around them; none of an empty text.

    Args:
      key: what the text was given as, for messages.
      behind: what may follow the quotes of a label, such as `=`; all from there to the comma stays with the label.

    Raises:
      UserError: a quote is not closed, or something else follows it.
    """
    labels = []
    for piece in _PIECE.finditer(f"{given},") if given else ():
        quoted, rest = piece.groups()
        follows = rest.strip()
        if follows.startswith('"') if quoted is None else follows and not (behind and follows.startswith(behind)):
            raise UserError(
                f'{key} {given[:80]!r} has a quote amiss; write labels as A,B and one with a comma as "A, B".'
            )
        labels.append(rest if quoted is None else quoted.replace('""', '"') + follows)
    return labels


def as_listed(label: str) -> str:
    """A label as a list of labels has it: in quotes where it holds a comma or begins with a quote."""
    quoted = label.replace('"', '""')
    return f'"{quoted}"' if "," in label or label.startswith('"') else label
