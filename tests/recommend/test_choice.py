"""The end of a search: full runs ranked by what is scarce."""

import dataclasses
from pathlib import Path

import pytest

from jpeft.judging import Baseline
from jpeft.recommend.choice import Choice, FullRun, Short, rank_full_runs
from jpeft.report.records import load
from jpeft.results import Uncertainty
from tests.report.synthetic import record, write_run


@pytest.fixture
def full(tmp_path):
    """Full runs, from `{method: (validation losses by epoch, train seconds)}`; a hundredth of them validation."""

    def make(metrics: dict[str, float] | None = None, **runs: tuple[list[float], float]) -> list[FullRun]:
        made = []
        for method, (losses, train) in runs.items():
            seconds = {"total": train, "train": train, "validation": 0.0, "test": 0.0, "compile": 0.0}
            seconds["zero_shot"] = 1.0
            changes = {"validation_losses": losses, "validation_loss": min(losses), "epochs_run": len(losses)}
            changes |= {"best_epoch": losses.index(min(losses)), "metric": (metrics or {}).get(method, 0.5)}
            one = record(method, "agnews", "low", seconds=seconds, validation_examples=500, **changes)
            file = write_run(tmp_path / method, one)
            made.append(FullRun(load([file])[0][0], 0.001, "python main.py ..."))
        return made

    return make


def methods(full: list[FullRun], scarce) -> list[str]:
    return [one.method for one in rank_full_runs(full, scarce)]


def test_quality_is_the_validation_loss_and_never_the_test_metric(full):
    runs = full({"lora": 0.4, "full": 0.99}, lora=([0.5], 10.0), full=([0.6], 10.0), ia3=([0.9], 10.0))
    assert methods(runs, "quality") == ["lora", "full", "ia3"]
    (section,) = Choice("quality", [], runs).document().sections
    facts = dict(section.facts)
    assert facts["use"] == "LoRA" and "Full Tuning has 0.9900 there; that chooses nothing" in facts["mind"]


def test_time_is_seconds_until_good_enough_and_a_quick_one_that_learned_nothing_comes_last(full):
    runs = full(
        lora=([0.9, 0.54, 0.5, 0.5], 40.0),  # good enough, at most 0.55, after the second of four epochs: 20 s
        full=([0.55, 0.7], 36.0),  # after the first of two: 18 s
        prompt=([3.0], 1.0),
    )
    assert methods(runs, "time") == ["full", "lora", "prompt"]
    assert [one.seconds for one in rank_full_runs(runs, "time")] == [18.0, 20.0, None]
    assert [one.good_enough for one in rank_full_runs(runs, "time")] == [True, True, False]


def test_a_run_whose_seconds_are_not_known_is_not_called_the_fastest(full):
    """Its losses by epoch have none as low as its own, which no run writes."""
    (slow, unknown) = full(lora=([0.5], 40.0), ia3=([0.51], 10.0))
    broken = FullRun(dataclasses.replace(unknown.result, validation_losses=(9.0,)), 0.001, "")
    with pytest.raises(AssertionError, match="good enough"):
        rank_full_runs([slow, broken], "time")
    assert methods([slow, broken], "memory") == ["ia3", "lora"]


def test_memory_is_parameters_among_those_that_are_good_enough(full):
    runs = full(lora=([0.5], 1.0), bitfit=([0.54], 1.0), ia3=([0.6], 1.0), full=([0.52], 1.0))
    assert methods(runs, "memory") == ["bitfit", "lora", "full", "ia3"]


def test_losses_that_one_seed_can_not_tell_apart_are_ties(full):
    runs = full(lora=([0.500], 1.0), ia3=([0.509], 1.0), full=([0.511], 1.0))
    assert [one.tied for one in rank_full_runs(runs, "quality")] == [False, True, False]
    (section,) = Choice("quality", [], runs).document().sections
    assert "smallest of these is (IA)³" in dict(section.facts)["ties"]


def test_a_small_method_that_solves_the_task_is_good_enough_beside_a_perfect_one(full):
    assert methods(full(full=([0.004], 1.0), ia3=([0.04], 1.0), prompt=([0.9], 1.0)), "memory") == [
        "ia3",
        "full",
        "prompt",
    ]


def test_near_zero_a_hair_is_a_tie_too(full):
    assert [one.tied for one in rank_full_runs(full(lora=([0.001], 1.0), ia3=([0.004], 1.0)), "quality")] == [
        False,
        True,
    ]


def test_a_rate_at_the_edge_of_those_tried_and_what_is_left_out_are_said(full):
    rates = ((1 / 3, 0.0003), (1.0, 0.0005), (3.0, 0.001))
    tried = [Short("lora", factor, rate, 8, 4, 1.0, rate == 0.001, "") for factor, rate in rates]
    made = Choice("quality", tried, full(lora=([0.5], 1.0)), {"ia3": "it failed"}, ["no time"])
    remarks = made.as_data()["remarks"]
    assert remarks[0] == "no time" and remarks[1].startswith("the learning rate of LoRA, 0.001, is the highest tried")
    (section,) = made.document().sections
    assert "(IA)³ is left out: it failed" in section.cautions


