"""Rows of many requests gathered into batches: a queue on the event loop, and one thread that answers."""

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
_NO_MORE = "nothing is answered any more; the server's log has the cause, and it has to be started again."


class QueueFull(Exception):
    """No place for so many more rows. `retry_after_seconds` is when there might be."""

    def __init__(self, retry_after_seconds: int):
        super().__init__("the queue is full; try again later.")
        self.retry_after_seconds = retry_after_seconds


class NotAnswered(Exception):
    """The work on a batch failed; the log has the cause."""


@dataclasses.dataclass(frozen=True)
class _Waiting:
    row: QueuedRow
    answer: asyncio.Future[Answer]
    since: float  # of time.monotonic


class Batcher:
    """Answers rows in the order of their coming, several at once.

    The row that has waited longest decides what a batch is padded to; others of the queue join it where they fit. A
    batch leaves when it is full, or when its first row has waited for `max_wait_seconds`; while one is answered the
    next gathers. All but the answering happens on the event loop's thread.

    Whatever goes wrong with a batch is told to its rows and the next one is answered. Should `run` end all the same,
    `running` says so, those who wait are told, and nothing more is taken.

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
        """Answers nothing until `run`.

        Args:
          answer: called in a thread of its own, with at most `max_rows` rows that `fit_together` with the first; gives
            each row's answer, or why it has none.
          max_queue: rows that may wait.
          on_batch: called after each batch with its rows and the seconds that it took.
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
        """The number of rows that wait for their batch."""
        return len(self._queue)

    @contextlib.contextmanager
    def place_for(self, rows: int) -> Iterator[None]:
        """Keeps places in the queue while rows are made ready for it; `submit` them right after the block.

        Raises:
          QueueFull: there are not so many.
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
        """The answers to a request's rows. Cancelled, it takes those that still wait out of the queue.

        Raises:
          QueueFull: there is no place for all of them; none is queued.
          UnknownAdapter, Replaced: an adapter was removed meanwhile, or another has its name.
          NotAnswered: the work failed, or nothing is answered any more.
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
                each.answer.cancel()  # of a request that is given up; nothing to those that are answered
            self._queue = [each for each in self._queue if not each.answer.cancelled()]

    async def run(self) -> None:
        """Takes waiting rows in batches and answers them, one batch after the other, until it is cancelled."""
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
        finally:  # also when this is cancelled: nobody waits for what never comes
            for each, result in zip(batch, results, strict=True):
                _settle(each.answer, result)
        self._last_batch_seconds = time.monotonic() - started
        try:
            self._on_batch(len(batch), self._last_batch_seconds)
        except Exception:
            _log.exception("a batch of %d rows was answered and not counted", len(batch))

    def _fitting(self, first: _Waiting) -> list[_Waiting]:
        """The rows that may be answered with the first, itself among them; one that cannot be compared is told so."""
        fitting = []
        for each in self._queue:  # the first comes first: it has to fit itself
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
        """Waits for rows to come, and for others to join them; takes them out of the queue."""
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
    if future.done():  # its request was given up while the batch was answered
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
