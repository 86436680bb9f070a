"""What background threads print of a failure that the main thread says in one line, with runs side by side."""

import logging
import sys
import threading

import pytest

from jpeft.errors import Paused, Stopped
from jpeft.run import background
from jpeft.run.background import quiet_threads


@pytest.fixture
def printed(monkeypatch):
    """What threads fail at and is printed, in a process that no run has failed in before."""
    seen = []
    monkeypatch.setattr(background, "_quiet", background._QuietHooks())
    monkeypatch.setattr(threading, "excepthook", lambda arguments: seen.append(str(arguments.exc_value)))
    monkeypatch.setattr(sys, "unraisablehook", lambda arguments: seen.append(str(arguments.exc_value)))
    return seen


@pytest.fixture(autouse=True)
def asyncio_level():
    log = logging.getLogger("asyncio")
    level = log.level
    yield
    log.setLevel(level)


def hooks():
    return threading.excepthook, sys.unraisablehook, logging.getLogger("asyncio").level


def fails_in_a_thread(message):
    def fail():
        raise OSError(message)

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()


def test_a_full_disk_is_kept_quiet_and_all_else_is_printed(printed):
    with quiet_threads():
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
    fails_in_a_thread("No space left on device")  # the second goes on, and is still quiet
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
    """It has saved what it had, and nothing has failed: a search pauses runs by the dozen in one process."""
    before = hooks()
    with pytest.raises(type(end)), quiet_threads():
        raise end
    assert hooks() == before
    fails_in_a_thread("No space left on device")
    assert printed == ["No space left on device"]
