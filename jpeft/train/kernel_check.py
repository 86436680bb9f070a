"""Whether a GPU's programs of a first step do what they say: beside programs made in other ways.

Some versions of XLA make some programs wrong, on some cards: the loss is right, what is learned is not, and nothing
says so. So before a run trains on a GPU, two things are computed twice and compared. The gradients of the first
micro-batch: once more by a program that takes every product of cuBLAS, launches its kernels one by one instead of as a
recorded graph, and writes into no buffer of its arguments. And the update that they lead to: once more by the CPU.
That costs two compilations and two micro-batches, once for a program: the verdicts are kept.
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

# By platform: what makes the compiler take no kernels of its own for matrix products, and record no graphs of kernels.
PLAIN: dict[str, dict[str, Any]] = {"gpu": {"xla_gpu_enable_triton_gemm": False, "xla_gpu_enable_command_buffer": ""}}
SWITCH = "JPEFT_KERNEL_CHECK"  # the environment variable that is 0 where nothing is to be compared
# What an executable's text says of the source that it was made of: a table, and of each instruction.
_OF_SOURCE = re.compile(r"(?m)^\d+ .*\n|, metadata=\{[^}]*\}")
_MOVED = 0.1  # an adapter, since next to a B of zeros no A has a gradient
_ALLOWED = {"float32": 0.05, "bfloat16": 0.25}  # of a leaf's norm; TF32 and bfloat16 round in other places
_ALLOWED_OF_UPDATES = 0.01  # of a leaf's change: elementwise work in float32, on the same gradients
_MOST_TO_UPDATE = 1e9  # bytes of what trains; with the optimizer's memory a few times that on the host


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

    def elsewhere(self) -> Any:
        """The adapter where all of it has a gradient."""
        if not self.move:
            return self.adapter
        return jax.jit(_moved, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, self.adapter))(self.adapter)

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
        adapter = self.elsewhere()
        found, right = (made(self.zeros(), adapter, *self.others).grads for made in (self.program, plain))
        off = float(jax.jit(_apart)(found, right))
        return off if np.isfinite(off) else float("inf")


@dataclasses.dataclass(frozen=True)
class FirstUpdate:
    """An update by the first micro-batch's gradients, which this device and the CPU can compute.

    Attributes:
      program: as `make_update` makes it, of state, sums and rates; it may write into the first two.
      function: the same of no device.
      state, rates: its arguments.
      micro_batch: gives the sums.
    """

    program: Program
    function: Callable[..., Any]
    state: Any
    rates: Any
    micro_batch: MicroBatch

    def compiled(self) -> Any:
        """The executable, of which the verdict is."""
        return self.program.prepare(self.state, self.micro_batch.zeros(), self.rates)

    def apart(self) -> float:
        """How far the device's is from the CPU's: of the gradient's norm, or of the leaf's change that differs most.

        Raises:
          MemoryError: so much trains that the host should not be asked for it.
        """
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(self.state.adapter))
        if size > _MOST_TO_UPDATE:
            raise MemoryError(f"{size / 1e9:.1f} GB train, which would be updated on the host")
        first = self.micro_batch
        sums = first.program(first.zeros(), first.elsewhere(), *first.others)
        given = jax.device_get((self.state, sums, self.rates))
        found, _, metrics = jax.device_get(self.program(*jax.tree.map(jnp.copy, (self.state, sums)), self.rates))
        cpu = jax.local_devices(backend="cpu")[0]
        right, _, right_metrics = jax.device_get(jax.jit(self.function)(*jax.device_put(given, cpu)))
        before = given[0].adapter
        changes = [jax.tree.map(np.subtract, after.adapter, before) for after in (found, right)]
        with jax.default_device(cpu):
            off = [float(_apart(*changes)), float(_apart(metrics["grad_norm"], right_metrics["grad_norm"]))]
        return max(value if np.isfinite(value) else float("inf") for value in off)


def update_caution(
    update: Callable[[], FirstUpdate], *, platform: str, kept_in: Path, report: Callable[[str], None]
) -> str | None:
    """What to warn of before a run trains, or None: its first update by this device is not the CPU's.

    Args:
      update: gives it; not called where nothing is compared.
      platform, kept_in, report: as of `kernel_caution`, which says why nothing is compared where it was switched off.
    """
    if PLAIN.get(platform) is None or jax.process_count() > 1 or os.environ.get(SWITCH) == "0":
        return None
    try:
        first = update()
        off = _kept_or_measured(first.compiled(), first.apart, {"update": "cpu"}, kept_in)
    except Exception as error:
        report(f"the first update was not compared with the CPU's: {first_line(error, 160)}")
        return None
    if off <= _ALLOWED_OF_UPDATES:
        return None
    return (
        f"the first update by this device and by the CPU, of the same gradients, differ by {100 * off:.3g} %: one of "
        "them is wrong (docs/accelerators.md); try XLA_FLAGS=--xla_gpu_enable_command_buffer=, or another version of "
        "jaxlib"
    )


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
        report(f"the first step is not computed twice, to see whether the compiler made it right: {SWITCH} is 0")
        return None
    try:
        first = micro_batch()
        off = _kept_or_measured(first.compiled(first.program), lambda: first.apart(options), options, kept_in)
    except Exception as error:  # of the second program: the first one's are met in training again
        report(f"the compiler's kernels were not compared with the library's: {first_line(error, 160)}")
        return None
    if off <= _ALLOWED["bfloat16" if narrow else "float32"]:
        return None
    return (
        "a gradient of the first micro-batch by XLA's kernels and the same by cuBLAS and without recorded graphs "
        f"differ by {100 * off:.3g} % of its norm: one of them is wrong (docs/accelerators.md); try XLA_FLAGS="
        "'--xla_gpu_enable_triton_gemm=false --xla_gpu_enable_command_buffer=', or another version of jaxlib"
    )


def _kept_or_measured(compiled: Any, measure: Callable[[], float], options: Mapping[str, Any], kept_in: Path) -> float:
    """The verdict on this very executable: the same function compiled again may have other kernels."""
    device = jax.local_devices()[0]
    flags = [os.environ.get(name, "") for name in ("XLA_FLAGS", "JAX_DEFAULT_MATMUL_PRECISION")]
    versions = [jax.__version__, version("jaxlib")]
    conditions = [*versions, device.device_kind, device.client.platform_version, *flags, options]
    text = _OF_SOURCE.sub("", compiled.as_text())
    file = kept_in / f"{hashlib.sha256(json.dumps([*conditions, text]).encode()).hexdigest()}.json"
    try:
        return float(json.loads(file.read_text(encoding="utf-8"))["off"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or damaged
    off = measure()
    with contextlib.suppress(OSError):  # it is measured, whether it can be kept or not
        kept_in.mkdir(parents=True, exist_ok=True)
        with write_whole(file) as beside:
            verdict = {"off": off, "versions": versions, "device": device.device_kind}
            beside.write_text(json.dumps(verdict), encoding="utf-8")
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
