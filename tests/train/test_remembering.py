"""A run of a method with state of its own, stopped and resumed, ends like an unbroken one."""

import json
import signal

import numpy as np
import pytest
from safetensors.numpy import load_file

from jpeft.config import Run
from jpeft.errors import Stopped
from jpeft.run.display import Display
from jpeft.run.metrics_log import MetricsLog
from jpeft.train.loop import execute


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        {"name": "adalora", "rank": 1, "initial_rank": 3, "allocate_every": 1, "final_fraction": 0.25},
        {"name": "prefix", "prefix_length": 3, "prefix_projection": 4},
    ],
    ids=lambda method: method["name"],
)
def test_a_stopped_run_goes_on_bit_for_bit(method, tiny_checkpoint, toy_data, tmp_path, monkeypatch):
    run = Run.from_config(
        {
            "model": {"name": str(tiny_checkpoint)},
            "method": method,
            "data": {"task": "agnews", "path": str(toy_data), "max_train": 48, "max_target_length": 12},
            "train": {"max_epochs": 3, "batch_size": 8, "accumulation_steps": 2, "patience": 9},
        }
    )

    def adapter_of(workdir):
        losses = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        steps = [line["loss"] for line in losses if "step" in line]
        return steps, load_file(next((workdir / "adapter").glob("*.safetensors")))

    execute(run, tmp_path / "unbroken", display=Display(quiet=True))
    for last in (2, 5):  # in the course of one epoch, and of the next
        with monkeypatch.context() as patch:
            log = MetricsLog.step

            def stop_after(self, log=log, last=last, **values):
                log(self, **values)
                if values["step"] == last:
                    signal.raise_signal(signal.SIGTERM)

            patch.setattr(MetricsLog, "step", stop_after)
            with pytest.raises(Stopped):
                execute(run, tmp_path / "broken", display=Display(quiet=True))
    execute(run, tmp_path / "broken", display=Display(quiet=True))
    (losses, unbroken), (again, broken) = adapter_of(tmp_path / "unbroken"), adapter_of(tmp_path / "broken")
    assert losses == again and len(losses) == 9
    for name, value in unbroken.items():
        np.testing.assert_array_equal(broken[name], value, err_msg=name)
    if method["name"] == "adalora":
        numbers = np.concatenate([value.ravel() for name, value in unbroken.items() if name.endswith("lora_E")])
        assert np.count_nonzero(numbers) == len(numbers) // 3
