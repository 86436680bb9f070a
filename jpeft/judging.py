"""Thresholds for comparing validation losses: when two are a tie, and when a loss beats the trivial baseline.

Losses are mean cross-entropies per target token on the same rows, in nats, so they compare across methods and learning
rates. All code that compares losses uses these thresholds, so that a tie is a tie everywhere.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable

FEWEST_TEST_ROWS = 30  # with fewer, a test result may be chance

# `(relative, absolute)` margins above the lowest loss, the larger of which applies: near a loss of 0 a relative margin
# vanishes. 0.05 nats mean that the right token is 5 % less probable, on average.
TIE = (0.02, 0.01)
GOOD_ENOUGH = (0.1, 0.05)


def tie_limit(lowest: float) -> float:
    """Returns the highest loss, in nats, that a single seed cannot distinguish from `lowest` (margin `TIE`)."""
    return lowest + max(TIE[0] * lowest, TIE[1])


def good_enough_limit(lowest: float) -> float:
    """Returns the highest loss, in nats, at which a faster or smaller method may be preferred (`GOOD_ENOUGH`)."""
    return lowest + max(GOOD_ENOUGH[0] * lowest, GOOD_ENOUGH[1])


@dataclasses.dataclass(frozen=True)
class Baseline:
    """Loss and accuracy of a classifier that ignores its input.

    Attributes:
      loss: validation loss, in nats per target token, of predicting each label with its training frequency.
      label: the most frequent training label.
      share: fraction of the test rows with that label, which is the accuracy of always answering it.
    """

    loss: float
    label: str
    share: float

    def is_beaten_by(self, loss: float) -> bool:
        """Whether a validation loss is lower by more than a tie."""
        return tie_limit(loss) < self.loss


def baseline(
    train: Counter[str], validation: Counter[str], test: Counter[str], tokens: Callable[[str], int]
) -> Baseline:
    """Computes the `Baseline` from the label counts of the three splits.

    Args:
      train, validation, test: number of rows of each label.
      tokens: returns the number of target tokens of a label, `</s>` included.
    """
    total, kinds = train.total(), len(train | validation)
    # A label without training rows counts as half a row, so that its probability is not 0.
    share = {label: (train[label] or 0.5) / (total + 0.5 * (kinds - len(train))) for label in train | validation}
    nats = -math.fsum(count * math.log(share[label]) for label, count in validation.items())
    label = max(sorted(train), key=lambda one: train[one])
    return Baseline(
        loss=nats / max(1, sum(count * tokens(label) for label, count in validation.items())),
        label=label,
        share=test[label] / max(1, test.total()),
    )
