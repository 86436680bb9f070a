"""The loss with row weights and label smoothing, against its formula in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpeft.data.batches import Tokens
from jpeft.eval.loss import loss_sums
from jpeft.peft.attaching import attach, split
from jpeft.peft.lora import Lora
from jpeft.peft.selection import select
from jpeft.train.step import make_accumulate, zero_sums
from tests.conftest import ONE_LAYER, random_t5
from tests.padded import padded
from tests.peft.filled import filled

LENGTHS = [(5, 3), (7, 2), (4, 6), (3, 4)]  # tokens of input and target of each row
WEIGHTS = np.array([1.0, 4.0, 0.0, 2.5], np.float32)


@pytest.fixture(scope="module")
def tokens():
    draw = np.random.default_rng(3)
    ids = lambda lengths: [draw.integers(3, 60, length).astype(np.int32) for length in lengths]
    inputs, targets = (ids(lengths) for lengths in zip(*LENGTHS, strict=True))
    return Tokens(inputs, targets, 0, 0, WEIGHTS)


@pytest.fixture
def model():
    return random_t5(ONE_LAYER)


def batches(tokens):
    """Two micro-batches of one step, padded to different shapes."""
    given = {"batch_size": 2, "start_token_id": 0, "pad_token_id": 0}
    return [padded(tokens, rows, shape, **given) for rows, shape in (([0, 1], (8, 4)), ([2, 3], (8, 8)))]


_logits = jax.jit(lambda model, *ids: model(*ids))


def by_hand(model, tokens, smoothing):
    """The formula of `jpeft.data.weighting`, row by row and token by token."""
    total = count = 0.0
    for row, weight in enumerate(WEIGHTS):
        target = tokens.targets[row]
        inputs = (tokens.inputs[row], np.concatenate([[0], target[:-1]]).astype(np.int32))
        logits = _logits(model, *(jnp.asarray(ids)[None] for ids in inputs))
        log_p = np.asarray(jax.nn.log_softmax(logits.astype(jnp.float32)), np.float64)[0]
        right = log_p[np.arange(len(target)), target]
        total += weight * -((1 - smoothing) * right + smoothing * log_p.mean(axis=-1)).sum()
        count += weight * len(target)
    return total / count


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_of_a_step_is_the_weighted_mean_over_its_tokens(smoothing, model, tokens):
    given = [jax.tree.map(jnp.asarray, batch) for batch in batches(tokens)]
    loss = jax.jit(lambda batch: loss_sums(model, batch, label_smoothing=smoothing))
    sums = [loss(batch) for batch in given]
    loss, count = (sum(float(part[i]) for part in sums) for i in (0, 1))
    assert count == pytest.approx((WEIGHTS * [target for _, target in LENGTHS]).sum())
    assert loss / count == pytest.approx(by_hand(model, tokens, smoothing), rel=1e-5)


@pytest.mark.slow
def test_the_gradient_is_that_of_the_weighted_mean_and_a_row_of_weight_0_has_no_part_in_it(model, key, tokens):
    chosen = select(model, Lora())
    graphdef, adapter, base = split(filled(attach(model, Lora(), chosen, key), key))
    accumulate = jax.jit(make_accumulate(graphdef, label_smoothing=0.1))

    def gradient(tokens):
        sums = zero_sums(adapter)
        for micro, batch in enumerate(batches(tokens)):
            sums = accumulate(sums, adapter, base, key, jnp.int32(0), jnp.int32(micro), batch)
        return np.concatenate([np.ravel(leaf) / sums.tokens for leaf in jax.tree.leaves(sums.grads)])

    found = gradient(tokens)
    # A row's gradient is a mean over its tokens; the step's is the mean of these, weighted by row weight and length.
    alone = [gradient(dataclasses.replace(tokens, weights=np.eye(4, dtype=np.float32)[row])) for row in range(4)]
    shares = WEIGHTS * [target for _, target in LENGTHS]
    np.testing.assert_allclose(found, np.average(alone, axis=0, weights=shares), atol=1e-6)
    scaled = gradient(dataclasses.replace(tokens, weights=WEIGHTS * 3))  # only proportions count
    np.testing.assert_allclose(scaled, found, atol=1e-6)
    plain = gradient(dataclasses.replace(tokens, weights=None))
    assert np.abs(plain - found).max() > 1e-4
