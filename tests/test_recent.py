import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from jpeft.recent import Recent


def test_one_value_is_computed_while_another_key_is_asked_for():
    recent, started, finish = Recent(2), threading.Event(), threading.Event()

    def slow() -> str:
        started.set()
        assert finish.wait(30)
        return "slow"

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(recent.get, "a", slow)
        assert started.wait(30)
        assert recent.get("b", lambda: "quick") == "quick"
        finish.set()
        assert waiting.result(30) == "slow"


def test_threads_that_ask_for_one_key_compute_its_value_once():
    recent, made, together = Recent(2), [], threading.Barrier(4)

    def ask() -> int:
        together.wait(30)
        return recent.get("a", lambda: made.append(1) or len(made))

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask) for _ in range(4)]
        assert [one.result(30) for one in asked] == [1, 1, 1, 1]


def test_a_value_that_failed_is_computed_again():
    recent = Recent(1)
    with pytest.raises(ZeroDivisionError):
        recent.get("a", lambda: 1 // 0)
    assert recent.get("a", lambda: 3) == recent.get("a", lambda: 1 // 0) == 3


def test_a_value_may_be_computed_from_that_of_another_key():
    recent = Recent(2)
    assert recent.get("a", lambda: recent.get("b", lambda: 1) + 1) == 2
