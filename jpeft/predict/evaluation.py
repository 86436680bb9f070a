"""Evaluates a labelled file as a run's own test: with the same prompts, cuts, way of answering and metrics."""

import collections
import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jpeft.config import ANSWERS
from jpeft.data.batches import Tokens, tokenize_for
from jpeft.data.sources import Columns, labels_are_secret, read_split
from jpeft.data.summary import context_warnings, row_warnings
from jpeft.data.task_file import DTYPES, QUANTIZED, TaskOfRun
from jpeft.data.tasks import (
    TASKS,
    Example,
    Task,
    check_template,
    examples,
    known_label,
    label_numbers,
    meant_by,
)
from jpeft.data.template import Template
from jpeft.errors import RunFailed, UserError
from jpeft.eval.answering import ScoredAnswers, answer_split
from jpeft.eval.generate import Batching, make_generate
from jpeft.eval.labels import PackedLabels, answer_in_use, make_label_log_probs
from jpeft.eval.look_back import few_test_rows, look_back
from jpeft.eval.metrics import METRICS, own, parse_metrics, reference_cautions, require_metrics, rouge_tokenizer
from jpeft.model.family import compute_dtype
from jpeft.model.language_model import advising
from jpeft.model.quantized import Quantization, quantization_of
from jpeft.peft.attaching import split
from jpeft.predict.answer_source import AnswerSource
from jpeft.predict.answering import lengths_up_to, power_of_two
from jpeft.program import Program
from jpeft.results import plain
from jpeft.rows.reading import read_columns
from jpeft.rows.values import alike, as_text, is_missing
from jpeft.train.seen import seen_by_the_run
from jpeft.typed_config import one_of

