"""The C library's allocator, told to keep what XLA frees.

On a CPU XLA takes the buffers of a compiled program from `malloc` at each call and gives them back after it. Large ones
come fresh from the system each time, and every page of them costs a fault when it is first written: a third of a
training step's time at the size of `mini` (docs/log.md). Kept in the process, they are written at once.

What is kept is of use only where the next program's buffers fit into it. So that it is the same memory for all of them,
one program runs at a time, and freed memory that has gone to pieces is given back.
"""

import ctypes
import sys
from typing import Any

import jax

# Of glibc's malloc.h; other C libraries have no mallopt, or one that ignores these.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_LARGEST_INT = 2**31 - 1
_ALIGNMENT = 1 << 16  # more than XLA asks for: what is aligned takes some bytes more

_keeps = False


def keep_freed_memory() -> None:
    """Makes the process keep memory that is freed, for whatever needs some next. Does nothing but on glibc.

    To be called before JAX starts its threads: an arena that a thread already has of its own stays as it was. A
    program on a CPU from then on has run when its call returns: two at once would need the memory of two, and
    what the host could do meanwhile is little.
    """
    global _keeps
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        _keeps = True
        mallopt(_M_ARENA_MAX, 1)  # a thread's own arena cannot hold large buffers: they would be the system's again
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)
        mallopt(_M_TOP_PAD, 64 << 20)
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def make_room(size: int) -> None:
    """Gives the system back freed memory that lies in pieces, before something asks for `size` bytes at once.

    A small value that outlives a program's run may lie in the middle of what the program freed. The next run then has
    to grow the heap by its whole size, while the pieces stay: twice the memory for the same work. Whether it would
    grow is asked of `malloc` itself, in microseconds. Does nothing unless freed memory is kept.
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
    """Gives the system back what is free now, so that the process's size tells what is in use."""
    malloc_trim = _glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _glibc(name: str) -> Any:
    """A function of glibc, or None where that is not the C library."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return getattr(library, name) if hasattr(library, "gnu_get_libc_version") else None
