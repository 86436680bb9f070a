"""The end of a search: full runs ranked by what is scarce."""

from pathlib import Path

import pytest

from jpeft.report.choice import Full, Short, as_data, document, rank
from jpeft.report.records import load
from tests.report.synthetic import record, write_run


@pytest.fixture
def full(tmp_path):
    """Full runs, from `{method: (validation losses by epoch, train seconds)}`; a hundredth of them validation."""

    def make(metrics: dict[str, float] | None = None, **runs: tuple[list[float], float]) -> list[Full]:
        made = []
        for method, (losses, train) in runs.items():
            seconds = {"total": train, "train": train, "validation": 0.0, "test": 0.0, "compile": 0.0}
            changes = {"validation_losses": losses, "validation_loss": min(losses), "epochs_run": len(losses)}
            changes |= {"best_epoch": losses.index(min(losses)), "metric": (metrics or {}).get(method, 0.5)}
            one = record(method, "agnews", "low", seconds=seconds, validation_examples=500, **changes)
            file = write_run(tmp_path / method, one)
            made.append(Full(load([file])[0][0], 0.001, "python main.py ..."))
        return made

    return make


def methods(full: list[Full], scarce) -> list[str]:
    return [one.method for one in rank(full, scarce)]


def test_quality_is_the_validation_loss_and_never_the_test_metric(full):
    runs = full({"lora": 0.1, "full": 0.99}, lora=([0.5], 10.0), full=([0.6], 10.0), ia3=([0.9], 10.0))
    assert methods(runs, "quality") == ["lora", "full", "ia3"]
    (section,) = document("quality", [], runs, {}, []).sections
    facts = dict(section.facts)
    assert facts["use"] == "LoRA" and "Full Tuning has 0.9900 there; that chooses nothing" in facts["mind"]


def test_time_is_seconds_until_good_enough_and_a_quick_one_that_learned_nothing_comes_last(full):
    runs = full(
        lora=([0.9, 0.54, 0.5, 0.5], 40.0),  # good enough, at most 0.55, after the second of four epochs: 20 s
        full=([0.55, 0.7], 36.0),  # after the first of two: 18 s
        prompt=([3.0], 1.0),
    )
    assert methods(runs, "time") == ["full", "lora", "prompt"]
    assert [one.seconds for one in rank(runs, "time")] == [18.0, 20.0, None]
    assert [one.good_enough for one in rank(runs, "time")] == [True, True, False]


def test_memory_is_parameters_among_those_that_are_good_enough(full):
    runs = full(lora=([0.5], 1.0), bitfit=([0.54], 1.0), ia3=([0.6], 1.0), full=([0.52], 1.0))
    assert methods(runs, "memory") == ["bitfit", "lora", "full", "ia3"]


def test_losses_that_one_seed_can_not_tell_apart_are_ties(full):
    runs = full(lora=([0.500], 1.0), ia3=([0.509], 1.0), full=([0.511], 1.0))
    assert [one.tied for one in rank(runs, "quality")] == [False, True, False]
    (section,) = document("quality", [], runs, {}, []).sections
    assert "smallest of these is (IA)³" in dict(section.facts)["ties"]


def test_a_small_method_that_solves_the_task_is_good_enough_beside_a_perfect_one(full):
    assert methods(full(full=([0.004], 1.0), ia3=([0.04], 1.0), prompt=([0.9], 1.0)), "memory") == [
        "ia3",
        "full",
        "prompt",
    ]


def test_near_zero_a_hair_is_a_tie_too(full):
    assert [one.tied for one in rank(full(lora=([0.001], 1.0), ia3=([0.004], 1.0)), "quality")] == [False, True]


def test_a_rate_at_the_edge_of_those_tried_and_what_is_left_out_are_said(full):
    tried = [Short("lora", factor, rate, 1.0) for factor, rate in ((1 / 3, 0.0003), (1.0, 0.0005), (3.0, 0.001))]
    remarks = as_data("quality", tried, full(lora=([0.5], 1.0)), {}, ["no time"])["remarks"]
    assert remarks[0] == "no time" and remarks[1].startswith("the learning rate of LoRA, 0.001, is the highest tried")
    (section,) = document("quality", tried, full(lora=([0.5], 1.0)), {"ia3": "it failed"}, []).sections
    assert "(IA)³ is left out: it failed" in section.cautions


def test_the_adapter_is_beside_the_result(full, tmp_path):
    data = as_data("quality", [], full(lora=([0.5], 1.0)), {}, [])
    assert Path(data["adapter"]) == tmp_path / "lora/adapter"