def test_the_adapter_is_beside_the_result(full, tmp_path):
    data = Choice("quality", [], full(lora=([0.5], 1.0))).as_data()
    assert Path(data["adapter"]) == tmp_path / "lora/adapter"


# --- an answer that learned nothing is not an answer ---

LABELS = Baseline(loss=0.69, label="yes", share=0.5)


def choice(full: list[FullRun], baseline: Baseline | None = LABELS, **changes) -> Choice:
    tried = [Short(one.result.method, 1.0, one.learning_rate, None, 4, 0.2, True, "") for one in full]
    return Choice("quality", tried, full, baseline=baseline, **changes)


def test_a_loss_that_label_shares_have_too_is_no_answer(full):
    made = choice(full({"full": 0.0}, full=([1.672], 10.0)))
    data = made.as_data()
    assert data["use"] is None and data["adapter"] is None and data["command"] is None
    assert "1.6720, is no lower than the 0.6900 of giving each label its share" in data["nothing_learned"][0]
    assert "no higher than the 0.5000 of always answering 'yes'" in data["nothing_learned"][1]
    assert any("train longer" in step for step in data["what_to_do"])
    # A budget is named where there was one, whatever else was not tried.
    for on_a_budget in (False, True):
        limited = choice(full({"full": 0.0}, full=([1.672], 10.0)), remarks=["left out"], on_a_budget=on_a_budget)
        assert ("--budget" in " ".join(limited.what_to_do())) == on_a_budget
    facts = made.document().sections[0].facts
    assert facts[0] == ("use", "none of these: the best, Full Tuning, has learned nothing that shows")


def test_a_loss_that_ties_with_label_shares_is_none_either(full):
    assert choice(full({"lora": 0.6}, lora=([0.685], 1.0))).nothing_learned
    assert not choice(full({"lora": 0.6}, lora=([0.6], 1.0))).nothing_learned


@pytest.mark.parametrize(("metric", "answer"), [(0.49, False), (0.5, False), (0.51, True)])
def test_no_more_right_answers_than_the_majority_has_is_no_answer(full, metric, answer):
    assert bool(choice(full({"lora": metric}, lora=([0.4], 1.0))).nothing_learned) != answer


def test_no_better_than_the_untuned_model_is_no_answer(full):
    runs = full({"lora": 0.31, "full": 0.32}, lora=([0.5], 10.0), full=([0.55], 10.0))  # full's record has 0.31 untuned
    assert choice(runs, None).nothing_learned == [
        "its accuracy, 0.3100 on 2,500 test rows, is no higher than the 0.3100 of the untuned model"
    ]


def test_a_prompts_run_tells_what_the_untuned_model_does_as_any_other(full):
    (run,) = full(prompt=([0.5], 10.0))
    tested = FullRun(dataclasses.replace(run.result, zero_shot={"accuracy": 0.5}), run.learning_rate, run.command)
    made = choice([tested], None)
    assert made.untuned == 0.5 and made.nothing_learned


def test_a_few_test_rows_are_a_caution_alone(full):
    (run,) = full({"lora": 0.5}, lora=([0.3], 1.0))
    few = FullRun(dataclasses.replace(run.result, test_examples=12), run.learning_rate, run.command)
    made = choice([few])
    assert not made.nothing_learned and any("so few test rows" in text for text in made.as_data()["remarks"])


def test_a_full_run_that_ended_worse_than_its_short_one_is_said(full):
    made = choice(full({"lora": 0.9}, lora=([0.4], 1.0)))
    assert any(
        "ended worse in full, 0.4000, than in its short run, 0.2000" in text for text in made.as_data()["remarks"]
    )


def test_every_short_run_is_explained(full):
    tried = [
        Short("lora", 3.0, 0.03, 8, 4, 0.195, False, "a tie: × 1 is nearer"),
        Short("lora", 1.0, 0.01, 8, 4, 0.1976, True, "own"),
    ]
    (section,) = Choice("quality", tried, full(lora=([0.19], 1.0))).document().sections
    table = section.tables()[0]
    assert [[value.value for value in row] for row in table.rows] == [
        ["LoRA, rank 8", "0.01", "× 1", 4, 0.1976, "chosen: own"],
        ["LoRA, rank 8", "0.03", "× 3", 4, 0.195, "a tie: × 1 is nearer"],
    ]


def test_the_metric_stands_beside_its_standard_error_and_what_is_had_without_learning(full):
    (run,) = full({"lora": 0.8}, lora=([0.3], 1.0))
    trust = Uncertainty("accuracy", 0.008, (0.78, 0.82), "wilson", 2500)
    run = FullRun(dataclasses.replace(run.result, uncertainty=trust), run.learning_rate, run.command)
    facts = dict(choice([run]).document().sections[0].facts)
    assert facts["test"].startswith("accuracy 0.8000 ± 0.0080 (standard error) on 2,500 rows")
    assert facts["test"].endswith("always 'yes' 0.5000")


def test_an_answer_with_nothing_to_compare_it_with_is_said(full):
    said = choice(full({"lora": 0.1}, lora=([0.4], 1.0)), None).as_data()
    assert said["use"] == "lora" and any("the untuned model was not tested" in text for text in said["remarks"])
