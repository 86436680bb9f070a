"""Counts the floating-point operations of a program's matrix products in its jaxpr.

In the jaxpr loops over layers have a known length, whatever the compiler makes of them.
"""

import math
from typing import Any


def matmul_flops(jaxpr: Any, *, turns: int = 1) -> float:
    """Operations of the matrix products of a program, over all devices; a multiply-add is two.

    Args:
      jaxpr: the program as traced (`jax.make_jaxpr`, or `.jaxpr` of a traced jitted function).
      turns: the assumed iterations of loops that end by a condition, such as that of generation.
    """
    return _flops(jaxpr.jaxpr, turns)


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
        inside = [_flops(inner, turns) for inner in _inner(equation.params)]
        if inside:
            run = max(inside) if equation.primitive.name == "cond" else sum(inside)  # of a cond's branches one runs
            total += run * _repeats(equation, turns)
    return total


def _repeats(equation: Any, turns: int) -> int:
    """How often the inner programs of an equation run."""
    match equation.primitive.name:
        case "scan":
            return equation.params["length"]
        case "while":
            return turns
        case "shard_map":  # its body is the work of one part of the mesh
            axes = next(value for key, value in equation.params.items() if key.endswith("manual_axes"))
            return math.prod(equation.params["mesh"].shape[axis] for axis in axes)
    return 1


def _inner(params: dict[str, Any]) -> list[Any]:
    """The inner programs of an equation; of a `cond` its branches."""
    found = []
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns"):
                found.append(inner)
    return found
