"""A model's answers to a split, by generation or by the likeliest of a few labels, and what they are worth."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from jpeft.data.batches import Tokens
from jpeft.data.tasks import Example, Task
from jpeft.eval.generate import answers
from jpeft.eval.labels import ChosenLabels, PackedLabels, agreement_with_generation, likeliest_labels
from jpeft.eval.metrics import Judged, judge, rouge_tokenizer
from jpeft.files import write_whole
from jpeft.model.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Answers:
    """One answer a row.

    Attributes:
      generated: what the model writes; where that is a label as this vocabulary writes it, the label.
      chosen: the likeliest labels, where labels are scored; then these are the answers that count.
    """

    generated: list[str]
    chosen: ChosenLabels | None

    def scored(self, task: Task, examples: Sequence[Example]) -> "ScoredAnswers":
        """The answers that count with a score a row and the split's metrics.

        Where labels were chosen the metrics also say how often generation agrees with the choice.
        """
        if self.chosen is None:
            return ScoredAnswers.of(self.generated, judge(task, examples, self.generated))
        probabilities = self.chosen.probabilities
        judged = judge(task, examples, self.chosen.texts, probabilities)
        of_generation = judge(task, examples, self.generated).numbers
        numbers = judged.numbers | agreement_with_generation(self.chosen.texts, self.generated, of_generation)
        scored = ScoredAnswers.of(self.chosen.texts, judged)
        return dataclasses.replace(scored, numbers=numbers, probabilities=probabilities)


@dataclasses.dataclass(frozen=True)
class ScoredAnswers:
    """The answers to a split with their scores.

    Attributes:
      predictions: that were judged, one a row.
      scores: of each row, as `Judged.scores`.
      numbers: the split's metrics.
      judged: the metrics with what they are made of.
      probabilities: `[rows, labels]`, where labels were scored.
    """

    predictions: list[str]
    scores: list[float]
    numbers: dict[str, float]
    judged: Judged
    probabilities: np.ndarray | None = None

    @classmethod
    def of(cls, predictions: Sequence[str], judged: Judged) -> "ScoredAnswers":
        """Answers without probabilities, one a row, with what `judge` made of them."""
        return cls(list(predictions), judged.scores, judged.numbers, judged)

    def of_rows(self, rows: Sequence[int], task: Task, examples: Sequence[Example]) -> Judged:
        """Scores some of the rows by themselves, with the tokenizer that was chosen for all of them."""
        return judge(
            task,
            [examples[row] for row in rows],
            [self.predictions[row] for row in rows],
            None if self.probabilities is None else self.probabilities[list(rows)],
            rouge_tokenizer=rouge_tokenizer(task, examples),
        )

    def write(self, path: Path, examples: Sequence[Example]) -> None:
        """Writes a line a row with id, input, target, prediction and score; the whole file or none."""
        with write_whole(path) as beside, beside.open("w", encoding="utf-8") as file:
            for example, prediction, score in zip(examples, self.predictions, self.scores, strict=True):
                line = {"id": example.id, "input": example.input, "target": example.target}
                file.write(json.dumps({**line, "prediction": prediction, "score": score}, ensure_ascii=False) + "\n")


def as_labels(texts: Sequence[str], labels: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """Each text, or the label that it is once both went through the tokenizer: no model can write more than that.

    T5's vocabulary folds white space and much of Unicode, and has no braces: "very  bad" is answered "very bad".
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
    *,
    classes: Sequence[str] = (),
    **batching: Any,
) -> Answers:
    """Answers to every row of `tokens`; `label_log_probs` scores `labels`, both None to generate alone.

    Args:
      classes: labels of the task, whether or not they are scored; empty for a generation.
      batching: as of `jpeft.eval.generate.by_row`; its `on_batch` hears of every row twice where labels are scored.
    """
    generated = as_labels(answers(generate, adapter, base, tokens, tokenizer, **batching), classes, tokenizer)
    if label_log_probs is None or labels is None:
        return Answers(generated, None)
    return Answers(generated, likeliest_labels(label_log_probs, adapter, base, tokens.inputs, labels, **batching))
