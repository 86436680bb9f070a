"""Runs side by side give the same results as alone, whichever starts, stops or fails beside them."""

import dataclasses
import importlib
import json
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from jpeft.config import Run
from jpeft.errors import RunFailed, Stopped
from jpeft.eval.loss import loss_sums
from jpeft.mesh.layout import Layout
from jpeft.model.decoder import Decoder
from jpeft.model.decoder_family import DECODER_FAMILY
from jpeft.model.t5_family import T5_FAMILY
from jpeft.peft.adapter import BottleneckAdapter
from jpeft.peft.attaching import attach, split
from jpeft.peft.dora import Dora
from jpeft.peft.lora import Lora
from jpeft.peft.methods import METHODS as ALL_METHODS
from jpeft.peft.selection import select
from jpeft.program import Program, thread_compile_seconds
from jpeft.run.display import Display
from jpeft.run.stop import ask_all
from jpeft.train.loop import execute
from jpeft.train.meeting import Meeting
from jpeft.train.programs import kind_of
from jpeft.train.session import Session
from jpeft.train.step import ACCUMULATE_BASE, ACCUMULATE_SUMS, make_accumulate, zero_sums
from tests.conftest import TINY, make_batch, random_t5, slow_but
from tests.decoders import LLAMA
from tests.peft.filled import filled
from tests.peft.test_laws import METHODS, ONE_LAYER


@pytest.fixture
def cell(deeper_checkpoint, toy_data):
    """A run on AG News by method and overrides."""

    def make(method="lora", **overrides):
        config = importlib.import_module(f"configs.{method}_agnews_low").get_config()
        config.update_from_flattened_dict(
            {
                "model.name": str(deeper_checkpoint),
                "data.path": str(toy_data),
                "data.max_train": 40,
                "train.max_epochs": 2,
                "train.batch_size": 4,
                "train.accumulation_steps": 2,
                **overrides,
            }
        )
        return Run.from_config(config)

    return make


def beside_each_other(runs, workdir, session=None):
    """Executes runs in threads of one process; returns the result or the exception of each."""
    session, outcomes = session or Session(Meeting()), {}

    def do(i, run):
        try:
            outcomes[i] = execute(run, workdir / str(i), display=Display(quiet=True), session=session)
        except BaseException as error:
            outcomes[i] = error

    threads = [threading.Thread(target=do, args=(i, run)) for i, run in enumerate(runs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [outcomes[i] for i in range(len(runs))]


def losses(workdir):
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "step" in record]


def assert_as_alone(run, workdir, result, alone, *, within=1e-5):
    by_itself = execute(run, alone, display=Display(quiet=True), session=Session())
    np.testing.assert_allclose(losses(workdir), losses(alone), atol=within)
    np.testing.assert_allclose(result["validation_losses"], by_itself["validation_losses"], atol=within)
    assert result["best_epoch"] == by_itself["best_epoch"]
    ours, theirs = (load_file(next((d / "adapter").glob("*.safetensors"))) for d in (workdir, alone))
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, atol=1e-3, err_msg=name)


def test_calls_of_one_program_become_one_and_each_gets_its_own_answer():
    meeting, seen = Meeting(), []

    def function(x, shared, y):
        seen.append(x.shape)
        return {"sum": x @ shared + y}

    program, shared = meeting.join(Program(function), shared=(1,)), jnp.eye(3)
    gate, got, compiling = threading.Barrier(3), {}, {}

    def run(i):
        with meeting.at_work():
            gate.wait()
            got[i] = [program(jnp.full(3, i + step), shared, np.full(3, 10.0))["sum"][0].item() for step in range(2)]
            compiling[i] = thread_compile_seconds()
            if i == 2:
                return  # others do not wait for a run that has left
            got[i].append(program(jnp.full(3, 100 + i), shared, np.full(3, 0.0))["sum"][0].item())

    threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got == {0: [10, 11, 100], 1: [11, 12, 101], 2: [12, 13]}
    assert program.widest == 2 and len(seen) == 2  # three runs make a pair and a single one, each compiled once
    assert min(compiling.values()) > 0  # also of the run that waited while the other's thread compiled


def test_calls_with_other_shared_arrays_or_shapes_do_not_meet():
    meeting = Meeting()
    program = meeting.join(Program(lambda x, shared: x + shared), shared=(1,))
    other = meeting.join(Program(lambda x, shared: x - shared), shared=(1,))
    one, two = jnp.ones(2), jnp.ones(2)
    keys = [program.batching_key(args) for args in [(0, one), (0, two)]] + [other.batching_key((0, one))]
    assert len(set(keys)) == 3
    last = meeting.join(Program(lambda shared, x: x + shared), shared=(0,))
    assert last.batching_key((one, np.ones(2))) != last.batching_key((one, np.ones(3)))


