"""Tasks: the four of the benchmark and the user's own, as prompts, labels, metrics and lengths."""

import contextlib
import dataclasses
import re
import types
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from jpeft.data.template import Template
from jpeft.errors import UserError
from jpeft.rows.values import alike, as_text, is_missing
from jpeft.words import clipped

KINDS = ("classification", "generation")
OPTIONS = ("auto", "list", "none")  # whether the prompt of a custom classification lists its labels
CUSTOM = "custom"  # the name of the task of a user's own rows


@dataclasses.dataclass(frozen=True)
class Example:
    """One row as prompt and target.

    Attributes:
      id: source split and row number, `train/17`.
      input: the whole prompt, before it is cut to the maximum length.
      references: every acceptable answer, the target first.
      fields: texts of the template's columns; None if only the whole prompt is known.
    """

    id: str
    input: str
    target: str
    references: tuple[str, ...]
    fields: Mapping[str, str] | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """A task: how a row of a dataset becomes an input and a target, and how answers are judged.

    Attributes:
      kind: `classification` or `generation`. By default the first is judged by accuracy, the second by ROUGE-L.
      template: the prompt, with `{column}` where the text of a column goes.
      target: column of the answer.
      is_custom: whether the rows are the user's own. Such a task is judged by the first of `metrics`, takes labels from
        its training rows and scores them by default, and draws its splits by class. The tasks of the benchmark follow
        the paper's protocol, whatever else is asked for.
      answers: the labels of a classification. Empty if they are not known before the rows are read.
      numbered: whether rows may give a label by its index in `answers`, as the benchmark's files do.
      same_input: column whose equal values make rows references of each other (E2E has several texts per meaning).
      max_input_length, max_target_length: in tokens, `</s>` included; longer ones are cut and counted.
      metrics: names in `jpeft.eval.metrics` that were asked for; empty for the task's own.
      rouge_tokenizer: the tokenizer of ROUGE (see `jpeft.eval.metrics.rouge.Rouge`); None chooses it by the references.
      hub: `(repository, configuration, revision)` on the Hugging Face hub.
      tfds: name in TensorFlow Datasets.
      tfds_columns: by column, its names in TensorFlow Datasets if they differ; the texts of several are joined by a
        space.
      local: directory name under `data.path`.
    """

    name: str
    kind: str
    template: str
    target: str
    is_custom: bool = False
    answers: tuple[str, ...] = ()
    numbered: bool = False
    same_input: str | None = None
    max_input_length: int = 512
    max_target_length: int = 128
    metrics: tuple[str, ...] = ()
    rouge_tokenizer: str | None = "rouge_score"
    hub: tuple[str, str | None, str | None] | None = None
    tfds: str | None = None
    tfds_columns: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    local: str | None = None

    @property
    def metric(self) -> str:
        """Name of the main metric: `accuracy`, `rouge_l`, or the first that was asked for on a custom task."""
        if self.metrics and self.is_custom:
            return self.metrics[0]
        return "accuracy" if self.kind == "classification" else "rouge_l"

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that the template and the target use."""
        return tuple(dict.fromkeys([*template_columns(self.template), self.target]))

    def with_options(self) -> "Task":
        """Returns the task with a prompt that ends in the list of labels, as FLAN's prompts do."""
        return dataclasses.replace(self, template=self.template + options_list(self.answers))

    def takes_options(self, options: str) -> bool:
        """Whether `data.options` adds the list of labels to this prompt; `auto` does not if the list is too long."""
        if not self.is_custom or self.kind != "classification" or options == "none":
            return False
        # Measured: a list without a question does not help (docs/tasks.md).
        return options == "list" or not (Template.parse(self.template).is_bare or self.names_answers)

    @property
    def lists_answers(self) -> bool:
        """Whether the prompt ends in the list of labels, added or written by the user."""
        return bool(self.answers) and self.template.endswith(options_list(self.answers))

    @property
    def names_answers(self) -> bool:
        """Whether the template's own text contains every label as a word of its own, which "know" is not for "no"."""
        own = "\n".join(text for text, column in Template.parse(self.template).parts if column is None)
        return all(_contains_word(own, answer) for answer in self.answers)

    def with_template(self, template: str) -> "Task":
        """Returns the task with another template. Raises `UserError` like `check_template`."""
        check_template(template, "data.template", besides=self.target)
        return dataclasses.replace(self, template=template)


def _contains_word(text: str, word: str) -> bool:
    """Whether a word, or several, stand in a text with no letter or digit of a script with spaces next to them."""
    found = re.finditer(re.escape(word), text)
    return any(not _goes_on(text[: each.start()][-1:]) and not _goes_on(text[each.end() :][:1]) for each in found)


def _goes_on(neighbour: str) -> bool:
    return neighbour != "" and unicodedata.category(neighbour) in ("Lu", "Ll", "Nd")


