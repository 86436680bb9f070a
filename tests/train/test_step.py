"""What a step's two functions do with their arguments, on a model of one number."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jpeft.peft.variables import Adapter
from jpeft.train import step
from jpeft.train.step import make_accumulate, zero_sums


class One(nnx.Module):
    def __init__(self):
        self.weight = Adapter(jnp.ones(()))


def test_each_micro_batch_of_each_step_draws_masks_of_its_own(monkeypatch):
    """The loss here is what the dropout key draws."""
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
