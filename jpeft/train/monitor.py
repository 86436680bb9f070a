"""Early stopping: which evaluation was the best, and whether training has stopped improving."""

import dataclasses
from collections.abc import Mapping, Sequence

History = Sequence[Mapping[str, float]]  # the metrics of each evaluation, by name


@dataclasses.dataclass(frozen=True)
class Monitor:
    """The metric that early stopping follows.

    Attributes:
      name: as evaluators name it: `validation/loss`, `validation/rouge_l`.
      higher_is_better: its direction.
      patience: evaluations without improvement before training stops.
    """

    name: str = "validation/loss"
    higher_is_better: bool = False
    patience: int = 1

    def values(self, history: History) -> list[float]:
        """The metric at every evaluation that computed it, in order."""
        return [numbers[self.name] for numbers in history if self.name in numbers]

    def best(self, history: History) -> int | None:
        """The index in `values` of the best value, the first among equal ones; None if there are no values."""
        values, best = self.values(history), None
        for i, value in enumerate(values):
            if best is None or (value > values[best] if self.higher_is_better else value < values[best]):
                best = i
        return best

    def is_best(self, history: History) -> bool:
        """Whether the last evaluation gave the best value so far."""
        values = self.values(history)
        return bool(values) and self.name in history[-1] and self.best(history) == len(values) - 1

    def out_of_patience(self, history: History) -> bool:
        """Whether none of the last `patience` evaluations improved on the best one before them."""
        best = self.best(history)
        return best is not None and len(self.values(history)) - 1 - best >= self.patience
