"""Everything a run needs of its data: examples, tokens and shapes of its three splits."""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jpeft.data.batches import (
    Shape,
    Tokens,
    choose_shapes,
    eval_order,
    longest_of,
    require_text,
    tokenize,
    train_order,
)
from jpeft.data.prompts import PromptTokens, Template
from jpeft.data.sources import Columns, load_rows, rows_digest
from jpeft.data.splits import draw, labels_of, leak, same_inputs
from jpeft.data.summary import check_labels, told_of_labels, told_of_rows, told_of_same_tokens, told_of_targets
from jpeft.data.tasks import KINDS, TASKS, Example, Task, examples, require_columns, template_columns
from jpeft.errors import UserError
from jpeft.model.tokenizer import Tokenizer
from jpeft.rows.values import as_text, is_missing

FEW_ANSWERS = 20  # a user's targets with no more different texts than this, each repeated, are taken for classes
_OPTIONS_SHARE = 0.25  # of an input's tokens, that a list of labels may take where nobody asked for it


@dataclasses.dataclass(frozen=True)
class Data:
    """What one run trains, validates and tests on; each mapping has `train`, `validation` and `test`.

    Attributes:
      shapes: padded `(encoder, decoder)` lengths of the batches, smallest first.
      digest: `rows_digest` of all that the source has, whether it was drawn or not.
    """

    task: Task
    examples: Mapping[str, list[Example]]
    tokens: Mapping[str, Tokens]
    shapes: list[Shape]
    digest: str = ""

    def row_ids(self) -> dict[str, list[str]]:
        """Row ids of each split, as the run records them."""
        return {split: [example.id for example in rows] for split, rows in self.examples.items()}


def choose_task(
    name: str,
    *,
    template: str | None = None,
    kind: str | None = None,
    input: str | None = None,
    target: str | None = None,
) -> Task:
    """A task by name, with a user's own columns and prompt where they are given.

    Raises:
      UserError: an unknown name or kind, or keys that exclude each other.
    """
    if name not in TASKS:
        raise UserError(f"data.task is {name!r}; expected one of {', '.join(TASKS)}.")
    task = TASKS[name]
    for key, column in (("input", input), ("target", target)):
        if column is not None and task.name != "custom":
            raise UserError(f"data.{key} names a column of your own rows, of data.task=custom; {name} has its own.")
    if target is not None:
        if not target.strip():
            raise UserError(f"data.target is {target!r}, which cannot be a column's name.")
        task = dataclasses.replace(task, target=target.strip())  # as names of columns are where they are read
    if input is not None:
        input = input.strip()
        if template is not None:
            raise UserError("data.input and data.template both say what the prompt is made of; give one of them.")
        if input == task.target:
            raise UserError(f"data.input and data.target are both {input!r}; the text and its answer are two columns.")
        task = dataclasses.replace(task, template=Template.of_column(input).text)
    if template is not None:
        task = task.with_template(template)
    if template_columns(task.template) == (task.target,):
        raise UserError(
            f"data.target is {task.target!r}, which is what the prompt is made of; the text and its answer are two "
            "columns: name the text's with --config.data.input=COLUMN."
        )
    if kind is not None:
        if kind not in KINDS:
            raise UserError(f"data.kind is {kind!r}; expected {' or '.join(KINDS)}.")
        if task.name != "custom" and kind != task.kind:
            raise UserError(f"data.kind {kind!r} does not fit {task.name}, which is a {task.kind} task.")
        task = dataclasses.replace(task, kind=kind)
    return task


def with_answers(task: Task, kind: str | None, train: Columns) -> Task:
    """A user's task with its kind, told from the training targets where it is not given, and a classifier's answers."""
    if task.name != "custom":
        return task
    targets = [_label(target) for target in train[task.target] if not is_missing(target)]
    distinct = list(dict.fromkeys(targets))
    if kind is None and len(distinct) <= FEW_ANSWERS and len(distinct) * 3 <= len(targets):
        task = dataclasses.replace(task, kind="classification")
    if task.kind == "classification":
        task = dataclasses.replace(task, answers=tuple(sorted(filter(None, distinct))))
    return task


