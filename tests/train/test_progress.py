"""The progress in checkpoints, including those of earlier versions."""

import dataclasses
import json

import pytest

from jpeft.train.progress import Progress, read_progress

SECONDS = {"train": 3.0, "validation": 1.0, "test": 0.0, "compile": 2.0}


def test_it_is_read_as_it_was_written():
    progress = Progress({"epoch": 1, "step_in_epoch": 2}, SECONDS, {"tokens": 5}, False, [{"validation/loss": 0.1}])
    assert read_progress(**json.loads(json.dumps(dataclasses.asdict(progress)))) == progress


@pytest.mark.parametrize("in_epoch", [0, 3])
def test_a_fine_tuning_of_0_1_0_goes_on(in_epoch):
    """The step within the epoch was 0 after the validation at the end of an epoch, and only then."""
    before = {
        "epoch": 2, "step_in_epoch": in_epoch, "stopped": False, "best_epoch": 1, "best_loss": 1.5,
        "validation_losses": [2.0, 1.5], "zero_shot": {"accuracy": 0.25}, "train_tokens": 700, "seconds": SECONDS,
        "started": "2026-11-24T10:00:00+00:00",
    }  # fmt: skip
    assert read_progress(**before) == Progress(
        position={"epoch": 2, "step_in_epoch": in_epoch},
        seconds=SECONDS,
        counts={"tokens": 700},
        evaluated=in_epoch == 0,
        history=[{"validation/loss": 2.0}, {"validation/loss": 1.5}],
        kept={"zero_shot": {"accuracy": 0.25}},
        started="2026-11-24T10:00:00+00:00",
    )


def test_a_pretraining_of_0_1_0_goes_on():
    before = {
        "step": 250, "block": 4, "batches_done": 7, "input_tokens": 900, "target_tokens": 300,
        "losses": {"train": 3.1, "text": 3.0, "pairs": 2.0}, "seconds": SECONDS, "started": "then",
    }  # fmt: skip
    read = read_progress(**before)
    assert read.position == {"block": 4, "batches_done": 7} and read.evaluated and read.started == "then"
    assert read.history == [{"text/loss": 3.0, "pairs/loss": 2.0}]
    assert read.counts == {"input_tokens": 900, "target_tokens": 300}
    assert read_progress(**{**before, "losses": {"train": 3.1}}).history == []


@pytest.mark.parametrize("plain", [{}, {"epoch": 1}, {"block": 1}, {"position": {}, "seconds": {}, "more": 1}])
def test_what_is_no_such_record_raises_what_a_reader_of_checkpoints_tells(plain):
    with pytest.raises((TypeError, LookupError)):
        read_progress(**plain)
