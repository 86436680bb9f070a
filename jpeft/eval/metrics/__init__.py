"""Metrics by name: the table of all there are, which of them judge a task, and the judging itself.

A metric is one line of `METRICS`, made in the file of its family beside this one. A name in a config is looked up by
`named`; `judge` computes all that a task asks for.
"""

import dataclasses
import difflib
import importlib.util
from collections.abc import Sequence

import numpy as np

from jpeft.data.tasks import Example, Task
from jpeft.errors import UserError
from jpeft.eval.metrics import own
from jpeft.eval.metrics.base import LABELS, PROBABILITIES, TEXTS, Answered, Computed, Metric
from jpeft.eval.metrics.classes import ACCURACY, CLASS_METRICS
from jpeft.eval.metrics.question_answering import QUESTION_ANSWERING_METRICS
from jpeft.eval.metrics.rouge import ROUGE_L, ROUGE_METRICS, ROUGE_SPELLINGS, SEVERAL, tokenizer_of
from jpeft.eval.metrics.translation import TRANSLATION_METRICS
from jpeft.eval.uncertainty import Uncertainty

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (*CLASS_METRICS, *ROUGE_METRICS, *TRANSLATION_METRICS, *QUESTION_ANSWERING_METRICS)
}


def named(name: str) -> Metric:
    """The metric of a name, as `METRICS` has it or as `rouge-score` spells it (`rougeL`).

    A user's own function (`module:name`) is found only where `jpeft.eval.metrics.own.load` was called for it before.

    Raises:
      UserError: there is no such metric; the message names the closest one.
    """
    found = METRICS.get(ROUGE_SPELLINGS.get(name.lower(), name)) or own.loaded(name)
    if found is not None:
        return found
    if own.is_own(name):
        raise UserError(f"the metric {name[:80]!r} is a function of one's own, and nobody named it to be run.")
    close = difflib.get_close_matches(name, [*METRICS, *ROUGE_SPELLINGS], n=1, cutoff=0.0)
    raise UserError(
        f"there is no metric {name[:80]!r}; did you mean {close[0]}? There are: {', '.join(METRICS)}, and functions of "
        "your own by module:name."
    )


def listed(key: str, text: str | None) -> tuple[str, ...]:
    """Names of metrics in a list with commas, each as `METRICS` has it; a user's function stays as it is named.

    Nothing is imported. Raises `UserError`: an unknown name, or one that is there twice.
    """
    names: list[str] = []
    for part in filter(None, (part.strip() for part in (text or "").split(","))):
        if own.is_own(part):
            own.check_name(part)
        name = part if own.is_own(part) else named(part).name
        if name in names:
            raise UserError(f"{key} names {name} twice; name it once.")
        names.append(name)
    if text is not None and not names:
        raise UserError(f"{key} is {text!r}; expected names of metrics, with commas: {', '.join(METRICS)}.")
    return tuple(names)


def higher_is_better(name: str) -> bool:
    """The direction of a number in a result's `metrics`: of a metric, or of generation's beside scored labels."""
    if name == "agreement_with_generation":
        return True
    plain = name.removeprefix("generation_")
    metric = METRICS.get(plain) or own.loaded(plain)
    return metric is None or metric.higher_is_better


def check_metrics(key: str, names: Sequence[str], *, kind: str | None, answer: str, custom: bool = False) -> None:
    """Raises `UserError`: one of the metrics cannot be computed on such a task, or cannot be what it is judged by.

    Args:
      key: how the names were given.
      kind: of the task, `classification` or `generation`; None where its rows will tell.
      answer: as `eval.answer`; `auto` may yet be `score`.
      custom: whether the task is a user's, which is judged by the first.
    """
    for name in names:
        if own.is_own(name):
            metric = own.loaded(name)
            if metric is None:
                continue
        else:
            metric = named(name)
        if kind == "classification" and TEXTS in metric.needs:
            raise UserError(f"{key}: {name} judges texts, and the task is a classification; {_these(LABELS)}.")
        if kind == "generation" and LABELS in metric.needs:
            raise UserError(f"{key}: {name} judges classes, and the task's answers are text; {_these(TEXTS)}.")
        if PROBABILITIES in metric.needs and answer == "generate":
            raise UserError(f"{key}: {name} needs the probability of every label; give eval.answer=score, too.")
        if metric.package is not None and importlib.util.find_spec(metric.package[0]) is None:
            package, extra = metric.package
            raise UserError(f"{key}: {name} needs {package}: pip install 'jpeft[{extra}]'.")
        if custom and name == names[0] and not metric.higher_is_better:
            raise UserError(
                f"{key}: a task is judged by its first metric, where higher is better, and of {name} lower is; name "
                "another one before it."
            )


