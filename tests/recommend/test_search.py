"""`jpeft recommend --data`: the search on rows of one's own. Plans are tested without training, the command with it."""

import csv
import itertools
import json
import os
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from jpeft.cli import main
from jpeft.config import Run, default_config
from jpeft.data.sample import sample_rows
from jpeft.errors import RunFailed, UserError
from jpeft.grid.cells import Cell
from jpeft.grid.state import CellState, State
from jpeft.judging import tie_limit
from jpeft.recommend.search import Request, search
from jpeft.recommend.trials import FACTORS, Attempt, Trial
from jpeft.results import PausedRecord, RunRecord
from tests.report.synthetic import record

ROOT = Path(__file__).parents[2]
BENCHMARK = ROOT / "configs/benchmark.py"
ROWS = {"train": 1000, "validation": 100, "test": 64}


# --- the plan ---


def configure(method: str, keys) -> Run:
    config = default_config()
    config.update_from_flattened_dict(
        {"method.name": method, "data.task": "custom", "data.path": "my.jsonl", "data.scale": "all", **keys}
    )
    return Run.from_config(config)


class Made:
    """Stands for the grid: makes up results, and remembers what was asked of it.

    A method's loss is lowest at one factor of its learning rate; a training row takes `row_seconds`.
    """

    def __init__(self, losses: dict[str, float], best_factor: float = 1.0, row_seconds: float = 0.01, failing=()):
        self.compile_seconds, self.said = 0.0, []
        self.losses, self.best_factor, self.row_seconds, self.failing = losses, best_factor, row_seconds, failing
        self.ran: list[str] = []
        self.cells: list = []
        self.epochs: dict[str, int] = {}  # that each run has trained
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def __call__(self, cells: Sequence, epochs: int | None) -> dict:
        return {cell: self._one(cell, epochs) for cell in cells}

    def runs(self, kind: str) -> list[Run]:
        return [cell.run for cell in self.cells if cell.config_name.startswith(kind)]

    def _one(self, cell, asked: int | None) -> CellState:
        self.cells.append(cell)
        run, method = cell.run, cell.run.method.name
        self.ran.append(cell.config_name)
        if method in self.failing or cell.config_name in self.failing:
            return CellState(State.FAILED, "the loss is nan")
        default = configure(method, {}).train.learning_rate.warmup or 0.0
        away = abs((run.train.learning_rate.warmup or 0.0) / default / self.best_factor - 1)
        rows, most = min(run.data.max_train or 10**9, ROWS["train"]), run.train.max_epochs or 0
        epochs, before = min(most, asked or most), self.epochs.get(cell.name, 0)
        self.epochs[cell.name] = max(before, epochs)
        loss = self.losses[method] + away + (0.02 if run.method.rank else 0.0)
        if epochs < most:
            self.now += rows * max(0, epochs - before) * self.row_seconds
            seconds = {"train": rows * epochs * self.row_seconds, "validation": 0.0, "test": 0.0, "compile": 0.0}
            seconds["zero_shot"] = 3.0
            paused = PausedRecord(
                validation_losses=(loss + 1.0,) * (epochs - 1) + (loss,),
                train_examples=rows,
                validation_examples=100,
                seconds={"total": seconds["train"], **seconds},
            )
            return CellState(State.MISSING, "goes on from its checkpoint", paused=paused)
        batches = -(-min(run.data.max_test, ROWS["test"]) // run.eval.batch_size) * (2 if run.eval.zero_shot else 1)
        seconds = {"train": rows * epochs * self.row_seconds, "validation": 0.0, "test": 0.1 * batches}
        seconds["compile"] = self.compile_seconds
        seconds["total"] = sum(seconds.values())
        self.now += seconds["total"] - rows * before * self.row_seconds
        result = record(
            metric=min(1.0, away),  # on test rows the worst rate does best: that must choose nothing
            validation_loss=loss,
            validation_losses=[loss] * epochs,
            seconds=seconds,
            train_examples=rows,
            validation_examples=100,
            best_epoch=0,
            epochs_run=epochs,
        )
        return CellState(State.DONE, "", RunRecord.of(result))


def ask(made: Made, workdir: Path, *, methods=("lora", "ia3", "full"), minutes: float | None = None):
    budget = None if minutes is None else 60.0 * minutes
    request = Request(methods, configure, workdir, ROWS, "rows", budget, report=made.said.append)
    return search(request, made, clock=made.clock)


LOSSES = {"lora": 0.3, "ia3": 0.2, "full": 0.9}
ALIKE = {"lora": 0.21, "ia3": 0.2, "full": 0.22}


def test_without_a_budget_the_best_of_each_method_goes_on_and_then_the_two_best_methods(tmp_path):
    made = Made(LOSSES, best_factor=3.0)
    found = ask(made, tmp_path)
    # Two rates of each method, since three times gains, and LoRA at another rank; 1,000 rows are 16 steps, so 2 epochs
    # and then 4 of 10.
    assert len(found.short) == 7 and [one.candidate.epochs for one in found.short].count(4) == 4
    assert sorted(made.epochs.values()) == [2] * 3 + [4] * 2 + [10] * 2
    assert [attempt.method for attempt in found.full] == ["ia3", "lora"]
    assert "after 4 epochs its validation loss, 0.9000, was neither" in found.left_out["full"]
    assert {attempt.factor for attempt in found.full} == {3.0}
    assert {attempt.cell.run.train.max_epochs for attempt in found.full} == {10}
    rates = found.full[0].cell.run.train.learning_rate  # initial and annealing keep their ratios to the peak
    assert (rates.initial, rates.warmup, rates.annealing) == (9e-4, 9e-3, 9e-4)
    assert any("2 full runs: up to 10 epochs on 1,000 rows" in line for line in made.said)


def test_from_look_to_look_half_of_what_is_left_goes_on_and_the_best_of_each_method(tmp_path):
    """With 32 steps an epoch the looks are after 1, 2 and 4 of 10 epochs."""
    made = Made({"ia3": 0.2, "bitfit": 0.25, "lora": 0.9, "full": 1.5, "prompt": 2.5}, best_factor=3.0)
    rows = {**ROWS, "train": 2000}
    request = Request(tuple(made.losses), configure, tmp_path, rows, "rows", report=made.said.append)
    found = search(request, made, clock=made.clock)
    # Two rates of each method for one epoch, no rank of LoRA, which is third. Five are the better half, and the best of
    # full and prompt tuning go on beside them; of these seven four, and those two again.
    assert "after 1, 2 and 4 of their epochs" in " ".join(made.said)
    stopped = {n: [name.split("_")[1] for name, epochs in made.epochs.items() if epochs == n] for n in (1, 2, 4, 10)}
    assert sorted(stopped[1]) == ["full", "lora", "prompt"] and stopped[2] == ["bitfit"]
    assert sorted(stopped[4]) == ["full", "ia3", "lora", "prompt"] and sorted(stopped[10]) == ["bitfit", "ia3"]
    assert [one.candidate.epochs for one in found.short].count(4) == 6 and len(found.full) == 2
    assert any(remark.startswith("ranks × 4 of lora were not tried") for remark in found.remarks)


def test_no_look_is_beyond_the_last(tmp_path):
    """With 7 steps an epoch 30 steps are 5 epochs, and twice the 3 of the first look would be 6."""
    made = Made(LOSSES)
    search(Request(("ia3",), configure, tmp_path, {**ROWS, "train": 448}, "rows", report=made.said.append), made)
    assert "after 3 and 5 of their epochs" in " ".join(made.said) and 6 not in made.epochs.values()


def test_a_method_of_which_nothing_got_through_is_not_said_to_be_worse(tmp_path):
    made = Made({**LOSSES, "bitfit": 0.2}, failing=("lora",))
    found = ask(made, tmp_path, methods=("lora", "ia3", "bitfit"))
    assert "lora" in found.left_out and not any("ranks" in remark for remark in found.remarks)


def test_a_test_is_expected_to_take_as_long_as_the_untuned_models(tmp_path):
    found = ask(Made(LOSSES), tmp_path, methods=("lora",))
    # Six epochs of 1,000 rows at 0.01 s are left, and twice the test of 64 rows, 3 s each, with a margin of two.
    assert found.plan.seconds == pytest.approx(6 * 10 + 2 * 2 * 3.0)


def test_a_run_that_went_on_is_judged_by_what_it_had_when_it_was_looked_at(tmp_path):
    """Else a search that is asked again would decide by what only its survivors had later."""
    losses = [0.9, 0.5, 0.6, 0.2]
    phases = dict.fromkeys(("total", "train", "validation", "test", "compile"), 1.0)
    waits = PausedRecord(validation_losses=tuple(losses), train_examples=8, validation_examples=4, seconds=phases)
    done = RunRecord.of(record(validation_loss=0.2, validation_losses=losses, epochs_run=4, best_epoch=3))
    cell = Cell("full_lora", configure("lora", {}))
    for seen in (CellState(State.MISSING, paused=waits), CellState(State.DONE, result=done)):
        for epochs, loss in ((1, 0.9), (2, 0.5), (3, 0.5), (4, 0.2)):
            candidate = Attempt(Trial("lora", 1.0), {}, cell, seen, epochs=epochs).candidate()
            assert (candidate.epochs, candidate.validation_loss) == (epochs, loss)


def test_a_run_that_stopped_early_is_told_with_the_epochs_that_it_learned():
    done = RunRecord.of(record(validation_loss=0.5, validation_losses=[0.9, 0.5, 0.6], epochs_run=3, best_epoch=1))
    seen, cell = CellState(State.DONE, result=done), Cell("full_lora", configure("lora", {}))
    stopped, whole = (Attempt(Trial("lora", 1.0), {}, cell, seen, epochs=epochs).candidate() for epochs in (6, 3))
    assert (stopped.epochs, stopped.learned_epochs) == (6, 3) and whole.stopped_after is None


def test_methods_that_are_near_the_best_go_on_however_many(tmp_path):
    found = ask(Made({"lora": 0.3, "ia3": 0.31, "full": 0.32}), tmp_path)
    assert [attempt.method for attempt in found.full] == ["lora", "ia3", "full"] and not found.left_out


def test_a_higher_rank_is_taken_where_it_is_better_with_the_same_scale(tmp_path):
    made = Made(LOSSES)
    run = lambda asked: configure("lora", asked).build_method()

    class RanksHelp(Made):
        def _one(self, cell, asked):
            self.losses["lora"] = 0.1 if cell.run.method.rank else 0.3
            return super()._one(cell, asked)

    found = ask(RanksHelp(dict(LOSSES)), tmp_path, methods=("lora",))
    (attempt,) = found.full
    assert attempt.trial == ("lora", 1.0, 4) and attempt.cell.config_name == "full_lora_lr0.003_rank32_epochs10"
    tuned, own = run(attempt.keys), run({})
    assert tuned.rank == 4 * own.rank and tuned.alpha / tuned.rank == own.alpha / own.rank
    assert sorted((one.candidate.rank, one.candidate.factor) for one in found.short) == [
        (8, 1 / 3), (8, 1.0), (8, 3.0), (32, 1.0),
    ]  # fmt: skip
    ask(made, tmp_path / "own", methods=("ia3",))
    assert len(made.cells) == 3 + 2 + 1  # a method without ranks has rates alone


def test_a_rank_that_the_config_sets_is_not_searched(tmp_path):
    made = Made(LOSSES)
    fixed = lambda method, keys: configure(method, {"method.rank": 3, **keys})
    search(Request(("lora",), fixed, tmp_path, ROWS, "rows"), made, clock=made.clock)
    assert {run.method.rank for run in made.runs("full")} == {3} and len(made.epochs) == 3


def test_on_a_budget_short_runs_test_one_row_and_full_runs_all_and_the_untuned_model(tmp_path):
    made = Made(LOSSES)
    found = ask(made, tmp_path, minutes=100)
    assert {run.data.max_test for run in made.runs("short")} == {1}
    assert {run.data.max_test for run in made.runs("full")} == {2500}
    assert not any(run.eval.zero_shot for run in made.runs("short"))
    assert all(run.eval.zero_shot for run in made.runs("full")) and len(found.full) == 2


def test_runs_of_few_rows_are_compared_at_their_ends(tmp_path):
    """A third of ten epochs of one step each would tell methods apart by chance."""
    made = Made(LOSSES)
    request = Request(("lora",), configure, tmp_path, {"train": 60, "validation": 9, "test": 9}, "rows")
    found = search(request, made, clock=made.clock)
    assert set(made.epochs.values()) == {10} and len(found.short) == len(made.epochs) == 4


def test_a_tight_budget_cuts_epochs_before_methods_and_keeps_the_best(tmp_path):
    slow = {"row_seconds": 0.1}  # 100 s an epoch in full; a short run on 256 rows takes 205 s
    cut = ask(Made(ALIKE, **slow), tmp_path / "a", minutes=80)
    assert 8 <= cut.plan.epochs < 10 and not cut.left_out and any("no time for more" in text for text in cut.remarks)
    dropped = ask(Made(ALIKE, **slow), tmp_path / "b", minutes=26)
    assert [attempt.method for attempt in dropped.full] == ["ia3"] and set(dropped.left_out) == {"lora", "full"}
    assert {one.candidate.factor for one in dropped.short} == {1.0}
    assert any("learning rates × 3" in text for text in dropped.remarks)


def test_a_method_that_there_was_no_time_to_try_is_named(tmp_path):
    found = ask(Made(LOSSES, row_seconds=0.1), tmp_path, minutes=10)
    assert [one.candidate.method for one in found.short] == ["lora"]
    assert found.left_out == {m: "the budget left no time to try it" for m in ("ia3", "full")}


@pytest.mark.parametrize("minutes", [8, 12, 15, 20, 40, 90])
def test_a_budget_is_kept(tmp_path, minutes):
    made = Made(LOSSES, row_seconds=0.1)
    made.compile_seconds = 7.0
    ask(made, tmp_path, minutes=minutes)
    assert made.now <= 60 * minutes


class Together(Made):
    """Runs all that it is given at once, with 5 s around; each compiles 10 s longer than the one before."""

    def __call__(self, cells: Sequence, epochs: int | None) -> dict:
        before, longest, states = self.now, 0.0, {}
        for i, cell in enumerate(cells):
            began, self.compile_seconds = self.now, 10.0 * i
            states[cell] = self._one(cell, epochs)
            longest = max(longest, self.now - began)
        self.now = before + longest + 5.0
        return states


@pytest.mark.parametrize("methods", [("lora",), ("lora", "ia3"), ("lora", "ia3", "full", "bitfit")])
def test_what_a_run_takes_beside_its_own_seconds_does_not_depend_on_idle_jobs(tmp_path, methods):
    made = Together({**ALIKE, "bitfit": 0.22}, row_seconds=0.1)
    request = Request(methods, configure, tmp_path, ROWS, "rows", 60.0, jobs=4)
    found = search(request, made, clock=made.clock)
    speeds = [one.candidate.speed for one in found.short]
    assert [speed.once for speed in speeds if speed] == pytest.approx([10.0 * i + 5.0 for i in range(len(methods))])


def test_only_runs_of_one_method_are_counted_as_side_by_side_in_a_process(tmp_path):
    request = Request(("lora", "ia3"), configure, tmp_path, ROWS, "rows", 60.0, jobs=2, lanes=4)
    rates = [Trial("lora", factor) for factor in FACTORS]
    assert len(rates) == 3 and request.at_once(rates) == 2 * 3
    assert request.at_once([Trial("lora", 1.0), Trial("ia3", 1.0)]) == 2 == request.at_once([])
    assert request.at_once(rates * 3) == 2 * 4


def test_full_runs_of_several_methods_begin_one_after_the_other_in_one_process(tmp_path):
    """As found: all three were started at once, since the lanes of a process were counted as processes."""
    made = Made(ALIKE, row_seconds=0.1)
    seen = []

    def run(cells, epochs):
        if epochs is None and cells[0].name.startswith("full_"):
            seen.append(len(cells))
        return made(cells, epochs)

    request = Request(("lora", "ia3", "full"), configure, tmp_path, ROWS, "rows", 6000.0, jobs=1, lanes=4)
    search(request, run, clock=made.clock)
    assert seen and set(seen) == {1}


def test_what_an_earlier_call_ran_counts_in_full_however_many_jobs_there_are(tmp_path):
    """Three methods whose short runs, done before, took 225 s side by side."""
    made = Together(ALIKE, row_seconds=0.1)

    def done_before(cells, epochs):
        states, made.now = made(cells, epochs), 0.0
        return states

    request = Request(("lora", "ia3", "full"), configure, tmp_path, ROWS, "rows", 300.0, jobs=4)
    found = search(request, done_before, clock=made.clock)
    assert found.plan.over == pytest.approx(found.plan.seconds - (300 - 225), abs=1)


def test_a_budget_that_cannot_be_kept_is_said_before_the_full_run_begins(tmp_path):
    made = Made(LOSSES, row_seconds=0.1)
    found = ask(made, tmp_path, minutes=1)
    (line,) = [line for line in made.said if "cannot be kept" in line]
    assert "the budget of 1.0 min cannot be kept" in line and line in found.remarks
    assert made.now <= 60 * float(line.rpartition("about ")[2].removesuffix(" min")) + 6
    (attempt,) = found.full
    (one,) = found.short
    assert attempt.cell.run.train.max_epochs == one.candidate.epochs and one.candidate.rows == 256
    assert attempt.cell.run.data.max_train == 256


@pytest.mark.parametrize("minutes", [1, 5, 12, 20, 60, None])
def test_no_full_run_is_shorter_than_the_short_one(tmp_path, minutes):
    made = Made(LOSSES, row_seconds=0.1)
    found = ask(made, tmp_path, minutes=minutes)
    short = {one.candidate.method: one.candidate for one in found.short if one.chosen}
    for attempt in found.full:
        run = attempt.cell.run
        assert run.train.max_epochs >= short[attempt.method].epochs
        assert (run.data.max_train or ROWS["train"]) >= short[attempt.method].rows


def test_a_search_that_is_asked_again_decides_the_same(tmp_path):
    first = ask(Made(LOSSES, row_seconds=0.1), tmp_path, minutes=15)
    again = Made(LOSSES, row_seconds=0.001)  # now everything seems to be quick
    found = ask(again, tmp_path, minutes=15)
    assert [a.cell.name for a in found.full] == [a.cell.name for a in first.full]
    assert found.left_out == first.left_out and found.remarks == first.remarks
    assert len(again.ran) == len(first.short) + len(first.full)


def test_a_run_that_fails_is_passed_over_and_a_method_that_always_fails_is_named(tmp_path):
    made = Made({**ALIKE, "bitfit": 0.22}, best_factor=1 / 3, failing=("full", "full_ia3_lr0.001_epochs10"))
    found = ask(made, tmp_path, methods=("lora", "ia3", "full", "bitfit"))
    assert [attempt.method for attempt in found.full] == ["lora", "bitfit"]
    assert found.left_out["full"] == "the loss is nan"
    assert "its validation loss, 2.2000, was neither" in found.left_out["ia3"]  # at another rate
    with pytest.raises(RunFailed, match="no method got through; the first error: the loss is nan"):
        ask(Made(LOSSES, failing=("lora", "ia3", "full")), tmp_path / "b")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{}",
        '{"version": 2, "rows": "rows", "decided": 3}',
        '{"version": 2, "rows": "rows", "decided": {"plan": {}}}',
        "[" * 10**5,
    ],
)
def test_a_damaged_record_is_one_line(tmp_path, text):
    (tmp_path / "search.json").write_text(text)
    with pytest.raises(UserError, match=r"search\.json is damaged; remove it to go on"):
        ask(Made(LOSSES), tmp_path)


