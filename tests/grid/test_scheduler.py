"""The scheduler's decisions, with fake workers."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from jpeft.config import Run
from jpeft.grid.cells import Cell
from jpeft.grid.pool import Event
from jpeft.grid.scheduler import CellSchedule, CellsToDo
from jpeft.grid.state import State, look, record_failure
from jpeft.grid.worker import Job, Outcome, do
from jpeft.run.directory import RunDirectory
from jpeft.train.session import Session
from tests.report.synthetic import record


def cell(name: str, seed: int = 0) -> Cell:
    method, *ablation, task, scale = name.split("_")
    config = {
        "method": {"name": method},
        "ablation": {"name": "_".join(ablation) or None},
        "data": {"task": task, "scale": scale},
        "train": {"seed": seed},
    }
    return Cell(name, Run.from_config(config))


class PretendedPool:
    """A pool that runs `act` on each job immediately; `act` returns the outcome, or None for a worker that dies."""

    def __init__(self, size: int, act: Callable[[Job], Outcome | None], lanes: int = 1):
        self.size, self.act, self.lanes = size, act, lanes
        self.begun: list[tuple[int, str]] = []
        self._events: list[Event] = []

    def submit(self, worker: int, job: Job) -> None:
        self.begun.append((worker, Path(job.directory).name))
        outcome = self.act(job)
        self._events.append(Event(worker, outcome, "" if outcome else "its process was killed by SIGKILL"))

    def wait(self, timeout: float) -> list[Event]:
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        pass


def succeed(job: Job) -> Outcome:
    directory = Path(job.directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(job.config))
    (directory / "failure.json").unlink(missing_ok=True)
    (directory / "result.json").write_text(json.dumps(record(metric=0.5)))
    return Outcome("done", seconds=3.0, overhead_seconds=1.0)


def fail(job: Job) -> Outcome:
    directory = Path(job.directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(job.config))
    record_failure(directory, "the loss is nan")
    return Outcome("failed", "the loss is nan")


@pytest.fixture
def schedule(tmp_path):
    lines = []

    def make(cells, **choice):
        made = CellSchedule(cells, tmp_path, CellsToDo(**choice), report=lines.append)
        return made, lines

    return make


NAMES = ["lora_agnews_low", "ia3_agnews_low", "lora_cola_low", "ia3_cola_low"]


def test_every_missing_cell_is_done_once_and_never_again(schedule):
    cells = [cell(name) for name in NAMES]
    pool = PretendedPool(2, succeed)
    schedule(cells)[0].run(pool)
    assert sorted(name for _, name in pool.begun) == sorted(c.name for c in cells)
    again = PretendedPool(2, succeed)
    second, _ = schedule(cells)
    second.run(again)
    assert again.begun == [] and second.counts()[State.DONE] == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_it_ends_what_it_is_at_and_begins_nothing_more(number, schedule):
    """An exception raised in the signal handler could surface anywhere, also where a library swallows it."""
    heard = []

    def act(job: Job) -> Outcome:
        os.kill(os.getpid(), number)
        heard.append(job.directory)
        return succeed(job)

    pool, before = PretendedPool(1, act), signal.getsignal(number)
    made, _ = schedule([cell(name) for name in NAMES])
    with pytest.raises(KeyboardInterrupt):
        made.run(pool)
    assert len(heard) == len(pool.begun) == 1 and made.counts()[State.DONE] == 1
    assert signal.getsignal(number) == before


def test_a_worker_stays_with_what_it_has_in_memory_and_away_from_what_others_have(schedule):
    cells = [cell(name, seed) for name in NAMES for seed in (0, 1, 2)]
    pool = PretendedPool(2, succeed)
    schedule(cells)[0].run(pool)
    changes = 0
    for worker in (0, 1):
        kinds = [name.rpartition("_seed")[0] for at, name in pool.begun if at == worker]
        changes += sum(a != b for a, b in zip(kinds, kinds[1:], strict=False))
    assert changes <= 3  # four kinds on two workers: one change each, and one more to balance the rest


def test_cells_of_other_ranks_are_done_side_by_side_and_of_other_methods_are_not(schedule):
    def of_rank(method: str, rank: int) -> Cell:
        config = {"method": {"name": method, "rank": rank}, "data": {"task": "agnews", "scale": "low"}}
        return Cell(f"{method}_rank{rank}", Run.from_config(config))

    for method, together in (("lora", 3), ("vera", 1)):
        at_once = []
        pool = PretendedPool(3, lambda job: Outcome("stopped"), lanes=3)
        pool.wait = lambda timeout, pool=pool, at_once=at_once: at_once.append(len(pool.begun)) or []
        made, _ = schedule([of_rank(method, rank) for rank in (1, 2, 4)])
        with pytest.raises(KeyboardInterrupt):
            made.run(pool, on_change=lambda at_once=at_once: at_once and _interrupt())
        assert at_once == [together]


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_a_failed_cell_is_recorded_the_others_go_on_and_it_waits_for_retry_failed(schedule):
    cells = [cell(name) for name in NAMES]

    def act(job):
        return fail(job) if "ia3_agnews" in job.directory else succeed(job)

    first, lines = schedule(cells)
    first.run(PretendedPool(1, act))
    assert first.counts() == {"missing": 0, "running": 0, "done": 3, "failed": 1, "stale": 0}
    assert "ia3_agnews_low_seed0 failed: the loss is nan" in lines
    idle = PretendedPool(1, succeed)
    schedule(cells)[0].run(idle)
    assert idle.begun == []
    retry = PretendedPool(1, succeed)
    schedule(cells, failed=True)[0].run(retry)
    assert [name for _, name in retry.begun] == ["ia3_agnews_low_seed0"]


def test_a_cell_that_keeps_failing_is_tried_once_a_command(schedule):
    pool = PretendedPool(1, fail)
    schedule([cell("lora_agnews_low")], failed=True)[0].run(pool)
    assert len(pool.begun) == 1


def test_a_cell_whose_worker_dies_goes_back_in_the_queue(schedule):
    cells, deaths = [cell(name) for name in NAMES], []

    def act(job):
        if "lora_cola" in job.directory and not deaths:
            return deaths.append(job)
        return succeed(job)

    made, lines = schedule(cells)
    made.run(PretendedPool(2, act))
    assert made.counts()[State.DONE] == 4 and len(deaths) == 1
    assert "goes back in the queue" in "".join(lines)


def test_a_cell_that_kills_every_worker_fails(schedule, tmp_path):
    deadly = cell("lora_cola_low")
    deadly.directory(tmp_path).mkdir()
    (deadly.directory(tmp_path) / "config.json").write_text(json.dumps(deadly.run.to_dict()))
    pool = PretendedPool(1, lambda job: None if "lora_cola" in job.directory else succeed(job))
    made, _ = schedule([deadly, cell("ia3_cola_low")])
    made.run(pool)
    assert [name for _, name in pool.begun].count("lora_cola_low_seed0") == 3
    assert made.states[deadly].state == State.FAILED and "SIGKILL, 3 times" in made.states[deadly].detail
    assert made.counts()[State.DONE] == 1


def test_a_limit_counts_what_is_begun_in_this_command(schedule):
    cells = [cell(name) for name in NAMES]
    for done in (3, 4, 4):
        made, _ = schedule(cells, limit=3)
        made.run(PretendedPool(2, succeed))
        assert made.counts()[State.DONE] == done


def test_a_changed_config_is_stale_named_and_run_only_when_asked(schedule, tmp_path):
    old, new = cell("lora_agnews_low"), cell("lora_agnews_low")
    succeed(
        Job({**old.run.to_dict(), "eval": {**old.run.to_dict()["eval"], "num_beams": 4}}, str(old.directory(tmp_path)))
    )
    made, _ = schedule([new])
    assert made.states[new].state == State.STALE and "eval.num_beams: 4 -> 1" in made.states[new].detail
    idle = PretendedPool(1, succeed)
    made.run(idle)
    assert idle.begun == []
    overwritten = []
    schedule([new], stale=True)[0].run(PretendedPool(1, lambda job: overwritten.append(job.overwrite) or succeed(job)))
    assert overwritten == [True] and look(new, tmp_path).state == State.DONE


@pytest.mark.parametrize(
    "text", ["", "{", '{"status": "do', "[1]", '{"status": "running"}', json.dumps({**record(), "seconds": 3})]
)
def test_a_result_that_is_none_is_not_done_and_says_why(text, schedule, tmp_path):
    """Whatever the cause, such a cell counts as failed and can be run again."""
    damaged = cell("lora_agnews_low")
    succeed(Job(damaged.run.to_dict(), str(damaged.directory(tmp_path))))
    (damaged.directory(tmp_path) / "result.json").write_text(text)
    made, _ = schedule([damaged], failed=True)
    assert made.states[damaged].state == State.FAILED and "result.json is damaged (" in made.states[damaged].detail
    made.run(PretendedPool(1, lambda job: succeed(job) if job.overwrite else fail(job)))
    assert made.states[damaged].state == State.DONE


def test_a_config_that_is_none_is_a_failure_that_can_be_run_again(schedule, tmp_path):
    """Although it has not started: a run would refuse the directory."""
    damaged = cell("lora_agnews_low")
    damaged.directory(tmp_path).mkdir(parents=True)
    (damaged.directory(tmp_path) / "config.json").write_text('{"half')
    made, _ = schedule([damaged], failed=True)
    assert made.states[damaged].state == State.FAILED and "config.json is damaged" in made.states[damaged].detail
    made.run(PretendedPool(1, lambda job: succeed(job) if job.overwrite else fail(job)))
    assert made.states[damaged].state == State.DONE


def test_a_checkpoint_alone_is_missing_and_goes_on(schedule, tmp_path):
    begun = cell("lora_agnews_low")
    (begun.directory(tmp_path) / "checkpoint/4").mkdir(parents=True)
    (begun.directory(tmp_path) / "config.json").write_text(json.dumps(begun.run.to_dict()))
    assert look(begun, tmp_path).state == State.MISSING and "checkpoint" in look(begun, tmp_path).detail


def test_a_cell_is_trained_as_far_as_is_asked_and_waits_there(schedule, tmp_path):
    asked = []

    def act(job: Job) -> Outcome:
        asked.append(job.pause_after)
        directory = Path(job.directory)
        (directory / "checkpoint/4").mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(job.config))
        if job.pause_after is None:
            return succeed(job)
        seconds = dict.fromkeys(("total", "train", "validation", "test", "compile"), 1.0)
        losses = [1.0 / (epoch + 1) for epoch in range(job.pause_after)]
        record = {"validation_losses": losses, "train_examples": 8, "validation_examples": 4, "seconds": seconds}
        (directory / "paused.json").write_text(json.dumps(record))
        return Outcome("paused")

    waiting = cell("lora_agnews_low")
    for pause_after in (2, 2, 1, 3):
        made, lines = schedule([waiting], pause_after=pause_after)
        made.run(PretendedPool(1, act))
    assert asked == [2, 3]  # the run had already got there or further
    seen = made.states[waiting]
    assert seen.state == State.MISSING and seen.detail == "goes on from its checkpoint: it waited after 3 epochs"
    assert seen.paused is not None and seen.paused.validation_losses == (1.0, 1 / 2, 1 / 3)
    assert lines[0] == f"{waiting.name}: validation loss 0.5000 after 2 epochs"
    whole, _ = schedule([waiting])
    assert whole.to_do() == [waiting]
    whole.run(PretendedPool(1, act))
    assert asked == [2, 3, None] and whole.states[waiting].state == State.DONE
    (waiting.directory(tmp_path) / "result.json").unlink()
    (waiting.directory(tmp_path) / "paused.json").write_text("{")
    assert look(waiting, tmp_path).paused is None


def test_progress_is_of_what_this_call_runs_and_of_what_is_done(schedule, tmp_path):
    """As found: with a limit, or cells that had failed, the bar was nearly full before anything ran."""
    failed, *missing = (cell(name) for name in NAMES)
    fail(Job(failed.run.to_dict(), str(failed.directory(tmp_path))))
    made, _ = schedule([failed, *missing], limit=2)
    shown = [made.progress()]
    made.run(PretendedPool(1, succeed), on_change=lambda: shown.append(made.progress()))
    assert shown[0] == (0, 2) and set(shown) == {(0, 2), (1, 2), (2, 2)}
    assert schedule([failed, *missing])[0].progress() == (2, len(missing))
    again, _ = schedule([failed, *missing], failed=True)
    assert again.progress() == (2, len(NAMES))
    again.run(PretendedPool(1, fail))
    assert again.progress() == (len(NAMES), len(NAMES))


def test_a_cell_that_is_held_elsewhere_keeps_its_failure_and_its_progress(tmp_path):
    held = cell("lora_agnews_low")
    directory, job = held.directory(tmp_path), Job(held.run.to_dict(), str(held.directory(tmp_path)))
    with RunDirectory(directory).claim(held.run.to_dict(), overwrite=False):
        for name in ("failure.json", "progress.json"):
            (directory / name).write_text("{}")
        assert do(job, Session()).status == "busy"
        assert (directory / "failure.json").exists() and (directory / "progress.json").exists()


def test_a_cell_that_begins_has_not_failed_any_more_and_leaves_no_progress(tmp_path, monkeypatch):
    for name in ("failure.json", "progress.json"):
        (tmp_path / name).write_text("{}")

    def execute(*_, on_claim, **options):
        on_claim()
        assert not (tmp_path / "failure.json").exists()
        return {"seconds": {}}

    monkeypatch.setattr("jpeft.grid.worker.execute", execute)
    assert do(Job(cell("lora_agnews_low").run.to_dict(), str(tmp_path)), Session()).status == "done"
    assert not (tmp_path / "progress.json").exists()


def test_what_another_process_is_at_is_left_to_it_and_waited_for(schedule, tmp_path):
    held, free = cell("lora_agnews_low"), cell("ia3_agnews_low")
    claim = RunDirectory(held.directory(tmp_path)).claim(held.run.to_dict(), overwrite=False)
    claim.__enter__()
    (held.directory(tmp_path) / "progress.json").write_text(
        json.dumps({"phase": "epoch 2", "done": 30, "total": 1000, "note": "loss 1.2", "worker": "there:7"})
    )
    made, _ = schedule([held, free])
    assert made.states[held].state == State.RUNNING
    assert made.states[held].detail == "epoch 2 30/1,000  loss 1.2  [there:7]"
    pool = PretendedPool(1, succeed)

    def let_go_once_the_rest_is_done():
        if made.states[free].state == State.DONE and look(held, tmp_path).state == State.RUNNING:
            succeed(Job(held.run.to_dict(), str(held.directory(tmp_path))))
            claim.__exit__(None, None, None)

    made.run(pool, on_change=let_go_once_the_rest_is_done)
    assert [name for _, name in pool.begun] == ["ia3_agnews_low_seed0"]
    assert made.counts()[State.DONE] == 2


def test_a_cell_that_another_process_took_first_is_begun_again_only_if_it_is_left(schedule):
    answers = iter([Outcome("busy", "another process is at work"), None])

    def act(job):
        return next(answers, None) or succeed(job)

    made, _ = schedule([cell("lora_agnews_low")])
    made.run(PretendedPool(1, act))
    assert made.counts()[State.DONE] == 1


def test_a_worker_that_dies_before_its_cell_has_a_directory_fails_the_cell_alone(schedule, tmp_path):
    cells = [cell(name) for name in NAMES]
    made, lines = schedule(cells)
    made.run(PretendedPool(1, lambda job: None if "lora_cola" in job.directory else succeed(job)))
    assert made.counts()[State.DONE] == 3 and made.counts()[State.FAILED] == 1
    assert made.states[cells[2]].detail == "its process was killed by SIGKILL, 3 times"
    assert "lora_cola_low_seed0 failed: its process was killed by SIGKILL, 3 times" in lines
    assert not cells[2].directory(tmp_path).exists()  # no directory is created that a later run would refuse


@pytest.mark.parametrize("content", ["[]", "null", "{", '{"done": "x", "total": null}', "[" * 99_999, "\0" * 9, "{}"])
@pytest.mark.parametrize("name", ["progress.json", "failure.json", "config.json", "result.json"])
def test_damaged_records_of_a_cell_are_a_state_of_it(name, content, schedule, tmp_path):
    seen = cell("lora_agnews_low")
    directory = seen.directory(tmp_path)
    (succeed if name in ("config.json", "result.json") else fail)(Job(seen.run.to_dict(), str(directory)))
    (directory / name).write_text(content)
    with RunDirectory(directory).claim({}, overwrite=True):
        assert look(seen, tmp_path).state == State.RUNNING
    made, _ = schedule([seen], failed=True, stale=True)
    assert made.states[seen].state in (State.FAILED, State.MISSING, State.STALE)
    made.run(PretendedPool(1, lambda job: succeed(job) if job.overwrite or name[0] in "pf" else fail(job)))
    assert made.states[seen].state == State.DONE
