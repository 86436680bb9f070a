"""The paper's learning rate: linear from `initial` up to `warmup`, linear down to `annealing` (appendix A.3)."""

import optax


def three_point_schedule(
    initial: float, warmup: float, annealing: float, *, total_steps: int, warmup_fraction: float
) -> optax.Schedule:
    """Learning rate of each optimizer step, counted from 0.

    The first step has `initial`, the one at `warmup_fraction` of all steps `warmup`, the last `annealing`. Where that
    share is less than half a step there is no rise: the first step has `warmup`.
    """
    last = max(total_steps - 1, 1)
    peak = round(warmup_fraction * last)
    rise = optax.linear_schedule(initial, warmup, peak)
    fall = optax.linear_schedule(warmup, annealing, last - peak)
    return optax.join_schedules([rise, fall], [peak]) if peak else fall
