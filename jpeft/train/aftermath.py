"""What a run says of itself once it is tested: how far its number goes, where it fails, and what to do about it."""

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
from jpeft.train.curve import WITHOUT, Curve, draw_curve

_said: set[str] = set()  # once a process, however many runs it does


def write_aftermath(
    directory: RunDirectory,
    task: Task,
    examples: Sequence[Example],
    scored: ScoredAnswers,
    *,
    answer: str,
    title: str,
    cautioned: Sequence[str],
    best_epoch: int | None,
    epochs_run: int,
    max_epochs: int,
) -> tuple[dict[str, Any], list[str]]:
    """Writes `worst_rows.jsonl`, `learning_curve.png` and, of a classification, `per_class.json`.

    Args:
      answer: `eval.answer` of the run.
      title: the title of the picture.
      cautioned: warnings that were given before.

    Returns:
      What of it `RunRecord` has: `uncertainty` and `uncertainties`, `per_class` (None of texts) and `warnings`; and
      what is to be said besides.
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
        curve = Curve.of_log(directory.path / "metrics.jsonl")
        if not draw_curve(curve, directory.path / "learning_curve.png", title) and WITHOUT not in _said:
            _said.add(WITHOUT)
            notes.append(WITHOUT)
    record = {
        **seen.uncertainties(task.metric),
        "per_class": None if seen.confusion is None else seen.confusion.summary(),
        "warnings": (*cautioned, *seen.warnings, *([] if learning is None else [learning])),
    }
    return record, notes
