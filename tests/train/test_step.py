"""The two functions of a step, on a model of one number."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jpeft
from jpeft.peft.full import Full
from jpeft.peft.variables import Adapter
from jpeft.train import step
from jpeft.train.schedule import constant
from jpeft.train.step import PartSums, StepSums, TrainState, init_state, make_accumulate, make_update, zero_sums


class One(nnx.Module):
    def __init__(self):
        self.weight = Adapter(jnp.ones(()))


def test_each_micro_batch_of_each_step_draws_masks_of_its_own(monkeypatch):
    """The loss here is a number drawn from the dropout key."""
    drawn_loss = lambda model, batch, key, **options: (model.weight[...] * jax.random.uniform(key), 1.0)
    monkeypatch.setattr(step, "loss_sums", drawn_loss)
    graphdef, adapter, base = nnx.split(One(), Adapter, ...)
    accumulate = make_accumulate(graphdef)

    def drawn(seed, at, micro):
        key = jax.random.key(seed)
        return float(accumulate(zero_sums(adapter), adapter, base, key, jnp.int32(at), jnp.int32(micro), {}).loss)

    found = [drawn(seed, at, micro) for seed in (0, 1) for at in (0, 1, 2) for micro in (0, 1, 2)]
    assert len(set(found)) == len(found)
    assert drawn(1, 2, 0) == found[-3]  # a resumed run draws the same


def test_sums_add_up_over_micro_batches(monkeypatch):
    monkeypatch.setattr(
        step, "loss_sums", lambda model, batch, key, **options: (model.weight[...] * batch["loss"], batch["tokens"])
    )
    graphdef, adapter, base = nnx.split(One(), Adapter, ...)
    accumulate, sums = make_accumulate(graphdef), zero_sums(adapter)
    for loss, tokens in ((2.0, 3.0), (4.0, 5.0)):
        batch = {"loss": jnp.float32(loss), "tokens": jnp.float32(tokens)}
        sums = accumulate(sums, adapter, base, jax.random.key(0), jnp.int32(0), jnp.int32(0), batch)
    assert (float(sums.loss), float(sums.tokens)) == (6.0, 8.0)
    np.testing.assert_allclose(jax.tree.leaves(sums.grads), [6.0])


def test_sums_of_parts_are_added_up_in_the_update():
    _, adapter, _ = nnx.split(One(), Adapter, ...)
    sgd = lambda schedule: optax.sgd(schedule)
    state = TrainState(jnp.int32(0), adapter, sgd(constant(0.1)).init(adapter))
    zeros = zero_sums(adapter, 3)
    assert isinstance(zeros, PartSums)
    more = StepSums(
        jax.tree.map(lambda leaf: leaf + jnp.array([1.0, 2.0, 3.0]), adapter), jnp.arange(3.0), jnp.full(3, 2.0)
    )
    new, again, metrics = make_update(sgd)(state, jax.tree.map(jnp.add, zeros, PartSums(more)), constant(0.1))
    assert float(metrics["loss"]) == 3.0 / 6.0
    np.testing.assert_allclose(jax.tree.leaves(new.adapter), [1.0 - 0.1 * (2.0 + 3.0 + 4.0) / 6.0])
    assert jax.tree.all(jax.tree.map(lambda one, other: jnp.array_equal(one, other), again, zeros))


class Leashed(Full):
    """A method that pulls every leaf towards 3 and clips it at 1.5."""

    def penalty(self, adapter):
        return sum(0.5 * jnp.sum((leaf - 3.0) ** 2) for leaf in jax.tree.leaves(adapter))

    def after_step(self, adapter, memory, before, grads, step, steps):
        return jax.tree.map(lambda leaf: jnp.minimum(leaf, 1.5), adapter), memory


def test_a_methods_penalty_is_a_part_of_the_gradient_and_it_has_the_last_word_on_an_update():
    _, adapter, _ = nnx.split(One(), Adapter, ...)
    grads = jax.tree.map(lambda leaf: leaf * 6.0, adapter)
    sums = StepSums(grads, jnp.float32(8.0), jnp.float32(4.0))

    def after(method, rate):
        sgd = lambda schedule: optax.sgd(schedule)
        state = TrainState(jnp.int32(0), adapter, sgd(constant(rate)).init(adapter))
        new, _, metrics = make_update(sgd, method)(state, sums, constant(rate))
        assert float(metrics["loss"]) == 2.0
        return float(jax.tree.leaves(new.adapter)[0])

    assert not Full().has_hooks and Leashed().has_hooks
    np.testing.assert_allclose(after(Full(), 0.1), 1.0 - 0.1 * 6 / 4)
    np.testing.assert_allclose(after(Leashed(), 0.1), 1.0 - 0.1 * (6 / 4 + (1.0 - 3.0)), rtol=1e-6)
    assert after(Leashed(), 10.0) == 1.5


def test_a_fit_takes_the_steps_of_a_run():
    tuned = jpeft.attach(nnx.Dict(it=nnx.Linear(4, 3, rngs=nnx.Rngs(0))), Leashed(), where="it")
    x, sgd = jnp.ones((2, 4)), lambda schedule: optax.sgd(0.3)
    loss_of = lambda model: jnp.mean((model.it(x) - 1.0) ** 2)
    graphdef, adapter, base = nnx.split(tuned, Adapter, ...)
    state, losses = init_state(adapter, sgd, Leashed()), []
    for _ in range(4):
        loss, grads = jax.value_and_grad(lambda adapter: loss_of(nnx.merge(graphdef, adapter, base)))(state.adapter)
        state, _, metrics = make_update(sgd, Leashed())(state, StepSums(grads, loss, jnp.float32(1)), constant(0.3))
        losses.append(float(metrics["loss"]))
    fitted = jpeft.fit(tuned, [x] * 4, lambda model, _: loss_of(model), optimizer=optax.sgd(0.3), method=Leashed())
    np.testing.assert_allclose(fitted.losses, losses, rtol=1e-5)
    for found, right in zip(
        jax.tree.leaves(nnx.state(fitted.model, Adapter)), jax.tree.leaves(state.adapter), strict=True
    ):
        np.testing.assert_allclose(found, right, rtol=1e-5)


class WithoutPenalty(Full):
    """A method whose penalty depends on its options, and is None here."""

    def penalty(self, adapter):
        return None


def test_a_penalty_that_is_none_changes_nothing():
    _, adapter, _ = nnx.split(One(), Adapter, ...)
    sgd = lambda schedule: optax.sgd(schedule)

    def after(method):
        sums = StepSums(jax.tree.map(lambda leaf: leaf * 6.0, adapter), jnp.float32(8.0), jnp.float32(4.0))
        state = TrainState(jnp.int32(0), adapter, sgd(constant(0.1)).init(adapter))
        return jax.jit(make_update(sgd, method))(state, sums, constant(0.1))

    assert jax.tree.map(float, after(WithoutPenalty())[0].adapter) == jax.tree.map(float, after(Full())[0].adapter)
