"""The decisions of a search, as pure functions of what it measured: the rate and rank of each method, and which methods
get a full run.

If one seed cannot tell two rates apart, the config's own is chosen. How long the full runs may be is decided in
`jpeft.recommend.budget`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from jpeft.judging import Baseline, good_enough_limit, tie_limit
from jpeft.words import counted

FINALISTS = 2  # methods that get a full run at least, if there are as many


@dataclasses.dataclass(frozen=True)
class Speed:
    """The speed of a method's short run.

    Attributes:
      train_row, validation_row: seconds per row and epoch.
      test_batch: seconds per batch of answers.
      once: seconds of loading and compiling.
    """

    train_row: float
    validation_row: float
    test_batch: float
    once: float


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A short run: a method at a learning rate and a rank, how long it trained, and how it ended.

    Attributes:
      factor: applied to the config's learning rates.
      learning_rate: the highest of the schedule.
      epochs: how many it was asked to train for; candidates are compared after equally many.
      rows: that it trained on.
      validation_loss: in nats per token; None if it failed.
      error: why it failed.
      speed: None if it failed.
      rank: of the update; None for a method without one.
      rank_factor: applied to the config's rank.
      stopped_after: the epochs that it trained for, if early stopping ended it before `epochs`; else None.
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
        """The epochs that it trained for."""
        return self.epochs if self.stopped_after is None else self.stopped_after

    @property
    def distance(self) -> float:
        """How far its rate and rank are from the config's own, on a logarithmic scale."""
        return abs(math.log(self.factor)) + abs(math.log(self.rank_factor))


@dataclasses.dataclass(frozen=True)
class JudgedCandidate:
    """A short run, whether it was chosen, and the reason in words."""

    candidate: Candidate
    chosen: bool
    why: str


def choose(candidates: Sequence[Candidate], baseline: Baseline | None = None) -> dict[str, Candidate]:
    """Chooses one candidate per method.

    That is the one with the lowest validation loss or, among those that tie with it, the one whose rate and rank are
    nearest to the config's own.

    Returns:
      The candidates by method, best method first: those that learned something before those that did not, then by loss.
      A method whose candidates all failed is missing.
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
    """Whether a method's loss is lower, by more than a tie, at a higher rate than the config's own.

    Then no lower rate is worth trying: the loss is taken to fall and then to rise with the rate, and short runs favour
    high rates, not low ones.

    Args:
      own: the candidates of one method.
    """
    by_factor = {c.factor: c.validation_loss for c in own if c.rank_factor == 1 and c.validation_loss is not None}
    higher = [loss for factor, loss in by_factor.items() if factor > 1]
    return bool(higher) and tie_limit(min(higher)) < by_factor.get(1.0, math.inf)


def survivors(candidates: Sequence[Candidate], baseline: Baseline | None = None) -> list[Candidate]:
    """The candidates that train on to the next comparison: the better half, and the best of each method.

    Half are kept since the rate whose loss falls fastest at first need not end lowest.
    """
    known = [c for c in candidates if c.validation_loss is not None]
    half = sorted(known, key=lambda c: (c.validation_loss, c.distance))[: math.ceil(len(candidates) / 2)]
    best = choose(candidates, baseline).values()
    return [c for c in known if c in half or c in best]


def left_behind(chosen: Mapping[str, Candidate]) -> dict[str, str]:
    """The methods that get no full run, with the reason: they are neither among the two best nor near the best.

    Args:
      chosen: each method's candidate, best first, all after equally much training.
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
    """Whether a candidate beats the baseline, which ignores the input; without a baseline, whether it has a loss."""
    loss = candidate.validation_loss
    return loss is not None and (baseline is None or baseline.is_beaten_by(loss))


def best_of_each(candidates: Sequence[Candidate], baseline: Baseline | None = None) -> dict[str, Candidate]:
    """Chooses as `choose` does, among the candidates of each method that were asked to train longest."""
    longest = {method: max(c.epochs for c in own) for method, own in _by_method(candidates).items()}
    return choose([c for c in candidates if c.epochs == longest[c.method]], baseline)


def _by_method(candidates: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    methods = dict.fromkeys(candidate.method for candidate in candidates)
    return {method: [c for c in candidates if c.method == method] for method in methods}


def explain(candidates: Sequence[Candidate], baseline: Baseline | None = None) -> list[JudgedCandidate]:
    """Each rate and rank that was tried, after its longest training, with the decision and its reason in words.

    Args:
      candidates: all of a search; a rate and rank that trained on appears once for each comparison.
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
                last[trial] = one  # one chosen at a comparison always takes part in the next
        for trial, one in last.items():
            judged.append(dataclasses.replace(one, why="; ".join([one.why, *before.get(trial, [])])))
    return judged


def _explained(own: Sequence[Candidate], baseline: Baseline | None, alone: str) -> list[JudgedCandidate]:
    """The candidates of one method after equally many epochs; `alone` is the reason of one without competitors."""
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
