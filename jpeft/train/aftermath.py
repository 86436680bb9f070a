"""What a run reports after its test: confidence intervals, per-class scores, the worst rows, and warnings."""

import json
from collections.abc import Sequence
from typing import Any

from jpeft.data.tasks import Example, Task
from jpeft.eval.answering import ScoredAnswers
from jpeft.eval.look_back import look_back
from jpeft.eval.worst_rows import worst_rows
from jpeft.files import write_whole
from jpeft.run.directory import RunDirectory
from jpeft.run.processes import is_first
from jpeft.train import cautions
from jpeft.train.curve import NO_MATPLOTLIB, Curve, draw_curve

_printed_notes: set[str] = set()  # each note is printed once per process, however many runs it executes


def write_aftermath(
    directory: RunDirectory,
    task: Task,
    examples: Sequence[Example],
    scored: ScoredAnswers,
    *,
    answer: str,
    title: str,
    earlier_warnings: Sequence[str],
    best_epoch: int | None,
    epochs_run: int,
    max_epochs: int,
) -> tuple[dict[str, Any], list[str]]:
    """Writes `worst_rows.jsonl`, `learning_curve.png` and, for a classification task, `per_class.json`.

    Args:
      answer: `eval.answer` of the run.
      title: title of the learning curve.
      earlier_warnings: warnings that were printed before training.

    Returns:
      The fields of `RunRecord` computed here: `uncertainty`, `uncertainties`, `per_class` (None for a text task) and
      `warnings`; and notes to print, such as that matplotlib is missing.
    """
    seen = look_back(task, examples, scored, answer=answer)
    if seen.confusion is not None:
        directory.write_json("per_class.json", seen.confusion.to_dict())
    learning = cautions.still_learning(best_epoch=best_epoch, epochs_run=epochs_run, max_epochs=max_epochs)
    notes = []
    if is_first():
        with write_whole(directory.path / "worst_rows.jsonl") as beside, beside.open("w", encoding="utf-8") as file:
            best = scored.judged.best
            for row in worst_rows(task, examples, scored.predictions, scored.scores, best=best):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        curve = Curve.from_log(directory.path / "metrics.jsonl")
        if not draw_curve(curve, directory.path / "learning_curve.png", title) and NO_MATPLOTLIB not in _printed_notes:
            _printed_notes.add(NO_MATPLOTLIB)
            notes.append(NO_MATPLOTLIB)
    record = {
        **seen.uncertainties(task.metric),
        "per_class": None if seen.confusion is None else seen.confusion.summary(),
        "warnings": (*earlier_warnings, *seen.warnings, *([] if learning is None else [learning])),
    }
    return record, notes
