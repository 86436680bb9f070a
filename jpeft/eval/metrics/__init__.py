"""The table of all metrics, `METRICS`, and `judge`, which computes those of a task.

Each metric is defined in the module of its family. `named` looks up the name in a config.
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
    """Returns a metric by its name in `METRICS`, or by the spelling of `rouge-score` (`rougeL`).

    A user's function (`module:name`) has to be loaded by `jpeft.eval.metrics.own.load` first.

    Raises:
      UserError: the metric does not exist; the message names the closest one.
    """
    found = METRICS.get(ROUGE_SPELLINGS.get(name.lower(), name)) or own.loaded(name)
    if found is not None:
        return found
    if own.is_own(name):
        raise UserError(
            f"the metric {name[:80]!r} is a function of your own, which runs only if it is named in eval.metrics or "
            "--metrics."
        )
    close = difflib.get_close_matches(name, [*METRICS, *ROUGE_SPELLINGS], n=1, cutoff=0.0)
    raise UserError(
        f"there is no metric {name[:80]!r}; did you mean {close[0]}? There are: {', '.join(METRICS)}, and functions of "
        "your own by module:name."
    )


def parse_metrics(key: str, text: str | None) -> tuple[str, ...]:
    """Parses a comma-separated list of metrics to their names in `METRICS`; names of a user's functions stay.

    Imports nothing. Raises `UserError` for an unknown or repeated name, or an empty list; `key` names the list.
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
    """Whether a higher value is better, for any number in a result's `metrics`, such as `generation_accuracy`."""
    if name == "agreement_with_generation":
        return True
    plain = name.removeprefix("generation_")
    metric = METRICS.get(plain) or own.loaded(plain)
    return metric is None or metric.higher_is_better


