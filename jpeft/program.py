"""Functions compiled ahead of time, with the time and memory that they take."""

import contextlib
import os
import threading
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
    """A function compiled ahead of time, once for each `spec` of its last argument.

    The other arguments keep their shapes during a run, so comparing the batch is enough, and cheap.

    Attributes:
      function: the function.
      compile_seconds: seconds spent tracing and compiling so far, in all threads.
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
          function: to compile.
          donate: positions of arguments whose buffers the results may reuse.
          batch: where to put the last argument; None leaves it where it is. If the sharding spans several processes,
            each of them passes the rows of its own devices.
          results: a sharding for each result, or a prefix of their tree; None leaves them to the compiler.
          options: compiler options by XLA's names.
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
        """The number of executables compiled so far, one for each shape of the last argument."""
        return len(self._compiled)

    def is_ready_for(self, batch: Any) -> bool:
        """Whether the program is compiled for a last argument of this shape."""
        return spec(batch) in self._compiled

    @property
    def compiled(self) -> list[jax.stages.Compiled]:
        """The executables compiled so far, one for each shape of the last argument, for inspection."""
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
        """The same program with other compiler options and without donation.

        It is unloaded once it is no longer referenced.
        """
        function = lambda *args: self.function(*args)  # JAX keeps executables for the lifetime of their function
        return Program(function, batch=self._batch, results=self._results, options=options)

    def side_by_side(self, count: int, shared: Collection[int], like: int | None = None) -> "Program":
        """The program for `count` calls at once: arguments and result are tuples with one value per call.

        Work on shared arguments is done once; a product with a shared matrix is computed once, over the rows of all
        calls. Leaves smaller than those of other calls are padded with zeros at the end.

        Args:
          count: the number of calls.
          shared: positions of the arguments that are the same for all calls, and passed as they are.
          like: position of the argument whose shapes the result of a call has; None if all results have the same
            shapes.
        """

        def batched(*args: Any) -> tuple[Any, ...]:
            stacked = [arg if i in shared else jax.tree.map(_stacked, *arg) for i, arg in enumerate(args)]
            axes = [None if i in shared else 0 for i in range(len(args))]
            results = jax.vmap(self.function, in_axes=axes)(*stacked)
            each = [jax.tree.map(lambda leaf, i=i: leaf[i], results) for i in range(count)]
            if like is not None:
                each = [jax.tree.map(_first_part, result, own) for result, own in zip(each, args[like], strict=True)]
            return tuple(each)

        results = None if self._results is None else (self._results,) * count
        return Program(batched, donate=self._donate, batch=self._batch, results=results)

    def traced(self, *shapes: Any) -> Any:
        """Traces the function for arguments of these shapes; the result can be inspected and lowered."""
        *others, batch = shapes
        if self._batch is not None:
            batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._batch), batch)
        return self._jitted.trace(*others, batch)

    def prepare(self, *args: Any) -> Any:
        """Returns the executable for arguments of these shapes, compiling it if needed.

        Args:
          args: as for a call; the last may be given as shapes.
        """
        key = spec(args[-1])
        if key not in self._compiled:
            started = time.perf_counter()
            self._compiled[key] = self.traced(*args).lower().compile(self._options)
            seconds = time.perf_counter() - started
            self.compile_seconds += seconds
            add_compile_seconds(seconds)
        return self._compiled[key]


_thread = threading.local()  # has `compile_seconds`


def thread_compile_seconds() -> float:
    """Seconds that this thread has spent compiling programs, or waiting for another one that compiled for it."""
    return getattr(_thread, "compile_seconds", 0.0)


def add_compile_seconds(seconds: float) -> None:
    """Adds to `thread_compile_seconds` of this thread."""
    _thread.compile_seconds = thread_compile_seconds() + seconds


def spec(tree: Any) -> Hashable:
    """Structure, shapes and dtypes of a tree: what an executable depends on besides the function."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((leaf.shape, _dtype_of(leaf)) for leaf in leaves)


def _dtype_of(leaf: Any) -> str:
    """The dtype of a leaf in compiled programs, where 64-bit NumPy values become 32-bit."""
    return str(jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True))


def _stacked(*leaves: jax.Array) -> jax.Array:
    """Stacks leaves along a new first axis, padded with zeros to the largest size of each dimension."""
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
    """Bytes of main memory that an executable allocates at each run on the CPU; 0 on other devices."""
    if jax.default_backend() != "cpu":
        return 0
    analysis = compiled.memory_analysis()
    return 0 if analysis is None else analysis.temp_size_in_bytes


def _require_room(size: int) -> int:
    """Returns `size` if this machine has that many bytes in total; more would make the system kill the process.

    Raises:
      MemoryError: it has fewer.
    """
    there = memory_of_host()
    if there is not None and size > there:
        raise MemoryError(f"a step needs {size / 1e9:,.1f} GB at once, this machine has {there / 1e9:,.1f}")
    return size


def memory_of_host() -> int | None:
    """Bytes that this process may use, limited by the machine and by its container; None if unknown."""
    limits = []
    with contextlib.suppress(OSError, ValueError, AttributeError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of control groups, version 2 and 1
        with contextlib.suppress(OSError, ValueError):  # ValueError: the file says `max`
            limits.append(int(Path("/sys/fs/cgroup", name).read_text(encoding="utf-8")))
    return min(limits, default=None)


_NOT_FRAGMENTED = 0.97  # share of an accelerator's memory that fragmentation leaves usable
_FREE_TO_USE = 0.9  # share of free main memory to plan with; the host's own work takes some, too
# Memory for operands packed by the CPU's matrix product library, which the compiler does not count: measured for
# programs of 0.1 to 2.7 GB.
_PACKED_AT_LEAST, _PACKED_SHARE = 30_000_000, 0.06


def free_memory() -> float | None:
    """Free bytes on this process's first device; None if unknown.

    On a CPU the free memory of machine and container, divided by the number of devices.
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
    """Bytes that an executable takes on each device while it runs, without its arguments.

    On a CPU this includes an estimate of the memory for operands packed by XLA's matrix product library, which the
    compiler does not count. It grows with the number of rows; docs/accelerators.md has the measurements.
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


_reported: set[Path] = set()  # directories that cannot be written


def use_compilation_cache(directory: Path, report: Callable[[str], None] = lambda line: None) -> None:
    """Caches compiled programs in `directory`, unless JAX has another cache directory already.

    Args:
      directory: of the cache.
      report: called once per process if the directory cannot be written; what is cached there is then still read.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # pyright: ignore[reportAttributeAccessIssue]  (made at run time)
        return
    reason = why_not_writable(directory)
    if reason is not None:
        if directory not in _reported:
            _reported.add(directory)
            report(
                f"compiled programs are not cached for the next run: {directory} cannot be written ({reason}); "
                "set the environment variable JPEFT_CACHE to a directory that can be"
            )
        if not os.access(directory, os.R_OK | os.X_OK):
            return
        warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache", UserWarning)
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
