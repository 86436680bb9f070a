"""The log of a run's metrics."""

import concurrent.futures
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jpeft.run.metrics_log import MetricsLog, _hidden

ROOT = Path(__file__).parents[2]


def test_records_are_written_without_loading_pytorch(tmp_path):
    (tmp_path / "torch.py").write_text("raise RuntimeError('loaded')\n")
    program = (
        "import pathlib; from jpeft.run.metrics_log import MetricsLog; "
        f"log = MetricsLog(pathlib.Path({str(tmp_path)!r}), steps_done=0, keep=bool); "
        "log.step(step=1, epoch=0, loss=0.5); log.close()\n"
        "try: import torch\n"
        "except RuntimeError: print('there all the same')"
    )
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout == "there all the same\n", done.stderr
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "epoch": 0, "loss": 0.5}
    assert any((tmp_path / "tensorboard").glob("events.*"))


def test_runs_side_by_side_hide_a_module_one_after_the_other():
    started, may_end, order = threading.Event(), threading.Event(), []

    def first():
        with _hidden("no_such_module"):
            started.set()
            may_end.wait(10)
            order.append("first")

    def second():
        started.wait(10)
        with _hidden("no_such_module"):
            assert sys.modules["no_such_module"] is None
            order.append("second")

    with concurrent.futures.ThreadPoolExecutor() as threads:
        both = [threads.submit(work) for work in (first, second)]
        assert not concurrent.futures.wait(both, timeout=0.1).done
        may_end.set()
        for one in both:
            one.result()
    assert order == ["first", "second"] and "no_such_module" not in sys.modules


@pytest.mark.parametrize(
    "damage",
    [
        b"{",
        b"\0" * 40,
        b"[1, 2]",
        b"null",
        b'{"note": "mine"}',
        b'{"epoch": "one"}',
        b"\xff\xfe",
        b"[" * 99_999,
        b'"x"',
    ],
)
def test_lines_that_are_no_records_are_left_out_and_kept_aside(damage, tmp_path):
    records = [{"epoch": epoch, "step": step} for epoch, step in ((0, 1), (0, 2), (1, 3))]
    lines = [json.dumps(record).encode() for record in records]
    file, said = tmp_path / "metrics.jsonl", []
    before = b"\n".join([lines[0], damage, *lines[1:], b'{"epoch": 1, "ste'])
    file.write_bytes(before)
    log = MetricsLog(tmp_path, steps_done=2, keep=lambda record: record["epoch"] < 1, report=said.append)
    log.close()
    assert [json.loads(line) for line in file.read_text().splitlines()] == records[:2]
    assert len(said) == 1 and "1 damaged line," in said[0]
    assert (tmp_path / "damaged/metrics.jsonl").read_bytes() == before
