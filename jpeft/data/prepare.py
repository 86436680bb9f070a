"""Prepares the data of a run: examples, tokens and padded shapes of its three splits."""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
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
    cut_warnings,
    describe_draws,
    describe_labels,
    describe_targets,
    repeat_warnings,
    row_warnings,
    same_token_warnings,
)
from jpeft.data.task_file import require_recordable
from jpeft.data.tasks import KINDS, TASKS, Example, Task, examples, label_numbers, require_columns, template_columns
from jpeft.data.template import Template, template_warnings
from jpeft.data.weighting import class_weights, column_weights, describe_weights, require_classes, scaled
from jpeft.errors import UserError
from jpeft.model.tokenizer import Tokenizer
from jpeft.rows.values import as_text, is_missing
from jpeft.words import short

PARTS = ("train", "validation", "test")  # the splits of a run
FEW_ANSWERS = 20  # repeated targets with at most this many distinct texts are taken as classes
_OPTIONS_SHARE = 0.25  # the largest share of the input's tokens that a list of labels may take unless it is asked for


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataRequest:
    """What a run's config says about its data: which rows to read, how to split, weight, cut and batch them.

    Attributes:
      source, path, sample_seed: of `jpeft.data.sources.load_rows`.
      mix: `data.mix`; if set, `path` lists several files. Each file is split separately, and each epoch mixes them.
      weight: column with the weight of each training row in the loss; white space around its name is ignored.
      class_weights: `train.class_weights`, the weights of the classes in the training loss.
      kind: `data.kind`, the kind of a custom task; None infers it from the targets.
      options: one of `jpeft.data.tasks.OPTIONS`: whether the prompt of a custom classification lists its labels.
      split_seed: draws the splits.
      max_train, max_validation, max_test: largest number of rows of each split, for each file; None for no limit.
      batch_size: rows of a micro-batch.
      accumulation_steps: micro-batches of an optimizer step.
      eval_batch_size: rows of a validation batch.
      max_input_length, max_target_length: in tokens; None for the task's own.
    """

    source: str
    path: str | None
    sample_seed: int = 0
    mix: str | None = None
    weight: str | None = None
    class_weights: str | None = None
    kind: str | None = None
    options: str = "auto"
    split_seed: int
    max_train: int | None
    max_validation: int | None
    max_test: int | None
    batch_size: int
    accumulation_steps: int
    eval_batch_size: int
    max_input_length: int | None = None
    max_target_length: int | None = None


@dataclasses.dataclass(frozen=True)
class Data:
    """All rows of a run, as text and as tokens; each mapping has the keys `train`, `validation` and `test`.

    Attributes:
      task: with the labels, lengths and prompt that the rows led to.
      shapes: padded `(input, target)` lengths of the batches in tokens, smallest first.
      digest: `rows_digest` of all rows of the source, whether they were drawn or not.
      sources: by split, the name of each row's file; empty for a single file.
    """

    task: Task
    examples: Mapping[str, list[Example]]
    tokens: Mapping[str, Tokens]
    shapes: list[Shape]
    digest: str = ""
    sources: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def rows_by_source(self, split: str) -> dict[str, list[int]]:
        """Returns the row numbers of a split by file name, in the order of the files; empty for a single file."""
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(self.sources.get(split, ())):
            rows.setdefault(name, []).append(row)
        return rows

    def row_ids(self) -> dict[str, list[str]]:
        """Returns the row ids of each split, such as `train/17`, as `splits.json` records them."""
        return {split: [example.id for example in rows] for split, rows in self.examples.items()}


def choose_task(
    name: str,
    *,
    template: str | None = None,
    kind: str | None = None,
    input: str | None = None,
    target: str | None = None,
) -> Task:
    """Returns the task of a name, with the user's own columns, prompt and kind if given.

    Args:
      template, kind, input, target: the config's keys of the section `data`; `input` and `target` are for the task of a
        user's own rows.

    Raises:
      UserError: the name or the kind is unknown, or two arguments exclude each other.
    """
    if name not in TASKS:
        raise UserError(f"data.task is {name!r}; expected one of {', '.join(TASKS)}.")
    task = TASKS[name]
    for key, column in (("input", input), ("target", target)):
        if column is not None and not task.is_custom:
            raise UserError(f"data.{key} names a column of your own rows, of data.task=custom; {name} has its own.")
    if target is not None:
        if not target.strip():
            raise UserError(f"data.target is {target!r}, which cannot be a column's name.")
        task = dataclasses.replace(task, target=target.strip())  # readers strip the names of columns, too
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
        if not task.is_custom and kind != task.kind:
            raise UserError(f"data.kind {kind!r} does not fit {task.name}, which is a {task.kind} task.")
        task = dataclasses.replace(task, kind=kind)
    return task


