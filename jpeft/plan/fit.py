"""Plans of runs, from their compiled programs: whether a run fits a device, how fast it can be, what makes it fit."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jpeft.config import MeshConfig, Run
from jpeft.errors import RunFailed, UserError
from jpeft.model.stack import REMAT_POLICIES
from jpeft.plan.compile import Compiled, Compiler
from jpeft.plan.devices import Device
from jpeft.plan.memory import ANSWERS, Held, Lengths, longest_lengths, steps_of
from jpeft.train import fitting

USABLE = 0.9  # share of a device's memory; the rest is for the driver, fragmentation and what no plan foresees
Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class LeastSeconds:
    """A lower bound of a step's seconds, by resource.

    Attributes:
      compute: of the matrix products, at the device's peak.
      memory: of what kernels read and write, at the memory's full bandwidth.
      messages: of what a device sends, at the full speed of its links.
    """

    compute: float
    memory: float
    messages: float

    @property
    def total(self) -> float:
        """The bound of the whole step: compute and memory overlap, messages do not."""
        return max(self.compute, self.memory) + self.messages

    @property
    def bound(self) -> str:
        """The largest part: `compute`, `memory` or `messages`."""
        return max(dataclasses.asdict(self).items(), key=lambda item: item[1])[0]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The memory that a run needs on each device, and its compiled programs.

    Attributes:
      run: the planned run, without any `auto` in the settings that are chosen by what fits.
      lengths: the padded lengths of its batches.
      held: bytes that are on each device throughout the run.
      programs: by step of `jpeft.plan.memory.steps_of`; `train` is one micro-batch.
      compiler: which compiler made them, in words.
    """

    run: Run
    lengths: Lengths
    held: Held
    programs: Mapping[str, Compiled]
    compiler: str

    @property
    def peak(self) -> int:
        """The largest number of bytes that a device needs at any time."""
        return self.held.bytes + max(self.needs(step) for step in self.programs)

    def needs(self, step: str) -> int:
        """Bytes that a step needs on each device in addition to `held`."""
        return self.programs[step].bytes + (self.held.answering if step in ANSWERS else 0)

    @property
    def refused(self) -> dict[str, str]:
        """The compiler's messages for steps that it refused for lack of memory, by step."""
        return {step: program.refused for step, program in self.programs.items() if program.refused}

    def fits(self, memory: float) -> bool:
        """Whether every program was compiled and the peak is within `USABLE` of this memory, in bytes."""
        return not self.refused and self.peak <= USABLE * memory

    def calls(self, step: str) -> int:
        """How often the step's program is called per optimizer step, or per batch."""
        return self.run.train.accumulation_steps if step == "train" else 1

    def seconds(self, step: str, device: Device) -> LeastSeconds:
        """A lower bound of the seconds of all calls of a step's program, by the device's data sheet."""
        program, calls = self.programs[step], self.calls(step)
        messages = program.messages
        talk = (messages.sent - messages.between_hosts) / device.interconnect + messages.between_hosts / device.network
        return LeastSeconds(
            compute=calls * program.flops / self.run.mesh.size / device.flops,
            memory=calls * program.bytes_moved / device.bandwidth,
            messages=calls * talk,
        )

    def step_seconds(self, device: Device) -> float:
        """A lower bound of the seconds of one optimizer step: its micro-batches and the update."""
        return self.seconds("train", device).total + self.seconds("update", device).total


def make_plan(
    run: Run, compiler: Compiler, lengths: Lengths | None = None, *, report: Report = lambda line: None
) -> Plan:
    """Compiles a run's programs for its mesh.

    Args:
      run: its first choice is taken for each `auto`.
      lengths: of inputs and targets; None for the longest that the run can have.
      report: called with a line before each program, which can take a minute.

    Raises:
      UserError: a dimension cannot be sharded as the mesh asks, or the model is not known.
      RunFailed: the compiler failed or ran out of time.
    """
    lengths, run = lengths or longest_lengths(run), run.mildest()
    held, programs = compiler.held(run, lengths), {}
    steps = steps_of(run)
    for number, step in enumerate(steps, 1):
        report(f"compiles {step} ({number} of {len(steps)}){_sizes(run, lengths, step)}")
        programs[step] = compiler.compile(run, lengths, step)
    return Plan(run, lengths, held, programs, compiler.words)


