"""When two validation losses can be told apart, and when one says that anything was learned.

Losses are mean cross-entropies of a target token on the same rows, in nats, so that methods and learning rates may be
compared. Whoever compares them asks here, so that a tie is a tie everywhere.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable

FEWEST_TEST_ROWS = 30  # with fewer, what a test says may be chance

# Of the lowest loss, and never less than so many nats: near 0 a share of it is nothing. 0.05 nats are a probability of
# the right token that is 5 % lower, in the mean.
TIE = (0.02, 0.01)
GOOD_ENOUGH = (0.1, 0.05)


def tie_limit(lowest: float) -> float:
    """The highest loss, in nats, that one seed cannot tell from the lowest: `TIE` says by how much it may be higher."""
    return lowest + max(TIE[0] * lowest, TIE[1])


def good_enough_limit(lowest: float) -> float:
    """The highest loss, in nats, at which a quicker or smaller method may be preferred to that of the lowest loss."""
    return lowest + max(GOOD_ENOUGH[0] * lowest, GOOD_ENOUGH[1])


@dataclasses.dataclass(frozen=True)
class Baseline:
    """The loss and accuracy to be had without ever looking at the input, where the answers are labels.

    Attributes:
      loss: validation loss of giving every label the share that it has among the training rows.
      label: that most training rows have.
      share: of the test rows that have it: the accuracy of always answering it.
    """

    loss: float
    label: str
    share: float

    def is_beaten_by(self, loss: float) -> bool:
        """Whether a validation loss is lower, and more than a tie lower."""
        return tie_limit(loss) < self.loss


def baseline(
    train: Counter[str], validation: Counter[str], test: Counter[str], tokens: Callable[[str], int]
) -> Baseline:
    """The `Baseline` of splits whose labels are given with how often each is there.

    Args:
      tokens: how many a label has as a target, its end included.
    """
    total, kinds = train.total(), len(train | validation)
    # A label that no training row has is given half a row, so that its share is not 0.
    share = {label: (train[label] or 0.5) / (total + 0.5 * (kinds - len(train))) for label in train | validation}
    nats = -math.fsum(count * math.log(share[label]) for label, count in validation.items())
    label = max(sorted(train), key=lambda one: train[one])
    return Baseline(
        loss=nats / max(1, sum(count * tokens(label) for label, count in validation.items())),
        label=label,
        share=test[label] / max(1, test.total()),
    )
