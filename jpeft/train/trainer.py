"""Training, whatever is trained on whatever: steps, evaluations at their times, the best kept, stopped, resumed.

The one loop under fine-tuning (`jpeft.train.loop`) and pretraining (`jpeft.pretrain.loop`). It is given

- the trainable tree with its optimizer's state, the frozen tree, and the compiled programs over them;
- a `Schedule`, whose numbers are an argument of the update;
- a `Stream` of numbered micro-batches, a function of a seed and a position;
- evaluators with their times, and a `Monitor` that says which evaluation was the best;

and knows no model, no task and no config. What it reads and writes besides, a directory's checkpoints and log, signals
and processes, is `jpeft.run`'s; what a person sees of it is its `Listener`'s.
"""

import contextlib
import dataclasses
import functools
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from jpeft.errors import RunFailed, Stopped
from jpeft.eval.evaluators import Evaluator
from jpeft.mesh.layout import Layout
from jpeft.model.family import Batch
from jpeft.run.checkpoint import Checkpoints
from jpeft.run.metrics_log import MetricsLog, NoLog
from jpeft.run.processes import any_of, host_copy, is_first
from jpeft.run.stop import StopRequest
from jpeft.train.monitor import Monitor
from jpeft.train.programs import Programs
from jpeft.train.progress import Progress, read_progress
from jpeft.train.schedule import Schedule
from jpeft.train.step import TrainState
from jpeft.train.stream import Step, Stream


@dataclasses.dataclass(frozen=True)
class TimedEvaluator:
    """An evaluator and when it has its turn: every so many steps, and after the last."""

    evaluator: Evaluator
    every: int


@dataclasses.dataclass(frozen=True)
class Course:
    """The plan of a training run: steps, learning rates, evaluations. Its model and batches are not in it.

    Attributes:
      total_steps: optimizer steps at most.
      schedule: their learning rates.
      evaluations: what is judged on the way.
      monitor: by what the best state is kept and training stops early; None keeps the last and never does.
      seed: the seed of dropout masks.
      checkpoint_every_seconds: besides after every evaluation.
      remedy: what to try where the loss becomes infinite or NaN.
    """

    total_steps: int
    schedule: Schedule
    evaluations: Sequence[TimedEvaluator]
    monitor: Monitor | None
    seed: int
    checkpoint_every_seconds: float
    remedy: str


class Listener:
    """Hears how a trainer gets on, and does nothing with it: to be overridden by whoever shows it to a person."""

    @contextlib.contextmanager
    def steps(self, trainer: "Trainer") -> Iterator[Callable[[Step, float], None]]:
        """Around the steps up to the next evaluation; what it yields is told each step and its loss."""
        yield lambda step, loss: None

    @contextlib.contextmanager
    def evaluation(self, trainer: "Trainer", evaluator: Evaluator) -> Iterator[Callable[[int], None]]:
        """Around an evaluator's turn; what it yields is told of rows as they are done."""
        yield lambda rows: None

    def evaluated(self, trainer: "Trainer", numbers: Mapping[str, float], *, best: bool) -> None:
        """After the evaluations of a step, with their numbers, and whether they are the best so far."""


