"""AdaLoRA's budget: how many triplets remain at each step, which ones, and the state that is carried between steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jpeft
from jpeft.adapters.files import PEFTS, layout_of, load_adapter, save_adapter
from jpeft.adapters.peft_layout import read_peft
from jpeft.errors import RunFailed, UserError
from jpeft.peft.adalora import AdaLora, Importance
from jpeft.peft.attaching import attach, split
from jpeft.peft.lora import Lora
from jpeft.peft.selection import Selection, select
from jpeft.train.schedule import three_point_schedule
from jpeft.train.setup import _require_same_adapter
from jpeft.train.step import StepSums, init_state, make_update
from tests.conftest import ONE_LAYER, TINY, make_batch, random_t5
from tests.peft.filled import filled

METHOD = AdaLora(rank=2, initial_rank=4, allocate_every=3, initial_fraction=0.2, final_fraction=0.25)
STEPS = 20  # pruning starts after step 4 and has ended at step 15
sgd = lambda schedule: optax.sgd(schedule)


@pytest.fixture(scope="module")
def adapter():
    model = random_t5(TINY)
    chosen = select(model, METHOD, Selection(names=["q", "wo"]))  # 6 and 4 maps, in two stacks of two layers
    return split(attach(model, METHOD, chosen, jax.random.key(0)))[1]


@pytest.fixture(scope="module")
def course(adapter):
    """The states before the first step and after each step, with random gradients."""
    update = jax.jit(make_update(sgd, METHOD))
    schedule = three_point_schedule(0.1, 0.1, 0.1, total_steps=STEPS, warmup_fraction=0.1)
    draw = np.random.default_rng(0)
    states = [init_state(adapter, sgd, METHOD)]
    for _ in range(STEPS):
        grads = jax.tree.map(lambda leaf: jnp.asarray(draw.standard_normal(leaf.shape), jnp.float32), adapter)
        states.append(update(states[-1], StepSums(grads, jnp.float32(1), jnp.float32(1)), schedule)[0])
    return states


def lambdas(tree):
    """The entries of all lambdas in one vector."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return np.concatenate([np.ravel(leaf) for path, leaf in paths if "lora_e" in jax.tree_util.keystr(path)])


def test_how_many_triplets_remain_at_each_step(course):
    """Section 3.3, eq. (b): the initial budget, a cubic decay, the final one; allocated at every third step between."""
    first, last = 10 * 4, 10 * 2
    for now, state in enumerate(course[1:], start=1):
        remaining = np.count_nonzero(lambdas(state.adapter))
        if now >= 15:
            assert remaining == last
        elif now > 4 and now % 3 == 0:
            assert remaining == int((first - last) * (1 - (now - 4) / 11) ** 3 + last)
        else:
            assert remaining == first


def test_what_remains_at_the_end_remains_the_same_and_trains_on(course):
    places = [lambdas(state.adapter) != 0 for state in course[15:]]
    assert all((place == places[0]).all() for place in places)
    assert (lambdas(course[15].adapter) != lambdas(course[20].adapter))[places[0]].all()
    np.testing.assert_array_equal(lambdas(course[-1].memory.kept), places[0])
    assert len({int(np.count_nonzero(e)) for e in lambdas(course[-1].adapter).reshape(10, 4)}) > 1  # ranks differ


