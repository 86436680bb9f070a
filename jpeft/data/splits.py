"""Draws the train, validation and test splits of a run with one seed, identically for every method.

Rows with equal inputs ("twins") stay in one split, so that no test row has a twin in the training split. Splits of a
custom classification are stratified by class.
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

SCALES = {  # by name: (maximum number of training examples, maximum number of epochs)
    "low": (100, 10),
    "medium": (1_000, 5),
    "high": (10_000, 1),
    "all": (None, 10),
}
MAX_EVALUATED = 2500  # default cap of the validation and test splits, in rows
_HELD_OUT_SHARE = 0.1  # of the training rows, for validation and for test each, if the source lacks such a split


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a run.

    Attributes:
      source: name of the source split that the rows are from.
      rows: row numbers within the source split.
    """

    source: str
    rows: tuple[int, ...]

    @property
    def ids(self) -> list[str]:
        """Row ids, such as `train/17`, as in `splits.json` and `predictions.jsonl`."""
        return [f"{self.source}/{row}" for row in self.rows]


def same_inputs(task: Task, rows: Mapping[str, Mapping[str, Sequence[Any]]]) -> dict[str, list[int]]:
    """Numbers the rows of each source split by their input: rows have the same number if their inputs are equal.

    The input of a row is the text of the template's columns, or of `task.same_input` if the task has one (E2E has
    several sentences per meaning). White space is normalised.
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
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()  # texts would fill memory


def labels_of(task: Task, rows: Mapping[str, Mapping[str, Sequence[Any]]]) -> dict[str, list[str]] | None:
    """Returns the label of each row if the splits are to be stratified by class, as those of custom tasks are.

    The benchmark's splits are not stratified: the paper's protocol, and so the published figures, do not do it.
    """
    if not task.is_custom or task.kind != "classification":
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
    """Draws the splits `train`, `validation` and `test` from source splits of these sizes.

    A split that the source lacks is drawn from rows that do not train. Without a validation split (AG News) unused
    training rows validate. Without a test split (CoLA, whose test labels are not published) the validation rows are
    halved. With neither (a single file) a tenth of the rows each validates and tests, at most 2,500 unless a cap is
    higher; the rest trains. A smaller cap draws a prefix of what a larger one draws, and leaves the other splits alone.

    Args:
      sizes: number of rows of each source split, by name.
      seed: of the order of each source split's rows.
      max_train, max_validation, max_test: caps on the rows of each split; None for no cap.
      inputs: from `same_inputs`. Rows with the same number stay together if a source split is divided.
      labels: from `labels_of`. Parts of a divided source split keep its class frequencies as far as counts and
        `inputs` allow, and the last row of a label always trains.

    Raises:
      UserError: a split would be empty.
    """
    order = {name: np.random.default_rng([seed, i]).permutation(sizes[name]) for i, name in enumerate(sorted(sizes))}
    train = order["train"]

    def apart(source: str, rows: np.ndarray, counts: Sequence[int]) -> list[np.ndarray]:
        of_source = lambda values: None if values is None else values[source]
        return _set_apart(rows, counts, of_source(inputs), of_source(labels))

    tenth = round(len(train) * _HELD_OUT_SHARE)

    def held_out(cap: int | None) -> int:
        # A cap below the default does not change which rows are held out, so testing fewer rows changes nothing else.
        return tenth if cap is None else min(tenth, max(cap, MAX_EVALUATED))

    if "validation" in order and "test" in order:
        validation, test = ("validation", order["validation"]), ("test", order["test"])
    elif "validation" in order:
        half, other = apart("validation", order["validation"], [sizes["validation"] // 2])
        validation, test = ("validation", half), ("validation", other)
    elif "test" in order:
        # From the end, so that the validation rows do not depend on the number of training rows.
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
            available = ", ".join(counted(size, f"{split} row") for split, size in sizes.items())
            if inputs and len(set(inputs[source])) < sizes[source]:
                available += f", {len(set(inputs[source])):,} different inputs, and equal inputs stay in one split"
            raise UserError(
                f"the {name} split is empty (data.max_{name} is {caps[name]}; the source has {available}); give it "
                "rows."
            )
    return parts


def _set_apart(
    order: np.ndarray, counts: Sequence[int], inputs: Sequence[int] | None, labels: Sequence[str] | None
) -> list[np.ndarray]:
    """Takes parts of the given sizes from the front of an order, and returns them with the rest, in its order.

    Without twins and labels the parts are plain slices. A group of twins that does not fit into a part is skipped, so a
    part is smaller than its count only if every remaining group is too large for it.
    """
    if inputs is None and labels is None:
        ends = np.cumsum([0, *counts])
        return [*(order[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)), order[ends[-1] :]]
    groups: dict[int, list[int]] = {}
    for row in order.tolist():
        groups.setdefault(row if inputs is None else inputs[row], []).append(row)

    def label_of(rows: Sequence[int]) -> str:
        return "" if labels is None else labels[rows[0]]

    frequencies = Counter(label_of([row]) for row in order.tolist())
    # Keep the last row of a label for training: a model cannot answer a label that it never saw.
    spare = Counter({label: count - (labels is not None) for label, count in frequencies.items()})
    waiting, parts = list(groups.values()), []
    for count in counts:
        part: list[int] = []
        quotas = _label_quotas(count, frequencies)
        for by_label in (True, False) if labels is not None else (False,):
            left = []
            for rows in waiting:
                label = label_of(rows)
                room = min(count - len(part), spare[label], quotas[label] if by_label else count)
                if len(rows) <= room:
                    part += rows
                    spare[label] -= len(rows)
                    quotas[label] -= len(rows)
                else:
                    left.append(rows)
            waiting = left
        if not part and count:
            part, waiting = _fallback_part(waiting, count, len(order))
        parts.append(np.array(part, order.dtype))
    taken = np.isin(order, np.concatenate(parts))
    return [*parts, order[~taken]]


def _fallback_part(waiting: list[list[int]], count: int, total: int) -> tuple[list[int], list[list[int]]]:
    """Makes a part that would otherwise be empty, ignoring labels, and returns it with the groups that are left.

    It takes groups that fit. If all are too large, it takes the smallest one, provided that this has at most a quarter
    of all rows and that two groups remain for the other splits.
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


def _label_quotas(count: int, frequencies: Mapping[str, int]) -> Counter[str]:
    """Divides `count` rows among labels in proportion to their frequencies."""
    total = sum(frequencies.values())
    shares = whole_shares([Fraction(count * size, total) for size in frequencies.values()], count)
    return Counter(dict(zip(frequencies, shares, strict=True)))


def leaks(parts: Mapping[str, Split | Sequence[Split]], inputs: Mapping[str, Sequence[int]]) -> list[str]:
    """Returns warnings about inputs that occur in two splits: training and evaluation, or validation and test.

    Args:
      parts: the splits `train`, `validation` and `test`, each one `Split` or one per file.
      inputs: from `same_inputs`.
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
    """Returns the numbers from `same_inputs` of a split's rows; for several files those of all files, concatenated."""
    splits = [part] if isinstance(part, Split) else part
    return [inputs[split.source][row] for split in splits for row in split.rows]
