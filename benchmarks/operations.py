"""Measure the time of a compiled program operation by operation.

The profiler gives the start and end of each operation, the compiled text the matrix products in it. Independent
operations run concurrently and slow each other down; time in which several run is divided equally among them, so that
the times of all operations add up to the time in which any was running.
"""

import collections
import dataclasses
import math
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
from jax.profiler import ProfileData

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_SHAPE = re.compile(r"\w+\[([\d,]*)\]")
_CALLED = re.compile(r"calls=%?([\w.\-]+)")
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product.

    Attributes:
      result: shape of the result.
      summed: number of terms in each element, the size of the contracted dimensions.
    """

    result: tuple[int, ...]
    summed: int

    @property
    def flops(self) -> int:
        return 2 * math.prod(self.result) * self.summed


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a program.

    Attributes:
      name: as in the compiled text.
      seconds: its share of the time of one run of the program; concurrent operations share time equally.
      runs: executions per run of the program.
      products: matrix products of one execution; none for elementwise operations, reductions and copies.
    """

    name: str
    seconds: float
    runs: float
    products: tuple[Product, ...]

    @property
    def flops(self) -> float:
        """FLOPs of its products in one run of the program."""
        return self.runs * sum(product.flops for product in self.products)


def products_of(text: str) -> dict[str, tuple[Product, ...]]:
    """The matrix products of each instruction in a compiled program's text; a fusion has those of its computation."""
    computations = _computations(text)
    inside = {name: tuple(_products(lines)) for name, lines in computations.items()}
    found = {}
    for lines in computations.values():
        for line in lines:
            instruction = _INSTRUCTION.match(line)
            if instruction is None:
                continue
            name, _, kind, _ = instruction.groups()
            called = _CALLED.search(line)
            if called and called.group(1) in inside:
                found[name] = inside[called.group(1)]
            elif kind == "dot":
                found[name] = tuple(_products(lines, only=name))
    return found


def measure(call: Callable[[], object], text: str, *, runs: int) -> tuple[list[Operation], float]:
    """Profile `runs` calls of a compiled program.

    Args:
      call: runs the program once.
      text: the program's compiled HLO text.
      runs: number of calls to profile.

    Returns:
      The program's operations, and the seconds of one call.
    """
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            started = time.perf_counter()
            for _ in range(runs):
                call()
            seconds = (time.perf_counter() - started) / runs
        trace = ProfileData.from_file(str(next(Path(directory).rglob("*.xplane.pb"))))
    module = re.match(r"HloModule ([\w.\-]+)", text)
    assert module is not None, "compiled text begins with the module's name"
    with warnings.catch_warnings():
        # jaxlib creates a type at the first event, at which Python 3.13 warns; as an error, the warning aborts jaxlib.
        warnings.filterwarnings("ignore", "builtin type .* has no __module__ attribute", DeprecationWarning)
        events = list(_events(trace, module.group(1)))
    nanoseconds = shared_time(events)
    count = collections.Counter(name for _, _, name in events)
    products = products_of(text)
    operations = [
        Operation(name, took / 1e9 / runs, count[name] / runs, products.get(name, ()))
        for name, took in nanoseconds.items()
    ]
    return operations, seconds


def shared_time(events: Iterable[tuple[float, float, str]]) -> dict[str, float]:
    """Total time by name of the events `(begin, end, name)`, with time divided equally among concurrent events."""
    borders = sorted(
        [(begin, 1, name) for begin, _, name in events] + [(end, -1, name) for _, end, name in events],
        key=lambda border: (border[0], border[1]),
    )
    total: dict[str, float] = collections.defaultdict(float)
    under_way: collections.Counter[str] = collections.Counter()
    since = 0.0
    for at, change, name in borders:
        together = under_way.total()
        for running, times in under_way.items():
            total[running] += (at - since) * times / together
        since = at
        under_way[name] += change
        if not under_way[name]:
            del under_way[name]
    return dict(total)


def _events(trace: ProfileData, module: str) -> Iterable[tuple[float, float, str]]:
    for plane in trace.planes:
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                # A loop spans the operations of its body, which are counted themselves.
                if stats.get("hlo_module") == module and "hlo_op" in stats and not event.name.startswith("while"):
                    yield event.start_ns, event.start_ns + event.duration_ns, event.name


def _computations(text: str) -> dict[str, list[str]]:
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            lines = computations[header.group(1)] = []
        else:
            lines.append(line)
    return computations


def _products(lines: Iterable[str], only: str | None = None) -> Iterable[Product]:
    """The matrix products of a computation's instructions, or only that of the instruction named `only`."""
    instructions = [match.groups() for match in map(_INSTRUCTION.match, lines) if match]
    shapes = {name: _shape(kind) for name, kind, _, _ in instructions}
    for name, kind, operation, rest in instructions:
        if operation != "dot" or only not in (None, name):
            continue
        left = rest.partition(",")[0].strip().lstrip("%")
        contracted = _CONTRACTED.search(rest)
        assert contracted is not None, f"not a product as expected: {rest}"
        axes = [int(axis) for axis in contracted.group(1).split(",") if axis]
        yield Product(_shape(kind), math.prod(shapes[left][axis] for axis in axes))


def _shape(kind: str) -> tuple[int, ...]:
    shape = _SHAPE.match(kind)
    return () if shape is None else tuple(int(size) for size in shape.group(1).split(",") if size)
