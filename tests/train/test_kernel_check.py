"""`jpeft.train.kernel_check`: miscompiled gradients and updates cause a warning before a run trains."""

import gc
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpeft.peft.attaching import attach, split
from jpeft.peft.lora import Lora
from jpeft.peft.selection import Selection, select
from jpeft.program import Program
from jpeft.train import kernel_check
from jpeft.train.kernel_check import FirstUpdate, MicroBatch, kernel_caution, update_caution
from jpeft.train.optimizer import AdamW
from jpeft.train.schedule import constant
from jpeft.train.step import init_state, make_accumulate, make_update, zero_sums
from tests.conftest import ONE_LAYER, TINY, make_batch, random_t5
from tests.train.test_loop import result_of, run

# An option of the CPU's compiler that gives another program with right results.
OTHERWISE = {"cpu": {"xla_backend_optimization_level": 1}}


class Wrong(Program):
    """A program whose gradients of LoRA's A are too small, unless compiled with other options."""

    def __call__(self, *args):
        sums = super().__call__(*args)
        shrunk = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf * (0.5 if "lora_a" in jax.tree_util.keystr(path) else 1.0), sums.grads
        )
        return type(sums)(shrunk, sums.loss, sums.tokens)


@pytest.fixture(scope="module")
def step():
    model = random_t5(ONE_LAYER)
    method, few = Lora.official(), Selection(pattern="encoder/layers/0/self_attention/[qv]")
    graphdef, adapter, base = split(attach(model, method, select(model, method, few), jax.random.key(0)))
    batch = make_batch(TINY, rows=4, enc_len=8, dec_len=5)
    key = jax.random.key(0, impl="rbg")
    return graphdef, adapter, (base, key, np.int32(0), np.int32(0), batch)


@pytest.fixture
def check(step, tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_check, "PLAIN", OTHERWISE)
    graphdef, adapter, others = step

    def caution(kind=Program, *, platform="cpu", report=lambda line: None, perturb=True, bfloat16=False, first=None):
        program = kind(make_accumulate(graphdef), donate=(0,))
        first = first or (lambda: MicroBatch(program, lambda: zero_sums(adapter), adapter, others, perturb))
        cache_dir = tmp_path / "kernels"
        return kernel_caution(first, bfloat16=bfloat16, platform=platform, cache_dir=cache_dir, report=report)

    return caution


@pytest.mark.slow
def test_right_kernels_pass_and_the_verdict_is_kept(check, tmp_path, monkeypatch):
    assert check() is None
    [verdict] = (tmp_path / "kernels").iterdir()
    assert json.loads(verdict.read_text())["off"] < 1e-5
    monkeypatch.setattr(MicroBatch, "deviation", lambda *_: pytest.fail("it is known"))
    assert check() is None


@pytest.mark.slow
def test_wrong_kernels_are_told_each_time(check, tmp_path):
    line = check(Wrong)
    assert line is not None and line.startswith("a gradient of the first micro-batch by XLA's kernels and the")
    [verdict] = (tmp_path / "kernels").iterdir()
    assert json.loads(verdict.read_text())["off"] == pytest.approx(0.5, rel=1e-3) and "by 50 % of its norm" in line
    assert check(Wrong) == line


@pytest.mark.slow
def test_an_adapter_is_moved_so_that_all_of_it_has_a_gradient(check):
    assert check(Wrong, perturb=False) is None  # next to a zero B, A has no gradient


@pytest.mark.slow
def test_bfloat16_may_differ_by_more(check, monkeypatch):
    monkeypatch.setattr(MicroBatch, "deviation", lambda *_: 0.2)
    assert check(bfloat16=True) is None and "by 20 %" in (check() or "")


@pytest.mark.slow
def test_a_verdict_that_cannot_be_kept_counts(check, tmp_path):
    (tmp_path / "kernels").write_text("a file, where a directory should be")
    assert "differ by 50 % of its norm" in (check(Wrong) or "")


