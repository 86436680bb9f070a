"""Metrics of a classification: accuracy, Matthews correlation, macro F1, calibration."""

from collections.abc import Sequence

import numpy as np

from jpeft.eval.metrics.base import LABELS, PROBABILITIES, Answered, Metric, Weighted
from jpeft.eval.per_class import numbered

_BINS = 15  # of confidence, as in Guo et al. 2017


def right(prediction: str, target: str) -> float:
    """Returns 1 if two texts are equal, ignoring white space around them, and 0 otherwise."""
    return float(prediction.strip() == target.strip())


def _right_answers(answered: Answered) -> list[float]:
    return [right(p, t) for p, t in zip(answered.predictions, answered.targets, strict=True)]


def _unknown_answers(answered: Answered) -> list[float]:
    known = {label.strip() for label in answered.labels or answered.targets}
    return [float(prediction.strip() not in known) for prediction in answered.predictions]


def _matthews_correlation(answered: Answered) -> Weighted:
    true, predicted, number = _numbered(answered.targets, answered.predictions)
    hit = true == predicted

    def of(weights: np.ndarray) -> float:
        t = np.bincount(true, weights, number)
        p = np.bincount(predicted, weights, number)
        n = weights.sum()
        covariance = weights[hit].sum() * n - t @ p
        spread = np.sqrt((n**2 - p @ p) * (n**2 - t @ t))
        return float(covariance / spread) if spread else 0.0

    return of


def _numbered(targets: Sequence[str], predictions: Sequence[str]) -> tuple[np.ndarray, np.ndarray, int]:
    """Numbers the distinct texts, ignoring white space around them; returns both sides' numbers and their count."""
    targets, predictions = ([text.strip() for text in texts] for texts in (targets, predictions))
    numbers = {text: i for i, text in enumerate(dict.fromkeys([*targets, *predictions]))}
    of = lambda texts: np.array([numbers[text] for text in texts], int)
    return of(targets), of(predictions), len(numbers)


def _macro_f1(answered: Answered) -> Weighted:
    """`Confusion.macro_f1` for weighted rows."""
    classes, true, predicted = numbered(
        answered.targets, answered.predictions, _right_answers(answered), answered.labels
    )
    number = len(classes)

    def of(weights: np.ndarray) -> float:
        support = np.bincount(true, weights, number)
        named = np.bincount(predicted, weights, number + 1)[:number]
        hits = np.bincount(true, weights * (true == predicted), number)
        there = support + named > 0
        return float((2 * hits[there] / (support + named)[there]).mean())

    return of


def _expected_calibration_error(answered: Answered) -> Weighted:
    assert answered.probabilities is not None
    confidence = answered.probabilities.max(axis=1)
    hits = np.array(_right_answers(answered))
    # Bins are open on the left, (0, 1/15], (1/15, 2/15] ..., as in the paper.
    bins = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    gap = confidence - hits

    def of(weights: np.ndarray) -> float:
        return float(np.abs(np.bincount(bins, weights * gap, _BINS)).sum() / weights.sum())

    return of


ACCURACY = Metric("accuracy", "accuracy", scores=_right_answers, is_share=True)
CLASS_METRICS = (
    ACCURACY,
    # The multi-class form of Gorodkin (2004), which equals Matthews' phi for two classes; 0 if all targets or all
    # answers are equal. Each distinct answer that is not a label counts as a class of its own.
    Metric(
        "matthews_correlation",
        "Matthews correlation",
        of_split=_matthews_correlation,
        range=(-1.0, 1.0),
        needs=(LABELS,),
    ),
    Metric("macro_f1", "macro F1", of_split=_macro_f1, needs=(LABELS,)),
    Metric(
        "unknown_answers",
        "share of answers that are no label",
        scores=_unknown_answers,
        is_share=True,
        higher_is_better=False,
        needs=(LABELS,),
    ),
    # Guo et al. 2017, eq. 3: the mean, over rows, of the difference between accuracy and confidence in the row's bin.
    # The confidence is the probability of the chosen label, normalised over the labels.
    Metric(
        "expected_calibration_error",
        "expected calibration error (lower is better)",
        of_split=_expected_calibration_error,
        higher_is_better=False,
        needs=(LABELS, PROBABILITIES),
    ),
)
