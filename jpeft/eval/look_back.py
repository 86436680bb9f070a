"""A look at a test's answers besides their metric: how far it goes, where they fail, and warnings that spare a day.

Each function that gives a warning looks at one thing and returns its line, or None where there is nothing to say.
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
    """A look at a test's answers besides their metric: uncertainty, each class, the worst rows.

    Attributes:
      trust: how far each metric may be trusted, by name, where that can be told.
      confusion: of a classification, how often each class was answered as each; None of texts.
      warnings: where the metric is not what it seems, a line each.
    """

    trust: dict[str, Uncertainty]
    confusion: Confusion | None
    warnings: list[str]

    def uncertainties(self, metric: str) -> dict[str, Any]:
        """As `RunRecord` has them: that of the task's metric alone, and those of all metrics by name."""
        return {"uncertainty": self.trust.get(metric), "uncertainties": self.trust}


def look_back(task: Task, examples: Sequence[Example], scored: ScoredAnswers, *, answer: str) -> LookBack:
    """Looks at the answers to a test, of a run or of `jpeft evaluate`.

    Args:
      answer: `generate` or `score`, how the test answered.
    """
    targets, confusion = [example.target for example in examples], None
    trust = scored.judged.uncertainties(examples)
    accuracy = ACCURACY.of(Answered(scored.predictions, [[target] for target in targets]))
    assert accuracy.scores is not None
    if task.kind == "classification":
        confusion = Confusion.of(targets, scored.predictions, accuracy.scores, task.answers)
    interval = share_uncertainty(ACCURACY.name, accuracy.scores, [example.input for example in examples]).interval
    warnings = _warnings_of(
        scored.predictions, targets, confusion, accuracy=accuracy.number, interval=interval, answer=answer
    )
    return LookBack(trust, confusion, warnings)


def few_test_rows(rows: int) -> str | None:
    """Said before training where the test has too few rows to judge anything by."""
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
    """All that there is to say of a test's answers.

    Args:
      confusion: of a classification; None of texts.
      accuracy, interval: of a classification: its share of right answers and how far that is certain.
      answer: `generate` or `score`, how the test answered.
    """
    if confusion is None:
        found = [same_text(predictions, targets)]
    else:
        found = [
            no_label(confusion, predictions, answer=answer),
            one_answer(confusion),
            not_above_majority(confusion, accuracy, interval),
        ]
    return [line for line in found if line is not None]


def no_label(confusion: Confusion, predictions: Sequence[str], *, answer: str) -> str | None:
    """Said after the test where half of the answers or more are no label at all."""
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


def one_answer(confusion: Confusion) -> str | None:
    """Said after the test where every row got the same class."""
    label = confusion.only_answer
    if label is None or (confusion.support > 0).sum() < 2:
        return None
    share = confusion.support[confusion.labels.index(label)] / confusion.support.sum()
    return (
        f"every answer is {label!r}, which {share:.0%} of the test rows are: the classes are not told apart; "
        "train longer (--config.train.max_epochs) or at another rate (--config.train.learning_rate.warmup)"
    )


def not_above_majority(confusion: Confusion, accuracy: float, interval: Sequence[float]) -> str | None:
    """Said after the test where it is no better than the answer that needs no model."""
    label, share = confusion.majority
    if confusion.only_answer is not None or (confusion.support > 0).sum() < 2:
        return None  # said by `one_answer`; of a single class there is nothing to tell apart
    if accuracy < share:
        return f"accuracy {accuracy:.3f} is below {share:.3f}, which always answering {label!r} gives"
    if interval[0] <= share:
        return (
            f"accuracy {accuracy:.3f} cannot be told from {share:.3f}, which always answering {label!r} gives: with so "
            f"many test rows it may be anything from {interval[0]:.3f} to {interval[1]:.3f}"
        )
    return None


def same_text(predictions: Sequence[str], targets: Sequence[str]) -> str | None:
    """Said after a test of texts where all rows got one text, or none."""
    different = {text.strip() for text in predictions}
    if len(predictions) < 2 or len(different) > 1 or len({text.strip() for text in targets}) < 2:
        return None
    what = "every answer is empty" if different == {""} else f"every answer is the same text, {predictions[0][:40]!r}"
    return (
        f"{what}: nothing of the inputs was used; train longer (--config.train.max_epochs) or at another rate "
        "(--config.train.learning_rate.warmup)"
    )
