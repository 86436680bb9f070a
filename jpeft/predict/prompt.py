"""How a row becomes what the model reads."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jpeft.data.prompts import Template
from jpeft.data.tasks import check_template, template_columns


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A template over a row's columns.

    Attributes:
      template: text with `{column}` in it.
      required: whether a row has to have its columns. Otherwise one that lacks any and has `input` is taken as it is:
        a prompt that was made before.
    """

    template: str = "{input}"
    required: bool = True

    @classmethod
    def given(cls, template: str) -> "Prompt":
        """A user's own. Raises `UserError`: it is malformed or names no column."""
        check_template(template, "--template")
        return cls(template)

    def of_fields(self, fields: Mapping[str, Any]) -> str:
        """The prompt of a row. Raises ValueError: a column is missing or holds nothing."""
        columns = template_columns(self.template)
        if not self.required and "input" in fields and not set(columns) <= fields.keys():
            return _text(fields, "input")
        return Template.parse(self.template).render({column: _text(fields, column) for column in columns})

    def of_text(self, text: str) -> str:
        """The prompt of a bare text, which is the template's one column. Raises ValueError: there are several."""
        columns = template_columns(self.template)
        if len(columns) > 1:
            raise ValueError(f"is one text and the template names {' and '.join(columns)}; give JSON lines")
        return Template.parse(self.template).render({columns[0]: text})


def _text(fields: Mapping[str, Any], column: str) -> str:
    if column not in fields:
        there = ", ".join(fields) or "none"
        raise ValueError(f"has no column {column!r}, only {there}; --template makes the prompt of other columns")
    if fields[column] is None:
        raise ValueError(f"has nothing in {column!r}; fill it in or remove the row")
    return str(fields[column])
