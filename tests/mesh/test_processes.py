"""Two processes with two devices each do one run together, and both end when one is lost."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from jpeft.run import processes
from tests.conftest import of_devices

_ROOT = Path(__file__).parent.parent.parent
_SECONDS = 300  # the work takes a minute on an idle machine


class Processes:
    """Processes of `main.py` or another program on one run, each with its share of four virtual devices."""

    def __init__(
        self, count: int, workdir: Path, *flags: str, cluster: bool = False, program: tuple[str, ...] = ("main.py",)
    ):
        port = _free_port()
        self.processes = []
        for index in range(count):
            environment = of_devices(4 // count) | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
            own: list[str] = []
            if cluster:
                environment |= {
                    "SLURM_JOB_ID": str(port),
                    "SLURM_STEP_NODELIST": "localhost",
                    "SLURM_STEP_NUM_NODES": "1",
                    "SLURM_NTASKS": str(count),
                    "SLURM_PROCID": str(index),
                    "SLURM_LOCALID": str(index),
                }
                own = ["--distributed"]
            elif count > 1:
                own = [f"--coordinator_address=localhost:{port}", f"--num_processes={count}", f"--process_id={index}"]
            command = [sys.executable, *program, *flags, f"--workdir={workdir}", *own]
            self.processes.append(
                subprocess.Popen(
                    command, cwd=_ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
            )

    def ended(self, seconds: float = _SECONDS) -> list[tuple[int, str, str]]:
        """The exit status, output and errors of each process."""
        until = time.monotonic() + seconds
        try:
            outputs = [process.communicate(timeout=until - time.monotonic()) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [(p.returncode, *texts) for p, texts in zip(self.processes, outputs, strict=True)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.fixture
def flags(four_headed_checkpoint, toy_data):
    """The flags of a small cell on four devices."""
    return (
        "--config=configs/lora_agnews_low.py",
        f"--config.model.name={four_headed_checkpoint}",
        f"--config.data.path={toy_data}",
        "--config.data.max_train=64",
        "--config.data.max_target_length=12",
        "--config.train.batch_size=8",
        "--config.train.accumulation_steps=2",
        "--config.train.max_epochs=2",
        "--config.train.checkpoint_every_seconds=0",
        "--config.eval.batch_size=8",
        "--config.mesh.data=2",
        "--config.mesh.model=2",
    )


def outcome(workdir: Path):
    result = json.loads((workdir / "result.json").read_text())
    predictions = [json.loads(line)["prediction"] for line in (workdir / "predictions.jsonl").read_text().splitlines()]
    return result, predictions, load_file(next((workdir / "adapter").glob("*.safetensors")))


def assert_same(workdir: Path, expected: Path) -> None:
    (result, predictions, adapter), (one, predictions_of_one, adapter_of_one) = outcome(workdir), outcome(expected)
    assert result["metric"] == one["metric"]
    assert predictions == predictions_of_one
    np.testing.assert_allclose(result["validation_losses"], one["validation_losses"], atol=1e-5)
    assert set(adapter) == set(adapter_of_one)
    for name, leaf in adapter_of_one.items():
        np.testing.assert_allclose(adapter[name], leaf, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_two_processes_end_as_one_and_go_on_after_a_kill(flags, tmp_path):
    [(status, _, errors)] = Processes(1, tmp_path / "one", *flags).ended()
    assert status == 0, errors
    for status, _, errors in Processes(2, tmp_path / "two", *flags).ended():
        assert status == 0, errors
    assert_same(tmp_path / "two", tmp_path / "one")

    killed = Processes(2, tmp_path / "killed", *flags)
    log = tmp_path / "killed" / "metrics.jsonl"
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until and not (log.is_file() and len(log.read_text().splitlines()) >= 3):
        time.sleep(0.05)
    killed.processes[1].kill()
    started = time.monotonic()
    (status, _, errors), (killed_status, _, _) = killed.ended(seconds=60)
    assert killed_status == -signal.SIGKILL
    assert status not in (0, -signal.SIGKILL), f"still at work after {time.monotonic() - started:.0f} s"
    assert "another process of this run is gone" in errors and "same command" in errors, errors
    assert not (tmp_path / "killed" / "result.json").exists()

    both = Processes(2, tmp_path / "killed", *flags).ended()
    assert [status for status, _, _ in both] == [0, 0], both
    assert "goes on in epoch" in both[0][2]
    assert_same(tmp_path / "killed", tmp_path / "one")


@pytest.mark.slow
def test_what_is_auto_is_settled_alike_by_all_processes(flags, tmp_path):
    auto = ("--config.model.remat=auto", "--config.train.batch_size=auto", "--config.eval.batch_size=auto")
    [(status, _, errors)] = Processes(1, tmp_path / "one", *flags, *auto).ended()
    assert status == 0, errors
    both = Processes(2, tmp_path / "two", *flags, *auto).ended()
    assert [status for status, _, _ in both] == [0, 0], both
    assert "auto: keeps all for the backward pass, micro-batches of 16 rows x 2" in both[0][2] + both[0][1]
    settled = [json.loads((tmp_path / name / "settled.json").read_text()) for name in ("one", "two")]
    assert settled[0] == settled[1]
    assert_same(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_slurm_tells_who_is_who_and_a_bad_call_ends_all(flags, tmp_path):
    for status, _, errors in Processes(2, tmp_path / "slurm", *flags, cluster=True).ended():
        assert status == 0, errors
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "something").write_text("else")
    for index, (status, _, errors) in enumerate(Processes(2, tmp_path / "taken", *flags).ended()):
        assert status != 0
        assert "is not empty and holds no run" in errors, f"process {index}: {errors}"


@pytest.mark.slow
def test_a_signal_to_one_stops_both_after_saving(flags, tmp_path):
    stopped = Processes(2, tmp_path / "run", *flags)
    log = tmp_path / "run" / "metrics.jsonl"
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until and not (log.is_file() and len(log.read_text().splitlines()) >= 2):
        time.sleep(0.05)
    stopped.processes[1].send_signal(signal.SIGTERM)
    for status, _, errors in stopped.ended():
        assert status == 1
        assert "stopped by SIGTERM" in errors


def test_an_error_that_says_nothing_is_no_good_news_to_the_others(monkeypatch):
    handed = []
    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "from_first", lambda text: handed.append(text) or text)

    @contextlib.contextmanager
    def broken(error):
        raise error
        yield

    for error in (ValueError(), OSError("one\ntwo"), OSError("long" * 1000)):
        with pytest.raises(type(error)), processes.entered_by_first(broken(error)):
            pass
    assert handed == ["ValueError", "one", ("long" * 1000)[:300]]
