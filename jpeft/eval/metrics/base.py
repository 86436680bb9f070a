"""What a metric is: one number that says how good answers are, with its direction, its range and what it needs."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from jpeft.eval.uncertainty import Uncertainty, mean_uncertainty, resampled_uncertainty, share_uncertainty

# What a metric may need besides answers and their references.
LABELS = "labels"  # a classification: answers are judged as one of a few classes
TEXTS = "texts"  # a generation: answers are judged by their words or characters
PROBABILITIES = "probabilities"  # of every label, as `eval.answer=score` has them

UNBOUNDED = (-float("inf"), float("inf"))


@dataclasses.dataclass(frozen=True)
class Answered:
    """Answers to the rows of a split beside what would have been right.

    Attributes:
      predictions: one answer a row.
      references: of each row every acceptable answer, the row's own target first.
      labels: the classes of a classification; empty where they are not known or answers are text.
      probabilities: `[rows, labels]`, how likely the model finds each label; None where labels were not scored.
      rouge_tokenizer: what ROUGE counts, `rouge_score` or `unicode` (`Rouge`); None leaves it to the text.
    """

    predictions: Sequence[str]
    references: Sequence[Sequence[str]]
    labels: Sequence[str] = ()
    probabilities: np.ndarray | None = None
    rouge_tokenizer: str | None = None

    def __post_init__(self) -> None:
        for prediction, references in zip(self.predictions, self.references, strict=True):
            assert isinstance(prediction, str) and not isinstance(references, str), "a list of references a row"

    @property
    def targets(self) -> list[str]:
        """The right answer of each row, as the data has it; the first where there are several."""
        return [references[0] for references in self.references]


# The number of a split as a function of how often each row counts: `[rows]` weights, all 1 for the split itself and
# other whole numbers for a sample drawn from it.
Weighted = Callable[[np.ndarray], float]


@dataclasses.dataclass(frozen=True)
class Metric:
    """A way to judge answers by one number. Either `scores` or `of_split` says how; a metric is called to compute it.

    Attributes:
      name: in configs, on the command line and in `result.json`.
      title: in reports.
      scores: a score for each row, of which the metric is the mean.
      of_split: of a number that is no mean over rows (BLEU, Matthews correlation): prepares it for any weights of rows.
      is_share: whether scores are 0 or 1, and the metric the share of rows with 1.
      higher_is_better: which way a better model moves it.
      range: the least and the most that it can be.
      needs: of `LABELS`, `TEXTS`, `PROBABILITIES`: what it cannot be computed without.
      package: that has to be installed for it, and the extra of jpeft that brings it; None for none.
      told: how exactly it was computed on these answers, as a result file says it: tokenizer, version.
    """

    name: str
    title: str
    scores: Callable[[Answered], Sequence[float]] | None = None
    of_split: Callable[[Answered], Weighted] | None = None
    is_share: bool = False
    higher_is_better: bool = True
    range: tuple[float, float] = (0.0, 1.0)
    needs: tuple[str, ...] = ()
    package: tuple[str, str] | None = None
    told: Callable[[Answered], str] | None = None

    def __post_init__(self) -> None:
        assert (self.scores is None) != (self.of_split is None), "a metric is a mean of scores or a number of a split"

    def __call__(self, predictions: Sequence[str], references: Sequence[Sequence[str]], **besides: Any) -> float:
        """The number of these answers.

        Args:
          references: of each row every acceptable answer, the row's own target first.
          besides: `labels`, `probabilities`, `rouge_tokenizer`, as of `Answered`.
        """
        return self.of(Answered(predictions, references, **besides)).number

    def of(self, answered: Answered) -> "Computed":
        """The number with what it was made of, for its uncertainty.

        Raises:
          ValueError: it needs the labels' probabilities, and there are none.
        """
        if PROBABILITIES in self.needs and answered.probabilities is None:
            raise ValueError(f"{self.name} needs the probability of every label, and there are none.")
        if self.scores is not None:
            scores = [float(score) for score in self.scores(answered)]
            return Computed(self, float(np.mean(scores)), scores=scores)
        assert self.of_split is not None
        weighted = self.of_split(answered)
        return Computed(self, float(weighted(np.ones(len(answered.predictions)))), weighted=weighted)


@dataclasses.dataclass(frozen=True)
class Computed:
    """A metric of one split's answers.

    Attributes:
      scores: of each row, where the metric is their mean; None otherwise.
      weighted: the number for other weights of rows, where it is no mean; None where it can be had only once.
    """

    metric: Metric
    number: float
    scores: list[float] | None = None
    weighted: Weighted | None = None

    def uncertainty(self, groups: Sequence[Hashable]) -> Uncertainty | None:
        """The uncertainty of the number, as far as the rows it was measured on tell it; None if they cannot.

        Args:
          groups: of each row; rows of one group, such as of one input, are not independent and count together.
        """
        metric = self.metric
        if self.scores is None:
            if self.weighted is None:
                return None
            return resampled_uncertainty(metric.name, self.weighted, groups, metric.range)
        if metric.is_share:
            return share_uncertainty(metric.name, self.scores, groups)
        return mean_uncertainty(metric.name, self.scores, groups, metric.range)
