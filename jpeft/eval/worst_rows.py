"""Selects the worst answers of a test, each with a short reason, for a user to read first."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from jpeft.data.tasks import Example, Task

NUMBER = 10
_LONG_ENOUGH_TO_REPEAT = 8  # words


def worst_rows(
    task: Task,
    examples: Sequence[Example],
    predictions: Sequence[str],
    scores: Sequence[float],
    number: int = NUMBER,
    *,
    best: float = 1.0,
) -> list[dict[str, Any]]:
    """Returns at most `number` rows with imperfect answers and distinct inputs, each with a reason, `why`.

    The order is deterministic. Wrong answers of a classification are grouped by target and answer, and taken from the
    groups in turn, the largest groups first. Generated texts are ordered by score, the lowest first.

    Args:
      best: the highest possible score; rows with it are left out.
    """
    lines = [
        {"id": e.id, "input": e.input, "target": e.target, "prediction": prediction, "score": score}
        for e, prediction, score in zip(examples, predictions, scores, strict=True)
        if score < best
    ]
    of = _wrong_answers(task, lines) if task.kind == "classification" else _low_scores(lines)
    return list(itertools.islice(_each_input_once(of), number))


def _each_input_once(lines: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    seen: set[str] = set()
    for line in lines:
        if line["input"] not in seen:
            seen.add(line["input"])
            yield line


def _wrong_answers(task: Task, lines: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    labels = {label.strip() for label in task.answers} or {line["target"].strip() for line in lines}
    kinds: dict[tuple[str, str | None], list[dict[str, Any]]] = {}
    for line in lines:
        answer = line["prediction"].strip()
        kinds.setdefault((line["target"].strip(), answer if answer in labels else None), []).append(line)
    ordered = sorted(kinds.items(), key=lambda kind: -len(kind[1]))  # stable
    for turn in itertools.zip_longest(*(of_kind for _, of_kind in ordered)):
        for (kind, of_kind), line in zip(ordered, turn, strict=True):
            if line is not None:
                yield {**line, "why": _why_wrong(*kind, len(of_kind))}


def _why_wrong(target: str, answer: str | None, rows: int) -> str:
    times = "once" if rows == 1 else f"{rows} times"
    what = "answered with no label" if answer is None else f"answered {answer!r}"
    return f"{target!r} {what}, {times} in the test"


def _low_scores(lines: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    for line in sorted(lines, key=lambda line: line["score"]):  # stable
        yield {**line, "why": _why_low(line["prediction"], line["target"], line["score"])}


def _why_low(prediction: str, target: str, score: float) -> str:
    words, wanted = prediction.split(), target.split()
    if not words:
        return "the answer is empty"
    if len(words) >= _LONG_ENOUGH_TO_REPEAT and 2 * len(set(words)) < len(words):
        return f"repeats itself: {len(words)} words, {len(set(words))} different ones"
    if score == 0 and not {word.casefold() for word in words} & {word.casefold() for word in wanted}:
        return "shares no word with the target"
    if len(words) * 2 < len(wanted):
        return f"short: {len(words)} words, the target has {len(wanted)}"
    if len(words) > 2 * len(wanted):
        return f"long: {len(words)} words, the target has {len(wanted)}"
    return "other words than the target's, or in another order"
