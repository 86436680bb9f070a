"""Detects accelerators before JAX is initialised.

The compilers of GPUs and TPUs may be installed on a machine without such a device, to plan for it (`jpeft.plan`). JAX
takes them for device drivers, finds no device, and prints long warnings before it falls back on the CPU.
"""

import contextlib
import ctypes
import glob
import importlib.util
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

_GPU_PLUGINS = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")
_GOOGLE = "0x1ae0"  # PCI vendor id


def spare_what_is_missing() -> None:
    """Makes JAX use the CPU only, if there is certainly no other device that it could find.

    To be called before JAX initialises its devices. A no-op if `JAX_PLATFORMS` is set.
    """
    if "JAX_PLATFORMS" in os.environ or not (compiles_for_gpus() or compiles_for_tpus()):
        return
    if _has_other_plugins() or (compiles_for_gpus() and has_gpu_driver()) or (compiles_for_tpus() and has_tpu()):
        return
    if "jax" in sys.modules:
        import jax

        if jax.config.jax_platforms is None:  # pyright: ignore[reportAttributeAccessIssue]  (made at run time)
            jax.config.update("jax_platforms", "cpu")
    else:
        os.environ["JAX_PLATFORMS"] = "cpu"


def take_most_of_the_gpu() -> None:
    """Lets the process allocate 92 % of a GPU's memory; JAX's default is 75 %.

    To be called before JAX initialises its devices. A no-op if an environment variable sets JAX's memory.
    """
    if not any(name in os.environ for name in _MEMORY_VARIABLES):
        os.environ["XLA_CLIENT_MEM_FRACTION"] = "0.92"


def part_of_the_gpu(processes: int) -> dict[str, str]:
    """The environment variables for each of several processes on one GPU, with an equal part of its memory.

    More than a tenth of the memory is left for the driver, which needs some for every process. Empty if an environment
    variable sets JAX's memory already.
    """
    if any(name in os.environ for name in _MEMORY_VARIABLES):
        return {}
    return {"XLA_CLIENT_MEM_FRACTION": f"{0.85 / processes:.4f}"}


_MEMORY_VARIABLES = (
    *("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"),
    *("XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_ALLOCATOR"),
)


_CHECKED_FROM = 4  # autotuning level from which XLA compares the results of candidate kernels with each other


def unchecked_products(platform: str, flags: str) -> str | None:
    """Warns if XLA's flags keep it from checking its candidate kernels for a GPU's matrix products; else returns None.

    By default XLA tries several kernels for each product and rejects those that disagree. At lower autotuning levels it
    accepts wrong kernels, too (docs/accelerators.md describes a case).

    Args:
      platform: as `jax.default_backend` names it.
      flags: `XLA_FLAGS`.
    """
    levels = [word.partition("=")[2] for word in flags.split() if word.startswith("--xla_gpu_autotune_level=")]
    if platform not in ("gpu", "cuda") or not levels or not levels[-1].isdigit() or int(levels[-1]) >= _CHECKED_FROM:
        return None
    return (
        f"XLA_FLAGS has --xla_gpu_autotune_level={int(levels[-1])}: below {_CHECKED_FROM} XLA does not check its "
        "kernels for matrix products, and on an H200 gradients were wrong without a sign of it; leave it out "
        "(docs/accelerators.md)"
    )


def compiles_for_gpus() -> bool:
    """Whether XLA's compiler for NVIDIA GPUs is installed."""
    return any(_is_installed(name) for name in _GPU_PLUGINS)


def compiles_for_tpus() -> bool:
    """Whether XLA's compiler for TPUs is installed."""
    return _is_installed("libtpu")


def has_gpu_driver() -> bool:
    """Whether NVIDIA's driver is installed, without which no GPU is usable."""
    with contextlib.suppress(OSError):
        ctypes.CDLL("libcuda.so.1")
        return True
    return any(os.path.exists(path) for path in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg"))


def visible_gpus() -> list[str]:
    """The GPUs that JAX would find, each as CUDA_VISIBLE_DEVICES names it.

    Empty if JAX_PLATFORMS excludes GPUs. Like CUDA, it ignores everything after the first invalid entry, such as -1.
    """
    platforms = {name.strip() for name in os.environ.get("JAX_PLATFORMS", "").split(",")} - {""}
    if platforms and platforms.isdisjoint(_PLATFORMS_OF_GPUS):
        return []
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        words = (word.strip() for word in os.environ["CUDA_VISIBLE_DEVICES"].split(","))
        return list(itertools.takewhile(_NAME_OF_A_GPU.fullmatch, words))
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(i) for i, _ in enumerate(line for line in listed.splitlines() if line.startswith("GPU "))]


_PLATFORMS_OF_GPUS = {"gpu", "cuda", "rocm"}
_NAME_OF_A_GPU = re.compile("[0-9]+|(GPU|MIG)-.+")


def has_tpu() -> bool:
    """Whether a TPU is on the PCI bus, or a device file exists that may belong to one."""
    for vendor in glob.glob("/sys/bus/pci/devices/*/vendor"):
        with contextlib.suppress(OSError):
            if Path(vendor).read_text(encoding="utf-8").strip() == _GOOGLE:
                return True
    return bool(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"))


def _has_other_plugins() -> bool:
    """Whether JAX has plugins for devices of other kinds, which cannot be checked here."""
    try:
        import jax_plugins  # pyright: ignore[reportMissingImports]  (exists where a plugin is installed)
    except ImportError:
        return False
    known = {name.rpartition(".")[2] for name in _GPU_PLUGINS}
    return any(
        child.is_dir() and child.name not in known and not child.name.startswith("_")
        for place in jax_plugins.__path__
        for child in Path(place).iterdir()
    )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
