"""A small search on a user's own rows: every method at a few learning rates in short, then each at its best in full.

Whatever is chosen is chosen by validation loss, the mean cross-entropy of a target token: the same rows and the same
tokens for every method, so losses may be compared. Test rows choose nothing: a short run tests one row that nobody
looks at, since a run has to, and a full run tests all of them once, at its end.

What has been run stands in the cells' directories, and what was decided in `search.json` beside them: a search that was
killed goes on with the same call. What is decided, and why, is in `jpeft.grid.decision`, which runs nothing.
"""

import dataclasses
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jpeft.config import Run
from jpeft.data.prepare import prepare
from jpeft.errors import RunFailed, UserError
from jpeft.files import read_json_object, write_whole
from jpeft.grid.cells import Cell
from jpeft.grid.decision import (
    Candidate,
    FullRunSize,
    JudgedCandidate,
    SearchPlan,
    Speed,
    choose,
    explain,
    least_seconds,
    plan,
)
from jpeft.grid.state import CellState, State, look
from jpeft.judging import Baseline
from jpeft.model.tokenizer import Tokenizer
from jpeft.words import counted

FACTORS = (1.0, 3.0, 1 / 3)  # of the config's learning rates, in the order in which they are tried
_SEARCH_FILE = "search.json"
_SHORT_SHARE = 1 / 3  # of the epochs of a full run
_LEAST_STEPS = 30  # of the optimizer in a short run, where the full one has as many: fewer tell methods apart by chance
_ROWS_ON_A_BUDGET = 256  # of training and of validation in a short run, at most, where time is limited
_SHORT_RUNS_SHARE = 0.5  # of the budget: past it no further learning rate is begun


Keys = dict[str, Any]  # config keys and values, as flags set them


