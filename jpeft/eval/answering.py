"""Answers a split by generation or by scoring labels, and judges the answers."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from flax import nnx

from jpeft.data.batches import Tokens
from jpeft.data.tasks import Example, Task
from jpeft.eval.generate import Batching, answers
from jpeft.eval.labels import ChosenLabels, PackedLabels, agreement_with_generation, likeliest_labels
from jpeft.eval.metrics import Judged, judge
from jpeft.files import write_whole
from jpeft.model.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Answers:
    """The answers to a split, one per row.

    Attributes:
      generated: the generated answers; one that equals a label after tokenisation is replaced by the label.
      chosen: the most likely labels, which are then the answers that are judged; None if labels are not scored.
      unended: how many generated answers reached the most tokens of an answer before their end.
    """

    generated: list[str]
    chosen: ChosenLabels | None
    unended: int = 0

    def scored(self, task: Task, examples: Sequence[Example]) -> "ScoredAnswers":
        """Judges the chosen labels if there are any, and otherwise the generated answers.

        If labels were chosen, the metrics include those of the generated answers and their agreement with the labels.
        """
        if self.chosen is None:
            scored = ScoredAnswers.of(self.generated, judge(task, examples, self.generated))
            return dataclasses.replace(scored, unended=self.unended)
        probabilities = self.chosen.probabilities
        judged = judge(task, examples, self.chosen.texts, probabilities)
        of_generation = judge(task, examples, self.generated).numbers
        numbers = judged.numbers | agreement_with_generation(self.chosen.texts, self.generated, of_generation)
        scored = ScoredAnswers.of(self.chosen.texts, judged)
        return dataclasses.replace(scored, numbers=numbers, probabilities=probabilities)


@dataclasses.dataclass(frozen=True)
class ScoredAnswers:
    """The judged answers to a split.

    Attributes:
      predictions: the answers, one per row.
      scores: of each row; see `Judged.scores`.
      numbers: the metrics of the split, by name.
      judged: the result of `judge`, for uncertainties.
      probabilities: `[rows, labels]` if labels were scored, otherwise None.
      unended: how many of the answers reached the most tokens of an answer before their end.
    """

    predictions: list[str]
    scores: list[float]
    numbers: dict[str, float]
    judged: Judged
    probabilities: np.ndarray | None = None
    unended: int = 0

    @classmethod
    def of(cls, predictions: Sequence[str], judged: Judged) -> "ScoredAnswers":
        """Combines answers with the result of `judge`, without probabilities."""
        return cls(list(predictions), judged.scores, judged.numbers, judged)

    def of_rows(self, rows: Sequence[int], task: Task, examples: Sequence[Example]) -> Judged:
        """Judges a subset of the rows, with the tokenizers of the whole split."""
        return judge(
            task,
            [examples[row] for row in rows],
            [self.predictions[row] for row in rows],
            None if self.probabilities is None else self.probabilities[list(rows)],
            split=examples,
        )

    def write(self, path: Path, examples: Sequence[Example]) -> None:
        """Writes JSON lines with id, input, target, prediction and score of each row, atomically."""
        with write_whole(path) as beside, beside.open("w", encoding="utf-8") as file:
            for example, prediction, score in zip(examples, self.predictions, self.scores, strict=True):
                line = {"id": example.id, "input": example.input, "target": example.target}
                file.write(json.dumps({**line, "prediction": prediction, "score": score}, ensure_ascii=False) + "\n")


def as_labels(texts: Sequence[str], labels: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """Replaces each text that equals a label after a round trip through the tokenizer by that label.

    A model cannot generate a label more exactly: T5's vocabulary normalises white space and much of Unicode and has no
    braces, so the label "very  bad" is answered with "very bad".
    """
    written = dict(zip(tokenizer.round_trip(labels), labels, strict=True))
    known = {*labels, *written}
    return [
        text if text in labels else written.get(text if text in known else again, text)
        for text, again in zip(texts, tokenizer.round_trip(texts) if labels else texts, strict=True)
    ]


def answer_split(
    generate: Callable,
    label_log_probs: Callable | None,
    adapter: nnx.State,
    base: nnx.State,
    tokens: Tokens,
    tokenizer: Tokenizer,
    labels: PackedLabels | None,
    batching: Batching,
    *,
    classes: Sequence[str] = (),
) -> Answers:
    """Generates an answer to every row of `tokens`, and also scores `labels` if there are any.

    Args:
      generate, label_log_probs: programs of `make_generate` and `make_label_log_probs`; the latter may be None.
      batching: its `on_batch` is called for every row twice if labels are scored.
      classes: labels of the task, whether they are scored or not; empty for a generation.

    Raises:
      RunFailed: the model computes infinity or NaN for a row.
    """
    made = answers(generate, adapter, base, tokens, tokenizer, batching)
    generated = as_labels(made.texts, classes, tokenizer)
    if label_log_probs is None or labels is None:
        return Answers(generated, None, made.unended)
    return Answers(generated, likeliest_labels(label_log_probs, adapter, base, tokens.inputs, labels, batching))
