"""Estimates of the time left exclude compilation, which happens once."""

import io

import pytest
from rich.console import Console

from jpeft.run import display, lines
from jpeft.run.display import Display
from jpeft.run.estimate import Size, duration, most_seconds_left
from jpeft.run.lines import NowAndThen


class Clock:
    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(display, "time", clock)
    monkeypatch.setattr(lines, "time", clock)
    return clock


def test_the_first_estimate_does_not_count_compiling(clock, capsys):
    """60 s of compilation and 4 s for a tenth of the rows leave 36 s, not 576."""
    compiled = 0.0
    with Display().task("epoch 0", 100, compiled=lambda: compiled) as bar:
        clock.now, compiled = clock.now + 64, 60.0
        bar.advance(10, "loss 2.5")
    assert capsys.readouterr().err == "epoch 0: 10/100  loss 2.5  2.5 examples/s  36 s left\n"


def test_what_was_compiled_or_done_before_does_not_count_either(clock, capsys):
    compiled = 500.0  # in an earlier epoch
    with Display().task("epoch 1", 100, 50, compiled=lambda: compiled) as bar:
        clock.now, compiled = clock.now + 30, 510.0  # a new shape
        bar.advance(10)
    assert capsys.readouterr().err == "epoch 1: 60/100  0.5 examples/s  80 s left\n"


def test_without_work_nothing_is_said_of_what_is_left(clock, capsys):
    with Display().task("epoch 0", 100) as bar:
        clock.now += 20
        bar.advance(0)
    assert "left" not in capsys.readouterr().err


def test_lines_are_apart_and_there_are_none_on_a_terminal(clock):
    def printed(**console) -> str:
        text = io.StringIO()
        now_and_then = NowAndThen(Console(file=text, **console), seconds=10.0)
        for _ in range(25):
            clock.now += 1
            now_and_then.print(lambda: f"[{clock.now:g}]")
        return text.getvalue()

    assert printed() == "[111]\n[122]\n"
    assert printed(force_terminal=True) == ""


SIZE = Size(max_epochs=10, train=100, validation=50, test=200)


def test_the_whole_run_is_its_epochs_and_the_test():
    """40 rows in 8 s are 0.2 s each; 960 training, 500 validation and 200 test rows are left."""
    left = most_seconds_left(SIZE, {"train": 8.0, "validation": 0.0}, epochs_done=0, rows_in_epoch=40, steps_done=4)
    assert left == pytest.approx((960 + 500 + 200) * 0.2)


def test_once_validation_is_measured_it_counts_as_measured():
    """Three epochs; 0.2 s per training row, 0.1 s per validation row."""
    seconds = {"train": 60.0, "validation": 15.0}
    left = most_seconds_left(SIZE, seconds, epochs_done=3, rows_in_epoch=0, steps_done=30)
    assert left == pytest.approx(700 * 0.2 + 350 * 0.1 + 200 * 0.2)


@pytest.mark.parametrize(("seconds", "steps"), [(2.0, 10), (10.0, 2)])
def test_too_little_measured_promises_nothing(seconds, steps):
    measured = {"train": seconds, "validation": 0.0}
    assert most_seconds_left(SIZE, measured, epochs_done=0, rows_in_epoch=20, steps_done=steps) is None


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (5900, "98 min"), (7800, "2 h 10 min")]
)
def test_a_duration_is_as_exact_as_an_estimate(seconds, said):
    assert duration(seconds) == said
