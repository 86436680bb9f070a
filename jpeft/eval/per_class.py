"""What a classification's test got right and wrong, class by class."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np


def numbered(
    targets: Sequence[str], predictions: Sequence[str], scores: Sequence[float], labels: Sequence[str] = ()
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """The classes, and of each row the number of its own and of its answer's, which is one more if it is no label.

    Arguments as of `Confusion.of`. Two classes may differ by white space within alone, where a vocabulary has it.
    """
    known = tuple(dict.fromkeys(label.strip() for label in [*labels, *targets]))
    number = {label: i for i, label in enumerate(known)}
    true = [number[target.strip()] for target in targets]
    given = zip(predictions, true, scores, strict=True)
    answered = [own if score == 1 else number.get(prediction.strip(), len(known)) for prediction, own, score in given]
    return known, np.array(true, int), np.array(answered, int)


@dataclasses.dataclass(frozen=True)
class Confusion:
    """A confusion matrix: how often rows of each class were answered as each class.

    Attributes:
      labels: the classes, in the task's order.
      counts: `[labels, labels + 1]`, rows of a true class by answer; the last column counts answers that are no label.
    """

    labels: tuple[str, ...]
    counts: np.ndarray

    @classmethod
    def of(
        cls, targets: Sequence[str], predictions: Sequence[str], scores: Sequence[float], labels: Sequence[str] = ()
    ) -> "Confusion":
        """Sorts a test's rows by target and answer, as texts without white space around them.

        Args:
          scores: 1 where an answer was judged right, which is then its target, however it is written.
          labels: the classes. A target that is none of them becomes one, so that no row is left out.
        """
        known, true, answered = numbered(targets, predictions, scores, labels)
        counts = np.zeros((len(known), len(known) + 1), int)
        np.add.at(counts, (true, answered), 1)
        return cls(known, counts)

    @property
    def support(self) -> np.ndarray:
        """`[labels]`: rows of each class."""
        return self.counts.sum(axis=1)

    @property
    def answered(self) -> np.ndarray:
        """`[labels]`: how often each class was the answer."""
        return self.counts[:, :-1].sum(axis=0)

    @property
    def right(self) -> np.ndarray:
        """`[labels]`: rows of each class that were answered with it."""
        return np.diagonal(self.counts)

    @property
    def unknown(self) -> int:
        """The number of answers that are none of the labels."""
        return int(self.counts[:, -1].sum())

    @property
    def precision(self) -> np.ndarray:
        """`[labels]`: share of the answers of a class that are right; 0 where it was never the answer."""
        return self.right / np.maximum(self.answered, 1)

    @property
    def recall(self) -> np.ndarray:
        """`[labels]`: share of a class's rows that were answered with it; 0 where it has no rows."""
        return self.right / np.maximum(self.support, 1)

    @property
    def f1(self) -> np.ndarray:
        """`[labels]`: harmonic mean of precision and recall; 0 where a class has neither rows nor answers."""
        return 2 * self.right / np.maximum(self.support + self.answered, 1)

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that have rows or were answered: each counts alike, however rare it is."""
        there = self.support + self.answered > 0
        return float(self.f1[there].mean())

    @property
    def majority(self) -> tuple[str, float]:
        """The most frequent class and its share: the accuracy of always answering with it. The first of equal ones."""
        most = int(np.argmax(self.support))
        return self.labels[most], float(self.support[most] / self.support.sum())

    @property
    def only_answer(self) -> str | None:
        """The class that every row was answered with, or None."""
        answered = np.flatnonzero(self.answered)
        return self.labels[answered[0]] if len(answered) == 1 and not self.unknown else None

    def summary(self) -> dict[str, Any]:
        """The macro F1 and the majority class, as `result.json` holds them."""
        label, share = self.majority
        return {"macro_f1": self.macro_f1, "majority": {"label": label, "share": share}}

    def to_dict(self) -> dict[str, Any]:
        """All numbers of each class and the matrix, as `per_class.json` holds them."""
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
                "columns": [*self.labels, None],  # null: answers that are no label
                "counts": self.counts.tolist(),
            },
        }
