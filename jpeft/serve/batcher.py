"""Batches the rows of many requests: a queue on the event loop, and one thread that answers."""

import asyncio
import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from jpeft.serve.bank import UnknownAdapter
from jpeft.serve.engine import Answer, NoNumber, QueuedRow, Replaced

_log = logging.getLogger(__name__)
_FAILED = "the work failed; the server's log has the cause."
_NO_MORE = "the server no longer answers; its log has the cause, and it has to be restarted."


class QueueFull(Exception):
    """Raised if the queue has no room for a request's rows; `retry_after_seconds` estimates when it may have."""

    def __init__(self, retry_after_seconds: int):
        super().__init__("the queue is full; try again later.")
        self.retry_after_seconds = retry_after_seconds


class NotAnswered(Exception):
    """Raised for rows whose batch failed; the cause is in the log."""


@dataclasses.dataclass(frozen=True)
class _Waiting:
    row: QueuedRow
    answer: asyncio.Future[Answer]
    since: float  # of time.monotonic


class Batcher:
    """Answers queued rows in batches, first come first served.

    The oldest row decides what a batch is padded to; other queued rows join it if they fit. A batch starts when it is
    full or its oldest row has waited for `max_wait_seconds`; while it is answered, the next one fills. Everything but
    the answering runs on the event loop's thread.

    An error in a batch fails its rows only. If `run` itself ends, all waiting rows fail and no more are accepted.

    Attributes:
      running: whether rows are answered.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[QueuedRow]], Sequence[Answer | UnknownAdapter | Replaced | NoNumber]],
        *,
        fit_together: Callable[[QueuedRow, QueuedRow], bool],
        max_rows: int,
        max_wait_seconds: float,
        max_queue: int,
        on_batch: Callable[[int, float], None] = lambda rows, seconds: None,
    ):
        """Prepares the queue; `run` answers.

        Args:
          answer: called in a thread of its own with a batch; returns each row's answer, or the error for this row.
          fit_together: whether the second row may join a batch that is padded for the first.
          max_rows: of a batch.
          max_wait_seconds: how long a row waits for others to join its batch.
          max_queue: the most rows waiting.
          on_batch: called after each batch with its number of rows and its seconds.
        """
        self._answer, self._fit_together, self._on_batch = answer, fit_together, on_batch
        self._max_rows, self._max_wait_seconds, self._max_queue = max_rows, max_wait_seconds, max_queue
        self._queue: list[_Waiting] = []
        self._arrival = asyncio.Event()
        self._last_batch_seconds = 1.0
        self._on_their_way = 0
        self.running = self._ended = False

    @property
    def queued(self) -> int:
        """The number of waiting rows."""
        return len(self._queue)

    @contextlib.contextmanager
    def place_for(self, rows: int) -> Iterator[None]:
        """Reserves places in the queue while rows are prepared; `submit` them right after the block.

        Raises:
          QueueFull: there are not enough places.
        """
        self._require_place(rows)
        self._on_their_way += rows
        try:
            yield
        finally:
            self._on_their_way -= rows

    def _require_place(self, rows: int) -> None:
        taken = self.queued + self._on_their_way
        if taken + rows > self._max_queue:
            raise QueueFull(max(1, math.ceil(taken / self._max_rows * self._last_batch_seconds)))

    async def submit(self, rows: Sequence[QueuedRow]) -> list[Answer]:
        """Queues a request's rows and returns their answers. If it is cancelled, waiting rows leave the queue.

        Raises:
          QueueFull: there is no room for all rows; none is queued.
          UnknownAdapter: an adapter was removed meanwhile.
          Replaced: an adapter was replaced meanwhile by one with other settings.
          NotAnswered: the batch failed, or the batcher has stopped.
        """
        self._require_place(len(rows))
        if self._ended:
            raise NotAnswered(_NO_MORE)
        loop, now = asyncio.get_running_loop(), time.monotonic()
        waiting = [_Waiting(row, loop.create_future(), now) for row in rows]
        self._queue.extend(waiting)
        self._arrival.set()
        try:
            return await asyncio.gather(*(each.answer for each in waiting))
        finally:
            for each in waiting:
                each.answer.cancel()  # the request was given up; no effect on rows already answered
            self._queue = [each for each in self._queue if not each.answer.cancelled()]

    async def run(self) -> None:
        """Answers waiting rows batch by batch until it is cancelled."""
        self.running, self._ended = True, False
        try:
            with ThreadPoolExecutor(1, thread_name_prefix="answer") as thread:
                while True:
                    await self._answer_next(thread)
        except BaseException as error:
            if not isinstance(error, asyncio.CancelledError):
                _log.critical("answering ended", exc_info=error)
            raise
        finally:
            self.running, self._ended = False, True
            waiting, self._queue = self._queue, []
            for each in waiting:
                _settle(each.answer, NotAnswered(_NO_MORE))

    async def _answer_next(self, thread: ThreadPoolExecutor) -> None:
        batch = await self._next_batch()
        results: Sequence[Answer | Exception] = [NotAnswered(_FAILED)] * len(batch)
        started = time.monotonic()
        try:
            answering = asyncio.get_running_loop().run_in_executor(thread, self._answer, [each.row for each in batch])
            answers = await answering
            assert len(answers) == len(batch), "a row without an answer, or an answer without a row"
            results = answers
        except Exception:
            _log.exception("a batch of %d rows failed", len(batch))
        finally:  # on cancellation, too: waiting requests must end
            for each, result in zip(batch, results, strict=True):
                _settle(each.answer, result)
        self._last_batch_seconds = time.monotonic() - started
        try:
            self._on_batch(len(batch), self._last_batch_seconds)
        except Exception:
            _log.exception("a batch of %d rows was answered and not counted", len(batch))

    def _fitting(self, first: _Waiting) -> list[_Waiting]:
        """The queued rows that fit with the first, itself included; a row whose comparison raises fails with that."""
        fitting = []
        for each in self._queue:  # the first row is the first of the queue
            try:
                if self._fit_together(first.row, each.row):
                    fitting.append(each)
            except Exception:
                _log.exception("a row cannot be batched")
                _settle(each.answer, NotAnswered(_FAILED))
                if each is first:
                    break
        self._queue = [each for each in self._queue if not each.answer.done()]
        return fitting[: self._max_rows]

    async def _next_batch(self) -> list[_Waiting]:
        """Waits until a batch is full or due, and takes its rows out of the queue."""
        while True:
            self._arrival.clear()
            patience = None
            if self._queue:
                first = self._queue[0]
                batch = self._fitting(first)
                if not batch:
                    continue
                patience = first.since + self._max_wait_seconds - time.monotonic()
                if len(batch) == self._max_rows or patience <= 0:
                    taken = {id(each) for each in batch}
                    self._queue = [each for each in self._queue if id(each) not in taken]
                    return batch
            try:
                await asyncio.wait_for(self._arrival.wait(), patience)
            except TimeoutError:
                pass


def _settle(future: asyncio.Future[Answer], result: Answer | Exception) -> None:
    if future.done():  # the request was given up while the batch ran
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
