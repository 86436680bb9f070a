"""A small search on a user's own rows: every method at a few learning rates in short, then each at its best in full.

Whatever is chosen is chosen by validation loss, the mean cross-entropy of a target token: the same rows and the same
tokens for every method, so losses may be compared. Test rows choose nothing: a short run tests one row that nobody
looks at, since a run has to, and a full run tests all of them once, at its end.

What has been run stands in the cells' directories, and what was decided in `search.json` beside them: a search that was
killed goes on with the same call.
"""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jpeft.config import Run
from jpeft.data.sources import load_rows
from jpeft.data.splits import draw
from jpeft.data.tasks import require_columns
from jpeft.errors import RunFailed, UserError
from jpeft.files import write_whole
from jpeft.grid.cells import Cell
from jpeft.grid.state import CellState, State, look

FACTORS = (1.0, 3.0, 1 / 3)  # of the config's learning rates, in the order in which they are tried
_SEARCH_FILE = "search.json"
_SHORT_SHARE = 1 / 3  # of the epochs of a full run
_ROWS_ON_A_BUDGET = 256  # of training and of validation in a short run, at most, where time is limited
_SHORT_RUNS_SHARE = 0.5  # of the budget: past it no further learning rate is begun

Keys = dict[str, Any]  # config keys and values, as flags set them


@dataclasses.dataclass(frozen=True)
class Request:
    """What to search.

    Attributes:
      configure: the run of a method with these config keys set.
      budget_seconds: None for no limit.
      rows: how many train, validate and test in a full run, by split.
      fingerprint: of the data, so that other rows are not taken for these.
      jobs: cells at once.
    """

    methods: tuple[str, ...]
    configure: Callable[[str, Mapping[str, Any]], Run]
    workdir: Path
    rows: Mapping[str, int]
    fingerprint: str
    budget_seconds: float | None = None
    jobs: int = 1


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A run of the search: a method at a learning rate, and how it ended."""

    method: str
    factor: float
    keys: Mapping[str, Any]
    cell: Cell
    seen: CellState

    @property
    def learning_rate(self) -> float:
        """The highest of its schedule."""
        rate = self.cell.run.train.learning_rate.warmup
        assert rate is not None, "Run.from_config fills it in"
        return rate

    @property
    def validation_loss(self) -> float | None:
        """The best over its epochs, in nats a token; None where it did not end well."""
        return self.seen.result["validation_loss"] if self.seen.result else None


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search did.

    Attributes:
      short: every short run.
      full: the run of each method at its best learning rate; some may have failed.
      epochs: of the full runs, at most.
      left_out: methods without a full run, and why.
      remarks: what the budget cost.
    """

    short: tuple[Attempt, ...]
    full: tuple[Attempt, ...]
    epochs: int
    left_out: Mapping[str, str]
    remarks: tuple[str, ...]


NameAndKeys = Callable[[str, float], tuple[str, Keys]]  # of the cell of a method and a factor
RunCells = Callable[[Sequence[Cell]], Mapping[Cell, CellState]]


def look_at_data(run: Run) -> dict[str, int]:
    """How many rows train, validate and test: before anything is begun, so that a wrong file is one error and not many.

    Raises:
      UserError: as `load_rows`, `require_columns` and `draw`.
    """
    task, data = run.build_task(), run.data
    found = load_rows(task, data.source, data.path, sample_seed=data.sample_seed)
    for split, columns in found.items():
        require_columns(task, split, columns)
    parts = draw(
        {split: len(next(iter(columns.values()), [])) for split, columns in found.items()},
        seed=data.split_seed,
        max_train=data.max_train,
        max_validation=data.max_validation,
        max_test=data.max_test,
    )
    return {name: len(part.rows) for name, part in parts.items()}