def with_answers(task: Task, kind: str | None, train: Columns) -> Task:
    """Returns a custom task with the kind and the labels that its training targets imply; other tasks unchanged.

    Args:
      kind: as the config gives it; None infers it.
    """
    if not task.is_custom:
        return task
    targets = [_label(target) for target in train[task.target] if not is_missing(target)]
    distinct = list(dict.fromkeys(targets))
    if kind is None and len(distinct) <= FEW_ANSWERS and len(distinct) * 3 <= len(targets):
        task = dataclasses.replace(task, kind="classification")
    if task.kind == "classification":
        task = dataclasses.replace(task, answers=tuple(sorted(filter(None, distinct))))
    return task


def _label(target: Any) -> str:
    """Returns a target as a class. One that is not text raises an error with its row once examples are made."""
    try:
        return as_text(target).strip()
    except ValueError:
        return str(target)


def _with_options(task: Task, options: str, tokenizer: Tokenizer) -> tuple[Task, list[str]]:
    """Adds the list of labels to the prompt of a custom classification, as `data.options` asks.

    Returns:
      The task, and the line that says what was decided, if anything was.

    Raises:
      UserError: a list is asked for, and a label would be a special token in it.
    """
    if not task.takes_options(options):
        if options == "auto" and task.is_custom and task.answers and task.names_answers:
            return task, ["the template names every label, so they are not listed once more (data.options=list does)"]
        return task, []
    listed = task.with_options()
    special = [label for label in task.answers if any(name in label for name in tokenizer.sentinel_names)]
    if options == "list":
        if special:
            raise UserError(
                f"data.options=list: {short(special[0])} would be a special token in the prompt; rename the label or "
                "set data.options=none."
            )
        return listed, ["the prompt ends in a list of the labels"]
    if special:
        return task, [f"labels are not listed in the prompt, where {short(special[0])} would be a special token"]
    if PromptTokens(listed.template, tokenizer, sys.maxsize).own_length > task.max_input_length * _OPTIONS_SHARE:
        return task, ["the labels are too long to be listed in the prompt (data.options=list does it nevertheless)"]
    return listed, ["the prompt ends in a list of the labels (data.options=none leaves them out)"]


def prepare(
    task: Task, tokenizer: Tokenizer, request: DataRequest, *, report: Callable[[str], None] = lambda line: None
) -> Data:
    """Loads, splits and tokenises the data of a run.

    Args:
      report: called with each line that the user should read: how targets and labels were taken, and warnings.

    Raises:
      UserError: see `load_rows`, `draw`, `examples` and `require_recordable`; or a target is empty.
      RunFailed: the hub cannot be reached.
    """
    sources = load_sources(
        task, request.source, request.path, request.mix, sample_seed=request.sample_seed, report=report
    )
    rows = together(sources)
    for split, columns in rows.items():  # before drawing splits, where too few rows may fail for another reason
        require_columns(task, split, columns)
        label_numbers(task, split, columns[task.target])
    targets = [target for name in sources for target in rows[split_name(name, "train")][task.target]]
    unlisted = _resolved_task(task, request, targets)
    task, listing = _with_options(unlisted, request.options, tokenizer)
    require_recordable(task)

    inputs = same_inputs(task, rows)
    try:
        splits = _draw_splits(sources, inputs, labels_of(task, rows), request)
    except UserError:
        # Rows without a value are all equal: say that rather than that there are too few.
        for split, columns in rows.items():
            examples(task, split, columns, range(len(columns[task.target])))
        raise
    for line in leaks(splits, inputs):
        report(line)
    made = {
        part: [row for split in of_files for row in examples(task, split.source, rows[split.source], split.rows)]
        for part, of_files in splits.items()
    }
    tokens = {part: tokenize_for(task, of_part, tokenizer) for part, of_part in made.items()}
    mix = None if request.mix is None else _mix(request.mix, tuple(sources), splits, report)
    weights = _weights(task, splits["train"], rows, made["train"], request, mix, report)
    tokens["train"] = dataclasses.replace(tokens["train"], weights=weights, mix=mix)
    for line in [
        *template_warnings(unlisted.template),
        *(describe_targets(task, targets, kind=request.kind, few=FEW_ANSWERS) if task.is_custom else ()),
        *describe_labels(task, made, tokenizer),
        *listing,
        *(describe_draws(splits) if task.is_custom else ()),
        *cut_warnings(task, tokens),
        *row_warnings(task, made, tokens, tokenizer),
        *repeat_warnings(task, made["train"]),
        *same_token_warnings(splits, inputs, tokens),
    ]:
        report(line)
    if task.answers:
        check_labels(task.answers, tokenizer, task.max_target_length)
    return Data(
        task,
        made,
        tokens,
        _padded_shapes(tokens, request),
        rows_digest(rows),
        {} if request.mix is None else _sources_of_rows(tuple(sources), splits),
    )


def _resolved_task(task: Task, request: DataRequest, targets: Sequence[Any]) -> Task:
    """Returns the task with the labels that its training targets imply, and with the lengths of the request."""
    return dataclasses.replace(
        with_answers(task, request.kind, {task.target: list(targets)}),
        max_input_length=request.max_input_length or task.max_input_length,
        max_target_length=request.max_target_length or task.max_target_length,
    )


