"""Evaluators, with fake programs whose answers are known."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from jpeft.data.batches import Tokens
from jpeft.data.tasks import TASKS, Example
from jpeft.errors import RunFailed
from jpeft.eval.evaluators import AnswersEvaluator, LossEvaluator
from jpeft.eval.generate import Batching, Unscored
from jpeft.eval.labels import PackedLabels
from jpeft.model.tokenizer import Tokenizer
from tests.conftest import TINY

NOTHING = nnx.State({})
LABELS = ("World", "Sports")
TEXTS = ["World", "Sports", "World", "Sports", "World"]  # what the rows say, which is what is answered
TARGETS = ["World", "Sports", "Sports", "Sports", "World"]


@pytest.fixture
def evaluator(tiny_tokenizer):
    """An evaluator of five rows whose generated answer is their input."""
    tokenizer = Tokenizer.load(tiny_tokenizer)
    ids = [np.asarray(row, np.int32) for row in tokenizer.encode(TEXTS, max_length=12).ids]
    tokens = Tokens(ids, ids, 0, 0)
    examples = [Example(text, text, target, (target,)) for text, target in zip(TEXTS, TARGETS, strict=True)]
    task = dataclasses.replace(TASKS["agnews"], answers=LABELS, metrics=("macro_f1",))

    def make(labels=None, is_number=(True, True), **changes):
        sports = tokenizer.encode(["Sports"], max_length=12).ids[0]
        odds = lambda rows: [[0.0, 1.0 if list(row[: len(sports)]) == list(sports) else -1.0] for row in rows]
        return AnswersEvaluator(
            "validation",
            dataclasses.replace(task, **changes),
            examples,
            tokens,
            tokenizer,
            lambda adapter, base, rows: Unscored(rows, np.array(is_number)),
            lambda adapter, base, rows: np.array(odds(rows)),
            PackedLabels.of(LABELS, tokenizer, TINY) if labels else None,
            Batching(shapes=[(16, 4)], batch_size=2, part=slice(0, 2)),
        )

    return make


@pytest.mark.parametrize("labels", [False, True])
def test_answers_are_judged_by_all_metrics_of_the_task(evaluator, labels):
    """Four of five are right; World: 2 of 3 and 2 of 2, Sports: 2 of 2 and 2 of 3."""
    told = []
    numbers = evaluator(labels)(NOTHING, NOTHING, told.append)
    assert numbers["validation/accuracy"] == pytest.approx(0.8)
    assert numbers["validation/macro_f1"] == pytest.approx(0.8)
    assert set(numbers) >= {"validation/matthews_correlation", "validation/unknown_answers"}
    assert sum(told) == evaluator(labels).rows == 5


def test_answers_that_are_no_numbers_are_refused(evaluator):
    """As found: rows for which the model computed NaN were empty answers, and a test had a score."""
    with pytest.raises(
        RunFailed, match="computes infinity or NaN for 3 of 5 rows, first for row 0; compute in float32"
    ):
        evaluator(is_number=(True, False))(NOTHING, NOTHING, lambda rows: None)


def test_probabilities_of_labels_are_judged_where_they_are_scored(evaluator):
    sure = 1 / (1 + np.exp(-1.0))
    numbers = evaluator(True, metrics=("expected_calibration_error",))(NOTHING, NOTHING, lambda rows: None)
    assert numbers["validation/expected_calibration_error"] == pytest.approx(0.8 - sure, abs=1e-6)


def test_the_loss_is_the_mean_of_all_tokens_and_its_batches_are_asked_for_anew():
    batches = lambda: iter([({"sum": 6.0, "tokens": 3.0}, 2), ({"sum": 1.0, "tokens": 1.0}, 1)])
    told = []
    loss = LossEvaluator("text", lambda adapter, base, batch: (batch["sum"], batch["tokens"]), batches, 3)
    assert [loss(NOTHING, NOTHING, told.append) for _ in range(2)] == [{"text/loss": 7 / 4}] * 2
    assert told == [2, 1, 2, 1]
