"""A small search on a user's own rows, by successive halving: many runs for few epochs, few of them to their ends.

Every method at a few learning rates and ranks is begun as the full run that it may become. After a few epochs, and
again after twice as many, the better half goes on and the best of each method; then the two best methods go on to their
ends, and what is near the best. The others wait in their directories, for good (Jamieson and Talwalkar 2016; Li et al.
2018, *Hyperband*). On a budget of minutes short runs of few rows are compared instead, since full ones may not fit.

Whatever is chosen is chosen by validation loss, the mean cross-entropy of a target token: the same rows and the same
tokens for every method, so losses may be compared. Test rows choose nothing: a short run tests one row that nobody
looks at, since a run has to, and a full run tests all of them once, at its end; one that waits has tested none.

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
from typing import Any, NamedTuple

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
    best_of_each,
    choose,
    explain,
    gains_by_a_higher_rate,
    going_on,
    least_seconds,
    left_behind,
    plan,
)
from jpeft.grid.state import CellState, State, look
from jpeft.judging import Baseline
from jpeft.model.tokenizer import Tokenizer
from jpeft.peft.methods import METHODS
from jpeft.results import PausedRecord, RunRecord
from jpeft.words import counted, listed

FACTORS = (1.0, 3.0, 1 / 3)  # of the config's learning rates, in the order in which they are tried
_SEARCH_FILE = "search.json"
_VERSION = 2  # of what it holds
RANK_FACTOR = 4  # on the config's rank, which is tried, too
_SHORT_SHARE = 1 / 3  # of the epochs of a full run, before methods are compared
_LEAST_STEPS = 30  # of the optimizer until then, where a full run has as many: fewer tell methods apart by chance
_FIRST_LOOK_SHARE = 1 / 4  # of these epochs, before the rates and ranks of a method are compared
_LEAST_STEPS_OF_A_RATE = 20
_LOOKS = 3  # at what is tried, each after twice the epochs of the one before
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
      jobs: runs at once.
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


class Trial(NamedTuple):
    """What is tried: a method with a factor on its config's learning rates, and one on its rank."""

    method: str
    factor: float
    rank_factor: int = 1


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A run of the search as far as it was to go: a trial with its config, and how it ended.

    Attributes:
      overhead: seconds that it took beside its own work: a worker's start, loading the model; 0 where it was done.
      epochs: how far it was to go; None to its end.
    """

    trial: Trial
    keys: Mapping[str, Any]
    cell: Cell
    seen: CellState
    overhead: float = 0.0
    epochs: int | None = None

    @property
    def method(self) -> str:
        return self.trial.method

    @property
    def factor(self) -> float:
        """On the config's learning rates."""
        return self.trial.factor

    @property
    def learning_rate(self) -> float:
        """The highest learning rate of its schedule."""
        rate = self.cell.run.train.learning_rate.warmup
        assert rate is not None, "Run.from_config fills it in"
        return rate

    @property
    def validation_loss(self) -> float | None:
        """The lowest validation loss over these epochs, in nats a token; None where it did not get so far."""
        record = self._record
        if record is None:
            return None
        if self.epochs is None and isinstance(record, RunRecord):
            return record.validation_loss
        return min(record.validation_losses[: self.epochs], default=None)

    @property
    def _record(self) -> RunRecord | PausedRecord | None:
        return self.seen.result or self.seen.paused

    def untuned_batch(self, test_rows: int) -> float:
        """Seconds that a batch of answers took before training; 0 where none was asked for, or another run had them."""
        run, record = self.cell.run, self._record
        if record is None or not run.eval.zero_shot:
            return 0.0
        return record.seconds.get("zero_shot", 0.0) / math.ceil(test_rows / run.rows()[1])

    def candidate(self, test_batch: float = 0.0) -> Candidate:
        """The attempt as `jpeft.grid.decision` takes it: method, rate, rank and validation loss, without files.

        Args:
          test_batch: seconds of a batch of answers, where this run has tested nothing.
        """
        train, record, loss = self.cell.run.train, self._record, self.validation_loss
        assert train.max_epochs is not None, "Run.from_config fills it in"
        rank, _ = _rank_and_alpha(self.cell.run) or (None, None)
        asked = train.max_epochs if self.epochs is None else min(self.epochs, train.max_epochs)
        learned = asked if record is None else min(len(record.validation_losses), asked)
        candidate = Candidate(
            method=self.method,
            factor=self.factor,
            learning_rate=self.learning_rate,
            epochs=asked,
            stopped_after=learned if learned < asked else None,
            rows=0 if record is None else record.train_examples,
            validation_loss=loss,
            rank=rank,
            rank_factor=self.trial.rank_factor,
        )
        if record is None or loss is None:
            return dataclasses.replace(candidate, error=self.seen.detail or "no result")
        seconds, epochs = record.seconds, max(1, len(record.validation_losses))
        speed = Speed(
            train_row=seconds["train"] / max(1, record.train_examples * epochs),
            validation_row=seconds["validation"] / max(1, record.validation_examples * epochs),
            test_batch=seconds["test"] if isinstance(record, RunRecord) and self.epochs is None else test_batch,
            once=seconds["compile"] + self.overhead,
        )
        return dataclasses.replace(candidate, speed=speed)


