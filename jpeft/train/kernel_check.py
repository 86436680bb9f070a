"""Whether the kernels that XLA wrote for a GPU give a step's gradients: beside those of the vendor's library.

For a GPU XLA makes most matrix products in kernels of its own (Triton), each with what stands around it. Some versions
make some of them wrong, on some cards: the loss is right, its gradient is not, and nothing says so. So before a run
trains on a GPU, the gradients of its first micro-batch are computed once more by a program that takes every product of
cuBLAS, and the two are compared. That costs a compilation and two micro-batches, once for a program: the verdict is
kept.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jpeft.files import write_whole
from jpeft.program import Program, free_memory, needed_memory
from jpeft.trouble import first_line

# By platform: what makes the compiler take no kernels of its own for matrix products.
PLAIN: dict[str, dict[str, Any]] = {"gpu": {"xla_gpu_enable_triton_gemm": False}}
_MOVED = 0.1  # an adapter, since next to a B of zeros no A has a gradient
_ALLOWED = {"float32": 0.05, "bfloat16": 0.25}  # of a leaf's norm; TF32 and bfloat16 round in other places


def kernel_caution(
    program: Program,
    adapter: Any,
    others: Callable[[], tuple[Any, ...]],
    zeros: Callable[[], Any],
    *,
    move: bool,
    narrow: bool,
    platform: str,
    kept_in: Path,
    report: Callable[[str], None],
) -> str | None:
    """What to warn of before a run trains, or None: its gradients by XLA's own kernels and by the library's differ.

    Args:
      program: as `make_accumulate` makes it, of sums, adapter, base, key, step, micro-batch and batch.
      adapter: the tree that trains.
      others: gives the arguments behind the adapter.
      zeros: makes the sums of no micro-batch, where the program wants them.
      move: whether the adapter is moved at random before, so that all of it has a gradient.
      narrow: whether the model computes in bfloat16; what trains is float32 also then.
      platform: as `jax.default_backend` names it; others than `PLAIN` has are not looked at.
      kept_in: directory of verdicts.
      report: hears in one line why nothing was compared, where that is so.
    """
    options = PLAIN.get(platform)
    if options is None or jax.process_count() > 1:  # processes would have to agree on what is kept
        return None
    arguments = others()
    try:
        off = _kept_or_measured(program, adapter, arguments, zeros, move=move, options=options, kept_in=kept_in)
    except Exception as error:  # of the second program alone: the first one's are met in training
        report(f"the compiler's kernels were not compared with the library's: {first_line(error, 160)}")
        return None
    if off <= _ALLOWED["bfloat16" if narrow else "float32"]:
        return None
    return (
        "a gradient of the first micro-batch by XLA's kernels and the same by cuBLAS differ by "
        f"{100 * off:.3g} % of its norm: one of them is wrong (docs/accelerators.md); try "
        "XLA_FLAGS=--xla_gpu_enable_triton_gemm=false, or another version of jaxlib"
    )


def _kept_or_measured(
    program: Program,
    adapter: Any,
    arguments: tuple[Any, ...],
    zeros: Callable[[], Any],
    *,
    move: bool,
    options: dict[str, Any],
    kept_in: Path,
) -> float:
    lowered = program.traced(zeros(), adapter, *arguments).lower()
    told = (jax.__version__, version("jaxlib"), jax.local_devices()[0].device_kind, _flags(), options)
    name = hashlib.sha256(json.dumps([*told, lowered.as_text()]).encode()).hexdigest()
    file = kept_in / f"{name}.json"
    try:
        return float(json.loads(file.read_text(encoding="utf-8"))["off"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or damaged
    off = _measured(program, adapter, arguments, zeros, move=move, options=options)
    with contextlib.suppress(OSError):
        kept_in.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError), write_whole(file) as beside:  # measured it is, whether it can be kept or not
        beside.write_text(json.dumps({"off": off, "versions": told[:2], "device": told[2]}), encoding="utf-8")
    return off


def _measured(
    program: Program,
    adapter: Any,
    arguments: tuple[Any, ...],
    zeros: Callable[[], Any],
    *,
    move: bool,
    options: dict[str, Any],
) -> float:
    """How far the two programs' gradients are apart (`_apart`); infinity if one of them is not finite."""
    plain = program.compiled_by(options)
    compiled = plain.prepare(zeros(), adapter, *arguments)
    sums = sum(leaf.nbytes for leaf in jax.tree.leaves(adapter))  # of gradients: they are like the adapter
    needed, free = needed_memory(compiled) + 2 * sums, free_memory()
    if free is not None and needed > free:
        raise MemoryError(f"that would take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} are free")
    if move:
        adapter = jax.jit(_moved, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, adapter))(adapter)
    found, right = (made(zeros(), adapter, *arguments).grads for made in (program, plain))
    off = float(jax.jit(_apart)(found, right))
    return off if np.isfinite(off) else float("inf")


def _moved(adapter: Any) -> Any:
    leaves, structure = jax.tree.flatten(adapter)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    moved = [
        leaf + (_MOVED * jax.random.normal(key, leaf.shape)).astype(leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, moved)


def _apart(found: Any, right: Any) -> jax.Array:
    """Of the leaf that differs most the norm of the difference, over the leaf's own or a twentieth of the largest's.

    What is smaller may be noise alone: a softmax does not feel the bias of its keys. 0 where no leaf has a gradient.
    """
    norm = lambda leaf: jnp.sqrt(jnp.sum(jnp.square(leaf.astype(jnp.float32))))  # wherever its parts lie
    apart = [
        norm(a.astype(jnp.float32) - b.astype(jnp.float32))
        for a, b in zip(*map(jax.tree.leaves, (found, right)), strict=True)
    ]
    size = jnp.stack([norm(leaf) for leaf in jax.tree.leaves(right)])
    off = jnp.stack(apart) / jnp.maximum(size, 0.05 * jnp.max(size))
    return jnp.max(jnp.where(jnp.stack(apart) == 0, 0.0, off))


def _flags() -> list[str]:
    return [os.environ.get(name, "") for name in ("XLA_FLAGS", "JAX_DEFAULT_MATMUL_PRECISION")]