def test_it_can_be_switched_off_and_says_so(check, monkeypatch):
    said = []
    monkeypatch.setenv("JPEFT_KERNEL_CHECK", "0")
    assert check(Wrong, report=said.append, first=lambda: pytest.fail("not needed")) is None
    assert said == ["the first step is not checked for compiler errors: JPEFT_KERNEL_CHECK is 0"]


@pytest.mark.slow
def test_nothing_of_the_other_program_stays_loaded(step):
    graphdef, adapter, others = step
    program = Program(make_accumulate(graphdef), donate=(0,))
    first = MicroBatch(program, lambda: zero_sums(adapter), adapter, others, perturb=True)
    first.compiled(program)
    gc.collect()
    before = len(jax.local_devices()[0].client.live_executables())
    plain = program.compiled_by(OTHERWISE["cpu"])
    first.compiled(plain)
    del plain
    gc.collect()
    assert len(jax.local_devices()[0].client.live_executables()) == before


class Forgetful(Program):
    """An update that leaves one leaf unchanged."""

    def __call__(self, *args):
        before = jax.tree.leaves(jax.tree.map(jnp.copy, args[0].adapter))[0]
        state, *others = super().__call__(*args)
        leaves, structure = jax.tree.flatten(state.adapter)
        state.adapter = jax.tree.unflatten(structure, [before, *leaves[1:]])
        return (state, *others)


class Misread(Program):
    """An update that is right except for the reported norm of its gradient."""

    def __call__(self, *args):
        *others, told = super().__call__(*args)
        return (*others, {**told, "grad_norm": 0.885 * told["grad_norm"]})


@pytest.fixture
def check_update(step, tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_check, "PLAIN", OTHERWISE)
    graphdef, adapter, others = step
    optimizer = AdamW(weight_decay=0.01)

    def caution(kind=Program, *, platform="cpu", report=lambda line: None):
        function, program = make_update(optimizer), Program(make_accumulate(graphdef), donate=(0,))
        micro_batch = MicroBatch(program, lambda: zero_sums(adapter), adapter, others, True)
        state, rates = init_state(jax.tree.map(jnp.copy, adapter), optimizer), constant(0.1)
        first = FirstUpdate(kind(function, donate=(0, 1)), function, state, rates, micro_batch)
        said = update_caution(lambda: first, platform=platform, cache_dir=tmp_path / "kernels", report=report)
        assert all(not leaf.is_deleted() for leaf in jax.tree.leaves(state))  # the run's own, which begins with it
        return said

    return caution


@pytest.mark.slow
def test_a_right_update_passes_and_the_verdict_is_kept(check_update, tmp_path, monkeypatch):
    said = []
    assert check_update(report=said.append) is None and not said
    [verdict] = (tmp_path / "kernels").iterdir()
    assert json.loads(verdict.read_text())["off"] < 1e-4
    monkeypatch.setattr(FirstUpdate, "deviation", lambda *_: pytest.fail("it is known"))
    assert check_update() is None


@pytest.mark.parametrize(("kind", "percent"), [(Forgetful, "100"), (Misread, "11.5")])
def test_a_wrong_update_is_told(check_update, kind, percent):
    line = check_update(kind)
    assert line is not None and f"differ by {percent} %: one of them is wrong" in line


def test_an_update_is_not_looked_at_where_nothing_is(check_update, monkeypatch):
    assert check_update(Misread, platform="tpu") is None
    said = []
    monkeypatch.setattr(kernel_check, "_MOST_TO_UPDATE", 1.0)
    assert check_update(Misread, report=said.append) is None
    [line] = said
    assert (
        line == "the first update was not compared with the CPU's: 0.0 GB are trainable, too much to update on the host"
    )
    monkeypatch.setenv("JPEFT_KERNEL_CHECK", "0")
    assert check_update(Misread, report=lambda line: pytest.fail(line)) is None


