"""A run that pauses after some of its epochs and continues ends like one that did not pause."""

import importlib
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from jpeft.config import Run
from jpeft.errors import Paused
from jpeft.results import NotARecord, PausedRecord
from jpeft.run.display import Display
from jpeft.train.loop import execute
from jpeft.train.session import Session


@pytest.fixture
def run(tiny_checkpoint, toy_data):
    config = importlib.import_module("configs.lora_agnews_low").get_config()
    config.update_from_flattened_dict(
        {
            "model.name": str(tiny_checkpoint),
            "data.path": str(toy_data),
            "data.max_train": 24,
            "train.max_epochs": 3,
            "train.batch_size": 8,
            "train.accumulation_steps": 1,
        }
    )
    return Run.from_config(config)


def adapter_of(workdir) -> dict[str, np.ndarray]:
    return load_file(next((workdir / "adapter").glob("*.safetensors")))


@pytest.mark.slow
def test_a_run_that_waited_twice_ends_as_one_that_did_not(run, tmp_path):
    quiet, session = Display(quiet=True), Session()
    whole = execute(run, tmp_path / "whole", display=quiet, session=session)
    waited = tmp_path / "waited"
    for epochs in (1, 2, 2):  # it pauses at the same place again
        with pytest.raises(Paused, match=f"waits after {epochs} epoch"):
            execute(run, waited, display=quiet, session=session, pause_after=epochs)
        record = PausedRecord.read(waited / "paused.json")
        assert record.epochs == epochs and not (waited / "result.json").exists()
        assert list(record.validation_losses) == whole["validation_losses"][:epochs]
        assert (record.train_examples, record.seconds["test"]) == (24, 0.0)
        assert record.seconds["total"] >= record.seconds["train"] > 0.0
    result = execute(run, waited, display=quiet, session=session)
    assert result["validation_losses"] == whole["validation_losses"] and result["metrics"] == whole["metrics"]
    a, b = adapter_of(tmp_path / "whole"), adapter_of(waited)
    assert all(np.array_equal(a[leaf], b[leaf]) for leaf in a)
    assert not (waited / "paused.json").exists()


@pytest.mark.slow
def test_a_run_that_ends_before_it_is_to_wait_is_finished(run, tmp_path):
    result = execute(run, tmp_path / "run", display=Display(quiet=True), pause_after=3)
    assert result["epochs_run"] == 3 and (tmp_path / "run/adapter").is_dir()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"validation_losses": []}, "without an epoch"),
        ({"validation_losses": [float("nan")]}, "holds NaN"),
        ({"validation_losses": 3}, "a list of numbers"),
        ({"seconds": {"train": 1.0}}, "seconds of total"),
        ({"train_examples": None}, "train_examples is None"),
        (None, "lacks validation_losses"),
    ],
)
def test_a_record_that_no_run_writes_is_none(change, why, tmp_path):
    phases = dict.fromkeys(("total", "train", "validation", "test", "compile"), 1.0)
    good = {"validation_losses": [0.5], "train_examples": 8, "validation_examples": 4, "seconds": phases}
    (tmp_path / "paused.json").write_text(json.dumps(good))
    assert PausedRecord.read(tmp_path / "paused.json").to_dict() == good
    (tmp_path / "paused.json").write_text(json.dumps({} if change is None else {**good, **change}))
    with pytest.raises(NotARecord, match=why):
        PausedRecord.read(tmp_path / "paused.json")
