"""The answer of a search on a user's own rows: its full runs ranked by what is scarce, as text and as data.

Quality is the validation loss, the mean cross-entropy per target token in nats, which is comparable between methods
since the rows are the same. Time and memory rank only the methods with a good enough loss. Test metrics are shown but
rank nothing; yet if the first method does no better than an answer that ignores the input, or than the untuned model,
nothing is recommended.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jpeft.judging import FEWEST_TEST_ROWS, GOOD_ENOUGH, TIE, Baseline, good_enough_limit, tie_limit
from jpeft.report.document import Document, Section
from jpeft.report.names import METRIC_LABELS, PAPER_METHODS, in_order, method_label
from jpeft.report.ranking import Scarce
from jpeft.report.records import Result
from jpeft.report.table import Column, Table, Value
from jpeft.results import PHASES

_FEW_ROWS = 50  # of validation: with fewer the choice may be chance


@dataclasses.dataclass(frozen=True)
class Short:
    """A short run of the search.

    Attributes:
      factor: applied to the config's learning rates.
      learning_rate: the highest of its schedule.
      rank: None for a method without one.
      epochs: that it trained for.
      validation_loss: None if it failed.
      chosen: whether it is its method's best.
      why: the reason, in words.
    """

    method: str
    factor: float
    learning_rate: float
    rank: int | None
    epochs: int
    validation_loss: float | None
    chosen: bool
    why: str


@dataclasses.dataclass(frozen=True)
class FullRun:
    """A full run: its result, its highest learning rate, and the `jpeft train` command of the same run."""

    result: Result
    learning_rate: float
    command: str

    @property
    def adapter(self) -> str:
        """The directory of the adapter."""
        return str(self.result.path.parent / "adapter")


@dataclasses.dataclass(frozen=True)
class Placed:
    """A ranked full run.

    Attributes:
      good_enough: whether its validation loss is near the lowest.
      tied: whether it ties with the first; only with quality as the criterion.
      seconds: of training and validation until its loss was good enough; None if it never was.
    """

    full: FullRun
    good_enough: bool
    tied: bool
    seconds: float | None

    @property
    def method(self) -> str:
        return self.full.result.method


def rank_full_runs(full: Sequence[FullRun], scarce: Scarce) -> list[Placed]:
    """Ranks the full runs by what is scarce, best first."""
    lowest = min(run.result.validation_loss for run in full)
    limit, tie = good_enough_limit(lowest), tie_limit(lowest)

    def order(run: FullRun) -> tuple[bool, float]:
        loss = run.result.validation_loss
        if scarce == "quality" or loss > limit:
            return loss > limit, loss
        if scarce == "memory":
            return False, float(run.result.trainable_parameters)
        seconds = _seconds_until(run.result, limit)
        assert seconds is not None, "the loss of its best epoch is good enough"
        return False, seconds

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
    """Seconds of training and validation up to the first epoch with such a loss, if epochs take equally long."""
    reached = next((epoch for epoch, loss in enumerate(result.validation_losses) if loss <= limit), None)
    if reached is None or not result.epochs_run:
        return None
    return (result.seconds["train"] + result.seconds["validation"]) * (reached + 1) / result.epochs_run


@dataclasses.dataclass(frozen=True)
class Choice:
    """The outcome of a finished search.

    Attributes:
      scarce: what the full runs are ranked by.
      left_out: methods without a full run, and why.
      remarks: what was not tried, or not in full, and why.
      baseline: loss and accuracy of answers that ignore the input; None if the targets are not labels.
      on_a_budget: whether the search had a time limit.
    """

    scarce: Scarce
    short: Sequence[Short]
    full: Sequence[FullRun]
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    remarks: Sequence[str] = ()
    baseline: Baseline | None = None
    on_a_budget: bool = False

    @functools.cached_property
    def ranking(self) -> list[Placed]:
        return rank_full_runs(self.full, self.scarce)

    @functools.cached_property
    def untuned(self) -> float | None:
        """The test metric of the untuned model; None if no run tested it."""
        for run in self.full:
            if untuned := run.result.untuned:
                return untuned.get(run.result.metric_name)
        return None

    @property
    def nothing_learned(self) -> list[str]:
        """Why the first method cannot be recommended; empty if it can."""
        return [reason for reason, certain in self._against(self.ranking[0].full.result) if certain]

    def _against(self, result: Result) -> Iterator[tuple[str, bool]]:
        """The reasons to think that a run learned nothing, and whether each is certain: few test rows may mislead."""
        enough = result.test_examples >= FEWEST_TEST_ROWS
        metric = METRIC_LABELS.get(result.metric_name, result.metric_name)
        if self.baseline is not None and not self.baseline.is_beaten_by(result.validation_loss):
            yield (
                f"its validation loss, {result.validation_loss:.4f}, is no lower than the {self.baseline.loss:.4f} of "
                "giving each label its share, whatever the input",
                True,
            )
        judged_by_share = result.metric_name == "accuracy"
        if self.baseline is not None and judged_by_share and result.metric <= self.baseline.share:
            yield (
                f"its {metric}, {result.metric:.4f} on {result.test_examples:,} test rows, is no higher than the "
                f"{self.baseline.share:.4f} of always answering {self.baseline.label!r}",
                enough,
            )
        if self.untuned is not None and result.metric <= self.untuned:
            yield (
                f"its {metric}, {result.metric:.4f} on {result.test_examples:,} test rows, is no higher than the "
                f"{self.untuned:.4f} of the untuned model",
                enough,
            )

    def what_to_do(self) -> list[str]:
        """What may help if no method learned anything, the most promising first."""
        result = self.ranking[0].full.result
        steps = []
        if result.epochs_run and result.best_epoch == result.epochs_run - 1:
            longer = 3 * result.epochs_run
            budget = ", and no --budget or a larger one" * self.on_a_budget
            steps.append(f"train longer, the loss was still falling: --config.train.max_epochs={longer}{budget}")
        tried = [one.learning_rate for one in self.short if one.method == result.method]
        if len(tried) > 1 and self.ranking[0].full.learning_rate == max(tried):
            steps.append("a higher learning rate, this one is the highest tried: a --config file of your own")
        if result.train_examples < 1000:
            steps.append(f"more rows: {result.train_examples:,} trained")
        steps.append(f"another model than {result.base}: --model")
        steps.append("look at predictions.jsonl in the full run's directory: are the targets what the inputs tell?")
        return steps

    def document(self) -> Document:
        """The outcome as a document, for a terminal."""
        placed, first = self.ranking, self.ranking[0].full
        facts = [*self._answer(), *_reasons(self.scarce, placed, self.untuned, self.baseline)]
        section = Section(
            name="choice",
            heading=f"What to use on these rows; scarce: {self.scarce}; model {first.result.base}",
            facts=facts,
            cautions=[*self.remarks, *(f"{method_label(m)} is left out: {why}" for m, why in self.left_out.items())]
            + list(self._cautions()),
            parts=[("", [_short_table(self.short), _full_table(placed), _sizes_table(placed)])],
        )
        return Document("jpeft: what to use", [], [section])

    def _answer(self) -> Iterator[tuple[str, str]]:
        first = self.ranking[0]
        if self.nothing_learned:
            yield "use", f"none of these: the best, {method_label(first.method)}, has learned nothing that shows"
            for reason in self.nothing_learned:
                yield "for", reason
            for step in self.what_to_do():
                yield "try", step
            return
        ties = [method_label(one.method) for one in self.ranking if one.tied]
        yield "use", method_label(first.method) + (f", which cannot be told from {', '.join(ties)}" * bool(ties))

    def as_data(self) -> dict[str, Any]:
        """The outcome as JSON values; `use`, `adapter` and `command` are None if nothing was learned."""
        first = self.ranking[0].full
        nothing = self.nothing_learned
        return {
            "scarce": self.scarce,
            "model": first.result.model,
            "quantization": first.result.quantization,
            "use": None if nothing else first.result.method,
            "ties": [one.method for one in self.ranking if one.tied],
            "nothing_learned": nothing,
            "what_to_do": self.what_to_do() if nothing else [],
            "adapter": None if nothing else first.adapter,
            "command": None if nothing else first.command,
            "baseline": self.baseline and dataclasses.asdict(self.baseline),
            "ranking": [_placed_data(one) for one in self.ranking],
            "short_runs": [dataclasses.asdict(one) for one in self.short],
            "left_out": dict(self.left_out),
            "remarks": [*self.remarks, *self._cautions()],
        }

    def _cautions(self) -> Iterator[str]:
        yield from _cautions(self.short, self.ranking)
        for reason, certain in self._against(self.ranking[0].full.result):
            if not certain:
                yield f"{reason}; so few test rows may say so by chance."
        if self.baseline is None and self.untuned is None:
            yield "the untuned model was not tested: nothing tells whether anything was learned."
        short = {one.method: one.validation_loss for one in self.short if one.chosen}
        for one in self.ranking:
            loss, before = one.full.result.validation_loss, short.get(one.method)
            if before is not None and loss > tie_limit(before):
                yield (
                    f"{method_label(one.method)} ended worse in full, {loss:.4f}, than in its short run, {before:.4f}: "
                    "fewer epochs may be better (--config.train.max_epochs), or a lower rate."
                )


def _placed_data(one: Placed) -> dict[str, Any]:
    result = one.full.result
    return {
        "method": one.method,
        "learning_rate": one.full.learning_rate,
        "validation_loss": result.validation_loss,
        "good_enough": one.good_enough,
        "ties_with_first": one.tied,
        "seconds_until_good_enough": one.seconds,
        "seconds": {phase: result.seconds[phase] for phase in PHASES},
        "trainable_parameters": result.trainable_parameters,
        "adapter_bytes": result.adapter_bytes,
        "peak_memory_bytes": result.peak_memory_bytes,
        "test": {"metric_name": result.metric_name, "metric": result.metric, "examples": result.test_examples},
        "zero_shot": result.zero_shot and dict(result.zero_shot),
        "adapter": one.full.adapter,
        "command": one.full.command,
    }


# --- words ---


def _reasons(
    scarce: Scarce, placed: Sequence[Placed], untuned: float | None, baseline: Baseline | None
) -> Iterator[tuple[str, str]]:
    first = placed[0]
    result = first.full.result
    loss = f"its validation loss is {result.validation_loss:.4f} nats a token"
    assert first.seconds is not None, "the first is good enough"
    enough = f"at most {GOOD_ENOUGH[0]:.0%} or {GOOD_ENOUGH[1]} nats above the lowest"
    yield (
        "why",
        {
            "quality": f"{loss}, the lowest",
            "time": f"it took {first.seconds:,.1f} s to a loss {enough}; {loss}",
            "memory": f"it trains {result.trainable_parameters:,} parameters, the fewest with a loss {enough}; {loss}",
        }[scarce],
    )
    if any(one.tied for one in placed):
        smallest = min((o for o in placed if o.tied or o is first), key=lambda o: o.full.result.trainable_parameters)
        yield (
            "ties",
            f"losses within {TIE[0]:.0%} or {TIE[1]} of the lowest are called ties: one seed tells no more. The "
            f"smallest of these is {method_label(smallest.method)}",
        )
    metric = METRIC_LABELS.get(result.metric_name, result.metric_name)
    error = result.uncertainty.standard_error if result.uncertainty else None
    yield (
        "test",
        f"{metric} {result.metric:.4f}{'' if error is None else f' ± {error:.4f} (standard error)'} on "
        f"{result.test_examples:,} rows that chose nothing"
        + (f"; the untuned model {untuned:.4f}" if untuned is not None else "")
        + (f"; always {baseline.label!r} {baseline.share:.4f}" if baseline is not None else ""),
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


def _short_table(short: Sequence[Short]) -> Table:
    rows = []
    for method in in_order({one.method for one in short}, PAPER_METHODS):
        for one in sorted((one for one in short if one.method == method), key=lambda one: (one.rank or 0, one.factor)):
            rows.append(
                [
                    Value(method_label(method) + ("" if one.rank is None else f", rank {one.rank}")),
                    Value(f"{one.learning_rate:g}"),
                    Value(f"× {one.factor:.3g}"),
                    Value(one.epochs),
                    Value(
                        "failed" if one.validation_loss is None else one.validation_loss,
                        tone="best" if one.chosen else "",
                    ),
                    Value(f"chosen: {one.why}" if one.chosen else one.why, tone="" if one.chosen else "weak"),
                ]
            )
    columns = [
        Column("method"),
        Column("rate"),
        Column("config's"),
        Column("epochs", "count"),
        Column("valid. loss", "metric"),
        Column("why"),
    ]
    return Table("short-runs", "Short runs, and what was decided of each", columns, rows)


def _full_table(placed: Sequence[Placed]) -> Table:
    columns = [
        Column("#"),
        Column("method"),
        Column("rate"),
        Column("valid. loss", "metric"),
        Column("good enough in s", "seconds"),
        Column(f"test {METRIC_LABELS.get(name := placed[0].full.result.metric_name, name)}", "metric"),
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
            Value(result.seconds["train"]),
            Value(result.seconds["validation"]),
            Value(result.seconds["test"]),
        ]
        for one in placed
    ]
    return Table("full-sizes", "What they cost", columns, rows)
