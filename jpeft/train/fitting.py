"""Settings that reduce a run's memory without changing its result, ordered from cheapest to most expensive.

Three things can change: rows move from the micro-batch to gradient accumulation, the backward pass recomputes
(rematerialises) activations, and fewer rows are evaluated at once. What a setting needs is read from the compiled
program itself.
"""

import dataclasses
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

from jpeft.config import Run
from jpeft.errors import UserError
from jpeft.model.stack import REMAT_POLICIES
from jpeft.typed_config import AUTO, with_value

_CUTS = (1, 2, 4, 8, 16, 32, 64)
_MILD_CUT = 4  # micro-batches of less than a quarter of the rows cost more than rematerialising, so come after it


@dataclasses.dataclass(frozen=True)
class Training:
    """How an optimizer step is computed.

    Attributes:
      remat: as `model.remat`.
      rows: rows of a micro-batch.
      micro_batches: micro-batches of a step.
    """

    remat: str
    rows: int
    micro_batches: int


def trainings(run: Run, *, remat: bool, rows: bool) -> list[Training]:
    """Lists the settings of a step to try: the run's own first, then those that need less memory, cheapest first.

    With `mesh.fsdp` weights are gathered for each micro-batch, so that one more micro-batch costs more than
    rematerialising; without it, moderate accumulation comes first.

    Args:
      run: a run without any `auto`.
      remat, rows: whether these may change.
    """
    first, accumulated = run.rows()[0], run.train.accumulation_steps
    remats = REMAT_POLICIES[REMAT_POLICIES.index(run.model.remat) :] if remat else (run.model.remat,)
    cuts = _divisors(run, first) if rows else [1]
    if run.mesh.fsdp > 1:
        pairs = [(kind, cut) for cut in cuts for kind in remats]
    else:
        mild = [cut for cut in cuts if cut <= _MILD_CUT]
        pairs = [(kind, cut) for some in (mild, cuts[len(mild) :]) for kind in remats for cut in some]
    return [Training(kind, first // cut, accumulated * cut) for kind, cut in pairs]


def evaluations(run: Run, *, rows: bool) -> list[int]:
    """Lists the evaluation batch sizes to try, largest first; arguments as in `trainings`."""
    first = run.rows()[1]
    return [first // cut for cut in _divisors(run, first)] if rows else [first]


def _divisors(run: Run, rows: int) -> list[int]:
    """The numbers of parts that `rows` can be cut into so that each part divides evenly over the mesh's batch axes."""
    parts = run.mesh.data * run.mesh.fsdp
    return [cut for cut in _CUTS if not rows % cut and not rows // cut % parts] or [1]


def with_training(run: Run, setting: Training) -> Run:
    """Returns the run with `model.remat`, `train.batch_size` and `train.accumulation_steps` of a setting."""
    return dataclasses.replace(
        run,
        model=dataclasses.replace(run.model, remat=setting.remat),
        train=dataclasses.replace(run.train, batch_size=setting.rows, accumulation_steps=setting.micro_batches),
    )


def with_evaluation(run: Run, rows: int) -> Run:
    """Returns the run with `rows` as its `eval.batch_size`."""
    return dataclasses.replace(run, eval=dataclasses.replace(run.eval, batch_size=rows))


def first_training(
    settings: Sequence[Training], needs: Callable[[Training], int | None], room: float
) -> Training | None:
    """Returns the first setting that needs at most `room` bytes, or None.

    The memory of a micro-batch grows with its rows, at most proportionally. A setting that is too large by this bound
    is skipped without compiling it.

    Args:
      needs: returns the bytes that a setting's program takes, or None if the compiler refuses it, which says nothing
        about fewer rows; a call may compile for a minute.
    """
    known: dict[str, list[tuple[int, int]]] = {}
    for setting in settings:
        least = max((need * setting.rows // rows for rows, need in known.get(setting.remat, [])), default=0)
        if least > room:
            continue
        need = needs(setting)
        if need is None:
            continue
        if need <= room:
            return setting
        known.setdefault(setting.remat, []).append((setting.rows, need))
    return None


def first_evaluation(rows: Sequence[int], needs: Callable[[int], int | None], room: float) -> int | None:
    """Returns the first batch size that needs at most `room` bytes, or None; `needs` is as for `first_training`."""
    least_refused: tuple[int, int] | None = None
    for number in rows:
        if least_refused is not None and least_refused[1] * number // least_refused[0] > room:
            continue
        need = needs(number)
        if need is None:
            continue
        if need <= room:
            return number
        least_refused = number, need
    return None


class NothingFits(Exception):
    """No setting fits. The text says which part does not: `a training step` or `generating answers`."""


def mildest_fitting(
    run: Run,
    changeable: Container[str],
    *,
    training_needs: Callable[[Training], int | None],
    evaluation_needs: Callable[[Run], int | None],
    room: float,
) -> Run:
    """Returns the run with the mildest settings that need at most `room` bytes.

    Args:
      run: a run without any `auto`.
      changeable: the keys that may change, of `model.remat`, `train.batch_size` and `eval.batch_size`.
      training_needs: returns the bytes that a micro-batch's program takes, or None if the compiler refuses it; a call
        may compile for a minute.
      evaluation_needs: likewise the bytes that evaluation takes, for a run whose training settings are resolved.

    Raises:
      NothingFits: no setting fits.
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
    """Returns the run with the values that an earlier start resolved each `auto` to, as `settled` recorded them.

    Args:
      asked: the run with its `auto` values.

    Raises:
      UserError: the values are not a valid resolution of this run: one is missing or invalid, one is for a key that was
        not `auto`, or a step would have another number of rows.
    """
    mildest = asked.mildest()
    run, first = mildest, settled(mildest)
    opened = open_keys(asked)
    if "train.batch_size" in opened:
        opened.add("train.accumulation_steps")
    for key in first:
        value = values.get(key)
        if value in (AUTO, None):
            raise UserError(f"{key} is {value!r}, which is no value")
        if key not in opened and value != first[key]:
            raise UserError(f"{key} is {value!r}, and the config says {first[key]!r}")
        run = with_value(run, key, value)
    if _step_rows(run) != _step_rows(mildest):
        raise UserError(f"a step has {_step_rows(run)} rows, and the config says {_step_rows(mildest)}")
    return Run.from_config(run.to_dict())


def _step_rows(run: Run) -> int:
    return run.rows()[0] * run.train.accumulation_steps


def open_keys(run: Run) -> set[str]:
    """Returns the config keys that a run leaves open (`auto`)."""
    return {key for key, value in settled(run).items() if value == AUTO}


def settled(run: Run) -> dict[str, int | str]:
    """Returns the values of the settings that resolving `auto` may change, by config key."""
    return {
        "model.remat": run.model.remat,
        "train.batch_size": run.train.batch_size,
        "train.accumulation_steps": run.train.accumulation_steps,
        "eval.batch_size": run.eval.batch_size,
    }


def differing(before: Run, after: Run) -> Iterator[str]:
    """Yields the flags that turn the settings of one run into those of another."""
    old, new = settled(before), settled(after)
    yield from (f"--config.{key}={value}" for key, value in new.items() if value != old[key])
