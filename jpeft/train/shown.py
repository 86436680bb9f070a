"""Shows a fine-tuning run to its user: progress of each epoch, and the time left."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

from jpeft.eval.evaluators import Evaluator
from jpeft.program import thread_compile_seconds
from jpeft.run.display import Display
from jpeft.run.estimate import Size, duration, most_seconds_left
from jpeft.train.monitor import Monitor
from jpeft.train.stream import Step
from jpeft.train.trainer import Listener, Trainer
from jpeft.words import counted

_REPORT_FROM_SECONDS = 10.0  # a shorter estimate is not worth a line


class ShownEpochs(Listener):
    """A progress bar for each epoch's training and evaluations, and a line after each epoch."""

    def __init__(self, display: Display, monitor: Monitor, size: Size, *, steps_per_epoch: int, rows_per_step: int):
        self._display, self._monitor, self._size = display, monitor, size
        self._steps_per_epoch, self._rows_per_step = steps_per_epoch, rows_per_step
        self._estimated = False  # whether an estimate of the run's duration was printed within an epoch
        self._metric = monitor.name.rpartition("/")[2]

    @contextlib.contextmanager
    def steps(self, trainer: Trainer) -> Iterator[Callable[[Step, float], None]]:
        epoch, _ = divmod(trainer.step, self._steps_per_epoch)
        note = "" if trainer.programs.update.num_shapes else "compiling"
        rows_done, compiled = self._rows_in_epoch(trainer), thread_compile_seconds
        with self._display.task(f"epoch {epoch}", self._size.train, rows_done, note, compiled=compiled) as bar:

            def on_step(step: Step, loss: float) -> None:
                bar.advance(step.rows, f"loss {loss:.4f}")
                if not self._estimated and trainer.step % self._steps_per_epoch and (left := self._left(trainer)):
                    self._estimated = True
                    stops = "rising" if self._monitor.higher_is_better else "falling"
                    self._display.say(f"{left}; less where the validation {self._metric} stops {stops}")

            yield on_step

    @contextlib.contextmanager
    def evaluation(self, trainer: Trainer, evaluator: Evaluator) -> Iterator[Callable[[int], None]]:
        epoch = trainer.step // self._steps_per_epoch - 1
        name = " ".join(filter(None, (f"epoch {epoch}, {evaluator.split}", evaluator.what)))
        with self._display.task(name, evaluator.rows, compiled=thread_compile_seconds) as bar:
            yield bar.advance

    def evaluated(self, trainer: Trainer, numbers: Mapping[str, float], *, best: bool) -> None:
        monitor, history = self._monitor, trainer.progress.history
        at = monitor.best(history)
        assert at is not None, "the monitored metric was just computed"
        shown = f"validation loss {numbers['validation/loss']:.4f}"
        if self._metric != "loss":
            shown += f", {self._metric} {numbers[monitor.name]:.4f}"
        ended = trainer.out_of_patience and trainer.step < trainer.course.total_steps
        left = "" if trainer.finished else self._left(trainer)
        self._display.say(
            f"epoch {trainer.step // self._steps_per_epoch - 1}: {shown}"
            + (" (best so far)" if best else f" (best was {monitor.values(history)[at]:.4f} of epoch {at})")
            + (f"; no longer {'increasing' if monitor.higher_is_better else 'decreasing'}, stops" if ended else "")
            + (f"; {left}" if left else "")
        )

    def _rows_in_epoch(self, trainer: Trainer) -> int:
        return min(trainer.step % self._steps_per_epoch * self._rows_per_step, self._size.train)

    def _left(self, trainer: Trainer) -> str:
        """The time left in words; empty if unknown or negligible."""
        epochs_done = trainer.step // self._steps_per_epoch
        seconds = most_seconds_left(
            self._size,
            trainer.progress.seconds,
            epochs_done=epochs_done,
            rows_in_epoch=self._rows_in_epoch(trainer),
            steps_done=trainer.step,
        )
        if seconds is None or seconds < _REPORT_FROM_SECONDS:
            return ""
        epochs = counted(self._size.max_epochs - epochs_done, "epoch")
        return f"the whole run takes {duration(seconds)} more at most ({epochs} and the test)"
