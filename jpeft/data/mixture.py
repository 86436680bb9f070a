"""Mixes the rows of several files in one run by rate.

As in T5's multi-task mixtures (Raffel et al. 2020, section 3.5.2) rows are drawn in proportion to rates. An epoch has
as many rows as all files have training rows together, divided among the files by rate. A file with fewer rows than its
share repeats them; one with more continues with the others in the next epoch. Each file passes through all of its rows,
in a newly shuffled order, before it repeats one.
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
    """Returns the paths of rows: `path` alone, or with `data.mix` the paths that it lists, separated by commas.

    Raises:
      UserError: fewer than two paths are listed, two have the same name, or the rates are malformed.
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
    """Returns a name for each of several files, with its directory if two have the same name; "" for a single file."""
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
    """Returns each file's share of an epoch; the shares sum to 1.

    Args:
      mix: `proportional` (to the number of training rows), `equal`, or a rate for each file, separated by commas.
      sizes: number of training rows of each file.

    Raises:
      UserError: `mix` is malformed, has another number of rates than there are files, or a rate that is not above 0.
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
    total = sum(map(Fraction, rates))  # exact, so that large rates do not overflow
    return [float(Fraction(rate) / total) for rate in rates]


def whole_shares(shares: Sequence[float | Fraction], total: int) -> list[int]:
    """Rounds shares to integers that sum to `total`, by the largest-remainder method."""
    whole = [math.floor(share) for share in shares]
    for i in sorted(range(len(shares)), key=lambda i: whole[i] - shares[i])[: total - sum(whole)]:
        whole[i] += 1
    return whole


@dataclasses.dataclass(frozen=True)
class Mix:
    """How an epoch mixes the training rows of several files, which are numbered file after file.

    Attributes:
      names: of the files, in order.
      sizes: number of training rows of each file.
      quotas: number of rows of each file in an epoch; they sum to the number of all rows.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    quotas: tuple[int, ...]

    @classmethod
    def of(cls, names: Sequence[str], sizes: Sequence[int], mix: str) -> "Mix":
        """Computes the quotas from `data.mix`.

        Raises:
          UserError: see `rates_of`; or a rate is so small that the file's quota is 0.
        """
        total = sum(sizes)
        quotas = whole_shares([rate * total for rate in rates_of(mix, sizes)], total)
        for name, quota in zip(names, quotas, strict=True):
            if not quota:
                raise UserError(f"data.mix is {mix[:80]!r}, by which {name} gives no row of the {total:,} of an epoch.")
        return cls(tuple(names), tuple(sizes), tuple(quotas))

    def order(self, *, seed: int, epoch: int) -> np.ndarray:
        """Returns the shuffled row numbers of an epoch, which depend on the seed and the epoch only."""
        chosen, start = [], 0
        for number, (size, quota) in enumerate(zip(self.sizes, self.quotas, strict=True)):
            # Positions in an endless sequence of passes over the file, each pass shuffled by itself.
            positions = np.arange(epoch * quota, (epoch + 1) * quota)
            passes = range(positions[0] // size, positions[-1] // size + 1)
            drawn = [np.random.default_rng([seed, number, each]).permutation(size) for each in passes]
            chosen.append(start + np.concatenate(drawn)[positions - passes[0] * size])
            start += size
        rows = np.concatenate(chosen)
        return rows[np.random.default_rng([seed, epoch]).permutation(len(rows))]

    @property
    def times(self) -> np.ndarray:
        """`[rows]`: how often an epoch has each training row, on average over epochs."""
        return np.repeat(np.divide(self.quotas, self.sizes), self.sizes)

    def in_words(self) -> str:
        """Describes the mix in a line: `an epoch mixes a.csv 24 (4 times its 6 rows), b.csv 12 (...)`."""
        said = []
        for name, size, quota in zip(self.names, self.sizes, self.quotas, strict=True):
            said.append(f"{name} {quota:,} ({quota / size:.3g} times its {size:,} rows)")
        return f"an epoch mixes {', '.join(said)}"
