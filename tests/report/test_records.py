"""Finding and reading result files; unusable ones are reported with the reason."""

import dataclasses
import json
import os
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jpeft.errors import UserError
from jpeft.report.groups import group
from jpeft.report.records import load, training_curve
from jpeft.results import Uncertainty
from tests.report.synthetic import custom, record, write_run


def test_a_directory_of_many_runs_is_searched(grid):
    results, problems = load([grid])
    assert len(results) == 208 and not problems
    assert {result.seed for result in results} == {0, 1}


def test_a_directory_that_cannot_be_read_is_no_run_that_did_not_finish(tmp_path, monkeypatch):
    scandir, closed = os.scandir, tmp_path / "runs/closed"

    def refuse(path):
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    (tmp_path / "runs/begun").mkdir(parents=True)
    closed.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / "runs/begun" / name).write_text("{}")
    with pytest.raises(UserError, match=r"name directories of finished runs\. 1 run there did not finish"):
        load([tmp_path / "runs"])
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=rf"was found under .*runs: {closed} cannot be read \(Permission denied\)\.$"):
        load([tmp_path / "runs"])


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
    assert result.seconds["train"] > 0 and result.path == file


def test_what_is_derived_from_a_result(tmp_path):
    seconds = {"total": 100.0, "train": 60.0, "validation": 20.0, "test": 15.0, "compile": 5.0}
    made = record(seconds=seconds, epochs_run=4, validation_losses=[0.5] * 4, best_epoch=2, train_examples=300)
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
        (changed()[:-300], "is not valid JSON"),
        (b"\xff\xfe\x00", "is not UTF-8"),
        ("[" * 100_000, "is nested more than"),
        ('{"a": ' * 70 + "1" + "}" * 70, "is nested more than"),
        ("[1, 2]", "holds a list; expected an object"),
        ("null", "holds null; expected an object"),
        ('{"metric": ' + "9" * 5000 + "}", "integer of thousands of digits"),
        ('{"steps": 3, "parameters": 9391680}', "of another program"),
        (without("source", "reading"), "lacks reading, source: of an older version"),
        (changed(status="failed", error="out of memory"), "status is 'failed': 'out of memory'"),
        (changed(metric=float("nan")), "holds NaN, which is not JSON"),
        (changed(uncertainty=3), "uncertainty is 3; expected standard_error"),
        (changed(uncertainty={"standard_error": 0.1, "interval": [0.1], "method": "x", "rows": 3}), "of two numbers"),
        (changed(data_digest=["a"]), "data_digest is ['a']; expected a name"),
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
        (" " * 5_000_000, "has 5,000,000 bytes; expected 4,194,304 at most"),
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


def test_results_of_different_rows_are_no_copies_of_each_other(tmp_path):
    for index in range(18):
        custom(tmp_path, str(index), path=f"/rows/file{index % 3}.jsonl", data_digest=f"{index:064x}"[::-1])
    results, problems = load([tmp_path])
    assert len(results) == 18 and not problems
    assert len({result.data for result in results}) == 18
    assert min(result.data for result in results) == "file0.jsonl 0000000"


def test_the_same_rows_at_another_path_are_one_cell(tmp_path):
    custom(tmp_path, "a", path="/here/rows.csv", data_digest="ab" * 32, seed=0)
    custom(tmp_path, "b", path="/there/rows.parquet", data_digest="ab" * 32, seed=1)
    (one, other), problems = load([tmp_path])
    assert one.data == other.data and not problems


def test_results_on_the_same_rows_by_different_metrics_are_never_averaged(tmp_path):
    custom(tmp_path, "a", data_digest="ab" * 32, seed=0, metric=0.5)
    custom(tmp_path, "b", data_digest="ab" * 32, seed=1, metric=0.9, metric_name="macro_f1")
    custom(tmp_path, "c", data_digest="cd" * 32)
    results, problems = load([tmp_path])
    assert not problems and {result.path.parent.name: result.data for result in results} == {
        "a": "mine.jsonl abababa by accuracy",
        "b": "mine.jsonl abababa by macro_f1",
        "c": "mine.jsonl cdcdcdc",
    }
    assert [cell.metric.count for one in group(results) for cell in one.cells.values() if cell.metric] == [1, 1, 1]


def test_a_mixture_is_named_by_all_of_its_files(tmp_path):
    part = {"validation_examples": 1, "test_examples": 1, "validation_loss": 0.5, "metrics": {"accuracy": 1.0}}
    custom(
        tmp_path, "mix", path="here/a.csv,there/b.csv", data_digest="ab" * 32, by_source={"a.csv": part, "b.csv": part}
    )
    assert [result.data for result in load([tmp_path])[0]] == ["a.csv,b.csv abababa"]


