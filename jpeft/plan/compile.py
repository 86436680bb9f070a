"""Compiles a run's programs for a device with that device's own compiler, which does not need the device.

The compilers of GPUs and TPUs are JAX plug-ins that interfere with a process on a machine without such a device, so
they run in a child process (`jpeft.plan.child`) with its own environment. The CPU's compiler runs in this process.
"""

import dataclasses
import hashlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax

from jpeft.accelerators import compiles_for_gpus, compiles_for_tpus
from jpeft.config import Run
from jpeft.errors import RunFailed, UserError
from jpeft.files import cache_directory, write_whole
from jpeft.plan.devices import Device, GpuTarget, TpuTarget
from jpeft.plan.memory import Described, Held, Lengths, describe
from jpeft.plan.program_text import Messages, Text
from jpeft.plan.work import matmul_flops
from jpeft.trouble import out_of_memory
from jpeft.words import clipped, counted

MOST_SECONDS = 1800.0  # for compiling one program
_FORMAT = 1  # of the cached records


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One compiled program of a run.

    Attributes:
      temporary_bytes: that each device needs while it runs, besides its arguments and results.
      result_bytes: of results that do not reuse a donated argument.
      code_bytes: of its instructions; 0 if the compiler does not report them.
      flops: of matrix products over all devices, in one call.
      bytes_moved: between a device and its memory, in one call.
      messages: between the devices, in one call.
      seconds: taken by compiling.
      refused: the compiler's message if the program needs more memory than the device has; else None. Then
        `temporary_bytes` is taken from the message, and messages and bytes moved are unknown.
    """

    temporary_bytes: int
    result_bytes: int
    code_bytes: int
    flops: float
    bytes_moved: int
    messages: Messages
    seconds: float = 0.0
    refused: str | None = None

    @property
    def bytes(self) -> int:
        """Bytes that a device needs for the program in addition to its arguments."""
        return self.temporary_bytes + self.result_bytes + self.code_bytes

    @classmethod
    def of_dict(cls, values: Mapping[str, Any]) -> "Compiled":
        """The inverse of `dataclasses.asdict`, for the child process and the cache."""
        return cls(**{**values, "messages": Messages(**values["messages"])})


@runtime_checkable
class Compiler(Protocol):
    """Compiles runs' programs for one kind of device.

    Attributes:
      words: the name of the compiler, for the user.
    """

    @property
    def words(self) -> str: ...

    def held(self, run: Run, lengths: Lengths) -> Held:
        """The run's arrays on each device. Raises `UserError` if a dimension cannot be sharded as the mesh asks."""
        ...

    def compile(self, run: Run, lengths: Lengths, step: str) -> Compiled:
        """Compiles the program of one step of `jpeft.plan.memory.steps_of`.

        Raises:
          RunFailed: the compiler failed or ran out of time.
        """
        ...


# --- in this process ---


class Workshop:
    """Compiles in this process, for its own devices or for those that a JAX plug-in describes.

    Args:
      device: to compile for; None for the devices of this process.
      hosts: number of hosts that the devices of a mesh are spread over.
      stands_in: whether this process's devices stand in for an accelerator whose own compiler is not installed; then
        `model.dtype=auto` is bfloat16, as it is on the accelerator.
    """

    def __init__(self, device: Device | None = None, *, hosts: int = 1, stands_in: bool = False):
        self._device, self._hosts = device, hosts
        self._auto_dtype = "auto" if device is None and not stands_in else "bfloat16"
        self._described: dict[Any, Described] = {}
        self.words = f"XLA's compiler for this machine's CPU, jax {jax.__version__}"

    def held(self, run: Run, lengths: Lengths) -> Held:
        return self._describe(run, lengths).held

    def compile(self, run: Run, lengths: Lengths, step: str) -> Compiled:
        require_even(run.mesh.size, self._hosts)
        described = self._describe(run, lengths)
        traced = described.programs[step].traced(*described.arguments[step])
        turns = described.turns[step]
        lowered, per_host = traced.lower(), run.mesh.size // self._hosts
        file = self._file(lowered.as_text(), turns, per_host)
        if (kept := _read(file)) is not None:
            return kept
        flops, started = matmul_flops(traced.jaxpr, turns=turns), time.perf_counter()
        try:
            compiled = lowered.compile()
        except Exception as error:
            if not out_of_memory(error):
                raise
            said = str(error)
            made = Compiled(needed_bytes(said), 0, 0, flops, 0, Messages({}, {}), refused=short_refusal(said))
        else:
            memory, text = compiled.memory_analysis(), Text.of(compiled.as_text() or "", turns=turns)
            made = Compiled(
                temporary_bytes=int(memory.temp_size_in_bytes),
                result_bytes=max(int(memory.output_size_in_bytes) - int(memory.alias_size_in_bytes), 0),
                code_bytes=int(memory.generated_code_size_in_bytes),
                flops=flops,
                bytes_moved=text.bytes_moved(),
                messages=text.messages(devices_per_host=per_host if self._hosts > 1 else None),
            )
        made = dataclasses.replace(made, seconds=round(time.perf_counter() - started, 2))
        _keep(file, made)
        return made

    def _describe(self, run: Run, lengths: Lengths) -> Described:
        key = json.dumps([run.to_dict(), dataclasses.asdict(lengths)])
        if key not in self._described:
            self._described.clear()  # one entry suffices: the steps of a run are compiled in turn
            self._described[key] = describe(run, lengths, self._devices(run.mesh.size), auto_dtype=self._auto_dtype)
        return self._described[key]

    def _devices(self, count: int) -> Any:
        return None if self._device is None else described_devices(self._device, count, self._hosts)

    def _file(self, lowered: str, turns: int, per_host: int) -> Path:
        """The cache file of a program; its name is a digest of the program, its compiler and the compiler's flags."""
        target = repr(self._device and self._device.target)
        flags = os.environ.get("XLA_FLAGS", "") if self._device is None else ""
        parts = [str(_FORMAT), target, self._hosts, compiler_versions(self._device), flags, turns, per_host, lowered]
        return cache_directory() / "plan" / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:40]}.json"


