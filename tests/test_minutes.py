"""A part of the tests by `--minutes` and `--order`: what `.ci/run` has time for."""

import time
from types import SimpleNamespace

import pytest

from tests import conftest


def config(begun: float = 0.0, **options):
    return SimpleNamespace(getoption=lambda name: options.get(name.strip("-")), _begun=begun)


def ordered(text: str | None) -> list[str]:
    names = [f"tests/test_{file}.py::test_{i}" for file in "abcde" for i in range(3)]
    items = [SimpleNamespace(nodeid=name) for name in names]
    conftest.pytest_collection_modifyitems(config(order=text), items)
    return [item.nodeid for item in items]


def test_an_order_is_of_files_and_the_same_for_the_same_text():
    plain, monday, tuesday = ordered(None), ordered("2026-11-23"), ordered("2026-11-24")
    assert plain == sorted(plain) != monday == ordered("2026-11-23") != tuesday
    for names in (monday, tuesday):
        files = [name.partition("::")[0] for name in names]
        assert len(list(dict.fromkeys(files))) == 5 == sum(a != b for a, b in zip(files, files[1:], strict=False)) + 1
        assert sorted(names) == plain and [n for n in names if "_a.py" in n] == plain[:3]


def test_after_the_minutes_no_test_is_begun():
    now = time.monotonic()
    conftest.pytest_runtest_setup(SimpleNamespace(config=config(now - 170, minutes=3.0)))
    conftest.pytest_runtest_setup(SimpleNamespace(config=config(now - 1e6)))
    with pytest.raises(pytest.skip.Exception, match="the 3 minutes of --minutes are over"):
        conftest.pytest_runtest_setup(SimpleNamespace(config=config(now - 181, minutes=3.0)))
