"""Prompt templates over the columns of a row."""

import dataclasses
import re
from collections.abc import Mapping

from jpeft.errors import UserError

_FORMAT = re.compile(r"![a-z]|(![a-z])?:(.?[<>=^])?[-+ ]?#?0?\d*[,_]?(\.\d+)?[A-Za-z%]?")
_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[^{}]+|[{}]")


@dataclasses.dataclass(frozen=True)
class Template:
    """A prompt with columns in braces, `{column}`. `{{` and `}}` are literal braces; names may contain spaces.

    Attributes:
      text: as the user wrote it.
      parts: in order, `(text, None)` for literal text and `("", column)` for a column.
    """

    text: str
    parts: tuple[tuple[str, str | None], ...] = dataclasses.field(repr=False)

    @classmethod
    def parse(cls, text: str) -> "Template":
        """Parses a template. Raises `ValueError` for an unmatched brace, or a format such as `{column:.2f}`."""
        parts: list[tuple[str, str | None]] = []
        for token in _TOKEN.finditer(text):
            piece, name = token[0], token[1]
            if piece in ("{", "}"):
                raise ValueError(f"the brace {piece!r} at character {token.start() + 1} stands alone")
            if name is None:
                literal = piece[0] if piece in ("{{", "}}") else piece
                before = parts.pop()[0] if parts and parts[-1][1] is None else ""
                parts.append((before + literal, None))
                continue
            name = name.strip()  # readers strip the names of columns, too
            asked = re.search(r"[!:]", name)
            if asked and _FORMAT.fullmatch(name, asked.start()):
                raise ValueError(
                    f"{piece} asks for a format; write {{{name[: asked.start()]}}}, a column's name alone; a column of "
                    f"the name {name!r} has to be renamed"
                )
            parts.append(("", name))
        return cls(text, tuple(parts))

    @classmethod
    def of_column(cls, column: str) -> "Template":
        """Returns the template `{column}`. Raises `UserError` if a template cannot name the column."""
        try:
            template = cls.parse(f"{{{column}}}")
        except ValueError:
            template = None
        if not column or template is None or template.columns != (column,):
            raise UserError(f"the column's name {column!r} cannot stand in a template; rename the column.")
        return template

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the template's columns, without repetitions, in order."""
        return tuple(dict.fromkeys(column for _, column in self.parts if column is not None))

    def of_other_column(self, column: str) -> "Template":
        """Returns the template with `column` in the place of each of its columns. Raises like `of_column`."""
        name = Template.of_column(column).text
        escaped = str.maketrans({"{": "{{", "}": "}}"})
        return Template.parse("".join(name if own is not None else text.translate(escaped) for text, own in self.parts))

    @property
    def is_bare(self) -> bool:
        """Whether the template is a single column without any text."""
        return len(self.parts) == 1 and self.parts[0][1] is not None

    def render(self, fields: Mapping[str, str]) -> str:
        """Returns the prompt of a row. Raises `KeyError` if it lacks a column."""
        return "".join(text if column is None else fields[column] for text, column in self.parts)


def template_warnings(template: str) -> list[str]:
    """Warns about the two characters backslash and n, which a shell does not make a line break of."""
    found = re.findall(r"\\[nt]", template)
    if not found:
        return []
    return [
        f"the template has the two characters {found[0]} in it, which stay as they are; a shell writes a line break as "
        "$'...\\n...'"
    ]
