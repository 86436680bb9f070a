"""Span corruption: masked tokens can be restored, and lengths are as computed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jpeft.errors import UserError
from jpeft.pretrain.corruption import SpanCorruption

SENTINELS = list(range(999, 899, -1))
CORRUPT = SpanCorruption(SENTINELS, eos_token_id=1)


def restored(inputs: np.ndarray, targets: np.ndarray) -> list[int]:
    """Restores the text: replaces every sentinel of the input by what follows it in the target."""
    spans: dict[int, list[int]] = {}
    for token in targets[:-1].tolist():
        if token in SENTINELS:
            spans[token] = []
        else:
            spans[list(spans)[-1]].append(token)
    return [t for token in inputs[:-1].tolist() for t in spans.get(token, [token])]


@given(st.integers(2, 400), st.integers(0, 2**31), st.floats(0.05, 0.6), st.floats(1, 8))
@settings(max_examples=200, deadline=None)
def test_input_and_target_hold_the_text_once(length, seed, density, mean_span):
    corrupt = SpanCorruption(SENTINELS * 3, 1, noise_density=density, mean_span_length=mean_span)
    text = np.arange(10, 10 + length)
    corrupted = SpanCorruption(list(range(5000, 4000, -1)), 1, noise_density=density, mean_span_length=mean_span)
    inputs, targets = corrupted(text, np.random.default_rng(seed))
    assert (len(inputs), len(targets)) == corrupt.lengths(length)
    assert inputs[-1] == targets[-1] == 1
    assert sorted([*inputs[inputs < 4000], *targets[targets < 4000]])[2:] == text.tolist()
    assert inputs[0] == 10 and targets[0] == 5000  # begins with what stays, the target with the first sentinel


def test_the_text_can_be_put_together_again():
    text = np.random.default_rng(3).permutation(np.arange(10, 210))
    inputs, targets = CORRUPT(text, np.random.default_rng(0))
    assert restored(inputs, targets) == text.tolist()
    seen = [token for token in inputs.tolist() if token in SENTINELS]
    assert seen == SENTINELS[: len(seen)] == [token for token in targets.tolist() if token in SENTINELS]


def test_t5s_own_lengths():
    """T5 fills 512 input tokens from 568 of text, and the target then has 114 (Raffel et al. 2020)."""
    assert CORRUPT.longest_text(512, 114) == 568
    assert CORRUPT.lengths(568) == (512, 114)


def test_spans_are_anywhere():
    text = np.arange(10, 210)
    rng = np.random.default_rng(0)
    hidden = np.zeros(200)
    for _ in range(400):
        _, targets = CORRUPT(text, rng)
        hidden[targets[(targets >= 10) & (targets < 210)] - 10] += 1
    assert hidden.sum() == 400 * 30
    assert hidden[10:180].min() > 0.5 * hidden.mean()  # as T5 draws them, a text ends with a span


def test_rows_too_short_for_any_text_and_a_vocabulary_without_sentinels():
    with pytest.raises(UserError, match="no text fits rows of 2 input"):
        CORRUPT.longest_text(2, 2)
    with pytest.raises(UserError, match="extra_id_0"):
        SpanCorruption([], 1).longest_text(512, 114)
    assert SpanCorruption(SENTINELS[:2], 1).longest_text(512, 512) < 60  # never more spans than sentinels
