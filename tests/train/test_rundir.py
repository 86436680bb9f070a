"""The records of a run."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_records_are_written_without_loading_pytorch(tmp_path):
    (tmp_path / "torch.py").write_text("raise RuntimeError('loaded')\n")
    program = (
        "import pathlib; from jpeft.train.rundir import MetricsLog; "
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
