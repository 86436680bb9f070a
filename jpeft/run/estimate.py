"""How long a run will still take, from what it has measured of itself."""

import dataclasses
from collections.abc import Mapping

_LEAST_SECONDS = 3.0  # of training measured, before anything is promised
_LEAST_STEPS = 3


@dataclasses.dataclass(frozen=True)
class Size:
    """What a run consists of, in rows; it ends sooner where the validation loss no longer falls.

    Attributes:
      test: rows to be answered, each as often as it takes passes (beams; labels scored besides).
    """

    max_epochs: int
    train: int
    validation: int
    test: int


def most_seconds_left(
    size: Size, seconds: Mapping[str, float], *, epochs_done: int, rows_in_epoch: int, steps_done: int
) -> float | None:
    """Seconds until the run ends if no epoch is left out, compiling not counted; None before enough is measured.

    A validation or test row that was not measured yet is taken to cost what a training row does. On `mini` validation
    took 0.1 to 1.2 of that and the test 0.1 to 1.5 (docs/results/mini_paper).

    Args:
      seconds: spent in `train` and `validation`, without compiling.
      rows_in_epoch: trained in the epoch that is not done yet.
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
    """`40 s`, `6 min`, `2 h 10 min`: as exact as an estimate is."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