def test_a_search_of_an_earlier_version_is_not_gone_on_with(tmp_path):
    (tmp_path / "search.json").write_text('{"rows": "rows"}')
    with pytest.raises(UserError, match="holds a search of an earlier version of jpeft"):
        ask(Made(LOSSES), tmp_path)


def test_a_changed_number_in_the_record_is_seen(tmp_path):
    ask(Made(LOSSES, row_seconds=0.1), tmp_path, minutes=20)
    good = json.loads((tmp_path / "search.json").read_text())
    for key, value in [("epochs", 0), ("epochs", "10"), ("train", 1.5), ("methods", "lora"), ("zero_shot", None)]:
        plan = {**good["decided"]["plan"], key: value}
        (tmp_path / "search.json").write_text(json.dumps({**good, "decided": {**good["decided"], "plan": plan}}))
        with pytest.raises(UserError, match="is damaged"):
            ask(Made(LOSSES), tmp_path, minutes=20)


def test_a_run_whose_result_was_damaged_is_a_run_that_failed(tmp_path):
    made = Made(LOSSES)
    damaged = CellState(State.FAILED, "result.json is damaged (seconds is 3; expected seconds of total)", damaged=True)

    def run_cells(cells, epochs):
        return {cell: damaged if "lora" in cell.name else seen for cell, seen in made(cells, epochs).items()}

    found = search(Request(("lora", "ia3"), configure, tmp_path, ROWS, "rows"), run_cells, clock=made.clock)
    assert "damaged" in found.left_out["lora"] and [attempt.method for attempt in found.full] == ["ia3"]


