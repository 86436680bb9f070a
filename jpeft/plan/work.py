"""The work of a program: floating-point operations of its matrix products, counted in what JAX traces of it.

There loops over layers tell their length, whatever the compiler then makes of them.
"""

import math
from collections.abc import Callable
from typing import Any

import jax


def matmul_flops(function: Callable[..., Any], *args: Any, turns: int = 1) -> float:
    """Operations of the matrix products in `function(*args)`, over all devices; a product and a sum are two.

    Args:
      args: arrays or their shapes.
      turns: of loops that end by a condition, as that of generation does.
    """
    return traced_flops(jax.make_jaxpr(function)(*args), turns=turns)


def traced_flops(jaxpr: Any, *, turns: int = 1) -> float:
    """As `matmul_flops`, of what was traced already."""
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