def options_list(labels: Iterable[str]) -> str:
    """Returns the list of labels at the end of a prompt, as text of a template."""
    listed = "".join(f"\n- {label}" for label in labels).replace("{", "{{").replace("}", "}}")
    return f"\n\nOPTIONS:{listed}"


def template_columns(template: str) -> tuple[str, ...]:
    """Returns the columns that a template names. Raises `ValueError` if it is malformed."""
    return Template.parse(template).columns


def check_template(template: str, key: str, *, besides: str | None = None) -> None:
    """Raises `UserError` if a template is malformed or names no column.

    Args:
      key: of the template, for messages.
      besides: a column that does not count, such as that of the target.
    """
    try:
        columns = template_columns(template)
    except ValueError as error:
        raise UserError(f"{key} {_short(template)} is malformed ({error}); write a brace itself as {{{{.") from None
    if not any(column and column != besides for column in columns) or "" in columns:
        raise UserError(f"{key} {_short(template)} names no column; write one in braces, such as {{input}}.")


def _short(template: str) -> str:
    return repr(clipped(template, 200))


_AGNEWS = Task(
    name="agnews",
    kind="classification",
    template="{text}\n\nWhich topic is this news article about?\n\nOPTIONS:\n- World\n- Sports\n- Business\n- Sci/Tech",
    target="label",
    answers=("World", "Sports", "Business", "Sci/Tech"),
    numbered=True,
    max_input_length=256,
    max_target_length=8,
    hub=("fancyzhx/ag_news", None, None),
    tfds="ag_news_subset",
    tfds_columns={"text": ("title", "description")},  # elsewhere both stand in one column
    local="ag_news",
)
_COLA = Task(
    name="cola",
    kind="classification",
    template="{sentence}\n\nWould a linguist call this sentence acceptable?\n\nOPTIONS:\n- unacceptable\n- acceptable",
    target="label",
    answers=("unacceptable", "acceptable"),
    numbered=True,
    max_input_length=128,
    max_target_length=8,
    hub=("nyu-mll/glue", "cola", None),
    tfds="glue/cola",
    local="cola",
)
_E2E = Task(
    name="e2e",
    kind="generation",
    template="Facts about a restaurant: {meaning_representation}\n\nWrite them as a sentence.",
    target="human_reference",
    same_input="meaning_representation",
    max_input_length=128,
    max_target_length=96,
    # The repository holds a loading script, which `datasets` no longer runs; the hub's converted copy is this revision.
    hub=("tuetschek/e2e_nlg", None, "refs/convert/parquet"),
    local="e2e_nlg",
)
# Another dataset than the paper's E2E, and the only one of the two in TensorFlow Datasets.
_E2E_CLEANED = dataclasses.replace(
    _E2E,
    name="e2e_cleaned",
    hub=None,
    tfds="e2e_cleaned",
    tfds_columns={"meaning_representation": ("input_text",), "human_reference": ("target_text",)},
    local="e2e_cleaned",
)
_SAMSUM = Task(
    name="samsum",
    kind="generation",
    template="{dialogue}\n\nBriefly summarize that dialogue.",
    target="summary",
    max_input_length=768,
    max_target_length=96,
    hub=("knkarthick/samsum", None, None),  # Samsung removed its own repository from the hub
    tfds="samsum",
    local="samsum",
)
_CUSTOM = Task(
    name=CUSTOM, kind="generation", template="{input}", target="target", is_custom=True, rouge_tokenizer=None
)

TASKS = {task.name: task for task in (_AGNEWS, _COLA, _E2E, _SAMSUM, _CUSTOM, _E2E_CLEANED)}
BENCHMARK = ("agnews", "cola", "e2e", "samsum")


def require_columns(task: Task, split: str, rows: Mapping[str, list[Any]]) -> None:
    """Raises `UserError` if a source split lacks a column that the task's template or target uses."""
    missing = next((column for column in task.columns if column not in rows), None)
    if missing is None:
        return
    existing = ", ".join(rows) or "none"
    if not task.is_custom:
        remedy = ""
    elif missing == task.target:
        remedy = " Name the answers' column with --config.data.target=COLUMN."
    else:
        remedy = " Name the text's column with --config.data.input=COLUMN, or several with --config.data.template."
    only = {column: values[0] for column, values in rows.items() if len(values) == 1}
    meant = meant_by(missing, rows, only)
    raise UserError(f"{split} rows lack the column {missing!r}; there are: {clipped(existing, 1000)}.{meant}{remedy}")


def meant_by(missing: str, existing: Iterable[str], row: Mapping[str, Any] = types.MappingProxyType({})) -> str:
    """Guesses why a column is missing, as a sentence after a space for the end of a message; empty without a guess.

    Args:
      existing: names of the columns that exist.
      row: values by column of a file's only row, which may turn out to hold all rows.
    """
    columns = list(existing)
    near = next((column for column in columns if alike(column) == alike(missing)), None)
    if near is not None:
        return f" It is written {ascii(near)} there, not {ascii(missing)}."
    part = re.split(r"[.\[]", missing)[0]
    if part != missing and part in columns:
        return f" A template names whole columns: {{{part}}}."
    for column, value in row.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return f" The row's {column!r} is a list of objects: if they are the rows, save that list alone."
    return ""


