"""The schedules: three points for fine-tuning, two for pretraining."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jpeft.train.schedule import Schedule, constant, three_point_schedule, warmup_then_linear

# As runs compile, not as tests do: bits of two programs are compared, and at level 0 XLA does not divide in one way.
_AS_IN_RUNS = {"xla_backend_optimization_level": 3}
_COMPILED = jax.jit(lambda schedule, steps: jax.vmap(schedule)(steps), compiler_options=_AS_IN_RUNS)


def rates(total_steps, warmup_fraction, points=(1.0, 9.0, 3.0)):
    schedule = three_point_schedule(*points, total_steps=total_steps, warmup_fraction=warmup_fraction)
    return [np.asarray(schedule(step)).item() for step in range(total_steps)]


def test_the_rate_rises_linearly_to_its_peak_and_falls_linearly_to_its_end():
    assert rates(8, 4 / 7) == [1, 3, 5, 7, 9, 7, 5, 3]


@pytest.mark.parametrize(
    "points", [(3e-5, 3e-4, 3e-5), (3e-4, 3e-3, 3e-4), (3e-3, 3e-1, 3e-2)], ids=["full", "lora", "prompt"]
)
def test_the_papers_three_points_are_met_at_the_first_step_the_peak_and_the_last_step(points):
    values = rates(101, 0.1, points)
    assert [values[0], values[10], values[100]] == pytest.approx(points, rel=1e-5)  # Optax computes in float32
    assert values[5] == pytest.approx((points[0] + points[1]) / 2)
    assert values[55] == pytest.approx((points[1] + points[2]) / 2)
    assert max(values) == values[10]


def test_no_warmup_starts_at_the_peak():
    assert rates(4, 0.0) == [9, 7, 5, 3]


def test_warmup_throughout_ends_at_the_peak():
    assert rates(5, 1.0) == [1, 3, 5, 7, 9]


@pytest.mark.parametrize(("fraction", "rate"), [(0.0, 9), (0.1, 9), (1.0, 1)])
def test_a_single_step_has_the_peak_unless_all_is_warmup(fraction, rate):
    assert rates(1, fraction) == [rate]


def test_the_rate_stays_at_its_end_after_the_last_step():
    schedule = three_point_schedule(1.0, 9.0, 3.0, total_steps=8, warmup_fraction=0.5)
    assert np.asarray(schedule(100)).item() == 3


@settings(deadline=None)  # the first compiles
@given(total_steps=st.integers(1, 60), warmup_fraction=st.floats(0, 1))
def test_the_rate_never_leaves_its_three_points_and_turns_once(total_steps, warmup_fraction):
    schedule = three_point_schedule(1.0, 9.0, 3.0, total_steps=total_steps, warmup_fraction=warmup_fraction)
    values = np.asarray(_COMPILED(schedule, jnp.arange(60)))[:total_steps]
    assert 1 <= min(values) and max(values) <= 9
    signs = np.sign(np.diff(values))
    assert np.all(np.diff(signs) <= 0)  # up, then down


def of_closures(first, second, third, rise, fall) -> optax.Schedule:
    """The same schedule made of Optax functions, whose numbers are constants of a compiled program."""
    falling = optax.linear_schedule(second, third, fall)
    return optax.join_schedules([optax.linear_schedule(first, second, rise), falling], [rise]) if rise else falling


def compiled_in(closures, steps):
    """Rates from a program that has the schedule's numbers as constants."""
    return jax.jit(jax.vmap(lambda step: jnp.float32(closures(step))), compiler_options=_AS_IN_RUNS)(steps)


@pytest.mark.parametrize("points", [(3e-4, 3e-3, 3e-4), (3e-3, 3e-1, 3e-2)])
@pytest.mark.parametrize(("steps", "fraction", "rise"), [(20, 0.1, 2), (157, 0.8, 125), (1, 0.0, 0), (31, 1.0, 30)])
def test_rates_are_bit_for_bit_those_of_a_program_with_the_numbers_in_it(points, steps, fraction, rise):
    """Runs of versions that compiled rates in can be repeated exactly."""
    schedule = three_point_schedule(*points, total_steps=steps, warmup_fraction=fraction)
    closures = of_closures(*points, rise, max(steps - 1, 1) - rise)
    at = jnp.arange(steps + 3)
    np.testing.assert_array_equal(_COMPILED(schedule, at), compiled_in(closures, at))


@pytest.mark.parametrize(("warmup", "steps"), [(200, 500), (0, 7), (9, 9)])
def test_pretraining_rises_from_nothing_and_falls_to_nothing(warmup, steps):
    schedule, at = warmup_then_linear(2e-2, warmup_steps=warmup, total_steps=steps), jnp.arange(steps + 3)
    rates = _COMPILED(schedule, at)
    closures = of_closures(0.0, 2e-2, 0.0, warmup, max(steps - warmup, 1))
    np.testing.assert_array_equal(rates, compiled_in(closures, at))
    assert np.argmax(rates) == warmup and rates[warmup] == np.float32(2e-2)
    assert abs(rates[steps + 1]) < 1e-8  # a fused multiply-add leaves less than a rounding of the highest rate


def test_one_program_serves_every_rate_and_length():
    several = [constant(0.5), warmup_then_linear(1.0, warmup_steps=2, total_steps=4)]
    several += [three_point_schedule(1.0, 9.0, 3.0, total_steps=8, warmup_fraction=f) for f in (0.0, 0.5, 1.0)]
    together = jax.tree.map(lambda *leaves: np.stack(leaves), *several)
    assert isinstance(together, Schedule) and {leaf.shape for leaf in jax.tree.leaves(together)} == {(5,)}
    by_run = jax.jit(jax.vmap(lambda schedule, step: schedule(step), in_axes=(0, None)), compiler_options=_AS_IN_RUNS)
    for step in range(6):
        np.testing.assert_array_equal(by_run(together, step), [_COMPILED(s, jnp.array([step]))[0] for s in several])