def test_runs_that_are_a_call_apart_come_together():
    """One run has three micro-batches per step, and they start one after the other."""
    meeting, turns = Meeting(), [0, 1, 2]
    programs = [meeting.join(Program(lambda x: x + 1), shared=(), turn=turn) for turn in turns]
    began, followed, answered = threading.Event(), threading.Event(), []

    def run(micro_batches, first):
        if not first:
            began.wait(60)
        with meeting.at_work():
            if not first:
                followed.set()
            for _ in range(4):
                for _ in range(micro_batches):
                    programs[0](np.zeros(1))
                    began.set()
                    followed.wait(60)
                programs[1](np.zeros(1))
            programs[2](np.zeros(1))
            answered.append(micro_batches)

    threads = [threading.Thread(target=run, args=(3 - 2 * i, not i)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(answered) == [1, 3]
    assert [program.widest for program in programs] == [2, 2, 2]


def test_an_error_of_the_program_reaches_every_run_and_nobody_waits():
    meeting = Meeting()

    def broken(x):
        raise ValueError("broken")

    program, gate, told = meeting.join(Program(broken), shared=()), threading.Barrier(2), []

    def run():
        with meeting.at_work():
            gate.wait()
            try:
                program(np.ones(2))
            except ValueError as error:
                told.append(str(error))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert told == ["broken", "broken"]


def assert_steps_as_alone(methods, model, *, lengths=((6, 5), (8, 4))):
    """Compares a micro-batch of two runs with different adapters, rows and dropout masks, batched and alone."""
    runs, kinds = [], []
    for seed, method in enumerate(methods):
        adapted = filled(attach(model, method, select(model, method), jax.random.key(seed)), jax.random.key(seed))
        graphdef, adapter, base = split(adapted)
        enc_len, dec_len = lengths[seed]
        batch = make_batch(model.config, rows=2, enc_len=enc_len, dec_len=dec_len, seed=seed)
        batch = jax.tree.map(np.asarray, batch)
        key = jax.random.key(seed, impl="rbg")
        runs.append((zero_sums(adapter), adapter, base, key, np.int32(0), np.int32(seed), batch))
        kinds.append(kind_of(graphdef, adapter, base, Layout.of_devices(data=1, model=1), label_smoothing=0.0))
    base = runs[0][2]
    runs = [(*run[:2], base, *run[3:]) for run in runs]
    meeting, pad_alike = Meeting(), lambda b: T5_FAMILY.padded_alike(b, model.config)
    programs = [
        meeting.join(
            Program(make_accumulate(graphdef)),
            shared=(ACCUMULATE_BASE,),
            pad_alike=pad_alike,
            kind=kind,
            like=ACCUMULATE_SUMS,
        )
        for kind in kinds
    ]
    assert programs[0].batching_key(runs[0]) == programs[1].batching_key(runs[1])
    beside, gate = {}, threading.Barrier(2)

    def run_beside(i):
        with meeting.at_work():
            gate.wait()
            beside[i] = programs[i](*runs[i])

    threads = [threading.Thread(target=run_beside, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert programs[0].widest == 2
    for i, run in enumerate(runs):
        sums, alone = beside[i], Program(make_accumulate(graphdef))(*run)
        np.testing.assert_allclose(sums.loss, alone.loss, rtol=1e-5)
        for ours, theirs in zip(jax.tree.leaves(sums.grads), jax.tree.leaves(alone.grads), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4 * max(1.0, float(np.abs(theirs).max())))


@pytest.mark.parametrize("name", slow_but(("lora",), [name for name in METHODS if name != "full"]))
def test_a_step_of_two_runs_is_that_of_each_alone(name):
    assert_steps_as_alone([METHODS[name]] * 2, random_t5(ONE_LAYER))


OF_TWO_RANKS = {
    "lora": [Lora(rank=3, alpha=3.0), Lora(rank=1, alpha=1.0)],
    "lora_official": [Lora.official(rank=1, alpha=2.0), Lora.official(rank=4, alpha=8.0)],
    "dora": [Dora(rank=2, alpha=4.0), Dora(rank=3, alpha=6.0)],
    "adapter": [BottleneckAdapter(bottleneck=2), BottleneckAdapter(bottleneck=5, activation="gelu")],
}


def test_every_method_that_may_be_filled_up_is_tried_so():
    filled_up = {name for name, method in ALL_METHODS.items() if method.padded_options}
    assert filled_up == {type(methods[0]).name for methods in OF_TWO_RANKS.values()}


@pytest.mark.parametrize("name", OF_TWO_RANKS)
@pytest.mark.slow
def test_a_step_of_two_ranks_is_that_of_each_alone(name):
    assert_steps_as_alone(OF_TWO_RANKS[name], random_t5(ONE_LAYER))


def test_updates_of_another_scale_do_not_meet(tiny_t5):
    kinds = []
    for method in (Lora(rank=2, alpha=1.0), Lora(rank=4, alpha=1.0), Lora(rank=4, alpha=2.0)):
        parts = split(attach(tiny_t5, method, select(tiny_t5, method), jax.random.key(0)))
        kinds.append(kind_of(*parts, Layout.of_devices(data=1, model=1), label_smoothing=0.0))
    assert kinds[0] != kinds[1] and kinds[0] == kinds[2]


@pytest.mark.slow
def test_each_of_two_runs_has_its_own_dropout_masks():
    """Their rows have the same padded length as alone, since masks are drawn for padding, too."""
    config = dataclasses.replace(ONE_LAYER, dropout_rate=0.1)
    assert_steps_as_alone([METHODS["ia3"]] * 2, random_t5(config), lengths=((6, 5), (6, 5)))


@pytest.mark.slow
def test_batches_are_made_as_long_as_the_longest_and_say_the_same(tiny_t5):
    rng = np.random.default_rng(0)
    rows = [[rng.integers(3, 300, size).astype(np.int32) for size in sizes] for sizes in ((5, 2), (9, 3))]
    for family, config, model in (
        (T5_FAMILY, TINY, tiny_t5),
        (DECODER_FAMILY, LLAMA, Decoder(LLAMA, rngs=nnx.Rngs(0))),
    ):
        batches = [
            family.batch([row[0]], [row[1]], shape, batch_size=2, config=config)
            for row, shape in zip(rows, [(5, 4), (16, 3)], strict=True)
        ]
        wide = family.padded_alike(batches, config)
        shapes = family.batch_shapes(2, (16, 4))
        for before, after in zip(batches, wide, strict=True):
            assert {name: (leaf.shape, leaf.dtype) for name, leaf in after.items()} == {
                name: (shape.shape, shape.dtype) for name, shape in shapes.items()
            }
            ours, theirs = (loss_sums(model, jax.tree.map(jnp.asarray, batch)) for batch in (after, before))
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.slow
def test_runs_of_other_seeds_rates_and_lengths_are_as_alone(cell, tmp_path):
    runs = [
        cell(),
        cell(**{"train.seed": 1, "train.learning_rate.warmup": 1e-3}),
        cell(**{"train.seed": 2, "train.max_epochs": 1, "train.weight_decay": 0.0}),
        cell(**{"train.seed": 3, "method.rank": 4, "method.alpha": 2.0}),
    ]
    session = Session(Meeting())
    results = beside_each_other(runs, tmp_path / "beside", session)
    assert all(result["together"] >= 2 for result in results[:2] + results[3:])
    assert results[3]["trainable_parameters"] > results[0]["trainable_parameters"]
    for i, run in enumerate(runs):
        assert_as_alone(run, tmp_path / "beside" / str(i), results[i], tmp_path / f"alone{i}")


@pytest.mark.slow
def test_stopped_in_the_middle_they_go_on_as_before_and_one_that_fails_holds_up_nobody(cell, tmp_path):
    runs = [
        cell(**{"train.max_epochs": 6}),
        cell(**{"train.seed": 1, "train.max_epochs": 6, "method.rank": 4, "method.alpha": 2.0}),
        cell(**{"train.seed": 2, "train.learning_rate.warmup": 1e30}),
    ]
    session, directory = Session(Meeting()), tmp_path / "beside"

    def ask_in_time():
        until = time.monotonic() + 240
        while not list(directory.glob("*/checkpoint/*")) and time.monotonic() < until:
            time.sleep(0.01)
        ask_all(signal.SIGTERM)

    asking = threading.Thread(target=ask_in_time)
    asking.start()
    first = beside_each_other(runs, directory, session)
    asking.join()
    assert isinstance(first[2], RunFailed) and "not finite" not in str(first[0])
    assert all(isinstance(outcome, Stopped) for outcome in first[:2]), first
    results = beside_each_other(runs[:2], directory)
    for i, run in enumerate(runs[:2]):
        assert_as_alone(run, directory / str(i), results[i], tmp_path / f"alone{i}")
