"""Packed rows: every example is in them once, and the network treats each as if it were alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jpeft.errors import UserError
from jpeft.eval.loss import loss_sums
from jpeft.model.t5 import T5
from jpeft.peft.attaching import attach
from jpeft.peft.prompt import Prompt
from jpeft.peft.selection import select
from jpeft.pretrain.corruption import SpanCorruption
from jpeft.pretrain.denoising import Denoising
from jpeft.pretrain.packing import TokenPair, assign_rows
from tests.conftest import TINY


def some_examples(count: int, seed: int = 0) -> list[TokenPair]:
    draw = np.random.default_rng(seed)
    return [
        TokenPair(draw.integers(3, 300, draw.integers(1, 9)), draw.integers(3, 300, draw.integers(1, 6)))
        for _ in range(count)
    ]


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 10)), max_size=300))
@settings(max_examples=100, deadline=None)
def test_every_example_is_in_one_row_and_no_row_is_overfull(lengths):
    rows = assign_rows(np.array(lengths).reshape(-1, 2), (20, 10))
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    for row in rows:
        assert (np.array(lengths)[row].sum(axis=0) <= [20, 10]).all() and row


def test_rows_are_nearly_full():
    lengths = np.random.default_rng(0).integers([4, 2], [120, 30], (2000, 2))
    rows = assign_rows(lengths, (256, 96))
    assert lengths[:, 0].sum() / (256 * len(rows)) > 0.93


def packed(rows: list[list[TokenPair]], enc: int = 24, dec: int = 16) -> dict[str, np.ndarray]:
    return Denoising(SpanCorruption([], 1), enc, dec, start_token_id=0, pad_token_id=0).pack(rows)


def test_a_packed_row_reads_as_its_examples():
    a, b = TokenPair(np.array([5, 6, 1]), np.array([7, 1])), TokenPair(np.array([8, 1]), np.array([9, 10, 1]))
    batch = packed([[a, b], []], enc=6, dec=6)
    assert batch["encoder_input_tokens"].tolist() == [[5, 6, 1, 8, 1, 0], [0] * 6]
    assert batch["encoder_segment_ids"].tolist() == [[1, 1, 1, 2, 2, 0], [0] * 6]
    assert batch["decoder_input_tokens"].tolist() == [[0, 7, 0, 9, 10, 0], [0] * 6]
    assert batch["decoder_target_tokens"].tolist() == [[7, 1, 9, 10, 1, 0], [0] * 6]
    assert batch["decoder_loss_weights"].tolist() == [[1, 1, 1, 1, 1, 0], [0] * 6]


def test_examples_of_a_row_do_not_see_each_other(tiny_t5: T5):
    """The loss of packed rows equals the sum of the losses of the single examples."""
    examples = some_examples(6)
    loss = jax.jit(loss_sums)
    alone = [loss(tiny_t5, as_arrays(packed([[example]]))) for example in examples]
    together = loss(tiny_t5, as_arrays(packed([examples[:3], examples[3:]])))
    np.testing.assert_allclose(together[0], sum(loss for loss, _ in alone), rtol=1e-5)
    assert together[1] == sum(tokens for _, tokens in alone)
    without_segments = as_arrays(packed([examples[:3], examples[3:]]))
    del without_segments["encoder_segment_ids"], without_segments["decoder_segment_ids"]
    assert abs(loss(tiny_t5, without_segments)[0] - together[0]) > 1e-2  # so that segments have an effect


def test_packed_rows_are_refused_by_a_soft_prompt(tiny_t5: T5):
    method = Prompt(prompt_length=3)
    tuned = attach(tiny_t5, method, select(tiny_t5, method), jax.random.key(0))
    with pytest.raises(UserError, match="rows of 24 tokens .* soft prompt of 3, .* without encoder_segment_ids and"):
        jax.eval_shape(tuned.hidden_of, as_arrays(packed([some_examples(2)])))


def as_arrays(batch: dict[str, np.ndarray]) -> dict:
    assert batch["encoder_input_tokens"].max() < TINY.vocab_size
    return {key: jnp.asarray(value) for key, value in batch.items()}