def _label(target: Any) -> str:
    """A target as a class. What is no text is refused with its row when examples are made."""
    try:
        return as_text(target).strip()
    except ValueError:
        return str(target)


def _with_options(task: Task, options: str, tokenizer: Tokenizer) -> Task:
    """A user's classification with its labels in the prompt, where they are wanted."""
    if task.name != "custom" or task.kind != "classification" or options == "none":
        return task
    listed = task.with_options()
    if options == "auto" and (
        Template.parse(task.template).is_bare  # measured: a list alone, with no question, does not help (docs/tasks.md)
        or task.names_answers
        or PromptTokens(listed.template, tokenizer, sys.maxsize).own_length > task.max_input_length * _OPTIONS_SHARE
    ):
        return task
    return listed


def prepare(
    task: Task,
    tokenizer: Tokenizer,
    *,
    source: str,
    path: str | None,
    kind: str | None,
    options: str = "auto",
    split_seed: int,
    max_train: int | None,
    max_validation: int | None,
    max_test: int | None,
    batch_size: int,
    accumulation_steps: int,
    eval_batch_size: int,
    max_input_length: int | None = None,
    max_target_length: int | None = None,
    sample_seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> Data:
    """Loads, splits and tokenises a run's data; `report` hears what a user should know of it.

    Args:
      options: of `OPTIONS`: whether the prompt of a user's classes lists them.
      max_train, max_validation, max_test: most rows of each split; None for all.
      sample_seed: which rows the source `sample` generates.

    Raises:
      UserError: as `load_rows`, `draw` and `examples`; or a target is empty.
      RunFailed: the hub cannot be reached.
    """
    rows = load_rows(task, source, path, sample_seed=sample_seed, report=report)
    digest = rows_digest(rows)
    for split, columns in rows.items():  # before splits are drawn: a user's few rows may fail there for another reason
        require_columns(task, split, columns)
    task = dataclasses.replace(
        with_answers(task, kind, rows["train"]),
        max_input_length=max_input_length or task.max_input_length,
        max_target_length=max_target_length or task.max_target_length,
    )
    unlisted, task = task, _with_options(task, options, tokenizer)
    inputs = same_inputs(task, rows)
    splits = draw(
        {split: len(next(iter(columns.values()), [])) for split, columns in rows.items()},
        seed=split_seed,
        max_train=max_train,
        max_validation=max_validation,
        max_test=max_test,
        inputs=inputs,
        labels=labels_of(task, rows),
    )
    leaked = leak(splits, inputs)
    if leaked:
        report(leaked)
    made = {name: examples(task, split.source, rows[split.source], split.rows) for name, split in splits.items()}
    tokens = {}
    for name, part in made.items():
        tokens[name] = tokenize(
            part,
            tokenizer,
            max_input_length=task.max_input_length,
            max_target_length=task.max_target_length,
            template=task.template,
        )
        require_text(tokens[name], [example.id for example in part])
    if task.name == "custom":
        for line in told_of_targets(task, rows["train"][task.target], kind=kind, few=FEW_ANSWERS):
            report(line)
    if task.answers:
        for line in told_of_labels(task, made["train"], tokenizer, listed=task != unlisted, options=options):
            report(line)
    for line in [*told_of_rows(task, made, tokens, tokenizer), *told_of_same_tokens(splits, inputs, tokens)]:
        report(line)
    if task.answers:
        check_labels(task.answers, tokenizer, task.max_target_length)
    lengths = {name: part.lengths() for name, part in tokens.items()}
    # One order stands for all: runs of every seed then have the same shapes and can share what is compiled for them.
    some_order = train_order(
        lengths["train"], batch_size=batch_size, accumulation_steps=accumulation_steps, seed=0, epoch=0
    )
    batches = [
        longest_of(lengths["train"], (micro for step in some_order for micro in step)),
        longest_of(lengths["validation"], eval_order(lengths["validation"], batch_size=eval_batch_size)),
        # In another order the longest rows may meet: the last shape has to hold them all.
        np.max(np.concatenate(list(lengths.values())), axis=0, keepdims=True),
    ]
    return Data(task, made, tokens, choose_shapes(np.concatenate(batches)), digest)
