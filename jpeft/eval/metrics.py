"""Exact match, Matthews correlation and ROUGE-L."""

from collections.abc import Sequence

import numpy as np

from jpeft.data.tasks import Example, Task
from jpeft.eval.rouge import RougeL, tokenizer_for


def exact_match(prediction: str, target: str) -> float:
    """1 when the strings are equal but for surrounding white space, else 0."""
    return float(prediction.strip() == target.strip())


def matthews_correlation(predictions: Sequence[str], targets: Sequence[str]) -> float:
    """Correlation of predicted and true classes, -1 to 1; 0 when either side has one class only.

    The multi-class form of Gorodkin (2004), which for two classes is Matthews' phi. An answer that is no label counts
    as a class of its own.
    """
    classes = {label: i for i, label in enumerate(dict.fromkeys([*targets, *predictions]))}
    confusion = np.zeros((len(classes), len(classes)))
    for prediction, target in zip(predictions, targets, strict=True):
        confusion[classes[target], classes[prediction]] += 1
    true, predicted, n = confusion.sum(axis=1), confusion.sum(axis=0), confusion.sum()
    covariance = np.trace(confusion) * n - true @ predicted
    spread = np.sqrt((n**2 - predicted @ predicted) * (n**2 - true @ true))
    return float(covariance / spread) if spread else 0.0


def rouge_tokenizer(task: Task, examples: Sequence[Example]) -> str | None:
    """What ROUGE counts in answers to these rows, a name of `jpeft.eval.rouge.TOKENIZERS`; None for a classification.

    The benchmark's tasks are English and judged as published. For a user's rows their references decide, so that the
    numbers of all models on the same rows compare.
    """
    if task.kind == "classification":
        return None
    if task.name != "custom":
        return "rouge_score"
    return tokenizer_for(reference for example in examples for reference in example.references)


def score(task: Task, examples: Sequence[Example], predictions: Sequence[str]) -> tuple[list[float], dict[str, float]]:
    """Score of each prediction by the task's metric, and the split's numbers.

    The numbers hold the task's metric under its name; for a classification `matthews_correlation` and
    `unknown_answers`, the share of answers that are no label; where rows have several references
    `rouge_l_multi_reference`.
    """
    if task.kind == "classification":
        scores = [exact_match(p, e.target) for p, e in zip(predictions, examples, strict=True)]
        numbers = {
            "matthews_correlation": matthews_correlation(
                [p.strip() for p in predictions], [e.target.strip() for e in examples]
            )
        }
        if task.answers:
            numbers["unknown_answers"] = float(np.mean([p.strip() not in task.answers for p in predictions]))
    else:
        rouge_l = RougeL(rouge_tokenizer(task, examples) or "rouge_score")
        scores = [rouge_l(p, e.target) for p, e in zip(predictions, examples, strict=True)]
        numbers = {}
        if any(len(example.references) > 1 for example in examples):
            best = [rouge_l.best(p, e.references) for p, e in zip(predictions, examples, strict=True)]
            numbers["rouge_l_multi_reference"] = float(np.mean(best))
    return scores, {task.metric: float(np.mean(scores)), **numbers}
