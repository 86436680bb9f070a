"""What a process that computes does before anything else."""

from collections.abc import Callable

from jpeft.accelerators import take_most_of_the_gpu
from jpeft.allocator import keep_freed_memory
from jpeft.files import cache_directory
from jpeft.program import use_compilation_cache


def prepare_process(report: Callable[[str], None]) -> None:
    """Says how this process takes memory, and where it keeps compiled programs; a second call changes nothing.

    To be called before JAX looks for devices, which even asking for the number of this process makes it do: it takes a
    GPU's memory and starts its threads then. `report` hears, once a process, where programs cannot be kept.
    """
    keep_freed_memory()
    take_most_of_the_gpu()
    use_compilation_cache(cache_directory() / "compiled", report)
