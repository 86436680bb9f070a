"""The number that says which evaluation was the best, and when it has not become better for long enough."""

import dataclasses
from collections.abc import Mapping, Sequence

History = Sequence[Mapping[str, float]]  # the numbers of every evaluation, by name


@dataclasses.dataclass(frozen=True)
class Monitor:
    """A number that evaluators give, by its name.

    Attributes:
      name: `validation/loss`, `validation/rouge_l`.
      higher_is_better: its direction.
      patience: evaluations without a better value before training stops.
    """

    name: str = "validation/loss"
    higher_is_better: bool = False
    patience: int = 1

    def values(self, history: History) -> list[float]:
        """Its value at every evaluation that gave it, in order; `history` has the numbers of each by name."""
        return [numbers[self.name] for numbers in history if self.name in numbers]

    def best(self, history: History) -> int | None:
        """The index of the best of `values`, of equal ones the first; None while there are none."""
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
        """Whether the last `patience` evaluations gave nothing better than the best before them."""
        best = self.best(history)
        return best is not None and len(self.values(history)) - 1 - best >= self.patience
