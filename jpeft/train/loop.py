"""Executes a fine-tuning run: trains with early stopping, tests the best adapter, writes the result.

Config and seeds determine all of it except what a checkpoint holds: a run that is killed at any moment and started
again ends with the same adapter, bit for bit.
"""

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from jpeft.accelerators import unchecked_products
from jpeft.config import Run, of_any_version
from jpeft.data.identity import data_record, digest_now
from jpeft.data.sources import source_in_use
from jpeft.data.summary import context_warnings
from jpeft.errors import Paused
from jpeft.eval.look_back import few_test_rows
from jpeft.eval.metrics import reference_cautions
from jpeft.files import cache_directory
from jpeft.model.family import compute_dtype
from jpeft.process import prepare_process
from jpeft.results import PausedRecord
from jpeft.run.directory import METRIC_ORIGINS, PAUSE_FILE, RunDirectory, run_once
from jpeft.run.display import Display
from jpeft.run.processes import from_first
from jpeft.train import cautions
from jpeft.train.assembly import Assembly, assemble
from jpeft.train.final_test import answer_with_adapter, answer_with_base
from jpeft.train.kernel_check import FirstUpdate, MicroBatch, kernel_caution, update_caution
from jpeft.train.origins import origins
from jpeft.train.outcome import total_seconds, write_outcome
from jpeft.train.session import Session
from jpeft.train.step import make_update
from jpeft.train.trainer import Trainer
from jpeft.words import counted, named_in_bits


