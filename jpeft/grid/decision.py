"""What a search decides, as functions of what it has measured: which learning rate and rank of each method, which
methods go on, and what is run in full.

Three laws hold whatever was measured. A full run is never shorter than the short run that it was chosen by: not in
epochs, not in rows, and so not in steps. Where one seed cannot tell two rates apart the config's own is taken. What
does not fit into the time that is left is said, with how long it takes, before it is begun.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from jpeft.judging import Baseline, good_enough_limit, tie_limit
from jpeft.words import counted

FINALISTS = 2  # methods that are run to their ends at least, where there are as many
LEAST_TEST_ROWS = 100  # that a full run is tested on, where there are as many, however little time is left
# A short run's one test row may end early; a batch of a full test lasts as long as its longest answer.
_TEST_MARGIN = 2.0


@dataclasses.dataclass(frozen=True)
class Speed:
    """Seconds that a method's short run took: of a row in an epoch, of a batch of answers, of loading and compiling."""

    train_row: float
    validation_row: float
    test_batch: float
    once: float


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A short run: a method at a learning rate and a rank, how long it learned, and how it ended.

    Attributes:
      factor: on the config's learning rates; `learning_rate` is the highest of the schedule.
      epochs: how far it was to go; candidates are compared after equally many.
      rank: of an update, where the method has one; `rank_factor` is on the config's.
      validation_loss: None where it failed, with the `error`.
      speed: None where it failed.
      stopped_after: the epochs that it learned, where its loss stopped falling before `epochs`; None of others.
    """

    method: str
    factor: float
    learning_rate: float
    epochs: int
    rows: int
    validation_loss: float | None
    error: str = ""
    speed: Speed | None = None
    rank: int | None = None
    rank_factor: int = 1
    stopped_after: int | None = None

    @property
    def learned_epochs(self) -> int:
        """The epochs that it learned."""
        return self.epochs if self.stopped_after is None else self.stopped_after

    @property
    def distance(self) -> float:
        """How far its rate and rank are from the config's own."""
        return abs(math.log(self.factor)) + abs(math.log(self.rank_factor))


@dataclasses.dataclass(frozen=True)
class JudgedCandidate:
    """A short run with what was decided of it and why."""

    candidate: Candidate
    chosen: bool
    why: str


def choose(candidates: Sequence[Candidate], baseline: Baseline | None = None) -> dict[str, Candidate]:
    """Each method's candidate, the best method first; without methods of which none ended well.

    Of a method the rate and rank of the lowest validation loss; of those that tie with it the ones nearest to the
    config's own.
    Methods that have learned something come before those that have not.
    """
    chosen = {}
    for method in dict.fromkeys(candidate.method for candidate in candidates):
        known = [(c.validation_loss, c) for c in candidates if c.method == method and c.validation_loss is not None]
        if known:
            limit = tie_limit(min(loss for loss, _ in known))
            tied = [(c.distance, loss, c) for loss, c in known if loss <= limit]
            chosen[method] = min(tied, key=lambda one: one[:2])[2]
    order = lambda method: (not learned(chosen[method], baseline), chosen[method].validation_loss)
    return {method: chosen[method] for method in sorted(chosen, key=order)}


def gains_by_a_higher_rate(own: Sequence[Candidate]) -> bool:
    """Whether one method's loss is lower, by more than a tie, at a higher rate than the config's; then no lower one is
    worth a try.

    The loss is taken to fall and then to rise with the rate, and a few steps favour high rates, not low ones.
    """
    by_factor = {c.factor: c.validation_loss for c in own if c.rank_factor == 1 and c.validation_loss is not None}
    higher = [loss for factor, loss in by_factor.items() if factor > 1]
    return bool(higher) and tie_limit(min(higher)) < by_factor.get(1.0, math.inf)


def going_on(candidates: Sequence[Candidate], baseline: Baseline | None = None) -> list[Candidate]:
    """The better half of what was tried, and the best of each method: one more look decides between these.

    Args:
      candidates: all after a few epochs. The rate that falls fastest then need not be the one that ends lowest.
    """
    known = [c for c in candidates if c.validation_loss is not None]
    half = sorted(known, key=lambda c: (c.validation_loss, c.distance))[: math.ceil(len(candidates) / 2)]
    best = choose(candidates, baseline).values()
    return [c for c in known if c in half or c in best]