def test_a_step_remembers_by_equations_8_to_10(course, adapter):
    before, after = course[1], course[2]
    assert isinstance(after.memory, Importance)
    moved = jax.tree.map(lambda old, new: np.abs(old * (old - new) / 0.1), before.adapter, after.adapter)
    for old, new, old_off, new_off, now in zip(
        *map(jax.tree.leaves, (before.memory.sensitivity, after.memory.sensitivity)),
        *map(jax.tree.leaves, (before.memory.uncertainty, after.memory.uncertainty, moved)),
        strict=True,
    ):
        np.testing.assert_allclose(new, 0.85 * old + 0.15 * now, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(new_off, 0.85 * old_off + 0.15 * np.abs(now - new), rtol=1e-3, atol=1e-6)


def test_the_penalty_is_the_mean_distance_from_orthonormal(adapter):
    wide = jax.tree.map(lambda leaf: leaf * 20, adapter)
    norms = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(wide):
        for layer in np.asarray(leaf):
            if "lora_a" in jax.tree_util.keystr(path):
                norms.append(np.linalg.norm(layer.T @ layer - np.eye(4)))
            elif "lora_b" in jax.tree_util.keystr(path):
                norms.append(np.linalg.norm(layer @ layer.T - np.eye(4)))
    assert len(norms) == 20
    np.testing.assert_allclose(METHOD.penalty(wide), 0.1 * np.mean(norms), rtol=1e-5)
    assert float(dataclasses.replace(METHOD, orthogonality=0.0).penalty(wide)) == 0


def test_a_method_that_remembers_nothing_has_a_state_without_it(adapter):
    assert jax.tree.leaves(init_state(adapter, sgd, Lora()).memory) == []
    kept = len(jax.tree.leaves(adapter)) // 3  # one lambda per site
    assert len(jax.tree.leaves(init_state(adapter, sgd, METHOD).memory)) == 2 * len(jax.tree.leaves(adapter)) + kept


@pytest.mark.slow
def test_fit_is_told_how_many_steps_there_are():
    model, batch = random_t5(TINY), make_batch(TINY, rows=3, enc_len=8, dec_len=5)
    method = AdaLora(rank=1, initial_rank=3, allocate_every=1, final_fraction=0.25)
    tuned = jpeft.attach(model, method, where=r"decoder/.*/q")
    fitted = jpeft.fit(tuned, [batch] * 8, method=method)
    assert np.count_nonzero(lambdas(split(fitted.model)[1])) == 4 and fitted.losses[-1] < fitted.losses[0]
    with pytest.raises(UserError, match="adalora plans by how many steps there are; tell fit by total_steps"):
        jpeft.fit(tuned, iter([batch]), method=method)


@pytest.mark.slow
def test_losses_of_a_fit_are_without_the_penalty():
    model, batch = random_t5(ONE_LAYER), make_batch(TINY, rows=3, enc_len=8, dec_len=5)
    tuned = jpeft.attach(model, AdaLora(rank=1), where=r"encoder/.*/q")
    strict = dataclasses.replace(AdaLora(rank=1), orthogonality=100.0)
    [of_strict], [of_none] = (
        jpeft.fit(tuned, [batch], method=method, total_steps=4).losses for method in (strict, AdaLora(rank=1))
    )
    assert of_strict == pytest.approx(of_none, rel=1e-6)


def test_peft_files_of_maps_with_fewer_triplets(tmp_path):
    """PEFT stores only the remaining triplets, of one map none; the padding has no effect."""
    model, draw = random_t5(TINY), np.random.default_rng(0)
    q, k = (f"encoder.block.0.layer.0.SelfAttention.{name}" for name in "qk")
    tensors = {}
    for module, rank in ((q, 2), (k, 0)):
        for leaf, shape in (("lora_A", (rank, 16)), ("lora_B", (8, rank)), ("lora_E", (rank, 1))):
            tensors[f"base_model.model.{module}.{leaf}"] = draw.standard_normal(shape).astype(np.float32)
    config = {"peft_type": "ADALORA", "init_r": 3, "target_r": 1, "lora_alpha": 6, "target_modules": [q, k]}
    config |= {"rank_pattern": {f"{q}.lora_E": [True, False, True], f"{k}.lora_E": [False] * 3}}
    method, leaves, notes = read_peft(config, tensors, model, source="here")
    assert method == AdaLora(rank=1, initial_rank=3, alpha=6.0, orthogonality=0.5, allocate_every=1)
    assert notes == ("ranks from 0 to 2 were padded with zeros to 3",)
    found = leaves["encoder/layers/0/self_attention/q/lora_e"]
    np.testing.assert_array_equal(found, [*tensors[f"base_model.model.{q}.lora_E"][:, 0], 0])
    assert not leaves["encoder/layers/0/self_attention/k/lora_a"].any()
    tensors[f"base_model.model.{q}.lora_E"] = np.ones((3, 1), np.float32)
    with pytest.raises(RunFailed, match="shapes .2, 16., .8, 2. and .3, 1.; expected one rank of at most 3"):
        read_peft(config, tensors, model, source="here")


def test_it_is_kept_in_pefts_layout(tmp_path, key):
    model, method = random_t5(TINY), AdaLora(rank=2, alpha=5.0)
    chosen = select(model, method)
    save_adapter(filled(attach(model, method, chosen, key), key), method, chosen, tmp_path, base_name="tiny")
    assert layout_of(tmp_path) == PEFTS
    loaded = load_adapter(tmp_path, model)[1]
    assert (loaded.rank, loaded.width, loaded.alpha) == (2, 3, 5.0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rank": 8, "initial_rank": 4}, "method.rank is 8 and method.initial_rank 4"),
        ({"alpha": 0.0}, "method.alpha is 0.0"),
        ({"alpha": float("inf")}, "method.alpha is inf"),
        ({"orthogonality": float("nan")}, "method.orthogonality is nan"),
        ({"initial_fraction": float("nan")}, "method.initial_fraction is nan"),
        ({"final_fraction": float("inf")}, "and method.final_fraction inf"),
        ({"allocate_every": 0}, "method.allocate_every 0"),
        ({"initial_fraction": 0.6, "final_fraction": 0.4}, "of a sum below 1"),
    ],
)
def test_what_makes_no_schedule_is_refused(options, says):
    with pytest.raises(UserError, match=says):
        AdaLora(**options)


def test_a_run_follows_its_own_schedule_whatever_the_adapter_was_trained_by_that_it_starts_from():
    stored = AdaLora(rank=2, allocate_every=1, initial_fraction=0.04)
    _require_same_adapter(stored, AdaLora(rank=2))
    with pytest.raises(UserError, match="make them agree"):
        _require_same_adapter(stored, AdaLora(rank=3))
    with pytest.raises(UserError, match="make them agree"):
        _require_same_adapter(stored, Lora(rank=2))
