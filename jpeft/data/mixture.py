"""Several files of rows in one run, mixed by rate: how much each gives to an epoch, and in which order.

As in T5's multi-task mixtures (Raffel et al. 2020, section 3.5.2) rows are drawn in the proportions of rates; here by
epoch: one has as many rows as all files have for training together, shared out by rate. A file with fewer rows than its
share repeats them, one with more gives others in the next epoch: each goes through all of its rows, in an order drawn
anew, before any comes again.
"""

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from jpeft.errors import UserError

PROPORTIONAL, EQUAL = "proportional", "equal"


def paths_of(path: str | None, mix: str | None) -> tuple[str | None, ...]:
    """The paths of rows: one, or with `data.mix` those that are listed with commas.

    Raises:
      UserError: fewer than two are mixed, or the rates are none.
    """
    if mix is None:
        return (path,)
    paths = tuple(part.strip() for part in (path or "").split(",") if part.strip())
    if len(paths) < 2:
        raise UserError(f"data.mix mixes several files and data.path is {path!r}; list them with commas: a.csv,b.csv.")
    rates_of(mix, [1] * len(paths))
    names_of(paths)
    return paths


def names_of(paths: Sequence[str | None]) -> tuple[str, ...]:
    """A name for each of several files: its own, with its directory where two have the same; "" for a single one."""
    if len(paths) == 1:
        return ("",)
    places = [Path(str(path)) for path in paths]
    names = [place.name for place in places]
    names = [
        name if names.count(name) == 1 else f"{place.absolute().parent.name}/{name}"
        for name, place in zip(names, places, strict=True)
    ]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"data.path names {name} twice; give each file once, under names that differ.")
    return tuple(names)


def rates_of(mix: str, sizes: Sequence[int]) -> list[float]:
    """Each file's share of an epoch, 1 together.

    Args:
      mix: `proportional` to the files' training rows, `equal`, or a rate for each, with commas.
      sizes: training rows of each file.

    Raises:
      UserError: it is none of these, not as many rates as files, or one that cannot be meant.
    """
    if mix in (PROPORTIONAL, EQUAL):
        rates = [float(size) if mix == PROPORTIONAL else 1.0 for size in sizes]
    else:
        try:
            rates = [float(part) for part in mix.split(",")]
        except ValueError:
            raise UserError(
                f"data.mix is {mix[:80]!r}; expected {PROPORTIONAL}, {EQUAL}, or a rate for each file: 3,1."
            ) from None
        if len(rates) != len(sizes):
            raise UserError(f"data.mix has {len(rates)} rates and data.path {len(sizes)} files; give a rate for each.")
        if not all(math.isfinite(rate) and rate > 0 for rate in rates):
            raise UserError(f"data.mix is {mix[:80]!r}; expected rates above 0.")
    total = sum(map(Fraction, rates))  # exact: floats of any size may be added up
    return [float(Fraction(rate) / total) for rate in rates]


def whole_shares(shares: Sequence[float | Fraction], total: int) -> list[int]:
    """Shares as whole numbers that add up to `total`: what does not come out even goes to the largest remainders."""
    whole = [math.floor(share) for share in shares]
    for i in sorted(range(len(shares)), key=lambda i: whole[i] - shares[i])[: total - sum(whole)]:
        whole[i] += 1
    return whole


@dataclasses.dataclass(frozen=True)
class Mix:
    """How an epoch is made of several files' training rows, which stand one file behind the other.

    Attributes:
      names: the names of the files, in order.
      sizes: training rows of each.
      quotas: rows that each gives to an epoch; together as many as there are rows.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    quotas: tuple[int, ...]

    @classmethod
    def of(cls, names: Sequence[str], sizes: Sequence[int], mix: str) -> "Mix":
        """Shares an epoch out by rate, as `whole_shares` does.

        Raises:
          UserError: as `rates_of`, or a rate is so small that a file would give no row.
        """
        total = sum(sizes)
        quotas = whole_shares([rate * total for rate in rates_of(mix, sizes)], total)
        for name, quota in zip(names, quotas, strict=True):
            if not quota:
                raise UserError(f"data.mix is {mix[:80]!r}, by which {name} gives no row of the {total:,} of an epoch.")
        return cls(tuple(names), tuple(sizes), tuple(quotas))

    def order(self, *, seed: int, epoch: int) -> np.ndarray:
        """Row numbers of an epoch, shuffled; a function of the seed and the epoch alone."""
        chosen, start = [], 0
        for number, (size, quota) in enumerate(zip(self.sizes, self.quotas, strict=True)):
            positions = np.arange(epoch * quota, (epoch + 1) * quota)  # in the file's rows, lap after lap
            laps = range(positions[0] // size, positions[-1] // size + 1)
            drawn = [np.random.default_rng([seed, number, lap]).permutation(size) for lap in laps]
            chosen.append(start + np.concatenate(drawn)[positions - laps[0] * size])
            start += size
        rows = np.concatenate(chosen)
        return rows[np.random.default_rng([seed, epoch]).permutation(len(rows))]

    def in_words(self) -> str:
        """How many rows of each file an epoch takes: `an epoch mixes a.csv 24 (4 times its 6 rows), b.csv 12 (...)`."""
        said = []
        for name, size, quota in zip(self.names, self.sizes, self.quotas, strict=True):
            said.append(f"{name} {quota:,} ({quota / size:.3g} times its {size:,} rows)")
        return f"an epoch mixes {', '.join(said)}"