def left_behind(chosen: Mapping[str, Candidate]) -> dict[str, str]:
    """The methods that are not worth a full run, with why: neither of the two best nor near the best.

    Args:
      chosen: of each method, best first, all after equally much training.
    """
    methods = list(chosen)
    losses = {method: candidate.validation_loss for method, candidate in chosen.items()}
    kept = methods[:FINALISTS]
    lowest = min((loss for loss in losses.values() if loss is not None), default=math.inf)
    limit = good_enough_limit(lowest)
    return {
        method: f"after {counted(chosen[method].learned_epochs, 'epoch')} its validation loss, {loss:.4f}, was neither "
        f"of the {FINALISTS} lowest nor near the lowest, {lowest:.4f}; for a full run of it give --methods {method}"
        for method, loss in losses.items()
        if method not in kept and loss is not None and loss > limit
    }


def learned(candidate: Candidate, baseline: Baseline | None) -> bool:
    """Whether its loss is lower than that of an answer that never looks at the input; where that is known."""
    loss = candidate.validation_loss
    return loss is not None and (baseline is None or baseline.is_beaten_by(loss))


def best_of_each(candidates: Sequence[Candidate], baseline: Baseline | None = None) -> dict[str, Candidate]:
    """What `choose` says of those candidates of each method that learned longest: others were not worth it."""
    longest = {method: max(c.epochs for c in own) for method, own in _by_method(candidates).items()}
    return choose([c for c in candidates if c.epochs == longest[c.method]], baseline)