def examples(task: Task, split: str, rows: Mapping[str, list[Any]], indices: Iterable[int]) -> list[Example]:
    """Makes examples of the chosen rows of a source split.

    Args:
      split: name of the source split, for row ids.
      rows: all columns of the source split.
      indices: numbers of the rows to take.

    Raises:
      UserError: a column is missing, or a row has no text or an unknown label.
    """
    require_columns(task, split, rows)
    template = Template.parse(task.template)
    references: dict[str, list[int]] = {}
    if task.same_input is not None and task.same_input in rows:
        for row, value in enumerate(rows[task.same_input]):
            with contextlib.suppress(ValueError):  # not text: an error below, if the row is chosen
                references.setdefault(as_text(value), []).append(row)

    made = []
    for row in indices:
        where = f"{split}/{row}"
        _require_filled(task, rows, row, where)
        target = _answer(task, rows[task.target][row], where)
        same = []
        if references and task.same_input is not None:
            same = references[_text(rows[task.same_input][row], task.same_input, where)]
        others = dict.fromkeys(_answer(task, rows[task.target][other], where) for other in same)
        fields = {column: _text(rows[column][row], column, where) for column in template.columns}
        references_ = tuple(dict.fromkeys([target, *others]))
        made.append(Example(where, template.render(fields), target, references_, fields))
    return made


def _require_filled(task: Task, rows: Mapping[str, list[Any]], row: int, where: str) -> None:
    """Raises `UserError` if a row has no value in a column, with the name of a similarly named column that has one."""
    for column in (task.target, *task.columns):
        if is_missing(rows[column][row]):
            others = [each for each in rows if each != column and not is_missing(rows[each][row])]
            near = next((each for each in others if alike(each) == alike(column)), None)
            if near is None:
                raise UserError(f"row {where} has no {column!r}; fill it in or remove the row.")
            raise UserError(f"row {where} has no {column!r}, but {ascii(near)}: write one name in every row.")


def known_label(task: Task, value: Any, text: str) -> str | None:
    """Returns the label that a row's value means, by its text or by its number; None if it is not a known label.

    Args:
      text: the value's `as_text`. White space around it is ignored.
    """
    text = text.strip()
    if text in task.answers:
        return text
    number = _number(task, value, text)
    return None if number is None or number >= len(task.answers) else task.answers[number]


def _number(task: Task, value: Any, text: str) -> int | None:
    is_number = task.numbered and not isinstance(value, bool) and re.fullmatch(r"[0-9]{1,9}", text.strip())
    return int(text) if is_number else None


def label_numbers(task: Task, rows: str, values: Iterable[Any]) -> set[int]:
    """Returns the numbers by which rows give labels; empty if they give them by name.

    Args:
      rows: their name, for messages.
      values: the column of the target.

    Raises:
      UserError: the numbers count from 1. Counted from 0, all but the largest would be read as other labels.
    """
    if not task.numbered:
        return set()
    found = set()
    for value in values:
        with contextlib.suppress(ValueError):  # not text: an error once examples are made
            if not is_missing(value) and (number := _number(task, value, as_text(value))) is not None:
                found.add(number)
    count = len(task.answers)
    if count in found and 0 not in found:
        raise UserError(
            f"the labels of {rows} count from 1, up to {count}, and are read counting from 0: 0 is "
            f"{task.answers[0]!r}, {count - 1} is {task.answers[-1]!r}; subtract 1, or write the names."
        )
    return found


_NUMBER = re.compile(r"[-+]?[0-9.]{1,40}")


def _answer(task: Task, value: Any, where: str) -> str:
    text = _text(value, task.target, where)
    if not task.answers:
        return text
    if not text.strip():
        raise UserError(f"row {where} has an empty {task.target!r}; fill it in or remove the row.")
    label = known_label(task, value, text)
    if label is not None:
        return label
    numbers = task.numbered and not isinstance(value, bool) and _NUMBER.fullmatch(text.strip())
    known = ", ".join(f"{i} ({answer})" if numbers else answer for i, answer in enumerate(task.answers))
    near = next((answer for answer in task.answers if alike(answer) == alike(text)), None)
    hint = "" if near is None else f" It is spelt differently from {ascii(near)}; if they mean one class, write one."
    shown = ascii(value) if near is not None else repr(value)
    raise UserError(f"row {where} has the unknown label {clipped(shown, 200)}; known: {clipped(known, 400)}.{hint}")


def _text(value: Any, column: str, where: str) -> str:
    if is_missing(value):
        raise UserError(f"row {where} has no {column!r}; fill it in or remove the row.")
    try:
        return as_text(value)
    except ValueError as error:
        raise UserError(f"row {where}: the column {column!r} {error}.") from None
