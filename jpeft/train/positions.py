"""Checks before training that a model's learned positions hold the rows and the answers to them."""

from typing import Any

import numpy as np

from jpeft.data.batches import fitting_shape
from jpeft.data.prepare import Data
from jpeft.errors import UserError
from jpeft.eval.labels import PackedLabels


def require_positions(model: Any, data: Data, *, labels: PackedLabels | None, follows_answers: bool) -> None:
    """Raises `UserError` if the model has fewer positions than a batch of the run will take, padding included.

    Args:
      model: with the method attached, whose prompt or prefix takes positions, too.
      data: the rows.
      labels: that are scored; None if answers are only generated.
      follows_answers: whether the validation rows are answered, too.
    """
    room = model.longest_input(1)  # the tokens of a text
    if room is None:
        return
    for split in ("train", "validation"):
        length, answer = fitting_shape(data.shapes, data.tokens[split].lengths())
        if length + answer > room:
            excess = length + answer - room
            fitting = (answer - excess) // 4 * 4
            raise _too_few(split, length, f"targets of {answer}", length + answer, room, fitting)
    for split in ("validation", "test") if follows_answers else ("test",):
        longest = int(data.tokens[split].lengths()[:, 0].max())
        length, _ = fitting_shape(data.shapes, np.array([(longest, 1)]))
        # The last token of a prompt is the answer's first input, and no answer's last token is one.
        answer = data.task.max_target_length
        if length - 1 + answer > room:
            raise _too_few(split, length, f"answers of up to {answer}", length - 1 + answer, room, room + 1 - length)
        if labels is not None and length - 1 + len(labels.targets) > room:
            needed = length - 1 + len(labels.targets)
            all_labels = f"{len(labels.texts)} labels of {len(labels.targets)} together"
            raise _too_few(split, length, all_labels, needed, room, 0, ", or --config.eval.answer=generate")


def _too_few(
    split: str, length: int, answers: str, needed: int, room: int, target_length: int, otherwise: str = ""
) -> UserError:
    """The error, which advises the largest lengths that fit: `target_length`, or an input length beside the targets."""
    shorter = {
        "data.max_target_length": target_length,
        "data.max_input_length": (length - needed + room) // 16 * 16,  # inputs are padded to multiples of 16
    }
    ways = [f"--config.{key}={most}" for key, most in shorter.items() if most > 1]
    advice = f"give {' or '.join(ways)}" if ways else "lower data.max_input_length and data.max_target_length"
    return UserError(
        f"the {split} rows need {needed:,} positions (inputs of {length} tokens, as padded, and {answers}), and this "
        f"model has {room:,} for them; {advice}{otherwise}."
    )