_SHOWN = 5  # unknown labels in a message


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The settings of an evaluation.

    Attributes:
      source: the model and adapter.
      task: of the run, with its labels if it has any.
      answer: as the config key `eval.answer`: `generate`, or `score` to choose from the labels.
      quantization: of the base, in words: `nf4,double`.
      left_out: a line for each metric of the run that cannot be computed here, with the reason.
    """

    source: AnswerSource
    task: Task
    answer: str
    num_beams: int
    dtype: str
    quantization: str = "auto"
    left_out: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        source: AnswerSource,
        *,
        template: str | None = None,
        input: str | None = None,
        target: str | None = None,
        answer: str | None = None,
        num_beams: int | None = None,
        dtype: str | None = None,
        quantization: str | None = None,
        metrics: str | None = None,
        report: Callable[[str], None] = lambda line: None,
    ) -> "Evaluation":
        """Makes an evaluation; what is None is taken from the adapter's run. Without one the prompt is `{input}`.

        Args:
          input: a column to use instead of the template's one column.
          metrics: names separated by commas. A function among them (`module:name`) is imported, which is safe since it
            is named by the caller and never by a file.
          report: called with a line if the prompt's list of labels is not as a reader expects.

        Raises:
          UserError: the template is malformed, or has several columns and `input` is given, there are no labels to
            score, or a metric does not suit the task.
        """
        carried = source.task or TaskOfRun(template=TASKS["custom"].template)
        task = carried.task()
        if target is not None:
            task = dataclasses.replace(task, target=target.strip())
        if template is not None:
            check_template(template, "--template", besides=task.target if input is None else None)
            task = dataclasses.replace(task, template=carried.prompt(template))
            if (line := carried.prompt_note(template)) is not None:
                report(line)
        if input is not None:
            task = _of_column(task, input.strip())  # as column names are when they are read
        if Template.parse(task.template).columns == (task.target,):
            raise UserError(
                f"{task.target!r} would be both the text and its right answer; name two columns: --input and --target."
            )
        answer = answer_in_use(one_of("--answer", answer or carried.answer, ANSWERS), task)
        if answer == "score" and len(task.answers) < 2:
            raise UserError("--answer score needs a run with labels, and here are none; leave it out.")
        dtype = one_of("--dtype", dtype or carried.dtype, DTYPES)
        quantization = one_of("--quantization", source.kept(quantization), QUANTIZED)
        if metrics is None:
            task, left_out = _with_metrics_of_run(task, answer)
        else:
            task, left_out = dataclasses.replace(task, metrics=parse_metrics("--metrics", metrics)), ()
            own.load_all(task.metrics)
            require_metrics(task, answer, "--metrics")
        return cls(source, task, answer, num_beams or carried.num_beams, dtype, quantization, left_out)

    def read(
        self,
        path: Path,
        split_name: str | None,
        *,
        report: Callable[[str], None] = lambda line: None,
    ) -> tuple[str, Columns]:
        """Reads the rows of a file, or of one split of a directory as runs read it.

        Args:
          split_name: of a directory; None for the test split, and for a file.
          report: called with warnings about suspicious rows.

        Returns:
          The name of the rows for messages, and the rows as columns.

        Raises:
          UserError: the file or split does not exist, has no rows, or lacks a column.
        """
        if split_name is not None and path.is_file():
            raise UserError(f"--split is for a directory, and {path} is a file; leave it out.")
        if path.is_dir():
            name, rows = read_split(self.task, path, split_name or "test", report=report)
        else:
            name, rows = path.name, read_columns(path, report=report)
        if not any(rows.values()):
            raise UserError(f"{path} has no rows; name a file with rows and their right answers.")
        missing = [each for each in self.task.columns if each not in rows]
        if missing:
            only = {name: values[0] for name, values in rows.items() if len(values) == 1}
            flag = "--target" if missing[0] == self.task.target else "--input or --template"
            raise UserError(
                f"{path} has no column {missing[0]!r}; there are: {', '.join(rows)}. {flag} says what to take."
                f"{meant_by(missing[0], rows, only)}"
            )
        if labels_are_secret(self.task, rows):
            raise UserError(
                f"each label of {path} is -1, which stands for one that is kept secret: no answer can be scored by it; "
                "name rows whose labels are known, such as the validation rows."
            )
        return name, rows


def _of_column(task: Task, column: str) -> Task:
    """The task with its prompt made of this column. Raises `UserError` if it is made of several."""
    template = Template.parse(task.template)
    if len(template.columns) != 1:
        raise UserError(
            f"--input is one column and the template names {' and '.join(template.columns)}; give --template."
        )
    same_input = column if task.same_input in template.columns else task.same_input
    return dataclasses.replace(task, template=template.of_other_column(column).text, same_input=same_input)


def _with_metrics_of_run(task: Task, answer: str) -> tuple[Task, tuple[str, ...]]:
    """The task with those of its run's metrics that can be computed here, and a line for each other one."""
    kept: list[str] = []
    left_out = []
    for name in task.metrics:
        try:
            if own.is_own(name):
                why = f"is code, which a file does not get to run: give --metrics {name[:80]} if you trust it"
                raise UserError(f"{name[:80]} {why}.")
            if name not in METRICS:
                raise UserError(f"{name[:80]} is not a metric of this version.")
            require_metrics(dataclasses.replace(task, metrics=(*kept, name)), answer, "of the run's metrics")
            kept.append(name)
        except UserError as error:
            left_out.append(f"not computed, though the run was judged by it: {error}")
    return dataclasses.replace(task, metrics=tuple(kept)), tuple(left_out)


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """The result of an evaluation: the rows, their answers, and the scores.

    Attributes:
      answers: of each row, as given; in `scored`, answers that equal an unknown label are changed so as to be wrong.
      unknown_labels: the number of rows of each label that the run did not know.
      seen: the number of rows whose text is in the run's training or validation rows, by split; None if unknown.
      why_not_seen: why `seen` is unknown, or does not count the runs that the adapter's started from.
      quantization: of the base, such as `nf4,double`; None for float weights.
      row_warnings: warnings about the rows, as a run prints about its own.
    """

    test: Evaluation
    examples: list[Example]
    tokens: Tokens
    scored: ScoredAnswers
    answers: Sequence[str]
    unknown_labels: Mapping[str, int]
    seen: Mapping[str, int] | None
    why_not_seen: str | None
    quantization: str | None = None
    row_warnings: Sequence[str] = ()

    @property
    def accuracy_of_known(self) -> float | None:
        """The accuracy on the rows whose label the run knew; None without such rows."""
        rows = zip(self.examples, self.scored.scores, strict=True)
        scores = [score for example, score in rows if example.target not in self.unknown_labels]
        return float(np.mean(scores)) if scores else None

    def record(self) -> dict[str, Any]:
        """The result as JSON values, with the keys of a run's `result.json`."""
        task, scored = self.test.task, self.scored
        seen, few = look_back(task, self.examples, scored, answer=self.test.answer), few_test_rows(len(self.examples))
        return {
            "model": self.test.source.model,
            "quantization": self.quantization,
            "adapter": None if self.test.source.adapter is None else str(self.test.source.adapter),
            "task": task.name,
            "answer": self.test.answer,
            "metric_name": task.metric,
            "metric": scored.numbers[task.metric],
            "rouge_tokenizer": rouge_tokenizer(task, self.examples),
            "metrics": scored.numbers,
            "computed_by": scored.judged.computed_by,
            **plain(seen.uncertainties(task.metric)),
            "per_class": None if seen.confusion is None else seen.confusion.to_dict(),
            "warnings": [
                *self.test.left_out,
                *self.row_warnings,
                *([] if few is None else [few]),
                *unknown_label_warnings(self.unknown_labels, task.answers, len(self.examples)),
                *seen.warnings,
            ],
            "labels": list(task.answers) or None,
            "rows": len(self.examples),
            "cut": {"inputs": self.tokens.cut_inputs, "targets": self.tokens.cut_targets},
            "unknown_labels": dict(self.unknown_labels),
            "seen_by_the_run": None if self.seen is None else dict(self.seen),
        }

    def write(self, path: Path) -> None:
        """Writes one line per row, as in a run's `predictions.jsonl`. Raises `RunFailed` if it cannot be written."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            dataclasses.replace(self.scored, predictions=list(self.answers)).write(path, self.examples)
        except OSError as error:
            raise RunFailed(f"{path} cannot be written ({error.strerror or error}).") from None


def evaluate(
    test: Evaluation,
    name: str,
    rows: Columns,
    *,
    batch_size: int,
    on_rows: Callable[[int], None] = lambda rows: None,
    report: Callable[[str], None] = lambda line: None,
) -> Evaluated:
    """Answers every row and computes the metrics.

    Args:
      test: the settings.
      name: of the rows, for messages.
      rows: as columns.
      batch_size: rows answered at once.
      on_rows: called with a number of rows after each batch; rows with labels to score are counted twice.
      report: called with lines of progress and warnings.

    Raises:
      UserError: a row has no text or no target, or labels are numbers that count from 1.
      RunFailed: a file of the model or the adapter is damaged.
    """
    task = test.task
    numbers = [number for number in label_numbers(task, name, rows[task.target]) if number < len(task.answers)]
    if numbers:
        report(f"label {max(numbers)} is read as {task.answers[max(numbers)]!r}, counting from 0")
    unknown = _unknown_labels(task, rows)
    # A label that the run did not know is an answer that it cannot give: such rows count as wrong.
    wider = dataclasses.replace(task, answers=(*task.answers, *unknown)) if task.answers else task
    made = examples(wider, name, rows, range(len(next(iter(rows.values())))))
    for line in reference_cautions(task, made):
        report(line)
    seen, why_not = seen_by_the_run(test.source.adapter or test.source.directory, test.source.task, made)
    quantization = Quantization.parse(test.quantization)
    model, tokenizer = test.source.load(compute_dtype(test.dtype), quantization, report=report)
    tokens = tokenize_for(task, made, tokenizer)
    of_rows = [
        *row_warnings(task, {"rows": made}, {"rows": tokens}, tokenizer),
        *context_warnings({"rows": tokens}, model.config.context_length, ""),
    ]
    config, (graphdef, adapter, base) = model.config, split(model)
    labels = PackedLabels.of(task.answers, tokenizer, config) if test.answer == "score" else None
    generate = Program(make_generate(graphdef, max_length=task.max_target_length, num_beams=test.num_beams))
    score_labels = None if labels is None else Program(make_label_log_probs(graphdef, labels))
    longest = int(np.max(tokens.lengths()[:, 0]))
    most = model.longest_input(max(task.max_target_length, 0 if labels is None else len(labels.targets)))
    report(f"answers {len(made):,} rows")
    batching = Batching(
        shapes=[(length, 1) for length in lengths_up_to(longest, most)],
        batch_size=min(batch_size, power_of_two(len(made))),
        padding_id=config.padding_id,
        on_batch=on_rows,
    )
    with advising(f"answers take up to {task.max_target_length} of them: shorten the rows' texts"):
        given = answer_split(
            generate, score_labels, adapter, base, tokens, tokenizer, labels, batching, classes=task.answers
        )
    answered = given.generated if given.chosen is None else given.chosen.texts
    scored = dataclasses.replace(given, generated=_marked(given.generated, unknown)).scored(task, made)
    return Evaluated(test, made, tokens, scored, answered, unknown, seen, why_not, quantization_of(model), of_rows)


def _marked(generated: Sequence[str], unknown: Collection[str]) -> list[str]:
    """The answers, with those that equal an unknown label changed, so that every metric counts them as wrong."""
    return [f"{text} (no label of the run)" if text.strip() in unknown else text for text in generated]


def _unknown_labels(task: Task, rows: Columns) -> dict[str, int]:
    """The labels in the rows that the task does not know, with their numbers of rows."""
    if not task.answers:
        return {}
    counts: collections.Counter[str] = collections.Counter()
    for value in rows[task.target]:
        if is_missing(value):
            continue  # refused later, when examples are made, with the row's number
        try:
            text = as_text(value)
        except ValueError:
            continue
        if text.strip() and known_label(task, value, text) is None:
            counts[text.strip()] += 1
    return dict(counts.most_common())


def unknown_label_warnings(unknown: Mapping[str, int], labels: Sequence[str], rows: int) -> list[str]:
    """Warnings about labels that the run did not know, and whether they only differ in spelling from known ones.

    Args:
      unknown: numbers of rows by unknown label.
      labels: that the run knew.
      rows: number of rows of the whole file.
    """
    lines = []
    for label in unknown:
        near = next((known for known in labels if alike(known) == alike(label)), None)
        if near is not None:
            lines.append(
                f"rows labelled {ascii(label)[:60]} count as wrong, since the run's label is written "
                f"{ascii(near)[:60]}: if they mean one class, make them one"
            )
    if unknown and sum(unknown.values()) == rows:
        lines.append("no row has a label that the run knows: nothing was measured (--target names the labels)")
    return lines


def shown_labels(unknown: Mapping[str, int]) -> str:
    """The most frequent unknown labels with their numbers of rows, for a sentence."""
    listed = [f"{label[:40]!r} {rows:,}" for label, rows in list(unknown.items())[:_SHOWN]]
    return ", ".join(listed) + (f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else "")
