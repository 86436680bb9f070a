"""Warnings are given where they apply, and only there."""

import pytest

from jpeft.config import Run
from jpeft.train.cautions import few_steps, still_learning, without_effect


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, None),
        ({"data": {"source": "sample", "sample_seed": 3}}, None),
        ({"ablation": {"name": "random", "seed": 3}}, None),
        (
            {"data": {"path": "rows", "sample_seed": 3}},
            "data.sample_seed=3 changes nothing here: it is for data.source=sample",
        ),
        (
            {"data": {"sample_seed": 4}, "ablation": {"name": "early", "seed": 2}},
            "data.sample_seed=4 changes nothing here: it is for data.source=sample; "
            "ablation.seed=2 changes nothing here: it is for ablation.name=random",
        ),
    ],
)
def test_keys_that_nothing_reads(config, told):
    assert without_effect(Run.from_config(config)) == told


def test_few_steps():
    line = few_steps(160, batch_size=16, accumulation_steps=4, max_epochs=10)
    assert line == (
        "only 30 optimizer steps in 10 epochs (160 rows, 64 a step): little can be learned in so few; more with "
        "--config.train.max_epochs=17 or --config.train.accumulation_steps=1 (100 steps)"
    )
    assert few_steps(160, batch_size=16, accumulation_steps=4, max_epochs=17) is None  # as the line says
    line = few_steps(100, batch_size=16, accumulation_steps=1, max_epochs=1)
    assert line and "in 1 epoch (100 rows, 16 a step)" in line and "accumulation_steps" not in line
    assert few_steps(10_000, batch_size=16, accumulation_steps=4, max_epochs=1) is None


def test_the_last_epoch_was_the_best():
    line = still_learning(best_epoch=9, epochs_run=10, max_epochs=10)
    assert line and "--config.train.max_epochs=20" in line
    assert still_learning(best_epoch=8, epochs_run=10, max_epochs=10) is None
    assert still_learning(best_epoch=4, epochs_run=5, max_epochs=10) is None
    assert still_learning(best_epoch=0, epochs_run=1, max_epochs=1) is None  # one epoch tells nothing