def execute(
    run: Run,
    workdir: Path,
    *,
    overwrite: bool = False,
    display: Display | None = None,
    session: Session | None = None,
    pause_after: int | None = None,
    on_claim: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Executes a run in `workdir`, resuming from its checkpoint, and returns the content of `result.json`.

    A finished run is not executed again.

    Args:
      run: the config.
      workdir: the run's directory.
      overwrite: start again, replacing the run in `workdir`.
      display: prints progress; by default to standard error.
      session: caches shared with other runs of this process.
      pause_after: pause after this many epochs, unless training ends before; None never pauses. The next call goes on,
        and the run ends as if it had not paused.
      on_claim: called once no other process can be at work in the directory; not for a finished run.

    Raises:
      Paused: the run paused; `paused.json` (`jpeft.results.PausedRecord`) has the metrics of its epochs so far.
      UserError: the config, the directory, the data or the model is not as it has to be.
      RunFailed: the loss is not finite, the disk is full, a file is damaged, or the process was asked to stop; the same
        command goes on from the last checkpoint.
    """
    display = display or Display()
    prepare_process(display.say)

    def work(directory: RunDirectory) -> dict[str, Any]:
        on_claim()
        return _execute(run, directory, display, session or Session(), pause_after)

    return run_once(
        workdir,
        run.to_dict(),
        work,
        overwrite=overwrite,
        report=display.say,
        rows=lambda: digest_of_rows(run),
        origins=lambda: origins(run),
        of_today=of_any_version,
    )


def digest_of_rows(run: Run) -> str | None:
    """The `rows_digest` of the rows that a run would read now; None for rows of the hub, at a fixed revision."""
    data = run.data
    if source_in_use(data.source, data.path) in ("hub", "tfds"):
        return None
    return digest_now(run.build_task(), data.source, data.path, data.mix, sample_seed=data.sample_seed)


def _execute(
    run: Run, directory: RunDirectory, display: Display, session: Session, pause_after: int | None
) -> dict[str, Any]:
    """Executes a run in its claimed directory. Arguments, result and errors as of `execute`."""
    assembly, trainer, untuned = assemble(run, directory, display, session)
    _begin(assembly)
    _introduce(assembly)
    warnings = _warn(assembly, trainer)
    with trainer.at_work() as restored:
        if restored:
            _report_resumption(assembly, trainer)
        kept, judged_by = trainer.progress.kept, _judged_by(assembly)
        if assembly.run.eval.zero_shot and _base_is_to_be_judged(kept, judged_by):
            kept["zero_shot"], kept["judged_by"] = answer_with_base(assembly, trainer, untuned), judged_by
            trainer.save()
        del untuned  # full tuning donates its buffers in the first step
        with contextlib.nullcontext() if (meeting := assembly.meeting) is None else meeting.at_work():
            trainer.train(until=None if pause_after is None else pause_after * assembly.steps_per_epoch)
            if not trainer.finished:
                _pause(assembly, trainer)
            scored = answer_with_adapter(assembly, trainer)
    return write_outcome(assembly, trainer, scored, warnings)


def _judged_by(assembly: Assembly) -> list[str | None]:
    """The run's metrics, with the fingerprints of those that are functions of the user's."""
    return [assembly.run.eval.metrics, *map(assembly.fingerprints.get, METRIC_ORIGINS)]


def _base_is_to_be_judged(kept: Mapping[str, Any], judged_by: list[str | None]) -> bool:
    """Whether the base was not judged yet, or by other metrics, since a run that goes on may have others.

    The first process decides, since all of them answer the rows together: another one may not see the metric's file.
    Every process of the run has to call it.
    """
    is_new = kept.get("zero_shot") is None or kept.get("judged_by", judged_by) != judged_by
    return bool(from_first("new" if is_new else ""))


def _begin(assembly: Assembly) -> None:
    """Takes over the directory, in which a replaced run was untouched until now, and records what the run reads."""
    directory, data, fingerprints = assembly.directory, assembly.data, assembly.fingerprints
    directory.begin(data.digest, fingerprints)
    record = data_record(data.row_ids(), data.tokens, data.shapes, data.digest, fingerprints)
    directory.write_json("splits.json", record)
    if assembly.settled:
        directory.write_json("settled.json", assembly.settled)


def _introduce(assembly: Assembly) -> None:
    """Prints what is trained on which rows, for how many steps at most, and what metrics make of the references."""
    run, setup, rows = assembly.run, assembly.setup, assembly.num_rows
    share = 100 * assembly.adapter_parameters / setup.total_parameters
    base = named_in_bits(run.model.name, setup.quantization)
    assembly.display.say(
        f"{run.method.name}{f' ({run.ablation.name})' if run.ablation.name else ''} of {base} on "
        f"{assembly.data.task.name}: {assembly.adapter_parameters:,} of {setup.total_parameters:,} parameters train "
        f"({share:.3g} %); "
        f"{rows['train']:,} training, {rows['validation']:,} validation, {counted(rows['test'], 'test row')}; "
        f"{counted(assembly.steps_per_epoch, 'step')} an epoch, {counted(assembly.max_epochs, 'epoch')} at most"
    )
    examples = assembly.data.examples
    for line in reference_cautions(assembly.data.task, examples["test"], [row.target for row in examples["train"]]):
        assembly.display.say(line)


def _warn(assembly: Assembly, trainer: Trainer) -> list[str]:
    """Checks config, data and the programs of the first step, and returns the warnings, which it also prints."""
    run, rows = assembly.run, assembly.num_rows
    found = [
        cautions.without_effect(run),
        few_test_rows(rows["test"]),
        cautions.few_steps(
            rows["train"],
            batch_size=run.rows()[0],
            accumulation_steps=run.train.accumulation_steps,
            max_epochs=assembly.max_epochs,
        ),
        *context_warnings(
            assembly.data.tokens, assembly.setup.model.config.context_length, "; data.max_input_length cuts them"
        ),
        unchecked_products(jax.default_backend(), os.environ.get("XLA_FLAGS", "")),
        *([] if assembly.meeting is not None else _check_first_step(assembly, trainer)),
    ]
    warnings = [line for line in found if line is not None]
    for line in warnings:
        assembly.display.say(f"warning: {line}")
    return warnings


def _check_first_step(assembly: Assembly, trainer: Trainer) -> list[str | None]:
    """Compiles the first step's programs, and compares them with other compilations where the compiler may err."""
    checking: dict[str, Any] = {
        "platform": jax.default_backend(),
        "cache_dir": cache_directory() / "kernels",
        "report": assembly.display.say,
    }
    method = assembly.setup.method

    def micro_batch() -> MicroBatch:
        return MicroBatch(
            trainer.programs.accumulate,
            lambda: assembly.layout.place(trainer.programs.zero_sums(trainer.state.adapter)),
            trainer.state.adapter,
            (assembly.base, *trainer.first_batch()),
            perturb=not method.trains_base,
        )

    def update() -> FirstUpdate:
        function = make_update(assembly.optimizer, method)
        return FirstUpdate(trainer.programs.update, function, trainer.state, trainer.rates, micro_batch())

    bfloat16 = compute_dtype(assembly.run.model.dtype) == jnp.bfloat16
    with trainer.timed("compile"):
        return [kernel_caution(micro_batch, bfloat16=bfloat16, **checking), update_caution(update, **checking)]


def _report_resumption(assembly: Assembly, trainer: Trainer) -> None:
    """Prints where a run resumes; and the learning rates, if it had ended and its config has more epochs now."""
    step, say = trainer.step, assembly.display.say
    say(f"goes on in epoch {step // assembly.steps_per_epoch}, after step {step}")
    if assembly.directory.longer_than is None or trainer.finished:
        return
    rates = (trainer.course.schedule(step), assembly.run.train.learning_rate.annealing)
    say(
        "trains on: the schedule now spans {} epochs, so the learning rate goes on at {:.3g} and falls to {:.3g} "
        "again; a run of that many epochs from the start would have had other rates until here".format(
            assembly.max_epochs, *(float(np.asarray(rate)) for rate in rates)
        )
    )


def _pause(assembly: Assembly, trainer: Trainer) -> NoReturn:
    """Writes `paused.json` and raises `Paused`."""
    progress, rows = trainer.progress, assembly.num_rows
    record = PausedRecord(
        validation_losses=tuple(numbers["validation/loss"] for numbers in progress.history),
        train_examples=rows["train"],
        validation_examples=rows["validation"],
        seconds={"total": total_seconds(progress.seconds), **progress.seconds},
    )
    assembly.directory.write_json(PAUSE_FILE, record.to_dict())
    raise Paused(f"waits after {counted(record.epochs, 'epoch')} in {assembly.directory.path}")
