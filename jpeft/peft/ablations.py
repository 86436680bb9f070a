"""Ablations of the paper's Table 2: a method restricted to half of the layers, or to some kinds of sublayers."""

import dataclasses
import random
from collections.abc import Callable, Mapping

from jpeft.peft.selection import Selection

Stacks = Mapping[str, int]  # number of blocks by stack, in the model's order
Ablation = Callable[[Stacks, int], Selection]  # from stacks and a seed


def _choosing_layers(choose: Callable[[int, random.Random], list[int]]) -> Ablation:
    def selection(stacks: Stacks, seed: int) -> Selection:
        # One generator for all stacks, so that encoder and decoder get different random halves.
        draw = random.Random(seed)
        return Selection(layers={stack: frozenset(choose(size, draw)) for stack, size in stacks.items()})

    return selection


def _half(num_layers: int) -> int:
    return max(1, num_layers // 2)


@dataclasses.dataclass(frozen=True)
class Fixed:
    """An ablation that is the same for every model and seed.

    Attributes:
      selection: the sites that remain adapted.
      needs: sublayers that a model must have for the ablation to make sense, such as the one that it leaves out.
    """

    selection: Selection
    needs: tuple[str, ...] = ()

    def __call__(self, stacks: Stacks, seed: int) -> Selection:
        """Returns the selection; the arguments are those of every `Ablation` and not used."""
        return self.selection


HALVES: dict[str, Ablation] = {
    "early": _choosing_layers(lambda n, _: list(range(_half(n)))),
    "later": _choosing_layers(lambda n, _: list(range(n - _half(n), n))),
    "random": _choosing_layers(lambda n, draw: draw.sample(range(n), _half(n))),
}
