"""The training loop: steps, periodic evaluations, the best state kept, stop requests, checkpoints and resuming.

It serves both fine-tuning (`jpeft.train.loop`) and pretraining (`jpeft.pretrain.loop`), and knows no model, task or
config. It is given:

- the trainable tree with its optimizer state, the frozen tree, and the compiled programs over them;
- a `Schedule`, whose numbers are an argument of the update;
- a `Stream` of numbered micro-batches, determined by a seed and a position;
- evaluators with their intervals, and a `Monitor` that says which evaluation was the best.

Checkpoints, the log, signals and processes are handled by `jpeft.run`; a `Listener` shows progress to the user.
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

from jpeft.errors import RunFailed
from jpeft.eval.evaluators import Evaluator
from jpeft.mesh.layout import Layout
from jpeft.model.family import Batch
from jpeft.program import thread_compile_seconds
from jpeft.run.checkpoint import Checkpoints
from jpeft.run.metrics_log import MetricsLog, NoLog
from jpeft.run.processes import any_of, host_copy, is_first
from jpeft.run.stop import RunStopped, StopRequest
from jpeft.train.monitor import Monitor
from jpeft.train.programs import Programs
from jpeft.train.progress import Progress, read_progress
from jpeft.train.schedule import Schedule
from jpeft.train.step import TrainState
from jpeft.train.stream import Step, Stream


@dataclasses.dataclass(frozen=True)
class TimedEvaluator:
    """An evaluator, and the number of steps between its evaluations; it also runs after the last step."""

    evaluator: Evaluator
    every: int


@dataclasses.dataclass(frozen=True)
class Course:
    """The plan of a training run, without its model and data.

    Attributes:
      total_steps: the most optimizer steps.
      schedule: learning rates.
      evaluations: evaluators with their intervals.
      monitor: selects the best state and stops training early; None keeps the last state and never stops early.
      seed: of dropout masks.
      checkpoint_every_seconds: time between checkpoints; there is also one after every evaluation.
      remedy: advice for the error message when the loss becomes infinite or NaN.
    """

    total_steps: int
    schedule: Schedule
    evaluations: Sequence[TimedEvaluator]
    monitor: Monitor | None
    seed: int
    checkpoint_every_seconds: float
    remedy: str


class Listener:
    """Callbacks for showing the progress of a trainer; they are no-ops here."""

    @contextlib.contextmanager
    def steps(self, trainer: "Trainer") -> Iterator[Callable[[Step, float], None]]:
        """Entered around the steps up to the next evaluation; yields a callback for each step and its loss.

        The loss of a step is known while the next one is computed, so `trainer.step` may be one further than the step.
        """
        yield lambda step, loss: None

    @contextlib.contextmanager
    def evaluation(self, trainer: "Trainer", evaluator: Evaluator) -> Iterator[Callable[[int], None]]:
        """Entered around an evaluation; yields a callback for the number of rows just evaluated."""
        yield lambda rows: None

    def evaluated(self, trainer: "Trainer", numbers: Mapping[str, float], *, best: bool) -> None:
        """Called after the evaluations of a step.

        Args:
          trainer: the trainer.
          numbers: the metrics.
          best: whether they are the best so far.
        """


@dataclasses.dataclass(frozen=True)
class _UnreadStep:
    """An optimizer step that the devices may still be computing.

    Attributes:
      number: of the step, from 1.
      step: its batches.
      metrics: as the update returned them, on the devices.
    """

    number: int
    step: Step
    metrics: Mapping[str, Any]


class Trainer:
    """Trains a state to the end of its course, resuming from its checkpoint.

    Attributes:
      state: the trainable tree, the optimizer's state and the number of steps done.
      base: the frozen tree.
      best: the trainable tree of the best evaluation so far, on the host; None without a monitor.
      progress: everything else that a checkpoint holds.
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
        """Reads and writes nothing yet.

        Args:
          state, base: arrays as the layout places them.
          programs, stream, course, layout: what to train, on what, how long, and on which devices.
          progress: of a new run.
          directory: the run directory.
          report: called with a line about problems found in the directory.
          listener: shows progress.
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
        """The arrays of a checkpoint, from which training resumes bit for bit."""
        return {"state": self.state} | ({} if self.best is None else {"best": self.best})

    @contextlib.contextmanager
    def at_work(self) -> Iterator[bool]:
        """Opens the directory's checkpoints, resumes from the newest, and handles stop requests while the block runs.

        Yields:
          Whether there was a checkpoint.

        Raises:
          RunFailed: as `Checkpoints.restore` does.
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
        """Starts to write a checkpoint of the current state. Raises `RunFailed` as `Checkpoints.save`."""
        assert self._checkpoints is not None, "within at_work"
        # A step has up to two checkpoints, before and after its evaluations.
        self._checkpoints.save(2 * self.step + self.progress.evaluated, self.arrays(), self.progress)
        self._saved_at = time.monotonic()

    def stop_if_asked(self) -> None:
        """Saves and raises `Stopped` if any process of the run was asked to stop."""
        if any_of([self._stop.signal is not None])[0]:
            self._save_and_stop()

    def _save_and_stop(self) -> None:
        assert self._checkpoints is not None, "within at_work"
        name = signal.Signals(self._stop.signal or signal.SIGTERM).name
        self.save()
        self._checkpoints.finish()
        raise RunStopped(f"stopped by {name} after step {self.step}; saved to {self._directory}")

    def first_batch(self) -> tuple[Any, np.int32, np.int32, Batch]:
        """The arguments after adapter and base of the first `accumulate`: dropout key, step, micro-batch and batch."""
        step = next(self.stream.steps(self.stream.start()))
        return self._dropout_key, np.int32(0), np.int32(0), next(iter(step.batches))

    @property
    def rates(self) -> Schedule:
        """The learning rate schedule, the last argument of `update`, on the devices."""
        return self._rates

    # --- how far it is ---

    @property
    def out_of_patience(self) -> bool:
        """Whether early stopping ends the run."""
        return self.course.monitor is not None and self.course.monitor.out_of_patience(self.progress.history)

    @property
    def finished(self) -> bool:
        """Whether no step and no evaluation is left."""
        return not self._evaluation_is_due and (self.out_of_patience or self.step >= self.course.total_steps)

    def _is_done(self, until: int | None) -> bool:
        """Whether training is finished, or has reached a step and its evaluations."""
        return self.finished or (until is not None and self.step >= until and not self._evaluation_is_due)

    @property
    def _evaluation_is_due(self) -> bool:
        """Whether the run was stopped between a step and its evaluations."""
        return not self.progress.evaluated and bool(self._due_evaluations())

    def _due_evaluations(self) -> list[TimedEvaluator]:
        """The evaluations that follow the current step."""
        last = self.step == self.course.total_steps
        return [evaluation for evaluation in self.course.evaluations if last or self.step % evaluation.every == 0]

    def next_evaluation(self) -> int:
        """The step after which the next evaluation runs."""
        intervals = [evaluation.every for evaluation in self.course.evaluations]
        return min([*(self.step + every - self.step % every for every in intervals), self.course.total_steps])

    # --- the loop ---

    def train(self, *, until: int | None = None) -> None:
        """Runs all steps and evaluations that are left; to be called within `at_work`.

        Args:
          until: stop after this step and its evaluations; None for the end of the course.

        Raises:
          RunFailed: a loss is not finite, or the disk is full.
          Stopped: the run was asked to stop.
        """
        assert self._checkpoints is not None, "within at_work"
        step, evaluated = self.step, self.progress.evaluated

        def keep(record: Mapping[str, Any]) -> bool:
            if "step" in record:
                return record["step"] <= step
            return record["steps_done"] < step + evaluated

        log = MetricsLog(self._directory, steps_done=step, keep=keep, report=self._report) if is_first() else NoLog()
        self._saved_at = time.monotonic()
        with contextlib.closing(log):
            upcoming = self.stream.steps(self.progress.position)
            while not self._is_done(until):
                if not self._evaluation_is_due:
                    self._train_to_next_evaluation(upcoming, log)
                self._evaluate(log)
                self.save()
                if not self._is_done(until):
                    self.stop_if_asked()
            self._checkpoints.finish()

    def _train_to_next_evaluation(self, steps: Iterator[Step], log: MetricsLog | NoLog) -> None:
        until, unread = self.next_evaluation(), None
        with self._listener.steps(self) as on_step:
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
                    self.state, self._sums, metrics = self.programs.update(self.state, self._sums, self._rates)
                    if self.step + 1 < until:
                        upcoming = next(steps)  # prepared by the host while the device computes
                self.step += 1
                self.progress.position, self.progress.evaluated = step.position, False
                self.progress.add(step.counts)
                # Read one step late, so that the device need not wait for the host between two steps. With several
                # processes it still does, in `any_of`.
                if unread is not None:
                    self._report_step(unread, log, on_step)
                unread = _UnreadStep(self.step, step, metrics)
                due = time.monotonic() - self._saved_at >= self.course.checkpoint_every_seconds
                asked, due = any_of([self._stop.signal is not None, due])
                if asked or due:  # nothing is saved before its numbers are known to be finite
                    self._report_step(unread, log, on_step)
                    unread = None
                if asked:
                    self._save_and_stop()
                if due:
                    self.save()
            if unread is not None:
                self._report_step(unread, log, on_step)

    def _report_step(
        self, unread: _UnreadStep, log: MetricsLog | NoLog, on_step: Callable[[Step, float], None]
    ) -> None:
        """Waits for a step, checks its numbers and reports them."""
        with self.timed("train"):
            numbers = {name: float(unread.metrics[name]) for name in ("loss", "grad_norm", "learning_rate")}
        self._require_finite("loss", numbers["loss"], unread)
        self._require_finite("gradient's norm", numbers["grad_norm"], unread)
        log.step(step=unread.number, **self.stream.where(unread.step.position), **numbers)
        on_step(unread.step, numbers["loss"])

    def _evaluate(self, log: MetricsLog | NoLog) -> None:
        """Runs the evaluations that are due, and keeps the state if it is the best so far."""
        progress, monitor, numbers = self.progress, self.course.monitor, {}
        with self.timed("validation"):
            for evaluation in self._due_evaluations():
                with self._listener.evaluation(self, evaluation.evaluator) as advance:

                    def on_rows(rows: int, advance: Callable[[int], None] = advance) -> None:
                        advance(rows)
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

    def _require_finite(self, what: str, value: float, step: _UnreadStep | None = None) -> None:
        """Raises `RunFailed` if a number is infinite or NaN, naming the step and its rows.

        Args:
          what: the name of the number.
          value: the number.
          step: the step that it belongs to; None for an evaluation after the last step.
        """
        if math.isfinite(value):
            return
        assert self._checkpoints is not None, "within at_work"
        self._checkpoints.finish()
        position = self.progress.position if step is None else step.step.position
        where = "".join(f" ({name} {number})" for name, number in self.stream.where(position).items())
        named = "" if step is None else step.step.named()
        rows = f", {named}" if named else ""
        when = f"after step {self.step}" if step is None else f"at step {step.number}"
        raise RunFailed(
            f"the {what} is {value} {when}{where}{rows}; try {self.course.remedy}. Checkpoints from before it are kept."
        )

    @contextlib.contextmanager
    def timed(self, phase: str, *, compilation_apart: bool = True) -> Iterator[None]:
        """Adds the duration of the block to a phase.

        Args:
          phase: its name in `Progress.seconds`.
          compilation_apart: whether the time that this thread spent compiling goes to the phase `compile` instead.
        """
        seconds = self.progress.seconds
        started, compiled = time.perf_counter(), thread_compile_seconds()
        try:
            yield
        finally:
            compiling = thread_compile_seconds() - compiled if compilation_apart else 0.0
            seconds["compile"] += compiling
            seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - started - compiling


@functools.lru_cache(maxsize=16)  # shared by runs of one process with the same seed and devices
def _dropout_key(seed: int, whole: jax.sharding.NamedSharding) -> jax.Array:
    """A key of the device's own generator, which is reproducible and much cheaper than JAX's default."""
    return jax.jit(lambda: jax.random.key(seed, impl="rbg"), out_shardings=whole)()