def fingerprint(path: Path) -> str:
    """Of a file's bytes, or of all the files of a directory."""
    total = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as opened:
                total.update(hashlib.file_digest(opened, "sha256").digest())
    return total.hexdigest()


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
        self._record = _open_record(request)

    def run(self) -> Found:
        short = self._short_runs()
        best = choose(short)
        if not best:
            raise RunFailed(f"no method got through; the first error: {short[0].seen.detail}")
        decided = self._decide(best, sorted({attempt.factor for attempt in short}))
        full, left_out = self._full_runs(best, decided)
        if left_out:
            decided["left_out"] |= left_out
            _write_record(self._request.workdir, self._record)
        failed = {a.method: a.seen.detail for a in short if a.method not in best}
        return Found(
            tuple(short),
            tuple(full),
            decided["epochs"],
            {**failed, **decided["left_out"]},
            tuple(self._remarks),
        )

    # --- short runs ---

    def _short_runs(self) -> list[Attempt]:
        """All at once; on a budget one learning rate of every method after the other, while there is time."""
        request = self._request
        if request.budget_seconds is None:
            return self._attempts([(method, factor) for method in request.methods for factor in FACTORS], self._short)
        done: list[Attempt] = []
        expected = 0.0
        before = self._decided()
        for factor in FACTORS:
            wanted = [(method, factor) for method in request.methods]
            # What an earlier call has decided stays, and what it has begun goes on.
            if before is not None:
                left_out = factor not in before["factors"]
            else:
                too_long = self._spent() + expected > _SHORT_RUNS_SHARE * request.budget_seconds
                left_out = too_long and not any(self._is_done(pair, self._short) for pair in wanted)
            if done and left_out:
                self._remarks.append(f"the budget left no time to try learning rates × {factor:.3g}")
                continue
            began, tried = self._spent(), self._attempts(wanted, self._short)
            own = sum(_own_seconds(attempt) for attempt in tried) / request.jobs
            # The first of a method loads and compiles what the next ones share.
            expected = own + (self._spent() - began - own) * (1.0 if done else 0.5)
            done += tried
        return done

    def _short(self, method: str, factor: float) -> tuple[str, Keys]:
        default = self._request.configure(method, {})
        epochs = _short_epochs(default)
        keys: Keys = {**_rates(default, factor), "train.max_epochs": epochs, "data.max_test": 1}
        keys["eval.zero_shot"] = False
        name = f"short_{method}_lr{_peak(keys):.4g}_epochs{epochs}"
        if self._request.budget_seconds is not None:
            for split in ("train", "validation"):
                keys[f"data.max_{split}"] = min(self._request.rows[split], _ROWS_ON_A_BUDGET)
            name += f"_rows{keys['data.max_train']}"
        return name, keys

    # --- full runs ---

    def _decide(self, best: Mapping[str, Attempt], factors: list[float]) -> dict[str, Any]:
        """How many epochs the full runs get and which methods get one: once, since the time that is left decides it."""
        request = self._request
        decided = self._decided()
        if decided is None:
            left = None if request.budget_seconds is None else request.budget_seconds - self._spent()
            epochs, left_out = fit(best, request, left)
            decided = {"asked": self._asked(), "factors": factors, "epochs": epochs, "left_out": left_out}
            self._record["decided"] = decided
            _write_record(request.workdir, self._record)
        wanted = max(_max_epochs(request.configure(method, {})) for method in best)
        if decided["epochs"] < wanted:
            self._remarks.append(f"the budget left no time for more than {decided['epochs']} of {wanted} epochs")
        return decided

    def _asked(self) -> dict[str, Any]:
        request = self._request
        return {"methods": sorted(request.methods), "budget_seconds": request.budget_seconds, "jobs": request.jobs}

    def _decided(self) -> dict[str, Any] | None:
        """What an earlier call with the same wishes decided."""
        decided = self._record.get("decided")
        return decided if decided is not None and decided["asked"] == self._asked() else None

    def _full_runs(
        self, best: Mapping[str, Attempt], decided: Mapping[str, Any]
    ) -> tuple[list[Attempt], dict[str, str]]:
        """Best first; on a budget not all at once, so that it can be kept where the estimate was wrong."""

        def full(method: str, factor: float) -> tuple[str, Keys]:
            default = self._request.configure(method, {})
            keys = _rates(default, factor)
            epochs = min(decided["epochs"], _max_epochs(default))
            if epochs < _max_epochs(default):
                keys["train.max_epochs"] = epochs
            return f"full_{method}_lr{_peak(keys):.4g}_epochs{epochs}", keys

        budget = self._request.budget_seconds
        wanted = [(attempt.method, attempt.factor) for attempt in best.values()]
        wanted = [pair for pair in wanted if pair[0] not in decided["left_out"]]
        together = len(wanted) if budget is None else self._request.jobs
        done: list[Attempt] = []
        left_out: dict[str, str] = {}
        for i in range(0, len(wanted), together):
            part = wanted[i : i + together]
            if budget is not None and done and self._spent() > budget:
                part = [pair for pair in part if self._is_done(pair, full)]
                left_out |= {pair[0]: "the budget was used up" for pair in wanted[i : i + together] if pair not in part}
            done += self._attempts(part, full)
        return done, left_out

    # --- cells ---

    def _cell(self, pair: tuple[str, float], name_and_keys: NameAndKeys) -> tuple[Cell, Keys]:
        name, keys = name_and_keys(*pair)
        return Cell(name, self._request.configure(pair[0], keys)), keys

    def _is_done(self, pair: tuple[str, float], name_and_keys: NameAndKeys) -> bool:
        cell, _ = self._cell(pair, name_and_keys)
        return look(cell, self._request.workdir).state == State.DONE

    def _attempts(self, wanted: Sequence[tuple[str, float]], name_and_keys: NameAndKeys) -> list[Attempt]:
        made = [(pair, *self._cell(pair, name_and_keys)) for pair in wanted]
        began = self._clock()
        states = self._run_cells([cell for _, cell, _ in made])
        attempts = [Attempt(*pair, keys, cell, states[cell]) for pair, cell, keys in made]
        for attempt in attempts:
            if attempt.seen.state == State.STALE:
                raise UserError(
                    f"{attempt.cell.directory(self._request.workdir)} holds work of another config "
                    f"({attempt.seen.detail}); name another --workdir."
                )
        # What took no time now was done by an earlier call: its time counts, too.
        own = sum(attempt.seen.result["seconds"]["total"] for attempt in attempts if attempt.seen.result)
        self._earlier += max(0.0, own / self._request.jobs - (self._clock() - began))
        return attempts

    def _spent(self) -> float:
        return self._clock() - self._began + self._earlier


