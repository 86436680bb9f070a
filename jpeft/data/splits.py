"""Which rows train, validate and test: drawn by one seed, the same for every method (DESIGN section 5)."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from jpeft.errors import UserError
from jpeft.words import counted

SCALES = {  # name: (training examples at most, epochs at most)
    "low": (100, 10),
    "medium": (1_000, 5),
    "high": (10_000, 1),
    "all": (None, 10),
}
MAX_EVALUATED = 2500  # rows of validation and of test, at most
_HELD_OUT_SHARE = 0.1  # of a user's rows, each for validation and for test, where no such file is given


@dataclasses.dataclass(frozen=True)
class Split:
    """Row numbers of one part of a run, and the source split that they number."""

    source: str
    rows: tuple[int, ...]

    @property
    def ids(self) -> list[str]:
        return [f"{self.source}/{row}" for row in self.rows]


def draw(
    sizes: Mapping[str, int],
    *,
    seed: int,
    max_train: int | None,
    max_validation: int | None = MAX_EVALUATED,
    max_test: int | None = MAX_EVALUATED,
) -> dict[str, Split]:
    """Draws `train`, `validation` and `test` from source splits of these sizes.

    What a source lacks is made up for, never from rows that train: no validation split (AG News): unused training
    rows; no test split (CoLA, whose test labels are secret): half of the validation rows; neither (a single file):
    a tenth of the rows each. Smaller `max_train` draws a prefix of what a larger one draws, and leaves validation and
    test as they are.

    Raises:
      UserError: a part would be empty.
    """
    order = {name: np.random.default_rng([seed, i]).permutation(sizes[name]) for i, name in enumerate(sorted(sizes))}
    train = order["train"]
    if "validation" in order and "test" in order:
        validation, test = ("validation", order["validation"]), ("test", order["test"])
    elif "validation" in order:
        half = sizes["validation"] // 2
        validation, test = ("validation", order["validation"][:half]), ("validation", order["validation"][half:])
    elif "test" in order:
        # From the end, so that which rows validate does not depend on how many train.
        held_out = round(len(train) * _HELD_OUT_SHARE)
        held_out = held_out if max_validation is None else min(max_validation, held_out)
        validation, test = ("train", train[::-1][:held_out]), ("test", order["test"])
        train = train[: len(train) - held_out]
    else:
        held_out = round(len(train) * _HELD_OUT_SHARE)
        validation, test = ("train", train[::-1][:held_out]), ("train", train[::-1][held_out : 2 * held_out])
        train = train[: len(train) - 2 * held_out]
    caps = {"train": max_train, "validation": max_validation, "test": max_test}
    parts = {}
    for name, (source, rows) in {"train": ("train", train), "validation": validation, "test": test}.items():
        parts[name] = Split(source, tuple(int(row) for row in rows[: caps[name]]))
        if not parts[name].rows:
            there = ", ".join(counted(size, f"{split} row") for split, size in sizes.items())
            raise UserError(f"the {name} split is empty (data.max_{name} is {caps[name]}; the source has {there}).")
    return parts
