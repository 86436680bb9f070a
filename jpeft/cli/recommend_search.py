"""`jpeft recommend --data`: the command line of the search on a user's own rows."""

import argparse
import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jpeft import judging
from jpeft.cli.arguments import require_workdir
from jpeft.cli.config_flags import note_repeated_keys, parse_call, refuse_keys
from jpeft.cli.grid import lanes_of
from jpeft.errors import RunFailed, UserError
from jpeft.judging import Baseline
from jpeft.model.tokenizer import Tokenizer
from jpeft.words import counted

# Config keys that the search sets itself, and what to use in their place.
_OURS = {
    "data.path": "--data",
    "data.task": "--data",
    "data.scale": "data.max_train and train.max_epochs",
    "data.kind": "--task classification or generation",
    "model.name": "--model",
    "method.name": "--methods",
    "train.learning_rate": "what is searched; a config file sets where it begins",
}


def search_and_print(arguments: argparse.Namespace) -> int:
    """Runs the search, prints its result and returns the exit status."""
    from rich.console import Console

    from jpeft.data.sources import require_paths
    from jpeft.model.chat import chat_template_of
    from jpeft.model.family import family_in
    from jpeft.model.source import resolve
    from jpeft.recommend.search import Request, look_at_data, search
    from jpeft.recommend.workers import SearchWorkers

    flags, lanes = _Flags(arguments), lanes_of(arguments.fuse)
    note_repeated_keys(arguments.config_keys)
    methods = flags.methods()
    runs = [flags.configure(method, {}) for method in methods]
    data = runs[0].data
    require_paths(data.source, data.path, data.mix)
    console = Console(stderr=True, highlight=False)
    say = lambda line: console.print(line, markup=False, soft_wrap=True)
    # Resolved before any run, so that a wrong name is one error and not one per run.
    directory = resolve(arguments.model, what="--model", flag="--model", report=say)
    family = family_in(directory)
    tokenizer = family.tokenizer(directory, family.read_config(directory)).asked_by(
        chat_template_of(runs[0].data.chat_template)
    )
    rows = look_at_data(runs[0], tokenizer, report=say)
    baseline = _baseline(rows.labels, tokenizer)
    request = Request(
        methods=tuple(methods),
        configure=flags.configure,
        workdir=flags.workdir,
        rows=rows.counts,
        fingerprint=rows.digest,
        budget_seconds=None if arguments.budget is None else 60.0 * arguments.budget,
        jobs=arguments.jobs,
        lanes=lanes,
        baseline=baseline,
        report=say,
    )
    counts = ", ".join(f"{count:,} {split}" for split, count in rows.counts.items())
    say(f"{counts} rows; {counted(len(methods), 'method')} in {flags.workdir}")
    if baseline is not None:
        say(
            f"without looking at the input: always {baseline.label!r} is right in {baseline.share:.4f} of the test "
            f"rows; labels by their shares have a validation loss of {baseline.loss:.4f}"
        )
    require_workdir(flags.workdir)
    with SearchWorkers(
        flags.workdir,
        jobs=arguments.jobs,
        lanes=lanes,
        retry_failed=arguments.retry_failed,
        console=console,
        say=say,
    ) as workers:
        found = search(request, workers.run_cells)
    return _print(arguments, flags, found, baseline)


def _baseline(labels: Mapping[str, Counter[str]] | None, tokenizer: Tokenizer) -> Baseline | None:
    """The baseline of answers that ignore the input; None if the targets are free text, not labels."""
    if labels is None:
        return None
    kinds = list(dict.fromkeys(label for part in labels.values() for label in part))
    tokens = {label: len(ids) for label, ids in zip(kinds, tokenizer.answers(kinds), strict=True)}
    return judging.baseline(labels["train"], labels["validation"], labels["test"], tokens.__getitem__)


