"""Recommendations from existing numbers, published or a user's own: the question, the answers, and their output."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jpeft.errors import UserError
from jpeft.recommend.by_numbers import TASKS_OF, Recommendation, recommend, scale_of
from jpeft.report.document import Document, Section
from jpeft.report.groups import Group, Spread
from jpeft.report.names import PAPER_TASKS, method_label, task_label
from jpeft.report.ranking import Ranked, Scarce, is_paper


@dataclasses.dataclass(frozen=True)
class AdviceQuestion:
    """The question to `jpeft recommend`, in the names of result files.

    Attributes:
      task: as asked: a kind of task, or a task.
      tasks: the tasks that it stands for.
      scale: of the results to use.
      examples: rows to train on; None if they do not determine the scale.
      remark: a sentence about the scale, or "".
    """

    task: str
    tasks: tuple[str, ...]
    scale: str
    examples: int | None
    remark: str = ""

    @property
    def title(self) -> str:
        """`classification (AG News, CoLA), 80 examples: low scale`."""
        named = ", ".join(task_label(task) for task in self.tasks)
        asked = named if self.task == self.tasks[0] else f"{self.task} ({named})"
        return asked + (f", {self.examples:,} examples" if self.examples else "") + f": {self.scale} scale"


def question(task: str, examples: int | None, groups: Sequence[Group], *, own: bool) -> AdviceQuestion:
    """Makes the question of a command line.

    Args:
      task: a kind of task, a task of the paper or, with own results, any task of theirs.
      examples: rows to train on.
      groups: the results to answer from.
      own: whether these are the user's own results.

    Raises:
      UserError: the task is unknown, or the scale cannot be determined.
    """
    tasks = TASKS_OF.get(task, (task,))
    there = {key.task for group in groups for key in group.cells}
    if not there.intersection(tasks):
        known = (*TASKS_OF, *PAPER_TASKS) if not own else sorted(there)
        what = "the results are of" if own else "expected one of"
        raise UserError(f"--task is {task!r}; {what} {', '.join(known)}.")
    if tasks[0] in PAPER_TASKS:
        if examples is None:
            raise UserError("--examples is missing; give the number of rows to train on, which decides the scale.")
        scale, remark = scale_of(examples)
        return AdviceQuestion(task, tasks, scale, examples, remark)
    # A user's own rows: the scale of a run is that of its config, by default `all`, whatever the number of rows.
    scales = sorted({key.scale for group in groups for key in group.cells if key.task in tasks})
    wanted = scale_of(examples)[0] if examples is not None else None
    if wanted not in scales and len(scales) > 1:
        raise UserError(f"the results of {task} are of the scales {', '.join(scales)}; choose one by --examples.")
    return AdviceQuestion(task, tasks, wanted if wanted in scales else scales[0], examples)


def recommendations(asked: AdviceQuestion, groups: Sequence[Group], scarce: Sequence[Scarce]) -> list[Recommendation]:
    """One recommendation per group with results for the question and per scarce resource.

    Raises:
      UserError: no group has such results.
    """
    fitting = [
        group
        for whole in groups
        for group in (whole.by_data() if any(key.data for key in whole.cells) else [whole])
        if any(key.task in asked.tasks and key.scale == asked.scale and not key.ablation for key in group.cells)
    ]
    if not fitting:
        raise UserError(f"there are no results for {asked.title}; another --examples may select another scale.")
    found = []
    for group in fitting:
        apart = _of_other_readings(group, fitting, asked)
        for of in scarce:
            one = recommend(group, asked.tasks, asked.scale, of)
            found.append(dataclasses.replace(one, cautions=(*one.cautions, *apart)))
    return found


def _of_other_readings(group: Group, groups: Sequence[Group], asked: AdviceQuestion) -> list[str]:
    """A line for each other reading with results, on the same rows, of methods that the group lacks."""
    methods = lambda of: {key.method for key in of.cells if key.task in asked.tasks and key.scale == asked.scale}
    same = lambda of: (of.model, of.quantization, of.source, of.data)
    lines = []
    for other in groups:
        more = sorted(methods(other) - methods(group))
        if more and same(other) == same(group) and other.reading != group.reading:
            named = ", ".join(method_label(method) for method in more)
            lines.append(
                f"{named}: there are runs in the {other.reading} reading, not compared with these of the "
                f"{group.reading} one; run {'it' if len(more) == 1 else 'them'} with "
                f"--config.method.reading={group.reading} to compare."
            )
    return lines


def document(asked: AdviceQuestion, found: Sequence[Recommendation]) -> Document:
    """The recommendations as a document, for a terminal."""
    sections = [
        Section(
            name=one.case.scarce,
            heading=f"{asked.title}; scarce: {one.case.scarce}; numbers of {_whose(one.case.group)}",
            facts=[("use", one.answer), *one.reasons, ("the paper", f"{one.paper.verdict}: {one.paper.line}")],
            cautions=[text for text in (asked.remark, *one.cautions) if text],
            parts=[("", one.tables)],
        )
        for one in found
    ]
    return Document("jpeft: what to use", [], sections)


def as_data(asked: AdviceQuestion, found: Sequence[Recommendation]) -> dict[str, Any]:
    """The recommendations as JSON values, with unrounded numbers, and None for missing ones."""
    return {
        "task": asked.task,
        "tasks": list(asked.tasks),
        "examples": asked.examples,
        "scale": asked.scale,
        "remark": asked.remark,
        "recommendations": [_recommendation(one) for one in found],
    }


def _recommendation(one: Recommendation) -> dict[str, Any]:
    case = one.case
    return {
        "model": case.group.model,
        "quantization": case.group.quantization,
        "source": case.group.source,
        "reading": case.group.reading,
        "scarce": case.scarce,
        "criterion": case.criterion.name,
        "use": case.placed[0].method if case.placed else None,
        "ties": case.ties,
        "answer": one.answer,
        "reasons": dict(one.reasons),
        "cautions": list(one.cautions),
        "paper": dataclasses.asdict(one.paper),
        "ranking": [_ranked(ranked, one) for ranked in case.ranking],
    }


def _ranked(ranked: Ranked, one: Recommendation) -> dict[str, Any]:
    metrics = {task: one.case.group.metric(ranked.method, task, one.case.scale) for task in one.case.tasks}
    return {
        "place": ranked.place,
        "method": ranked.method,
        "score": _spread(ranked.score),
        "by_task": {task: _spread(spread) for task, spread in ranked.by_task.items()},
        "metric": {task: _spread(spread) for task, spread in metrics.items()},
        "ties_with_first": ranked.tied,
        "far_behind_in_metric": ranked.far_behind,
    }


def _spread(spread: Spread | None) -> dict[str, Any] | None:
    return spread and {"mean": spread.mean, "sd": spread.sd, "seeds": spread.count}


def _whose(group: Group) -> str:
    return f"the paper ({group.model})" if is_paper(group) else group.title
