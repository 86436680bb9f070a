"""The comparison of a whole cell: both sides train alike."""

import argparse
import json
from pathlib import Path

from benchmarks import cell
from benchmarks.work import SIZES, write_checkpoint
from jpeft.cli.config_flags import parse_call
from jpeft.config import Run
from jpeft.data.prepare import Data
from jpeft.data.tasks import TASKS


def test_both_sides_take_equal_steps_with_a_model_that_recommends_none(tmp_path, monkeypatch):
    write_checkpoint(SIZES["tiny"], tmp_path / "model", dropout_rate=0.1)
    told = {}

    def record(command, **_):
        if "main.py" in command:
            call = parse_call(command[1:], Run, "")
            assert call is not None
            told["ours"] = Run.from_config(call.config)
            call.workdir.mkdir()
            (call.workdir / "result.json").write_text('{"metric": 0.5}')
        else:
            told["theirs"] = json.loads((Path(command[-1]) / "cell.json").read_text())
            (Path(command[-1]) / "predictions.json").write_text("[]")

    monkeypatch.setattr(cell, "_run", record)
    monkeypatch.setattr(cell, "judge", lambda task, *_: argparse.Namespace(numbers={task.metric: 0.5}))
    arguments = argparse.Namespace(
        data=None, task="agnews", train=8, validation=4, test=4, epochs=2, max_input_length=32
    )
    assert cell._ours(arguments, tmp_path / "model", tmp_path / "ours", seed=0, cache=tmp_path) == 0.5
    data = Data(task=TASKS["agnews"], examples={"test": []}, tokens={}, shapes=[])
    assert cell._theirs(arguments, tmp_path / "model", data, tmp_path / "theirs", seed=0) == 0.5
    ours, theirs = told["ours"], told["theirs"]
    assert ours.train.batch_size * ours.train.accumulation_steps == theirs["batch_size"] == 16
    assert (ours.eval.batch_size, ours.train.max_epochs) == (theirs["eval_batch_size"], theirs["epochs"])
    assert ours.model.dropout_rate == 0.0  # which the other side sets itself
