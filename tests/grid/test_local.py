"""`jpeft grid` as users call it, with real workers."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jpeft import accelerators
from jpeft.cli import main
from jpeft.errors import UserError
from jpeft.grid import local
from jpeft.grid.local import DeviceShare, device_shares
from jpeft.grid.worker import Job

ROOT = Path(__file__).parents[2]
# The entries of a result that do not depend on time or memory.
SAME = ("method", "task", "seed", "metric", "metrics", "validation_losses", "best_epoch", "epochs_run", "test_examples")


def outcome(directory: Path) -> dict:
    result = json.loads((directory / "result.json").read_text())
    return {key: result[key] for key in SAME}


@pytest.mark.slow
def test_a_grid_from_nothing_to_done(grid_flags, states, tmp_path, capsys):
    """One cell fails, the others give what `main.py` gives, and a second call has nothing to do."""
    flags = ["--methods=lora,ia3", "--tasks=agnews,e2e"]
    broken = tmp_path / "grid/lora_e2e_low_seed0"
    broken.mkdir(parents=True)
    (broken / "mine.txt").write_text("not a run")
    assert {state for state, _ in states(tmp_path / "grid", *flags).values()} == {"missing"}

    assert main(grid_flags(tmp_path / "grid", *flags)) == 1
    printed = capsys.readouterr()
    assert "holds no run; name another --workdir" in printed.err
    assert "3 done, 1 failed" in printed.out and "beside its own work a cell cost" in printed.out
    after = states(tmp_path / "grid", *flags)
    assert sorted(state for state, _ in after.values()) == ["done"] * 3 + ["missing"]
    assert after["ia3_agnews_low_seed0"][1].startswith("accuracy 0.")
    done = tmp_path / "grid/ia3_agnews_low_seed0"
    assert "validation loss" in (done / "log.txt").read_text() and not (done / "progress.json").exists()

    (broken / "mine.txt").unlink()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "grid").glob("*/result.json")}
    assert main(grid_flags(tmp_path / "grid", *flags, "--json")) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["done"] == 4
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())

    changed = states(tmp_path / "grid", *flags, "--config.eval.num_beams=2")
    assert {state for state, _ in changed.values()} == {"stale"}
    assert "eval.num_beams: 1 -> 2" in changed["ia3_agnews_low_seed0"][1]


@pytest.mark.slow
def test_a_cell_that_fails_keeps_its_traceback_and_the_exit_status_says_so(grid_flags, tmp_path, capsys):
    flags = grid_flags(
        tmp_path / "grid", "--methods=lora", "--tasks=agnews", "--config.train.learning_rate.warmup=1e30"
    )
    assert main(flags) == 1
    printed = capsys.readouterr()
    assert "lora_agnews_low_seed0 failed: " in printed.err and "--retry-failed" in printed.out
    failure = json.loads((tmp_path / "grid/lora_agnews_low_seed0/failure.json").read_text())
    assert "not finite" in failure["error"] or "nan" in failure["error"] or "inf" in failure["error"]
    assert "Traceback" in failure["traceback"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--methods=lara"], "there is no cell 'lara_agnews_low'"),
        (["--seeds=a"], "--seeds is 'a'; expected whole numbers"),
        (["--config.train.seed=1"], "--config.train.seed is set by the grid: give --seeds"),
        (["--config.method.name=ln"], "--config.method.name is set by the grid: give --methods"),
        (["--config.ablation.name=early"], "--config.ablation.name is set by the grid: give --ablations"),
        (["--config.data.scale=low"], "--config.data.scale is set by the grid: give --scales"),
        (["--config.data.task=cola"], "--config.data.task is set by the grid: give --tasks"),
        (["--limit=0"], "argument --limit: 0 is not from 1 to"),
        (["--jobs=0"], "argument --jobs: 0 is not from 1 to 4,096"),
        (["--fuse=0"], "--fuse is '0'; expected auto, or a number from 1 to 64"),
        (["--launcher=ray", "--cpus=0"], "--cpus and --gpus are both 0; a cell on a Ray cluster needs some of one"),
        (["--fuse=2", "--launcher=ray"], "--fuse is for --launcher local"),
        (["--tasks=,"], "--tasks is empty"),
        (["--config.train.sed=1"], "did you mean config.train.seed?"),
        (["--only=nothing"], "--only 'nothing' matches none"),
    ],
)
def test_a_wrong_call_is_one_line(flags, says, grid_flags, tmp_path, capsys):
    try:
        status = main(grid_flags(tmp_path, *flags))
    except SystemExit as ended:  # what argparse itself finds
        status = ended.code
    line = capsys.readouterr().err
    assert status == 2 and says in line and line.startswith("error: ") and line.count("\n") == 1


@pytest.mark.parametrize(
    ("workdir", "flags", "says"),
    [
        ("grid", ["--config.data.path=no/such/rows"], "data.path 'no/such/rows' does not exist"),
        ("grid", ["--config.data.path={rows},{rows}"], "data.path lists 2 files; say how they are mixed"),
        ("file/grid", [], "--workdir {file}/grid cannot be written (Not a directory)"),
        ("file/grid", ["--launcher=ray"], "--workdir {file}/grid cannot be written (Not a directory)"),
    ],
)
def test_what_would_fail_every_cell_is_one_line_before_any_begins(
    workdir, flags, says, grid_flags, tmp_path, capsys, toy_jsonl
):
    (tmp_path / "file").write_text("")
    named = {"file": tmp_path / "file", "rows": toy_jsonl}
    given = grid_flags(tmp_path / workdir, *(flag.format(**named) for flag in flags))
    assert main([*given, "--dry-run"]) == 0
    capsys.readouterr()
    assert main(given) == 2
    notes, said = capsys.readouterr().err.rsplit("error: ", 1)
    assert says.format(**named) in said and said.count("\n") == 1
    # Some of these flags repeat flags of every grid: the note appears once, not for each cell.
    assert notes.count("\n") == len(flags) - ("--launcher=ray" in flags)
    assert all(line.startswith("note: --config.data.path is given twice") for line in notes.splitlines())


def test_an_unknown_flag_is_refused(grid_flags, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(grid_flags(tmp_path, "--dryrun"))
    assert end.value.code == 2 and "unrecognized arguments: --dryrun" in capsys.readouterr().err


def test_devices_are_shared_out(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4,5,7,9")
    assert device_shares(1) == [DeviceShare()]
    assert device_shares(2) == [DeviceShare(gpus=("3", "4")), DeviceShare(gpus=("5", "7"))]
    shared = device_shares(6)
    assert [share.gpus for share in shared] == [("3",), ("4",), ("5",), ("7",), ("9",), ("3",)]
    assert {share.workers for share in shared} == {2}  # the same for all, although four have a device to themselves
    monkeypatch.setattr(local.os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4})
    for variable, value in (("CUDA_VISIBLE_DEVICES", ""), ("CUDA_VISIBLE_DEVICES", "-1"), ("JAX_PLATFORMS", "cpu")):
        with monkeypatch.context() as without:
            without.setenv(variable, value)
            assert device_shares(2) == [DeviceShare(cores=(0, 1)), DeviceShare(cores=(2, 3))], (variable, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match="--jobs 6 is more than the 5 CPU cores"):
        device_shares(6)


@pytest.mark.parametrize(
    ("jobs", "chosen", "given"),
    [(3, {}, "0.4250"), (3, {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, None), (2, {}, None)],
)
def test_workers_that_share_a_gpu_have_a_part_of_its_memory(jobs, chosen, given, monkeypatch):
    for name in accelerators._MEMORY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    shares = device_shares(jobs)
    memory = "memory is taken as the environment says" if chosen else "each has its part of the memory"
    line = f"3 workers share the GPUs, up to 2 on one; {memory}"
    assert local.shared_gpus_line(shares) == (line if jobs == 3 else None)
    environments = [share.environment() for share in shares]
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in environments] == ["0", "1", "0"][:jobs]
    assert {environment.get("XLA_CLIENT_MEM_FRACTION") for environment in environments} == {given}


def start(flags: list[str], errors: int = subprocess.DEVNULL) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "jpeft.cli", *flags], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors
    )


def assert_done(flags: list[str]) -> None:
    """Wait for the command to exit with 0; its output is in the assertion message."""
    grid = start(flags, errors=subprocess.PIPE)
    _, errors = grid.communicate()
    assert grid.returncode == 0, errors.decode()


_SWALLOWS = """
import time
from jpeft.grid import worker

