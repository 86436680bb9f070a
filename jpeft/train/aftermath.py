"""What a run says of itself once it is tested: how far its number goes, where it fails, and what to do about it."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from jpeft.data.tasks import Example, Task
from jpeft.eval.answering import ScoredAnswers
from jpeft.eval.metrics.base import Answered
from jpeft.eval.metrics.classes import ACCURACY
from jpeft.eval.per_class import Confusion
from jpeft.eval.uncertainty import Uncertainty, share_uncertainty
from jpeft.eval.worst_rows import worst_rows
from jpeft.files import write_whole
from jpeft.run.directory import RunDirectory
from jpeft.run.processes import is_first
from jpeft.train import cautions
from jpeft.train.curve import WITHOUT, Curve, draw_curve

_said: set[str] = set()  # once a process, however many runs it does


@dataclasses.dataclass(frozen=True)
class LookBack:
    """A look at a test's answers besides their metric: uncertainty, each class, the worst rows.

    Attributes:
      trust: how far each metric may be trusted, by name, where that can be told.
      confusion: of a classification, how often each class was answered as each; None of texts.
      warnings: where the metric is not what it seems, a line each.
    """

    trust: dict[str, Uncertainty]
    confusion: Confusion | None
    warnings: list[str]

    def uncertainties(self, metric: str) -> dict[str, Any]:
        """As `RunRecord` has them: that of the task's metric alone, and those of all metrics by name."""
        return {"uncertainty": self.trust.get(metric), "uncertainties": self.trust}


def look_back(task: Task, examples: Sequence[Example], scored: ScoredAnswers, *, answer: str) -> LookBack:
    """Looks at the answers to a test, of a run or of `jpeft evaluate`.

    Args:
      answer: `generate` or `score`, how the test answered.
    """
    targets, confusion = [example.target for example in examples], None
    trust = scored.judged.uncertainties(examples)
    accuracy = ACCURACY.of(Answered(scored.predictions, [[target] for target in targets]))
    assert accuracy.scores is not None
    if task.kind == "classification":
        confusion = Confusion.of(targets, scored.predictions, accuracy.scores, task.answers)
    interval = share_uncertainty(ACCURACY.name, accuracy.scores, [example.input for example in examples]).interval
    warnings = cautions.of_test(
        scored.predictions, targets, confusion, accuracy=accuracy.number, interval=interval, answer=answer
    )
    return LookBack(trust, confusion, warnings)


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
