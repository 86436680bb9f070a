"""A run killed at ten points, also while saving, ends with the same adapter as an unbroken run."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import of_devices

ROOT = Path(__file__).parents[2]


def command(workdir: Path, checkpoint: Path, data: Path) -> list[str]:
    return [
        sys.executable,
        str(ROOT / "main.py"),
        f"--config={ROOT / 'configs/lora_agnews_low.py'}",
        f"--workdir={workdir}",
        "--quiet",
        f"--config.model.name={checkpoint}",
        "--config.model.dropout_rate=0.1",  # its masks must come out the same too
        f"--config.data.path={data}",
        "--config.train.max_epochs=4",
        "--config.train.patience=4",
        "--config.train.batch_size=4",
        "--config.train.accumulation_steps=2",
        "--config.train.checkpoint_every_seconds=0",
        "--config.eval.zero_shot=True",
        "--config.eval.batch_size=4",
    ]


def records(workdir: Path) -> list[dict]:
    try:
        lines = (workdir / "metrics.jsonl").read_text().split("\n")[:-1]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def steps(count: int) -> Callable[[Path], bool]:
    return lambda workdir: sum("step" in record for record in records(workdir)) >= count


def validations(count: int) -> Callable[[Path], bool]:
    return lambda workdir: sum("validation_loss" in record for record in records(workdir)) >= count


def saving_after(count: int) -> Callable[[Path], bool]:
    def half_written(workdir: Path) -> bool:
        return steps(count)(workdir) and any("tmp" in path.name for path in (workdir / "checkpoint").glob("*"))

    return half_written


POINTS = {
    "before the model is loaded": lambda workdir: (workdir / "config.json").exists(),
    "before the zero-shot score": lambda workdir: (workdir / "splits.json").exists(),
    "after the zero-shot score": lambda workdir: (workdir / "zero_shot.jsonl").exists(),
    "after the first step": steps(1),
    "while saving in the first epoch": saving_after(5),
    "at the end of an epoch, before or in validation": steps(13),
    "right after a validation": validations(2),
    "while saving in the third epoch": saving_after(30),
    "in the last epoch": steps(45),
    "while testing": validations(4),
}


def kill_at(condition: Callable[[Path], bool], workdir: Path, arguments: list[str]) -> None:
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=of_devices(1))
    deadline = time.monotonic() + 180
    while not condition(workdir):
        assert process.poll() is None, f"ended before it could be killed: {process.communicate()[1].decode()}"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_killed_at_ten_points_it_ends_with_the_same_adapter(tiny_checkpoint, toy_data, tmp_path):
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    subprocess.run(command(unbroken, tiny_checkpoint, toy_data), check=True, env=of_devices(1), capture_output=True)
    for condition in POINTS.values():
        kill_at(condition, killed, command(killed, tiny_checkpoint, toy_data))
        assert not (killed / "result.json").exists()
    subprocess.run(command(killed, tiny_checkpoint, toy_data), check=True, env=of_devices(1), capture_output=True)

    adapter = Path("adapter/jpeft_adapter.safetensors")
    assert (killed / adapter).read_bytes() == (unbroken / adapter).read_bytes()
    assert records(killed) == records(unbroken)
    assert (killed / "predictions.jsonl").read_text() == (unbroken / "predictions.jsonl").read_text()
    results = [json.loads((path / "result.json").read_text()) for path in (killed, unbroken)]
    for key in ("metrics", "zero_shot", "validation_losses", "best_epoch", "epochs_run"):
        assert results[0][key] == results[1][key]