@dataclasses.dataclass(frozen=True)
class Found:
    """The result of a search: its short runs, the decision, and its full runs.

    Attributes:
      short: every short run, with what was decided of it.
      full: the run of each method at its best learning rate; some may have failed.
      plan: of the full runs.
      left_out: methods without a full run, and why.
      remarks: what was not tried, or not in full, and why.
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


NameAndKeys = Callable[[Trial], tuple[str, Keys]]  # of the cell of a trial
RunCells = Callable[[Sequence[Cell], int | None], Mapping[Cell, CellState]]


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
      run_cells: does cells, for so many epochs (None: to their ends), and gives all of their states; it may be called
        several times.

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
        baseline = self._request.baseline
        short = self._looks() if self._request.budget_seconds is None else self._runs_on_a_budget()
        test_batch = max(attempt.untuned_batch(self._request.rows["test"]) for attempt in short)
        candidates = [attempt.candidate(test_batch) for attempt in short]
        chosen = best_of_each(candidates, baseline)
        if not chosen:
            raise RunFailed(f"no method got through; the first error: {short[0].seen.detail}")
        behind = left_behind(chosen)
        kept = {method: candidate for method, candidate in chosen.items() if method not in behind}
        decided = self._decide(kept, [attempt.trial for attempt in short])
        full, left_out = self._full_runs(kept, decided)
        failed = {a.method: a.seen.detail for a in short if a.method not in chosen}
        return Found(
            tuple(explain(candidates, baseline)),
            tuple(full),
            decided,
            {**failed, **self._untried, **behind, **decided.left_out, **left_out},
            tuple(self._remarks),
        )

    # --- short runs ---

    def _trials(self) -> list[Trial]:
        """What is tried: the config's own rate of every method first, then other rates and ranks."""
        methods = self._request.methods
        by_rate = [Trial(method, factor) for factor in FACTORS for method in methods]
        return by_rate + [
            Trial(m, 1.0, RANK_FACTOR) for m in methods if _leaves_the_rank_open(self._request.configure(m, {}))
        ]

    def _looks(self) -> list[Attempt]:
        """Every trial as the full run that it may become, as far as the first look; from look to look the better half
        and the best of each method. Those that came furthest are last."""
        whole, trials = self._full(self._whole), self._trials()
        rates = [trial for trial in trials if trial.factor >= 1 and trial.rank_factor == 1]
        looks = {method: self._look_epochs(method) for method in self._request.methods}
        each = " or ".join(dict.fromkeys(listed([*map(str, dict.fromkeys(own))]) for own in looks.values()))
        self._request.report(
            f"{counted(len(rates), 'run')} or more (each method at its rates, the best at other ranks) are compared "
            f"after {each} of their epochs; the best go on from there, the others wait"
        )
        first = self._attempts(rates, whole, {trial: looks[trial.method][0] for trial in rates})
        further = self._worth_a_try(trials, [one.candidate() for one in first])
        first += self._attempts(further, whole, {trial: looks[trial.method][0] for trial in further})
        made, candidates = first, [one.candidate() for one in first]
        for number in range(1, _LOOKS):
            better = going_on(candidates, self._request.baseline)
            further = [one for one in better if looks[one.method][number] > one.epochs]
            trials = [Trial(one.method, one.factor, one.rank_factor) for one in further]
            gone_on = self._attempts(trials, whole, {trial: looks[trial.method][number] for trial in trials})
            made = made + gone_on
            candidates = [one for one in better if one not in further] + [one.candidate() for one in gone_on]
        return made

    def _worth_a_try(self, trials: Sequence[Trial], rates: Sequence[Candidate]) -> list[Trial]:
        """Lower rates of the methods that gain nothing by higher ones, and other ranks of the methods that do best."""
        gain = {m for m in self._request.methods if gains_by_a_higher_rate([one for one in rates if one.method == m])}
        chosen = choose(rates, self._request.baseline)
        best = set(chosen) - set(left_behind(chosen))
        behind = [trial.method for trial in trials if trial.rank_factor != 1 and trial.method in set(chosen) - best]
        if behind:
            self._remarks.append(
                f"ranks × {RANK_FACTOR} of {listed(behind)} were not tried, since other methods did better; "
                f"--methods {behind[0]} alone tries them"
            )
        return [
            trial
            for trial in trials
            if (trial.factor < 1 and trial.method not in gain) or (trial.rank_factor != 1 and trial.method in best)
        ]

    def _look_epochs(self, method: str) -> tuple[int, ...]:
        """After how many epochs the rates of a method are compared, after how many again, and after how many its best
        with other methods."""
        run, rows = self._request.configure(method, {}), self._request.rows["train"]
        last = _short_epochs(run, rows)
        first = max(math.ceil(last * _FIRST_LOOK_SHARE), math.ceil(_LEAST_STEPS_OF_A_RATE / _steps(run, rows)))
        return tuple(min(first * 2**look, last) for look in range(_LOOKS - 1)) + (last,)

    def _runs_on_a_budget(self) -> list[Attempt]:
        """Short runs, one part after the other, the config's own rate of every method first, while there is time. What
        an earlier call decided stays, and what it has begun goes on."""
        request, trials = self._request, self._trials()
        before = self._decided()
        if before is not None:
            done = self._attempts([trial for trial in trials if list(trial) in before["tried"]], self._short)
            self._say_missed([trial for trial in trials if list(trial) not in before["tried"]], done)
            return done
        assert request.budget_seconds is not None
        request.report(
            f"budget: {_minutes(request.budget_seconds)}; one short and one full run are made however long they take"
        )
        done: list[Attempt] = []
        missed: list[Trial] = []

        def attempt(trials: Sequence[Trial], share: float) -> None:
            for i in range(0, len(trials), request.jobs):
                part = trials[i : i + request.jobs]
                begun = any(self._is_done(trial, self._short) for trial in part)
                if not done or begun or self._has_time(done, share):
                    done.extend(self._attempts(part, self._short))
                else:
                    missed.extend(part)

        own_rates = trials[: len(request.methods)]
        attempt(own_rates, 1.0)
        best = choose([one.candidate() for one in done], request.baseline)
        others = trials[len(own_rates) :]
        by_place = {method: place for place, method in enumerate(best)}
        kinds = lambda trial: (trial.rank_factor, FACTORS.index(trial.factor), by_place[trial.method])
        attempt(sorted((trial for trial in others if trial.method in best), key=kinds), _SHORT_RUNS_SHARE)
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

    def _say_missed(self, missed: Sequence[Trial], done: Sequence[Attempt]) -> None:
        tried = {attempt.method for attempt in done}
        self._untried = {one.method: "the budget left no time to try it" for one in missed if one.method not in tried}
        kinds = {(1, factor): f"learning rates × {factor:.3g}" for factor in FACTORS[1:]}
        for (rank_factor, factor), what in [*kinds.items(), ((RANK_FACTOR, 1.0), f"ranks × {RANK_FACTOR}")]:
            of_kind = [one for one in missed if (one.rank_factor, one.factor) == (rank_factor, factor)]
            methods = [one.method for one in of_kind if one.method in tried]
            if methods:
                where = "" if len(methods) == len(tried) else f" of {', '.join(methods)}"
                self._remarks.append(f"the budget left no time to try {what}{where}")

    def _short(self, trial: Trial) -> tuple[str, Keys]:
        """The name and keys of a short run on a budget: a whole run, on few rows."""
        request = self._request
        default = request.configure(trial.method, {})
        keys = _searched_keys(default, trial) | {"data.max_test": 1}
        for split in ("train", "validation"):
            keys[f"data.max_{split}"] = min(request.rows[split], _ROWS_ON_A_BUDGET)
        rows = keys["data.max_train"]
        keys["train.max_epochs"] = epochs = _short_epochs(default, rows)
        keys["eval.zero_shot"] = False
        return f"short_{_name(trial, keys)}_epochs{epochs}_rows{rows}", keys

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
            done=0 if self._request.budget_seconds is not None else self._look_epochs(method)[-1],
        )

    @property
    def _whole(self) -> SearchPlan:
        """A plan that leaves nothing out."""
        most = max(_max_epochs(self._request.configure(method, {})) for method in self._request.methods)
        return SearchPlan(self._request.methods, most, None, None, True, {}, 0.0)

    def _decide(self, chosen: Mapping[str, Candidate], tried: Sequence[Trial]) -> SearchPlan:
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
            "tried": [list(trial) for trial in tried],
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
        def full(trial: Trial) -> tuple[str, Keys]:
            default = self._request.configure(trial.method, {})
            keys = _searched_keys(default, trial)
            epochs = min(decided.epochs, _max_epochs(default))
            name = f"full_{_name(trial, keys)}_epochs{epochs}"
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
        best = [chosen[method] for method in decided.methods if method in chosen]
        wanted = [Trial(one.method, one.factor, one.rank_factor) for one in best]
        self._announce(decided, len(wanted))
        budget = request.budget_seconds
        together = len(wanted) if budget is None else request.jobs
        done: list[Attempt] = []
        left_out: dict[str, str] = {}
        for i in range(0, len(wanted), together):
            part = wanted[i : i + together]
            if budget is not None and done:
                last = max(_own_seconds(attempt) + attempt.overhead for attempt in done)
                ready = [trial for trial in part if self._is_done(trial, full)]
                if self._spent() + (0 if ready else last) > budget:
                    left_out |= {
                        trial.method: "the budget left no time for its full run" for trial in part if trial not in ready
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

    def _cell(self, trial: Trial, name_and_keys: NameAndKeys) -> tuple[Cell, Keys]:
        name, keys = name_and_keys(trial)
        return Cell(name, self._request.configure(trial.method, keys)), keys

    def _is_done(self, trial: Trial, name_and_keys: NameAndKeys) -> bool:
        cell, _ = self._cell(trial, name_and_keys)
        return look(cell, self._request.workdir).state == State.DONE

    def _attempts(
        self, wanted: Sequence[Trial], name_and_keys: NameAndKeys, epochs: Mapping[Trial, int] | None = None
    ) -> list[Attempt]:
        """Runs what is wanted, to the end or for so many epochs."""
        made = [(trial, *self._cell(trial, name_and_keys)) for trial in wanted]
        by_epochs: dict[int | None, list[Cell]] = {}
        for trial, cell, _ in made:
            by_epochs.setdefault(None if epochs is None else epochs[trial], []).append(cell)
        began, states = self._clock(), {}
        for asked, cells in by_epochs.items():
            states |= self._run_cells(cells, asked)
        took = self._clock() - began
        for _, cell, _ in made:
            if states[cell].state == State.STALE:
                raise UserError(
                    f"{cell.directory(self._request.workdir)} holds work of another config "
                    f"({states[cell].detail}); name another --workdir."
                )
        records = [record for state in states.values() if (record := state.result or state.paused)]
        own = sum(record.seconds["total"] for record in records) / self._request.jobs
        # What took no time now was done by an earlier call: its time counts, too.
        self._earlier += max(0.0, own - took)
        overhead = max(0.0, took - own) * self._request.jobs / max(1, len(made))
        return [
            Attempt(trial, keys, cell, states[cell], overhead, None if epochs is None else epochs[trial])
            for trial, cell, keys in made
        ]

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
    share = math.ceil(_max_epochs(run) * _SHORT_SHARE)
    return max(1, min(_max_epochs(run), max(share, math.ceil(_LEAST_STEPS / _steps(run, rows)))))


def _steps(run: Run, rows: int) -> int:
    """Of the optimizer in an epoch."""
    return max(1, math.ceil(rows / (run.rows()[0] * run.train.accumulation_steps)))


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _searched_keys(run: Run, trial: Trial) -> Keys:
    """What a trial changes of its method's run: the three learning rates, all times a factor; and the rank, with an
    alpha that keeps the update's scale."""
    rates = dataclasses.asdict(run.train.learning_rate)
    keys: Keys = {f"train.learning_rate.{name}": float(f"{rate * trial.factor:.6g}") for name, rate in rates.items()}
    if trial.rank_factor != 1:
        of_method = _rank_and_alpha(run)
        assert of_method is not None, "such trials are of methods with a rank"
        more = math.sqrt(trial.rank_factor) if run.method.rank_stabilized else trial.rank_factor
        keys |= {"method.rank": of_method[0] * trial.rank_factor, "method.alpha": of_method[1] * more}
    return keys


def _rank_and_alpha(run: Run) -> tuple[int, float] | None:
    """Those of the run's method; None where it is no update of some rank."""
    if not {"rank", "alpha"} <= METHODS[run.method.name].options.keys():
        return None
    method: Any = run.build_method()
    return method.rank, method.alpha


def _leaves_the_rank_open(run: Run) -> bool:
    return _rank_and_alpha(run) is not None and run.method.rank is None and run.method.initial_rank is None


def _name(trial: Trial, keys: Keys) -> str:
    rank = f"_rank{keys['method.rank']}" if "method.rank" in keys else ""
    return f"{trial.method}_lr{keys['train.learning_rate.warmup']:.4g}{rank}"


# --- what is remembered ---


def _open_record(request: Request) -> dict[str, Any]:
    file = request.workdir / _SEARCH_FILE
    if not file.exists():
        record: dict[str, Any] = {"version": _VERSION, "rows": request.fingerprint}
        _write_record(request.workdir, record)
        return record
    try:
        record = read_json_object(file, error=_Damaged)
        if "data" in record or ("rows" in record and record.get("version") != _VERSION):
            raise UserError(
                f"{request.workdir} holds a search of an earlier version of jpeft, which decided otherwise; name "
                "another --workdir."
            )
        rows, decided = record["rows"], record.get("decided")
        if decided is not None:
            _plan_of(decided["plan"])
            rates = {(method, factor, 1) for method in request.methods for factor in FACTORS}
            known = rates | {(method, 1.0, RANK_FACTOR) for method in request.methods}
            if not decided["tried"] or not isinstance(decided["asked"], dict):
                raise _Damaged("nothing was tried")
            if decided["asked"].get("methods") == sorted(request.methods) and any(
                (method, factor, rank_factor) not in known for method, factor, rank_factor in decided["tried"]
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