def choose(short: Sequence[Attempt]) -> dict[str, Attempt]:
    """Each method's attempt of the lowest validation loss, the best method first; without those that got nowhere."""
    best: dict[str, Attempt] = {}
    known = [(attempt.validation_loss, attempt) for attempt in short if attempt.validation_loss is not None]
    for _, attempt in sorted(known, key=lambda pair: pair[0]):
        best.setdefault(attempt.method, attempt)
    return best


def fit(best: Mapping[str, Attempt], request: Request, seconds: float | None) -> tuple[int, dict[str, str]]:
    """How many epochs full runs may have, and which methods get none, so that all fit into the seconds that are left.

    Epochs are cut first, to the number of a short run; then methods go, the worst in the short runs first. The best one
    always runs.
    """
    kept = list(best)
    wanted = max(_max_epochs(request.configure(method, {})) for method in kept)
    if seconds is None:
        return wanted, {}
    fewest = max(1, math.ceil(wanted * _SHORT_SHARE))
    left_out: dict[str, str] = {}
    while True:
        lowest = 1 if len(kept) == 1 else fewest
        for epochs in range(wanted, lowest - 1, -1):
            if sum(expected_seconds(best[method], request, epochs) for method in kept) / request.jobs <= seconds:
                return epochs, left_out
        if len(kept) == 1:
            return 1, left_out
        left_out[kept.pop()] = "no time for a full run, and worst in the short ones"


def expected_seconds(attempt: Attempt, request: Request, epochs: int) -> float:
    """What a full run will take, from its short one: at most, since it may stop early."""
    result, run = attempt.seen.result, attempt.cell.run
    assert result is not None, "chosen among those that ended well"
    seconds = result["seconds"]
    train = seconds["train"] / max(1, result["train_examples"] * result["epochs_run"])
    validation = seconds["validation"] / max(1, result["validation_examples"] * result["epochs_run"])
    # A short run's one test row fills a batch of generation like any other.
    batches = math.ceil(request.rows["test"] / run.eval.batch_size)
    times = 1 + request.configure(attempt.method, {}).eval.zero_shot
    each_epoch = train * request.rows["train"] + validation * request.rows["validation"]
    return epochs * each_epoch + times * batches * seconds["test"] + seconds["compile"]


def _own_seconds(attempt: Attempt) -> float:
    """Of training, validating and testing, without what loading and compiling took."""
    seconds = attempt.seen.result["seconds"] if attempt.seen.result else {}
    return sum(seconds.get(phase, 0.0) for phase in ("train", "validation", "test"))


def _max_epochs(run: Run) -> int:
    assert run.train.max_epochs is not None, "Run.from_config fills it in"
    return run.train.max_epochs


def _short_epochs(run: Run) -> int:
    return max(1, math.ceil(_max_epochs(run) * _SHORT_SHARE))


def _rates(run: Run, factor: float) -> Keys:
    """The config's three learning rates, times a factor: what lies between them stays."""
    rates = dataclasses.asdict(run.train.learning_rate)
    return {f"train.learning_rate.{name}": float(f"{rate * factor:.6g}") for name, rate in rates.items()}


def _peak(keys: Keys) -> float:
    return keys["train.learning_rate.warmup"]


# --- what is remembered ---


def _open_record(request: Request) -> dict[str, Any]:
    file = request.workdir / _SEARCH_FILE
    if file.is_file():
        try:
            record = json.loads(file.read_text())
            data = record["data"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{file} is damaged; remove it to go on, or name another --workdir.") from None
        if data == request.fingerprint:
            return record
        raise UserError(f"{request.workdir} holds a search of other rows than --data has now; name another --workdir.")
    record: dict[str, Any] = {"data": request.fingerprint}
    _write_record(request.workdir, record)
    return record


def _write_record(workdir: Path, record: Mapping[str, Any]) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    with write_whole(workdir / _SEARCH_FILE) as beside:
        beside.write_text(json.dumps(record, indent=2) + "\n")
