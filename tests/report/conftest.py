"""Made-up grids of results."""

from pathlib import Path

import pytest

from jpeft.report.groups import Group, group
from jpeft.report.records import load
from tests.report.synthetic import write_grid


@pytest.fixture(scope="session")
def grid(tmp_path_factory) -> Path:
    """The paper's 104 cells with two seeds, of `mini`."""
    root = tmp_path_factory.mktemp("grid")
    write_grid(root, seeds=2)
    return root


@pytest.fixture(scope="session")
def mini(grid) -> Group:
    """The same, read."""
    (only,) = group(load([grid])[0])
    return only
