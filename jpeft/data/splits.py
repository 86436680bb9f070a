"""Which rows train, validate and test: drawn by one seed, the same for every method.

Rows that ask the same are drawn together, so that none is tested whose twin trained; those of a user's classes are
drawn by class.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from jpeft.data.mixture import whole_shares
from jpeft.data.tasks import Task, template_columns
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
        """An id for each row, as `splits.json` and `predictions.jsonl` have it: `train/17`."""
        return [f"{self.source}/{row}" for row in self.rows]


def same_inputs(task: Task, rows: Mapping[str, Mapping[str, Sequence[Any]]]) -> dict[str, list[int]]:
    """A number for each row of each source split: the same for rows that ask the model the same, white space aside.

    What a row asks is what its template takes from it. Of a task with `same_input` it is that column, which says that
    rows mean the same (E2E has several sentences for a meaning).
    """
    columns = template_columns(task.template)
    if task.same_input in columns:
        columns = (task.same_input,)
    known: dict[bytes, int] = {}
    numbers = {}
    for split, of_split in rows.items():
        values = zip(*(of_split[column] for column in columns), strict=True)
        numbers[split] = [known.setdefault(_digest(row), len(known)) for row in values]
    return numbers


def without_spacing(text: str) -> str:
    """A text with single spaces for all white space, and none at its ends: what makes two inputs equal."""
    return " ".join(text.split())


def _digest(values: Iterable[Any]) -> bytes:
    text = "\0".join(without_spacing(str(value)) for value in values)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()  # texts may be large


def labels_of(task: Task, rows: Mapping[str, Mapping[str, Sequence[Any]]]) -> dict[str, list[str]] | None:
    """The label of each row where splits are to have the classes in equal shares: of a user's own classes.

    The benchmark's splits stay those that the paper's protocol asks for and published figures rest on.
    """
    if task.name != "custom" or task.kind != "classification":
        return None
    return {split: [str(label).strip() for label in of_split[task.target]] for split, of_split in rows.items()}


def draw(
    sizes: Mapping[str, int],
    *,
    seed: int,
    max_train: int | None,
    max_validation: int | None = MAX_EVALUATED,
    max_test: int | None = MAX_EVALUATED,
    inputs: Mapping[str, Sequence[int]] | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Split]:
    """Draws `train`, `validation` and `test` from source splits of these sizes.

    What a source lacks is made up for, never from rows that train: no validation split (AG News): unused training
    rows; no test split (CoLA, whose test labels are secret): half of the validation rows; neither (a single file):
    a tenth of the rows each, 2,500 at most unless a cap is higher; the rest trains. Smaller caps draw a prefix of what
    larger ones draw, and leave the other parts as they are.

    Args:
      sizes: rows of each source split, by its name.
      seed: draws the order of each source split's rows.
      max_train, max_validation, max_test: rows of each part at most; None for no cap.
      inputs: as `same_inputs`; rows of one number stay in one part where parts are drawn from the same source split.
      labels: as `labels_of`; parts that are drawn from a source split have its labels in its shares, as far as counts
        and `inputs` allow, and a label's last row trains.

    Raises:
      UserError: a part would be empty.
    """
    order = {name: np.random.default_rng([seed, i]).permutation(sizes[name]) for i, name in enumerate(sorted(sizes))}
    train = order["train"]

    def apart(source: str, rows: np.ndarray, counts: Sequence[int]) -> list[np.ndarray]:
        of_source = lambda values: None if values is None else values[source]
        return _set_apart(rows, counts, of_source(inputs), of_source(labels))

    tenth = round(len(train) * _HELD_OUT_SHARE)

    def held_out(cap: int | None) -> int:
        # Lower caps take the first of the same rows and move none: a look at few test rows changes nothing else.
        return tenth if cap is None else min(tenth, max(cap, MAX_EVALUATED))

    if "validation" in order and "test" in order:
        validation, test = ("validation", order["validation"]), ("test", order["test"])
    elif "validation" in order:
        half, other = apart("validation", order["validation"], [sizes["validation"] // 2])
        validation, test = ("validation", half), ("validation", other)
    elif "test" in order:
        # From the end, so that which rows validate does not depend on how many train.
        first, rest = apart("train", train[::-1], [held_out(max_validation)])
        validation, test, train = ("train", first), ("test", order["test"]), rest[::-1]
    else:
        first, second, rest = apart("train", train[::-1], [held_out(max_validation), held_out(max_test)])
        validation, test, train = ("train", first), ("train", second), rest[::-1]
    caps = {"train": max_train, "validation": max_validation, "test": max_test}
    parts = {}
    for name, (source, rows) in {"train": ("train", train), "validation": validation, "test": test}.items():
        parts[name] = Split(source, tuple(int(row) for row in rows[: caps[name]]))
        if not parts[name].rows:
            there = ", ".join(counted(size, f"{split} row") for split, size in sizes.items())
            if inputs and len(set(inputs[source])) < sizes[source]:
                there += f", {len(set(inputs[source])):,} different inputs, and equal inputs stay in one split"
            raise UserError(
                f"the {name} split is empty (data.max_{name} is {caps[name]}; the source has {there}); give it rows."
            )
    return parts


def _set_apart(
    order: np.ndarray, counts: Sequence[int], inputs: Sequence[int] | None, labels: Sequence[str] | None
) -> list[np.ndarray]:
    """Parts of so many rows from the front of an order, and the rest in its order.

    Where no rows are twins and there are no labels, that is what slices give. A group of twins that does not fit is
    passed over, so a part falls short of its count only where every group left is too large for what it lacks.
    """
    if inputs is None and labels is None:
        ends = np.cumsum([0, *counts])
        return [*(order[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)), order[ends[-1] :]]
    groups: dict[int, list[int]] = {}
    for row in order.tolist():
        groups.setdefault(row if inputs is None else inputs[row], []).append(row)

    def label_of(rows: Sequence[int]) -> str:
        return "" if labels is None else labels[rows[0]]

    there = Counter(label_of([row]) for row in order.tolist())
    # The last row of a label trains: a label that never trained cannot be answered.
    spare = Counter({label: count - (labels is not None) for label, count in there.items()})
    waiting, parts = list(groups.values()), []
    for count in counts:
        part: list[int] = []
        open_ = _shares(count, there)
        for by_label in (True, False) if labels is not None else (False,):
            left = []
            for rows in waiting:
                label = label_of(rows)
                room = min(count - len(part), spare[label], open_[label] if by_label else count)
                if len(rows) <= room:
                    part += rows
                    spare[label] -= len(rows)
                    open_[label] -= len(rows)
                else:
                    left.append(rows)
            waiting = left
        if not part and count:
            part, waiting = _something(waiting, count, len(order))
        parts.append(np.array(part, order.dtype))
    taken = np.isin(order, np.concatenate(parts))
    return [*parts, order[~taken]]


def _something(waiting: list[list[int]], count: int, total: int) -> tuple[list[int], list[list[int]]]:
    """A part where none could be made, and the groups that are left: rows of labels that have but one, or few twins.

    Of few large groups the smallest, where it has a quarter of all rows at most and one is left for each other part.
    """
    chosen: list[list[int]] = []
    for rows in waiting:
        if sum(map(len, chosen)) + len(rows) <= count:
            chosen.append(rows)
    if not chosen and len(waiting) >= 3:
        smallest = min(waiting, key=len)
        chosen = [smallest] if len(smallest) * 4 <= total else []
    taken = {id(rows) for rows in chosen}
    return [row for rows in chosen for row in rows], [rows for rows in waiting if id(rows) not in taken]


def _shares(count: int, there: Mapping[str, int]) -> Counter[str]:
    """`count` cut in the proportions of `there`, in whole rows."""
    total = sum(there.values())
    shares = whole_shares([Fraction(count * size, total) for size in there.values()], count)
    return Counter(dict(zip(there, shares, strict=True)))


def leaks(parts: Mapping[str, Split | Sequence[Split]], inputs: Mapping[str, Sequence[int]]) -> list[str]:
    """Says how many rows of given files ask what a row asks that they are to be new to; none where none do.

    Rows that validate or test are to be new to those that train, and rows that test to those that validate.

    Args:
      parts: `train`, `validation` and `test`; of several files one split for each.
      inputs: as `same_inputs` gives them.
    """
    numbers = {name: numbers_of(part, inputs) for name, part in parts.items()}

    def twins(name: str, of: str) -> str | None:
        known = set(numbers[of])
        found = sum(number in known for number in numbers[name])
        return f"{found:,} of {counted(len(numbers[name]), f'{name} row')}" if found else None

    lines = []
    trained = [found for name in ("validation", "test") if (found := twins(name, "train"))]
    flatters = "what is measured on them flatters the model"
    if trained:
        lines.append(f"{' and '.join(trained)} have the input of a row that trains: {flatters}")
    validated = twins("test", "validation")
    if validated:
        lines.append(f"{validated} have the input of a row that validates, by which the epoch is chosen: {flatters}")
    return lines


def numbers_of(part: Split | Sequence[Split], inputs: Mapping[str, Sequence[int]]) -> list[int]:
    """The numbers that `same_inputs` gave to a part's rows; of several files the parts of all, one behind the other."""
    splits = [part] if isinstance(part, Split) else part
    return [inputs[split.source][row] for split in splits for row in split.rows]
