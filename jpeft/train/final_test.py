"""Answers the test rows of a fine-tuning run, with its best adapter and with its untuned base."""

import dataclasses
from typing import Any

from flax import nnx

from jpeft.data.batches import eval_order
from jpeft.errors import UserError
from jpeft.eval.answering import Answers, ScoredAnswers, answer_split
from jpeft.eval.loss import mean_loss
from jpeft.eval.metrics.own import is_own
from jpeft.peft.attaching import split
from jpeft.program import thread_compile_seconds
from jpeft.run.processes import is_first
from jpeft.train.assembly import Assembly
from jpeft.train.programs import AnsweringPrograms, build_answering
from jpeft.train.trainer import Trainer


def answer_with_adapter(assembly: Assembly, trainer: Trainer) -> ScoredAnswers:
    """Answers every test row with the best adapter, writes `predictions.jsonl` and returns the scored answers.

    Raises:
      UserError: a metric function of the user's fails on the answers.
    """
    best = assembly.layout.place(trainer.best)
    with trainer.timed("test"):
        answers = _answer_test_rows(assembly, trainer, "test", assembly.programs.answering, best, assembly.base)
        try:
            return _score(assembly, "test", "predictions.jsonl", answers)
        except UserError as error:
            if is_own(assembly.monitor.name):  # it chose the best adapter, so the run cannot go on with another
                raise
            raise UserError(
                f"{error} The training is kept: mend the metric or name others in eval.metrics, and give the command "
                "again, which goes on at the test."
            ) from error


def answer_with_base(assembly: Assembly, trainer: Trainer, untuned: nnx.Module) -> dict[str, float]:
    """Answers the test rows with the base alone, writes `zero_shot.jsonl` and returns the metrics.

    Runs of a session that share base and rows share the answers. The seconds, compiling included, are a phase of their
    own and no part of the run's total, since the paper does not count them.
    """
    graphdef, nothing, base = split(untuned)
    run, session = assembly.run, assembly.session
    programs = build_answering(
        graphdef, nothing, base, assembly.layout, **assembly.answering_options, cache=session.programs
    )
    base_key = (run.model.name, assembly.fingerprints.get("base"), run.model.dtype, run.quantization())
    key = (*base_key, assembly.layout, assembly.data_key, run.eval.num_beams, assembly.answer)
    with trainer.timed("zero_shot", compilation_apart=False):
        answer = lambda: _answer_test_rows(assembly, trainer, "zero-shot", programs, nothing, base)
        return _score(assembly, "zero-shot", "zero_shot.jsonl", session.zero_shot.get(key, answer)).numbers


def metrics_by_source(assembly: Assembly, trainer: Trainer, scored: ScoredAnswers) -> dict[str, Any] | None:
    """Row counts and metrics of each file's rows, for a run on several files; None for a run on one.

    Args:
      scored: the answers of the best adapter to the test rows.
    """
    data = assembly.data
    if not data.sources:
        return None
    best = assembly.layout.place(trainer.best)
    by_source, validation_rows = {}, data.rows_by_source("validation")
    padded, batch_size = assembly.padded_rows("validation"), assembly.run.rows()[1]
    for name, test_rows in data.rows_by_source("test").items():
        rows = validation_rows[name]
        order = eval_order(padded.tokens.lengths()[rows], batch_size=batch_size)
        batches = (padded.batch([rows[i] for i in batch], batch_size) for batch in order)
        loss = mean_loss(assembly.programs.loss, best, assembly.base, batches)
        numbers = scored.of_rows(test_rows, data.task, data.examples["test"]).numbers
        counts = {"validation_examples": len(rows), "test_examples": len(test_rows)}
        by_source[name] = {**counts, "validation_loss": loss, "metrics": numbers}
    return by_source


def _answer_test_rows(
    assembly: Assembly, trainer: Trainer, name: str, programs: AnsweringPrograms, adapter: nnx.State, base: nnx.State
) -> Answers:
    """Answers the test rows, showing a progress bar of that name; the run may be stopped between batches."""
    tokens, labels = assembly.data.tokens["test"], assembly.answering_options["labels"]
    adapter, base = programs.ready(adapter, base)
    total = len(tokens) * (1 if labels is None else 2)
    with assembly.display.task(name, total, compiled=thread_compile_seconds) as bar:

        def on_rows(rows: int) -> None:
            bar.advance(rows)
            trainer.stop_if_asked()

        return answer_split(
            programs.generate,
            programs.label_log_probs,
            adapter,
            base,
            tokens,
            assembly.setup.tokenizer,
            labels,
            dataclasses.replace(assembly.batching(programs), on_batch=on_rows),
            classes=assembly.data.task.answers,
        )


def _score(assembly: Assembly, name: str, file: str, answers: Answers) -> ScoredAnswers:
    examples = assembly.data.examples["test"]
    scored = answers.scored(assembly.data.task, examples)
    if is_first():
        scored.write(assembly.directory.path / file, examples)
    metrics = ", ".join(f"{key} {value:.4f}" for key, value in scored.numbers.items())
    assembly.display.say(f"{name}: {metrics}")
    return scored
