"""Counts a compiled program's messages between devices and its memory traffic, from its text (HLO).

XLA's own analysis counts the body of a loop once, and layers are iterations of one here. The text says how often a loop
runs, in the compiler's annotation or in the loop's condition.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "f32": 4}
_BYTES |= {"s64": 8, "u64": 8, "f64": 8, "s4": 1, "u4": 1, "token": 0}
_BYTES |= dict.fromkeys(("f8e4m3fn", "f8e5m2", "f8e4m3", "f8e8m0fnu"), 1)
# Instructions without memory traffic of their own: aliases, and loops, whose bodies are counted.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *("while", "conditional", "call", "iota", "opt-barrier", "add-dependency", "async-update", "async-done", "domain"),
}
_SLICES = {"dynamic-slice", "slice", "gather"}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a compiled program.

    Attributes:
      shape: of its result, as in the text.
      operands: names of its operands.
      rest: the text from its operands on.
    """

    name: str
    shape: str
    operation: str
    operands: tuple[str, ...]
    rest: str
    root: bool

    @functools.cached_property
    def bytes(self) -> int:
        """Bytes of its result in the device's main memory."""
        return size_of(self.shape)


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Messages:
    """The messages that devices exchange in one call of a program, by kind.

    Attributes:
      count: by kind.
      bytes: by kind, of the results on each device.
      sent: bytes that each device sends, assuming ring algorithms.
      between_hosts: the part of `sent` in messages among devices of several hosts.
    """

    count: dict[str, int]
    bytes: dict[str, int]
    sent: float = 0.0
    between_hosts: float = 0.0


