"""Settings that make a run need less memory and change nothing of its result, mildest first, and the first that fits.

Rows move from the micro-batch to accumulation, the backward pass computes anew what it would have kept, fewer rows are
evaluated at once. How much a setting needs is asked of the compiled program itself.
"""

import dataclasses
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

from jpeft.config import Run
from jpeft.errors import UserError
from jpeft.typed_config import AUTO, with_value

_REMATS = ("none", "dots", "block")  # mildest first
_CUTS = (1, 2, 4, 8, 16, 32, 64)
_MILD_CUT = 4  # micro-batches of less than a quarter of the rows come after computing anew


@dataclasses.dataclass(frozen=True)
class Training:
    """How a step is computed.

    Attributes:
      remat: as `model.remat`.
      rows: of a micro-batch.
      micro_batches: of a step.
    """

    remat: str
    rows: int
    micro_batches: int


def trainings(run: Run, *, remat: bool, rows: bool) -> list[Training]:
    """The settings of a step, mildest first: the run's own, and those that need less.

    Where weights are gathered for each micro-batch (`mesh.fsdp`), one more of them costs more than computing anew.

    Args:
      run: without any `auto`.
      remat, rows: whether these may change.
    """
    first, accumulated = run.rows()[0], run.train.accumulation_steps
    remats = _REMATS[_REMATS.index(run.model.remat) :] if remat else (run.model.remat,)
    cuts = _cuts(run, first) if rows else [1]
    if run.mesh.fsdp > 1:
        pairs = [(kind, cut) for cut in cuts for kind in remats]
    else:
        mild = [cut for cut in cuts if cut <= _MILD_CUT]
        pairs = [(kind, cut) for some in (mild, cuts[len(mild) :]) for kind in remats for cut in some]
    return [Training(kind, first // cut, accumulated * cut) for kind, cut in pairs]


def evaluations(run: Run, *, rows: bool) -> list[int]:
    """The rows at once of a run's evaluation, most first; arguments as of `trainings`."""
    first = run.rows()[1]
    return [first // cut for cut in _cuts(run, first)] if rows else [first]


def _cuts(run: Run, rows: int) -> list[int]:
    """Into how many parts so many rows can be cut, that the mesh's parts of a batch can share out evenly."""
    parts = run.mesh.data * run.mesh.fsdp
    return [cut for cut in _CUTS if not rows % cut and not rows // cut % parts] or [1]


def with_training(run: Run, setting: Training) -> Run:
    """The run with `model.remat`, `train.batch_size` and `train.accumulation_steps` as a setting has them."""
    return dataclasses.replace(
        run,
        model=dataclasses.replace(run.model, remat=setting.remat),
        train=dataclasses.replace(run.train, batch_size=setting.rows, accumulation_steps=setting.micro_batches),
    )


def with_evaluation(run: Run, rows: int) -> Run:
    """The run with `rows` as its `eval.batch_size`."""
    return dataclasses.replace(run, eval=dataclasses.replace(run.eval, batch_size=rows))


def first_training(settings: Sequence[Training], needs: Callable[[Training], int], room: float) -> Training | None:
    """The first setting that needs no more than `room` bytes; None where none does.

    What a micro-batch needs grows with its rows, and no faster than they do; so much is not asked again.

    Args:
      needs: bytes that a setting's program takes; each call may compile for a minute.
    """
    known: dict[str, list[tuple[int, int]]] = {}
    for setting in settings:
        least = max((need * setting.rows // rows for rows, need in known.get(setting.remat, [])), default=0)
        if least > room:
            continue
        need = needs(setting)
        if need <= room:
            return setting
        known.setdefault(setting.remat, []).append((setting.rows, need))
    return None


def first_evaluation(rows: Sequence[int], needs: Callable[[int], int], room: float) -> int | None:
    """The first number of rows at once that needs no more than `room` bytes; None where none does."""
    least_refused: tuple[int, int] | None = None
    for number in rows:
        if least_refused is not None and least_refused[1] * number // least_refused[0] > room:
            continue
        need = needs(number)
        if need <= room:
            return number
        least_refused = number, need
    return None


class NothingFits(Exception):
    """No setting that may be taken fits; the text is what does not: `a training step`, `generating answers`."""


def mildest_fitting(
    run: Run,
    changeable: Container[str],
    *,
    training_needs: Callable[[Training], int],
    evaluation_needs: Callable[[Run], int],
    room: float,
) -> Run:
    """The run with the mildest settings that need no more than `room` bytes.

    Args:
      run: without any `auto`.
      changeable: of `model.remat`, `train.batch_size` and `eval.batch_size` those that may change.
      training_needs: bytes that a micro-batch's program takes; each call may compile for a minute.
      evaluation_needs: bytes that the programs of evaluation take, of a run whose training is settled; likewise.

    Raises:
      NothingFits: no setting does.
    """
    settings = trainings(run, remat="model.remat" in changeable, rows="train.batch_size" in changeable)
    training = first_training(settings, training_needs, room)
    if training is None:
        raise NothingFits("a training step")
    trained = with_training(run, training)
    numbers = evaluations(trained, rows="eval.batch_size" in changeable)
    rows = first_evaluation(numbers, lambda rows: evaluation_needs(with_evaluation(trained, rows)), room)
    if rows is None:
        raise NothingFits("generating answers")
    return with_evaluation(trained, rows)


def with_settled(asked: Run, values: Mapping[str, Any]) -> Run:
    """The run with what was settled before, as `settled` has it.

    Args:
      asked: with each `auto` that was settled.

    Raises:
      UserError: that is not what such a run settles: a value is none of its key's, of a key that was not `auto`, or a
        step has other rows.
    """
    mildest = asked.mildest()
    run, first = mildest, settled(mildest)
    opened = open_keys(asked)
    if "train.batch_size" in opened:
        opened.add("train.accumulation_steps")
    for key in first:
        value = values.get(key)
        if value in (AUTO, None):
            raise UserError(f"{key} is {value!r}, which settles nothing")
        if key not in opened and value != first[key]:
            raise UserError(f"{key} is {value!r}, and the config says {first[key]!r}")
        run = with_value(run, key, value)
    if _step_rows(run) != _step_rows(mildest):
        raise UserError(f"a step has {_step_rows(run)} rows, and the config says {_step_rows(mildest)}")
    return Run.from_config(run.to_dict())


def _step_rows(run: Run) -> int:
    return run.rows()[0] * run.train.accumulation_steps


def open_keys(run: Run) -> set[str]:
    """The settings that a run leaves open: those that are `auto`, by config key."""
    return {key for key, value in settled(run).items() if value == AUTO}


def settled(run: Run) -> dict[str, int | str]:
    """The settings that `auto` is settled by, by config key."""
    return {
        "model.remat": run.model.remat,
        "train.batch_size": run.train.batch_size,
        "train.accumulation_steps": run.train.accumulation_steps,
        "eval.batch_size": run.eval.batch_size,
    }


def differing(before: Run, after: Run) -> Iterator[str]:
    """The flags that turn one run's settings into another's."""
    old, new = settled(before), settled(after)
    yield from (f"--config.{key}={value}" for key, value in new.items() if value != old[key])
