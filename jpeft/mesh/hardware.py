"""What devices can do at most, from their makers' data sheets: dense, without sparsity."""

import dataclasses
import re

from jpeft.errors import UserError


@dataclasses.dataclass(frozen=True)
class Hardware:
    """A device.

    Attributes:
      memory: bytes.
      flops: per second, bfloat16 products summed in float32.
      bandwidth: of its memory, bytes a second.
      interconnect: to the other devices of its host or slice, bytes a second in one direction.
    """

    memory: float
    flops: float
    bandwidth: float
    interconnect: float


HARDWARE = {
    "A10": Hardware(24e9, 125e12, 600e9, 32e9),
    "L4": Hardware(24e9, 121e12, 300e9, 32e9),
    "L40S": Hardware(48e9, 362e12, 864e9, 32e9),
    "A100-40GB": Hardware(40e9, 312e12, 1555e9, 300e9),
    "A100-80GB": Hardware(80e9, 312e12, 2039e9, 300e9),
    "H100": Hardware(80e9, 989e12, 3350e9, 450e9),
    "H200": Hardware(141e9, 989e12, 4800e9, 450e9),
    "TPU-v4": Hardware(32e9, 275e12, 1228e9, 300e9),
    "TPU-v5e": Hardware(16e9, 197e12, 819e9, 200e9),
    "TPU-v5p": Hardware(95e9, 459e12, 2765e9, 600e9),
    "TPU-v6e": Hardware(32e9, 918e12, 1640e9, 448e9),
}


def hardware(name: str) -> Hardware:
    """A device by name, however it is written. Raises `UserError` with the names there are."""
    by_name = {key.lower().replace("-", ""): value for key, value in HARDWARE.items()}
    wanted = re.sub(r"[-_ ]", "", name.lower())
    if wanted not in by_name:
        raise UserError(f"--device {name} is not known; there are {', '.join(HARDWARE)}.")
    return by_name[wanted]


def memory_bytes(text: str) -> float:
    """`24GB` and the like in bytes; GB are 10^9 and GiB 2^30. Raises `UserError` for anything else."""
    match = re.fullmatch(r"([0-9.]+) ?([GMT])(i?)B", text.strip(), re.IGNORECASE)
    try:
        size = float(match[1]) if match else 0.0
    except ValueError:
        size = 0.0
    if not match or size <= 0:
        raise UserError(f"--device-memory is {text!r}; expected an amount such as 24GB or 80GiB.")
    power = {"M": 2, "G": 3, "T": 4}[match[2].upper()]
    return size * (1024 if match[3] else 1000) ** power