@dataclasses.dataclass(frozen=True)
class Request:
    """The request for a search: the methods, the data, and the time there is.

    Attributes:
      configure: the run of a method with these config keys set.
      budget_seconds: None for no limit.
      rows: how many train, validate and test in a full run, by split.
      fingerprint: of the data, so that other rows are not taken for these.
      jobs: cells at once.
      baseline: what is had without looking at the input, where the answers are labels.
      report: hears what is planned and how long it takes, before it is begun.
    """

    methods: tuple[str, ...]
    configure: Callable[[str, Mapping[str, Any]], Run]
    workdir: Path
    rows: Mapping[str, int]
    fingerprint: str
    budget_seconds: float | None = None
    jobs: int = 1
    baseline: Baseline | None = None
    report: Callable[[str], None] = lambda line: None


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A run of the search: a method at a learning rate, and how it ended.

    Attributes:
      overhead: seconds that it took beside its own work: a worker's start, loading the model; 0 where it was done.
    """

    method: str
    factor: float
    keys: Mapping[str, Any]
    cell: Cell
    seen: CellState
    overhead: float = 0.0

    @property
    def learning_rate(self) -> float:
        """The highest learning rate of its schedule."""
        rate = self.cell.run.train.learning_rate.warmup
        assert rate is not None, "Run.from_config fills it in"
        return rate

    @property
    def validation_loss(self) -> float | None:
        """The lowest validation loss over its epochs, in nats a token; None where it did not end well."""
        return self.seen.result.validation_loss if self.seen.result else None

    def candidate(self) -> Candidate:
        """The attempt as `jpeft.grid.decision` takes it: method, rate and validation loss, without files."""
        train, result = self.cell.run.train, self.seen.result
        assert train.max_epochs is not None, "Run.from_config fills it in"
        if result is None:
            return Candidate(
                self.method, self.factor, self.learning_rate, train.max_epochs, 0, None, self.seen.detail or "no result"
            )
        seconds, epochs = result.seconds, max(1, result.epochs_run)
        speed = Speed(
            train_row=seconds["train"] / max(1, result.train_examples * epochs),
            validation_row=seconds["validation"] / max(1, result.validation_examples * epochs),
            test_batch=seconds["test"],
            once=seconds["compile"] + self.overhead,
        )
        return Candidate(
            self.method,
            self.factor,
            self.learning_rate,
            train.max_epochs,
            result.train_examples,
            result.validation_loss,
            "",
            speed,
        )


@dataclasses.dataclass(frozen=True)
class Found:
    """The result of a search: its short runs, the decision, and its full runs.

    Attributes:
      short: every short run, with what was decided of it.
      full: the run of each method at its best learning rate; some may have failed.
      plan: of the full runs.
      left_out: methods without a full run, and why.
      remarks: what the budget cost.
    """

    short: tuple[JudgedCandidate, ...]
    full: tuple[Attempt, ...]
    plan: SearchPlan
    left_out: Mapping[str, str]
    remarks: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class SearchRows:
    """The rows of a search.

    Attributes:
      counts: how many train, validate and test.
      digest: of all of them, whatever file they are in.
      labels: how often each target is in each split, where these are taken for labels; else None.
    """

    counts: Mapping[str, int]
    digest: str
    labels: Mapping[str, Counter[str]] | None


NameAndKeys = Callable[[str, float], tuple[str, Keys]]  # of the cell of a method and a factor
RunCells = Callable[[Sequence[Cell]], Mapping[Cell, CellState]]
Pair = tuple[str, float]  # a method and a factor on its config's learning rates


def look_at_data(run: Run, tokenizer: Tokenizer, *, report: Callable[[str], None]) -> SearchRows:
    """The rows as a run reads them, before anything is begun: what would stop a run is one error now, not one of each.

    Raises:
      UserError: as `prepare`.
    """
    data = prepare(run.build_task(), tokenizer, **run.data_choices(), report=report)
    labels = None
    if data.task.kind == "classification":
        labels = {split: Counter(row.target for row in rows) for split, rows in data.examples.items()}
    return SearchRows({split: len(rows) for split, rows in data.examples.items()}, data.digest, labels)


def search(request: Request, run_cells: RunCells, *, clock: Callable[[], float] = time.monotonic) -> Found:
    """Runs what is missing.

    Args:
      run_cells: does cells and gives all of their states; it may be called several times.

    Raises:
      UserError: the directory holds a search of other rows, or work of another config.
      RunFailed: no method got through.
    """
    return _Search(request, run_cells, clock).run()


class _Search:
    def __init__(self, request: Request, run_cells: RunCells, clock: Callable[[], float]):
        self._request, self._run_cells, self._clock = request, run_cells, clock
        self._began = clock()
        self._earlier = 0.0  # seconds of cells that an earlier call did
        self._remarks: list[str] = []
        self._untried: dict[str, str] = {}  # methods that there was no time for, and why
        self._record = _open_record(request)

    def run(self) -> Found:
        short = self._short_runs()
        candidates = [attempt.candidate() for attempt in short]
        chosen = choose(candidates, self._request.baseline)
        if not chosen:
            raise RunFailed(f"no method got through; the first error: {short[0].seen.detail}")
        decided = self._decide(chosen, [(attempt.method, attempt.factor) for attempt in short])
        full, left_out = self._full_runs(chosen, decided)
        failed = {a.method: a.seen.detail for a in short if a.method not in chosen}
        return Found(
            tuple(explain(candidates, self._request.baseline)),
            tuple(full),
            decided,
            {**failed, **self._untried, **decided.left_out, **left_out},
            tuple(self._remarks),
        )

    # --- short runs ---

    def _short_runs(self) -> list[Attempt]:
        """All at once; on a budget one after the other, the config's own rate of every method first, while there is
        time. What an earlier call decided stays, and what it has begun goes on."""
        request = self._request
        pairs = [(method, factor) for factor in FACTORS for method in request.methods]
        if request.budget_seconds is None:
            return self._attempts(pairs, self._short)
        before = self._decided()
        if before is not None:
            done = self._attempts([pair for pair in pairs if list(pair) in before["tried"]], self._short)
            self._say_missed([pair for pair in pairs if list(pair) not in before["tried"]], done)
            return done
        request.report(
            f"budget: {_minutes(request.budget_seconds)}; one short and one full run are made however long they take"
        )
        done: list[Attempt] = []
        missed: list[Pair] = []

        def attempt(pairs: Sequence[Pair], share: float) -> None:
            for i in range(0, len(pairs), request.jobs):
                part = pairs[i : i + request.jobs]
                begun = any(self._is_done(pair, self._short) for pair in part)
                if not done or begun or self._has_time(done, share):
                    done.extend(self._attempts(part, self._short))
                else:
                    missed.extend(part)

        own_rates = [(method, FACTORS[0]) for method in request.methods]
        attempt(own_rates, 1.0)
        best = choose([one.candidate() for one in done], request.baseline)
        attempt([(method, factor) for factor in FACTORS[1:] for method in best], _SHORT_RUNS_SHARE)
        self._say_missed(missed, done)
        return done

    def _has_time(self, done: Sequence[Attempt], share: float) -> bool:
        """Whether there is time for another short run, and for a full one after it."""
        request = self._request
        assert request.budget_seconds is not None
        next_one = max(_own_seconds(attempt) + attempt.overhead for attempt in done)
        chosen = choose([attempt.candidate() for attempt in done], request.baseline)
        best = next(iter(chosen.values()), None)
        kept_back = least_seconds(best, self._wanted(best.method), jobs=1) if best else next_one
        # Further rates of a method are worth less than a full run of another one.
        return self._spent() + next_one + kept_back <= request.budget_seconds and (
            self._spent() + next_one <= share * request.budget_seconds
        )

    def _say_missed(self, missed: Sequence[Pair], done: Sequence[Attempt]) -> None:
        tried = {attempt.method for attempt in done}
        self._untried = {m: "the budget left no time to try it" for m, _ in missed if m not in tried}
        for factor in FACTORS[1:]:
            methods = [method for method, of in missed if of == factor and method in tried]
            if methods:
                where = "" if len(methods) == len(tried) else f" of {', '.join(methods)}"
                self._remarks.append(f"the budget left no time to try learning rates × {factor:.3g}{where}")

    def _short(self, method: str, factor: float) -> tuple[str, Keys]:
        request = self._request
        default = request.configure(method, {})
        keys: Keys = {**_rates(default, factor), "data.max_test": 1}
        rows = request.rows["train"]
        if request.budget_seconds is not None:
            for split in ("train", "validation"):
                keys[f"data.max_{split}"] = min(request.rows[split], _ROWS_ON_A_BUDGET)
            rows = keys["data.max_train"]
        keys["train.max_epochs"] = epochs = _short_epochs(default, rows)
        keys["eval.zero_shot"] = False
        name = f"short_{method}_lr{_peak(keys):.4g}_epochs{epochs}"
        if request.budget_seconds is not None:
            name += f"_rows{rows}"
        return name, keys

    # --- full runs ---

    def _wanted(self, method: str) -> FullRunSize:
        run, rows = self._request.configure(method, {}), self._request.rows
        return FullRunSize(
            epochs=_max_epochs(run),
            train=rows["train"],
            validation=rows["validation"],
            test=rows["test"],
            eval_batch=run.rows()[1],
            zero_shot=True,
        )

    def _decide(self, chosen: Mapping[str, Candidate], tried: Sequence[Pair]) -> SearchPlan:
        """Which methods get a full run and how long: once, since the time that is left decides it."""
        request = self._request
        before = self._decided()
        if before is not None:
            return _plan_of(before["plan"])
        left = None if request.budget_seconds is None else request.budget_seconds - self._spent()
        wanted = {method: self._wanted(method) for method in chosen}
        made = plan(chosen, wanted, left, jobs=request.jobs)
        self._record["decided"] = {
            "asked": self._asked(),
            "tried": [list(pair) for pair in tried],
            "plan": dataclasses.asdict(made),
        }
        _write_record(request.workdir, self._record)
        return made

    def _asked(self) -> dict[str, Any]:
        request = self._request
        return {"methods": sorted(request.methods), "budget_seconds": request.budget_seconds, "jobs": request.jobs}

    def _decided(self) -> dict[str, Any] | None:
        """What an earlier call with the same wishes decided."""
        decided = self._record.get("decided")
        return decided if decided is not None and decided["asked"] == self._asked() else None

    def _full(self, decided: SearchPlan) -> NameAndKeys:
        def full(method: str, factor: float) -> tuple[str, Keys]:
            default = self._request.configure(method, {})
            keys = _rates(default, factor)
            epochs = min(decided.epochs, _max_epochs(default))
            name = f"full_{method}_lr{_peak(keys):.4g}_epochs{epochs}"
            if epochs < _max_epochs(default):
                keys["train.max_epochs"] = epochs
            for split, rows in (("train", decided.train), ("test", decided.test)):
                if rows is not None:
                    keys[f"data.max_{split}"] = rows
                    name += f"_{split}{rows}"
            keys["eval.zero_shot"] = decided.zero_shot
            return name, keys

        return full

    def _full_runs(self, chosen: Mapping[str, Candidate], decided: SearchPlan) -> tuple[list[Attempt], dict[str, str]]:
        """Best first; on a budget not all at once, so that it can be kept where the estimate was wrong."""
        request, full = self._request, self._full(decided)
        wanted = [(method, chosen[method].factor) for method in decided.methods if method in chosen]
        self._announce(decided, len(wanted))
        budget = request.budget_seconds
        together = len(wanted) if budget is None else request.jobs
        done: list[Attempt] = []
        left_out: dict[str, str] = {}
        for i in range(0, len(wanted), together):
            part = wanted[i : i + together]
            if budget is not None and done:
                last = max(_own_seconds(attempt) + attempt.overhead for attempt in done)
                ready = [pair for pair in part if self._is_done(pair, full)]
                if self._spent() + (0 if ready else last) > budget:
                    left_out |= {
                        pair[0]: "the budget left no time for its full run" for pair in part if pair not in ready
                    }
                    part = ready
            done += self._attempts(part, full)
        return done, left_out

    def _announce(self, decided: SearchPlan, runs: int) -> None:
        request, rows = self._request, self._request.rows
        most = max(_max_epochs(request.configure(method, {})) for method in decided.methods)
        train = rows["train"] if decided.train is None else decided.train
        test = rows["test"] if decided.test is None else decided.test
        if decided.epochs < most:
            self._remarks.append(f"the budget left no time for more than {decided.epochs} of {most} epochs")
        if decided.train is not None and train < rows["train"]:
            self._remarks.append(f"the budget left no time for more than {train:,} of {rows['train']:,} training rows")
        if test < rows["test"]:
            self._remarks.append(f"the budget left no time for more than {test:,} of {rows['test']:,} test rows")
        if decided.over and request.budget_seconds is not None:
            whole = request.budget_seconds + decided.over
            self._remarks.append(
                f"the budget of {_minutes(request.budget_seconds)} cannot be kept: a full run, no shorter than the "
                f"short one, makes it about {_minutes(whole)}"
            )
            request.report(self._remarks[-1])
        request.report(
            f"{counted(runs, 'full run')}: up to {counted(decided.epochs, 'epoch')} on {train:,} rows, tested on "
            f"{test:,}; about {_minutes(decided.seconds)} at most"
        )

    # --- cells ---

    def _cell(self, pair: Pair, name_and_keys: NameAndKeys) -> tuple[Cell, Keys]:
        name, keys = name_and_keys(*pair)
        return Cell(name, self._request.configure(pair[0], keys)), keys

    def _is_done(self, pair: Pair, name_and_keys: NameAndKeys) -> bool:
        cell, _ = self._cell(pair, name_and_keys)
        return look(cell, self._request.workdir).state == State.DONE

    def _attempts(self, wanted: Sequence[Pair], name_and_keys: NameAndKeys) -> list[Attempt]:
        made = [(pair, *self._cell(pair, name_and_keys)) for pair in wanted]
        began = self._clock()
        states = self._run_cells([cell for _, cell, _ in made])
        took = self._clock() - began
        for _, cell, _ in made:
            if states[cell].state == State.STALE:
                raise UserError(
                    f"{cell.directory(self._request.workdir)} holds work of another config "
                    f"({states[cell].detail}); name another --workdir."
                )
        own = sum(state.result.seconds["total"] for state in states.values() if state.result) / self._request.jobs
        # What took no time now was done by an earlier call: its time counts, too.
        self._earlier += max(0.0, own - took)
        overhead = max(0.0, took - own) * self._request.jobs / max(1, len(made))
        return [Attempt(*pair, keys, cell, states[cell], overhead) for pair, cell, keys in made]

    def _spent(self) -> float:
        return self._clock() - self._began + self._earlier


def _own_seconds(attempt: Attempt) -> float:
    """Seconds of all phases of a run; 0 without a result."""
    return attempt.seen.result.seconds["total"] if attempt.seen.result else 0.0


def _max_epochs(run: Run) -> int:
    assert run.train.max_epochs is not None, "Run.from_config fills it in"
    return run.train.max_epochs


def _short_epochs(run: Run, rows: int) -> int:
    """A third of the full run's, or more where that would be too few steps to judge by."""
    steps = math.ceil(rows / (run.rows()[0] * run.train.accumulation_steps))
    share = math.ceil(_max_epochs(run) * _SHORT_SHARE)
    return max(1, min(_max_epochs(run), max(share, math.ceil(_LEAST_STEPS / steps))))


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _rates(run: Run, factor: float) -> Keys:
    """The config's three learning rates, times a factor: what lies between them stays."""
    rates = dataclasses.asdict(run.train.learning_rate)
    return {f"train.learning_rate.{name}": float(f"{rate * factor:.6g}") for name, rate in rates.items()}


