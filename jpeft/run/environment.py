"""The environment of a run, for its result: versions, commit, memory."""

import contextlib
import os
import resource
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Literal

import jax

import jpeft
from jpeft.allocator import return_freed_memory

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tokenizers", "transformers", "numpy", "rouge-score")


def versions() -> dict[str, str]:
    """Versions of jpeft and of the packages that may change a result."""
    return {"jpeft": jpeft.__version__, **{name: metadata.version(name) for name in _PACKAGES}}


def commit() -> str | None:
    """The commit of jpeft's own checkout, with `-dirty` if it has changes; None for an installed package."""
    root = Path(jpeft.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        status = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("-dirty" if status.stdout.strip() else "")


def reset_peak_memory() -> None:
    """Resets the process's peak memory where the system can (Linux), so that `peak_memory_bytes` is that of this run.

    An accelerator's allocator cannot reset its peak.
    """
    return_freed_memory()  # freed memory of earlier runs would count as this run's
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes() -> int:
    """The most memory in use at once: of the device if it reports it, else of the process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use") or _resident_peak_bytes()


def resident_bytes(field: Literal["VmRSS", "VmHWM"]) -> int | None:
    """The process's resident memory, now (`VmRSS`) or at most so far (`VmHWM`); None where Linux does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return None


def _resident_peak_bytes() -> int:
    if (known := resident_bytes("VmHWM")) is not None:
        return known
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if os.uname().sysname == "Darwin" else peak * 1024
