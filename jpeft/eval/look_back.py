"""Analysis of a test beyond its metric: uncertainty, confusion of classes, and warnings about misleading results.

Every function that checks for one problem returns a one-line warning, or None.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jpeft.data.tasks import Example, Task
from jpeft.eval.answering import ScoredAnswers
from jpeft.eval.metrics.base import Answered
from jpeft.eval.metrics.classes import ACCURACY
from jpeft.eval.per_class import Confusion
from jpeft.eval.uncertainty import Uncertainty, share_uncertainty, wilson
from jpeft.judging import FEWEST_TEST_ROWS
from jpeft.words import clipped, counted


@dataclasses.dataclass(frozen=True)
class LookBack:
    """The analysis of a test's answers.

    Attributes:
      trust: uncertainty of each metric that has one, by name.
      confusion: confusion matrix of a classification; None for a generation.
      warnings: why the metric may mislead, one line each.
    """

    trust: dict[str, Uncertainty]
    confusion: Confusion | None
    warnings: list[str]

    def uncertainties(self, metric: str) -> dict[str, Any]:
        """Returns the fields `uncertainty` (of the task's metric) and `uncertainties` (of all) of a `RunRecord`."""
        return {"uncertainty": self.trust.get(metric), "uncertainties": self.trust}


def look_back(task: Task, examples: Sequence[Example], scored: ScoredAnswers, *, answer: str) -> LookBack:
    """Analyses the answers to the test of a run or of `jpeft evaluate`.

    Args:
      answer: `generate` or `score`: how the rows were answered.
    """
    targets, confusion = [example.target for example in examples], None
    trust = scored.judged.uncertainties(examples)
    accuracy = ACCURACY.of(Answered(scored.predictions, [[target] for target in targets]))
    assert accuracy.scores is not None
    if task.kind == "classification":
        confusion = Confusion.of(targets, scored.predictions, accuracy.scores, task.answers)
        if _single_class(confusion) is not None:
            trust.pop("matthews_correlation", None)  # then 0 by convention, whatever the answers are
    interval = share_uncertainty(ACCURACY.name, accuracy.scores, [example.input for example in examples]).interval
    warnings = _warnings_of(
        scored.predictions, targets, confusion, accuracy=accuracy.number, interval=interval, answer=answer
    )
    if (line := unended_answers(scored.unended, len(targets), task.max_target_length)) is not None:
        warnings.append(line)
    return LookBack(trust, confusion, warnings)


def few_test_rows(rows: int) -> str | None:
    """Warns before training if the test split is too small to be informative."""
    if rows >= FEWEST_TEST_ROWS:
        return None
    low, high = wilson(0.5, rows)
    return (
        f"only {counted(rows, 'test row')}: half of them right would mean anything from {low:.2f} to {high:.2f}; "
        f"give {FEWEST_TEST_ROWS} rows or more for the test"
    )


def _warnings_of(
    predictions: Sequence[str],
    targets: Sequence[str],
    confusion: Confusion | None,
    *,
    accuracy: float,
    interval: Sequence[float],
    answer: str,
) -> list[str]:
    """Collects all warnings about a test's answers.

    Args:
      confusion: of a classification; None for a generation.
      accuracy, interval: of a classification: the accuracy and its 95 % interval.
      answer: `generate` or `score`: how the rows were answered.
    """
    if confusion is None:
        found = [same_text(predictions, targets)]
    else:
        found = [
            no_label(confusion, predictions, answer=answer),
            one_class(confusion),
            one_answer(confusion),
            not_above_majority(confusion, accuracy, interval),
        ]
    return [line for line in found if line is not None]


def no_label(confusion: Confusion, predictions: Sequence[str], *, answer: str) -> str | None:
    """Warns if at least half of the answers are not labels."""
    rows = int(confusion.counts.sum())
    if 2 * confusion.unknown < rows:
        return None
    example = next((p for p in predictions if p.strip() not in confusion.labels), "")
    which = "all" if confusion.unknown == rows else f"{confusion.unknown} of"
    ways = "train longer (--config.train.max_epochs) or at another rate (--config.train.learning_rate.warmup)"
    if answer == "generate":
        ways += ", or take the likeliest label with --config.eval.answer=score"
    return (
        f"{which} {rows} answers are no label, such as {clipped(example, 40)!r}: the model has not learned what "
        f"answers look like, so the metric says nothing of the classes; {ways}"
    )


def one_class(confusion: Confusion) -> str | None:
    """Warns if all rows have the same class, though the task has more."""
    label, others = _single_class(confusion), len(confusion.labels) - 1
    if label is None or not others:
        return None
    return (
        f"all {int(confusion.support.sum())} test rows are {label!r}: the metrics say nothing of the "
        f"{counted(others, 'other class', 'other classes')}, and a Matthews correlation is 0 by convention"
    )


def _single_class(confusion: Confusion) -> str | None:
    """The class of all rows; None if there are several."""
    classes = [label for label, rows in zip(confusion.labels, confusion.support, strict=True) if rows]
    return classes[0] if len(classes) == 1 else None


def one_answer(confusion: Confusion) -> str | None:
    """Warns if every row was answered with the same class."""
    label = confusion.only_answer
    if label is None or _single_class(confusion) is not None:
        return None
    share = confusion.support[confusion.labels.index(label)] / confusion.support.sum()
    return (
        f"every answer is {label!r}, which {share:.0%} of the test rows are: the classes are not told apart; "
        "train longer (--config.train.max_epochs) or at another rate (--config.train.learning_rate.warmup)"
    )


def not_above_majority(confusion: Confusion, accuracy: float, interval: Sequence[float]) -> str | None:
    """Warns if the accuracy is not significantly above that of always answering the majority class."""
    label, share = confusion.majority
    if confusion.only_answer is not None or _single_class(confusion) is not None:
        return None  # `one_answer` and `one_class` say so
    if accuracy < share:
        return f"accuracy {accuracy:.3f} is below {share:.3f}, which always answering {label!r} gives"
    if interval[0] <= share:
        return (
            f"accuracy {accuracy:.3f} cannot be told from {share:.3f}, which always answering {label!r} gives: with so "
            f"many test rows it may be anything from {interval[0]:.3f} to {interval[1]:.3f}"
        )
    return None


def unended_answers(unended: int, rows: int, tokens: int) -> str | None:
    """Warns of generated answers that were cut.

    Args:
      unended: how many reached the most tokens of an answer before their end.
      tokens: the most of an answer.
    """
    if not unended:
        return None
    which = "all" if unended == rows else f"{unended:,} of"
    return (
        f"{which} {counted(rows, 'answer')} reached {counted(tokens, 'token')}, the most of an answer, before their end"
    )


def same_text(predictions: Sequence[str], targets: Sequence[str]) -> str | None:
    """Warns if all rows of a generation were answered with the same text, or with none."""
    different = {text.strip() for text in predictions}
    if len(predictions) < 2 or len(different) > 1 or len({text.strip() for text in targets}) < 2:
        return None
    what = "every answer is empty" if different == {""} else f"every answer is the same text, {predictions[0][:40]!r}"
    return (
        f"{what}: nothing of the inputs was used; train longer (--config.train.max_epochs) or at another rate "
        "(--config.train.learning_rate.warmup)"
    )
