"""Tests that need PyTorch; they are only collected if `-m` names `reference`, so they are not reported as skipped."""

import re

import pytest


def pytest_ignore_collect(collection_path, config: pytest.Config):
    """Do not even import the modules otherwise: they import torch at the top, which may be absent."""
    asked_for = re.search(r"(?<!not )\breference\b", config.option.markexpr) is not None
    return None if asked_for or collection_path.name == "conftest.py" else True


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Limit PyTorch to one thread: tiny models are far faster without its thread pool."""
    import torch

    torch.set_num_threads(1)
