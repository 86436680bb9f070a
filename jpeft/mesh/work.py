"""What a compiled function does: floating-point operations, and what its devices say to each other.

XLA's own cost analysis counts the body of a loop once; layers here are the turns of one. So operations are counted in
the program that JAX traces, where loops over layers tell their length, and messages in the compiled text, where XLA
notes how often a loop runs.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax

_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "f32": 4}
_BYTES |= {"s64": 8, "u64": 8, "f64": 8}


def matmul_flops(function: Callable[..., Any], *args: Any, turns: int = 1) -> float:
    """Operations of the matrix products in `function(*args)`, over all devices; a product and a sum are two.

    Args:
      args: arrays or their shapes.
      turns: of loops that end by a condition, as that of generation does.
    """
    return _flops(jax.make_jaxpr(function)(*args).jaxpr, turns)


def _flops(jaxpr: Any, turns: int) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), (batched, _) = equation.params["dimension_numbers"]
            left, right = (v.aval.shape for v in equation.invars[:2])
            inner = math.prod(left[i] for i in contracted)
            shared = math.prod(left[i] for i in batched)
            total += 2.0 * math.prod(left) * math.prod(right) / (inner * shared)
            continue
        inside = sum(_flops(inner, turns) for inner in _inner(equation.params))
        repeats = {"scan": equation.params.get("length", 1), "while": turns}.get(equation.primitive.name, 1)
        total += inside * repeats
    return total


def _inner(params: dict[str, Any]) -> list[Any]:
    """The programs within an equation; of alternatives the longest would do, and there are none here."""
    found = []
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns"):
                found.append(inner)
    return found


@dataclasses.dataclass(frozen=True)
class Messages:
    """The messages that devices exchange in one call of a program, by kind.

    Attributes:
      count: by kind of message.
      bytes: by kind, that each device holds of the results.
    """

    count: dict[str, int]
    bytes: dict[str, int]


def messages(text: str, *, turns: int = 1) -> Messages:
    """Counts the collectives in the text of a compiled program.

    Args:
      turns: of loops whose number of turns XLA does not know.
    """
    bodies = _computations(text)
    repeats = _repeats(bodies, turns)
    count: collections.Counter[str] = collections.Counter()
    size: collections.Counter[str] = collections.Counter()
    for name, lines in bodies.items():
        for line in lines:
            match = re.search(rf" = (.*?) ({'|'.join(_COLLECTIVES)})(?:-start)?\(", line)
            if match:
                count[match[2]] += repeats[name]
                size[match[2]] += repeats[name] * _size(match[1])
    return Messages(dict(count), dict(size))


def _computations(text: str) -> dict[str, list[str]]:
    """Lines of each computation of an HLO text; the entry is named ENTRY."""
    bodies: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if head and not line.startswith(" "):
            name = "ENTRY" if head[1] else head[2]
            bodies[name] = []
        elif name:
            bodies[name].append(line)
    return bodies


def _repeats(bodies: dict[str, list[str]], turns: int) -> collections.Counter[str]:
    """The number of times that each computation of a compiled program runs in one call of it."""
    repeats: collections.Counter[str] = collections.Counter()

    def visit(name: str, times: int) -> None:
        repeats[name] += times
        for line in bodies.get(name, ()):
            loop = re.search(r"\bwhile\(.*body=%?([\w.\-]+)", line)
            if loop:
                known = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
                visit(loop[1], times * (int(known[1]) if known else turns))
                continue
            for called in re.findall(r"(?:to_apply|calls|called_computations=\{)=?%?([\w.\-]+)", line):
                if called in bodies and not re.search(rf"({'|'.join(_COLLECTIVES)})\(", line):
                    visit(called, times)

    visit("ENTRY", 1)
    return repeats


def _size(shapes: str) -> int:
    """Bytes of `f32[2,3]{1,0}`, or of a tuple of such."""
    total = 0
    for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
        total += _BYTES.get(kind, 4) * math.prod(int(d) for d in dims.split(",") if d)
    return total
