"""Learning rates by step, as numbers and not as code: a program that is given them serves every run.

A `Schedule` is a tree of arrays. Two runs whose rates or lengths differ share one compiled update; runs that train side
by side have one schedule with an axis more.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ramp:
    """A straight line from one rate to another, and the second one ever after.

    Attributes:
      above: the first rate less the last, float32.
      end: the last rate, float32.
      steps: from the first to the last, int32; 0 is the last rate at once.
    """

    # `Any`: JAX also puts shapes and other descriptions of arrays in the places of the arrays.
    above: Any
    end: Any
    steps: Any

    @classmethod
    def between(cls, start: float, end: float, steps: int) -> "Ramp":
        """The line from the rate `start` to `end` in so many steps; in no steps it is `end` at once."""
        if not steps:
            start = end
        return cls(np.float32(start - end), np.float32(end), np.int32(steps))

    def __call__(self, step: Any) -> Any:
        """The rate after so many steps of it."""
        # Times the reciprocal, as XLA divides by a constant: bit for bit the rates of versions that compiled them in.
        left = 1 - jnp.clip(step, 0, self.steps) * (1 / jnp.maximum(self.steps, 1))
        return self.above * left + self.end


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate of each optimizer step, counted from 0: up one ramp, then down another, then constant.

    It is what Optax takes for a schedule, and a tree whose leaves may be traced.
    """

    rise: Ramp
    fall: Ramp

    @property
    def total_steps(self) -> Any:
        """How many steps `three_point_schedule` was made for, two at the least: the last has the last rate."""
        return self.rise.steps + self.fall.steps + 1

    def __call__(self, step: Any) -> Any:
        """The learning rate at a step, counted from 0."""
        return jnp.where(step < self.rise.steps, self.rise(step), self.fall(step - self.rise.steps))


def constant(rate: float) -> Schedule:
    """The schedule that has the same rate at every step."""
    return Schedule(Ramp.between(rate, rate, 0), Ramp.between(rate, rate, 0))


def three_point_schedule(
    initial: float, warmup: float, annealing: float, *, total_steps: int, warmup_fraction: float
) -> Schedule:
    """The paper's: linear from `initial` up to `warmup`, linear down to `annealing` (appendix A.3).

    The first step has `initial`, the one at `warmup_fraction` of all steps `warmup`, the last `annealing`. Where that
    share is less than half a step there is no rise: the first step has `warmup`. Where it is all of them there is no
    fall.
    """
    last = max(total_steps - 1, 1)
    peak = round(warmup_fraction * last)
    return Schedule(
        Ramp.between(initial, warmup, peak),
        Ramp.between(warmup, annealing if peak < last else warmup, last - peak),
    )


def warmup_then_linear(peak: float, *, warmup_steps: int, total_steps: int) -> Schedule:
    """Pretraining's: from nothing up to `peak` at step `warmup_steps`, then down to nothing after the last step."""
    fall = max(total_steps - warmup_steps, 1)
    return Schedule(Ramp.between(0.0, peak, warmup_steps), Ramp.between(peak, 0.0, fall))
