"""Everything a run needs of its data: examples, tokens and shapes of its three splits."""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jpeft.data.batches import (
    Shape,
    Tokens,
    choose_shapes,
    eval_order,
    longest_of,
    tokenize_for,
    train_order,
)
from jpeft.data.mixture import Mix
from jpeft.data.prompts import PromptTokens
from jpeft.data.sources import Columns, load_sources, rows_digest, split_name, together
from jpeft.data.splits import Split, draw, labels_of, leaks, same_inputs
from jpeft.data.summary import (
    check_labels,
    told_of_cuts,
    told_of_labels,
    told_of_repeats,
    told_of_rows,
    told_of_same_tokens,
    told_of_targets,
)
from jpeft.data.task_file import require_recordable
from jpeft.data.tasks import KINDS, TASKS, Example, Task, examples, require_columns, template_columns
from jpeft.data.template import Template
from jpeft.data.weighting import class_weights as weights_of_classes
from jpeft.data.weighting import column_weights, require_classes, scaled, told_of_weights
from jpeft.errors import UserError
from jpeft.model.tokenizer import Tokenizer
from jpeft.rows.values import as_text, is_missing

PARTS = ("train", "validation", "test")  # of a run
FEW_ANSWERS = 20  # a user's targets with no more different texts than this, each repeated, are taken for classes
_OPTIONS_SHARE = 0.25  # of an input's tokens, that a list of labels may take where nobody asked for it


@dataclasses.dataclass(frozen=True)
class Data:
    """All rows of a run, as text and as tokens; each mapping has `train`, `validation` and `test`.

    Attributes:
      shapes: padded `(input, target)` lengths of the batches in tokens, smallest first.
      digest: `rows_digest` of all that the source has, whether it was drawn or not.
      sources: of several files, which one each row of each split is of; empty for a single one.
    """

    task: Task
    examples: Mapping[str, list[Example]]
    tokens: Mapping[str, Tokens]
    shapes: list[Shape]
    digest: str = ""
    sources: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def rows_by_source(self, split: str) -> dict[str, list[int]]:
        """Row numbers of a split by the file that they are of, in the order of files; empty for a single file."""
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(self.sources.get(split, ())):
            rows.setdefault(name, []).append(row)
        return rows

    def row_ids(self) -> dict[str, list[str]]:
        """Row ids of each split, such as `train/17`, as `splits.json` records them."""
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
    mix: str | None = None,
    weight: str | None = None,
    class_weights: str | None = None,
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
      mix: as `data.mix`: `path` lists several files, of which each is split by itself and an epoch takes its share.
      weight: column of how much each training row counts, white space around its name aside.
      class_weights: as `train.class_weights`: how much the training rows of each class count.
      options: of `OPTIONS`: whether the prompt of a user's classes lists them.
      max_train, max_validation, max_test: most rows of each split, of each file where there are several; None for all.
      sample_seed: which rows the source `sample` generates.

    Raises:
      UserError: as `load_rows`, `draw`, `examples` and `require_recordable`; or a target is empty.
      RunFailed: the hub cannot be reached.
    """
    sources = load_sources(task, source, path, mix, sample_seed=sample_seed, report=report)
    rows = together(sources)
    digest = rows_digest(rows)
    for split, columns in rows.items():  # before splits are drawn: a user's few rows may fail there for another reason
        require_columns(task, split, columns)
    targets = [target for name in sources for target in rows[split_name(name, "train")][task.target]]
    unlisted = dataclasses.replace(
        with_answers(task, kind, {task.target: targets}),
        max_input_length=max_input_length or task.max_input_length,
        max_target_length=max_target_length or task.max_target_length,
    )
    task = _with_options(unlisted, options, tokenizer)
    require_recordable(task)
    inputs = same_inputs(task, rows)
    caps = {"max_train": max_train, "max_validation": max_validation, "max_test": max_test}
    splits = _draw_splits(sources, inputs, labels_of(task, rows), seed=split_seed, **caps)
    for line in leaks(splits, inputs):
        report(line)
    made = {
        part: [row for split in of_files for row in examples(task, split.source, rows[split.source], split.rows)]
        for part, of_files in splits.items()
    }
    tokens = {part: tokenize_for(task, of_part, tokenizer) for part, of_part in made.items()}
    if weight is not None or class_weights is not None:
        weights = _weights(task, splits["train"], rows, made["train"], weight, class_weights, report)
        tokens["train"] = dataclasses.replace(tokens["train"], weights=weights)
    if mix is not None:
        tokens["train"] = dataclasses.replace(tokens["train"], mix=_mixed(mix, tuple(sources), splits, report))
    listed = task != unlisted
    for line in _told_of_answers(task, targets, made["train"], tokenizer, kind=kind, options=options, listed=listed):
        report(line)
    for line in [
        *told_of_cuts(task, tokens),
        *told_of_rows(task, made, tokens, tokenizer),
        *told_of_repeats(task, made["train"]),
        *told_of_same_tokens(splits, inputs, tokens),
    ]:
        report(line)
    if task.answers:
        check_labels(task.answers, tokenizer, task.max_target_length)
    shapes = _shapes_for(
        tokens, batch_size=batch_size, accumulation_steps=accumulation_steps, eval_batch_size=eval_batch_size
    )
    return Data(task, made, tokens, shapes, digest, {} if mix is None else _sources_of_rows(tuple(sources), splits))


def _draw_splits(
    sources: Mapping[str, Mapping[str, Columns]],
    inputs: Mapping[str, Sequence[int]],
    labels: Mapping[str, Sequence[str]] | None,
    **choices: Any,
) -> dict[str, tuple[Split, ...]]:
    """The three parts of a run, each with a split of every file. Arguments and errors are those of `_drawn`."""
    drawn = [_drawn(name, sources[name], inputs, labels, **choices) for name in sources]
    return {part: tuple(of_file[part] for of_file in drawn) for part in PARTS}


def _drawn(
    name: str,
    splits: Mapping[str, Columns],
    inputs: Mapping[str, Sequence[int]],
    labels: Mapping[str, Sequence[str]] | None,
    **choices: Any,
) -> dict[str, Split]:
    """The parts of one file's rows, drawn as if it were the only one.

    Args:
      inputs, labels: of all files' source splits.

    Raises:
      UserError: as `draw`; of one of several files, with its name.
    """
    of_file = lambda values: None if values is None else {split: values[split_name(name, split)] for split in splits}
    sizes = {split: len(next(iter(columns.values()), [])) for split, columns in splits.items()}
    try:
        parts = draw(sizes, inputs=of_file(inputs), labels=of_file(labels), **choices)
    except UserError as error:
        if name:
            raise UserError(f"{name}: {error}") from None
        raise
    return {part: Split(split_name(name, split.source), split.rows) for part, split in parts.items()}


def _sources_of_rows(sources: Sequence[str], splits: Mapping[str, Sequence[Split]]) -> dict[str, tuple[str, ...]]:
    """Of which file each row of each part is."""
    return {
        part: tuple(source for source, split in zip(sources, of_files, strict=True) for _ in split.rows)
        for part, of_files in splits.items()
    }


def _weights(
    task: Task,
    splits: Sequence[Split],
    rows: Mapping[str, Columns],
    training: Sequence[Example],
    column: str | None,
    by_class: str | None,
    report: Callable[[str], None],
) -> np.ndarray:
    """The weight in the loss of each training row, from a column or by class; also tells the user of them."""
    weights = np.ones(len(training))
    if column is not None:
        column = column.strip()  # as names of columns are where they are read
        given = [column_weights(column, rows[split.source], split.rows, split.source) for split in splits]
        weights = weights * np.concatenate(given)
    of_labels = None
    if by_class is not None:
        require_classes(task.kind)
        targets = [example.target.strip() for example in training]
        of_labels = weights_of_classes(by_class, targets, task.answers, key="train.class_weights")
        weights = weights * np.array([of_labels[target] for target in targets])
    counts = scaled(weights)
    for line in told_of_weights(of_labels, column, counts):
        report(line)
    return counts


def _mixed(
    mix: str, sources: Sequence[str], splits: Mapping[str, Sequence[Split]], report: Callable[[str], None]
) -> Mix:
    """How an epoch takes its rows from the files; also tells the user of that, and of each file's evaluated rows."""
    made_of = Mix.of(tuple(sources), [len(split.rows) for split in splits["train"]], mix)
    report(made_of.in_words())
    for part in ("validation", "test"):
        each = ", ".join(f"{source} {len(split.rows):,}" for source, split in zip(sources, splits[part], strict=True))
        report(f"{part} rows: {each}")
    return made_of


