"""Prompts: from a row's columns or text, through a template, to token ids."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jpeft.data.prompts import PromptIds, PromptTokens
from jpeft.data.tasks import check_template, meant_by
from jpeft.data.template import Template
from jpeft.model.tokenizer import Tokenizer
from jpeft.rows.values import as_text, is_missing

_AS_IT_STANDS = "{input}"


@dataclasses.dataclass(frozen=True)
class Question:
    """A prompt that is not filled in yet, so that its longest text can be cut.

    Attributes:
      template: the prompt template.
      fields: the texts of the template's columns.
    """

    template: str
    fields: Mapping[str, str]

    @classmethod
    def as_it_stands(cls, text: str) -> "Question":
        """The question of a complete prompt, to which no template is applied."""
        return cls(_AS_IT_STANDS, {"input": text})

    @property
    def text(self) -> str:
        """The prompt: the template with its columns filled in."""
        return Template.parse(self.template).render(self.fields)


class NoQuestion(ValueError):
    """Raised for a row that gives no question. The message suits rows of a file; the server words its own."""


class ColumnMissing(NoQuestion):
    """A row lacks a column that the prompt is made of.

    Attributes:
      column: its name.
      there: the names of the row's columns, separated by commas.
    """

    def __init__(self, column: str, fields: Mapping[str, Any]):
        self.column, self.there = column, ", ".join(fields) or "none"
        meant = meant_by(column, fields, fields).removesuffix(".")
        other = f"--template makes the prompt of other columns{'.' if meant else ''}{meant}"
        super().__init__(f"has no column {column!r}, only {self.there}; {other}")


class ColumnEmpty(NoQuestion):
    """A row has an empty column that the prompt is made of; `column` is its name."""

    def __init__(self, column: str):
        self.column = column
        super().__init__(f"has nothing in {column!r}; fill it in or remove the row")


class SeveralColumns(NoQuestion):
    """A text was given for a prompt of several columns; `columns` are their names, in words."""

    def __init__(self, columns: Sequence[str]):
        self.columns = " and ".join(columns)
        super().__init__(f"is one text and the template names {self.columns}; give rows with these columns")


@dataclasses.dataclass(frozen=True)
class PromptTemplate:
    """A template over a row's columns.

    Attributes:
      template: text with `{column}` in it.
      required: whether a row must have the columns. If not, the `input` of a row that lacks one is its prompt, unless
        `input` is itself one of the columns: then it is a part of a prompt and not a whole one.
    """

    template: str = _AS_IT_STANDS
    required: bool = True

    @classmethod
    def given(cls, template: str) -> "PromptTemplate":
        """A template that the user gave. Raises `UserError` if it is malformed or names no column."""
        check_template(template, "--template")
        return cls(template)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the template's columns."""
        return Template.parse(self.template).columns

    def of_fields(self, fields: Mapping[str, Any]) -> Question:
        """The question of a row by its columns. Raises `NoQuestion` if one is missing, empty or not text."""
        columns = self.columns
        may_be_whole = not self.required and "input" not in columns
        if may_be_whole and "input" in fields and not set(columns) <= fields.keys():
            return Question.as_it_stands(_text(fields, "input"))
        return Question(self.template, {column: _text(fields, column) for column in columns})

    def of_text(self, text: str) -> Question:
        """The question of a text for the template's one column. Raises `SeveralColumns` if it has several."""
        columns = self.columns
        if len(columns) > 1:
            raise SeveralColumns(columns)
        return Question(self.template, dict.fromkeys(columns, text))


class QuestionTokens:
    """Tokenises questions; those over `max_length` are cut as in training, in their longest text.

    Args:
      tokenizer: of the model, with its chat template if it has one.
      max_length: in tokens.
      key: the name of `max_length` in messages.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int, *, key: str):
        self.tokenizer, self._max_length, self._key = tokenizer, max_length, key
        self._of_template: dict[str, PromptTokens] = {}

    def __call__(self, questions: Sequence[Question]) -> PromptIds:
        """The token ids of each question. Raises `UserError` if a template leaves no room for a row's text."""
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
        """Raises `UserError` if this template leaves no room for a row's text."""
        self._tokens_of(template)

    def _tokens_of(self, template: str) -> PromptTokens:
        made = self._of_template.get(template)
        if made is None:
            made = PromptTokens(template, self.tokenizer, self._max_length, key=self._key)
            self._of_template = {template: made, **dict(list(self._of_template.items())[:7])}  # the latest few
        return made


def special_tokens_in(question: Question, tokenizer: Tokenizer) -> list[str]:
    """The names of special tokens that a question's texts spell, which the model reads as ordinary text."""
    return tokenizer.special_names("\n".join(question.fields.values()))


def unreadable_in(question: Question, ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """The pieces of a question's texts that the vocabulary lacks: an unknown token to the model, or nothing.

    Args:
      ids: the question's tokens.
    """
    if not tokenizer.leaves_out_characters and tokenizer.unknown_token_id not in ids:
        return []
    found = (piece for text in question.fields.values() for piece in tokenizer.unknown_characters(text))
    return list(dict.fromkeys(found))


def _text(fields: Mapping[str, Any], column: str) -> str:
    if column not in fields:
        raise ColumnMissing(column, fields)
    if is_missing(fields[column]):
        raise ColumnEmpty(column)
    try:
        return as_text(fields[column])
    except ValueError as error:
        raise NoQuestion(f"has a column {column!r} that {error}") from None
