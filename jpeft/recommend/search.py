"""A search on a user's own rows by successive halving: many runs for a few epochs, the best of them to their ends.

Every method is started at a few learning rates and ranks, each as the full run that it may become. The runs are
compared three times, after a few epochs and then each time after twice as many: first the rates and ranks of each
method, last the methods with each other. The better half and the best of each method train on; finally the two best
methods, and those near the best, train to their ends. The others stay paused (Jamieson and Talwalkar 2016; Li et al.
2018, *Hyperband*). With a budget of minutes, short runs on few rows are compared instead, since it is not known whether
full ones fit.

All decisions are made by validation loss, the mean cross-entropy per target token: every method is evaluated on the
same rows and tokens, so losses are comparable. Test rows decide nothing: a short run on a budget tests a single row
(a run cannot test none) that nothing reads, a full run tests all rows once, at its end, and a paused one none.

The runs are in the cells' directories and the decisions in `search.json` beside them, so the same call resumes a
search that was killed. `jpeft.recommend.decision` and `jpeft.recommend.budget` decide; they run nothing.
"""

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jpeft.config import Run
from jpeft.data.prepare import prepare
from jpeft.errors import RunFailed, UserError
from jpeft.grid.cells import Cell
from jpeft.grid.state import CellState, State, look
from jpeft.judging import Baseline
from jpeft.model.tokenizer import Tokenizer
from jpeft.recommend.budget import FullRunSize, SearchPlan, least_seconds, makespan, plan
from jpeft.recommend.decision import (
    Candidate,
    JudgedCandidate,
    best_of_each,
    choose,
    explain,
    gains_by_a_higher_rate,
    left_behind,
    survivors,
)
from jpeft.recommend.record import open_record, recorded_plan, write_record
from jpeft.recommend.trials import (
    FACTORS,
    LOOKS,
    RANK_FACTOR,
    Attempt,
    Keys,
    NameAndKeys,
    Trial,
    has_open_rank,
    look_epochs,
    max_epochs,
    short_epochs,
    trial_keys,
    trial_name,
)
from jpeft.words import counted, listed

_ROWS_ON_A_BUDGET = 256  # the most training rows, and the most validation rows, of a short run on a budget
_SHORT_RUNS_SHARE = 0.5  # share of the budget after which no further rate or rank is tried


@dataclasses.dataclass(frozen=True)
class Request:
    """The request for a search: the methods, the data, and the time there is.

    Attributes:
      methods: names, each once.
      configure: makes the run of a method with these config keys set.
      workdir: holds the cells' directories and `search.json`.
      rows: how many rows a full run trains on, validates and tests, by split.
      fingerprint: digest of the data, to refuse resuming on other rows.
      budget_seconds: None for no limit.
      jobs: processes at once.
      lanes: runs of one method that a process trains side by side.
      baseline: loss and accuracy of an answer that ignores the input; None if the targets are not labels.
      report: called with a line for the user about what is planned and how long it takes, before it is started.
    """

    methods: tuple[str, ...]
    configure: Callable[[str, Mapping[str, Any]], Run]
    workdir: Path
    rows: Mapping[str, int]
    fingerprint: str
    budget_seconds: float | None = None
    jobs: int = 1
    lanes: int = 1
    baseline: Baseline | None = None
    report: Callable[[str], None] = lambda line: None

    def at_once(self, trials: Sequence[Trial]) -> int:
        """How many of these trials run at once, at most: only those of one method can share a process."""
        most_of_a_method = max(Counter(trial.method for trial in trials).values(), default=1)
        return self.jobs * min(self.lanes, most_of_a_method)


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """The result of a search: its short runs, the plan, and its full runs.

    Attributes:
      short: every short run with the decision on it.
      full: the run of each chosen method at its best rate and rank; some may have failed.
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
      counts: how many rows are in each split.
      digest: of the content of all rows, whatever file they are in.
      labels: how often each label occurs in each split; None if the targets are not labels.
    """

    counts: Mapping[str, int]
    digest: str
    labels: Mapping[str, Counter[str]] | None


RunCells = Callable[[Sequence[Cell], int | None], Mapping[Cell, CellState]]


def look_at_data(run: Run, tokenizer: Tokenizer, *, report: Callable[[str], None]) -> SearchRows:
    """Reads the rows as a run does, so that an error in them is raised once, before any run starts.

    Raises:
      UserError: as `prepare`.
    """
    data = prepare(run.build_task(), tokenizer, run.data_request(), report=report)
    labels = None
    if data.task.kind == "classification":
        labels = {split: Counter(row.target for row in rows) for split, rows in data.examples.items()}
    return SearchRows({split: len(rows) for split, rows in data.examples.items()}, data.digest, labels)