def require_metrics(task: Task, answer: str, key: str = "eval.metrics") -> None:
    """Raises `UserError`: a metric that was asked for cannot be computed on this task's rows, whose kind is known.

    Args:
      answer: how rows are answered, `generate` or `score`.
    """
    check_metrics(key, task.metrics, kind=task.kind, answer=answer, custom=task.name == "custom")


def _these(needs: str) -> str:
    other = TEXTS if needs == LABELS else LABELS
    return "for it there are " + ", ".join(name for name, metric in METRICS.items() if other not in metric.needs)


def metrics_of(task: Task, examples: Sequence[Example]) -> list[Metric]:
    """The metrics that judge answers to these rows, the task's main one first: those asked for, or the task's own.

    The benchmark's tasks keep their own beside what was asked for.
    """
    names = [task.metric, *task.metrics]
    if not task.metrics or task.name != "custom":
        if task.kind == "classification":
            names.append("matthews_correlation")
        elif any(len(example.references) > 1 for example in examples):
            names.append(f"{ROUGE_L.name}{SEVERAL}")
    if task.kind == "classification" and task.answers:
        names.append("unknown_answers")
    return [named(name) for name in dict.fromkeys(names)]


def rouge_tokenizer(task: Task, examples: Sequence[Example]) -> str | None:
    """What ROUGE counts in answers to these rows, `rouge_score` or `unicode` (`Rouge`); None for a classification.

    The benchmark's tasks are English and judged as published. For a user's rows their references decide, so that the
    numbers of all models on the same rows compare.
    """
    if task.kind == "classification":
        return None
    return "rouge_score" if task.name != "custom" else tokenizer_of(_answered(task, examples, [""] * len(examples)))


@dataclasses.dataclass(frozen=True)
class Judged:
    """A split's answers with the values of all metrics.

    Attributes:
      scores: of each row, as `predictions.jsonl` has them. Of a classification 1 where the answer is right, else 0; of
        text by the task's metric where that is a mean over rows, else by ROUGE-L.
      best: the highest that a row's score can be.
      numbers: the metrics by name, the task's first.
      computed: the same with what they are made of.
      told: of metrics that can be computed in more than one way, how they were: tokenizer, version.
    """

    scores: list[float]
    best: float
    numbers: dict[str, float]
    computed: list[Computed]
    told: dict[str, str]

    def uncertainties(self, examples: Sequence[Example]) -> dict[str, Uncertainty]:
        """How far each number may be trusted, where that can be told; rows of equal inputs count together."""
        inputs = [example.input for example in examples]
        found = {one.metric.name: one.uncertainty(inputs) for one in self.computed}
        return {name: trust for name, trust in found.items() if trust is not None}


def judge(
    task: Task,
    examples: Sequence[Example],
    predictions: Sequence[str],
    probabilities: np.ndarray | None = None,
    *,
    rouge_tokenizer: str | None = None,
) -> Judged:
    """Judges answers to these rows by all metrics of the task.

    Those that need labels' probabilities are left out where there are none: of generated answers beside scored ones.

    Args:
      probabilities: `[rows, labels]`, in the order of the task's labels; None where answers were generated.
      rouge_tokenizer: of the rows that these are a part of; None to choose it by these.
    """
    answered = dataclasses.replace(_answered(task, examples, predictions), probabilities=probabilities)
    if rouge_tokenizer is not None:
        answered = dataclasses.replace(answered, rouge_tokenizer=rouge_tokenizer)
    metrics = metrics_of(task, examples)
    computed = [m.of(answered) for m in metrics if probabilities is not None or PROBABILITIES not in m.needs]
    by_row = computed[0] if computed[0].scores is not None and task.kind == "generation" else None
    by_row = by_row or (ACCURACY if task.kind == "classification" else ROUGE_L).of(answered)
    assert by_row.scores is not None
    told = {one.metric.name: one.metric.told(answered) for one in computed if one.metric.told is not None}
    numbers = {one.metric.name: one.number for one in computed}
    return Judged(by_row.scores, by_row.metric.range[1], numbers, computed, told)


def _answered(task: Task, examples: Sequence[Example], predictions: Sequence[str]) -> Answered:
    return Answered(
        predictions,
        [example.references for example in examples],
        labels=task.answers,
        rouge_tokenizer="rouge_score" if task.kind == "generation" and task.name != "custom" else None,
    )
