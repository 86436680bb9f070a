"""Times that mean something on a shared machine: contenders take turns, and medians of the turns are compared."""

import dataclasses
import statistics
from collections.abc import Callable, Mapping


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one contender's turns."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half of what lies between the fastest and the slowest turn, as a share of the median."""
        return (max(self.seconds) - min(self.seconds)) / 2 / self.median

    def __str__(self) -> str:
        return f"{self.median:.3f} ± {100 * self.spread:.0f} %"


def alternate(contenders: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, Timing]:
    """Calls every contender once to warm up, then all in turn, `repeats` times; each returns its seconds."""
    for call in contenders.values():
        call()
    rounds = [{name: call() for name, call in contenders.items()} for _ in range(repeats)]
    return {name: Timing(tuple(times[name] for times in rounds)) for name in contenders}
