"""The sliced cross-entropy equals the plain one in value and gradient, and never materialises all logits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jpeft.eval.cross_entropy import summed_cross_entropy

BATCH, LENGTH, D_MODEL, VOCAB = 3, 12, 8, 40
_KEYS = jax.random.split(jax.random.key(0), 4)
HIDDEN = jax.random.normal(_KEYS[0], (BATCH, LENGTH, D_MODEL))
KERNEL = jax.random.normal(_KEYS[1], (D_MODEL, VOCAB))
TARGETS = jax.random.randint(_KEYS[2], (BATCH, LENGTH), 0, VOCAB)
WEIGHTS = jax.random.bernoulli(_KEYS[3], 0.7, (BATCH, LENGTH)).astype(jnp.float32)


def plain(hidden, kernel):
    return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(hidden @ kernel, TARGETS) * WEIGHTS)


def sliced(hidden, kernel, largest_slice):
    return summed_cross_entropy(
        lambda x: x @ kernel, hidden, TARGETS, WEIGHTS, vocab_size=VOCAB, largest_slice=largest_slice
    )


@pytest.mark.parametrize("positions", [1, 2, 3, 5, 12])
def test_value_and_gradients_are_those_of_the_whole(positions):
    largest = BATCH * positions * VOCAB
    value, gradients = jax.jit(jax.value_and_grad(lambda h, k: 3 * sliced(h, k, largest), argnums=(0, 1)))(
        HIDDEN, KERNEL
    )
    expected, expected_gradients = jax.value_and_grad(lambda h, k: 3 * plain(h, k), argnums=(0, 1))(HIDDEN, KERNEL)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_without_a_gradient_the_value_is_the_same():
    np.testing.assert_allclose(
        jax.jit(lambda h, k: sliced(h, k, 200))(HIDDEN, KERNEL), plain(HIDDEN, KERNEL), rtol=1e-6
    )


def _sizes(jaxpr) -> set[int]:
    """Returns the sizes of all arrays of a program, also inside its loops."""
    sizes = {variable.aval.size for equation in jaxpr.eqns for variable in equation.outvars}
    return sizes.union(
        *(
            _sizes(inner.jaxpr)
            for inner in jax.tree.leaves([e.params for e in jaxpr.eqns], is_leaf=_is_program)
            if _is_program(inner)
        )
    )


def _is_program(x) -> bool:
    return hasattr(x, "jaxpr")


@pytest.mark.parametrize("trained", [(0,), (0, 1)])
def test_no_array_is_as_large_as_all_logits(trained):
    grad = jax.grad(lambda h, k: sliced(h, k, BATCH * 2 * VOCAB), argnums=trained)
    sizes = _sizes(jax.make_jaxpr(grad)(HIDDEN, KERNEL).jaxpr)
    assert max(sizes) < BATCH * LENGTH * VOCAB


def test_a_frozen_output_layer_costs_no_gradient():
    def flops(trained):
        program = jax.jit(jax.grad(lambda h, k: sliced(h, k, BATCH * 2 * VOCAB), argnums=trained))
        return program.lower(HIDDEN, KERNEL).compile().cost_analysis()["flops"]

    assert flops((0,)) < 0.8 * flops((0, 1))


@pytest.mark.parametrize("positions", [3, 12])
def test_label_smoothing_spreads_its_share_over_the_vocabulary(positions):
    """In NumPy, by definition: the cross-entropy with the target distribution (1 - e) one-hot + e / vocabulary."""
    logits = np.asarray(HIDDEN @ KERNEL, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = 0.9 * np.eye(VOCAB)[np.asarray(TARGETS)] + 0.1 / VOCAB
    weights = np.linspace(0.5, 2, BATCH)[:, None] * np.asarray(WEIGHTS)

    def smoothed(hidden):
        sizes = {"vocab_size": VOCAB, "largest_slice": BATCH * positions * VOCAB, "label_smoothing": 0.1}
        return summed_cross_entropy(lambda x: x @ KERNEL, hidden, TARGETS, jnp.asarray(weights, jnp.float32), **sizes)

    value, gradient = jax.jit(jax.value_and_grad(smoothed))(HIDDEN)
    np.testing.assert_allclose(value, -(weights[..., None] * wanted * log_p).sum(), rtol=1e-6)
    by_hand = (weights[..., None] * (np.exp(log_p) - wanted)) @ np.asarray(KERNEL, np.float64).T
    np.testing.assert_allclose(gradient, by_hand, atol=1e-5)