def _by_method(candidates: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    methods = dict.fromkeys(candidate.method for candidate in candidates)
    return {method: [c for c in candidates if c.method == method] for method in methods}


def explain(candidates: Sequence[Candidate], baseline: Baseline | None = None) -> list[JudgedCandidate]:
    """Each rate and rank that was tried, as far as it went, with what was decided of it, and the reason in words.

    Args:
      candidates: those that went on again, longer, with the same rate and rank, once for each look.
    """
    judged = []
    for own in _by_method(candidates).values():
        looks = sorted({candidate.epochs for candidate in own})
        last: dict[tuple[float, int], JudgedCandidate] = {}
        before: dict[tuple[float, int], list[str]] = {}
        for epochs in looks:
            alone = "the only one tried" if epochs == looks[0] else "the only one left of its method"
            for one in _explained([c for c in own if c.epochs == epochs], baseline, alone):
                trial = (one.candidate.factor, one.candidate.rank_factor)
                if trial in last:
                    earlier = last[trial].candidate
                    said = f"{earlier.validation_loss:.4f} after {counted(earlier.learned_epochs, 'epoch')}"
                    before.setdefault(trial, []).append(said)
                last[trial] = one  # what is chosen at one look is always at the next
        for trial, one in last.items():
            judged.append(dataclasses.replace(one, why="; ".join([one.why, *before.get(trial, [])])))
    return judged


def _explained(own: Sequence[Candidate], baseline: Baseline | None, alone: str) -> list[JudgedCandidate]:
    """The candidates of one method after equally many epochs; `alone` is said of one that has no other beside it."""
    known = [c.validation_loss for c in own if c.validation_loss is not None]
    chosen = next(iter(choose(own, baseline).values()), None)
    judged = []
    for candidate in own:
        loss = candidate.validation_loss
        if loss is None or chosen is None:
            judged.append(JudgedCandidate(candidate, False, f"failed: {candidate.error}"))
            continue
        lowest, tried = min(known), len(known)
        if candidate is chosen:
            why = alone if tried == 1 else "the lowest of its method"
            if tried > 1 and loss > lowest:
                why = f"ties with {lowest:.4f}, nearest to the config's own"
            why += _nothing_learned(candidate, baseline)
        elif loss <= tie_limit(lowest):
            why = f"a tie: {_named(chosen)} is nearer to the config's own"
        else:
            why = f"{_named(chosen)} has {chosen.validation_loss:.4f}"
        judged.append(JudgedCandidate(candidate, candidate is chosen, why))
    return judged


def _nothing_learned(candidate: Candidate, baseline: Baseline | None) -> str:
    if learned(candidate, baseline) or baseline is None:
        return ""
    return f"; has learned nothing yet: {baseline.loss:.4f} is had without looking at the input"


def _named(candidate: Candidate) -> str:
    """A candidate among those of its method: `× 3`, `× 1 of rank 8`."""
    return f"× {candidate.factor:.3g}" + (f" of rank {candidate.rank}" if candidate.rank_factor != 1 else "")


# --- time ---


@dataclasses.dataclass(frozen=True)
class FullRunSize:
    """A full run as the config wants it: its epochs, rows of each split, rows of a batch of answers, and whether the
    untuned model is tested, too; and how many of the epochs are done already."""

    epochs: int
    train: int
    validation: int
    test: int
    eval_batch: int
    zero_shot: bool
    done: int = 0


@dataclasses.dataclass(frozen=True)
class SearchPlan:
    """Which methods get a full run, and how long.

    Attributes:
      methods: best first.
      epochs: of each, at most.
      train, test: rows at most; None for all.
      zero_shot: False where there is no time to test the untuned model.
      left_out: the other methods, and why.
      seconds: that all of it takes, about and at most: a run may stop early. Over the number of jobs.
      over: so many seconds more than there are; 0 where it fits.
    """

    methods: tuple[str, ...]
    epochs: int
    train: int | None
    test: int | None
    zero_shot: bool
    left_out: Mapping[str, str]
    seconds: float
    over: float = 0.0


def seconds_of(speed: Speed, full: FullRunSize) -> float:
    """An upper bound of the seconds that a full run takes, from the measured speed of the method's short run."""
    each_epoch = speed.train_row * full.train + speed.validation_row * full.validation
    batches = math.ceil(full.test / full.eval_batch) * (2 if full.zero_shot else 1)
    return speed.once + max(0, full.epochs - full.done) * each_epoch + _TEST_MARGIN * batches * speed.test_batch


def plan(
    chosen: Mapping[str, Candidate], wanted: Mapping[str, FullRunSize], seconds: float | None, *, jobs: int = 1
) -> SearchPlan:
    """Plans full runs that fit into the seconds that are left; None for no limit.

    First epochs are cut, to no less than a short run's; then methods are left out, the worst first; then the one that
    is left gets fewer rows, no fewer than its short run had; then fewer test rows and no test of the untuned model.
    What is left then is run however long it takes: without it there is no answer.

    Args:
      chosen: of each method, best first; `wanted`: the full run that its config asks for.
    """
    kept = list(chosen)
    most = max(wanted[method].epochs for method in kept)
    left_out: dict[str, str] = {}

    def cost(methods: Sequence[str], **changes: int | bool) -> float:
        total = 0.0
        for method in methods:
            full = wanted[method]
            at_most = {key: min(value, getattr(full, key)) for key, value in changes.items()}
            total += seconds_of(_speed(chosen[method]), dataclasses.replace(full, **at_most))
        return total / jobs

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
    each = epochs * _speed(candidate).train_row / jobs
    without = cost(alone, epochs=epochs, train=0)
    room = max(0.0, seconds - without)
    rows = full.train if each * full.train <= room else int(room / each)
    if fewest_rows <= rows < full.train:
        needed = cost(alone, epochs=epochs, train=rows)
        return SearchPlan((method,), epochs, rows, None, True, left_out, needed)
    at_least: dict[str, int | bool] = {"epochs": epochs, "train": fewest_rows, "zero_shot": False}
    for test in (full.test, full.test // 2, full.test // 4, least_test):
        needed = cost(alone, **at_least, test=max(test, least_test))
        if needed <= seconds:
            break
    test = max(test, least_test)
    train, tested = (None if few == all_ else few for few, all_ in ((fewest_rows, full.train), (test, full.test)))
    return SearchPlan((method,), epochs, train, tested, False, left_out, needed, max(0.0, needed - seconds))


def least_seconds(candidate: Candidate, wanted: FullRunSize, *, jobs: int = 1) -> float:
    """The least seconds in which this candidate gives any result: time that a search must keep back for it."""
    return plan({candidate.method: candidate}, {candidate.method: wanted}, 0.0, jobs=jobs).seconds


def _speed(candidate: Candidate) -> Speed:
    assert candidate.speed is not None, "chosen among those that ended well"
    return candidate.speed