def test_work_of_another_config_is_refused(tmp_path):
    stale = lambda cells, epochs: {cell: CellState(State.STALE, "eval.num_beams: 1 -> 2") for cell in cells}
    with pytest.raises(UserError, match="eval.num_beams.*another --workdir"):
        search(Request(("lora",), configure, tmp_path, ROWS, "rows"), stale)


# --- the command ---


@pytest.fixture
def flags(tiny_checkpoint, toy_jsonl, tmp_path):
    """Flags of a small search in a directory, with what else a test wants."""

    def make(*more: str) -> list[str]:
        given = [flag.partition("=")[0] for flag in more]
        defaults = [
            f"--data={toy_jsonl}",
            f"--model={tiny_checkpoint}",
            f"--config={BENCHMARK}",
            f"--workdir={tmp_path / 'search'}",
            "--methods=lora",
        ]
        keys = ["train.max_epochs=2", "train.batch_size=8", "train.accumulation_steps=1", "data.max_target_length=8"]
        return [
            "recommend",
            *(flag for flag in defaults if flag.partition("=")[0] not in given),
            *(f"--config.{key}" for key in keys),
            *more,
        ]

    return make


def results(workdir: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in workdir.glob("*/result.json")}


def test_a_monitor_other_than_the_loss_by_which_runs_are_compared_is_refused(flags, capsys):
    assert main(flags("--config.train.monitor=validation/accuracy")) == 2
    assert "train.monitor is 'validation/accuracy'; a search compares runs by their validation loss" in (
        capsys.readouterr().err
    )


