"""Learning rate schedules as data: an argument of the compiled update, so that runs with other rates share one program.

A `Schedule` is a tree of arrays. Runs that train side by side have one schedule with a leading axis of runs.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ramp:
    """A straight line from one rate to another, constant at the second one afterwards.

    Attributes:
      above: first rate minus last rate, float32.
      end: last rate, float32.
      steps: steps from the first rate to the last, int32; 0 means the last rate from the start.
    """

    # `Any`, because JAX transformations put other objects in the place of arrays, such as shapes.
    above: Any
    end: Any
    steps: Any

    @classmethod
    def between(cls, start: float, end: float, steps: int) -> "Ramp":
        """The line from the rate `start` to `end` in `steps` steps; with no steps it is constant at `end`."""
        if not steps:
            start = end
        return cls(np.float32(start - end), np.float32(end), np.int32(steps))

    def __call__(self, step: Any) -> Any:
        """The rate at a step, counted from the start of the ramp."""
        # Multiplied by the reciprocal, as XLA divides by constants: bit for bit as when rates were compiled in.
        left = 1 - jnp.clip(step, 0, self.steps) * (1 / jnp.maximum(self.steps, 1))
        return self.above * left + self.end


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate at each optimizer step, counted from 0: one ramp up, another down, then constant.

    It can be used as an Optax schedule, and its leaves may be traced.
    """

    rise: Ramp
    fall: Ramp

    @property
    def total_steps(self) -> Any:
        """The number of steps `three_point_schedule` was made for, at least two: the last one has the last rate."""
        return self.rise.steps + self.fall.steps + 1

    def __call__(self, step: Any) -> Any:
        """The learning rate at a step, counted from 0."""
        return jnp.where(step < self.rise.steps, self.rise(step), self.fall(step - self.rise.steps))


def constant(rate: float) -> Schedule:
    """A constant schedule."""
    return Schedule(Ramp.between(rate, rate, 0), Ramp.between(rate, rate, 0))


def three_point_schedule(
    initial: float, warmup: float, annealing: float, *, total_steps: int, warmup_fraction: float
) -> Schedule:
    """The paper's schedule: linear from `initial` up to `warmup`, then linear down to `annealing` (appendix A.3).

    The first step has `initial`, the step at `warmup_fraction` of the run has `warmup`, the last has `annealing`. If
    that fraction is less than half a step, training starts at `warmup`; if it is 1, training ends at `warmup`.
    """
    last = max(total_steps - 1, 1)
    peak = round(warmup_fraction * last)
    return Schedule(
        Ramp.between(initial, warmup, peak),
        Ramp.between(warmup, annealing if peak < last else warmup, last - peak),
    )


def warmup_then_linear(peak: float, *, warmup_steps: int, total_steps: int) -> Schedule:
    """Pretraining's schedule: linear from 0 to `peak` at step `warmup_steps`, then linear to 0 after the last step."""
    fall = max(total_steps - warmup_steps, 1)
    return Schedule(Ramp.between(0.0, peak, warmup_steps), Ramp.between(peak, 0.0, fall))
