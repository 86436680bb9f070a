"""A device's compiler in a child process: requests, answers and failures."""

import dataclasses
import json
import os
import subprocess
import sys
import textwrap

import jax
import pytest

from jpeft.accelerators import compiles_for_gpus, compiles_for_tpus
from jpeft.config import Run
from jpeft.errors import RunFailed, UserError
from jpeft.plan import child, compile
from jpeft.plan.compile import Remote, Workshop, child_environment, needed_bytes, short_refusal
from jpeft.plan.devices import DEVICES
from jpeft.plan.fit import Plan, make_plan
from jpeft.plan.memory import Lengths

LENGTHS = Lengths(16, 4)
REFUSAL = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (16.92G) exceeds "
    "available HBM (15.75G)."
)


@pytest.mark.parametrize(
    ("said", "needs"),
    [
        (REFUSAL, 16.92 * 2**30),
        (
            "Used 18.46G of 15.75G hbm.\n\nTotal hbm usage >= 18.97G:\n    program   7.50G\n    arguments 10.85G",
            7.5 * 2**30,
        ),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 512M bytes.", 2**29),
        ("RESOURCE_EXHAUSTED: no", 0),
    ],
)
def test_what_a_refusal_tells(said, needs):
    assert needed_bytes(said) == int(needs)
    assert "\n" not in short_refusal(said) and not short_refusal(said).startswith("RESOURCE")


@pytest.fixture
def small(four_headed_checkpoint):
    config = {"model": {"name": str(four_headed_checkpoint)}, "mesh": {"model": 2}}
    return Run.from_config(config)


def test_a_refusal_is_an_answer_and_what_was_compiled_is_kept(small, monkeypatch):
    workshop = Workshop()
    first = workshop.compile(small, LENGTHS, "update")
    lowered = type(workshop.held(small, LENGTHS)), workshop._describe(small, LENGTHS).programs["update"]

    class Refusing:
        def __init__(self, traced):
            self.jaxpr = traced.jaxpr

        def lower(self):
            return self

        def as_text(self):
            return "another program"

        def compile(self):
            raise type("XlaRuntimeError", (RuntimeError,), {})(REFUSAL)

    real = lowered[1].traced
    with monkeypatch.context() as patch:
        patch.setattr(lowered[1], "traced", lambda *args: Refusing(real(*args)))
        refused = workshop.compile(small, LENGTHS, "update")
    assert refused.refused is not None and "15.75G" in refused.refused
    assert refused.bytes == int(16.92 * 2**30)
    held = workshop.held(small, LENGTHS)
    assert Plan(small, LENGTHS, held, {"update": first}, "").fits(1e15)
    assert not Plan(small, LENGTHS, held, {"update": refused}, "").fits(1e15)
    with monkeypatch.context() as patch:  # from the cache: nothing is compiled
        patch.setattr("jax.stages.Lowered.compile", None)
        assert Workshop().compile(small, LENGTHS, "update") == first


def test_the_child_answers_each_question(small):
    question = {"run": small.to_dict(), "lengths": dataclasses.asdict(LENGTHS), "what": "held"}
    made = child.answer(Workshop(), question)["made"]
    assert made == dataclasses.asdict(Workshop().held(small, LENGTHS))
    wide = {**small.to_dict(), "mesh": {"data": 1, "fsdp": 1, "model": 3}}
    assert "does not divide" in child.answer(Workshop(), {**question, "run": wide})["user_error"]
    assert child.answer(Workshop(), {**question, "what": "nothing"})["failed"].startswith("KeyError")


def stand_in(tmp_path, monkeypatch, body: str, **options) -> Remote:
    """A compiler whose child process runs `body` instead of jpeft's code."""
    (tmp_path / "child.py").write_text("import json, os, signal, sys, time\n" + textwrap.dedent(body))
    monkeypatch.setattr(compile, "_CHILD", [str(tmp_path / "child.py")])
    return Remote(DEVICES["A10"], **options)


@pytest.mark.parametrize(
    ("body", "error", "says"),
    [
        (
            "print('F0 Check failed: x', file=sys.stderr); os.kill(os.getpid(), signal.SIGABRT)",
            RunFailed,
            "by SIGABRT at ",
        ),
        ("sys.exit('ImportError: no plug-in')", RunFailed, "with status 1 at train: ImportError: no plug-in"),
        ("sys.stdin.readline(); print(json.dumps({'user_error': 'no such mesh'}))", UserError, "no such mesh"),
        ("sys.stdin.readline(); print(json.dumps({'failed': 'Oh: no'}))", RunFailed, "cannot make train: Oh: no"),
        ("time.sleep(60)", RunFailed, "has not made train in 1 seconds"),
    ],
)
def test_a_child_that_fails_says_how(body, error, says, small, tmp_path, monkeypatch):
    with stand_in(tmp_path, monkeypatch, body, seconds=1.0 if "sleep" in body else 60.0) as compiler:
        with pytest.raises(error, match=says):
            compiler.compile(small, LENGTHS, "train")


@pytest.mark.slow
def test_a_child_whose_parent_is_gone_ends_in_the_middle_of_its_work():
    body = "import sys, time; from jpeft.plan.child import lines_of; print(next(lines_of(sys.stdin))); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-uc", body], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write("a question\n")
    child.stdin.flush()
    assert child.stdout.readline() == "a question\n" and child.poll() is None
    child.stdin.close()
    assert child.wait(60) == 0
    child.stdout.close()


def test_the_childs_environment_is_its_own(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)  # JAX sets it
    environment = child_environment(DEVICES["v5e"])
    assert "XLA_FLAGS" not in environment and environment["JAX_PLATFORMS"] == "cpu"
    assert environment["TPU_SKIP_MDS_QUERY"] == "1" and "TPU_SKIP_MDS_QUERY" not in child_environment(DEVICES["A10"])
    assert os.environ["XLA_FLAGS"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["A10", "v5e"])
def test_a_plan_by_the_devices_own_compiler(name, small, tmp_path, monkeypatch):
    """Within a minute, in a process that does not look for such a device."""
    if not (compiles_for_tpus() if DEVICES[name].is_tpu else compiles_for_gpus()):
        pytest.skip(f"needs jpeft[{DEVICES[name].extra}]")
    monkeypatch.setenv("JPEFT_CACHE", str(tmp_path))
    config = {**small.to_dict(), "model": {"name": small.model.name, "scan_layers": True}}
    run = Run.from_config({**config, "mesh": {"data": 1, "fsdp": 2, "model": 2}})
    with Remote(DEVICES[name]) as compiler:
        plan = make_plan(run, compiler, LENGTHS)
    assert name in plan.compiler and plan.held.weights > 0
    train = plan.programs["train"]
    assert train.temporary_bytes > 0 and train.flops > 0 and train.bytes_moved > 0
    assert train.messages.count["all-gather"] > 0 and train.messages.sent > 0
    assert plan.fits(DEVICES[name].memory) and not plan.fits(float(plan.held.bytes))
    assert json.loads(next((tmp_path / "plan").iterdir()).read_text())["seconds"] > 0
    assert {device.platform for device in jax.devices()} == {"cpu"}  # this process does not look for such a device
