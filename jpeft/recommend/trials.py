"""What a search runs: trials (a method, a learning rate, a rank), their config keys, and how each run ended."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jpeft.config import Run
from jpeft.grid.cells import Cell
from jpeft.grid.state import CellState
from jpeft.peft.methods import METHODS
from jpeft.recommend.decision import Candidate, Speed
from jpeft.results import PausedRecord, RunRecord

FACTORS = (1.0, 3.0, 1 / 3)  # applied to the config's learning rates, in the order in which they are tried
RANK_FACTOR = 4  # applied to the config's rank
LOOKS = 3  # comparisons of the trials, each after twice as many epochs as the one before
_SHORT_SHARE = 1 / 3  # share of a full run's epochs after which methods are compared
_FIRST_LOOK_SHARE = 1 / 4  # share of these epochs after which the rates and ranks of a method are first compared
# Optimizer steps before methods, and rates of one method, are compared; after fewer, differences are chance.
_LEAST_STEPS = 30
_LEAST_STEPS_OF_A_RATE = 20

Keys = dict[str, Any]  # config keys and values, as flags set them


class Trial(NamedTuple):
    """A method with a factor on its config's learning rates and one on its rank."""

    method: str
    factor: float
    rank_factor: int = 1


NameAndKeys = Callable[[Trial], tuple[str, Keys]]  # a trial's cell name and config keys


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A trial that has been run for some epochs or to its end.

    Attributes:
      keys: the config keys that the trial sets.
      seen: the state of its cell afterwards.
      overhead: seconds spent outside the run itself (starting a worker, loading the model); 0 if it was done before.
      epochs: how many epochs it was asked to train for; None for a run to its end.
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
        """The factor on the config's learning rates."""
        return self.trial.factor

    @property
    def learning_rate(self) -> float:
        """The highest learning rate of its schedule."""
        rate = self.cell.run.train.learning_rate.warmup
        assert rate is not None, "Run.from_config fills it in"
        return rate

    @property
    def own_seconds(self) -> float:
        """Seconds of all phases of a finished run; 0 without a result."""
        return self.seen.result.seconds["total"] if self.seen.result else 0.0

    @property
    def validation_loss(self) -> float | None:
        """The lowest validation loss of the first `epochs` epochs, in nats per token; None without a record."""
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
        """Seconds per batch of the untuned model's test; 0 if this run did not test it."""
        run, record = self.cell.run, self._record
        if record is None or not run.eval.zero_shot:
            return 0.0
        return record.seconds.get("zero_shot", 0.0) / math.ceil(test_rows / run.rows()[1])

    def candidate(self, test_batch: float = 0.0) -> Candidate:
        """The attempt as `jpeft.recommend.decision` takes it: numbers only, no files.

        Args:
          test_batch: seconds per batch of answers, used if this run has not tested its model.
        """
        train, record, loss = self.cell.run.train, self._record, self.validation_loss
        assert train.max_epochs is not None, "Run.from_config fills it in"
        rank, _ = _rank_and_alpha(self.cell.run) or (None, None)
        requested = train.max_epochs if self.epochs is None else min(self.epochs, train.max_epochs)
        trained = requested if record is None else min(len(record.validation_losses), requested)
        candidate = Candidate(
            method=self.method,
            factor=self.factor,
            learning_rate=self.learning_rate,
            epochs=requested,
            stopped_after=trained if trained < requested else None,
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


def max_epochs(run: Run) -> int:
    """The run's `train.max_epochs`, which `Run.from_config` always fills in."""
    assert run.train.max_epochs is not None, "Run.from_config fills it in"
    return run.train.max_epochs


def short_epochs(run: Run, rows: int) -> int:
    """Epochs of a short run: a third of the full run's, or more if that is too few optimizer steps to judge by."""
    share = math.ceil(max_epochs(run) * _SHORT_SHARE)
    return max(1, min(max_epochs(run), max(share, math.ceil(_LEAST_STEPS / _steps(run, rows)))))


def look_epochs(run: Run, rows: int) -> tuple[int, ...]:
    """The epochs after which trials are compared: first those of one method, last the methods with each other."""
    last = short_epochs(run, rows)
    first = max(math.ceil(last * _FIRST_LOOK_SHARE), math.ceil(_LEAST_STEPS_OF_A_RATE / _steps(run, rows)))
    return tuple(min(first * 2**look, last) for look in range(LOOKS - 1)) + (last,)


def _steps(run: Run, rows: int) -> int:
    """Optimizer steps per epoch."""
    return max(1, math.ceil(rows / (run.rows()[0] * run.train.accumulation_steps)))


def trial_keys(run: Run, trial: Trial) -> Keys:
    """The config keys that a trial changes in its method's run.

    All three learning rates of the schedule are multiplied by the factor. With another rank, alpha changes so that the
    scale of the update stays.
    """
    rates = dataclasses.asdict(run.train.learning_rate)
    keys: Keys = {f"train.learning_rate.{name}": float(f"{rate * trial.factor:.6g}") for name, rate in rates.items()}
    if trial.rank_factor != 1:
        rank_and_alpha = _rank_and_alpha(run)
        assert rank_and_alpha is not None, "ranks are tried only of methods that have one"
        rank, alpha = rank_and_alpha
        alpha_factor = math.sqrt(trial.rank_factor) if run.method.rank_stabilized else trial.rank_factor
        keys |= {"method.rank": rank * trial.rank_factor, "method.alpha": alpha * alpha_factor}
    return keys


def trial_name(trial: Trial, keys: Keys) -> str:
    """A part of the cell's name: method, highest learning rate and, if the trial sets it, the rank."""
    rank = f"_rank{keys['method.rank']}" if "method.rank" in keys else ""
    return f"{trial.method}_lr{keys['train.learning_rate.warmup']:.4g}{rank}"


def has_open_rank(run: Run) -> bool:
    """Whether the run's method has a rank and the config does not set it."""
    return _rank_and_alpha(run) is not None and run.method.rank is None and run.method.initial_rank is None


def _rank_and_alpha(run: Run) -> tuple[int, float] | None:
    """Rank and alpha of the run's method; None for a method without a rank."""
    if not {"rank", "alpha"} <= METHODS[run.method.name].options.keys():
        return None
    method: Any = run.build_method()
    return method.rank, method.alpha
