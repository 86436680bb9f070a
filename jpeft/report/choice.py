"""The end of a search on a user's own rows: its full runs ranked by what is scarce, as text and as data.

Quality is the validation loss: mean cross-entropy of a target token on the same rows, in nats, so that it may be
compared between methods. Time and memory are ranked among those that are good enough in it; a quick or a small method
that has not learned the task is none. Test metrics are shown and rank nothing.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jpeft.report.document import Document, Section
from jpeft.report.names import METHODS, METRICS, in_order, method_label
from jpeft.report.ranking import Scarce
from jpeft.report.records import Result
from jpeft.report.table import Column, Table, Value

# Of the best loss, and never less than so many nats: near 0 a share of it is nothing. 0.05 nats are a probability of
# the right token that is 5 % lower, in the mean.
_TIE = (0.02, 0.01)
_GOOD_ENOUGH = (0.1, 0.05)
_FEW_ROWS = 50  # of validation: what they choose may be chance


@dataclasses.dataclass(frozen=True)
class Short:
    """A short run: its method, the factor on the config's learning rates, the highest rate, and how it ended."""

    method: str
    factor: float
    learning_rate: float
    validation_loss: float | None
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Full:
    """A full run: its learning rate, its result, and the command that is the same run."""

    result: Result
    learning_rate: float
    command: str

    @property
    def adapter(self) -> str:
        """Where the adapter is."""
        return str(self.result.path.parent / "adapter")


@dataclasses.dataclass(frozen=True)
class Placed:
    """A full run in its place.

    Attributes:
      good_enough: whether its validation loss is close to the best one.
      tied: whether what it is ranked by cannot be told from the first's.
      seconds: of training and validation until its loss was good enough; None where it never was.
    """

    full: Full
    good_enough: bool
    tied: bool
    seconds: float | None

    @property
    def method(self) -> str:
        return self.full.result.method


def rank(full: Sequence[Full], scarce: Scarce) -> list[Placed]:
    """Best first."""
    lowest = min(run.result.validation_loss for run in full)
    limit = lowest + max(_GOOD_ENOUGH[0] * lowest, _GOOD_ENOUGH[1])
    tie = lowest + max(_TIE[0] * lowest, _TIE[1])

    def order(run: Full) -> tuple[bool, float]:
        loss = run.result.validation_loss
        if scarce == "quality" or loss > limit:
            return loss > limit, loss
        seconds = _seconds_until(run.result, limit)
        return False, (seconds or 0.0) if scarce == "time" else float(run.result.trainable_parameters)

    ordered = sorted(full, key=order)
    return [
        Placed(
            run,
            run.result.validation_loss <= limit,
            scarce == "quality" and run is not ordered[0] and run.result.validation_loss <= tie,
            _seconds_until(run.result, limit),
        )
        for run in ordered
    ]


def _seconds_until(result: Result, limit: float) -> float | None:
    """Of training and validation to the end of the first epoch with such a loss; epochs are taken as equally long."""
    reached = next((epoch for epoch, loss in enumerate(result.validation_losses) if loss <= limit), None)
    if reached is None or not result.epochs_run:
        return None
    return (result.seconds.train + result.seconds.validation) * (reached + 1) / result.epochs_run


def document(
    scarce: Scarce, short: Sequence[Short], full: Sequence[Full], left_out: Mapping[str, str], remarks: Sequence[str]
) -> Document:
    """For a terminal."""
    placed = rank(full, scarce)
    first = placed[0].full
    ties = [method_label(one.method) for one in placed if one.tied]
    answer = method_label(first.result.method) + (f", which cannot be told from {', '.join(ties)}" * bool(ties))
    section = Section(
        name="choice",
        heading=f"What to use on these rows; scarce: {scarce}; model {first.result.model}",
        facts=[
            ("use", answer),
            *_reasons(scarce, placed),
        ],
        cautions=[*remarks, *(f"{method_label(m)} is left out: {why}" for m, why in left_out.items())]
        + list(_cautions(short, placed)),
        parts=[("", [_short_table(short, full), _full_table(placed), _sizes_table(placed)])],
    )
    return Document("jpeft: what to use", [], [section])


def as_data(
    scarce: Scarce, short: Sequence[Short], full: Sequence[Full], left_out: Mapping[str, str], remarks: Sequence[str]
) -> dict[str, Any]:
    """The same as plain data."""
    placed = rank(full, scarce)
    first = placed[0].full
    return {
        "scarce": scarce,
        "model": first.result.model,
        "use": first.result.method,
        "ties": [one.method for one in placed if one.tied],
        "adapter": first.adapter,
        "command": first.command,
        "ranking": [_placed_data(one) for one in placed],
        "short_runs": [dataclasses.asdict(one) for one in short],
        "left_out": dict(left_out),
        "remarks": [*remarks, *_cautions(short, placed)],
    }


def _placed_data(one: Placed) -> dict[str, Any]:
    result = one.full.result
    return {
        "method": one.method,
        "learning_rate": one.full.learning_rate,
        "validation_loss": result.validation_loss,
        "good_enough": one.good_enough,
        "ties_with_first": one.tied,
        "seconds_until_good_enough": one.seconds,
        "seconds": dataclasses.asdict(result.seconds),
        "trainable_parameters": result.trainable_parameters,
        "adapter_bytes": result.adapter_bytes,
        "peak_memory_bytes": result.peak_memory_bytes,
        "test": {"metric_name": result.metric_name, "metric": result.metric, "examples": result.test_examples},
        "zero_shot": result.zero_shot and dict(result.zero_shot),
        "adapter": one.full.adapter,
        "command": one.full.command,
    }


