"""Small grids, run through the command line."""

import json
from pathlib import Path

import pytest

from jpeft.cli import main

BENCHMARK = Path(__file__).parents[2] / "configs/benchmark.py"


@pytest.fixture
def grid_flags(deeper_checkpoint, toy_data):
    """A function that returns the flags of a grid of tiny runs in a directory, followed by further flags."""

    def flags(workdir: Path, *more: str) -> list[str]:
        return [
            "grid",
            f"--config={BENCHMARK}",
            f"--workdir={workdir}",
            f"--config.model.name={deeper_checkpoint}",
            f"--config.data.path={toy_data}",
            "--config.train.max_epochs=2",
            "--config.train.batch_size=8",
            "--config.train.accumulation_steps=1",
            "--config.data.max_train=40",
            "--config.data.max_target_length=12",
            "--ablations=none",
            "--scales=low",
            *more,
        ]

    return flags


@pytest.fixture
def states(grid_flags, capsys):
    """The state of each cell from `jpeft grid --dry-run --json`: `{name: (state, detail)}`."""

    def ask(workdir: Path, *more: str) -> dict[str, tuple[str, str]]:
        capsys.readouterr()
        assert main(grid_flags(workdir, "--dry-run", "--json", *more)) == 0
        cells = json.loads(capsys.readouterr().out)["cells"]
        return {cell["cell"]: (cell["state"], cell["detail"]) for cell in cells}

    return ask
