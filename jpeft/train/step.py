"""One optimizer step, as two pure functions: gradients of a micro-batch added up, and the update they lead to.

Micro-batches of one step may have different padded lengths, so each is a call of its own; between calls one buffer of
the adapter's size is kept. `base` is an argument: never state, never differentiated, never captured as a constant.

Devices that have parts of each batch may keep the sums of their own part (`PartSums`) until the update: gradients are
then exchanged once a step.
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
      opt_state: of the optimizer, with leaves for the adapter only.
      memory: what the method remembers from step to step (`Method.first_memory`); of most methods nothing.
    """

    # `Any`: JAX also puts shapes, shardings and other descriptions of arrays in the places of the arrays.
    step: Any
    adapter: Any
    opt_state: Any
    memory: Any = ()


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class StepSums:
    """Sums over the micro-batches of one step.

    Attributes:
      grads: of the summed loss, a tree like the adapter.
      loss, tokens: the summed cross-entropy in nats and how many target tokens it is of, each as often as its row's
        weight says; float32 scalars.
    """

    grads: Any
    loss: Any
    tokens: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class PartSums:
    """The sums of each part of the batches apart, for the devices that have it; added up in the update.

    Attributes:
      by_part: `StepSums`, whose leaves have an axis of parts in front. The rules of a mesh know it by this name.
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
    """The state before the first step: no step done, and the optimizer's and the method's memory as they begin."""
    opt_state = optimizer(constant(0.0)).init(adapter)  # no optimizer's depends on rates
    return TrainState(jnp.int32(0), adapter, opt_state, () if method is None else method.first_memory(adapter))


def zero_sums(adapter: nnx.State, parts: int = 1) -> Sums:
    """The sums before the first micro-batch of a step, all 0: gradients shaped as the adapter, float32 scalars.

    Args:
      parts: of each batch whose sums are kept apart (`PartSums`); 1 for `StepSums`, over the whole batch.
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
      label_smoothing: as of `jpeft.eval.cross_entropy.summed_cross_entropy`.
      each_part: makes the function of a batch that of each of its parts, as `jpeft.mesh.layout.Layout.each_part`; the
        sums are then `PartSums`.
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
        given = (adapter, base, dropout_key, batch)
        more = sums_of(*given) if each_part is None else PartSums(each_part(sums_of)(*given))
        return jax.tree.map(jnp.add, sums, more)

    return accumulate


def make_update(
    optimizer: Optimizer, method: Method | None = None
) -> Callable[..., tuple[TrainState, Sums, dict[str, Array]]]:
    """Returns `(state, sums, schedule) -> (state, empty sums, metrics)`, ready to compile with state and sums donated.

    The gradient is the mean over all target tokens of the step, however they were cut into micro-batches; where rows
    have weights (`jpeft.data.weighting`), the mean weighted by them. The learning rates are an argument: the program is
    the same for all of them.

    Args:
      optimizer: makes the transformation of gradients around a schedule, whose numbers are traced.
      method: whose penalty is a part of what falls, but not of the loss that is told, and which may change the
        trainable tree after the step.
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
    """The state after one optimizer step, and the gradients of the loss and the penalty that the step went by.

    Args:
      grads: of the mean loss with respect to `state.adapter`, a tree like it.
      tx: whose state `state.opt_state` is.
      method: its penalty's gradients are added, and its `after_step` has the last word; None for neither.
      total_steps: how many steps the run has, an int32 scalar, for methods that plan by it.
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
    """The gradient of a method's penalty, a tree like the adapter; None where it has none, which tracing tells."""
    if jax.eval_shape(method.penalty, adapter) is None:
        return None
    return jax.grad(method.penalty)(adapter)
