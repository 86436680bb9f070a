"""The C library's allocator, told to keep what XLA frees.

On a CPU XLA takes the buffers of a compiled program from `malloc` at each call and gives them back after it. Large ones
come fresh from the system each time, and every page of them costs a fault when it is first written: a third of a
training step's time at the size of `mini` (docs/log.md). Kept in the process, they are written at once.
"""

import ctypes
import sys

# Of glibc's malloc.h; other C libraries have no mallopt, or one that ignores these.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> None:
    """From here on freed memory stays with the process, for the next that asks. Does nothing but on glibc.

    To be called before JAX starts its threads: an arena that a thread already has of its own stays as it was.
    """
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)  # a thread's own arena can not hold large buffers: they would be the system's again
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)
        mallopt(_M_TOP_PAD, 64 << 20)


def return_freed_memory() -> None:
    """Gives the system back what is free now, so that the process's size tells what is in use."""
    malloc_trim = _glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _glibc(name: str):
    """A function of glibc, or None where that is not the C library."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return getattr(library, name) if hasattr(library, "gnu_get_libc_version") else None
