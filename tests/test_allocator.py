"""Freed memory stays with the process until it is asked back."""

import subprocess
import sys

import pytest

_GROW_AND_FREE = """
import ctypes
from jpeft.allocator import keep_freed_memory, return_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def written_and_freed():
    buffer = libc.malloc(200 << 20)
    ctypes.memset(buffer, 1, 200 << 20)
    libc.free(buffer)

written_and_freed()
print(resident())
keep_freed_memory()
written_and_freed()
print(resident())
return_freed_memory()
print(resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_freed_memory_is_kept_until_it_is_returned():
    run = subprocess.run([sys.executable, "-c", _GROW_AND_FREE], capture_output=True, text=True, check=True)
    before, kept, returned = map(int, run.stdout.split())
    assert kept > before + (190 << 20)
    assert returned < before + (80 << 20)
