"""`scripts/run_paper_grid.sh`: its calls of `jpeft`, which a recorder replaces here, and when it writes a report."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/run_paper_grid.sh"


@pytest.fixture
def script(tmp_path):
    """Run the script with a fake `jpeft grid` that leaves results and exits with a status; returns the calls."""

    def run(*arguments: str, status: int = 0, results: int = 0, **environment: str) -> tuple[int, list[str], str]:
        calls, work = tmp_path / "calls", tmp_path / "work"
        for number in range(results):
            (work / f"cell{number}").mkdir(parents=True, exist_ok=True)
            (work / f"cell{number}/result.json").write_text("{}")
        (tmp_path / "jpeft").write_text(
            f'#!/bin/sh\necho "$@" >> {calls}\nif [ "$1" = grid ]; then exit {status}; fi\n'
        )
        (tmp_path / "jpeft").chmod(0o755)
        path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "WORKDIR": str(work), **environment}
        done = subprocess.run([SCRIPT, *arguments], env=path, capture_output=True, text=True)
        return done.returncode, calls.read_text().splitlines(), done.stderr

    return run


def test_a_grid_is_reported_on(script, tmp_path):
    status, calls, _ = script("--jobs", "4", results=1, CONFIG="mini")
    work = tmp_path / "work"
    assert status == 0
    assert calls == [f"grid --config mini --workdir {work} --jobs 4", f"report {work} --out {work}/report"]


def test_a_dry_run_runs_nothing_and_reports_on_nothing(script):
    status, calls, _ = script("--dry-run")
    assert status == 0 and [call.split()[0] for call in calls] == ["grid"]


def test_a_wrong_call_ends_there_and_failed_cells_are_reported(script):
    assert script("--nonsense", status=2)[0] == 2
    status, calls, _ = script(status=1, results=1)
    assert status == 1 and calls[-1].startswith("report")


def test_a_grid_of_which_every_cell_failed_says_where_to_look(script):
    status, calls, error = script(status=1)
    assert status == 1 and len(calls) == 1 and "failure.json" in error
