"""The steps of a pretraining run: numbered, resumable, divided over devices."""

import itertools

import numpy as np
import pytest

from jpeft.mesh.layout import Layout
from jpeft.pretrain.corruption import SpanCorruption
from jpeft.pretrain.denoising import Denoising
from jpeft.pretrain.mixture import Mixture
from jpeft.pretrain.stream import Blocks, rows_here


def batch(number: int) -> dict[str, np.ndarray]:
    segments = np.array([[1, 1, 0], [1, 2, 2]])
    return {"name": np.full((2, 1), number), "encoder_segment_ids": segments, "decoder_segment_ids": segments[:, :2]}


@pytest.fixture
def stream(monkeypatch):
    """A stream of blocks of three numbered batches."""
    made = []
    monkeypatch.setattr(Mixture, "block", lambda self, n: made.append(n) or [batch(3 * n + i) for i in range(3)])
    objective = Denoising(SpanCorruption([], 1), 3, 2, start_token_id=0, pad_token_id=0)
    mixture = Mixture({}, {}, {}, objective, batch_size=2, seed=0)
    return Blocks(mixture, 2, Layout.of_devices()), made


def names(step) -> list[int]:
    return [int(batch["name"][0, 0]) for batch in step.batches]


def test_a_step_takes_batches_across_blocks_and_says_where_it_stands(stream):
    blocks, _ = stream
    steps = list(itertools.islice(blocks.steps(blocks.start()), 4))
    assert [names(step) for step in steps] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    places = [(step.position["block"], step.position["batches_done"]) for step in steps]
    assert places == [(0, 2), (1, 1), (1, 3), (2, 2)]
    assert steps[0].counts == {"input_tokens": 10, "target_tokens": 8} and steps[0].rows == 4


def test_from_any_position_the_rest_is_the_same(stream):
    blocks, _ = stream
    steps = list(itertools.islice(blocks.steps(blocks.start()), 5))
    for i, step in enumerate(steps):
        after = itertools.islice(blocks.steps(step.position), 4 - i)
        assert [names(step) for step in after] == [names(step) for step in steps[i + 1 :]]


def test_a_block_is_made_when_a_step_needs_it(stream):
    blocks, made = stream
    steps = blocks.steps(blocks.start())
    next(steps)
    assert made == [0]
    next(steps)
    assert made == [0, 1]


def test_a_process_is_given_its_devices_rows():
    whole = {"x": np.arange(8).reshape(4, 2)}
    np.testing.assert_array_equal(rows_here(whole, Layout.of_devices(data=2))["x"], whole["x"])
