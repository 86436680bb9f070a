"""Cross-entropy of a large output layer without materialising all logits.

The logits of a batch, `[batch, length, vocab]` in float32, are by far the largest array of a training step: 1 GB for 64
targets of 128 tokens from a vocabulary of 32,128, and as much again for their gradient. Here they are computed, scored
and differentiated in slices of positions. The gradient is computed in the forward pass, from the logits of the slice,
so slicing costs no additional arithmetic (as in Hsu et al. 2024, Liger Kernel, on GPUs).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

# Logits per slice. Larger slices were a little faster up to these sizes (docs/log.md); a gradient doubles the memory.
LARGEST_SLICE = 2**22
LARGEST_FORWARD_SLICE = 2**24


def summed_cross_entropy(
    project: Callable[[Float[Array, "batch slice d_model"]], Float[Array, "batch slice vocab"]],
    hidden: Float[Array, "batch length d_model"],
    targets: Int[Array, "batch length"],
    weights: Float[Array, "batch length"],
    *,
    vocab_size: int,
    largest_slice: int = LARGEST_SLICE,
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Computes the sum of `weights * cross_entropy(project(hidden), targets)` in float32 and nats.

    It supports first-order reverse-mode differentiation with respect to `hidden` and to the arrays that `project`
    closes over.

    Args:
      project: the output layer; acts on each position independently.
      vocab_size: of its logits.
      largest_slice: maximum number of logits in memory, if the length has a divisor that permits it.
      label_smoothing: with e above 0, the target distribution has e / vocab_size on every token and 1 - e more on the
        target (Szegedy et al. 2016); the loss is (1 - e) * -log p(target) plus e * the mean of -log p over the
        vocabulary.
    """
    slices = _num_slices(hidden.shape[0], hidden.shape[1], vocab_size, largest_slice)

    def cross_entropy(x: Array, target: Array, weight: Array) -> Array:
        logits = project(x)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, target)
        if label_smoothing:  # log p differs from the logits by a constant over the vocabulary, which cancels
            at_target = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
            loss = loss + label_smoothing * (at_target - jnp.mean(logits, axis=-1))
        return jnp.sum(loss * weight)

    if slices == 1:
        return cross_entropy(hidden, targets, weights)
    parts = tuple(_cut(x, slices) for x in (hidden, targets, weights))
    score, closed_over = jax.closure_convert(cross_entropy, *(part[0] for part in parts))
    return _scanned(score)(closed_over, *parts)


def target_log_probs(
    project: Callable[[Float[Array, "batch slice d_model"]], Float[Array, "batch slice vocab"]],
    hidden: Float[Array, "batch length d_model"],
    targets: Int[Array, "batch length"],
    *,
    vocab_size: int,
    largest_slice: int = LARGEST_FORWARD_SLICE,
) -> Float[Array, "batch length"]:
    """Returns the log-probability of every target, float32; arguments as for `summed_cross_entropy`."""
    slices = _num_slices(hidden.shape[0], hidden.shape[1], vocab_size, largest_slice)

    def of_slice(part: tuple[Array, Array]) -> Array:
        return -optax.softmax_cross_entropy_with_integer_labels(project(part[0]), part[1])

    parts = jax.lax.map(of_slice, (_cut(hidden, slices), _cut(targets, slices)))
    return jnp.moveaxis(parts, 0, 1).reshape(targets.shape)


def _num_slices(batch: int, length: int, vocab_size: int, largest: int) -> int:
    """Returns the smallest divisor of `length` that gives slices of at most `largest` logits; `length` if none does."""
    divisors = (n for n in range(1, length + 1) if length % n == 0)
    return next((n for n in divisors if batch * (length // n) * vocab_size <= largest), length)


def _cut(x: Array, slices: int) -> Array:
    """Reshapes `[batch, length, ...]` to `[slices, batch, length / slices, ...]`."""
    return jnp.moveaxis(x.reshape(x.shape[0], slices, -1, *x.shape[2:]), 1, 0)


def _scanned(score: Callable[..., Array]) -> Callable[..., Array]:
    """Returns a function that sums `score(hidden, targets, weights, *closed_over)` over slices.

    Its forward pass also computes the gradients, slice by slice, so that the backward pass only scales them.
    """

    @jax.custom_vjp
    def total(closed_over: list[Array], hidden: Array, targets: Array, weights: Array) -> Array:
        def add(so_far: Array, part: tuple[Array, ...]) -> tuple[Array, None]:
            return so_far + score(*part, *closed_over), None

        return jax.lax.scan(add, jnp.float32(0), (hidden, targets, weights))[0]

    def forward(closed_over: list[Any], hidden: Any, targets: Any, weights: Any) -> tuple[Array, Any]:
        values = [leaf.value for leaf in closed_over]
        trained = [i for i, leaf in enumerate(closed_over) if leaf.perturbed]  # skips a frozen output layer

        def score_of(hidden: Array, trained_values: list[Array], target: Array, weight: Array) -> Array:
            filled = list(values)
            for i, value in zip(trained, trained_values, strict=True):
                filled[i] = value
            return score(hidden, target, weight, *filled)

        def add(carry: tuple[Array, list[Array]], part: tuple[Array, ...]) -> tuple[Any, Array]:
            so_far, gradients = carry
            x, target, weight = part
            value, (gradient, more) = jax.value_and_grad(score_of, argnums=(0, 1))(
                x, [values[i] for i in trained], target, weight
            )
            return (so_far + value, jax.tree.map(jnp.add, gradients, more)), gradient

        start = (jnp.float32(0), [jnp.zeros_like(values[i]) for i in trained])
        parts = (hidden.value, targets.value, weights.value)
        (value, gradients), hidden_gradient = jax.lax.scan(add, start, parts)
        of_closed_over: list[Array | None] = [None] * len(values)
        for i, gradient in zip(trained, gradients, strict=True):
            of_closed_over[i] = gradient
        return value, (of_closed_over, hidden_gradient)

    def backward(gradients: Any, by: Array) -> tuple[Any, ...]:
        scaled = jax.tree.map(lambda gradient: (by * gradient).astype(gradient.dtype), gradients)
        return (*scaled, None, None)

    total.defvjp(forward, backward, symbolic_zeros=True)
    return total
