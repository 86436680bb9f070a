"""A grid on a Ray cluster of two nodes, both on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jpeft.cli import main

ROOT = Path(__file__).parents[2]
SAME = ("method", "task", "metric", "metrics", "validation_losses", "best_epoch", "epochs_run")

ray = pytest.importorskip("ray", reason="Ray is an extra: pip install 'jpeft[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # Ray's own warnings


@pytest.fixture
def cluster(monkeypatch):
    """The address of a cluster of two nodes with one CPU each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the workers
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    made.add_node(num_cpus=1)
    yield made.address
    ray.shutdown()  # disconnect from an earlier test in this process
    made.shutdown()


def test_a_killed_worker_loses_nothing(cluster, grid_flags, tmp_path):
    """Compared with the same grid on one local worker; the kill comes in the middle of a cell, after a checkpoint."""
    flags = ["--methods=lora,ia3", "--tasks=agnews,samsum", "--config.train.max_epochs=4"]
    flags += ["--config.train.checkpoint_every_seconds=0"]
    killed, unbroken = tmp_path / "killed", tmp_path / "unbroken"
    command = [*grid_flags(killed, *flags), "--launcher=ray", f"--address={cluster}"]
    grid = subprocess.Popen([sys.executable, "-m", "jpeft.cli", *command], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    victim = wait_for_a_cell_at_work(killed)
    os.kill(victim, signal.SIGKILL)
    _, errors = grid.communicate(timeout=400)
    assert grid.returncode == 0, errors
    assert "it goes back in the queue" in errors

    assert main(grid_flags(unbroken, *flags)) == 0
    names = sorted(path.parent.name for path in unbroken.glob("*/result.json"))
    assert len(names) == 4
    for name in names:
        results = [json.loads((grid / name / "result.json").read_text()) for grid in (killed, unbroken)]
        assert [results[0][key] for key in SAME] == [results[1][key] for key in SAME], name
        assert (killed / name / "predictions.jsonl").read_text() == (unbroken / name / "predictions.jsonl").read_text()


def test_a_worker_that_fits_no_node_is_one_line(cluster, grid_flags, tmp_path, capsys):
    flags = grid_flags(tmp_path / "grid", "--methods=lora", "--tasks=agnews", "--launcher=ray")
    assert main([*flags, f"--address={cluster}", "--gpus=1"]) == 2
    assert "no node of the cluster has 1 CPUs and 1 GPUs" in capsys.readouterr().err


def test_no_cluster_is_one_line(grid_flags, tmp_path, capsys):
    assert main(grid_flags(tmp_path / "grid", "--methods=lora", "--tasks=agnews", "--launcher=ray")) == 1
    assert "no Ray cluster at 'auto'" in capsys.readouterr().err


def wait_for_a_cell_at_work(grid: Path) -> int:
    """Wait for a worker whose cell has a checkpoint and is not done; returns its process id."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        for progress in grid.glob("*/progress.json"):
            if any((progress.parent / "checkpoint").glob("*")):
                try:
                    return int(json.loads(progress.read_text())["worker"].partition(":")[2])
                except (OSError, ValueError):  # the process has just ended
                    continue
        time.sleep(0.02)
    raise AssertionError("no cell came to a checkpoint")
