"""Compiled programs that tell how long they took to compile and how often."""

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Collection, Hashable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jpeft.allocator import make_room
from jpeft.files import why_not_writable


class Program:
    """A function compiled once for each `spec` of its last argument, ahead of the first run with such a one.

    The other arguments keep their shapes over a run, so looking at the batch alone is enough and cheap.

    Attributes:
      function: that is compiled.
      compile_seconds: spent tracing and compiling so far.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        donate: tuple[int, ...] = (),
        batch: jax.sharding.Sharding | None = None,
        results: Any = None,
        options: Mapping[str, Any] | None = None,
    ):
        """Compiles nothing yet.

        Args:
          donate: positions of arguments whose buffers the results may use.
          batch: the devices that the last argument is put on; None leaves it where it is. Where those are of several
            processes, each gives the rows of its own devices.
          results: a sharding for each result, or for all below a node; None leaves them to the compiler.
          options: of the compiler, by XLA's names for them.
        """
        self.function = function
        self._donate, self._results = donate, results
        self._jitted = jax.jit(function, donate_argnums=donate, out_shardings=results)
        self._batch, self._options = batch, dict(options or {})
        self._compiled: dict[Any, Any] = {}
        self._temporary_bytes: dict[Any, int] = {}
        self.compile_seconds = 0.0

    @property
    def num_shapes(self) -> int:
        """The number of programs compiled so far, one for each shape of arguments that came."""
        return len(self._compiled)

    def is_ready_for(self, batch: Any) -> bool:
        """Whether it is compiled for a last argument like this one."""
        return spec(batch) in self._compiled

    @property
    def compiled(self) -> list[jax.stages.Compiled]:
        """The executables compiled so far, one for each shape of the last argument, to be looked into."""
        return list(self._compiled.values())

    def __call__(self, *args: Any) -> Any:
        if self._batch is not None:
            args = (*args[:-1], _put_batch(args[-1], self._batch))
        compiled, key = self.prepare(*args), spec(args[-1])
        if key not in self._temporary_bytes:
            self._temporary_bytes[key] = _require_room(_temporary_bytes(compiled))
        make_room(self._temporary_bytes[key])
        return compiled(*args)

    def compiled_by(self, options: Mapping[str, Any]) -> "Program":
        """The same by other options of the compiler, and without donating; nothing stays loaded once it is gone."""
        function = lambda *args: self.function(*args)  # JAX keeps executables as long as their function is there
        return Program(function, batch=self._batch, results=self._results, options=options)

    def side_by_side(self, count: int, shared: Collection[int], like: int | None = None) -> "Program":
        """The same for `count` calls at once: each argument is a tuple of one for each, and so is the result.

        What works on shared arguments alone is done once, a product with a shared matrix once over the rows of all.
        Leaves that are smaller than another call's are filled up with zeros at their ends.

        Args:
          shared: positions of arguments that are the same for all, and given as they are.
          like: the position of the argument whose shapes a call's result has; None where results are of one shape.
        """

        def of_all(*args: Any) -> tuple[Any, ...]:
            stacked = [arg if i in shared else jax.tree.map(_stacked, *arg) for i, arg in enumerate(args)]
            axes = [None if i in shared else 0 for i in range(len(args))]
            results = jax.vmap(self.function, in_axes=axes)(*stacked)
            each = [jax.tree.map(lambda leaf, i=i: leaf[i], results) for i in range(count)]
            if like is not None:
                each = [jax.tree.map(_first_part, result, own) for result, own in zip(each, args[like], strict=True)]
            return tuple(each)

        results = None if self._results is None else (self._results,) * count
        return Program(of_all, donate=self._donate, batch=self._batch, results=results)

    def traced(self, *shapes: Any) -> Any:
        """What JAX traces for arguments of these shapes: it can be looked at, and lowered for a compiler."""
        *others, batch = shapes
        if self._batch is not None:
            batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._batch), batch)
        return self._jitted.trace(*others, batch)

    def prepare(self, *args: Any) -> Any:
        """Compiles for arguments of these shapes, as the first call with them would, and returns what was compiled.

        Args:
          args: as of a call; shapes may stand for the last.
        """
        key = spec(args[-1])
        if key not in self._compiled:
            started = time.perf_counter()
            self._compiled[key] = self.traced(*args).lower().compile(self._options)
            self.compile_seconds += time.perf_counter() - started
        return self._compiled[key]


def spec(tree: Any) -> Hashable:
    """Structure, shapes and dtypes of a tree: what a compiled program depends on besides its code."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((leaf.shape, _dtype_of(leaf)) for leaf in leaves)