class _Flags:
    """The checked flags of the command, and the configs of the runs that they describe."""

    def __init__(self, arguments: argparse.Namespace):
        if arguments.model is None:
            raise UserError("--model is missing: mini (comes with jpeft), google/flan-t5-base, or a directory.")
        if arguments.runs or arguments.examples is not None:
            raise UserError(
                "--runs and --examples are for numbers that exist, not for a search (--data); leave them out."
            )
        if arguments.task not in (None, "classification", "generation"):
            raise UserError(f"--task is {arguments.task!r}; with --data it is classification or generation.")
        if "," not in arguments.data and not Path(arguments.data).expanduser().exists():
            raise UserError(f"--data {arguments.data} does not exist; name a file of rows, or a directory of splits.")
        if arguments.budget is not None and not 0 < arguments.budget < math.inf:
            raise UserError(f"--budget is {arguments.budget:g}; expected minutes, more than 0.")
        refuse_keys(arguments.config_keys, _OURS, "the search")
        self._arguments = arguments
        self.config = arguments.config or "benchmark"
        slug = lambda text: re.sub(r"[^A-Za-z0-9.-]+", "-", text).strip("-.")
        name = f"recommend_{slug(Path(arguments.data).stem)}_{slug(Path(arguments.model).name)}"
        self.workdir: Path = arguments.workdir or Path("runs") / name

    def methods(self) -> list[str]:
        """Names of the methods to try, each once."""
        from jpeft.peft.methods import METHODS
        from jpeft.typed_config import one_of

        named = [part.strip() for part in self._arguments.methods.split(",") if part.strip()]
        if not named:
            raise UserError("--methods is empty; name one or more methods, separated by commas.")
        return list(dict.fromkeys(one_of("--methods", name, METHODS) for name in named))

    def train_flags(self, method: str, keys: Mapping[str, Any]) -> list[str]:
        """The flags of `jpeft train` for a run of the search, without its `--workdir`."""
        arguments = self._arguments
        task = [] if arguments.task is None else [f"--config.data.kind={arguments.task}"]
        return [
            f"--config={self.config}:{method}_custom_all",
            f"--config.data.path={arguments.data}",
            f"--config.model.name={arguments.model}",
            *task,
            *arguments.config_keys,
            *(f"--config.{key}={value}" for key, value in keys.items()),
        ]

    def configure(self, method: str, keys: Mapping[str, Any]):
        """The config of one run of the search: the command's flags, with this method and these config keys."""
        from jpeft.config import LOSS, Run

        call = parse_call(["jpeft recommend", *self.train_flags(method, keys), "--quiet"], Run, "")
        assert call is not None, "no --help among the config's keys"
        run = Run.from_config(call.config)
        if run.train.monitor != LOSS:
            raise UserError(
                f"train.monitor is {run.train.monitor!r}; a search compares runs by their validation loss: leave it "
                f"{LOSS!r}, and give another to the `jpeft train` of what it recommends."
            )
        return run


def _print(arguments: argparse.Namespace, flags: _Flags, found, baseline: Baseline | None) -> int:
    from rich.console import Console

    from jpeft.recommend import choice
    from jpeft.report import records
    from jpeft.report.terminal import print_document
    from jpeft.report.write import to_json

    short = [
        choice.Short(
            method=one.method,
            factor=one.factor,
            learning_rate=one.learning_rate,
            rank=one.rank,
            epochs=one.learned_epochs,
            validation_loss=one.validation_loss,
            chosen=judged.chosen,
            why=judged.why,
        )
        for judged in found.short
        for one in [judged.candidate]
    ]
    full, finished, left_out = [], [], dict(found.left_out)
    for attempt in found.full:
        directory = attempt.cell.directory(flags.workdir)
        results, problems = records.load([directory]) if attempt.seen.result else ([], [])
        if not results:
            left_out[attempt.method] = f"its full run failed: {problems[0] if problems else attempt.seen.detail}"
            continue
        finished.append(directory)
        command = ["jpeft", "train", *flags.train_flags(attempt.method, attempt.keys), f"--workdir={directory}"]
        full.append(choice.FullRun(results[0], attempt.learning_rate, shlex.join(command)))
    if not full:
        raise RunFailed(f"no full run ended well; {'; '.join(f'{m}: {why}' for m, why in left_out.items())}")
    scarce, on_a_budget = arguments.scarce or "quality", arguments.budget is not None
    made = choice.Choice(scarce, short, full, left_out, found.remarks, baseline, on_a_budget)
    if arguments.json:
        print(to_json(made.as_data()), end="")
    else:
        print_document(made.document(), Console())
        if not made.nothing_learned:
            first = made.ranking[0].full  # not wrapped, since they are for copying
            print(f"\nadapter  {first.adapter}")
            print(f"command  {first.command}")
        again = "for another seed --config.train.seed=1 and a new --workdir"
        print(f"next     jpeft report {shlex.join(map(str, finished))}; {again}")
    return 1 if made.nothing_learned or len(full) < len(found.full) else 0