@pytest.mark.slow
def test_from_rows_to_an_adapter_and_the_command_that_made_it(flags, tmp_path, toy_jsonl, capsys, monkeypatch):
    status = main(flags("--json"))
    data = json.loads(capsys.readouterr().out)
    assert status == (1 if data["nothing_learned"] else 0)  # a model of random weights need not learn anything
    before = results(tmp_path / "search")
    # Two or three rates and another rank, each to its end, since two epochs of two steps are too few to compare by.
    assert len(before) in (3, 4) and data["ranking"][0]["method"] == "lora"
    assert {one["test"]["examples"] for one in data["ranking"]} == {9}
    chosen = {one["method"]: one["learning_rate"] for one in data["ranking"]}
    for method, rate in chosen.items():
        tried = [one for one in data["short_runs"] if one["method"] == method]
        (taken,) = [one for one in tried if one["chosen"]]
        assert len(tried) == len(before) and taken["learning_rate"] == rate
        assert taken["validation_loss"] <= tie_limit(min(one["validation_loss"] for one in tried))
    first = data["ranking"][0]
    assert list(Path(first["adapter"]).glob("*.safetensors"))
    assert any("9 validation rows chose" in text for text in data["remarks"])

    # The command is the very run: it finds it done.
    program, script, *arguments = shlex.split(first["command"])
    assert (program, script) == ("jpeft", "train")
    assert main([script, *arguments, "--quiet"]) == 0
    capsys.readouterr()

    # Asked again, in words: nothing is run, and a test metric is not shown before the end.
    assert main(flags("--scarce=memory")) == status
    shown = capsys.readouterr()
    assert results(tmp_path / "search") == before
    assert ("command  jpeft train" in shown.out) == (status == 0) and "accuracy" not in shown.err

    copy = tmp_path / "changed.jsonl"
    copy.write_text("".join(reversed(toy_jsonl.read_text().splitlines(keepends=True))))
    assert main(flags(f"--data={copy}")) == 2
    assert "holds a search of other rows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("test", "says"),
    [
        ({"input": "goal", "target": "c"}, "row test/0 has the unknown label 'c'; known: a, b"),
        ({"input": "goal", "target": None}, "row test/0 has no 'target'"),
        ({"input": ["goal"], "target": "a"}, "row test/0: the column 'input' holds a list"),
    ],
)
def test_a_row_that_would_stop_a_run_stops_the_search_before_its_first(test, says, flags, tmp_path, capsys):
    rows = [{"input": f"coach {i}", "target": "ab"[i % 2]} for i in range(40)]
    for split, of_split in (("train", rows), ("test", [test])):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of_split))
    assert main(flags(f"--data={tmp_path}")) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "search").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--data=nothing.jsonl"], "--data nothing.jsonl does not exist"),
        (["--data={data},{data}"], "data.path lists 2 files; say how they are mixed"),
        (["--data={data},no.csv", "--config.data.mix=equal"], "data.path 'no.csv' does not exist"),
        (["--workdir={data}/search"], "/search cannot be written (Not a directory)"),
        (["--methods=lora,lara"], "--methods is 'lara'; expected one of full, lora"),
        (["--methods=,"], "--methods is empty"),
        (["--budget=0"], "--budget is 0; expected minutes"),
        (["--jobs=0"], "argument --jobs: 0 is not from 1 to 4,096"),
        (["--task=agnews"], "with --data it is classification or generation"),
        (["--examples=5"], "--runs and --examples are for numbers that exist"),
        (["--config.train.learning_rate.warmup=1"], "is set by the search"),
        (["--config.model.name=x"], "is set by the search: --model"),
        (["--config.train.sed=1"], "did you mean config.train.seed?"),
        (["--model=no/such/dir/here"], "no/such/dir/here"),
    ],
)
def test_a_wrong_call_is_one_line(more, says, flags, tmp_path, capsys, toy_jsonl):
    try:
        status = main(flags(*(flag.format(data=toy_jsonl) for flag in more)))
    except SystemExit as ended:  # what argparse itself finds
        status = ended.code
    line = capsys.readouterr().err.splitlines()[-1]
    assert status == 2 and says in line and line.startswith("error: ")
    assert not results(tmp_path / "search")


