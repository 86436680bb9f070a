"""Timing on a shared machine: contenders take turns, so that load affects all alike, and medians are compared."""

import dataclasses
import statistics
from collections.abc import Callable, Mapping


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of each of one contender's turns."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the range between the fastest and the slowest turn, as a fraction of the median."""
        return (max(self.seconds) - min(self.seconds)) / 2 / self.median

    def __str__(self) -> str:
        return f"{self.median:.3f} ± {100 * self.spread:.0f} %"


def alternate(contenders: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, Timing]:
    """Time contenders in turns.

    Args:
      contenders: functions that do their work once and return the seconds it took; each is called once to warm up.
      repeats: number of rounds; each round calls every contender once.
    """
    for call in contenders.values():
        call()
    rounds = [{name: call() for name, call in contenders.items()} for _ in range(repeats)]
    return {name: Timing(tuple(times[name] for times in rounds)) for name in contenders}