def check_metrics(key: str, names: Sequence[str], *, kind: str | None, answer: str, custom: bool = False) -> None:
    """Raises `UserError` if a metric cannot be computed for a task, or cannot be its main metric.

    Args:
      key: config key of the names, for messages.
      kind: of the task, `classification` or `generation`; None if it is inferred from the rows later.
      answer: `eval.answer`; `auto` may still become `score`.
      custom: whether the task is custom, so that the first metric is its main metric.
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
                f"{key}: a task is judged by its first metric, for which higher must be better, and a lower {name} is "
                "better; name another one before it."
            )


def require_metrics(task: Task, answer: str, key: str = "eval.metrics") -> None:
    """Raises `UserError` like `check_metrics`, for a task whose kind is known.

    Args:
      answer: `generate` or `score`: how rows are answered.
    """
    check_metrics(key, task.metrics, kind=task.kind, answer=answer, custom=task.is_custom)


def _these(needs: str) -> str:
    other = TEXTS if needs == LABELS else LABELS
    return "for it there are " + ", ".join(name for name, metric in METRICS.items() if other not in metric.needs)


def metrics_of(task: Task, examples: Sequence[Example]) -> list[Metric]:
    """Returns the metrics of a task's answers, the main metric first.

    A custom task has the metrics that were asked for, or else its own; the benchmark's tasks have both.
    """
    names = [task.metric, *task.metrics]
    if not task.metrics or not task.is_custom:
        if task.kind == "classification":
            names.append("matthews_correlation")
        elif any(len(example.references) > 1 for example in examples):
            names.append(f"{ROUGE_L.name}{SEVERAL}")
    if task.kind == "classification" and task.answers:
        names.append("unknown_answers")
    return [named(name) for name in dict.fromkeys(names)]


def rouge_tokenizer(task: Task, examples: Sequence[Example]) -> str | None:
    """Returns the tokenizer of ROUGE for these rows (see `Rouge`); None for a classification.

    The benchmark's tasks are English and use that of published results. For custom tasks it is chosen by the
    references, so that results of all models on the same rows are comparable.
    """
    if task.kind == "classification":
        return None
    return task.rouge_tokenizer or tokenizer_of(_unanswered(task, examples))


def reference_cautions(task: Task, examples: Sequence[Example], trained: Sequence[str] = ()) -> list[str]:
    """Returns a line for each metric of the task that makes something unexpected of these rows' references.

    Args:
      examples: rows of the test.
      trained: targets of the training rows, if they are known.
    """
    answered = _unanswered(task, examples)
    lines = [metric.caution(answered, trained) for metric in metrics_of(task, examples) if metric.caution is not None]
    return list(dict.fromkeys(line for line in lines if line is not None))


def try_own(names: Sequence[str], task: Task, examples: Sequence[Example]) -> None:
    """Calls the user's functions among these metrics with the targets as answers, so that a faulty one shows at once.

    Raises:
      UserError: a function fails, or does not return finite numbers within its range.
    """
    answered = _answered(task, examples, [example.target for example in examples])
    for name in dict.fromkeys(filter(own.is_own, names)):
        try:
            named(name).of(answered)
        except UserError as error:
            raise UserError(f"tried with the right answers, before any training: {error}") from error


@dataclasses.dataclass(frozen=True)
class Judged:
    """The metrics of a split's answers.

    Attributes:
      scores: of each row, for `predictions.jsonl`. For a classification 1 if the answer is right, else 0; for a
        generation the task's metric if that is a mean over rows, otherwise ROUGE-L.
      best: the highest possible score of a row.
      numbers: the metrics by name, the main metric first.
      computed: the metrics with their per-row data.
      computed_by: how metrics with variants were computed (tokenizer, version), by name.
    """

    scores: list[float]
    best: float
    numbers: dict[str, float]
    computed: list[Computed]
    computed_by: dict[str, str]

    def uncertainties(self, examples: Sequence[Example]) -> dict[str, Uncertainty]:
        """Returns the uncertainty of each metric that has one. Rows with equal inputs are not independent."""
        inputs = [example.input for example in examples]
        found = {one.metric.name: one.uncertainty(inputs) for one in self.computed}
        return {name: trust for name, trust in found.items() if trust is not None}


def judge(
    task: Task,
    examples: Sequence[Example],
    predictions: Sequence[str],
    probabilities: np.ndarray | None = None,
    *,
    split: Sequence[Example] | None = None,
) -> Judged:
    """Computes all metrics of a task's answers.

    Metrics that need the labels' probabilities are left out if there are none.

    Args:
      predictions: one answer per row.
      probabilities: `[rows, labels]`, in the order of the task's labels; None if answers were generated.
      split: all rows of the split, if these rows are a part of one: they choose the tokenizers of metrics.
    """
    answered = dataclasses.replace(_answered(task, examples, predictions), probabilities=probabilities)
    if split is not None:
        answered = dataclasses.replace(answered, split_references=[example.references for example in split])
    metrics = metrics_of(task, examples)
    computed = [m.of(answered) for m in metrics if probabilities is not None or PROBABILITIES not in m.needs]
    by_row = computed[0] if computed[0].scores is not None and task.kind == "generation" else None
    by_row = by_row or (ACCURACY if task.kind == "classification" else ROUGE_L).of(answered)
    assert by_row.scores is not None
    computed_by = {m.name: m.computed_by(answered) for m in (one.metric for one in computed) if m.computed_by}
    numbers = {one.metric.name: one.number for one in computed}
    return Judged(by_row.scores, by_row.metric.range[1], numbers, computed, computed_by)


def _unanswered(task: Task, examples: Sequence[Example]) -> Answered:
    return _answered(task, examples, [""] * len(examples))


def _answered(task: Task, examples: Sequence[Example], predictions: Sequence[str]) -> Answered:
    return Answered(
        predictions,
        [example.references for example in examples],
        labels=task.answers,
        rouge_tokenizer=task.rouge_tokenizer if task.kind == "generation" else None,
    )