def test_rows_without_a_target_are_refused_before_anything_runs(flags, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": "a", "label": "b"}) + "\n")
    assert main(flags(f"--data={rows}")) == 2
    assert "lack the column" in capsys.readouterr().err
    assert not (tmp_path / "search").exists()


def test_data_without_a_model_is_a_wrong_call(toy_jsonl, capsys):
    assert main(["recommend", f"--data={toy_jsonl}"]) == 2
    assert "--model is missing" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_and_started_again_it_ends_as_if_it_had_not_been(flags, tmp_path):
    # 40 rows in steps of 2: 20 steps an epoch, so rates are compared after the first of six.
    more = ["--config.train.max_epochs=6", "--config.train.batch_size=2"]

    def start(workdir: Path) -> subprocess.Popen:
        asked = flags(f"--workdir={workdir}", "--methods=lora,bitfit", "--json", *more)
        command = [sys.executable, "-m", "jpeft.cli", *asked]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def losses(process: subprocess.Popen) -> list:
        out, _ = process.communicate()
        assert process.returncode in (0, 1)  # 1 where this model of random weights has learned nothing
        return [(one["method"], one["validation_loss"], one["test"]["metric"]) for one in json.loads(out)["ranking"]]

    unbroken, killed = start(tmp_path / "unbroken"), tmp_path / "killed"
    expected = losses(unbroken)
    finished: dict[str, int] = {}
    for done in (1, 3, 5):
        process = start(killed)
        while process.poll() is None and len(list(killed.glob("*/paused.json"))) + len(results(killed)) < done:
            time.sleep(0.05)
        process.kill()
        process.communicate()
        finished |= {name: when for name, when in results(killed).items() if name not in finished}
    assert losses(start(killed)) == expected
    assert {name: results(killed)[name] for name in finished} == finished


# --- four data sets whose right answer is known, on mini ---


def _topics(count: int) -> list[dict]:
    rows, names = sample_rows("agnews", 0)["train"], ("World", "Sports", "Business", "Sci/Tech")
    pairs = zip(rows["text"], rows["label"], strict=True)
    return [{"input": text, "target": names[label]} for text, label in itertools.islice(pairs, count)]


def _coins(count: int) -> list[dict]:
    draw = random.Random(3)
    return [{**row, "target": draw.choice(["heads", "tails"])} for row in _topics(count)]


def _first_words(count: int) -> list[dict]:
    return [{**row, "target": " ".join(row["input"].split()[:4])} for row in _topics(count)]


def _other_columns(count: int) -> list[dict]:
    return [{"Body": row["input"], "category": row["target"], "id": str(i)} for i, row in enumerate(_topics(count))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "answer", "more"),
    [
        (_topics, True, []),
        (_coins, False, []),
        (_first_words, True, []),
        (_other_columns, True, ["--budget=6", "--config.data.template={Body}", "--config.data.target=category"]),
    ],
)
def test_the_known_answer_of_real_searches_on_mini(make, answer, more, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")  # here the workers compute more than they compile
    rows = make(400)
    file = tmp_path / "rows.csv"
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    began = time.monotonic()
    call = ["recommend", f"--data={file}", "--model=mini", "--methods=lora,full", f"--workdir={tmp_path / 'search'}"]
    status = main([*call, "--json", "--config.data.max_input_length=96", *more])
    seconds = time.monotonic() - began
    shown = capsys.readouterr()
    data = json.loads(shown.out)
    assert bool(data["use"]) == answer and status == (0 if answer else 1)
    assert bool(data["nothing_learned"]) != answer
    short = {one["method"]: one for one in data["short_runs"] if one["chosen"]}
    for one in data["ranking"]:
        result = json.loads((Path(one["adapter"]).parent / "config.json").read_text())
        assert result["train"]["max_epochs"] >= 4 and one["method"] in short
    if any("--budget" in flag for flag in more):
        assert seconds <= 6 * 60 or "cannot be kept" in shown.err