def _sizes(run: Run, lengths: Lengths, step: str) -> str:
    trained, evaluated = run.rows()
    rows = {"train": trained, "validation": evaluated} | dict.fromkeys(ANSWERS, evaluated)
    return f": {rows[step]} x ({lengths.input} + {lengths.target} tokens)" if step in rows else ""


def fitted(
    run: Run,
    compiler: Compiler,
    memory: float,
    lengths: Lengths | None = None,
    *,
    anything: bool = False,
    report: Report = lambda line: None,
) -> Plan | None:
    """The plan of a run with the first settings that fit the device, those that cost least time first.

    Args:
      memory: of the device, in bytes.
      lengths: as of `make_plan`.
      anything: whether to change every setting that changes no result, and not only those that are `auto`.
      report: called with a line before each program.

    Returns:
      The plan; None if no settings fit.

    Raises as `make_plan`.
    """
    lengths, first = lengths or longest_lengths(run), run.mildest()
    held = compiler.held(first, lengths)
    room = USABLE * memory - held.bytes
    if room <= 0:
        return None

    def needs_training(setting: fitting.Training) -> int:
        report(f"does it fit with {setting.rows} rows a micro-batch, remat {setting.remat}?")
        return _needs(compiler.compile(fitting.with_training(first, setting), lengths, "train"), room)

    def needs_evaluation(changed: Run) -> int:
        report(f"does it fit with {changed.rows()[1]} rows evaluated at once?")
        of_step = lambda step: _needs(compiler.compile(changed, lengths, step), room)
        answers = [of_step(step) + held.answering for step in steps_of(changed) if step in ANSWERS]
        return max(*answers, of_step("validation"))

    try:
        settled = fitting.mildest_fitting(
            first,
            fitting.settled(run) if anything else fitting.open_keys(run),
            training_needs=needs_training,
            evaluation_needs=needs_evaluation,
            room=room,
        )
    except fitting.NothingFits:
        return None
    made = make_plan(settled, compiler, lengths, report=report)
    return made if made.fits(memory) else None


def _needs(program: Compiled, room: float) -> int:
    """The bytes that a program needs; more than `room` if the compiler refused it."""
    return max(program.bytes, int(room) + 1) if program.refused else program.bytes


def smallest_change(
    plan: Plan, compiler: Compiler, memory: float, *, report: Report = lambda line: None
) -> Plan | None:
    """The plan with the smallest change of settings that makes the run fit without changing its results, or None."""
    return fitted(plan.run, compiler, memory, plan.lengths, anything=True, report=report)


# --- which mesh ---


