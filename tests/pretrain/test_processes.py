"""Two processes with two devices each pretrain one model."""

import json
import signal
import time

import numpy as np
import pytest

from tests.mesh.test_processes import Processes

PROGRAM = ("-m", "jpeft.cli", "pretrain")


def outcome(workdir):
    log = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return json.loads((workdir / "result.json").read_text()), [record["loss"] for record in log if "loss" in record]


@pytest.mark.slow
def test_two_processes_end_as_one_and_go_on_after_a_signal_to_one(tiny_pretraining, tmp_path):
    """The first process trains the vocabulary, and both read it."""
    tiny_pretraining.tokenizer.update({"path": None, "size": 400, "megabytes": 0.1})
    tiny_pretraining.log.checkpoint_every_seconds = 0.0
    tiny_pretraining.mesh.update({"data": 2, "model": 2})
    tiny_pretraining.train.steps = 8
    values = json.dumps(tiny_pretraining.to_dict())
    (tmp_path / "config.py").write_text(
        "import json\nfrom ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict(json.loads({values!r}))\n"
    )
    config = f"--config={tmp_path / 'config.py'}"
    [(status, _, errors)] = Processes(1, tmp_path / "one", config, program=PROGRAM).ended()
    assert status == 0, errors

    stopped = Processes(2, tmp_path / "two", config, program=PROGRAM)
    log, until = tmp_path / "two/metrics.jsonl", time.monotonic() + 300
    while time.monotonic() < until and not (log.is_file() and len(log.read_text().splitlines()) >= 2):
        time.sleep(0.02)
    stopped.processes[1].send_signal(signal.SIGTERM)
    for status, _, errors in stopped.ended():
        assert status == 1 and "stopped by SIGTERM" in errors, errors
    both = Processes(2, tmp_path / "two", config, program=PROGRAM).ended()
    assert [status for status, _, _ in both] == [0, 0], both
    assert "goes on after step" in both[0][2]
    assert ["model    " in output for _, output, _ in both] == [True, False]

    (one, losses_of_one), (two, losses) = outcome(tmp_path / "one"), outcome(tmp_path / "two")
    np.testing.assert_allclose(losses, losses_of_one, atol=1e-5)
    assert two["device_count"] == 4 and two["fill"] == one["fill"]
    for kind, loss in one["validation_loss"].items():
        assert abs(two["validation_loss"][kind] - loss) < 1e-5
    assert (tmp_path / "two/model/model.safetensors").is_file()
    assert (tmp_path / "two/samples/step_0000008.jsonl").is_file()
