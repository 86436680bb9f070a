"""Tracebacks of background threads are hidden if the main thread reports the error, also with overlapping runs."""

import logging
import sys
import threading

import pytest

from jpeft.errors import Paused, Stopped
from jpeft.run import background
from jpeft.run.background import quiet_threads


@pytest.fixture
def printed(monkeypatch):
    """The errors of threads that are printed, in a process without earlier failures."""
    seen = []
    monkeypatch.setattr(background, "_quiet", background._QuietHooks())
    monkeypatch.setattr(threading, "excepthook", lambda arguments: seen.append(str(arguments.exc_value)))
    monkeypatch.setattr(sys, "unraisablehook", lambda arguments: seen.append(str(arguments.exc_value)))
    return seen


@pytest.fixture(autouse=True)
def levels():
    """The loggers as a new process has them: after a failed run of another test they stay quiet."""
    before = log_levels()
    for name in before:
        logging.getLogger(name).setLevel(logging.WARNING)
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


def log_levels():
    return {name: logging.getLogger(name).level for name in ("asyncio", "absl")}


def hooks():
    return threading.excepthook, sys.unraisablehook, log_levels()


def fails_in_a_thread(message):
    def fail():
        raise OSError(message)

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()


def test_a_full_disk_is_kept_quiet_and_all_else_is_printed(printed):
    before = log_levels()
    with quiet_threads():
        assert set(log_levels().values()) == {logging.CRITICAL} != set(before.values())
        fails_in_a_thread("No space left on device")
        fails_in_a_thread("a defect")
    fails_in_a_thread("No space left on device")
    assert printed == ["a defect", "No space left on device"]


def test_runs_that_overlap_leave_the_hooks_as_they_were(printed):
    before = hooks()
    first, second = quiet_threads(), quiet_threads()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    fails_in_a_thread("No space left on device")  # the second run still hides it
    assert printed == []
    second.__exit__(None, None, None)
    assert hooks() == before


def test_after_a_failure_threads_stay_quiet_and_the_next_runs_wrap_nothing_anew(printed):
    def a_run_fails():
        with pytest.raises(RuntimeError), quiet_threads():
            raise RuntimeError("the run failed")

    a_run_fails()
    kept = hooks()
    a_run_fails()
    with quiet_threads():
        pass
    fails_in_a_thread("No space left on device")
    assert printed == [] and hooks() == kept


@pytest.mark.parametrize("end", [Paused("waits after 1 epoch"), Stopped("told to stop")])
def test_a_run_that_waits_or_was_stopped_leaves_the_hooks_as_they_were(end, printed):
    """Such a run has not failed; a search pauses dozens of runs in one process."""
    before = hooks()
    with pytest.raises(type(end)), quiet_threads():
        raise end
    assert hooks() == before
    fails_in_a_thread("No space left on device")
    assert printed == ["No space left on device"]
