"""Tests that need PyTorch: not collected, and so not reported as skipped either, unless `-m` names `reference`."""

import re

import pytest


def pytest_ignore_collect(collection_path, config: pytest.Config):
    """The modules import torch at their top, so where it may be absent they are not even looked at."""
    asked_for = re.search(r"(?<!not )\breference\b", config.option.markexpr) is not None
    return None if asked_for or collection_path.name == "conftest.py" else True


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny models are far faster in PyTorch without its pool of threads."""
    import torch

    torch.set_num_threads(1)
