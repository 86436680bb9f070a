"""Warnings that spare a day: one line each, where a run is not what its number seems to say, and what to do.

Each function looks at one thing and returns its line, or None where there is nothing to say; `of_test` looks at all
that there is to say of a test's answers.
"""

from collections.abc import Sequence

from jpeft.config import Run
from jpeft.data.sources import source_in_use
from jpeft.eval.per_class import Confusion
from jpeft.eval.uncertainty import wilson
from jpeft.judging import FEWEST_TEST_ROWS
from jpeft.words import clipped, counted

FEWEST_STEPS = 50


def without_effect(run: Run) -> str | None:
    """Said before training where a key is set that nothing of this run reads, with what would read it."""
    source, ablation = source_in_use(run.data.source, run.data.path), run.ablation
    keys = [
        ("data.sample_seed", run.data.sample_seed, source == "sample", "data.source=sample"),
        ("ablation.seed", ablation.seed, ablation.name == "random", "ablation.name=random"),
    ]
    unread = [(key, value, reader) for key, value, is_read, reader in keys if value and not is_read]
    return "; ".join(f"{key}={value} changes nothing here: it is for {reader}" for key, value, reader in unread) or None


def few_test_rows(rows: int) -> str | None:
    """Said before training where the test has too few rows to judge anything by."""
    if rows >= FEWEST_TEST_ROWS:
        return None
    low, high = wilson(0.5, rows)
    return (
        f"only {counted(rows, 'test row')}: half of them right would mean anything from {low:.2f} to {high:.2f}; "
        f"give {FEWEST_TEST_ROWS} rows or more for the test"
    )


def few_steps(train_rows: int, *, batch_size: int, accumulation_steps: int, max_epochs: int) -> str | None:
    """Said before training where a run has fewer than `FEWEST_STEPS` optimizer steps, with the keys that make more.

    Args:
      train_rows: of an epoch.
      batch_size, accumulation_steps, max_epochs: as of the config's section `train`.
    """

    def steps(accumulated: int) -> int:
        return -(-train_rows // (batch_size * accumulated)) * max_epochs

    total = steps(accumulation_steps)
    if total >= FEWEST_STEPS:
        return None
    epochs = -(-FEWEST_STEPS // (total // max_epochs))
    ways = [f"--config.train.max_epochs={epochs}"]
    if steps(1) > total:
        ways.append(f"--config.train.accumulation_steps=1 ({counted(steps(1), 'step')})")
    return (
        f"only {counted(total, 'optimizer step')} in {counted(max_epochs, 'epoch')} "
        f"({counted(train_rows, 'row')}, "
        f"{batch_size * accumulation_steps} a step): little can be learned in so few; more with {' or '.join(ways)}"
    )


def of_test(
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


def still_learning(*, best_epoch: int | None, epochs_run: int, max_epochs: int) -> str | None:
    """Said after training that ended because its epochs did, while the loss still fell."""
    if epochs_run < 2 or epochs_run < max_epochs or best_epoch != epochs_run - 1:
        return None
    return (
        f"the last epoch was the best, so it was still learning: train longer with "
        f"--config.train.max_epochs={2 * max_epochs}"
    )