def _dtype_of(leaf: Any) -> str:
    """As compiled programs have it: NumPy's numbers of 64 bits are of 32 to them."""
    return str(jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True))


def _stacked(*leaves: jax.Array) -> jax.Array:
    """The leaves along a new first axis, filled up with zeros to the largest size of each dimension."""
    shapes = [jnp.shape(leaf) for leaf in leaves]
    largest = tuple(max(sizes) for sizes in zip(*shapes, strict=True))

    def filled(leaf: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        if shape == largest:
            return leaf
        return jnp.pad(leaf, [(0, most - own) for most, own in zip(largest, shape, strict=True)])

    return jnp.stack([filled(leaf, shape) for leaf, shape in zip(leaves, shapes, strict=True)])


def _first_part(leaf: jax.Array, like: jax.Array) -> jax.Array:
    return leaf[tuple(slice(size) for size in jnp.shape(like))]


def _temporary_bytes(compiled: Any) -> int:
    """Bytes of main memory that the program allocates each time it runs on the CPU; 0 if it runs on another device."""
    if jax.default_backend() != "cpu":
        return 0
    analysis = compiled.memory_analysis()
    return 0 if analysis is None else analysis.temp_size_in_bytes


def _require_room(size: int) -> int:
    """`size`, where this machine has so many bytes at all: else the system would end the process without a word.

    Raises:
      MemoryError: it has not.
    """
    there = memory_of_host()
    if there is not None and size > there:
        raise MemoryError(f"a step needs {size / 1e9:,.1f} GB at once, this machine has {there / 1e9:,.1f}")
    return size


def memory_of_host() -> int | None:
    """Bytes that this process may have, by the machine and by the container around it; None where nobody tells."""
    limits = []
    with contextlib.suppress(OSError, ValueError, AttributeError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of control groups, version 2 and 1
        with contextlib.suppress(OSError, ValueError):  # ValueError: it says `max`
            limits.append(int(Path("/sys/fs/cgroup", name).read_text(encoding="utf-8")))
    return min(limits, default=None)


_NOT_FRAGMENTED = 0.97  # of an accelerator's memory; its allocator leaves gaps
_FREE_TO_USE = 0.9  # of the main memory that is free; the host's own work takes some, too
# What a CPU's library of products packs, beside what the compiler counts: measured for programs of 0.1 to 2.7 GB.
_PACKED_AT_LEAST, _PACKED_SHARE = 30_000_000, 0.06


def free_memory() -> float | None:
    """Bytes of the device at hand that nothing holds; None where nobody tells.

    On the CPU those of the machine and of the container around this process, shared out among its devices.
    """
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return _NOT_FRAGMENTED * stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    if device.platform != "cpu":
        return None
    free = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):  # of control groups, version 2 and 1
        with contextlib.suppress(OSError, ValueError):
            most, taken = (int(Path("/sys/fs/cgroup", name).read_text(encoding="utf-8")) for name in (limit, used))
            free.append(most - taken)
    return _FREE_TO_USE * min(free) / len(jax.local_devices()) if free else None


def needed_memory(compiled: Any) -> int:
    """Bytes that a program compiled for this process's devices takes on each while it runs, beside its arguments.

    On a CPU with what XLA's library of products takes from the system besides, for operands that it packs: the compiler
    does not count it. It is more with more rows; as much as is added here was measured (docs/accelerators.md).
    """
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0
    results = max(analysis.output_size_in_bytes - analysis.alias_size_in_bytes, 0)
    counted = int(analysis.temp_size_in_bytes + results + analysis.generated_code_size_in_bytes)
    if jax.local_devices()[0].platform != "cpu":
        return counted
    return counted + min(counted, _PACKED_AT_LEAST) + int(_PACKED_SHARE * counted)


def _put_batch(batch: Any, sharding: jax.sharding.Sharding) -> Any:
    if sharding.is_fully_addressable:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)


_told_of: set[Path] = set()  # directories that cannot be written


def use_compilation_cache(directory: Path, report: Callable[[str], None] = lambda line: None) -> None:
    """Keeps compiled programs in `directory`, unless JAX was told another place: a second run starts at once.

    Args:
      report: hears where nothing can be kept, once a process. What another has kept there is used, if it can be read.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # pyright: ignore[reportAttributeAccessIssue]  (made at run time)
        return
    reason = why_not_writable(directory)
    if reason is not None:
        if directory not in _told_of:
            _told_of.add(directory)
            report(
                f"nothing that is made here is kept for the next run: {directory} cannot be written ({reason}); set "
                "the environment variable JPEFT_CACHE to a directory that can be"
            )
        if not os.access(directory, os.R_OK | os.X_OK):
            return
        warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache", UserWarning)
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
