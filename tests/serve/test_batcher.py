"""The batcher answers every row once, with its own answer, within the limits of batch size and waiting time."""

import asyncio
import threading
import time

import pytest

from jpeft.serve.bank import UnknownAdapter
from jpeft.serve.batcher import Batcher, NotAnswered, QueueFull
from jpeft.serve.engine import Answer, QueuedRow


class Echo:
    """An engine that answers a row with its first token and records its batches; it blocks while `gate` is closed."""

    def __init__(self):
        self.batches: list[list[int]] = []
        self.begun = 0
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, rows):
        self.begun += 1
        self.gate.wait(10)
        self.batches.append([row.tokens[0] for row in rows])
        return [UnknownAdapter(["gone"]) if row.adapter == "gone" else _answer(row.tokens[0]) for row in rows]


def _answer(number: int) -> Answer:
    return Answer(str(number), 1, True)


def row(number: int, *, adapter: str | None = None, length: int = 1) -> QueuedRow:
    return QueuedRow([number] * length, adapter, 1)


def in_batcher(test, answer, **changed):
    """Run `test(batcher)` while the batcher is running."""
    fits = lambda first, row: len(row.tokens) <= len(first.tokens)
    options = {"max_rows": 4, "max_wait_seconds": 0.02, "max_queue": 64, "fit_together": fits, **changed}

    async def run():
        batcher = Batcher(answer, **options)
        running = asyncio.create_task(batcher.run())
        try:
            return await asyncio.wait_for(test(batcher), 20)
        finally:
            running.cancel()

    return asyncio.run(run())