def _read(file: Path) -> Compiled | None:
    try:
        return Compiled.of_dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError):
        return None  # missing or damaged: the program is compiled


def _keep(file: Path, made: Compiled) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(file) as beside:
            beside.write_text(json.dumps(dataclasses.asdict(made)), encoding="utf-8")
    except OSError:
        pass  # the cache cannot be written: the next plan compiles again


# --- for a device that is not there ---


def require_even(devices: int, hosts: int) -> None:
    """Raises `UserError` if the devices cannot be divided evenly among the hosts."""
    if devices % hosts:
        raise UserError(
            f"{counted(devices, 'device')} cannot be divided evenly among {counted(hosts, 'host')}; "
            "give another --hosts."
        )


def described_devices(device: Device, count: int, hosts: int = 1) -> list[Any]:
    """JAX descriptions of `count` devices on `hosts` hosts, for compiling without the devices.

    Raises:
      UserError: they cannot be divided evenly among the hosts, or no TPU slice is that large.
    """
    from jax.experimental import topologies

    require_even(count, hosts)
    if isinstance(device.target, GpuTarget):
        found = topologies.get_topology_desc(
            platform="cuda",
            topology_name=device.name,
            topology=f"1x{hosts}x{count // hosts}",
            target_config=target_config(device, device.target),
        )
        return list(found.devices)
    return tpu_devices(device.target, count, hosts)


def tpu_devices(target: TpuTarget, count: int, hosts: int) -> list[Any]:
    """The first `count` devices of the smallest slice that is large enough. Raises `UserError` if there is none."""
    from jax.experimental import topologies

    size = next((size for size in sorted(target.slices) if size >= count), None)
    if size is None:
        raise UserError(f"there is no slice of {count} devices; the largest that is known has {max(target.slices)}.")
    shape = [int(n) for n in target.slices[size].partition(":")[2].split("x")]
    bounds = tuple(shape + [1] * (3 - len(shape)))
    options: dict[str, Any] = dict(target.options)
    if hosts == 1 and size <= 8 and bounds[2] == 1:
        options["chips_per_host_bounds"] = bounds  # all on one host
    found = topologies.get_topology_desc(platform="tpu", topology_name=target.slices[size], **options)
    return list(found.devices)[:count]


def target_config(device: Device, target: GpuTarget) -> str:
    """The text of a GPU's `GpuTargetConfigProto`, which XLA compiles for."""
    major, minor = target.capability
    return f"""gpu_device_info {{
      threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
      shared_memory_per_core: {target.shared_bytes} shared_memory_per_block_optin: {target.block_bytes}
      threads_per_core_limit: {target.threads_per_core} core_count: {target.cores}
      fpus_per_core: {target.lanes_per_core} block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
      block_dim_limit_z: 65535 memory_bandwidth: {int(device.bandwidth)} l2_cache_size: {target.l2_bytes}
      clock_rate_ghz: {target.clock_ghz} device_memory_size: {int(device.memory)}
      cuda_compute_capability {{ major: {major} minor: {minor} }} registers_per_core_limit: 65536
      registers_per_block_limit: 65536 }}
    platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 patch: 0 }} device_description_str: "{target.name}"
    """


def has_compiler(device: Device) -> bool:
    """Whether the device's own compiler is installed."""
    return compiles_for_tpus() if device.is_tpu else compiles_for_gpus()


