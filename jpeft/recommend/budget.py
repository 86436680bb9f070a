"""The time that full runs take, estimated from the measured short runs, and the full runs that fit into what is left.

A full run is never shorter than the short run that it was chosen by: not in epochs, not in rows, and so not in steps.
"""

import dataclasses
import heapq
import math
from collections.abc import Iterable, Mapping, Sequence

from jpeft.recommend.decision import Candidate, Speed

LEAST_TEST_ROWS = 100  # a full run is tested on at least these, if there are as many, however little time is left
# A short run's one test row may end early; a batch of a full test lasts as long as its longest answer.
_TEST_MARGIN = 2.0


@dataclasses.dataclass(frozen=True)
class FullRunSize:
    """The size of a full run as its config asks for it.

    Attributes:
      train, validation, test: rows.
      eval_batch: rows per batch of answers.
      zero_shot: whether the untuned model is tested, too.
      done: epochs that have been trained already.
    """

    epochs: int
    train: int
    validation: int
    test: int
    eval_batch: int
    zero_shot: bool
    done: int = 0


@dataclasses.dataclass(frozen=True)
class SearchPlan:
    """Which methods get a full run, and how long these are.

    Attributes:
      methods: best first.
      epochs: the most that each trains for.
      train, test: the most rows of each run; None for all.
      zero_shot: False if there is no time to test the untuned model.
      left_out: the other methods, and why.
      seconds: upper estimate until the last run has ended; a run may stop early.
      over: seconds by which the whole exceeds the time left; 0 if it fits.
    """

    methods: tuple[str, ...]
    epochs: int
    train: int | None
    test: int | None
    zero_shot: bool
    left_out: Mapping[str, str]
    seconds: float
    over: float = 0.0


def estimate_seconds(speed: Speed, full: FullRunSize) -> float:
    """Upper estimate of the seconds of a full run, from the measured speed of the method's short run."""
    each_epoch = speed.train_row * full.train + speed.validation_row * full.validation
    batches = math.ceil(full.test / full.eval_batch) * (2 if full.zero_shot else 1)
    return speed.once + max(0, full.epochs - full.done) * each_epoch + _TEST_MARGIN * batches * speed.test_batch


def makespan(seconds: Iterable[float], jobs: int) -> float:
    """Seconds until runs that take so long have all ended, if each starts, in this order, as soon as a job is free."""
    free_at = [0.0] * jobs
    for each in seconds:
        heapq.heapreplace(free_at, free_at[0] + each)
    return max(free_at)


def plan(
    chosen: Mapping[str, Candidate], wanted: Mapping[str, FullRunSize], seconds: float | None, *, jobs: int = 1
) -> SearchPlan:
    """Plans full runs that fit into the seconds left.

    First epochs are cut, to no fewer than a short run's; then methods are dropped, the worst first; then the last
    method trains on fewer rows, no fewer than its short run did; then it is tested on fewer rows and the untuned model
    not at all. That smallest run is planned even if it takes longer than the time left: without it there is no answer.

    Args:
      chosen: each method's candidate, best first.
      wanted: each method's full run as its config asks for it.
      seconds: the time left; None for no limit. With one, runs are started `jobs` at a time, when those before have
        ended; without one, as soon as a job is free.
      jobs: runs at once.
    """
    kept = list(chosen)
    most = max(wanted[method].epochs for method in kept)
    left_out: dict[str, str] = {}

    def cost(methods: Sequence[str], **limits: int | bool) -> float:
        each = []
        for method in methods:
            full = wanted[method]
            limited = {key: min(value, getattr(full, key)) for key, value in limits.items()}
            each.append(estimate_seconds(_speed(chosen[method]), dataclasses.replace(full, **limited)))
        if seconds is None:
            return makespan(each, jobs)
        return sum(max(each[i : i + jobs]) for i in range(0, len(each), jobs))

    if seconds is None:
        return SearchPlan(tuple(kept), most, None, None, True, {}, cost(kept))
    while True:
        fewest = min(most, max(chosen[method].epochs for method in kept))
        for epochs in range(most, fewest - 1, -1):
            if (needed := cost(kept, epochs=epochs)) <= seconds:
                return SearchPlan(tuple(kept), epochs, None, None, True, left_out, needed)
        if len(kept) == 1:
            break
        method = kept.pop()
        left_out[method] = "no time for a full run, and its short run was the worst of those left"
    (method,) = kept
    candidate, full = chosen[method], wanted[method]
    epochs = min(full.epochs, candidate.epochs)
    fewest_rows, least_test = min(full.train, candidate.rows), min(full.test, LEAST_TEST_ROWS)
    alone = [method]
    seconds_per_row = epochs * _speed(candidate).train_row
    room = max(0.0, seconds - cost(alone, epochs=epochs, train=0))
    rows = full.train if seconds_per_row * full.train <= room else int(room / seconds_per_row)
    if fewest_rows <= rows < full.train:
        needed = cost(alone, epochs=epochs, train=rows)
        return SearchPlan((method,), epochs, rows, None, True, left_out, needed)
    smallest: dict[str, int | bool] = {"epochs": epochs, "train": fewest_rows, "zero_shot": False}
    for test in (full.test, full.test // 2, full.test // 4, least_test):
        needed = cost(alone, **smallest, test=max(test, least_test))
        if needed <= seconds:
            break
    test = max(test, least_test)
    train, tested = (None if few == all_ else few for few, all_ in ((fewest_rows, full.train), (test, full.test)))
    return SearchPlan((method,), epochs, train, tested, False, left_out, needed, max(0.0, needed - seconds))


def least_seconds(candidate: Candidate, wanted: FullRunSize) -> float:
    """The seconds of the smallest full run of this candidate: time that a search must keep back for it."""
    return plan({candidate.method: candidate}, {candidate.method: wanted}, 0.0).seconds


def _speed(candidate: Candidate) -> Speed:
    assert candidate.speed is not None, "chosen among those that ended well"
    return candidate.speed
