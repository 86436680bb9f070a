"""What a run of jpeft 0.1.0 left (tests/golden/runs_0_1_0, four cells made by its code) is read by today's jpeft."""

import json
import shutil
from pathlib import Path

import pytest

from jpeft.cli import main
from jpeft.config import Run, of_any_version
from jpeft.files import read_json_object
from jpeft.predict.answer_source import task_of
from jpeft.report.records import load
from jpeft.typed_config import differences

OLD = Path(__file__).parent / "golden/runs_0_1_0"
METRICS = {
    "ia3_agnews_low_seed0": ("accuracy", 0.0),
    "ia3_samsum_low_seed0": ("rouge_l", 0.0842),
    "lora_agnews_low_seed0": ("accuracy", 0.0),
    "lora_samsum_low_seed0": ("rouge_l", 0.0507),
}
ASKED = {"data.source": "sample", "data.max_train": 8, "data.max_validation": 8, "data.max_test": 8}
ASKED |= {"train.max_epochs": 1}


@pytest.fixture
def old(tmp_path):
    """The four cells in a directory that may be written to."""
    return shutil.copytree(OLD, tmp_path / "runs")


def states(workdir, capsys, **changes):
    keys = [f"--config.{key}={value}" for key, value in {**ASKED, **changes}.items()]
    which = ["--methods=lora,ia3", "--tasks=agnews,samsum", "--scales=low", "--ablations=none"]
    assert main(["grid", "--config=mini", f"--workdir={workdir}", *which, "--dry-run", "--json", *keys]) == 0
    return {c["cell"]: (c["state"], c["detail"]) for c in json.loads(capsys.readouterr().out)["cells"]}


def test_its_grid_is_done_for_todays(old, capsys):
    expected = {cell: ("done", f"{name} {value:.4f}") for cell, (name, value) in METRICS.items()}
    assert states(old, capsys) == expected


@pytest.mark.parametrize(
    ("key", "value", "was"),
    [
        ("train.patience", 4, "train.patience: 3 -> 4"),  # it had the key
        ("eval.metrics", "accuracy", "eval.metrics: None -> 'accuracy'"),  # it did not: what it did is the default
    ],
)
def test_another_value_makes_it_stale_whether_it_had_the_key_or_not(key, value, was, old, capsys):
    found = states(old, capsys, **{key: value})
    assert {state for state, _ in found.values()} == {"stale"}
    assert all(was in detail for _, detail in found.values())


def test_its_results_are_reported_with_what_it_lacks_left_open(old, capsys):
    results, problems = load([old])
    assert not problems and {r.path.parent.name: r.metric_name for r in results} == {
        cell: name for cell, (name, _) in METRICS.items()
    }
    assert all(r.data_digest is None and r.uncertainty is None and r.settings for r in results)
    assert main(["report", str(old)]) == 0
    tables = capsys.readouterr().out
    assert "0.0842" in tables and "0.0507" in tables


def test_its_config_is_a_config_of_today():
    config = read_json_object(OLD / "ia3_samsum_low_seed0/config.json")
    run = Run.from_config(config)
    filled = of_any_version(config, run.to_dict())
    assert filled["eval"]["answer"] == "generate" and filled["train"]["label_smoothing"] == 0
    assert differences(filled, run.to_dict()) == []


def test_its_adapter_is_known_by_its_run(old):
    """It wrote no task.json: whoever answers by it learns from config.json and result.json how its test did."""
    task = task_of(old / "ia3_agnews_low_seed0/adapter")
    assert task is not None and task.labels == ("World", "Sports", "Business", "Sci/Tech")
    assert (task.answer, task.metrics, task.max_target_length) == ("generate", (), 8)


@pytest.mark.slow
def test_its_adapter_answers(old, capsys):
    assert main(["predict", "--adapter", str(old / "ia3_agnews_low_seed0"), "stocks fell", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["prediction"] in ("World", "Sports", "Business", "Sci/Tech")