def _peak(keys: Keys) -> float:
    return keys["train.learning_rate.warmup"]


# --- what is remembered ---


def _open_record(request: Request) -> dict[str, Any]:
    file = request.workdir / _SEARCH_FILE
    if not file.exists():
        record: dict[str, Any] = {"rows": request.fingerprint}
        _write_record(request.workdir, record)
        return record
    try:
        record = read_json_object(file, error=_Damaged)
        if "data" in record:
            raise UserError(
                f"{request.workdir} holds a search of an earlier version of jpeft, which decided otherwise; name "
                "another --workdir."
            )
        rows, decided = record["rows"], record.get("decided")
        if decided is not None:
            _plan_of(decided["plan"])
            known = {(method, factor) for method in request.methods for factor in FACTORS}
            if not decided["tried"] or not isinstance(decided["asked"], dict):
                raise _Damaged("nothing was tried")
            if decided["asked"].get("methods") == sorted(request.methods) and any(
                (method, factor) not in known for method, factor in decided["tried"]
            ):
                raise _Damaged("something else was tried")
    except (_Damaged, KeyError, TypeError, ValueError) as why:
        if isinstance(why, UserError):
            raise
        raise UserError(f"{file} is damaged; remove it to go on, or name another --workdir.") from None
    if rows != request.fingerprint:
        raise UserError(f"{request.workdir} holds a search of other rows than --data has now; name another --workdir.")
    return record


