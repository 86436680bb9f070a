"""Compilers for absent devices cause no warnings, and devices that are present are found."""

import os
import subprocess
import sys

import jax
import pytest

from jpeft import accelerators


@pytest.fixture
def machine(monkeypatch):
    """Simulates a machine with these compilers and devices before JAX is initialised; returns JAX's platforms."""

    def make(*, gpu_compiler=False, tpu_compiler=False, driver=False, tpu=False, others=False, chosen=None):
        for name, value in (
            *(("compiles_for_gpus", gpu_compiler), ("compiles_for_tpus", tpu_compiler)),
            *(("has_gpu_driver", driver), ("has_tpu", tpu), ("_has_other_plugins", others)),
        ):
            monkeypatch.setattr(accelerators, name, lambda value=value: value)
        monkeypatch.delenv("JAX_PLATFORMS", raising=False)
        if chosen is not None:
            monkeypatch.setenv("JAX_PLATFORMS", chosen)
        monkeypatch.delitem(sys.modules, "jax")
        accelerators.spare_what_is_missing()
        monkeypatch.setitem(sys.modules, "jax", jax)
        return os.environ.get("JAX_PLATFORMS")

    return make


def test_the_cpu_alone_is_looked_for_where_there_is_nothing_else(machine):
    assert machine() is None  # no compiler that could disturb
    assert machine(gpu_compiler=True) == machine(tpu_compiler=True) == "cpu"
    assert machine(gpu_compiler=True, tpu_compiler=True) == "cpu"


def test_what_is_there_is_not_hidden(machine):
    assert machine(gpu_compiler=True, driver=True) is None
    assert machine(gpu_compiler=True, tpu_compiler=True, driver=True) is None
    assert machine(tpu_compiler=True, tpu=True) is None
    assert machine(gpu_compiler=True, others=True) is None
    assert machine(gpu_compiler=True, chosen="cuda") == "cuda"


def test_a_gpus_memory_is_taken_unless_told_otherwise(monkeypatch):
    for name in accelerators._MEMORY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    accelerators.take_most_of_the_gpu()
    assert os.environ["XLA_CLIENT_MEM_FRACTION"] == "0.92"
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "0.5")
    accelerators.take_most_of_the_gpu()
    assert os.environ["XLA_CLIENT_MEM_FRACTION"] == "0.5"
    monkeypatch.delenv("XLA_CLIENT_MEM_FRACTION")
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    accelerators.take_most_of_the_gpu()
    assert "XLA_CLIENT_MEM_FRACTION" not in os.environ


def test_flags_that_keep_xla_from_checking_products_are_named():
    said = accelerators.unchecked_products("gpu", "--xla_dump_to=/tmp --xla_gpu_autotune_level=0")
    assert said is not None and said.startswith("XLA_FLAGS has --xla_gpu_autotune_level=0: below 4 XLA does not check")
    assert accelerators.unchecked_products(
        "gpu", "--xla_gpu_autotune_level=4 --xla_gpu_autotune_level=3"
    )  # the last counts
    for platform, flags in (
        *(("cpu", "--xla_gpu_autotune_level=0"), ("gpu", ""), ("gpu", "--xla_gpu_autotune_level=4")),
        *(("gpu", "--xla_gpu_autotune_level=0 --xla_gpu_autotune_level=5"), ("gpu", "--xla_gpu_autotune_level=")),
    ):
        assert accelerators.unchecked_products(platform, flags) is None, (platform, flags)


@pytest.mark.parametrize(
    ("listed", "platforms", "visible"),
    [
        ("3,GPU-8932f937,MIG-5c6f", None, ["3", "GPU-8932f937", "MIG-5c6f"]),
        ("0, 1", "", ["0", "1"]),
        ("-1", None, []),
        ("", None, []),
        ("0,-1,2", None, ["0"]),  # as CUDA reads it
        ("NoDevFiles", None, []),  # as SLURM says it to a job without GPUs
        ("0,1", "cpu", []),
        ("0,1", "tpu,cpu", []),
        ("0,1", "cuda,cpu", ["0", "1"]),
        ("0,1", "gpu", ["0", "1"]),
    ],
)
def test_the_gpus_that_jax_may_use_are_those_that_cuda_and_jax_are_told_of(listed, platforms, visible, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    if platforms is not None:
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert accelerators.visible_gpus() == visible


def test_without_a_list_the_driver_is_asked_for_gpus_unless_jax_is_told_to_leave_them(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    listed = "GPU 0: One (UUID: GPU-1)\n  MIG 1g.10gb Device 0: (UUID: MIG-2)\nGPU 1: Other (UUID: GPU-3)\n"
    asked = lambda command, **how: subprocess.CompletedProcess(command, 0, stdout=listed)
    monkeypatch.setattr(accelerators.subprocess, "run", asked)
    assert accelerators.visible_gpus() == ["0", "1"]
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert accelerators.visible_gpus() == []
