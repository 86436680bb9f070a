"""How a row becomes what the model reads."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jpeft.data.prompts import PromptIds, PromptTokens, Template
from jpeft.data.tasks import check_template
from jpeft.model.tokenizer import Tokenizer
from jpeft.rows.values import as_text, is_missing

_AS_IT_STANDS = "{input}"


@dataclasses.dataclass(frozen=True)
class Question:
    """The question of one row: a prompt template with the texts to fill in.

    Attributes:
      template: the template of the prompt.
      fields: texts of the template's columns.
    """

    template: str
    fields: Mapping[str, str]

    @classmethod
    def as_it_stands(cls, text: str) -> "Question":
        """The question of a whole prompt, to which no template is applied any more."""
        return cls(_AS_IT_STANDS, {"input": text})

    @property
    def text(self) -> str:
        """The whole prompt: the template with the texts of its columns filled in."""
        return Template.parse(self.template).render(self.fields)


@dataclasses.dataclass(frozen=True)
class PromptTemplate:
    """A template over a row's columns.

    Attributes:
      template: text with `{column}` in it.
      required: whether a row has to have its columns. Otherwise one that lacks any and has `input` is taken as it is:
        a prompt that was made before.
    """

    template: str = _AS_IT_STANDS
    required: bool = True

    @classmethod
    def given(cls, template: str) -> "PromptTemplate":
        """A user's own. Raises `UserError`: it is malformed or names no column."""
        check_template(template, "--template")
        return cls(template)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that the template takes text from."""
        return Template.parse(self.template).columns

    def of_fields(self, fields: Mapping[str, Any]) -> Question:
        """The question of a row given by its columns. Raises ValueError: a column is missing or holds nothing."""
        columns = self.columns
        if not self.required and "input" in fields and not set(columns) <= fields.keys():
            return Question.as_it_stands(_text(fields, "input"))
        return Question(self.template, {column: _text(fields, column) for column in columns})

    def of_text(self, text: str) -> Question:
        """What a bare text asks, which is the template's one column. Raises ValueError: there are several."""
        columns = self.columns
        if len(columns) > 1:
            raise ValueError(
                f"is one text and the template names {' and '.join(columns)}; give rows with these columns"
            )
        return Question(self.template, dict.fromkeys(columns, text))


class QuestionTokens:
    """Token ids of questions, all that a model reads: over `max_length` they are cut as in training, never elsewhere.

    Args:
      tokenizer: also says what stands around a prompt.
      key: how `max_length` was given.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int, *, key: str):
        self.tokenizer, self._max_length, self._key = tokenizer, max_length, key
        self._of_template: dict[str, PromptTokens] = {}

    def __call__(self, questions: Sequence[Question]) -> PromptIds:
        """Ids of each. Raises `UserError`: a template leaves no room for a row's text."""
        rows_of: dict[str, list[int]] = {}
        for i, question in enumerate(questions):
            rows_of.setdefault(question.template, []).append(i)
        ids: list[list[int]] = [[] for _ in questions]
        cut = [False] * len(questions)
        for template, rows in rows_of.items():
            encoded = self._tokens_of(template)([questions[i].fields for i in rows])
            for i, of_row, was_cut in zip(rows, encoded.ids, encoded.cut, strict=True):
                ids[i], cut[i] = of_row, was_cut
        return PromptIds(ids, cut)

    def check(self, template: str) -> None:
        """Raises `UserError` as calling this with a question of that template would."""
        self._tokens_of(template)

    def _tokens_of(self, template: str) -> PromptTokens:
        made = self._of_template.get(template)
        if made is None:
            made = PromptTokens(template, self.tokenizer, self._max_length, key=self._key)
            self._of_template = {template: made, **dict(list(self._of_template.items())[:7])}  # the few latest
        return made


def _text(fields: Mapping[str, Any], column: str) -> str:
    if column not in fields:
        there = ", ".join(fields) or "none"
        raise ValueError(f"has no column {column!r}, only {there}; --template makes the prompt of other columns")
    if is_missing(fields[column]):
        raise ValueError(f"has nothing in {column!r}; fill it in or remove the row")
    try:
        return as_text(fields[column])
    except ValueError as error:
        raise ValueError(f"has a column {column!r} that {error}") from None
