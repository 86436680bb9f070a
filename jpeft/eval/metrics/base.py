"""The type of a metric: one number for the answers to a split, with its direction, range and requirements."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from jpeft.eval.uncertainty import Uncertainty, mean_uncertainty, resampled_uncertainty, share_uncertainty

# What a metric may require besides answers and references.
LABELS = "labels"  # a classification
TEXTS = "texts"  # a generation
PROBABILITIES = "probabilities"  # of every label, from `eval.answer=score`

UNBOUNDED = (-float("inf"), float("inf"))


@dataclasses.dataclass(frozen=True)
class Answered:
    """The answers to the rows of a split, with their references.

    Attributes:
      predictions: one answer per row.
      references: every acceptable answer of each row, the row's own target first.
      labels: the classes of a classification; empty if they are unknown or the task is a generation.
      probabilities: `[rows, labels]`, the model's probability of each label; None if labels were not scored.
      rouge_tokenizer: the tokenizer of ROUGE (see `Rouge`); None chooses it by the references.
      split_references: the references of all rows of the split, if these rows are a part of one; None otherwise.
    """

    predictions: Sequence[str]
    references: Sequence[Sequence[str]]
    labels: Sequence[str] = ()
    probabilities: np.ndarray | None = None
    rouge_tokenizer: str | None = None
    split_references: Sequence[Sequence[str]] | None = None

    def __post_init__(self) -> None:
        for prediction, references in zip(self.predictions, self.references, strict=True):
            assert isinstance(prediction, str) and not isinstance(references, str), "a list of references a row"

    @property
    def targets(self) -> list[str]:
        """The first reference of each row, which is its target."""
        return [references[0] for references in self.references]

    @property
    def tokenizer_references(self) -> Sequence[Sequence[str]]:
        """The references by which tokenizers are chosen: those of the whole split, so that it has one tokenizer."""
        return self.references if self.split_references is None else self.split_references


# A metric as a function of `[rows]` weights, the number of times that each row occurs: all 1 for the split itself, and
# other whole numbers for a bootstrap sample.
Weighted = Callable[[np.ndarray], float]


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric of answers. It is defined by either `scores` or `of_split`, and computed by calling it.

    Attributes:
      name: in configs, on the command line and in `result.json`.
      title: in reports.
      scores: computes a score per row; the metric is their mean.
      of_split: for a metric that is not a mean over rows (BLEU, Matthews correlation): prepares its computation for any
        row weights.
      is_share: whether the scores are 0 or 1, so that the metric is a fraction of the rows.
      higher_is_better: whether a better model has a higher value.
      range: lowest and highest possible value.
      needs: requirements, of `LABELS`, `TEXTS`, `PROBABILITIES`.
      package: a required package and the extra of jpeft that installs it; None if there is none.
      computed_by: describes how it was computed on these answers (tokenizer, version), for result files.
      caution: returns a one-line caution about what the metric makes of the references, or None. It is called before
        there are answers, with the targets of the training rows as well, which are answers that a model may give.
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
    computed_by: Callable[[Answered], str] | None = None
    caution: Callable[[Answered, Sequence[str]], str | None] | None = None

    def __post_init__(self) -> None:
        assert (self.scores is None) != (self.of_split is None), "a metric is a mean of scores or a number of a split"

    def __call__(self, predictions: Sequence[str], references: Sequence[Sequence[str]], **besides: Any) -> float:
        """Computes the metric.

        Args:
          predictions: one answer per row.
          references: every acceptable answer of each row, the row's own target first.
          besides: `labels`, `probabilities`, `rouge_tokenizer` of `Answered`.
        """
        return self.of(Answered(predictions, references, **besides)).number

    def of(self, answered: Answered) -> "Computed":
        """Computes the metric, and keeps the per-row data for its uncertainty.

        Raises:
          ValueError: the metric needs the labels' probabilities, and there are none.
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
    """The value of a metric for a split's answers.

    Attributes:
      number: the value.
      scores: of each row, if the metric is their mean; otherwise None.
      weighted: recomputes the value for other row weights, if the metric is not a mean; None if it cannot.
    """

    metric: Metric
    number: float
    scores: list[float] | None = None
    weighted: Weighted | None = None

    def uncertainty(self, groups: Sequence[Hashable]) -> Uncertainty | None:
        """Estimates the sampling uncertainty of the value; None if that is not possible.

        Args:
          groups: group of each row; rows of one group, such as those of one input, are not independent.
        """
        metric = self.metric
        if self.scores is None:
            if self.weighted is None:
                return None
            return resampled_uncertainty(metric.name, self.weighted, groups, metric.range)
        if metric.is_share:
            return share_uncertainty(metric.name, self.scores, groups)
        return mean_uncertainty(metric.name, self.scores, groups, metric.range)
