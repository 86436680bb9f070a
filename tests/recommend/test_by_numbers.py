"""`jpeft recommend` by numbers that exist: the paper's, and those of runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jpeft.cli import main
from jpeft.recommend.by_numbers import TASKS_OF, Recommendation, recommend, scale_of
from jpeft.report.groups import group, published_group
from jpeft.report.ranking import Scarce
from jpeft.report.records import load
from tests.report.synthetic import custom, record, write_run


def asked(capsys, *arguments: str) -> dict:
    assert main(["recommend", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def of_paper(task: str, scale: str, scarce: Scarce) -> Recommendation:
    return recommend(published_group(), TASKS_OF.get(task, (task,)), scale, scarce)


def order(found: Recommendation) -> list[str]:
    return [ranked.method for ranked in found.case.placed]


@pytest.mark.parametrize(
    ("task", "scale", "scarce", "expected"),
    [
        ("agnews", "low", "quality", ["bitfit", "lora", "full", "ia3", "prompt"]),  # 0.8808 0.8612 0.8588 0.67 0.60684
        ("cola", "medium", "time", ["bitfit", "ia3", "full", "prompt", "lora"]),  # 507, 537, 608 ... seconds
        ("cola", "low", "memory", ["ia3", "bitfit", "lora", "full"]),  # 0.0746 0.06106 0.0216 of Table 5
        ("samsum", "high", "quality", ["ia3", "lora", "full", "bitfit", "prompt"]),
        ("classification", "low", "quality", ["lora", "bitfit", "full", "ia3", "prompt"]),  # means 0.8128, 0.8006 ...
    ],
)
def test_the_published_numbers_rank(task, scale, scarce, expected):
    assert order(of_paper(task, scale, scarce)) == expected


@pytest.mark.parametrize(
    ("task", "scale", "scarce", "verdict"),
    [
        ("classification", "low", "time", "agrees"),
        ("cola", "medium", "time", "disagrees"),  # BitFit and (IA)³ are quicker than full tuning
        ("cola", "high", "quality", "disagrees"),  # LoRA 0.8333, full tuning 0.8142
        ("samsum", "high", "quality", "agrees within a tie"),  # (IA)³ 0.43998, full tuning 0.43356
        ("agnews", "high", "time", "cannot be said"),  # no run times are published at high scale
    ],
)
def test_it_says_where_the_papers_sentence_and_its_numbers_part(task, scale, scarce, verdict):
    found = of_paper(task, scale, scarce)
    assert found.paper.verdict == verdict and "section 3.2 says" in found.paper.line


def test_a_method_that_the_sentence_names_but_the_numbers_put_low_is_named():
    assert "(IA)³ at place 4" in of_paper("agnews", "low", "quality").paper.line


def test_what_the_paper_does_not_print_is_missing_and_not_made_up():
    memory = of_paper("agnews", "low", "memory")
    assert order(memory) == ["bitfit", "ia3", "lora", "full"]
    reasons = dict(memory.reasons)
    assert "leaves Prompt Tune out of Table 5" in reasons["missing"] and "0.2963" in reasons["missing"]
    time = of_paper("agnews", "high", "time")
    assert not time.case.placed and time.answer.startswith("cannot be said")
    ranking, further = of_paper("agnews", "low", "time").tables
    seconds, minutes = ({str(row[-3].value): row[-2].value for row in ranking.rows}, further.rows)
    assert seconds["Prompt Tune"] == 6797
    assert {str(row[0].value): row[1].value is None for row in minutes}["Prompt Tune"]  # Table 6 leaves it out


def test_differences_of_a_hundredth_are_ties():
    assert of_paper("samsum", "high", "quality").case.ties == ["lora", "full", "bitfit"]
    assert of_paper("agnews", "low", "quality").case.ties == []  # 0.0196 ahead


def test_a_first_place_far_behind_in_quality_is_cautioned():
    (caution,) = of_paper("classification", "low", "memory").cautions
    assert caution.startswith("(IA)³ is first, but its metric on AG News is 0.2108 below") and "BitFit" in caution


@pytest.mark.parametrize(
    ("examples", "scale", "extrapolates"),
    [(1, "low", False), (100, "low", False), (101, "medium", False), (10_000, "high", False), (10_001, "high", True)],
)
def test_a_number_of_examples_falls_into_a_scale(examples, scale, extrapolates):
    found, remark = scale_of(examples)
    assert found == scale and ("extrapolates" in remark) == extrapolates


def test_beyond_the_largest_scale_it_says_that_it_extrapolates(capsys):
    assert main(["recommend", "--task=e2e", "--examples=40000", "--scarce=quality"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "40,000 examples are more than the 10,000" in shown and "extrapolates" in shown


def test_all_three_are_shown_unless_one_is_named(capsys):
    assert [one["scarce"] for one in asked(capsys, "--task=e2e", "--examples=9")["recommendations"]] == [
        "quality",
        "time",
        "memory",
    ]


# --- own runs ---


def write_own(root: Path, metrics: dict[str, list[float]], **changes) -> None:
    """Runs of a task, a metric for each seed."""
    for method, by_seed in metrics.items():
        for seed, metric in enumerate(by_seed):
            one = record(method, "agnews", "low", seed=seed, metric=metric, **changes)
            write_run(root / f"{changes.get('model', 'mini')}_{method}_{seed}".replace("/", "_"), one)


def test_own_runs_rank_by_their_means_and_tie_within_their_spread(tmp_path, capsys):
    metrics = {"lora": [0.80, 0.84], "ia3": [0.81, 0.82], "full": [0.5, 0.5], "bitfit": [0.70, 0.71]}
    write_own(tmp_path, metrics)
    data = asked(capsys, "--task=agnews", "--examples=50", "--scarce=quality", f"--runs={tmp_path}")
    (found,) = data["recommendations"]
    assert [one["method"] for one in found["ranking"]] == ["lora", "ia3", "bitfit", "full", "prompt"]
    assert found["ties"] == ["ia3"] and found["model"] == "mini"
    lora, *_, prompt = found["ranking"]
    assert lora["metric"]["agnews"]["mean"] == pytest.approx(0.82) and lora["metric"]["agnews"]["seeds"] == 2
    assert prompt["place"] is None and prompt["metric"]["agnews"] is None
    assert "Prompt Tune: not ranked" in found["reasons"]["missing"]


def test_models_are_never_mixed(tmp_path, capsys):
    write_own(tmp_path, {"lora": [0.9], "full": [0.8]}, model="mini")
    write_own(tmp_path, {"lora": [0.1], "full": [0.2]}, model="other")
    data = asked(capsys, "--task=agnews", "--examples=50", "--scarce=quality", f"--runs={tmp_path}")
    assert {one["model"]: one["use"] for one in data["recommendations"]} == {"mini": "lora", "other": "full"}


def test_own_time_is_to_the_best_epoch_and_own_memory_shows_files_and_peak(tmp_path, capsys):
    seconds = {"total": 999.0, "train": 80.0, "validation": 20.0, "test": 5.0, "compile": 1.0}
    run = record("lora", "agnews", "low", seconds=seconds, best_epoch=1, epochs_run=10, adapter_bytes=7_000_000)
    write_run(tmp_path / "a", run)
    (found,) = asked(capsys, "--task=agnews", "--examples=50", "--scarce=time", f"--runs={tmp_path}")["recommendations"]
    assert found["ranking"][0]["by_task"]["agnews"]["mean"] == pytest.approx(20.0)
    assert main(["recommend", "--task=agnews", "--examples=50", "--scarce=memory", f"--runs={tmp_path}"]) == 0
    shown = capsys.readouterr().out
    assert "7.00 MB" in shown and "1.59 GB" in shown and "3,538,944" in shown


def write_matthews(root: Path, metrics: dict[str, tuple[float, int]]) -> None:
    """A run on CoLA for each method: its Matthews correlation, which may be negative, and its trainable parameters."""
    for method, (metric, parameters) in metrics.items():
        one = record(method, "cola", "low", trainable_parameters=parameters, metric_name="matthews_correlation")
        write_run(root / method, one | {"metric": metric, "metrics": {"matthews_correlation": metric}})


def by_memory(root: Path) -> Recommendation:
    (only,) = group(load([root])[0])
    return recommend(only, ["cola"], "low", "memory")


@pytest.mark.parametrize("worst", [-0.10, 0.0])
def test_a_metric_that_is_not_above_0_has_no_place_by_metric_for_each_parameter(worst, tmp_path):
    metrics = {"bitfit": (worst, 10_000), "lora": (0.2, 50_000), "ia3": (0.1, 10_000), "full": (-0.3, 70_000)}
    write_matthews(tmp_path, metrics)
    found = by_memory(tmp_path)
    assert order(found) == ["ia3", "lora"]
    assert dict(found.reasons)["not above 0"] == (
        "Full Tuning and BitFit: not ranked, the metric on CoLA is not above 0: metric per 100,000 parameters says "
        "nothing there"
    )
    assert dict(found.reasons)["missing"] == "Prompt Tune: not ranked, a number is missing"


def test_without_any_metric_above_0_there_is_nothing_to_say_of_memory_and_the_reason_is_the_true_one(tmp_path):
    write_matthews(tmp_path, {"bitfit": (-0.10, 10_000), "lora": (-0.001, 50_000), "full": (0.0, 70_000)})
    found = by_memory(tmp_path)
    assert not found.case.placed and found.paper.verdict == "cannot be said"
    assert found.answer == (
        "cannot be said: no metric per 100,000 parameters for every task at low scale (Full Tuning, LoRA and BitFit: "
        "not ranked, the metric on CoLA is not above 0: metric per 100,000 parameters says nothing there; (IA)³ and "
        "Prompt Tune: not ranked, a number is missing)"
    )


def test_by_quality_a_negative_metric_is_a_metric_like_any(tmp_path):
    write_matthews(tmp_path, {"bitfit": (-0.10, 10_000), "lora": (-0.001, 50_000), "full": (0.0, 70_000)})
    (only,) = group(load([tmp_path])[0])
    assert order(recommend(only, ["cola"], "low", "quality")) == ["full", "lora", "bitfit"]


@pytest.mark.parametrize(
    ("name", "metrics", "ties", "far"),
    [
        ("bleu", {"lora": 30.2, "ia3": 30.0, "full": 25.0, "bitfit": 10.0}, ["ia3"], {"bitfit"}),
        ("mine:score", {"lora": 5000.0, "ia3": 4960.0, "full": 4600.0, "bitfit": 4000.0}, ["ia3"], {"bitfit"}),
        ("accuracy", {"lora": 0.8, "ia3": 0.795, "full": 0.75, "bitfit": 0.6}, ["ia3"], {"bitfit"}),
    ],
)
def test_what_is_close_and_what_is_far_is_told_by_the_metrics_own_range(name, metrics, ties, far, tmp_path):
    for method, metric in metrics.items():
        made = {"data_digest": "ab" * 32, "metric_name": name, "metrics": {name: metric}, "zero_shot": None}
        file = custom(tmp_path, method, method=method, **made)
        file.write_text(json.dumps({**json.loads(file.read_text()), "metric": metric, "metrics": {name: metric}}))
    found, problems = load([tmp_path])
    ((only,),) = [one.by_data() for one in group(found)]
    case = recommend(only, ["custom"], "all", "quality").case
    assert not problems and case.ties == ties
    assert {ranked.method for ranked in case.placed if ranked.far_behind} == far


def test_methods_that_are_there_in_another_reading_are_named(tmp_path, capsys):
    for method, reading in (("lora", "official"), ("ia3", "paper")):
        custom(tmp_path, method, method=method, reading=reading, data_digest="ab" * 32)
    data = asked(capsys, "--task=custom", "--scarce=quality", f"--runs={tmp_path}")
    assert {one["reading"]: one["cautions"][-1] for one in data["recommendations"]} == {
        "official": "(IA)³: there are runs in the paper reading, not compared with these of the official one; run it "
        "with --config.method.reading=official to compare.",
        "paper": "LoRA: there are runs in the official reading, not compared with these of the paper one; run it with "
        "--config.method.reading=paper to compare.",
    }


def test_generated_rows_are_cautioned(tmp_path):
    write_own(tmp_path, {"lora": [0.9]}, source="sample")
    (only,) = group(load([tmp_path])[0])
    assert any(
        "say nothing about a model or a method" in text
        for text in recommend(only, ["agnews"], "low", "quality").cautions
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name a task and the rows that you have"),
        (["--task=agnews"], "--examples is missing"),
        (["--task=agnws", "--examples=5"], "expected one of classification, generation, agnews"),
        (["--task=custom", "--examples=5"], "--task custom needs --runs with runs on your rows; or give the rows"),
        (["--task=agnews", "--examples=0"], "argument --examples: 0 is not from 1 to"),
        (["--task=agnews", "--examples=5", "--runs=there/is/nothing"], "does not exist"),
        (["--task=agnews", "--examples=5", "--config.train.seed=1"], "--config.train.seed is for a search only"),
    ],
)
def test_a_wrong_call_is_one_line(arguments, says, capsys):
    try:
        status = main(["recommend", *arguments])
    except SystemExit as ended:  # what argparse itself finds
        status = ended.code
    line = capsys.readouterr().err
    assert status == 2 and says in line and line.startswith("error: ") and line.count("\n") == 1


def test_runs_without_such_a_cell_are_a_wrong_call(tmp_path, capsys):
    write_own(tmp_path, {"lora": [0.9]})
    assert main(["recommend", "--task=agnews", "--examples=5000", f"--runs={tmp_path}"]) == 2
    assert "no results for AG News, 5,000 examples: high scale" in capsys.readouterr().err
    assert main(["recommend", "--task=cola", "--examples=50", f"--runs={tmp_path}"]) == 2
    assert "the results are of agnews" in capsys.readouterr().err


def test_jax_is_not_loaded(tmp_path):
    write_own(tmp_path, {"lora": [0.9]})
    program = (
        "import sys; from jpeft.cli import main; "
        "status = main(['recommend', '--task=generation', '--examples=80']) or "
        f"main(['recommend', '--task=agnews', '--examples=80', '--runs', {str(tmp_path)!r}]); "
        "assert status == 0 and 'jax' not in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
