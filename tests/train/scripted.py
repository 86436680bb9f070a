"""Runs with scripted programs: everything of `execute` but the arithmetic, supplied by the test and recorded.

Nothing is compiled or saved, so that such a run takes a fraction of a second and each of its decisions can be checked.
"""

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jpeft.config import Run
from jpeft.eval.generate import Unscored
from jpeft.mesh.layout import Layout
from jpeft.peft.attaching import split
from jpeft.program import Program, spec
from jpeft.run.display import Display
from jpeft.train import assembly, final_test, loop, outcome, trainer
from jpeft.train.programs import AnsweringPrograms, Programs
from jpeft.train.session import Session


def digest(*values: Any) -> str:
    """A short hash of arrays, texts and numbers."""
    found = hashlib.sha256()
    for value in values:
        found.update(np.asarray(value).tobytes() if hasattr(value, "dtype") else repr(value).encode())
    return found.hexdigest()[:12]


@dataclasses.dataclass
class Script:
    """The inputs of a scripted run, and what it did.

    Attributes:
      losses: validation losses by epoch; the last one is repeated.
      events: in order. `("train", step, micro, rows)`, `("update", step)`, `("validate", adapter, rows)`, `("save",
        number)`, `("answer", adapter, shape)`, `("score", adapter, shape)`. An adapter is identified by the number of
        its updates, rows by digests of their tokens.
      programs: the real programs, never called.
      assembly, trainer: as returned by `jpeft.train.assembly.assemble`.
      start: the initial adapter.
      adapter: the number of updates of the saved adapter.
      result: what the run returned.
      workdir: its directory.
    """

    losses: Sequence[float] = (3.0, 2.0, 1.0)
    events: list[tuple] = dataclasses.field(default_factory=list)
    programs: Any = None
    assembly: Any = None
    trainer: Any = None
    start: Any = None
    adapter: Any = None
    result: Any = None
    workdir: Any = None

    def of(self, kind: str) -> list[tuple]:
        """The events of one kind, without its name."""
        return [event[1:] for event in self.events if event[0] == kind]


class _Scripted(Program):
    """Calls a plain function in place of a compiled one."""

    num_shapes = 1

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


def _rows(batch: Any) -> tuple[str, ...]:
    """Digests of a batch's real rows and their weights, independent of padding."""
    weights = np.asarray(batch["decoder_loss_weights"]).max(axis=1)
    tokens = batch["encoder_input_tokens" if "encoder_input_tokens" in batch else "tokens"]
    named = zip(tokens, batch["decoder_target_tokens"], weights, strict=True)
    rows = ((np.trim_zeros(row, "b"), np.trim_zeros(target, "b"), weight) for row, target, weight in named)
    return tuple(digest(*row) for row in rows if row[-1])


def _age(adapter: Any) -> Any:
    """The number of updates that made an adapter; None for the initial one."""
    values = [np.unique(leaf) for leaf in jax.tree.leaves(adapter)]
    return int(values[0].item()) if values and all(len(v) == 1 and v == values[0] for v in values) else None


def _programs(script: Script, max_length: int) -> Programs:
    def accumulate(sums, adapter, base, key, step, micro, batch):
        script.events.append(("train", int(step), int(micro), _rows(batch)))
        return sums

    def update(state, sums, schedule):
        script.events.append(("update", int(state.step)))
        adapter = jax.tree.map(lambda leaf: np.full(leaf.shape, 100.0 + int(state.step), leaf.dtype), state.adapter)
        return (
            dataclasses.replace(state, step=state.step + 1, adapter=adapter),
            sums,
            {"loss": 1.0, "grad_norm": 1.0, "learning_rate": 1.0},
        )

    def loss(adapter, base, batch):
        script.events.append(("validate", _age(adapter), _rows(batch)))
        epoch = len(script.trainer.progress.history)
        return np.float32(script.losses[min(epoch, len(script.losses) - 1)]), np.float32(1.0)

    def generate(adapter, base, tokens):
        script.events.append(("answer", _age(adapter), np.shape(tokens)))
        return Unscored(np.ones((len(tokens), max_length), np.int32), np.ones(len(tokens), bool))

    def score(adapter, base, tokens):
        script.events.append(("score", _age(adapter), np.shape(tokens)))
        return np.zeros((len(tokens), len(script.assembly.data.task.answers)), np.float32)

    return Programs(
        *map(_Scripted, (accumulate, update, loss)),
        AnsweringPrograms(Layout.of_devices(), _Scripted(generate), _Scripted(score)),
    )


def run_scripted(run: Run, workdir: Path, monkeypatch: Any, *, session: Session | None = None, **fields: Any) -> Script:
    """Executes a run with scripted programs; `fields` are fields of `Script`."""
    script = Script(**fields, workdir=workdir)

    class Checkpoints(trainer.Checkpoints):
        def __init__(self, *args, **kwargs):
            pass

        def restore(self, like):
            return None

        def save(self, number, arrays, progress):
            script.events.append(("save", number))

        def finish(self):
            pass

        close = finish

    def build_programs(*args, max_length, labels, **kwargs):
        script.programs = real_programs(*args, max_length=max_length, labels=labels, **kwargs)
        made = _programs(script, max_length)
        return (
            made
            if labels is not None
            else dataclasses.replace(made, answering=dataclasses.replace(made.answering, label_log_probs=None))
        )

    def build_answering(graphdef, adapter, base, layout, *, max_length, labels, **kwargs):
        made = _programs(script, max_length).answering
        return made if labels is not None else dataclasses.replace(made, label_log_probs=None)

    def save_adapter(model, method, sites, directory, **kwargs):
        script.adapter = _age(split(model)[1])
        directory.mkdir()
        return 0

    def assemble(*args):
        script.assembly, script.trainer, untuned = real_assemble(*args)
        script.start = script.trainer.state.adapter
        return script.assembly, script.trainer, untuned

    real_programs, real_assemble = assembly.build_programs, assembly.assemble
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "Checkpoints", Checkpoints)
        patch.setattr(assembly, "build_programs", build_programs)
        patch.setattr(final_test, "build_answering", build_answering)
        patch.setattr(outcome, "save_adapter", save_adapter)
        patch.setattr(loop, "assemble", assemble)
        script.result = loop.execute(run, workdir, display=Display(quiet=True), session=session or Session())
    return script


_TRACED: dict[Any, str] = {}


def traced(program: Program, *args: Any) -> str:
    """A digest of what a program computes: programs that differ only in names have equal digests."""
    key = (program, spec(args))
    if key not in _TRACED:
        made = jax.make_jaxpr(program.function)(*args)
        _TRACED[key] = digest(re.sub(r"0x[0-9a-f]+", "", str(made)), *_constants(made))
    return _TRACED[key]


def _constants(jaxpr: Any) -> list[np.ndarray]:
    """The constant arrays of a program, of which its text shows the shape only."""
    found = [np.asarray(constant) for constant in getattr(jaxpr, "consts", ())]
    for equation in jaxpr.eqns:
        found += [np.asarray(operand.val) for operand in equation.invars if np.ndim(getattr(operand, "val", 0))]
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                found += _constants(inner) if hasattr(inner, "eqns") else []
    return found