def do(job, session):
    print("at work", flush=True)
    try:
        time.sleep(60)
    except BaseException:
        pass
    return worker.Outcome("failed", "what came up was taken for an error")

worker.do = do
worker.main()
"""


def test_a_worker_told_to_stop_outside_training_ends_as_a_kill_would():
    """An exception raised by the signal could surface inside a library, which might handle it as its own."""
    worker = subprocess.Popen(
        [sys.executable, "-c", _SWALLOWS, "1"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert worker.stdin is not None and worker.stderr is not None
    worker.stdin.write(json.dumps(dataclasses.asdict(Job({}, "nowhere"))) + "\n" + '{"config": {}, "dire')
    worker.stdin.flush()
    assert "at work\n" in iter(worker.stderr.readline, "")
    try:
        outcomes, errors = worker.communicate(timeout=30)  # the parent process dies in the middle of a job
    finally:
        worker.kill()
    assert worker.returncode == 0 and outcomes == "" and "Traceback" not in errors


_ANSWERS_AT_ONCE = """
import json, os, sys, time

jobs = [json.loads(sys.stdin.readline()) for _ in range(3)]
said = b"".join(b'{"status": "done", "lane": %d}\\n' % job["lane"] for job in jobs)
os.write(1, said[:5])
time.sleep(0.3)
os.write(1, said[5:])
sys.stdin.readline()
"""


def test_outcomes_that_come_together_and_in_parts_are_all_heard_of(monkeypatch):
    """A line left in a buffer would only arrive with the next one, and its worker would count as busy until then."""
    popen = subprocess.Popen
    start_script = lambda call, **options: popen([sys.executable, "-c", _ANSWERS_AT_ONCE], **options)
    monkeypatch.setattr(local.subprocess, "Popen", start_script)
    pool = local.LocalPool([DeviceShare()], lanes=3)
    for worker in (0, 1, 2):
        pool.submit(worker, Job({"a text": "é" * 100_000}, "nowhere"))
    try:
        until, heard = time.monotonic() + 5, []
        while len(heard) < 3 and time.monotonic() < until:
            heard += pool.wait(0.5)
        assert [event.worker for event in heard] == [0, 1, 2]
        assert all(event.outcome is not None and event.outcome.status == "done" for event in heard)
        pool.submit(1, Job({}, "nowhere"))
        ends = pool.wait(20.0)
        assert [(event.worker, event.outcome) for event in ends] == [(0, None), (1, None), (2, None)]
        assert ends[0].reason == "its process ended with status 0"
    finally:
        pool.close()


@pytest.mark.slow
def test_killed_at_five_moments_it_ends_as_if_it_had_not_been(grid_flags, tmp_path):
    """After SIGKILL of the command, twice also of a worker: the same results, and no finished cell runs again."""
    flags = ["--methods=full,lora,prompt", "--tasks=agnews,samsum", "--seeds=0,1", "--jobs=2"]
    flags += ["--config.train.checkpoint_every_seconds=0"]
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    assert_done(grid_flags(unbroken, *flags))
    finished: dict[Path, int] = {}
    for moment in range(5):
        grid = start(grid_flags(killed, *flags))
        until = time.monotonic() + 240
        while len(list(killed.glob("*/result.json"))) < max(1, 2 * moment) and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.13 * moment)  # in the middle of a cell, before two workers finish the rest
        grid.kill()
        grid.wait()
        for path in killed.glob("*/result.json"):
            finished.setdefault(path, path.stat().st_mtime_ns)
    assert 2 <= len(finished) < 12, "the kills missed"
    assert_done(grid_flags(killed, *flags))
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())
    names = sorted(path.parent.name for path in unbroken.glob("*/result.json"))
    assert len(names) == 12
    for name in names:
        assert outcome(killed / name) == outcome(unbroken / name)
        assert (killed / name / "predictions.jsonl").read_text() == (unbroken / name / "predictions.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_being_told_to_stop_saves_what_is_at_work_and_a_killed_worker_is_replaced(number, grid_flags, tmp_path):
    flags = grid_flags(tmp_path / "grid", "--methods=lora", "--tasks=agnews,samsum", "--config.train.max_epochs=40")
    first = tmp_path / "grid/lora_agnews_low_seed0"
    grid = start(flags, errors=subprocess.PIPE)
    wait_for(first / "progress.json")
    worker = json.loads((first / "progress.json").read_text())["worker"].partition(":")[2]
    os.kill(int(worker), signal.SIGKILL)
    wait_for(first / "result.json")
    wait_for(tmp_path / "grid/lora_samsum_low_seed0/progress.json")
    grid.send_signal(number)
    _, errors = grid.communicate()
    assert grid.returncode == 1
    assert b"killed by SIGKILL (out of memory?); it goes back in the queue" in errors
    assert b"error: interrupted; the same command goes on from there" in errors
    assert "stopped by" not in (first / "log.txt").read_text()
    assert any((tmp_path / "grid/lora_samsum_low_seed0/checkpoint").iterdir())


@pytest.mark.slow
def test_cells_side_by_side_are_as_one_after_the_other_also_when_killed(grid_flags, tmp_path):
    flags = ["--methods=lora,prompt", "--tasks=agnews", "--seeds=0,1"]
    flags += ["--config.train.max_epochs=12", "--config.train.patience=12"]
    assert start(grid_flags(tmp_path / "alone", *flags)).wait() == 0
    killed = tmp_path / "killed"
    grid = start(grid_flags(killed, *flags, "--fuse=auto"))
    wait_for(killed / "lora_agnews_low_seed1/checkpoint")
    grid.kill()
    grid.wait()
    assert not list(killed.glob("*/result.json")), "the kill came too late"
    assert start(grid_flags(killed, *flags, "--fuse=auto")).wait() == 0
    for name in sorted(path.parent.name for path in (tmp_path / "alone").glob("*/result.json")):
        ours, alone = (json.loads((tmp_path / d / name / "result.json").read_text()) for d in ("killed", "alone"))
        assert ours["validation_losses"] == pytest.approx(alone["validation_losses"], abs=1e-5)
        assert (ours["together"], alone["together"]) == (2, 1)


def wait_for(path: Path) -> None:
    until = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < until, f"{path} never came"
        time.sleep(0.02)
