"""What a run says of itself once it is tested: how far its number goes, where it fails, and what to do about it."""

import json
from collections.abc import Sequence
from typing import Any

from jpeft.data.tasks import Example, Task
from jpeft.eval.answering import Judged
from jpeft.eval.per_class import Confusion
from jpeft.eval.uncertainty import uncertainty
from jpeft.eval.worst_rows import worst_rows
from jpeft.files import write_whole
from jpeft.mesh.processes import is_first
from jpeft.train import cautions
from jpeft.train.curve import WITHOUT, Curve, draw_curve
from jpeft.train.rundir import RunDirectory

_said: set[str] = set()  # once a process, however many runs it does


def write_aftermath(
    directory: RunDirectory,
    task: Task,
    examples: Sequence[Example],
    judged: Judged,
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
      title: of the picture.
      cautioned: warnings that were given before.

    Returns:
      What of it `result.json` holds: `uncertainty`, `per_class` (None of texts) and `warnings`; and what is to be said
      besides.
    """
    trust = uncertainty(task, examples, judged.scores)
    confusion, targets = None, [example.target for example in examples]
    if task.kind == "classification":
        confusion = Confusion.of(targets, judged.predictions, judged.scores, task.answers)
        directory.write_json("per_class.json", confusion.to_dict())
    found = cautions.of_test(
        judged.predictions,
        targets,
        confusion,
        accuracy=judged.numbers[task.metric],
        interval=trust.interval,
        answer=answer,
    )
    learning = cautions.still_learning(best_epoch=best_epoch, epochs_run=epochs_run, max_epochs=max_epochs)
    notes = []
    if is_first():
        with write_whole(directory.path / "worst_rows.jsonl") as beside, beside.open("w", encoding="utf-8") as file:
            for row in worst_rows(task, examples, judged.predictions, judged.scores):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        curve = Curve.of_log(directory.path / "metrics.jsonl")
        if not draw_curve(curve, directory.path / "learning_curve.png", title) and WITHOUT not in _said:
            _said.add(WITHOUT)
            notes.append(WITHOUT)
    record = {
        "uncertainty": trust.to_dict(),
        "per_class": None if confusion is None else confusion.summary(),
        "warnings": [*cautioned, *found, *([] if learning is None else [learning])],
    }
    return record, notes