class Trainer:
    """Trains a state to the end of its course, from wherever its checkpoint is.

    Attributes:
      state: the trainable tree, its optimizer's state, steps done.
      base: the frozen tree.
      best: the trainable tree of the best evaluation so far, on the host; None without a monitor.
      progress: all else that a checkpoint holds.
      step: optimizer steps done.
    """

    def __init__(
        self,
        state: TrainState,
        base: nnx.State,
        programs: Programs,
        stream: Stream,
        course: Course,
        layout: Layout,
        progress: Progress,
        *,
        directory: Path,
        report: Callable[[str], None],
        listener: Listener,
    ):
        """Nothing is read or written yet.

        Args:
          state, base: where the layout has them.
          progress: of a run that begins.
          directory: the run directory.
          report: hears what is found in it.
        """
        self.state, self.base, self.programs, self.stream, self.course = state, base, programs, stream, course
        self.progress, self.layout = progress, layout
        self._directory, self._report, self._listener = directory, report, listener
        self.step = 0
        self.best = host_copy(state.adapter) if course.monitor else None
        self._sums = layout.place(programs.zero_sums(state.adapter))
        self._rates = layout.place(course.schedule)
        self._dropout_key = _dropout_key(course.seed, layout.whole)
        self._saved_at = time.monotonic()
        self._checkpoints: Checkpoints[Progress] | None = None
        self._stop = StopRequest()

    # --- a checkpoint's contents ---

    def arrays(self) -> dict[str, Any]:
        """The arrays to save in a checkpoint, from which training goes on bit for bit."""
        return {"state": self.state} | ({} if self.best is None else {"best": self.best})

    @contextlib.contextmanager
    def at_work(self) -> Iterator[bool]:
        """Opens the directory's checkpoints, goes to where the newest is, and saves when told to stop, within it.

        Yields whether there was one. Raises `RunFailed` as `Checkpoints.restore`.
        """
        checkpoints = Checkpoints(self._directory / "checkpoint", read_progress, report=self._report)
        with contextlib.closing(checkpoints), StopRequest() as stop:
            self._checkpoints, self._stop = checkpoints, stop
            restored = checkpoints.restore(self.arrays())
            if restored is not None:
                arrays, self.progress = restored
                self.state, self.best = arrays["state"], arrays.get("best")
                self.step = int(self.state.step)
            yield restored is not None

    def save(self) -> None:
        """Starts to write a checkpoint of now, unless there is one. Raises `RunFailed` as `Checkpoints.save`."""
        assert self._checkpoints is not None, "within at_work"
        # What is evaluated at a step comes after it.
        self._checkpoints.save(2 * self.step + self.progress.evaluated, self.arrays(), self.progress)
        self._saved_at = time.monotonic()

    def stop_if_asked(self) -> None:
        """Raises `Stopped`, after saving, where any process of the run was told to stop."""
        if any_of([self._stop.signal is not None])[0]:
            self._save_and_stop()

    def _save_and_stop(self) -> None:
        assert self._checkpoints is not None, "within at_work"
        name = signal.Signals(self._stop.signal or signal.SIGTERM).name
        self.save()
        self._checkpoints.finish()
        raise Stopped(
            f"stopped by {name} after step {self.step}; saved to {self._directory}: the same command goes on from "
            "there."
        )

    def first_batch(self) -> tuple[Any, np.int32, np.int32, Batch]:
        """What the program of gradients is given of the first micro-batch: the key, step, micro-batch and batch."""
        step = next(self.stream.steps(self.stream.start()))
        return self._dropout_key, np.int32(0), np.int32(0), next(iter(step.batches))

    @property
    def rates(self) -> Schedule:
        """What the program of updates is given of the learning rates: the schedule's numbers, on the devices."""
        return self._rates

    # --- how far it is ---

    @property
    def out_of_patience(self) -> bool:
        """Whether the monitor's number has not become better for long enough."""
        return self.course.monitor is not None and self.course.monitor.out_of_patience(self.progress.history)

    @property
    def finished(self) -> bool:
        """Whether no step and no evaluation is left."""
        return not self._owes_evaluation and (self.out_of_patience or self.step >= self.course.total_steps)

    def _rests(self, until: int | None) -> bool:
        """Whether it is finished, or done as far as to a step."""
        return self.finished or (until is not None and self.step >= until and not self._owes_evaluation)

    @property
    def _owes_evaluation(self) -> bool:
        """Whether it was stopped between a step and the evaluation after it."""
        return not self.progress.evaluated and bool(self._due())

    def _due(self) -> list[TimedEvaluator]:
        """The evaluations whose turn it is after this step."""
        last = self.step == self.course.total_steps
        return [evaluation for evaluation in self.course.evaluations if last or self.step % evaluation.every == 0]

    def next_evaluation(self) -> int:
        """The step after which the next evaluation is."""
        turns = [self.step + evaluation.every - self.step % evaluation.every for evaluation in self.course.evaluations]
        return min([*turns, self.course.total_steps])

    # --- the loop ---

    def train(self, *, until: int | None = None) -> None:
        """Runs every step and evaluation that is left, within `at_work`.

        Args:
          until: the evaluation after that step is the last for now; None for no such.

        Raises:
          RunFailed: a loss is not finite, or the disk is full.
          Stopped: it was told to.
        """
        assert self._checkpoints is not None, "within at_work"
        step, evaluated = self.step, self.progress.evaluated

        def is_done(record: Mapping[str, Any]) -> bool:
            if "step" in record:
                return record["step"] <= step
            return record["steps_done"] < step + evaluated

        log = MetricsLog(self._directory, steps_done=step, keep=is_done, report=self._report) if is_first() else NoLog()
        self._saved_at = time.monotonic()
        with contextlib.closing(log):
            upcoming = self.stream.steps(self.progress.position)
            while not self._rests(until):
                if not self._owes_evaluation:
                    self._train_to_next_evaluation(upcoming, log)
                self._evaluate(log)
                self.save()
                if not self._rests(until):
                    self.stop_if_asked()
            self._checkpoints.finish()

    def _train_to_next_evaluation(self, steps: Iterator[Step], log: MetricsLog | NoLog) -> None:
        until = self.next_evaluation()
        with self._listener.steps(self) as told:
            with self.timed("train"):
                upcoming = next(steps)
            while self.step < until:
                step = upcoming
                with self.timed("train"):
                    for micro, batch in enumerate(step.batches):
                        self._sums = self.programs.accumulate(
                            self._sums,
                            self.state.adapter,
                            self.base,
                            self._dropout_key,
                            np.int32(self.step),
                            np.int32(micro),
                            batch,
                        )
                    state, self._sums, metrics = self.programs.update(self.state, self._sums, self._rates)
                    if self.step + 1 < until:
                        upcoming = next(steps)  # made by the host while the device computes
                    measured = {name: float(metrics[name]) for name in ("loss", "grad_norm", "learning_rate")}
                self._require_finite("loss", measured["loss"], step)
                self._require_finite("gradient's norm", measured["grad_norm"], step)
                self.state, self.step = state, self.step + 1
                self.progress.position, self.progress.evaluated = step.position, False
                self.progress.add(step.counts)
                log.step(step=self.step, **self.stream.where(step.position), **measured)
                told(step, measured["loss"])
                due = time.monotonic() - self._saved_at >= self.course.checkpoint_every_seconds
                asked, due = any_of([self._stop.signal is not None, due])
                if asked:
                    self._save_and_stop()
                if due:
                    self.save()

    def _evaluate(self, log: MetricsLog | NoLog) -> None:
        """Asks every evaluator whose turn it is, and keeps the state where it is the best."""
        progress, monitor, numbers = self.progress, self.course.monitor, {}
        with self.timed("validation"):
            for evaluation in self._due():
                with self._listener.evaluation(self, evaluation.evaluator) as told:

                    def on_rows(rows: int, told: Callable[[int], None] = told) -> None:
                        told(rows)
                        self.stop_if_asked()

                    numbers |= evaluation.evaluator(self.state.adapter, self.base, on_rows)
        for name, value in numbers.items():
            if name.endswith("/loss") or (monitor is not None and name == monitor.name):
                what = name.removeprefix("validation/").replace("/", " ")  # `text loss` of `text/loss`
                self._require_finite(f"validation {what}", value)
        progress.history.append(numbers)
        progress.evaluated = True
        best = monitor is not None and monitor.is_best(progress.history)
        if best:
            self.best = host_copy(self.state.adapter)
        by_name = {name.replace("/", "_"): value for name, value in numbers.items()}
        log.validation(steps_done=self.step, **self.stream.where(progress.position), **by_name)
        self._listener.evaluated(self, numbers, best=best)

    def _require_finite(self, what: str, value: float, step: Step | None = None) -> None:
        """Raises `RunFailed` of a number that became infinite or NaN, naming the step and its rows.

        Args:
          step: the one that is at work; None of an evaluation, which is after the last one.
        """
        if math.isfinite(value):
            return
        assert self._checkpoints is not None, "within at_work"
        self._checkpoints.finish()
        position = self.progress.position if step is None else step.position
        where = "".join(f" ({name} {number})" for name, number in self.stream.where(position).items())
        rows = "" if step is None or not step.named() else f", {step.named()}"
        when = f"after step {self.step}" if step is None else f"at step {self.step + 1}"
        raise RunFailed(
            f"the {what} is {value} {when}{where}{rows}; try {self.course.remedy}. Checkpoints from before it are kept."
        )

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Adds the time of the block to a phase, and what it spent compiling to `compile`."""
        seconds = self.progress.seconds
        started, compiled = time.perf_counter(), self.programs.compile_seconds()
        try:
            yield
        finally:
            compiling = self.programs.compile_seconds() - compiled
            seconds["compile"] += compiling
            seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - started - compiling


@functools.lru_cache(maxsize=16)  # runs of one process with the same seed and devices share it
def _dropout_key(seed: int, whole: jax.sharding.NamedSharding) -> jax.Array:
    """A key of the device's own generator: its bits are much cheaper than the default's, and as repeatable."""
    return jax.jit(lambda: jax.random.key(seed, impl="rbg"), out_shardings=whole)()