def test_the_lowest_loss_is_not_where_another_number_chose_the_adapter(tmp_path):
    seconds = {"total": 100.0, "train": 60.0, "validation": 20.0, "test": 15.0, "compile": 5.0}
    made = record(
        seconds=seconds, epochs_run=4, validation_losses=[0.5, 0.4, 0.2, 0.3], validation_loss=0.4, best_epoch=1
    )
    made |= {"monitor": "validation/accuracy", "validation_metrics": [{"accuracy": 0.5}] * 4}
    (result,), problems = load([write_run(tmp_path, made)])
    assert not problems and (result.lowest_loss_epoch, result.seconds_to_best) == (2, 60.0)


def test_without_a_digest_rows_are_told_apart_by_their_path_and_without_a_path_by_their_number(tmp_path):
    custom(tmp_path, "a", path="/x/rows.csv")
    custom(tmp_path, "b", path="/y/rows.csv")
    custom(tmp_path, "c", path="/y/other.csv")
    for name, rows in (("d", 40), ("e", 50)):
        custom(tmp_path, name, train_examples=rows).with_name("config.json").unlink()
    results, problems = load([tmp_path])
    assert not problems and sorted(result.data for result in results) == [
        "/x/rows.csv",
        "/y/rows.csv",
        "40 + 2500 + 2500 rows",
        "50 + 2500 + 2500 rows",
        "other.csv",
    ]


def test_results_of_one_cell_and_seed_with_other_settings_are_no_copies_either(tmp_path):
    for rank in (4, 8):
        custom(tmp_path, f"r{rank}", settings={"method.rank": rank}, data_digest="c" * 64)
    custom(tmp_path, "r8b", settings={"method.rank": 8}, seed=1, data_digest="c" * 64)
    custom(tmp_path, "copy", settings={"method.rank": 8}, data_digest="c" * 64, finished="2020-01-01T00:00:00+00:00")
    results, problems = load([tmp_path])
    assert sorted((result.setting, result.variant, result.seed) for result in results) == [
        ("rank 4", "rank 4", 0),
        ("rank 8", "", 0),
        ("rank 8", "", 1),
    ]
    assert [problem.path.parent.name for problem in problems] == ["copy"]


def test_a_key_that_an_earlier_version_had_not_is_no_other_setting(tmp_path):
    custom(tmp_path, "old", data_digest="c" * 64, finished="2020-01-01T00:00:00+00:00")
    custom(tmp_path, "new", settings={"data.options": "auto", "data.target": None}, data_digest="c" * 64)
    results, problems = load([tmp_path])
    assert len(results) == len(problems) == 1


def test_other_rows_of_a_benchmarks_task_stand_apart_and_those_without_a_digest_do_not(tmp_path):
    for seed, digest in enumerate(["a" * 64, "a" * 64, None, "b" * 64]):
        write_run(tmp_path / str(seed), record(seed=seed, data_digest=digest), curve=False)
    results, _ = load([tmp_path])
    assert [result.data for result in sorted(results, key=lambda one: one.seed)] == ["", "", "", "data bbbbbbb"]


def test_short_runs_of_a_search_are_left_out_in_one_line(tmp_path):
    for name in ("full_lora", "short_lora", "short_ia3"):
        custom(tmp_path / "search", name)
    (tmp_path / "search/search.json").write_text("{}")
    for name in ("config.json", "metrics.jsonl", "paused.json"):
        (tmp_path / "search/full_ia3").mkdir(exist_ok=True)
        (tmp_path / "search/full_ia3" / name).write_text("{}")
    (tmp_path / "search/full_lora/paused.json").write_text("{}")  # as a killed search may leave it
    results, problems = load([tmp_path])
    assert [result.path.parent.name for result in results] == ["full_lora"]
    assert [str(problem) for problem in problems] == [
        f"{tmp_path / 'search'}: 2 short runs of a search left out: each tests one row",
        f"{tmp_path / 'search'}: 1 waiting run of a search left out: not among the best",
    ]


def test_how_far_a_metric_may_be_trusted_is_read(tmp_path):
    trust = {"metric": "accuracy", "standard_error": None, "interval": [0.1, 0.9], "method": "wilson", "rows": 3}
    ((result,), _) = load([write_run(tmp_path, record(uncertainty=trust))])
    assert result.uncertainty == Uncertainty("accuracy", None, (0.1, 0.9), "wilson", 3)


def test_what_is_no_file_is_named_and_not_waited_for(tmp_path):
    write_run(tmp_path / "good", record(), curve=False)
    file = write_run(tmp_path / "bad", record(seed=1))
    for name in ("metrics.jsonl", "result.json"):
        file.with_name(name).unlink()
        os.mkfifo(file.with_name(name))
    results, problems = load([tmp_path, file])
    assert len(results) == 1 and len(problems) == 1
    assert training_curve(dataclasses.replace(results[0], path=file)) == []


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
