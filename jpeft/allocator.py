"""Makes the C library's allocator keep the memory that XLA frees, for CPU programs.

On a CPU, XLA allocates the buffers of a program with `malloc` at each call and frees them after it. Large buffers come
fresh from the system each time, and the first write to each page causes a page fault: a third of a training step's time
at the size of `mini` (docs/log.md). Memory kept in the process avoids these faults.

Kept memory helps only if the next program's buffers fit into it. So that all programs reuse the same memory, one
program runs at a time, and fragmented free memory is returned to the system.
"""

import ctypes
import sys
from typing import Any

import jax

# From glibc's malloc.h; other C libraries have no mallopt, or one that ignores these.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_LARGEST_INT = 2**31 - 1
_ALIGNMENT = 1 << 16  # bytes, more than XLA asks for

_keeps = False


def keep_freed_memory() -> None:
    """Makes the process keep freed memory for later allocations. A no-op without glibc.

    To be called before JAX starts its threads, whose own arenas would stay as they are. Afterwards calls of CPU
    programs are synchronous: two programs at once would need the memory of both, and the host has little to do
    meanwhile.
    """
    global _keeps
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        _keeps = True
        mallopt(_M_ARENA_MAX, 1)  # a thread's own arena cannot hold large buffers, which would be mapped afresh
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)
        mallopt(_M_TOP_PAD, 64 << 20)
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def make_room(size: int) -> None:
    """Returns fragmented free memory to the system, if an allocation of `size` bytes would otherwise grow the heap.

    A small value that outlives a program may lie amid the memory that the program freed. The next program then grows
    the heap by its whole size while the fragments stay: twice the memory for the same work. A trial allocation, which
    takes microseconds, tells whether the heap would grow. A no-op unless freed memory is kept.
    """
    if not _keeps:
        return
    sbrk, malloc, free = (_glibc(name) for name in ("sbrk", "malloc", "free"))
    sbrk.argtypes, sbrk.restype = [ctypes.c_ssize_t], ctypes.c_void_p
    malloc.argtypes, malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    free.argtypes, free.restype = [ctypes.c_void_p], None
    end = sbrk(0)
    free(malloc(size + _ALIGNMENT))
    if sbrk(0) != end:
        return_freed_memory()


def return_freed_memory() -> None:
    """Returns all free memory to the system, so that the process's size is what is in use."""
    malloc_trim = _glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _glibc(name: str) -> Any:
    """A function of glibc, or None if the C library is another."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return getattr(library, name) if hasattr(library, "gnu_get_libc_version") else None