def meshes(devices: int) -> Iterator[MeshConfig]:
    """Every mesh of this number of devices."""
    for data in _divisors(devices):
        for fsdp in _divisors(devices // data):
            yield MeshConfig(data, fsdp, devices // data // fsdp)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


@dataclasses.dataclass(frozen=True)
class Tried:
    """One mesh, with the fastest settings that fit.

    Attributes:
      plan: None if nothing fits.
      why: the reason, if nothing fits.
    """

    mesh: MeshConfig
    plan: Plan | None
    why: str = ""


def best(
    run: Run,
    compiler: Compiler,
    device: Device,
    memory: float,
    devices: int,
    lengths: Lengths | None = None,
    *,
    report: Report = lambda line: None,
) -> list[Tried]:
    """Finds the fastest rematerialisation and micro-batch that fit, for every mesh of this number of devices.

    The number of rows of an optimizer step stays the same.

    Args:
      memory: of a device, in bytes.
      lengths: as of `make_plan`.
      report: called with a line before each program.

    Returns:
      All meshes, fastest step first; those where nothing fits are last.
    """
    lengths, tried = lengths or longest_lengths(run), []
    for mesh in meshes(devices):
        name = mesh_words(mesh)
        try:
            telling = lambda line, name=name: report(f"{name}: {line}")
            plan = _fastest(run, mesh, compiler, device, memory, lengths, telling)
        except (UserError, RunFailed) as error:
            tried.append(Tried(mesh, None, str(error)))
            continue
        tried.append(Tried(mesh, plan, "" if plan else "nothing fits"))
    seconds = lambda one: one.plan.step_seconds(device) if one.plan else math.inf
    return sorted(tried, key=seconds)


def _fastest(
    run: Run, mesh: MeshConfig, compiler: Compiler, device: Device, memory: float, lengths: Lengths, report: Report
) -> Plan | None:
    """The plan with the fastest of the largest micro-batches that fit, one for each rematerialisation; or None."""
    first = run.mildest()
    rows = first.rows()[0] * first.train.accumulation_steps  # of an optimizer step, in one micro-batch if that fits
    parts = mesh.data * mesh.fsdp
    evaluated = max(first.rows()[1] // parts, 1) * parts
    first = dataclasses.replace(
        first,
        mesh=mesh,
        train=dataclasses.replace(first.train, batch_size=rows, accumulation_steps=1),
        eval=dataclasses.replace(first.eval, batch_size=evaluated),
    )
    if rows % parts:
        raise UserError(f"{rows} rows of a step cannot be divided evenly over {parts} parts.")
    held = compiler.held(first, lengths)
    room = USABLE * memory - held.bytes
    found: list[tuple[float, Run]] = []
    largest = 0

    def needs(setting: fitting.Training) -> int:
        report(f"{setting.rows} rows a micro-batch, remat {setting.remat}")
        return _needs(compiler.compile(fitting.with_training(first, setting), lengths, "train"), room)

    for remat in REMAT_POLICIES if room > 0 else ():
        kind = dataclasses.replace(first, model=dataclasses.replace(first.model, remat=remat))
        settings = [s for s in fitting.trainings(kind, remat=False, rows=True) if s.rows > largest]
        setting = fitting.first_training(settings, needs, room)
        if setting is not None:  # more rematerialisation can only be faster with more rows
            largest = setting.rows
            changed = fitting.with_training(first, setting)
            program = {"train": compiler.compile(changed, lengths, "train")}
            found.append((Plan(changed, lengths, held, program, "").seconds("train", device).total, changed))
    if not found:
        return None
    fastest = min(found, key=lambda pair: pair[0])[1]
    return _with_fitting_evaluation(fastest, evaluated, compiler, memory, lengths, report)


def _with_fitting_evaluation(
    run: Run, rows: int, compiler: Compiler, memory: float, lengths: Lengths, report: Report
) -> Plan | None:
    first = fitting.with_evaluation(run, rows)
    for number in fitting.evaluations(first, rows=True):
        plan = make_plan(fitting.with_evaluation(first, number), compiler, lengths, report=report)
        if plan.fits(memory):
            return plan
    return None


def mesh_words(mesh: MeshConfig) -> str:
    """A mesh as `--mesh` takes it, or `one device`."""
    return ",".join(f"{axis}={parts}" for axis, parts in vars(mesh).items() if parts > 1) or "one device"


# --- many runs ---


def plan_all(
    runs: Sequence[tuple[str, Run]], compiler: Compiler, memory: float, *, report: Report = lambda line: None
) -> Iterator[tuple[str, Run, Plan | None, str]]:
    """Plans each of the named runs, changing settings that change no result if it does not fit as it is.

    Runs with the same programs are planned once.

    Yields:
      The name, the run, its plan or None if nothing fits, and the reason if there is no plan.
    """
    known: dict[Any, tuple[Plan | None, str]] = {}
    for name, run in runs:
        lengths, key = longest_lengths(run), _program_key(run)
        if key not in known:
            telling = lambda line, name=name: report(f"{name}: {line}")
            try:
                plan = fitted(run, compiler, memory, lengths, anything=True, report=telling)
                known[key] = plan, "" if plan else "nothing fits"
            except (UserError, RunFailed) as error:
                known[key] = None, str(error)
        yield name, run, *known[key]


def _program_key(run: Run) -> str:
    """A key of what a run's programs depend on; its rows, seed, rates and epochs are not part of it."""
    run = run.mildest()
    train = {
        name: getattr(run.train, name)
        for name in ("batch_size", "accumulation_steps", "weight_decay", "clip_grad_norm", "label_smoothing")
    }
    evaluation = run.eval.batch_size, run.eval.num_beams, run.eval.answer
    parts = (run.model, run.method, run.ablation, evaluation, run.mesh, train)
    return repr((parts, longest_lengths(run)))
