"""Answers the rows of `jpeft predict` window by window and writes the answers."""

import signal
import time
from typing import Any

from jpeft.errors import Stopped
from jpeft.predict.answering import Answering
from jpeft.predict.call import Call
from jpeft.predict.meter import Meter
from jpeft.predict.output import Output
from jpeft.predict.questions import Question
from jpeft.predict.rows import Input, RowToAnswer, windows
from jpeft.run.stop import StopRequest


class Predicting:
    """The execution of a call on an input.

    Attributes:
      rows: the number of rows with an answer.
      seconds: spent answering, without compiling.
      answering: the loaded model; None while every row was answered by an earlier call.
    """

    def __init__(self, call: Call, given: Input, output: Output, meter: Meter):
        self._call, self._input, self._output, self._meter = call, given, output, meter
        self.rows = 0
        self.seconds = 0.0
        self.answering: Answering | None = None

    def run(self) -> None:
        """Answers every row that has no answer yet.

        Raises:
          UserError: a row cannot be used; the windows before it are answered.
          RunFailed: the output cannot be written.
          Stopped: on Ctrl-C or SIGTERM.
        """
        upcoming = windows(self._input.rows(self._call.prompt, report=self._meter.say), self._call.window)
        with StopRequest() as stop:
            try:
                while True:
                    with stop.ends_waiting():
                        window = next(upcoming, None)
                    if window is None:
                        break
                    self._answer(window, stop)
                self._output.finish()
            except KeyboardInterrupt:
                name = signal.Signals(stop.signal or signal.SIGINT).name
                raise Stopped(f"stopped by {name} after {self.rows:,} answers; {self._output.after_stop()}.") from None

    def _answer(self, window: list[RowToAnswer], stop: StopRequest) -> None:
        """Answers a whole window, even if a part was answered before, so that batches are always the same."""
        before = self._output.answered(window)
        size = sum(row.size for row in window)
        if before < len(window):
            answers = self._answers([row.question for row in window], size, stop)
            lines = [row.line(answer) for row, answer in zip(window, answers, strict=True)]
            self._output.write(lines[before:])
        else:
            self._meter.advance(len(window), size, answered=False)
        self.rows += len(window)

    def _answers(self, questions: list[Question], size: int, stop: StopRequest) -> list[dict[str, Any]]:
        if self.answering is None:
            self.answering = self._call.load(report=self._meter.say)
            self._meter.begins()

        def on_batch(rows: int) -> None:
            self._meter.advance(rows, size * rows / len(questions))
            if stop.signal is not None:
                raise KeyboardInterrupt

        started, compiled = time.perf_counter(), self.answering.program.compile_seconds
        answers = self.answering(questions, on_batch=on_batch)
        compiling = self.answering.program.compile_seconds - compiled
        self.seconds += time.perf_counter() - started - compiling
        return answers
