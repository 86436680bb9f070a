"""Results of a classification by class: the confusion matrix, precision, recall and F1."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np


def numbered(
    targets: Sequence[str], predictions: Sequence[str], scores: Sequence[float], labels: Sequence[str] = ()
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Numbers the classes, and the target and the answer of each row. Arguments as for `Confusion.of`.

    Returns:
      The classes; the index of each row's class; and that of each row's answer, which is the number of classes if the
      answer is not a label. Two classes may differ only by white space inside them, if the vocabulary keeps it.
    """
    known = tuple(dict.fromkeys(label.strip() for label in [*labels, *targets]))
    number = {label: i for i, label in enumerate(known)}
    true = [number[target.strip()] for target in targets]
    given = zip(predictions, true, scores, strict=True)
    answered = [own if score == 1 else number.get(prediction.strip(), len(known)) for prediction, own, score in given]
    return known, np.array(true, int), np.array(answered, int)


@dataclasses.dataclass(frozen=True)
class Confusion:
    """A confusion matrix.

    Attributes:
      labels: the classes, in the task's order.
      counts: `[labels, labels + 1]`, number of rows by true class and answer; the last column counts answers that are
        not labels.
    """

    labels: tuple[str, ...]
    counts: np.ndarray

    @classmethod
    def of(
        cls, targets: Sequence[str], predictions: Sequence[str], scores: Sequence[float], labels: Sequence[str] = ()
    ) -> "Confusion":
        """Counts the rows of a test by target and answer, ignoring white space around them.

        Args:
          scores: 1 for an answer that was judged right, which counts as its target, however it is written.
          labels: the classes; other targets are added to them, so that every row is counted.
        """
        known, true, answered = numbered(targets, predictions, scores, labels)
        counts = np.zeros((len(known), len(known) + 1), int)
        np.add.at(counts, (true, answered), 1)
        return cls(known, counts)

    @property
    def support(self) -> np.ndarray:
        """`[labels]`: number of rows of each class."""
        return self.counts.sum(axis=1)

    @property
    def answered(self) -> np.ndarray:
        """`[labels]`: number of rows answered with each class."""
        return self.counts[:, :-1].sum(axis=0)

    @property
    def right(self) -> np.ndarray:
        """`[labels]`: number of rows of each class that were answered correctly."""
        return np.diagonal(self.counts)

    @property
    def unknown(self) -> int:
        """Number of answers that are not labels."""
        return int(self.counts[:, -1].sum())

    @property
    def precision(self) -> np.ndarray:
        """`[labels]`: fraction of a class's answers that are correct; 0 for a class that was never answered."""
        return self.right / np.maximum(self.answered, 1)

    @property
    def recall(self) -> np.ndarray:
        """`[labels]`: fraction of a class's rows that were answered correctly; 0 for a class without rows."""
        return self.right / np.maximum(self.support, 1)

    @property
    def f1(self) -> np.ndarray:
        """`[labels]`: harmonic mean of precision and recall; 0 for a class with neither rows nor answers."""
        return 2 * self.right / np.maximum(self.support + self.answered, 1)

    @property
    def macro_f1(self) -> float:
        """Unweighted mean F1 of the classes that have rows or answers."""
        there = self.support + self.answered > 0
        return float(self.f1[there].mean())

    @property
    def majority(self) -> tuple[str, float]:
        """The most frequent class, the first of equal ones, and the accuracy of always answering it."""
        most = int(np.argmax(self.support))
        return self.labels[most], float(self.support[most] / self.support.sum())

    @property
    def only_answer(self) -> str | None:
        """The class with which every row was answered, or None."""
        answered = np.flatnonzero(self.answered)
        return self.labels[answered[0]] if len(answered) == 1 and not self.unknown else None

    def summary(self) -> dict[str, Any]:
        """Returns macro F1 and majority class, for `result.json`."""
        label, share = self.majority
        return {"macro_f1": self.macro_f1, "majority": {"label": label, "share": share}}

    def to_dict(self) -> dict[str, Any]:
        """Returns all numbers of each class and the matrix, for `per_class.json`."""
        numbers = {
            "precision": self.precision,
            "recall": self.recall,
            "f1": self.f1,
            "support": self.support,
            "answered": self.answered,
        }
        return {
            **self.summary(),
            "classes": {
                label: {name: values[i].item() for name, values in numbers.items()}
                for i, label in enumerate(self.labels)
            },
            "confusion": {
                "rows": list(self.labels),
                "columns": [*self.labels, None],  # null: answers that are not labels
                "counts": self.counts.tolist(),
            },
        }
