"""The learning rate's three points."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jpeft.train.schedule import three_point_schedule


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


@given(total_steps=st.integers(1, 60), warmup_fraction=st.floats(0, 1))
def test_the_rate_never_leaves_its_three_points_and_turns_once(total_steps, warmup_fraction):
    values = rates(total_steps, warmup_fraction)
    assert 1 <= min(values) and max(values) <= 9
    signs = np.sign(np.diff(values))
    assert np.all(np.diff(signs) <= 0)  # up, then down