def _told_of_answers(
    task: Task,
    targets: Sequence[Any],
    training: Sequence[Example],
    tokenizer: Tokenizer,
    *,
    kind: str | None,
    options: str,
    listed: bool,
) -> Iterator[str]:
    """What a user should know of targets and labels, a line each; arguments as `jpeft.data.summary` has them."""
    if task.name == "custom":
        yield from told_of_targets(task, targets, kind=kind, few=FEW_ANSWERS)
    if task.answers:
        yield from told_of_labels(task, training, tokenizer, listed=listed, options=options)


def _shapes_for(
    tokens: Mapping[str, Tokens], *, batch_size: int, accumulation_steps: int, eval_batch_size: int
) -> list[Shape]:
    """Padded shapes for the batches that training and validation make of these rows; the last holds every row."""
    lengths = {part: of_part.lengths() for part, of_part in tokens.items()}
    # One order stands for all: runs of every seed then have the same shapes and can share what is compiled for them.
    some_order = train_order(
        lengths["train"],
        batch_size=batch_size,
        accumulation_steps=accumulation_steps,
        seed=0,
        epoch=0,
        mix=tokens["train"].mix,
    )
    batches = [
        longest_of(lengths["train"], (micro for step in some_order for micro in step)),
        longest_of(lengths["validation"], eval_order(lengths["validation"], batch_size=eval_batch_size)),
        # In another order the longest rows may meet: the last shape has to hold them all.
        np.max(np.concatenate(list(lengths.values())), axis=0, keepdims=True),
    ]
    return choose_shapes(np.concatenate(batches))
