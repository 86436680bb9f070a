"""Whether the kernels that XLA wrote for a GPU give a step's gradients: beside those of the vendor's library.

For a GPU XLA makes most matrix products in kernels of its own (Triton), each with what stands around it. Some versions
make some of them wrong, on some cards: the loss is right, its gradient is not, and nothing says so. So before a run
trains on a GPU, the gradients of its first micro-batch are computed once more by a program that takes every product of
cuBLAS, and the two are compared. That costs a compilation and two micro-batches, once for a program: the verdict is
kept.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
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
SWITCH = "JPEFT_KERNEL_CHECK"  # the environment variable that is 0 where nothing is to be compared
# What an executable's text says of the source that it was made of: a table, and of each instruction.
_OF_SOURCE = re.compile(r"(?m)^\d+ .*\n|, metadata=\{[^}]*\}")
_MOVED = 0.1  # an adapter, since next to a B of zeros no A has a gradient
_ALLOWED = {"float32": 0.05, "bfloat16": 0.25}  # of a leaf's norm; TF32 and bfloat16 round in other places


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """A micro-batch whose gradients can be computed by any program that was compiled of the same function.

    Attributes:
      program: as `make_accumulate` makes it, of sums, adapter, base, key, step, micro-batch and batch.
      zeros: makes the sums of no micro-batch, where the program wants them.
      adapter: the tree that trains.
      others: the arguments behind the adapter.
      move: whether the adapter is moved at random before, so that all of it has a gradient.
    """

    program: Program
    zeros: Callable[[], Any]
    adapter: Any
    others: tuple[Any, ...]
    move: bool

    def compiled(self, program: Program) -> Any:
        return program.prepare(self.zeros(), self.adapter, *self.others)

    def apart(self, options: Mapping[str, Any]) -> float:
        """How far the gradients are from those of the program by other options of the compiler (`_apart`).

        Infinity if one of them is not finite.

        Raises:
          MemoryError: the other program does not fit into what is free.
        """
        plain = self.program.compiled_by(options)
        sums = sum(leaf.nbytes for leaf in jax.tree.leaves(self.adapter))  # of gradients: they are like the adapter
        needed, free = needed_memory(self.compiled(plain)) + 2 * sums, free_memory()
        if free is not None and needed > free:
            raise MemoryError(f"that would take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} are free")
        adapter = self.adapter
        if self.move:
            adapter = jax.jit(_moved, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, adapter))(adapter)
        found, right = (made(self.zeros(), adapter, *self.others).grads for made in (self.program, plain))
        off = float(jax.jit(_apart)(found, right))
        return off if np.isfinite(off) else float("inf")


def kernel_caution(
    micro_batch: Callable[[], MicroBatch], *, narrow: bool, platform: str, kept_in: Path, report: Callable[[str], None]
) -> str | None:
    """What to warn of before a run trains, or None: its gradients by XLA's own kernels and by the library's differ.

    Args:
      micro_batch: gives the first one; not called where nothing is compared.
      narrow: whether the model computes in bfloat16; what trains is float32 also then.
      platform: as `jax.default_backend` names it; others than `PLAIN` has are not looked at.
      kept_in: directory of verdicts.
      report: hears in one line why nothing was compared, where that is so.
    """
    options = PLAIN.get(platform)
    if options is None or jax.process_count() > 1:  # processes would have to agree on what is kept
        return None
    if os.environ.get(SWITCH) == "0":
        report(f"the compiler's kernels are not compared with the library's: {SWITCH} is 0")
        return None
    try:
        off = _kept_or_measured(micro_batch(), options, kept_in)
    except Exception as error:  # of the second program: the first one's are met in training again
        report(f"the compiler's kernels were not compared with the library's: {first_line(error, 160)}")
        return None
    if off <= _ALLOWED["bfloat16" if narrow else "float32"]:
        return None
    return (
        "a gradient of the first micro-batch by XLA's kernels and the same by cuBLAS differ by "
        f"{100 * off:.3g} % of its norm: one of them is wrong (docs/accelerators.md); try "
        "XLA_FLAGS=--xla_gpu_enable_triton_gemm=false, or another version of jaxlib"
    )


def _kept_or_measured(micro_batch: MicroBatch, options: Mapping[str, Any], kept_in: Path) -> float:
    """The verdict on this very executable: the same function compiled again may have other kernels."""
    device = jax.local_devices()[0]
    flags = [os.environ.get(name, "") for name in ("XLA_FLAGS", "JAX_DEFAULT_MATMUL_PRECISION")]
    told = [jax.__version__, version("jaxlib"), device.device_kind, device.client.platform_version, *flags, options]
    text = _OF_SOURCE.sub("", micro_batch.compiled(micro_batch.program).as_text())
    file = kept_in / f"{hashlib.sha256(json.dumps([*told, text]).encode()).hexdigest()}.json"
    try:
        return float(json.loads(file.read_text(encoding="utf-8"))["off"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or damaged
    off = micro_batch.apart(options)
    with contextlib.suppress(OSError):  # it is measured, whether it can be kept or not
        kept_in.mkdir(parents=True, exist_ok=True)
        with write_whole(file) as beside:
            beside.write_text(json.dumps({"off": off, "versions": told[:2], "device": told[2]}), encoding="utf-8")
    return off


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