# --- words ---


def _reasons(scarce: Scarce, placed: Sequence[Placed]) -> Iterator[tuple[str, str]]:
    first = placed[0]
    result = first.full.result
    loss = f"its validation loss is {result.validation_loss:.4f} nats a token"
    enough = f"at most {_GOOD_ENOUGH[0]:.0%} or {_GOOD_ENOUGH[1]} nats above the lowest"
    yield (
        "why",
        {
            "quality": f"{loss}, the lowest",
            "time": f"it took {first.seconds or 0.0:,.1f} s to a loss {enough}; {loss}",
            "memory": f"it trains {result.trainable_parameters:,} parameters, the fewest with a loss {enough}; {loss}",
        }[scarce],
    )
    if any(one.tied for one in placed):
        smallest = min((o for o in placed if o.tied or o is first), key=lambda o: o.full.result.trainable_parameters)
        yield (
            "ties",
            f"losses within {_TIE[0]:.0%} or {_TIE[1]} of the lowest are called ties: one seed tells no more. The "
            f"smallest of these is {method_label(smallest.method)}",
        )
    metric = METRICS.get(result.metric_name, result.metric_name)
    zero = result.zero_shot.get(result.metric_name) if result.zero_shot else None
    yield (
        "test",
        f"{metric} {result.metric:.4f} on {result.test_examples:,} rows that chose nothing"
        + (f"; the untrained model {zero:.4f}" if zero is not None and result.method != "prompt" else ""),
    )
    best = max(placed, key=lambda one: one.full.result.metric)
    if best.full.result.metric > result.metric:
        yield (
            "mind",
            f"{method_label(best.method)} has {best.full.result.metric:.4f} there; that chooses nothing, or no rows "
            "would be left to say how good the choice is",
        )


def _cautions(short: Sequence[Short], placed: Sequence[Placed]) -> Iterator[str]:
    rows = placed[0].full.result.validation_examples
    if rows < _FEW_ROWS:
        yield f"{rows} validation rows chose: that is few, another split may choose otherwise."
    first = placed[0].method
    tried = sorted(one.learning_rate for one in short if one.method == first)
    at = placed[0].full.learning_rate
    if len(tried) > 1 and at in (tried[0], tried[-1]):
        edge = "lowest" if at == tried[0] else "highest"
        yield f"the learning rate of {method_label(first)}, {at:g}, is the {edge} tried: one beyond it may be better."


# --- tables ---


def _short_table(short: Sequence[Short], full: Sequence[Full]) -> Table:
    factors = sorted({one.factor for one in short})
    chosen = {run.result.method: run.learning_rate for run in full}
    rows = []
    for method in in_order({one.method for one in short}, METHODS):
        of_method = {one.factor: one for one in short if one.method == method}
        row = [Value(method_label(method))]
        for factor in factors:
            one = of_method.get(factor)
            text = "failed" if one and one.validation_loss is None else None
            tone = "best" if one and one.learning_rate == chosen.get(method) else ""
            row.append(Value(text if one is None or one.validation_loss is None else one.validation_loss, tone=tone))
        rate = chosen.get(method)
        rows.append([*row, Value("none" if rate is None else f"{rate:g}")])
    names = [f"× {factor:.3g}" for factor in factors]
    columns = [Column("method"), *(Column(name, "metric") for name in names)]
    return Table(
        "short-runs",
        "Short runs: validation loss by learning rate, as multiples of the config's",
        [*columns, Column("chosen")],
        rows,
    )


def _full_table(placed: Sequence[Placed]) -> Table:
    columns = [
        Column("#"),
        Column("method"),
        Column("rate"),
        Column("valid. loss", "metric"),
        Column("good enough in s", "seconds"),
        Column(f"test {METRICS.get(name := placed[0].full.result.metric_name, name)}", "metric"),
        Column("remark"),
    ]
    rows = []
    for place, one in enumerate(placed, start=1):
        result = one.full.result
        remark = "tie" if one.tied else "" if one.good_enough else "not good enough"
        rows.append(
            [
                Value(str(place)),
                Value(method_label(one.method)),
                Value(f"{one.full.learning_rate:g}"),
                Value(result.validation_loss),
                Value("never" if one.seconds is None else one.seconds),
                Value(result.metric),
                Value(remark, tone="weak"),
            ]
        )
    return Table("full-runs", "Full runs, best first; chosen by validation alone", columns, rows)


def _sizes_table(placed: Sequence[Placed]) -> Table:
    columns = [
        Column("method"),
        Column("parameters", "count"),
        Column("adapter", "bytes"),
        Column("peak memory", "bytes"),
        Column("train s", "seconds"),
        Column("valid. s", "seconds"),
        Column("test s", "seconds"),
    ]
    rows = [
        [
            Value(method_label(one.method)),
            Value((result := one.full.result).trainable_parameters),
            Value(result.adapter_bytes),
            Value(result.peak_memory_bytes or None),
            Value(result.seconds.train),
            Value(result.seconds.validation),
            Value(result.seconds.test),
        ]
        for one in placed
    ]
    return Table("full-sizes", "What they cost", columns, rows)
