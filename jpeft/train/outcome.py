"""Writes what a fine-tuning run leaves behind: its adapter, the judgement of its answers, and `result.json`."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from jpeft.adapters.files import save_adapter
from jpeft.data.sources import source_in_use
from jpeft.data.task_file import QUANTIZED, TaskOfRun
from jpeft.eval.answering import ScoredAnswers
from jpeft.eval.metrics import rouge_tokenizer
from jpeft.model.settings import pass_on
from jpeft.results import RunRecord
from jpeft.run.environment import commit, peak_memory_bytes, versions
from jpeft.run.processes import is_first, wait_for_all
from jpeft.train.aftermath import write_aftermath
from jpeft.train.assembly import Assembly
from jpeft.train.final_test import metrics_by_source
from jpeft.train.trainer import Trainer
from jpeft.words import named_in_bits


def write_outcome(
    assembly: Assembly, trainer: Trainer, scored: ScoredAnswers, warnings: Sequence[str]
) -> dict[str, Any]:
    """Writes adapter, judgements and `result.json`, and returns the content of the latter.

    Args:
      assembly, trainer: the run, trained.
      scored: the answers of the best adapter to the test rows.
      warnings: what was warned of before training.
    """
    run, setup, task = assembly.run, assembly.setup, assembly.data.task
    history = trainer.progress.history
    best_epoch = assembly.monitor.best(history)
    assert best_epoch is not None, "a run has an epoch or more"
    adapter_bytes = _save_best_adapter(assembly, trainer)
    judgement, notes = write_aftermath(
        assembly.directory,
        task,
        assembly.data.examples["test"],
        scored,
        answer=assembly.answer,
        title=f"{run.method.name} of {named_in_bits(run.model.name, setup.quantization)} on {task.name}",
        earlier_warnings=warnings,
        best_epoch=best_epoch,
        epochs_run=len(history),
        max_epochs=assembly.max_epochs,
    )
    for note in notes:
        assembly.display.say(note)
    by_source = metrics_by_source(assembly, trainer, scored)
    record = _record(assembly, trainer, scored, best_epoch, judgement, by_source=by_source, adapter_bytes=adapter_bytes)
    result = record.to_dict()
    assembly.directory.finish(result)
    wait_for_all("result.json is written")
    return result


def total_seconds(seconds: Mapping[str, float]) -> float:
    """The seconds of all phases of a run that count: all but those of the zero-shot test."""
    return sum(value for phase, value in seconds.items() if phase != "zero_shot")


def _record(
    assembly: Assembly,
    trainer: Trainer,
    scored: ScoredAnswers,
    best_epoch: int,
    judgement: Mapping[str, Any],
    *,
    by_source: dict[str, Any] | None,
    adapter_bytes: int,
) -> RunRecord:
    """The record of a finished run.

    Args:
      best_epoch: the index of the best epoch.
      judgement: the fields of the record that `write_aftermath` computed.
      by_source: as `metrics_by_source` computed it.
      adapter_bytes: the size of the saved adapter.
    """
    run, setup, data = assembly.run, assembly.setup, assembly.data
    task, progress, metrics, rows = data.task, trainer.progress, scored.numbers, assembly.num_rows
    losses = [numbers["validation/loss"] for numbers in progress.history]
    seconds = {phase: round(value, 3) for phase, value in progress.seconds.items()}
    return RunRecord(
        method=run.method.name,
        reading=run.method.reading,
        ablation=run.ablation.name,
        task=task.name,
        scale=run.data.scale,
        seed=run.train.seed,
        model=run.model.name,
        quantization=setup.quantization,
        source=source_in_use(run.data.source, run.data.path),
        data_digest=data.digest,
        trainable_parameters=assembly.adapter_parameters,
        total_parameters=setup.total_parameters,
        answer=assembly.answer,
        labels=tuple(task.answers) or None,
        metric_name=task.metric,
        metric=metrics[task.metric],
        rouge_tokenizer=rouge_tokenizer(task, data.examples["test"]),
        metrics=metrics,
        computed_by=scored.judged.computed_by,
        **judgement,
        zero_shot=progress.kept.get("zero_shot"),
        monitor=assembly.monitor.name,
        validation_loss=losses[best_epoch],
        validation_losses=tuple(losses),
        validation_metrics=_validation_metrics(progress.history),
        best_epoch=best_epoch,
        epochs_run=len(losses),
        trained_on_after=tuple(assembly.directory.trained_for()),
        train_examples=rows["train"],
        validation_examples=rows["validation"],
        test_examples=rows["test"],
        by_source=by_source,
        seconds={"total": round(total_seconds(progress.seconds), 3), **seconds},
        tokens_per_second=round(progress.counts["tokens"] / max(progress.seconds["train"], 1e-9), 1),
        peak_memory_bytes=peak_memory_bytes(),
        adapter_bytes=adapter_bytes,
        device=jax.devices()[0].device_kind,
        device_count=assembly.layout.mesh.size,
        mesh=assembly.layout.shape,
        together=getattr(assembly.programs.accumulate, "widest", 1),
        settled=dict(assembly.settled),
        versions=versions(),
        commit=commit(),
        started=progress.started,
        finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _validation_metrics(history: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], ...] | None:
    """The validation metrics of each epoch other than the loss; None if only the loss was computed."""
    by_epoch = [
        {name.partition("/")[2]: value for name, value in numbers.items() if name != "validation/loss"}
        for numbers in history
    ]
    return tuple(by_epoch) if any(by_epoch) else None


def _save_best_adapter(assembly: Assembly, trainer: Trainer) -> int:
    """Writes the best adapter with its `task.json`, and returns the size of its weights in bytes.

    Only the first process writes; the others return 0.
    """
    if not is_first():
        return 0
    run, setup, directory = assembly.run, assembly.setup, assembly.directory.path / "adapter"
    best = nnx.merge(assembly.graphdef, trainer.best, assembly.base)
    size = save_adapter(best, setup.method, setup.sites, directory, base_name=run.model.name)
    if (directory / "config.json").is_file():  # full tuning leaves a whole model, which needs a tokenizer
        setup.tokenizer.save(directory)
        pass_on(run.model.name, directory)
    _task_of_run(assembly).write(directory)
    return size


def _task_of_run(assembly: Assembly) -> TaskOfRun:
    run, setup = assembly.run, assembly.setup
    return TaskOfRun.of(
        assembly.data.task,
        answer=assembly.answer,
        num_beams=run.eval.num_beams,
        dtype=run.model.dtype,
        quantization=_stored_quantization(assembly),
        base=None if setup.method.trains_base else setup.base,
        input=run.data.input,
        options=run.data.options,
        chat_template=setup.tokenizer.wording.chat_template,
        chat_tokens=setup.tokenizer.chat_tokens,
    )


def _stored_quantization(assembly: Assembly) -> str:
    """The base's quantization, for `task.json`: as configured, or else as the base's files have it."""
    asked, stored = assembly.run.quantization(), assembly.setup.quantization
    return str(asked) if asked is not None else stored if stored in QUANTIZED else "auto"