def test_no_gradient_anywhere_is_no_difference():
    nothing = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}
    assert kernel_check._relative_difference(nothing, nothing) == 0


@pytest.mark.slow
def test_what_is_not_finite_is_wrong(check, monkeypatch):
    monkeypatch.setattr(kernel_check, "_relative_difference", lambda found, right: jnp.float32(np.nan))
    assert "differ by inf %" in (check() or "")


@pytest.mark.slow
@pytest.mark.slow
def test_other_flags_and_other_versions_are_looked_at_anew(check, tmp_path, monkeypatch):
    check()
    monkeypatch.setenv("JAX_DEFAULT_MATMUL_PRECISION", "highest")
    check()
    monkeypatch.setattr(jax, "__version__", "9.9.9")
    check()
    files = list((tmp_path / "kernels").iterdir())
    assert len(files) == 3
    for file in files:
        file.write_text("{")
    monkeypatch.setattr(MicroBatch, "deviation", lambda *_: 0.5)
    assert "differ by 50 %" in (check() or "")  # a damaged verdict is measured again


def test_devices_without_such_kernels_are_not_looked_at(check):
    assert check(Wrong, platform="tpu", first=lambda: pytest.fail("not needed")) is None


@pytest.mark.slow
def test_what_cannot_be_compared_is_said_and_stops_nothing(check, monkeypatch, tmp_path):
    said = []
    monkeypatch.setattr(kernel_check, "free_memory", lambda: 1e3)
    assert check(Wrong, report=said.append) is None
    assert "the compiler's kernels were not compared with the library's: the second program needs 0.0 GB" in said.pop()
    monkeypatch.setattr(kernel_check, "PLAIN", {"cpu": {"no_such_option": True}})
    assert check(Wrong, report=said.append) is None
    assert said.pop().startswith("the compiler's kernels were not compared with the library's: ")
    assert not (tmp_path / "kernels").exists()


@pytest.mark.slow
def test_a_run_is_looked_at_before_it_trains_and_is_what_it_would_be(tiny_checkpoint, toy_data, tmp_path, monkeypatch):
    monkeypatch.setenv("JPEFT_CACHE", str(tmp_path / "cache"))
    few = ("--config.train.max_epochs=1", "--config.data.max_train=16")
    assert run("ia3_agnews_low", tmp_path / "plain", tiny_checkpoint, toy_data, *few) == 0
    assert not (tmp_path / "cache/kernels").exists()
    monkeypatch.setattr(kernel_check, "PLAIN", OTHERWISE)
    difference = kernel_check._relative_difference
    monkeypatch.setattr(kernel_check, "_relative_difference", lambda found, right: 0.3 + difference(found, right))
    assert run("ia3_agnews_low", tmp_path / "looked_at", tiny_checkpoint, toy_data, *few) == 0
    verdicts = [json.loads(file.read_text())["off"] for file in (tmp_path / "cache/kernels").iterdir()]
    assert verdicts == [pytest.approx(0.3, abs=1e-3)] * 2  # of the gradients, and of the update
    plain, looked_at = (result_of(tmp_path / name) for name in ("plain", "looked_at"))
    assert plain["validation_losses"] == looked_at["validation_losses"]
    lines = sorted(set(looked_at["warnings"]) - set(plain["warnings"]))
    assert len(lines) == 2 and "differ by 30 % of its norm" in lines[0] and "differ by 30 %: " in lines[1]

    # Trainable leaves are float32, computation is not: the bound is bfloat16's.
    monkeypatch.setattr(MicroBatch, "deviation", lambda *_: 0.2)
    few = (*few, "--config.model.dtype=bfloat16")
    assert run("full_agnews_low", tmp_path / "bfloat16", tiny_checkpoint, toy_data, *few) == 0
    assert not any("of its norm" in line for line in result_of(tmp_path / "bfloat16")["warnings"])
    assert len(list((tmp_path / "cache/kernels").iterdir())) == 4