def _draw_splits(
    sources: Mapping[str, Mapping[str, Columns]],
    inputs: Mapping[str, Sequence[int]],
    labels: Mapping[str, Sequence[str]] | None,
    request: DataRequest,
) -> dict[str, tuple[Split, ...]]:
    """Draws the three splits of a run from each file separately. Arguments and errors are those of `_draw_file`."""
    drawn = [_draw_file(name, sources[name], inputs, labels, request) for name in sources]
    return {part: tuple(of_file[part] for of_file in drawn) for part in PARTS}


def _draw_file(
    name: str,
    splits: Mapping[str, Columns],
    inputs: Mapping[str, Sequence[int]],
    labels: Mapping[str, Sequence[str]] | None,
    request: DataRequest,
) -> dict[str, Split]:
    """Draws the splits of a run from the rows of one file, independently of other files.

    Args:
      name: of the file; empty if it is the only one.
      splits: the file's own source splits.
      inputs, labels: of the source splits of all files.

    Raises:
      UserError: see `draw`; the message begins with the file's name if there are several.
    """
    of_file = lambda values: None if values is None else {split: values[split_name(name, split)] for split in splits}
    sizes = {split: len(next(iter(columns.values()), [])) for split, columns in splits.items()}
    try:
        parts = draw(
            sizes,
            seed=request.split_seed,
            max_train=request.max_train,
            max_validation=request.max_validation,
            max_test=request.max_test,
            inputs=of_file(inputs),
            labels=of_file(labels),
        )
    except UserError as error:
        if name:
            raise UserError(f"{name}: {error}") from None
        raise
    return {part: Split(split_name(name, split.source), split.rows) for part, split in parts.items()}


def _sources_of_rows(sources: Sequence[str], splits: Mapping[str, Sequence[Split]]) -> dict[str, tuple[str, ...]]:
    """Returns the file name of each row of each split."""
    return {
        part: tuple(source for source, split in zip(sources, of_files, strict=True) for _ in split.rows)
        for part, of_files in splits.items()
    }


def _weights(
    task: Task,
    splits: Sequence[Split],
    rows: Mapping[str, Columns],
    training: Sequence[Example],
    request: DataRequest,
    mix: Mix | None,
    report: Callable[[str], None],
) -> np.ndarray | None:
    """Returns the weight of each training row in the loss, and reports the weights; None if all rows count the same."""
    if request.weight is None and request.class_weights is None:
        return None
    weights, times = np.ones(len(training)), np.ones(len(training)) if mix is None else mix.times
    column = None
    if request.weight is not None:
        column = request.weight.strip()  # readers strip the names of columns, too
        given = [column_weights(column, rows[split.source], split.rows, split.source) for split in splits]
        weights = weights * np.concatenate(given)
    of_labels = None
    if request.class_weights is not None:
        require_classes(task.kind)
        targets = [example.target.strip() for example in training]
        of_labels = class_weights(request.class_weights, targets, task.answers, key="train.class_weights", times=times)
        weights = weights * np.array([of_labels[target] for target in targets])
    counts = scaled(weights)
    for line in describe_weights(of_labels, column, counts, times=times):
        report(line)
    return counts


def _mix(mix: str, sources: Sequence[str], splits: Mapping[str, Sequence[Split]], report: Callable[[str], None]) -> Mix:
    """Returns how an epoch mixes the files, and reports it with the number of each file's evaluated rows."""
    made_of = Mix.of(tuple(sources), [len(split.rows) for split in splits["train"]], mix)
    report(made_of.in_words())
    for part in ("validation", "test"):
        each = ", ".join(f"{source} {len(split.rows):,}" for source, split in zip(sources, splits[part], strict=True))
        report(f"{part} rows: {each}")
    return made_of


def _padded_shapes(tokens: Mapping[str, Tokens], request: DataRequest) -> list[Shape]:
    """Chooses the padded shapes of training and validation batches; the largest fits every row."""
    lengths = {part: of_part.lengths() for part, of_part in tokens.items()}
    # A fixed order stands for all: runs of every seed then have the same shapes and can share compiled programs.
    some_order = train_order(
        lengths["train"],
        batch_size=request.batch_size,
        accumulation_steps=request.accumulation_steps,
        seed=0,
        epoch=0,
        mix=tokens["train"].mix,
    )
    batches = [
        longest_of(lengths["train"], (micro for step in some_order for micro in step)),
        longest_of(lengths["validation"], eval_order(lengths["validation"], batch_size=request.eval_batch_size)),
        # In another order the longest input and the longest target may meet in one batch: the last shape fits both.
        np.max(np.concatenate(list(lengths.values())), axis=0, keepdims=True),
    ]
    return choose_shapes(np.concatenate(batches))
