"""The halves of a model's layers that the paper's Table 2 adapts alone."""

import dataclasses
import random
from collections.abc import Callable, Mapping

from jpeft.peft.selection import Selection

Stacks = Mapping[str, int]  # blocks by stack, in the model's order
Ablation = Callable[[Stacks, int], Selection]  # and a seed


def _layers(choose: Callable[[int, random.Random], list[int]]) -> Ablation:
    def selection(stacks: Stacks, seed: int) -> Selection:
        # One draw after the other: the stacks get different random halves.
        draw = random.Random(seed)
        return Selection(layers={stack: frozenset(choose(size, draw)) for stack, size in stacks.items()})

    return selection


def _half(num_layers: int) -> int:
    return max(1, num_layers // 2)


@dataclasses.dataclass(frozen=True)
class Fixed:
    """An ablation that is the same for every model and seed.

    Attributes:
      needs: sublayers without which it says nothing: what it leaves out, or what it leaves.
    """

    selection: Selection
    needs: tuple[str, ...] = ()

    def __call__(self, stacks: Stacks, seed: int) -> Selection:
        """The selection, whatever the model."""
        return self.selection


HALVES: dict[str, Ablation] = {
    "early": _layers(lambda n, _: list(range(_half(n)))),
    "later": _layers(lambda n, _: list(range(n - _half(n), n))),
    "random": _layers(lambda n, draw: draw.sample(range(n), _half(n))),
}
