"""Estimates how long a run will still take, from its own speed so far."""

import dataclasses
from collections.abc import Mapping

_LEAST_SECONDS = 3.0  # of measured training, before an estimate is given
_LEAST_STEPS = 3


@dataclasses.dataclass(frozen=True)
class Size:
    """The amount of work of a run, in rows; early stopping may end it sooner.

    Attributes:
      max_epochs: the most epochs.
      train, validation: rows per epoch.
      test: test rows, each counted once per pass over it (beams; scoring of labels).
    """

    max_epochs: int
    train: int
    validation: int
    test: int


def most_seconds_left(
    size: Size, seconds: Mapping[str, float], *, epochs_done: int, rows_in_epoch: int, steps_done: int
) -> float | None:
    """Estimates the seconds until the run ends if it trains for all epochs, without compilation.

    Before validation and test are measured, their rows are taken to cost what a training row does. On `mini` validation
    took 0.1 to 1.2 of that and the test 0.1 to 1.5 (docs/results/mini_paper).

    Args:
      size: the amount of work.
      seconds: time spent in `train` and `validation`, without compilation.
      epochs_done: epochs trained and validated.
      rows_in_epoch: rows trained in the current epoch.
      steps_done: optimizer steps done.

    Returns:
      The estimate; None before enough has been measured.
    """
    trained = epochs_done * size.train + rows_in_epoch
    if steps_done < _LEAST_STEPS or seconds["train"] < _LEAST_SECONDS or not trained:
        return None
    of_train = seconds["train"] / trained
    of_validation = seconds["validation"] / (epochs_done * size.validation) if epochs_done else of_train
    rows_left = size.max_epochs * size.train - trained
    validations_left = (size.max_epochs - epochs_done) * size.validation
    return rows_left * of_train + validations_left * of_validation + size.test * of_train


def duration(seconds: float | int) -> str:
    """Formats a duration at the precision of an estimate: `40 s`, `6 min`, `2 h 10 min`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
