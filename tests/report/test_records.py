"""Result files are found, checked, and read or named with the reason."""

import json
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jpeft.errors import UserError
from jpeft.report.records import load, training_curve
from tests.report.synthetic import record, write_run


def test_a_directory_of_many_runs_is_searched(grid):
    results, problems = load([grid])
    assert len(results) == 208 and not problems
    assert {result.seed for result in results} == {0, 1}


def test_a_result_that_is_named_twice_counts_once(tmp_path):
    file = write_run(tmp_path / "runs/a", record())
    (tmp_path / "link").symlink_to(tmp_path / "runs/a")
    results, problems = load([tmp_path / "runs", file, tmp_path / "link"])
    assert len(results) == 1 and not problems


def test_a_result_has_what_its_file_says(tmp_path):
    file = write_run(tmp_path, record(method="ia3", task="e2e", ablation="later", seed=3, metric=0.4321))
    ((result,), _) = load([file])
    assert (result.method, result.ablation, result.task, result.scale, result.seed) == (
        "ia3",
        "later",
        "e2e",
        "medium",
        3,
    )
    assert result.metric == 0.4321 == result.metrics["rouge_l"]
    assert result.seconds.train > 0 and result.path == file


def test_what_is_derived_from_a_result(tmp_path):
    seconds = {"total": 100.0, "train": 60.0, "validation": 20.0, "test": 15.0, "compile": 5.0}
    made = record(seconds=seconds, epochs_run=4, best_epoch=2, train_examples=300)
    ((result,), _) = load([write_run(tmp_path, made)])
    assert result.examples_per_second == 20.0
    assert result.seconds_to_best == 60.0  # 80 s of training and validation, three of four epochs


def changed(**changes) -> str:
    return json.dumps({**record(), **changes})


def without(*names: str) -> str:
    return json.dumps({name: value for name, value in record().items() if name not in names})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is empty"),
        (changed()[:-300], "damaged or cut short"),
        (b"\xff\xfe\x00", "no text"),
        ("[" * 100_000, "damaged or cut short"),
        ("[1, 2]", "of another program"),
        ('{"steps": 3, "parameters": 9391680}', "of another program"),
        (without("source", "reading"), "lacks reading, source: of an older version"),
        (changed(status="failed", error="out of memory"), "status is 'failed': 'out of memory'"),
        (changed(metric=float("nan")), "metric is nan; expected a finite number"),
        (changed(metric=68.2, metrics={"accuracy": 68.2}), "metric is 68.2; expected 0 to 1"),
        (changed(metric=0.5), "not the same number"),
        (changed(metric="0.5"), "metric is '0.5'; expected a finite number"),
        (changed(seed=True), "seed is True; expected a whole number"),
        (changed(best_epoch=5), "best_epoch is 5 of 5 epochs"),
        (changed(seconds={"total": 3.0}), "expected seconds of total, train"),
        (
            changed(seconds=dict.fromkeys(("total", "train", "validation", "test", "compile"), -1.0)),
            "expected a finite number, 0",
        ),
        (changed(model="mini\x1b[31m"), "model is 'mini\\x1b[31m'; expected a name"),
        (changed(metric_name=None), "metric_name is None"),
        (" " * 5_000_000, "5,000,000 bytes"),
    ],
)
def test_a_file_that_can_not_be_used_is_named_and_left_out(content, reason, tmp_path):
    write_run(tmp_path / "good", record())
    bad = tmp_path / "bad/result.json"
    bad.parent.mkdir()
    bad.write_bytes(content if isinstance(content, bytes) else content.encode())
    results, problems = load([tmp_path])
    assert [result.path.parent.name for result in results] == ["good"]
    assert [problem.path for problem in problems] == [bad]
    assert reason in str(problems[0]) and str(problems[0]).isprintable()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(string.printable),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(name=st.sampled_from(sorted(record())), value=json_values)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_stands_under_a_key_it_is_read_or_named(name, value, tmp_path):
    file = tmp_path / "result.json"
    file.write_text(json.dumps({**record(), name: value}))
    results, problems = load([file])
    assert len(results) + len(problems) == 1


def test_a_run_that_has_not_finished_is_named(tmp_path):
    write_run(tmp_path / "done", record())
    write_run(tmp_path / "going", record(seed=1)).unlink()
    results, problems = load([tmp_path])
    assert len(results) == 1 and "has not finished" in str(problems[0]) and "going" in str(problems[0])


def test_a_copy_is_no_second_seed(tmp_path):
    write_run(tmp_path / "a", record(metric=0.5, finished="2026-11-24T02:00:00+00:00"))
    write_run(tmp_path / "b", record(metric=0.6, finished="2026-11-25T02:00:00+00:00"))
    results, problems = load([tmp_path])
    assert [result.metric for result in results] == [0.6]
    assert [problem.path.parent.name for problem in problems] == ["a"] and "same cell and seed" in str(problems[0])


def test_a_damaged_config_leaves_the_result(tmp_path):
    file = write_run(tmp_path, record())
    file.with_name("config.json").write_text("{")
    results, problems = load([tmp_path])
    assert results[0].settings is None and "config.json" in str(problems[0])


def test_seeds_of_one_config_share_their_settings(tmp_path):
    for seed in range(2):
        write_run(tmp_path / str(seed), record(seed=seed))
    (one, other), _ = load([tmp_path])
    assert one.settings is other.settings and ("train.batch_size", "16") in (one.settings or ())


def test_a_path_that_is_not_there_and_one_without_results_are_wrong_calls(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load([tmp_path / "nowhere"])
    with pytest.raises(UserError, match=r"no result\.json"):
        load([tmp_path])


def test_a_training_curve_is_thinned_and_forgives_a_broken_line(tmp_path):
    file = write_run(tmp_path, record())
    with file.with_name("metrics.jsonl").open("a") as log:
        log.write('{"epoch": 0, "validation_loss": 0.3}\n{"step": 250, "lo')
    ((result,), _) = load([file])
    curve = training_curve(result)
    assert len(curve) <= 120 and curve[0] == (2.0, pytest.approx((2.2 + 1.2 + 2 / 3 + 0.2) / 3))
    file.with_name("metrics.jsonl").unlink()
    assert training_curve(result) == []