def test_each_request_has_its_own_answers_in_order():
    echo = Echo()

    async def test(batcher):
        requests = [batcher.submit([row(10 * i + j) for j in range(1 + i % 6)]) for i in range(40)]
        for i, answers in enumerate(await asyncio.gather(*requests)):
            assert answers == [_answer(10 * i + j) for j in range(1 + i % 6)]

    in_batcher(test, echo, max_queue=1000)
    answered = [number for batch in echo.batches for number in batch]
    assert len(answered) == len(set(answered)) == sum(1 + i % 6 for i in range(40))
    assert max(map(len, echo.batches)) == 4 and len(echo.batches) == -(-len(answered) // 4)


def test_a_lone_row_waits_for_others_only_so_long():
    async def test(batcher):
        started = time.monotonic()
        await batcher.submit([row(1)])
        return time.monotonic() - started

    assert 0.05 <= in_batcher(test, Echo(), max_wait_seconds=0.05) < 5


def test_a_full_batch_does_not_wait():
    async def test(batcher):
        await batcher.submit([row(i) for i in range(4)])

    in_batcher(test, Echo(), max_wait_seconds=3600.0)


def test_rows_that_do_not_fit_the_first_stay_in_line():
    echo = Echo()

    async def test(batcher):
        lengths = [2, 3, 1, 2, 3]
        return await batcher.submit([row(i, length=length) for i, length in enumerate(lengths)])

    assert in_batcher(test, echo) == [_answer(i) for i in range(5)]
    assert echo.batches == [[0, 2, 3], [1, 4]]


def test_a_full_queue_takes_none_of_a_request():
    echo = Echo()
    echo.gate.clear()

    async def test(batcher):
        held = asyncio.create_task(batcher.submit([row(i) for i in range(4)]))
        await until(lambda: echo.begun == 1)
        waiting = asyncio.create_task(batcher.submit([row(i) for i in range(4, 9)]))
        await until(lambda: batcher.queued == 5)
        with pytest.raises(QueueFull) as refused:
            await batcher.submit([row(9), row(10)])
        assert refused.value.retry_after_seconds >= 1 and batcher.queued == 5
        echo.gate.set()
        await asyncio.gather(held, waiting)

    in_batcher(test, echo, max_queue=6)
    assert 9 not in sum(echo.batches, [])


def test_what_is_given_up_leaves_the_queue():
    echo = Echo()
    echo.gate.clear()

    async def test(batcher):
        held = asyncio.create_task(batcher.submit([row(0)]))
        await until(lambda: echo.begun == 1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await batcher.submit([row(1), row(2)])
        held.cancel()
        assert batcher.queued == 0
        echo.gate.set()
        assert await batcher.submit([row(3)]) == [_answer(3)]

    in_batcher(test, echo, max_rows=1, max_wait_seconds=0.0)
    assert sum(echo.batches, []) == [0, 3]


def test_an_adapter_that_is_gone_fails_its_own_request_alone():
    async def test(batcher):
        return await asyncio.gather(
            batcher.submit([row(1)]), batcher.submit([row(2, adapter="gone"), row(3)]), return_exceptions=True
        )

    first, second = in_batcher(test, Echo())
    assert first == [_answer(1)] and isinstance(second, UnknownAdapter)


def test_work_that_fails_is_told_to_all_of_its_batch_and_ends_nothing(caplog):
    def answer(rows):
        if rows[0].tokens[0] == 13:
            raise ZeroDivisionError("a defect")
        return [_answer(row.tokens[0]) for row in rows]

    async def test(batcher):
        failed = await asyncio.gather(batcher.submit([row(13)]), batcher.submit([row(14)]), return_exceptions=True)
        return failed, await batcher.submit([row(15)])

    failed, after = in_batcher(test, answer)
    assert [type(error) for error in failed] == [NotAnswered, NotAnswered] and after == [_answer(15)]
    assert "a defect" in caplog.text


class Broken:
    """An engine that fails as configured, on row 13 only."""

    def fit_together(self, first, row):
        if 13 in (first.tokens[0], row.tokens[0]):
            raise ZeroDivisionError("a defect")
        return True

    def on_batch(self, rows, seconds):
        raise ZeroDivisionError("a defect")


def test_rows_that_cannot_be_compared_are_told_and_the_others_answered(caplog):
    async def test(batcher):
        numbers = (1, 13, 2, 13, 3)
        return await asyncio.gather(*(batcher.submit([row(i)]) for i in numbers), return_exceptions=True)

    answers = in_batcher(test, Echo(), fit_together=Broken().fit_together)
    assert [answers[i] for i in (0, 2, 4)] == [[_answer(1)], [_answer(2)], [_answer(3)]]
    assert isinstance(answers[1], NotAnswered) and isinstance(answers[3], NotAnswered)
    assert "cannot be batched" in caplog.text


def test_a_batch_that_cannot_be_counted_is_answered(caplog):
    async def test(batcher):
        return await batcher.submit([row(1)]), await batcher.submit([row(2)]), batcher.running

    assert in_batcher(test, Echo(), on_batch=Broken().on_batch) == ([_answer(1)], [_answer(2)], True)
    assert "not counted" in caplog.text


def test_an_answer_that_is_no_list_ends_nothing(caplog):
    answers = iter([None, [], [_answer(1)]])

    async def test(batcher):
        failed = [await asyncio.gather(batcher.submit([row(1)]), return_exceptions=True) for _ in range(2)]
        return [type(error) for (error,) in failed], await batcher.submit([row(1)])

    assert in_batcher(test, lambda rows: next(answers)) == ([NotAnswered, NotAnswered], [_answer(1)])


def test_when_it_ends_all_the_same_nobody_waits_and_nothing_is_taken(caplog):
    async def test():
        def ends(rows):
            raise SystemExit(3)  # not an `Exception`: ends the thread instead of failing the rows

        batcher = Batcher(ends, fit_together=lambda *_: True, max_rows=1, max_wait_seconds=0.0, max_queue=8)
        running = asyncio.create_task(_swallowed(batcher.run()))
        waiting = [asyncio.create_task(batcher.submit([row(i)])) for i in range(3)]
        for error in await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10):
            assert isinstance(error, NotAnswered)
        await running
        assert not batcher.running and batcher.queued == 0
        with pytest.raises(NotAnswered, match="restarted"):
            await batcher.submit([row(9)])

    async def _swallowed(run):
        try:
            await run
        except BaseException as error:  # would tear down the event loop
            assert isinstance(error, SystemExit)

    asyncio.run(test())
    assert "answering ended" in caplog.text


def test_places_are_kept_before_the_work_of_filling_them():
    async def test(batcher):
        with batcher.place_for(3):
            with pytest.raises(QueueFull):
                await batcher.submit([row(9), row(10)])
            with pytest.raises(QueueFull), batcher.place_for(2):
                raise AssertionError("there is no such place")
        return await batcher.submit([row(1), row(2), row(3)])

    assert in_batcher(test, Echo(), max_queue=4) == [_answer(1), _answer(2), _answer(3)]


async def until(condition):
    while not condition():
        await asyncio.sleep(0.005)
