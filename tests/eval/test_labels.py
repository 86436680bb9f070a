"""Packed label scores equal those of teacher forcing, one label at a time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jpeft.data.tasks import TASKS, Example
from jpeft.errors import RunFailed, UserError
from jpeft.eval.cross_entropy import target_log_probs
from jpeft.eval.generate import Batching
from jpeft.eval.labels import (
    PackedLabels,
    agreement_with_generation,
    answer_in_use,
    label_log_probs,
    label_probabilities,
    likeliest_labels,
)
from jpeft.eval.metrics import judge
from jpeft.model.tokenizer import Tokenizer
from jpeft.peft.attaching import attach
from jpeft.peft.lora import Lora
from jpeft.peft.prefix import Prefix
from jpeft.peft.prompt import Prompt
from jpeft.peft.selection import select
from tests.conftest import ONE_LAYER, TINY, TOPICS, make_batch, random_t5
from tests.peft.filled import filled

ROWS = 5


@pytest.fixture(autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return Tokenizer.load(tiny_tokenizer)


@pytest.fixture(scope="module")
def labels(tokenizer):
    return PackedLabels.of([*TOPICS, "Sports final season"], tokenizer, TINY)  # one begins as another does


@pytest.fixture(scope="module")
def tokens():
    return make_batch(TINY, rows=ROWS, enc_len=8, dec_len=2, seed=1)["encoder_input_tokens"]


def adapted(method):
    model = random_t5(ONE_LAYER, seed=4)
    if method is not None:
        model = filled(attach(model, method, select(model, method), jax.random.key(0)), jax.random.key(1))
    return model


def one_by_one(model, tokens, texts, tokenizer) -> np.ndarray:
    """`[batch, labels]` by one pass of the whole model per label."""
    targets = [[*ids, TINY.eos_token_id] for ids in tokenizer.ids(texts)]
    longest, columns = max(map(len, targets)), []
    for target in targets:
        inputs = jnp.asarray([0, *target[:-1], *[0] * (longest - len(target))])
        log_probs = jax.nn.log_softmax(_logits(model, tokens, jnp.broadcast_to(inputs, (len(tokens), longest))))
        columns.append(np.asarray(log_probs)[:, range(len(target)), target].sum(axis=1))
    return np.stack(columns, axis=1)


_logits = jax.jit(lambda model, *tokens: model(*tokens))


@pytest.mark.parametrize(
    "method",
    [
        None,
        pytest.param(Lora(), marks=pytest.mark.slow),
        pytest.param(Prompt(3), marks=pytest.mark.slow),
        Prefix(3),
    ],
    ids=["base", "lora", "prompt", "prefix"],
)
def test_packed_labels_score_as_each_does_alone(method, tokens, labels, tokenizer):
    model = adapted(method)
    scored = np.asarray(jax.jit(lambda m, t: label_log_probs(m, t, labels))(model, tokens))
    expected = one_by_one(model, tokens, labels.texts, tokenizer)
    np.testing.assert_allclose(scored, expected, atol=1e-5)
    np.testing.assert_array_equal(scored.argmax(axis=1), expected.argmax(axis=1))
    assert expected.std(axis=0).min() > 1e-3  # the inputs matter


def test_log_probabilities_by_slices_are_those_of_the_whole(key):
    hidden, kernel = jax.random.normal(key, (3, 12, 8)), jax.random.normal(jax.random.key(1), (8, 20))
    targets = jax.random.randint(jax.random.key(2), (3, 12), 0, 20)
    project = lambda x: x @ kernel
    log_probs = jax.nn.log_softmax(project(hidden))
    whole = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
    for largest in (3 * 20, 3 * 4 * 20, 3 * 12 * 20):
        sliced = target_log_probs(project, hidden, targets, vocab_size=20, largest_slice=largest)
        np.testing.assert_allclose(sliced, whole, atol=1e-5)


def test_how_labels_are_packed(tokenizer):
    packed = PackedLabels.of(["World", "Sports"], tokenizer, TINY)
    world, sports = tokenizer.ids(["World", "Sports"])
    length = len(world) + len(sports) + 2
    assert packed.targets[:length].tolist() == [*world, 1, *sports, 1]
    assert packed.inputs[:length].tolist() == [0, *world, 0, *sports]
    assert packed.num_tokens().tolist() == [len(world) + 1, len(sports) + 1]
    assert len(packed.targets) % 8 == 0 and set(packed.segment_ids[length:].tolist()) <= {2}


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["World"], "expected two or more"),
        (["World", " "], "none of them empty"),
        (["World", "World "], "'World' and 'World' are the same tokens"),
        (["World", "\u200b"], r"'World', '\\u200b'; expected two or more, none of them empty"),
        (["e\u0301", "e\u0301 "], r"'e\\u0301' and 'e\\u0301' are the same tokens"),
    ],
)
def test_labels_that_can_not_be_told_apart_are_refused(texts, says, tokenizer):
    with pytest.raises(UserError, match=says):
        PackedLabels.of(texts, tokenizer, TINY)


def test_the_likeliest_label_of_each_row_in_the_order_of_rows(labels):
    """Rows of different lengths, so that batches are not in the order of rows."""
    inputs = [np.arange(3, 3 + length) for length in (2, 9, 4, 9, 3)]

    def by_length(adapter, base, encoder_input_tokens):
        length = np.sum(encoder_input_tokens != 0, axis=1)
        return -np.abs(length[:, None] - np.array([2, 3, 4, 9, 12]))

    empty = nnx.State({})
    chosen = likeliest_labels(by_length, empty, empty, inputs, labels, Batching(shapes=[(16, 1)], batch_size=2))
    assert chosen.texts == [labels.texts[i] for i in (0, 3, 2, 3, 1)]
    odds = np.exp([-2.0, -1.0, 0.0, -5.0, -8.0])  # of the third row, of length 4
    assert chosen.probabilities[2] == pytest.approx(odds / odds.sum())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_no_number_chooses_nothing(labels, bad):
    """`argmax` of values with a NaN would return the NaN."""
    scores = lambda adapter, base, inputs: np.tile([-1.0, -2.0, bad, -4.0, -5.0], (len(inputs), 1))
    with pytest.raises(RunFailed, match=rf"computes {bad} as the log-probability of {labels.texts[2]!r} for row 0"):
        empty = nnx.State({})
        likeliest_labels(scores, empty, empty, [np.array([3])], labels, Batching(shapes=[(16, 1)], batch_size=2))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_single_row_is_as_strict(labels, bad):
    """Finite logits never give a log-probability of -inf, so it is an error, as NaN is."""
    with pytest.raises(RunFailed, match=f"computes {bad} where a log-probability should be"):
        labels.choose(np.array([-1.0, -2.0, bad, -4.0, -5.0], np.float32))
    assert labels.choose(np.array([-1.0, -2.0, -90.0, -4.0, -5.0], np.float32)).text == labels.texts[0]


def test_probabilities_are_the_same_of_one_row_and_of_many_and_rounded_where_they_are_written(labels):
    log_probs = np.array([[-1.0, -2.0, -90.0, -4.0, -5.5], [-700.0, -701.0, -702.0, -703.0, -704.0]], np.float32)
    odds = np.exp(log_probs.astype(np.float64) - log_probs.max(axis=1, keepdims=True))
    exact = odds / odds.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(label_probabilities(log_probs), exact, rtol=1e-14)
    for row, expected in zip(log_probs, exact, strict=True):
        assert labels.choose(row).probabilities == dict(zip(labels.texts, np.round(expected, 6), strict=True))


def test_agreement_counts_rows_and_keeps_the_numbers_of_generation():
    examples = [Example(f"test/{i}", "input", target, (target,)) for i, target in enumerate(["World", "Sports"] * 2)]
    generated = ["World", "Worlds", "World", " Sports"]
    numbers = judge(TASKS["agnews"], examples, generated).numbers
    found = agreement_with_generation(["World", "Sports", "Sports", "Sports"], generated, numbers)
    assert found["agreement_with_generation"] == 0.5
    assert found["generation_accuracy"] == 0.75 and found["generation_unknown_answers"] == 0.25


@pytest.mark.parametrize(
    ("labels", "expected"), [(0, "generate"), (1, "generate"), (2, "score"), (100, "score"), (101, "generate")]
)
def test_classes_of_ones_own_are_scored_unless_one_or_very_many(labels, expected):
    task = dataclasses.replace(TASKS["custom"], answers=tuple(map(str, range(labels))))
    assert answer_in_use("auto", task) == expected
    assert {answer_in_use(given, task) for given in ("generate", "score")} == {"generate", "score"}
    assert answer_in_use("auto", TASKS["agnews"]) == "generate"


def test_so_many_labels_that_scoring_them_would_fill_the_memory_are_refused(tiny_tokenizer):
    labels = [f"president {i:04}" for i in range(1500)]
    with pytest.raises(UserError, match=r"1,500 labels have .* tokens together, and 4,096 at most"):
        PackedLabels.of(labels, Tokenizer.load(tiny_tokenizer), TINY)
