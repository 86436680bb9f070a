"""A prompt's wording: a template over a row's columns."""

import dataclasses
import re
from collections.abc import Mapping

from jpeft.errors import UserError

_FORMAT = re.compile(r"![a-z]|(![a-z])?:(.?[<>=^])?[-+ ]?#?0?\d*[,_]?(\.\d+)?[A-Za-z%]?")
_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[^{}]+|[{}]")


@dataclasses.dataclass(frozen=True)
class Template:
    """A prompt with `{column}` in it. `{{` and `}}` write braces; any name that a column can have may stand in them.

    Attributes:
      text: as it was written.
      parts: its pieces in order, `(text, None)` or `("", column)`.
    """

    text: str
    parts: tuple[tuple[str, str | None], ...] = dataclasses.field(repr=False)

    @classmethod
    def parse(cls, text: str) -> "Template":
        """Raises ValueError: a brace stands alone, or braces hold more than a column's name."""
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
            name = name.strip()  # as those of columns are where they are read
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
        """The text of one column and nothing else. Raises `UserError`: no template can name it."""
        try:
            template = cls.parse(f"{{{column}}}")
        except ValueError:
            template = None
        if not column or template is None or template.columns != (column,):
            raise UserError(f"the column's name {column!r} cannot stand in a template; rename the column.")
        return template

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that stand in it, each once, in the order of their first places."""
        return tuple(dict.fromkeys(column for _, column in self.parts if column is not None))

    @property
    def is_bare(self) -> bool:
        """Whether a prompt is the text of one column and nothing else."""
        return len(self.parts) == 1 and self.parts[0][1] is not None

    def render(self, fields: Mapping[str, str]) -> str:
        """The prompt as one text. Raises KeyError: a column is missing."""
        return "".join(text if column is None else fields[column] for text, column in self.parts)
