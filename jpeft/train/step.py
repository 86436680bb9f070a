"""One optimizer step as two pure functions: accumulating the gradients of a micro-batch, and the update.

Micro-batches of a step may be padded to different lengths, so each is a call of its own; between calls one buffer of
the adapter's size is kept. `base` is an argument: never state, never differentiated, never captured as a constant.

Devices that hold different parts of a batch may keep separate sums (`PartSums`) until the update, so that they exchange
gradients once per step.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Int, Key

from jpeft.eval.loss import loss_sums
from jpeft.peft.method import Method
from jpeft.train.optimizer import Optimizer
from jpeft.train.schedule import Schedule, constant


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """The state that training changes: the trainable leaves and the optimizer's state.

    Attributes:
      step: optimizer steps done, int32 scalar.
      adapter: the trainable tree, float32.
      opt_state: the optimizer's state, for the adapter only.
      memory: the method's own state (`Method.first_memory`); empty for most methods.
    """

    # `Any`, because JAX transformations put other objects in the place of arrays, such as shapes and shardings.
    step: Any
    adapter: Any
    opt_state: Any
    memory: Any = ()


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class StepSums:
    """Sums over the micro-batches of one step.

    Attributes:
      grads: gradients of the summed loss, a tree like the adapter.
      loss, tokens: summed cross-entropy in nats and the number of target tokens, both weighted by the rows' weights;
        float32 scalars.
    """

    grads: Any
    loss: Any
    tokens: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class PartSums:
    """Separate sums for each part of the batches, kept on the devices that hold the part and added up by the update.

    Attributes:
      by_part: `StepSums` whose leaves have a leading axis of parts. A mesh's sharding rules match this name.
    """

    by_part: Any

    @property
    def grads(self) -> Any:
        """The gradients of each part."""
        return self.by_part.grads

    def total(self) -> StepSums:
        """The sums over all parts."""
        return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), self.by_part)


Sums: TypeAlias = StepSums | PartSums


def init_state(adapter: nnx.State, optimizer: Optimizer, method: Method | None = None) -> TrainState:
    """The state before the first step."""
    opt_state = optimizer(constant(0.0)).init(adapter)  # no optimizer's initial state depends on the learning rate
    return TrainState(jnp.int32(0), adapter, opt_state, () if method is None else method.first_memory(adapter))


def zero_sums(adapter: nnx.State, parts: int = 1) -> Sums:
    """The sums before the first micro-batch of a step: gradients shaped like the adapter, float32 scalars, all 0.

    Args:
      parts: the number of parts of a batch with separate sums (`PartSums`); 1 for `StepSums` over the whole batch.
    """
    sums = StepSums(jax.tree.map(jnp.zeros_like, adapter), jnp.float32(0), jnp.float32(0))
    if parts == 1:
        return sums
    return PartSums(jax.tree.map(lambda leaf: jnp.zeros((parts, *leaf.shape), leaf.dtype), sums))


# Positions among the arguments of what `make_accumulate` returns.
ACCUMULATE_SUMS, ACCUMULATE_BASE = 0, 2


def make_accumulate(
    graphdef: nnx.GraphDef,
    *,
    label_smoothing: float = 0.0,
    each_part: Callable[[Callable[..., StepSums]], Callable[..., StepSums]] | None = None,
) -> Callable[..., Sums]:
    """Returns `(sums, adapter, base, key, step, micro, batch) -> sums`, ready to compile with `sums` donated.

    `key` is the run's dropout key; step and micro-batch are folded in, so a resumed run draws the same masks.

    Args:
      label_smoothing: as in `jpeft.eval.cross_entropy.summed_cross_entropy`.
      each_part: maps a function of a batch over its parts, as `jpeft.mesh.layout.Layout.each_part` does; the sums are
        then `PartSums`.
    """

    def sums_of(adapter: nnx.State, base: nnx.State, key: Key[Array, ""], batch: dict[str, Array]) -> StepSums:
        def loss_of(adapter: nnx.State):
            return loss_sums(nnx.merge(graphdef, adapter, base), batch, key, label_smoothing=label_smoothing)

        (loss, tokens), grads = jax.value_and_grad(loss_of, has_aux=True)(adapter)
        return StepSums(grads, loss, tokens)

    def accumulate(
        sums: Sums,
        adapter: nnx.State,
        base: nnx.State,
        key: Key[Array, ""],
        step: Int[Array, ""],
        micro: Int[Array, ""],
        batch: dict[str, Array],
    ) -> Sums:
        dropout_key = jax.random.fold_in(jax.random.fold_in(key, step), micro)
        args = (adapter, base, dropout_key, batch)
        added = sums_of(*args) if each_part is None else PartSums(each_part(sums_of)(*args))
        return jax.tree.map(jnp.add, sums, added)

    return accumulate


def make_update(
    optimizer: Optimizer, method: Method | None = None
) -> Callable[..., tuple[TrainState, Sums, dict[str, Array]]]:
    """Returns `(state, sums, schedule) -> (state, zero sums, metrics)`, ready to compile with state and sums donated.

    The gradient is the mean over all target tokens of the step, however they are split into micro-batches; where rows
    have weights (`jpeft.data.weighting`), the weighted mean. The learning rates are an argument, so that one program
    serves all.

    Args:
      optimizer: makes the gradient transformation for a schedule of traced numbers.
      method: its penalty is minimised but not part of the reported loss, and it may change the trainable tree after
        the step.
    """

    def update(state: TrainState, sums: Sums, schedule: Schedule) -> tuple[TrainState, Sums, dict[str, Array]]:
        total = sums.total() if isinstance(sums, PartSums) else sums
        tokens = jnp.maximum(total.tokens, 1)
        grads = jax.tree.map(lambda grad: grad / tokens, total.grads)
        new_state, grads = apply_gradients(state, grads, optimizer(schedule), method, total_steps=schedule.total_steps)
        metrics = {
            "loss": total.loss / tokens,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": schedule(state.step),
        }
        return new_state, jax.tree.map(jnp.zeros_like, sums), metrics

    return update


def apply_gradients(
    state: TrainState, grads: nnx.State, tx: optax.GradientTransformation, method: Method | None, *, total_steps: Any
) -> tuple[TrainState, nnx.State]:
    """Applies one optimizer step.

    Args:
      grads: gradients of the mean loss with respect to `state.adapter`, a tree like it.
      tx: the transformation whose state is `state.opt_state`.
      method: adds the gradients of its penalty, and may change the result in its `after_step`; None for neither.
      total_steps: steps of the whole run, an int32 scalar, for methods whose plan depends on it.

    Returns:
      The state after the step, and the gradients used, including the penalty's.
    """
    penalty = None if method is None else _penalty_gradient(method, state.adapter)
    if penalty is not None:
        grads = jax.tree.map(jnp.add, grads, penalty)
    updates, opt_state = tx.update(grads, state.opt_state, state.adapter)
    adapter: Any = optax.apply_updates(state.adapter, updates)
    memory = state.memory
    if method is not None:
        adapter, memory = method.after_step(adapter, memory, state.adapter, grads, state.step, total_steps)
    return TrainState(state.step + 1, adapter, opt_state, memory), grads


def _penalty_gradient(method: Method, adapter: nnx.State) -> Any:
    """The gradient of a method's penalty, a tree like the adapter; None if the method has no penalty."""
    if jax.eval_shape(method.penalty, adapter) is None:
        return None
    return jax.grad(method.penalty)(adapter)
