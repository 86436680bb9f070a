"""The devices that a run can be planned for: their peak performance, and their descriptions for their compilers.

Memory, bandwidth, interconnect and the peak of bfloat16 products (dense, accumulated in float32) are from the makers'
data sheets: NVIDIA's for each card, Google's "TPU system architecture" pages. The memory of a TPU is what its compiler
grants to a program, which it prints when it refuses one.

The descriptions of GPUs for their compiler are from XLA's own `target_config/specs` for A100, H100, H200 and B200; for
the others, from NVIDIA's architecture papers and the tables of compute capabilities in its programming guide.
"""

import dataclasses
import re
from collections.abc import Mapping

from jpeft.errors import UserError


@dataclasses.dataclass(frozen=True)
class GpuTarget:
    """A GPU as XLA's compiler sees it; a core is a streaming multiprocessor.

    Attributes:
      name: as its driver reports it.
      capability: compute capability, major and minor.
      l2_bytes: of the L2 cache.
      shared_bytes: shared memory of one core.
      block_bytes: the most shared memory of one block of threads.
    """

    name: str
    capability: tuple[int, int]
    cores: int
    clock_ghz: float
    l2_bytes: int
    shared_bytes: int
    block_bytes: int
    threads_per_core: int = 1536
    lanes_per_core: int = 128


@dataclasses.dataclass(frozen=True)
class TpuTarget:
    """The slices of a TPU that can be compiled for.

    Attributes:
      slices: names of topologies by number of devices.
      options: further options of a topology description.
    """

    slices: Mapping[int, str]
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Device:
    """A GPU or TPU model.

    Attributes:
      name: as `--device` takes it.
      memory: bytes.
      flops: per second, of bfloat16 products accumulated in float32.
      bandwidth: of its memory, bytes per second.
      interconnect: to the other devices of its host or slice, bytes per second in one direction.
      target: its description for the compiler.
      network: to devices of other hosts, bytes per second and device in one direction; not used within a TPU slice.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    interconnect: float
    target: GpuTarget | TpuTarget
    network: float = 12.5e9

    @property
    def is_tpu(self) -> bool:
        """Whether it is a TPU; otherwise it is a GPU."""
        return isinstance(self.target, TpuTarget)

    @property
    def extra(self) -> str:
        """The extra of the package that installs its compiler."""
        return "plan-tpu" if self.is_tpu else "plan-gpu"


_PCIE_4, _GIB, _MIB = 32e9, 2**30, 2**20
_AMPERE = {"shared_bytes": 102_400, "block_bytes": 101_376}  # and Ada: of graphics, not of the A100
_A100 = {"shared_bytes": 167_936, "block_bytes": 166_912, "threads_per_core": 2048, "lanes_per_core": 64}
_HOPPER = {"shared_bytes": 233_472, "block_bytes": 232_448, "threads_per_core": 2048}  # and Blackwell

_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {1: "1x1x1", 4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8"}


def _slices(kind: str, shapes: Mapping[int, str]) -> dict[int, str]:
    return {count: f"{kind}:{shape}" for count, shape in shapes.items()}


DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        Device(*("A10", 24e9, 125e12, 600e9, _PCIE_4), GpuTarget("NVIDIA A10", (8, 6), 72, 1.695, 6 * _MIB, **_AMPERE)),
        Device(
            *("A100-40", 40e9, 312e12, 1555e9, 300e9),
            GpuTarget("NVIDIA A100-SXM4-40GB", (8, 0), 108, 1.41, 40 * _MIB, **_A100),
            network=25e9,
        ),
        Device(
            *("A100-80", 80e9, 312e12, 2039e9, 300e9),
            GpuTarget("NVIDIA A100-SXM4-80GB", (8, 0), 108, 1.41, 40 * _MIB, **_A100),
            network=25e9,
        ),
        Device(*("L4", 24e9, 121e12, 300e9, _PCIE_4), GpuTarget("NVIDIA L4", (8, 9), 58, 2.04, 48 * _MIB, **_AMPERE)),
        Device(
            *("L40S", 48e9, 362e12, 864e9, _PCIE_4), GpuTarget("NVIDIA L40S", (8, 9), 142, 2.52, 96 * _MIB, **_AMPERE)
        ),
        Device(
            *("RTX4090", 24e9, 165e12, 1008e9, _PCIE_4),
            GpuTarget("NVIDIA GeForce RTX 4090", (8, 9), 128, 2.52, 72 * _MIB, **_AMPERE),
        ),
        Device(
            *("H100", 80e9, 989e12, 3350e9, 450e9),
            GpuTarget("NVIDIA H100 80GB HBM3", (9, 0), 132, 1.98, 50 * _MIB, **_HOPPER),
            network=50e9,
        ),
        Device(
            *("H200", 141e9, 989e12, 4800e9, 450e9),
            GpuTarget("NVIDIA H200 141GB HBM3e", (9, 0), 132, 1.98, 50 * _MIB, **_HOPPER),
            network=50e9,
        ),
        Device(
            *("B200", 180e9, 2250e12, 7700e9, 900e9),
            GpuTarget("NVIDIA B200", (10, 0), 148, 1.965, 132_644_864, **_HOPPER),
            network=50e9,
        ),
        Device(
            *("v4", 30.75 * _GIB, 275e12, 1228e9, 300e9),
            TpuTarget(_slices("v4", _CUBES), {"chip_config_name": "megacore"}),  # a chip's two cores are one device
        ),
        Device(*("v5e", 15.75 * _GIB, 197e12, 819e9, 200e9), TpuTarget(_slices("v5e", _FLAT))),
        Device(*("v5p", 95.74 * _GIB, 459e12, 2765e9, 600e9), TpuTarget(_slices("v5p", _CUBES))),
        Device(*("v6e", 31.25 * _GIB, 918e12, 1640e9, 448e9), TpuTarget(_slices("v6e", _FLAT))),
    )
}


def device_named(name: str) -> Device:
    """The device of a name, also as `A100-80GB` or `TPU v5e`. Raises `UserError` for an unknown one."""
    plain = re.sub(r"[-_ ]", "", name.lower())
    by_name = {key.lower().replace("-", ""): device for key, device in DEVICES.items()}
    for wanted in (plain, plain.removesuffix("gb"), plain.removeprefix("tpu")):
        if wanted in by_name:
            return by_name[wanted]
    raise UserError(f"--device {name} is not known; there are {', '.join(DEVICES)}.")


def memory_bytes(text: str) -> float:
    """The bytes of a size such as `24GB`; GB are 10^9 and GiB 2^30. Raises `UserError` for anything else."""
    match = re.fullmatch(r"([0-9.]+) ?([GMT])(i?)B", text.strip(), re.IGNORECASE)
    try:
        size = float(match[1]) if match else 0.0
    except ValueError:
        size = 0.0
    if not match or size <= 0:
        raise UserError(f"--device-memory is {text!r}; expected an amount such as 24GB or 80GiB.")
    power = {"M": 2, "G": 3, "T": 4}[match[2].upper()]
    return size * (1024 if match[3] else 1000) ** power