@dataclasses.dataclass(frozen=True)
class Text:
    """The parsed text of a compiled program.

    Attributes:
      computations: by name; the entry is named ENTRY.
      repeats: how often each runs in one call of the program; fused computations are not included.
    """

    computations: Mapping[str, Computation]
    repeats: Mapping[str, int]

    @classmethod
    def of(cls, text: str, *, turns: int = 1) -> "Text":
        """Parses the HLO text of a compiled program, as `jax.stages.Compiled.as_text` gives it.

        Args:
          turns: the assumed iterations of loops whose end depends on the data, such as that of generation.
        """
        computations = _computations(text)
        return cls(computations, _repeats(computations, turns))

    def messages(self, *, devices_per_host: int | None = None) -> Messages:
        """Counts the messages between devices.

        Args:
          devices_per_host: consecutive devices that are on one host; None if all are on the same.
        """
        count: collections.Counter[str] = collections.Counter()
        size: collections.Counter[str] = collections.Counter()
        sent = between = 0.0
        for name, times, instruction in self._with_those_within_fusions():
            kind = instruction.operation.removesuffix("-start")
            if kind not in _COLLECTIVES:
                continue
            held = _held(instruction, self.computations[name])
            groups = groups_of(instruction.rest)
            here = times * held * _share_sent(kind, len(groups[0]) if groups else 2)
            count[kind] += times
            size[kind] += times * held
            sent += here
            if devices_per_host and any(len({i // devices_per_host for i in group}) > 1 for group in groups):
                between += here
        return Messages(dict(count), dict(size), sent, between)

    def bytes_moved(self) -> int:
        """Bytes that the kernels of a device read from its main memory and write to it."""
        total = 0
        for name, times in self.repeats.items():
            computation = self.computations.get(name, {})
            total += times * sum(self._moved(instruction, computation) for instruction in computation.values())
        return total

    def _with_those_within_fusions(self) -> list[tuple[str, int, Instruction]]:
        found: list[tuple[str, int, Instruction]] = []

        def add(name: str, times: int) -> None:
            for instruction in self.computations.get(name, {}).values():
                found.append((name, times, instruction))
                if instruction.operation == "fusion":
                    add(_called(instruction.rest), times)

        for name, times in self.repeats.items():
            add(name, times)
        return found

    def _moved(self, instruction: Instruction, computation: Computation) -> int:
        operation = instruction.operation
        if operation in _FREE or operation.endswith("-done"):
            return 0
        operands = [computation[name] for name in instruction.operands if name in computation]
        if operation in _SLICES:
            return 2 * instruction.bytes
        if operation in ("dynamic-update-slice", "scatter"):
            return 2 * (operands[-1 if operation == "scatter" else 1].bytes if len(operands) > 1 else 0)
        if operation == "fusion":
            inner = self.computations.get(_called(instruction.rest), {})
            read = sum(self._read(inner, number, operand.bytes) for number, operand in enumerate(operands))
            return read + _written(inner, instruction)
        return sum(operand.bytes for operand in operands) + _held(instruction, computation)

    def _read(self, inner: Computation, number: int, whole: int) -> int:
        """Bytes that a fused computation reads of its `number`-th operand: those of slices, or all."""
        parameter = next(
            (i for i in inner.values() if i.operation == "parameter" and i.rest.startswith(f"({number})")), None
        )
        if parameter is None or not whole:
            return whole
        names, total = {parameter.name}, 0
        for user in inner.values():  # in order of dependence
            if not names & set(user.operands):
                continue
            if user.operation in ("bitcast", "reshape"):
                names.add(user.name)
            elif user.operation in _SLICES and user.operands[0] in names:
                total += user.bytes
            elif user.operation == "dynamic-update-slice" and user.operands[0] in names:
                continue  # updated in place
            elif user.operation == "fusion":
                below = self.computations.get(_called(user.rest), {})
                total += sum(self._read(below, i, whole) for i, name in enumerate(user.operands) if name in names)
            else:
                return whole
        return min(total, whole)


def size_of(shapes: str) -> int:
    """Bytes in main memory of a shape such as `f32[2,3]{1,0}`, or a tuple; other memory spaces, `S(1)`, count 0."""
    total = 0
    for kind, dims, layout in re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", shapes):
        if "S(" not in layout or "S(0)" in layout:
            total += _BYTES.get(kind, 4) * math.prod(int(d) for d in dims.split(",") if d)
    return total


def _all_bytes(shapes: str) -> int:
    """As `size_of`, in all memory spaces."""
    return size_of(re.sub(r"S\(\d+\)", "", shapes))


def _held(instruction: Instruction, computation: Computation) -> int:
    """Bytes of an instruction's result; the operands in the result of an asynchronous start are left out."""
    if not instruction.operation.endswith("-start"):
        return _all_bytes(instruction.shape)
    kind, whole = instruction.operation.removesuffix("-start"), _all_bytes(instruction.shape)
    if not instruction.shape.startswith("(") or kind == "all-reduce":
        return whole
    taken = sum(_all_bytes(computation[name].shape) for name in instruction.operands if name in computation)
    return max(whole - taken, 0)


def _written(inner: Computation, instruction: Instruction) -> int:
    """Bytes that a fused instruction writes; of an array that it updates in place, only the updated part."""

    def of(part: Instruction | None) -> int:
        while part is not None and part.operation in ("bitcast", "convert", "copy") and part.operands:
            part = inner.get(part.operands[0])
        if part is not None and part.operation == "tuple":
            return sum(of(inner.get(name)) for name in part.operands)
        if part is not None and part.operation == "dynamic-update-slice" and len(part.operands) > 1:
            return inner[part.operands[1]].bytes if part.operands[1] in inner else part.bytes
        return 0 if part is None else part.bytes

    root = next((i for i in inner.values() if i.root), None)
    return min(of(root), instruction.bytes) if root is not None else instruction.bytes


def _computations(text: str) -> dict[str, Computation]:
    """The instructions of each computation of an HLO text, by name."""
    found: dict[str, Computation] = {}
    current: Computation | None = None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if head and not line.startswith(" "):
            current = found.setdefault("ENTRY" if head[1] else head[2], {})
        elif current is not None and " = " in line:
            instruction = _instruction(line)
            if instruction is not None:
                current[instruction.name] = instruction
    return found


def _instruction(line: str) -> Instruction | None:
    left, _, right = line.partition(" = ")
    name = left.strip()
    root = name.startswith("ROOT ")
    end = _closing(right) + 1 if right.startswith("(") else right.find(" ")
    shape, right = right[:end], right[end:].lstrip()
    operation, bracket, _ = right.partition("(")
    if not bracket or not re.fullmatch(r"[\w\-]+", operation):
        return None
    right = right[len(operation) :]
    end = _closing(right) + 1
    inside, rest = right[1 : end - 1], right[end:]
    if operation == "parameter":
        rest = f"({inside}){rest}"
    if operation == "constant":
        rest = f"({inside[:40]}){rest[:200]}"
    operands = tuple(re.findall(r"%([\w.\-]+)", inside)) or _bare_names(operation, inside)
    return Instruction(name.removeprefix("ROOT ").lstrip("%"), shape, operation, operands, rest, root)


def _bare_names(operation: str, inside: str) -> tuple[str, ...]:
    """The names of operands in a text without `%` before names."""
    if operation in ("parameter", "constant", "iota"):
        return ()
    return tuple(part.split()[-1] for part in re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", inside).split(",") if part.strip())


def _closing(text: str) -> int:
    """The index of the bracket that closes the first one of `text`."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return place
    return len(text) - 1


def _called(rest: str) -> str:
    match = re.search(r"\b(?:calls|to_apply|called_computations=\{)=?%?([\w.\-]+)", rest)
    return match[1] if match else ""


def _repeats(computations: Mapping[str, Computation], turns: int) -> dict[str, int]:
    """How often each computation runs in one call of the program; fused computations are not included."""
    repeats: collections.Counter[str] = collections.Counter()

    def visit(name: str, times: int) -> None:
        repeats[name] += times
        for instruction in computations.get(name, {}).values():
            if instruction.operation == "while":
                body, condition = (
                    match[1] if (match := re.search(rf"\b{word}=%?([\w.\-]+)", instruction.rest)) else ""
                    for word in ("body", "condition")
                )
                visit(body, times * _trips(instruction, computations.get(condition, {}), turns))
            elif instruction.operation in ("call", "async-start"):
                visit(_called(instruction.rest), times)
            elif instruction.operation == "conditional":
                for branch in re.findall(r"(?:branch_computations=\{|_computation=|, )%([\w.\-]+)", instruction.rest):
                    if branch in computations:
                        visit(branch, times)

    visit("ENTRY", 1)
    repeats.pop("", None)
    return dict(repeats)


def _trips(loop: Instruction, condition: Computation, turns: int) -> int:
    """The iterations of a loop: by the compiler's annotation, else by a condition that counts, else `turns`."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
    if known:
        return int(known[1])
    root = next((i for i in condition.values() if i.root), None)
    if root is not None and root.operation in (
        "compare",
        "fusion",
    ):  # only a count; not `and`
        numbers = {
            int(match[1])
            for i in condition.values()
            if i.operation == "constant" and (match := re.match(r"\((\d+)\)", i.rest)) and i.shape.startswith("s32[]")
        }
        if len(numbers) == 1:
            return numbers.pop()
    return turns


def groups_of(rest: str) -> Sequence[Sequence[int]]:
    """The groups of devices that exchange a message; empty if the text has none."""
    listed = re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", rest)
    if listed:
        return [[int(i) for i in group.split(",") if i.strip()] for group in re.findall(r"\{([\d, ]*)\}", listed[1])]
    pairs = re.search(r"source_target_pairs=\{(\{[\d,{} ]*\})\}", rest)
    if pairs:
        return [[int(i) for i in pair.split(",")] for pair in re.findall(r"\{(\d+,\d+)\}", pairs[1])]
    by_axes = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest)
    if by_axes:
        return _groups_by_axes(*by_axes.groups())
    counted = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    if not counted:
        return []
    groups, dims, order = ([int(n) for n in part.split(",")] if part else None for part in counted.groups())
    assert groups is not None and dims is not None
    ids = np.arange(math.prod(dims)).reshape(dims)
    return (ids if order is None else ids.transpose(order)).reshape(groups).reshape(groups[0], -1).tolist()


def _groups_by_axes(mesh: str, along: str) -> Sequence[Sequence[int]]:
    """The groups of devices along axes of a mesh: `'a'=2,'b'=4` and `'b'`, or a part of an axis, `'b':(1)2`."""
    sizes = {name: int(size) for name, size in re.findall(r"'?([\w.]+)'?=(\d+)", mesh)}
    dims: list[int] = []
    inner: list[int] = []  # indices in `dims` of the axes that a group is along
    parts = {name: (int(before), int(size)) for name, before, size in re.findall(r"'?([\w.]+)'?:\((\d+)\)(\d+)", along)}
    whole = set(re.findall(r"'?([\w.]+)'?(?:,|$)", re.sub(r":\(\d+\)\d+", ":", along)))
    for name, size in sizes.items():
        before, part = parts.get(name, (1, size) if name in whole else (1, 1))
        dims += [before, part, size // before // part]
        inner.append(len(dims) - 2)
    ids = np.moveaxis(np.arange(math.prod(dims)).reshape(dims), inner, range(-len(inner), 0))
    return ids.reshape(-1, math.prod(dims[place] for place in inner)).tolist()


def _share_sent(kind: str, devices: int) -> float:
    """Bytes that a device of a group sends per byte of its result, with ring algorithms."""
    if devices < 2:
        return 0.0
    part = (devices - 1) / devices
    return {"all-reduce": 2 * part, "reduce-scatter": devices - 1.0, "collective-permute": 1.0}.get(kind, part)
