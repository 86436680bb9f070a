"""Settings of a process that computes, made before anything else."""

from collections.abc import Callable

from jpeft.accelerators import take_most_of_the_gpu
from jpeft.allocator import keep_freed_memory
from jpeft.files import cache_directory
from jpeft.program import use_compilation_cache


def prepare_process(report: Callable[[str], None]) -> None:
    """Sets how this process allocates memory and where it caches compiled programs; a second call is a no-op.

    To be called before JAX initialises its devices, when it allocates a GPU's memory and starts threads. Even asking
    JAX for the index of this process does that.

    Args:
      report: called once per process if programs cannot be cached.
    """
    keep_freed_memory()
    take_most_of_the_gpu()
    use_compilation_cache(cache_directory() / "compiled", report)