def compiler_versions(device: Device | None) -> str:
    """Versions of jax and of the compiler's own package, in words: `jax 0.10.2, libtpu 0.0.31`."""
    names = ["jax"]
    if device is not None:
        names += ["libtpu"] if device.is_tpu else ["jax-cuda13-plugin", "jax-cuda12-plugin"]
    found = []
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


class Remote:
    """Compiles for a device in a child process, which is started by the first request. A context manager.

    Args:
      device: to compile for.
      hosts: number of hosts that the devices of a mesh are spread over.
      seconds: the time limit of one program.
    """

    def __init__(self, device: Device, *, hosts: int = 1, seconds: float = MOST_SECONDS):
        self._device, self._hosts, self._seconds = device, hosts, seconds
        self._child: subprocess.Popen | None = None
        self._said: Any = None
        name = "XLA's compiler for TPUs (libtpu)" if device.is_tpu else "XLA's compiler for NVIDIA GPUs"
        self.words = f"{name}, for {_with_article(device)}, {compiler_versions(device)}"

    def held(self, run: Run, lengths: Lengths) -> Held:
        return Held(**self._ask(run, lengths, "held"))

    def compile(self, run: Run, lengths: Lengths, step: str) -> Compiled:
        return Compiled.of_dict(self._ask(run, lengths, step))

    def __enter__(self) -> "Remote":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the child process."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout, self._said):
                if pipe is not None:
                    pipe.close()
            self._child = None

    def _ask(self, run: Run, lengths: Lengths, what: str) -> dict[str, Any]:
        child = self._started()
        assert child.stdin is not None and child.stdout is not None
        question = {"run": run.to_dict(), "lengths": dataclasses.asdict(lengths), "what": what}
        try:
            child.stdin.write(json.dumps(question).encode() + b"\n")
            child.stdin.flush()
        except BrokenPipeError:
            raise self._died(what) from None
        if not select.select([child.stdout], [], [], self._seconds)[0]:
            self.close()
            raise RunFailed(
                f"the compiler for {self._device.name} has not made {what} in {self._seconds:,.0f} seconds; plan for "
                "a smaller model, or without --device, by this machine's CPU."
            )
        line = child.stdout.readline()
        if not line:
            raise self._died(what)
        answer = json.loads(line)
        if "user_error" in answer:
            raise UserError(answer["user_error"])
        if "failed" in answer:
            raise RunFailed(f"the compiler for {self._device.name} cannot make {what}: {answer['failed']}")
        return answer["made"]

    def _started(self) -> subprocess.Popen:
        if self._child is None:
            self._said = tempfile.TemporaryFile()
            order = [sys.executable, *_CHILD, self._device.name, str(self._hosts)]
            self._child = subprocess.Popen(
                order,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                env=child_environment(self._device),
                start_new_session=True,  # Ctrl-C is handled by this process
            )
        return self._child

    def _died(self, what: str) -> RunFailed:
        assert self._child is not None
        status, said = self._child.wait(), self._last_said()
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        self.close()
        return RunFailed(f"the compiler for {self._device.name} ended {how} at {what}{f': {said}' if said else ''}")

    def _last_said(self) -> str:
        self._said.seek(0)
        lines = [line.strip() for line in self._said.read().decode(errors="replace").splitlines() if line.strip()]
        telling = [line for line in lines if "Check failed" in line or "Error" in line]
        return (telling or lines or [""])[-1][:300]


def _with_article(device: Device) -> str:
    return f"a TPU {device.name}" if device.is_tpu else f"an {device.name}" if device.name[0] in "AHLR" else device.name


def child_environment(device: Device) -> dict[str, str]:
    """The environment of the child process that compiles for this device."""
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_CHILDREN}
    package = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    environment |= {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "2"}
    if device.is_tpu:  # what libtpu would otherwise query, as if this were a TPU's host
        environment |= {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": "v5litepod-4",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_WORKER_ID": "0",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }
    return environment


_CHILD = ["-m", "jpeft.plan.child"]
# Flags that are for this process's devices, and a cache that the child could not use.
_NOT_FOR_CHILDREN = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "LIBTPU_INIT_ARGS")


# --- the messages of a compiler that refuses a program ---


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+) ?([KMGT]?)i?B?"


def needed_bytes(said: str) -> int:
    """The bytes that a refused program needs besides its arguments, from the compiler's message; 0 if it has none."""
    for pattern in (rf"temporaries \({_SIZE}\)", rf"\bprogram +{_SIZE}", rf"allocate {_SIZE}", rf"Used {_SIZE} of"):
        match = re.search(pattern, said)
        if match:
            return int(float(match[1]) * _UNITS[match[2]])
    return 0


def short_refusal(said: str) -> str:
    """The first line of a compiler's refusal, without its status code."""
    first = said.strip().partition("\n")[0].removeprefix("RESOURCE_EXHAUSTED: ")
    return clipped(" ".join(first.split()), 200)