class _Damaged(Exception):
    """What `search.json` holds is not what a search writes."""


def _plan_of(values: Any) -> SearchPlan:
    """A plan as `search.json` holds it. Raises `_Damaged` for anything else."""
    numbers = {key: values[key] for key in ("epochs", "train", "test", "seconds", "over")}
    for key, value in numbers.items():
        least = 0 if key in ("seconds", "over") else 1
        optional = value is None and key in ("train", "test")
        if not optional and (isinstance(value, bool) or not isinstance(value, int | float) or value < least):
            raise _Damaged(key)
        if not optional and least and not isinstance(value, int):
            raise _Damaged(key)
    methods, left_out, zero_shot = values["methods"], values["left_out"], values["zero_shot"]
    if not isinstance(methods, list) or not all(isinstance(method, str) for method in methods):
        raise _Damaged("methods")
    if not isinstance(left_out, dict) or not isinstance(zero_shot, bool):
        raise _Damaged("left_out")
    return SearchPlan(
        methods=tuple(methods), left_out={str(k): str(v) for k, v in left_out.items()}, zero_shot=zero_shot, **numbers
    )


def _write_record(workdir: Path, record: Mapping[str, Any]) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    with write_whole(workdir / _SEARCH_FILE) as beside:
        beside.write_text(json.dumps(record, indent=2) + "\n")
