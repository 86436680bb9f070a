"""Plans against the memory and work of actual runs."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest

from jpeft.cli import main
from jpeft.config import MeshConfig, Run
from jpeft.errors import UserError
from jpeft.mesh.layout import Layout
from jpeft.peft.attaching import split
from jpeft.peft.full import Full
from jpeft.peft.lora import Lora
from jpeft.peft.methods import METHODS
from jpeft.plan.compile import Workshop
from jpeft.plan.devices import DEVICES
from jpeft.plan.fit import make_plan, plan_all, smallest_change
from jpeft.plan.memory import STEPS, Lengths, describe, may_score_unknown_labels, steps_of
from jpeft.train.optimizer import AdamW
from jpeft.train.programs import parts_apart
from jpeft.train.session import Session
from jpeft.train.setup import set_up
from jpeft.train.step import init_state, zero_sums
from tests.conftest import slow_but

CONFIG = Path(__file__).parents[2] / "configs/benchmark.py"


@pytest.fixture
def run(four_headed_checkpoint):
    def make(method="lora", **mesh):
        return Run.from_config(
            {"model": {"name": str(four_headed_checkpoint)}, "method": {"name": method}, "mesh": mesh}
        )

    return make


LENGTHS = Lengths(16, 8)
HERE = Workshop()
SIGN_OF_LIFE = "plans from shapes alone: loads no weights, compiles the run's programs\n"


def held(tree) -> int:
    """Bytes of a tree on the first device."""
    first = jax.devices()[0]
    return sum(s.data.nbytes for leaf in jax.tree.leaves(tree) for s in leaf.addressable_shards if s.device == first)


@pytest.mark.parametrize(("method", "mesh"), [("lora", {"model": 4}), ("full", {"fsdp": 4})])
def test_its_bytes_are_those_of_the_arrays_that_a_run_holds(method, mesh, run):
    chosen = run(method, **mesh)
    chosen = dataclasses.replace(chosen, model=dataclasses.replace(chosen.model, dtype="bfloat16"))
    planned = HERE.held(chosen, LENGTHS)
    layout = Layout.of_devices(**mesh)
    _, adapter, base = split(set_up(chosen, Session(), layout).model)
    adapter, base = layout.place(adapter), layout.place(base)
    state = layout.place(init_state(adapter, AdamW()))
    assert planned.weights == held(base)
    assert planned.adapter == held(state.adapter)
    assert planned.optimizer == held(state.opt_state)
    assert planned.gradients == held(layout.place(zero_sums(adapter)).grads)
    assert planned.bytes == held(base) + held(state) - state.step.nbytes + planned.gradients


@pytest.mark.parametrize("axis", ["model", "fsdp"])
def test_four_devices_hold_a_quarter_of_full_tuning_each(axis):
    """As found: the adapter's shard was whole, which nothing but a plan of the paper's model showed."""
    xl = Run.from_config({"model": {"name": "google/flan-t5-xl"}, "method": {"name": "full"}, "mesh": {axis: 4}})
    numbers = 2_849_757_184 / 4
    held = HERE.held(xl, LENGTHS)
    assert held.adapter == held.gradients == pytest.approx(4 * numbers, rel=1e-3)
    assert held.optimizer == pytest.approx(8 * numbers, rel=1e-3) and held.weights == 0


def test_auto_dtype_is_this_machines_or_else_an_accelerators(run):
    """On this CPU a run with `model.dtype=auto` computes in float32; on a named accelerator in bfloat16."""
    auto = run("lora")
    with_dtype = lambda dtype: dataclasses.replace(auto, model=dataclasses.replace(auto.model, dtype=dtype))
    assert auto.model.dtype == "auto"
    here, accelerator = HERE.held(auto, LENGTHS), Workshop(stands_in=True).held(auto, LENGTHS)
    assert here == HERE.held(with_dtype("float32"), LENGTHS)
    assert accelerator == HERE.held(with_dtype("bfloat16"), LENGTHS)
    assert (here.weights, here.cache) == (2 * accelerator.weights, 2 * accelerator.cache)


@pytest.mark.parametrize("method", slow_but([], [name for name in METHODS if name != "full"]))
def test_parts_of_a_batch_tell_each_other_an_adapters_gradients_once_a_step(method, run):
    parts = run(method, data=4)
    train, update = (HERE.compile(parts, LENGTHS, name) for name in ("train", "update"))
    assert train.messages.count == {}
    loss_and_tokens = 8
    assert update.messages.bytes == {"all-reduce": HERE.held(parts, LENGTHS).gradients + loss_and_tokens}


def test_with_dropout_or_a_base_that_trains_gradients_are_exchanged_as_they_come():
    parts, whole = Layout.of_devices(data=4), Layout.of_devices(fsdp=2, model=2)
    assert parts_apart(parts, Lora(), 0.0) == 4 and parts_apart(whole, Lora(), 0.0) == 1
    assert parts_apart(parts, Lora(), 0.1) == parts_apart(parts, Full(), 0.0) == 1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_answers_under_fsdp_gather_no_weights(method, run):
    """Gathered inside the loop over tokens, they would be several times the traffic of one validation pass."""
    fsdp = run(method, fsdp=4)
    validation, generation = (HERE.compile(fsdp, LENGTHS, name).messages.bytes for name in ("validation", "generation"))
    assert validation["all-gather"] > 0 and generation.get("all-gather", 0) < 0.2 * validation["all-gather"]


@pytest.mark.slow
def test_a_peft_step_does_two_thirds_of_the_work_of_a_full_one(run):
    lora, full = (make_plan(run(method), HERE, LENGTHS).programs["train"].flops for method in ("bitfit", "full"))
    assert 0.63 < lora / full < 0.75  # not 2/3: the head's gradient and attention differ
    assert make_plan(run("bitfit"), HERE, LENGTHS).programs["train"].messages.count == {}


@pytest.mark.slow
def test_what_would_make_it_fit_is_found(run):
    plan = make_plan(run("lora"), HERE, LENGTHS)
    memory = (plan.held.bytes + plan.peak) / 2 / 0.9
    assert not plan.fits(memory)
    other = smallest_change(plan, HERE, memory)
    assert other is not None and other.fits(memory)
    train, before = other.run.train, plan.run.train
    assert train.batch_size * train.accumulation_steps == before.batch_size * before.accumulation_steps
    assert smallest_change(plan, HERE, plan.held.bytes / 2) is None


def with_answer(run: Run, answer: str) -> Run:
    return dataclasses.replace(run, eval=dataclasses.replace(run.eval, answer=answer))


def test_scoring_labels_is_a_step_of_a_run_that_does_it(run):
    generating, scoring = (with_answer(run(), answer) for answer in ("generate", "score"))
    assert steps_of(with_answer(run(), "auto")) == steps_of(generating) == STEPS
    assert steps_of(scoring) == (*STEPS, "scoring")
    described = describe(scoring, LENGTHS)
    assert "scoring" not in describe(generating, LENGTHS).programs
    log_probs = described.programs["scoring"].traced(*described.arguments["scoring"]).out_info
    assert log_probs.shape == (scoring.rows()[1], 4)  # of AG News's labels


def test_runs_that_score_and_that_generate_are_planned_apart(run):
    class Refusing:
        words = "none"

        def held(self, run, lengths):
            raise UserError(run.eval.answer)

        def compile(self, run, lengths, step):
            raise AssertionError

    cells = [("one", with_answer(run(), "generate")), ("other", with_answer(run(), "score"))]
    assert [why for *_, why in plan_all(cells, Refusing(), 1e9)] == ["generate", "score"]


@pytest.mark.slow
def test_a_plan_has_the_memory_of_scoring(run):
    scoring = dataclasses.replace(with_answer(run(), "score"), mesh=MeshConfig(fsdp=4))
    lines = []
    plan = make_plan(scoring, HERE, LENGTHS, report=lines.append)
    assert plan.needs("scoring") == plan.programs["scoring"].bytes + plan.held.answering
    assert plan.held.answering > 0 and plan.programs["scoring"].flops > plan.programs["validation"].flops / 2
    assert lines[-1] == "compiles scoring (5 of 5): 32 x (16 + 8 tokens)"
    # Memory in which everything but scoring fits: fewer rows are evaluated at once.
    others = max(plan.needs(step) for step in ("train", "validation", "generation"))
    assert others < plan.needs("scoring")
    other = smallest_change(plan, HERE, (plan.held.bytes + (others + plan.needs("scoring")) / 2) / 0.9)
    assert other is not None and other.run.rows()[1] < plan.run.rows()[1]


def test_labels_that_only_rows_have_are_left_out_and_named():
    custom = Run.from_config({"model": {"name": "mini"}, "data": {"task": "custom", "path": "x.jsonl"}})
    assert may_score_unknown_labels(custom) and steps_of(custom) == STEPS
    assert not may_score_unknown_labels(with_answer(custom, "generate"))
    text = dataclasses.replace(custom, data=dataclasses.replace(custom.data, kind="generation"))
    assert not may_score_unknown_labels(text)


@pytest.fixture
def command(four_headed_checkpoint, monkeypatch):
    """Call `jpeft plan`; the environment that it sets is restored, and JAX has already started with four devices."""
    for name in ("XLA_FLAGS", "JAX_PLATFORMS"):
        monkeypatch.setenv(name, "")

    def call(*flags: str) -> int:
        config = [] if "--grid" in flags else [f"--config={CONFIG}:lora_agnews_low"]
        return main(["plan", *config, f"--config.model.name={four_headed_checkpoint}", *flags])

    return call


@pytest.mark.slow
def test_the_command(command, capsys):
    short = ("--input-length=16", "--config.data.max_target_length=4", "--device=A10")
    assert command(*short, "--mesh=data=2,model=2", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["input_length"], plan["target_length"]) == (16, 4)  # the flag sets one length, the config the other
    assert plan["fits"] is True and plan["mesh"] == {"data": 2, "fsdp": 1, "model": 2}
    assert plan["compiler"].startswith("XLA's compiler for this machine's CPU")
    assert plan["steps"]["train"]["least_seconds"] > 0 and plan["steps"]["train"]["messages"]["calls"] == 4
    assert command(*short, "--mesh=data=2,model=2", "--device-memory=0.0003GB", "--no-search") == 0  # already compiled
    out, err = capsys.readouterr()
    assert "does not fit: " in out and "0.00 " not in out and "nothing" not in out and " kB" in out
    assert "no smaller micro-batch fits" not in out  # no search was made
    lines = err.removeprefix(SIGN_OF_LIFE).splitlines()
    assert [line.split(" (")[0] for line in lines] == [
        f"compiles {step}" for step in ("train", "update", "validation", "generation")
    ]


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--mesh=model", "--mesh is 'model'; expected axes such as model=4"),
        ("--mesh=heads=4", "expected axes such as model=4"),
        ("--mesh=model=8", "asks for 8 devices; there are 4"),
        ("--mesh=data=3", "cannot be shared out evenly"),
        ("--mesh=model=2,model=1", "gives model twice"),
        ("--hosts=3", "1 device cannot be divided evenly among 3 hosts"),
        ("--device=B7", "--device B7 is not known"),
        ("--device-memory=24", "expected an amount such as 24GB"),
        ("--input-length=1", "argument --input-length: 1 is not from 2 to 65,536"),
        ("--target-length=1", "argument --target-length: 1 is not from 2 to 16,384"),
        ("--hosts=0", "argument --hosts: 0 is not from 1 to 4,096"),
        ("--devices=0", "argument --devices: 0 is not from 1 to 65,536"),
    ],
)
def test_a_wrong_call_is_one_line(flag, says, command, capsys):
    try:
        status = command(flag)
    except SystemExit as ended:  # what argparse itself finds
        status = ended.code
    line = capsys.readouterr().err.removeprefix(SIGN_OF_LIFE)  # printed first on a slow machine
    assert status == 2 and says in line and line.startswith("error: ") and line.count("\n") == 1


@pytest.mark.slow
def test_meshes_are_ranked_by_time_among_those_that_fit(command, capsys):
    short = ("--input-length=16", "--target-length=4", "--device=A10", "--best", "--devices=2", "--json")
    assert command(*short) == 0
    meshes = json.loads(capsys.readouterr().out)["meshes"]
    shapes = [tuple(one["mesh"].values()) for one in meshes]
    assert sorted(shapes) == [(1, 1, 2), (1, 2, 1), (2, 1, 1)] and all(one["fits"] for one in meshes)
    seconds = [one["step_seconds"] for one in meshes]
    assert seconds == sorted(seconds) and seconds[0] > 0
    assert command(*short, "--device-memory=0.0001GB") == 0  # compiled before
    meshes = json.loads(capsys.readouterr().out)["meshes"]
    assert not any(one["fits"] for one in meshes) and all(one["why"] for one in meshes)


@pytest.mark.slow
def test_a_grid_is_one_table_and_what_is_alike_is_compiled_once(command, capsys):
    cells = ("--methods=lora,bitfit", "--tasks=agnews", "--scales=low,medium", "--ablations=none")
    assert command("--grid", *cells, "--device=A10", "--json") == 0
    out, err = capsys.readouterr()
    planned = json.loads(out)["cells"]
    assert [one["cell"] for one in planned] == [
        f"{m}_agnews_{s}" for m in ("lora", "bitfit") for s in ("low", "medium")
    ]
    assert planned[0]["bytes"] == planned[1]["bytes"] != planned[2]["bytes"]
    assert err.count("compiles train") == 2


@pytest.mark.slow
def test_messages_to_another_host_take_the_network(run):
    """Between two hosts the same messages take the network's bandwidth instead of the interconnect's."""
    device = DEVICES["A10"]
    of = {hosts: make_plan(run("full", data=2), Workshop(hosts=hosts), LENGTHS) for hosts in (1, 2)}
    within, between = (of[hosts].seconds("train", device).messages for hosts in (1, 2))
    assert between == pytest.approx(within * device.interconnect / device.network)
