"""Made-up grids of results."""

from pathlib import Path

import pytest

from jpeft.report.groups import Group, group
from jpeft.report.records import load
from tests.report.synthetic import write_grid


@pytest.fixture(scope="session")
def grid(tmp_path_factory) -> Path:
    """Results of `mini` on the paper's 104 cells with two seeds each."""
    root = tmp_path_factory.mktemp("grid")
    write_grid(root, seeds=2)
    return root


@pytest.fixture(scope="session")
def mini(grid) -> Group:
    """The same results, loaded and grouped."""
    (only,) = group(load([grid])[0])
    return only
