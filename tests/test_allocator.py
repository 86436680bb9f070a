"""The process keeps freed memory until it is returned explicitly."""

import subprocess
import sys

import pytest

_START = """
import ctypes
from jpeft.allocator import keep_freed_memory, make_room, return_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def written(size=200 << 20):
    buffer = libc.malloc(size)
    ctypes.memset(buffer, 1, size)
    return buffer

def written_and_freed():
    libc.free(written())

"""
_GROW_AND_FREE = """
written_and_freed()
print(resident())
keep_freed_memory()
written_and_freed()
print(resident())
return_freed_memory()
print(resident())
"""


_GO_TO_PIECES = """
keep_freed_memory()
program, result = written(), written(1 << 20)
libc.free(program)
make_room(150 << 20)
print(resident())
in_the_middle = libc.malloc(100 << 20)
small = written(1 << 20)
libc.free(in_the_middle)
make_room(150 << 20)
print(resident())
"""

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")


def printed(program: str) -> list[int]:
    run = subprocess.run([sys.executable, "-c", _START + program], capture_output=True, text=True, check=True)
    return [int(line) for line in run.stdout.split()]


def test_freed_memory_is_kept_until_it_is_returned():
    before, kept, returned = printed(_GROW_AND_FREE)
    assert kept > before + (190 << 20)
    assert returned < before + (80 << 20)


def test_freed_memory_that_has_gone_to_pieces_is_returned_before_the_heap_grows():
    whole, in_pieces = printed(_GO_TO_PIECES)
    assert in_pieces < whole - (150 << 20)
