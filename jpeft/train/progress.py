"""Where a run is, beside its arrays: what a restarted one has to know to go on as if it had never stopped."""

import dataclasses
from typing import Any


@dataclasses.dataclass
class Progress:
    """Plain values of a run's checkpoint.

    Attributes:
      position: where its stream of batches stands, as the stream itself says it.
      seconds: spent by phase; `compile` is no part of the others.
      counts: what was trained on, by name: tokens.
      evaluated: whether what is due after this step, if anything is, was evaluated.
      history: the numbers of every evaluation in order, each by its name.
      kept: what whoever trains wants to find again.
      started: when the run was begun, as result.json has it.
    """

    position: dict[str, int]
    seconds: dict[str, float]
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    evaluated: bool = True
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    kept: dict[str, Any] = dataclasses.field(default_factory=dict)
    started: str = ""

    def add(self, counts: dict[str, int]) -> None:
        """Adds to the counts so far, by name, such as rows and tokens."""
        for name, count in counts.items():
            self.counts[name] = self.counts.get(name, 0) + count


def read_progress(**plain: Any) -> Progress:
    """Reads the progress in a checkpoint, also of jpeft 0.1.0, which had one record a kind of training.

    Raises:
      TypeError, LookupError: it is neither.
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
