"""The progress of a run: what a checkpoint stores beside arrays, so that a resumed run continues bit for bit."""

import dataclasses
from typing import Any


@dataclasses.dataclass
class Progress:
    """The plain values of a run's checkpoint.

    Attributes:
      position: position in the stream of batches, in the stream's own terms.
      seconds: time spent, by phase; compilation is counted under `compile` and in no other phase.
      counts: totals over the training data so far, by name, such as tokens.
      evaluated: False between a step and the evaluations due after it.
      history: metrics of every evaluation in order, by name.
      kept: further values that the caller of the trainer stores, such as the zero-shot score.
      started: time of the first start, as in result.json.
    """

    position: dict[str, int]
    seconds: dict[str, float]
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    evaluated: bool = True
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    kept: dict[str, Any] = dataclasses.field(default_factory=dict)
    started: str = ""

    def add(self, counts: dict[str, int]) -> None:
        """Adds to the counts so far."""
        for name, count in counts.items():
            self.counts[name] = self.counts.get(name, 0) + count


def read_progress(**plain: Any) -> Progress:
    """Reads the progress in a checkpoint, including those of jpeft 0.1.0, which had one format per kind of training.

    Raises:
      TypeError, LookupError: the values have neither format.
    """
    if "validation_losses" in plain:
        return Progress(
            position={name: plain[name] for name in ("epoch", "step_in_epoch")},
            seconds=plain["seconds"],
            counts={"tokens": plain["train_tokens"]},
            evaluated=plain["step_in_epoch"] == 0,
            history=[{"validation/loss": loss} for loss in plain["validation_losses"]],
            kept={"zero_shot": plain["zero_shot"]},
            started=plain["started"],
        )
    if "block" in plain:
        losses = {f"{kind}/loss": loss for kind, loss in plain["losses"].items() if kind != "train"}
        return Progress(
            position={name: plain[name] for name in ("block", "batches_done")},
            seconds=plain["seconds"],
            counts={name: plain[name] for name in ("input_tokens", "target_tokens")},
            history=[losses] if losses else [],
            started=plain["started"],
        )
    return Progress(**plain)
