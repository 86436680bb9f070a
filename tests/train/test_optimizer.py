"""AdamW: which leaves decay, and at which rates leaves train."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jpeft
from jpeft.leaves import named_leaves
from jpeft.peft.attaching import attach, split
from jpeft.peft.bitfit import BitFit
from jpeft.peft.full import Full
from jpeft.peft.ia3 import Ia3
from jpeft.peft.lora import Lora
from jpeft.peft.prompt import Prompt
from jpeft.peft.selection import select
from jpeft.peft.variables import Adapter
from jpeft.train.optimizer import AdamW, decay_mask
from jpeft.train.schedule import constant, three_point_schedule


def after_a_step_without_gradient(model, method, key, **options) -> dict[str, float]:
    """What a weight decay of 0.5 at a learning rate of 1 leaves of each leaf, by the last part of its name."""
    graphdef, adapter, base = split(attach(model, method, select(model, method), key))
    ones = jax.tree.map(jnp.ones_like, adapter)
    tx = AdamW(weight_decay=0.5, **options)(constant(1.0))
    updates, _ = jax.jit(tx.update)(jax.tree.map(jnp.zeros_like, ones), tx.init(ones), ones)
    named = named_leaves(nnx.merge(graphdef, optax.apply_updates(ones, updates), base), Adapter)
    return {name.rpartition("/")[2]: float(np.unique(value).item()) for name, value in named.items()}


@pytest.mark.parametrize(
    ("method", "left"),
    [
        (Lora(), {"lora_a": 0.5, "lora_b": 0.5, "scale_in": 1.0, "scale_out": 1.0}),
        (Ia3(), {"scale_in": 1.0, "scale_out": 1.0}),
        (BitFit(), {"bias": 1.0}),
        (Prompt(prompt_length=4), {"prompt": 0.5}),
        (Full(), {"kernel": 0.5, "embedding": 0.5, "scale": 1.0}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_weight_decay_shrinks_matrices_alone(method, left, tiny_t5, key):
    assert after_a_step_without_gradient(tiny_t5, method, key) == left


def test_the_first_step_is_the_learning_rate_against_the_gradients_sign(tiny_t5, key):
    method = BitFit()
    _, adapter, _ = split(attach(tiny_t5, method, select(tiny_t5, method), key))
    grads = jax.tree.map(lambda leaf: jnp.full_like(leaf, -3.0), adapter)
    tx = AdamW()(constant(0.01))
    updates, _ = jax.jit(tx.update)(grads, tx.init(adapter), adapter)
    for update in jax.tree.leaves(updates):
        np.testing.assert_allclose(update, 0.01, rtol=1e-5)


def test_a_leafs_own_rate_is_the_learning_rate_times_its_factor(tiny_t5, key):
    """LoRA+: the factor applies to updates and to decay."""
    method = Lora.official(rank=2, b_rate_ratio=16.0)
    _, adapter, _ = split(attach(tiny_t5, method, select(tiny_t5, method), key))
    ones = jax.tree.map(jnp.ones_like, adapter)
    grads = jax.tree.map(lambda leaf: jnp.full_like(leaf, -3.0), adapter)
    tx = AdamW(weight_decay=0.5, rate_factors=tuple(method.rate_factors.items()))(constant(0.01))
    updates, _ = jax.jit(tx.update)(grads, tx.init(ones), ones)
    for path, update in jax.tree.leaves_with_path(updates):
        factor = 16 if "lora_b" in jax.tree_util.keystr(path) else 1
        np.testing.assert_allclose(update, 0.005 * factor, rtol=1e-4)
    assert "B at 16 times the rate of A" in method.describe() and method == Lora.official(rank=2)


def test_a_fit_gives_leaves_their_own_rates(key):
    model = nnx.Dict(it=nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
    for method in (Lora.official(rank=2), Lora.official(rank=2, b_rate_ratio=16.0)):
        tuned = jpeft.attach(model, method, where="it")
        loss = lambda model, x: jnp.mean((model.it(x) - 1.0) ** 2)
        fitted = jpeft.fit(tuned, [jnp.ones((2, 4))], loss, learning_rate=1e-3, method=method)
        moved = np.abs(fitted.model.it.adapter.lora_b[...])
        np.testing.assert_allclose(moved, 1e-3 * method.b_rate_ratio, rtol=1e-3)


def test_clipping_bounds_the_norm_over_the_whole_adapter(tiny_t5, key):
    method = BitFit()
    _, adapter, _ = split(attach(tiny_t5, method, select(tiny_t5, method), key))
    grads = jax.tree.map(lambda leaf: jnp.full_like(leaf, 100.0), adapter)
    tx = AdamW(clip_grad_norm=1.0)(constant(0.01))
    _, state = jax.jit(tx.update)(grads, tx.init(adapter), adapter)
    first_moment = optax.tree.get(state, "mu")
    np.testing.assert_allclose(optax.tree.norm(first_moment), 0.1 * 1.0, rtol=1e-5)  # 1 - beta_1 of the clipped one


@pytest.mark.parametrize(
    ("optimizer", "as_before"),
    [
        (AdamW(), lambda rate: optax.adamw(rate, weight_decay=0.0, mask=decay_mask)),
        (
            AdamW(0.1, 1.0),
            lambda rate: optax.chain(
                optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.1, mask=decay_mask)
            ),
        ),
    ],
)
def test_rates_that_are_traced_leave_the_state_and_the_updates_as_they_were(optimizer, as_before):
    """Checkpoints hold this state by its leaves' names; updates equal those with constant rates, bit for bit."""
    points = {"total_steps": 30, "warmup_fraction": 0.2}
    closure = optax.join_schedules([optax.linear_schedule(1e-3, 1e-2, 6), optax.linear_schedule(1e-2, 1e-4, 23)], [6])
    schedule = three_point_schedule(1e-3, 1e-2, 1e-4, **points)
    leaves = nnx.State({"kernel": jnp.linspace(-1, 1, 12).reshape(3, 4), "scale": jnp.ones(4)})
    grads = jax.tree.map(lambda leaf: jnp.sin(9 * leaf), leaves)
    state = optimizer(constant(0.0)).init(leaves)
    assert jax.tree.structure(state) == jax.tree.structure(as_before(closure).init(leaves))
    traced = jax.jit(lambda schedule, state: optimizer(schedule).update(grads, state, leaves))
    within = jax.jit(lambda state: as_before(closure).update(grads, state, leaves))
    other = state
    for _ in range(9):
        (updates, state), (expected, other) = traced(schedule, state), within(other)
        jax.tree.map(np.testing.assert_array_equal, (updates, state), (expected, other))
