"""The verdicts on the paper's findings, for its own numbers, changed numbers and results with missing cells."""

import dataclasses
from collections.abc import Callable, Mapping

import pytest

from jpeft.report.findings import Finding, findings, more, verdict
from jpeft.report.groups import Group, Key, Spread, published_group


def asked(group: Group) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings(group)}


def changed(cells: Mapping[Key, Mapping[str, Spread]]) -> Group:
    """The paper's numbers as another model's results, with some cells changed."""
    paper = published_group()
    new = {**paper.cells, **{key: dataclasses.replace(paper.cells[key], **change) for key, change in cells.items()}}
    return dataclasses.replace(paper, model="changed", cells=new)


def single(value: float) -> Spread:
    return Spread(value, None, 1, value, value)


def test_the_paper_itself():
    assert {name: finding.verdict for name, finding in asked(published_group()).items()} == {
        "convergence": "mostly holds",
        "layers": "mostly holds",
        "attention": "mostly holds",
        "half": "holds",
        "robustness": "mostly holds",
        "best": "holds",
    }
    assert "30 of 32" in asked(published_group())["convergence"].summary
    assert "LoRA 1.8 %, (IA)³ 9.1 %" in asked(published_group())["robustness"].summary


def test_without_cells_nothing_can_be_said():
    empty = dataclasses.replace(published_group(), model="empty", cells={})
    for finding in findings(empty):
        assert finding.verdict == "cannot be said" and finding.summary
        assert finding.of_paper  # the verdict for the paper is given as well


def test_full_tuning_that_is_slower_turns_the_first_finding():
    paper = published_group()
    slow = {key: {"total_seconds": single(1e6)} for key in paper.cells if key.method == "full"}
    found = asked(changed(slow))["convergence"]
    assert found.verdict == "does not hold" and "0 of 32" in found.summary


def test_seconds_to_the_best_loss_count_before_total_seconds():
    paper = published_group()
    quick = {
        key: {"seconds_to_best": single(1.0 if key.method == "full" else 0.5)}
        for key in paper.cells
        if not key.ablation
    }
    assert asked(changed(quick))["convergence"].verdict == "does not hold"


def ablated(ablation: str, metrics: dict[str, float], method: str = "ia3") -> dict[Key, dict[str, Spread]]:
    return {Key(method, task, "medium", ablation): {"metric": single(metric)} for task, metric in metrics.items()}


TASKS = ("agnews", "cola", "e2e", "samsum")


def test_early_layers_that_are_better_turn_the_second():
    assert asked(changed(ablated("early", dict.fromkeys(TASKS, 0.99))))["layers"].verdict == "does not hold"


def test_attention_that_falls_furthest_everywhere_holds():
    found = asked(changed(ablated("drop_attention", dict.fromkeys(TASKS, 0.01))))["attention"]
    assert found.verdict == "holds" and "16 of 16" in found.summary


def test_half_needs_one_half_that_does_on_every_task():
    spoilt = ablated("later", {"samsum": 0.41183 - 0.0001})  # just over 0.02 below all layers
    found = asked(changed(spoilt))["half"]
    assert found.verdict == "mixed" and "select later layers 3 of 4" in found.summary
    assert asked(changed(ablated("later", {"samsum": 0.41183})))["half"].verdict == "holds"  # 0.02 is still within


def test_lora_that_loses_more_turns_the_fifth():
    spoilt = ablated("drop_self_attention", dict.fromkeys(TASKS, 0.0), "lora")
    assert asked(changed(spoilt))["robustness"].verdict in ("does not hold", "mixed")
    assert "LoRA 17" in asked(changed(spoilt))["robustness"].summary


def test_one_method_that_is_best_everywhere_turns_the_last():
    best = {
        Key("bitfit", task, scale): {"metric": single(1.0)} for task in TASKS for scale in ("low", "medium", "high")
    }
    assert asked(changed(best))["best"].verdict == "does not hold"
    few = dataclasses.replace(changed(best), cells={k: c for k, c in changed(best).cells.items() if k.task == "cola"})
    assert asked(few)["best"].verdict == "cannot be said"  # a missing method might be best


def test_a_tie_is_nobodys_lead():
    tie = {Key(method, task, scale): {"metric": single(0.678)} for method in ("full", "ia3", "lora", "bitfit", "prompt")
           for task in TASKS for scale in ("low", "medium", "high")}  # fmt: skip
    found = asked(changed(tie))["best"]
    assert "12 ties" in found.summary and found.verdict != "holds"


def spread(mean: float, sd: float) -> Spread:
    return Spread(mean, sd, 3, mean - sd, mean + sd)


@pytest.mark.parametrize(
    ("one", "other", "outcome"),
    [
        (single(0.6), single(0.5), "yes"),
        (single(0.5), single(0.5), "no"),
        (None, single(0.5), "cannot be said"),
        (spread(0.6, 0.03), spread(0.5, 0.04), "yes"),  # 0.1 apart, spread 0.05
        (spread(0.54, 0.03), spread(0.5, 0.04), "within the spread"),
        (spread(0.54, 0.03), single(0.5), "yes"),
        (spread(0.4, 0.03), spread(0.5, 0.04), "no"),
    ],
)
def test_a_comparison(one, other, outcome):
    assert more(one, other) == outcome


@pytest.mark.parametrize(
    ("outcomes", "says"),
    [
        (["yes"] * 4, "holds"),
        (["yes"] * 3 + ["no"], "mostly holds"),
        (["yes", "no"], "mixed"),
        (["no"] * 3 + ["yes"], "does not hold"),
        (["yes"] * 2 + ["cannot be said"] * 3, "cannot be said"),
        (["yes"] * 2 + ["within the spread"] * 3, "within the spread"),
        (["yes"] * 3 + ["within the spread"] * 2, "holds"),
    ],
)
def test_a_verdict(outcomes, says):
    assert verdict(outcomes) == says


def of_means(means: Callable[[Key], float], sd: float) -> Finding:
    cells = published_group().cells
    return asked(changed({key: {"metric": spread(means(key), sd)} for key in cells if not key.ablation}))["best"]


def test_leads_that_noise_explains_do_not_show_that_no_method_is_best():
    """As found: means of 0.500 to 0.512 with an sd of 0.1 over five seeds, the best another one at each scale."""
    first = {"low": "lora", "medium": "ia3", "high": "full"}
    noise = lambda key: 0.512 if key.method == first[key.scale] else 0.5
    assert of_means(noise, 0.1).verdict == "within the spread"
    assert of_means(noise, 0.001).verdict == "holds"


def test_one_clear_leader_is_not_best_everywhere_where_its_lead_is_within_the_spread():
    clear = lambda key: 0.9 if key.method == "lora" else 0.5
    but_cola = lambda key: 0.51 if (key.method, key.task) == ("lora", "cola") else clear(key)
    assert of_means(clear, 0.1).verdict == "does not hold"
    assert of_means(but_cola, 0.1).verdict == "within the spread"


def test_a_difference_within_the_spread_decides_nothing():
    wide = {Key("ia3", task, "medium", "later"): {"metric": spread(0.5, 0.9)} for task in TASKS}
    assert asked(changed(wide))["layers"].verdict == "within the spread"


def test_cells_of_runs_are_asked_in_the_same_way(mini):
    found = asked(mini)
    assert found["attention"].verdict == "mostly holds" and found["half"].verdict == "holds"