def search(request: Request, run_cells: RunCells, *, clock: Callable[[], float] = time.monotonic) -> SearchResult:
    """Starts the search, or resumes it.

    Args:
      run_cells: trains cells up to a number of epochs (None: to their ends) and returns the state of each; called
        several times.
      clock: seconds, for keeping to the budget.

    Raises:
      UserError: the directory holds a search of other rows, or work of another config.
      RunFailed: every run of every method failed.
    """
    return _Search(request, run_cells, clock).run()


class _Search:
    def __init__(self, request: Request, run_cells: RunCells, clock: Callable[[], float]):
        self._request, self._run_cells, self._clock = request, run_cells, clock
        self._began = clock()
        self._earlier = 0.0  # seconds of cells that an earlier call ran
        self._remarks: list[str] = []
        self._untried: dict[str, str] = {}  # methods that there was no time for, and why
        self._record = open_record(request.workdir, request.methods, request.fingerprint)

    def run(self) -> SearchResult:
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
        return SearchResult(
            tuple(explain(candidates, baseline)),
            tuple(full),
            decided,
            {**failed, **self._untried, **behind, **decided.left_out, **left_out},
            tuple(self._remarks),
        )

    # --- short runs ---

    def _trials(self) -> list[Trial]:
        """All trials: the config's own rate of every method first, then other rates, then other ranks."""
        methods = self._request.methods
        by_rate = [Trial(method, factor) for factor in FACTORS for method in methods]
        return by_rate + [Trial(m, 1.0, RANK_FACTOR) for m in methods if has_open_rank(self._request.configure(m, {}))]

    def _looks(self) -> list[Attempt]:
        """Successive halving without a limit of time.

        Returns:
          An attempt for each trial and each comparison that it took part in; those that trained furthest are last.
        """
        whole, trials = self._full(self._whole), self._trials()
        rates = [trial for trial in trials if trial.factor >= 1 and trial.rank_factor == 1]
        looks = {method: self._look_epochs(method) for method in self._request.methods}
        each = " or ".join(dict.fromkeys(listed([*map(str, dict.fromkeys(own))]) for own in looks.values()))
        self._request.report(
            f"{counted(len(rates), 'run')} or more (each method at its rates, the best at other ranks) are compared "
            f"after {each} of their epochs; the best go on from there, the others wait"
        )
        first = self._attempts(rates, whole, {trial: looks[trial.method][0] for trial in rates})
        further = self._worth_trying(trials, [one.candidate() for one in first])
        first += self._attempts(further, whole, {trial: looks[trial.method][0] for trial in further})
        made, candidates = first, [one.candidate() for one in first]
        for number in range(1, LOOKS):
            better = survivors(candidates, self._request.baseline)
            further = [one for one in better if looks[one.method][number] > one.epochs]
            trials = [Trial(one.method, one.factor, one.rank_factor) for one in further]
            trained_on = self._attempts(trials, whole, {trial: looks[trial.method][number] for trial in trials})
            made = made + trained_on
            candidates = [one for one in better if one not in further] + [one.candidate() for one in trained_on]
        return made

    def _worth_trying(self, trials: Sequence[Trial], rates: Sequence[Candidate]) -> list[Trial]:
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
        return look_epochs(self._request.configure(method, {}), self._request.rows["train"])

    def _runs_on_a_budget(self) -> list[Attempt]:
        """Short runs while there is time, the config's own rate of every method first.

        A resumed search tries what the earlier call had decided to try.
        """
        request, trials = self._request, self._trials()
        before = self._decided()
        if before is not None:
            done = self._attempts([trial for trial in trials if list(trial) in before["tried"]], self._short)
            self._remark_missed([trial for trial in trials if list(trial) not in before["tried"]], done)
            return done
        assert request.budget_seconds is not None
        request.report(
            f"budget: {_minutes(request.budget_seconds)}; one short and one full run are made however long they take"
        )
        done: list[Attempt] = []
        missed: list[Trial] = []

        def attempt(trials: Sequence[Trial], share: float) -> None:
            together = request.at_once(trials)
            for i in range(0, len(trials), together):
                part = trials[i : i + together]
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
        order = lambda trial: (trial.rank_factor, FACTORS.index(trial.factor), by_place[trial.method])
        attempt(sorted((trial for trial in others if trial.method in best), key=order), _SHORT_RUNS_SHARE)
        self._remark_missed(missed, done)
        return done

    def _has_time(self, done: Sequence[Attempt], share: float) -> bool:
        """Whether there is time for another short run within this share of the budget, and for a full run after it."""
        request = self._request
        assert request.budget_seconds is not None
        next_one = max(attempt.own_seconds + attempt.overhead for attempt in done)
        chosen = choose([attempt.candidate() for attempt in done], request.baseline)
        best = next(iter(chosen.values()), None)
        kept_back = least_seconds(best, self._wanted(best.method)) if best else next_one
        # Further rates of a method are worth less than a full run of another one.
        return self._spent() + next_one + kept_back <= request.budget_seconds and (
            self._spent() + next_one <= share * request.budget_seconds
        )

    def _remark_missed(self, missed: Sequence[Trial], done: Sequence[Attempt]) -> None:
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
        """The name and keys of a short run on a budget: a run to its end, on few rows for few epochs."""
        request = self._request
        default = request.configure(trial.method, {})
        keys = trial_keys(default, trial) | {"data.max_test": 1}
        for split in ("train", "validation"):
            keys[f"data.max_{split}"] = min(request.rows[split], _ROWS_ON_A_BUDGET)
        rows = keys["data.max_train"]
        keys["train.max_epochs"] = epochs = short_epochs(default, rows)
        keys["eval.zero_shot"] = False
        return f"short_{trial_name(trial, keys)}_epochs{epochs}_rows{rows}", keys

    # --- full runs ---

    def _wanted(self, method: str) -> FullRunSize:
        """The full run of a method as its config asks for it."""
        run, rows = self._request.configure(method, {}), self._request.rows
        return FullRunSize(
            epochs=max_epochs(run),
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
        most = max(max_epochs(self._request.configure(method, {})) for method in self._request.methods)
        return SearchPlan(self._request.methods, most, None, None, True, {}, 0.0)

    def _decide(self, chosen: Mapping[str, Candidate], tried: Sequence[Trial]) -> SearchPlan:
        """Plans the full runs. The plan is recorded and kept when resuming, since it depends on the time left."""
        request = self._request
        before = self._decided()
        if before is not None:
            return recorded_plan(before["plan"])
        left = None if request.budget_seconds is None else request.budget_seconds - self._spent()
        wanted = {method: self._wanted(method) for method in chosen}
        made = plan(chosen, wanted, left, jobs=request.jobs)
        self._record["decided"] = {
            "asked": self._asked(),
            "tried": [list(trial) for trial in tried],
            "plan": dataclasses.asdict(made),
        }
        write_record(request.workdir, self._record)
        return made

    def _asked(self) -> dict[str, Any]:
        request = self._request
        return {
            "methods": sorted(request.methods),
            "budget_seconds": request.budget_seconds,
            "jobs": request.jobs * request.lanes,
        }

    def _decided(self) -> dict[str, Any] | None:
        """The decision of an earlier call with the same methods, budget and jobs; None without one."""
        decided = self._record.get("decided")
        return decided if decided is not None and decided["asked"] == self._asked() else None

    def _full(self, decided: SearchPlan) -> NameAndKeys:
        def full(trial: Trial) -> tuple[str, Keys]:
            default = self._request.configure(trial.method, {})
            keys = trial_keys(default, trial)
            epochs = min(decided.epochs, max_epochs(default))
            name = f"full_{trial_name(trial, keys)}_epochs{epochs}"
            if epochs < max_epochs(default):
                keys["train.max_epochs"] = epochs
            for split, rows in (("train", decided.train), ("test", decided.test)):
                if rows is not None:
                    keys[f"data.max_{split}"] = rows
                    name += f"_{split}{rows}"
            keys["eval.zero_shot"] = decided.zero_shot
            return name, keys

        return full

    def _full_runs(self, chosen: Mapping[str, Candidate], decided: SearchPlan) -> tuple[list[Attempt], dict[str, str]]:
        """Runs the chosen methods to their ends, best first.

        On a budget only `jobs` are started at once, so that the budget is kept even if the estimate was too low.

        Returns:
          The full runs; and the methods that no time was left for, with the reason.
        """
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
                last = max(attempt.own_seconds + attempt.overhead for attempt in done)
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
        most = max(max_epochs(request.configure(method, {})) for method in decided.methods)
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
        """Runs these trials for the given epochs; to their ends if `epochs` is None."""
        made = [(trial, *self._cell(trial, name_and_keys)) for trial in wanted]
        by_epochs: dict[int | None, list[Cell]] = {}
        for trial, cell, _ in made:
            by_epochs.setdefault(None if epochs is None else epochs[trial], []).append(cell)
        began, states = self._clock(), {}
        for pause_after, cells in by_epochs.items():
            states |= self._run_cells(cells, pause_after)
        took = self._clock() - began
        for _, cell, _ in made:
            if states[cell].state == State.STALE:
                raise UserError(
                    f"{cell.directory(self._request.workdir)} holds work of another config "
                    f"({states[cell].detail}); name another --workdir."
                )
        jobs, own = self._request.at_once(wanted), 0.0
        for cells in by_epochs.values():
            records = [record for cell in cells if (record := states[cell].result or states[cell].paused)]
            own += makespan([record.seconds["total"] for record in records], jobs)
        # What took no time now was done by an earlier call: its time counts, too.
        self._earlier += max(0.0, own - took)
        in_a_row = sum(math.ceil(len(cells) / jobs) for cells in by_epochs.values())  # runs of a job, the most
        overhead = max(0.0, took - own) / max(1, in_a_row)
        return [
            Attempt(trial, keys, cell, states[cell], overhead, None if epochs is None else epochs[trial])
            for trial, cell, keys in made
        ]

    def _spent(self) -> float:
        return self._clock() - self._began + self._earlier


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"
