"""One run from a config and its keys on the command line: `jpeft train`, and `main.py` of a checkout."""

import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from jpeft.cli.config_flags import own_flags, parse_call
from jpeft.errors import UserError

_HELP = """One run of the benchmark, or of a task of your own: trains an adapter, tests it, writes result.json.

  jpeft train --data my.csv --target category --input text --model mini      rows of your own; no network needed
  jpeft train --data my.jsonl --model google/flan-t5-base --method ia3       rows with `input` and `target`
  jpeft train --config lora_agnews_low --config.model.name=google/flan-t5-small               a cell of the paper
  jpeft train --config mini:lora_agnews_medium --config.data.source=sample                    to try it: generated rows

--config is a file with get_config(), or what comes with jpeft: custom[:METHOD], the paper's cells by name
(<method>[_<ablation>]_<task>_<scale>), mini:<cell>, smollm2:<cell>. --data, --target, --input, --template, --model and
--method are short for --config=custom and config.data.path, data.target, data.input, data.template, model.name and
method.name.
`python main.py` in a checkout does the same.

The same command resumes a run that was stopped or killed. Every key of the config can be set by a flag:

"""

# The config key that each short flag sets, and an example value.
_SHORT = {
    "data": ("data.path", "my.csv"),
    "target": ("data.target", "category"),
    "input": ("data.input", "text"),
    "template": ("data.template", "'{title}: {body}'"),
    "model": ("model.name", "mini"),
    "method": ("method.name", "lora"),
}


def run(argv: Sequence[str]) -> int:
    """Does the run of a command line, prints its result and returns the exit status."""
    from jpeft.config import Run, taken_from_model

    call = parse_call(_in_full(argv), Run, _HELP, in_processes=True)
    if call is None:
        return 0

    from jpeft.adapters.files import require_whole
    from jpeft.cli.next_steps import next_steps
    from jpeft.model.settings import in_words
    from jpeft.process import prepare_process
    from jpeft.results import check_result
    from jpeft.run.display import Display
    from jpeft.run.processes import ending_together, is_first
    from jpeft.run.stop import resumable
    from jpeft.train.loop import execute

    prepare_process(lambda line: print(line, file=sys.stderr))  # before `is_first` starts JAX
    if call.group is not None:
        call.group.join()
    with resumable(overwrite=call.overwrite), ending_together(call.group):
        run = Run.from_config(call.config)
        display = Display(quiet=call.quiet or not is_first())
        if taken := taken_from_model(call.config):
            display.say(in_words(run.model.name, taken))
        result = execute(run, call.workdir, overwrite=call.overwrite, display=display)
        if is_first():
            check_result(result, call.workdir / "result.json")  # that of a finished run may have been damaged since
            require_whole(call.workdir / "adapter", result["adapter_bytes"])
            _print_result(result, call.workdir)
            _print_next(next_steps(result, call.workdir, argv))
    return 0


def _in_full(argv: Sequence[str]) -> list[str]:
    """The command line with short flags replaced by config keys, and the default `--config` and `--workdir` added.

    Raises:
      UserError: a short flag has no value or is given twice, or `--data` comes without `--model` (the default would be
        the paper's 3-billion-parameter model).
    """
    full, short = [argv[0]], {}
    words = iter(argv[1:])
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in _SHORT:
            full.append(word)
            continue
        key, example = _SHORT[name]
        value = value if "=" in word else next(words, "")
        if not value:
            raise UserError(f"--{name} has no value; write --{name} {example}.")
        if name in short:
            several = "; several files are one --data A,B with --config.data.mix" if name == "data" else ""
            raise UserError(f"--{name} is given twice, {short[name]!r} and {value!r}; give it once{several}.")
        short[name] = value
        full.append(f"--config.{key}={value}")
    _require_one_of_each(short, full[1:])
    has = lambda *names: any(word.partition("=")[0] in names for word in full)
    if has("--config", "-config"):
        return full
    _require_known(full[1:])  # first, since a missing --config may be a misspelt flag
    if not short:
        return full
    if "data" not in short:
        raise UserError(f"--{next(iter(short))} goes with --data FILE, rows of your own, or with a --config.")
    if not has("--config.model.name"):
        raise UserError("--model is missing: mini (comes with jpeft), google/flan-t5-base, or a directory.")
    full.insert(1, "--config=custom")
    if not has("--workdir", "-workdir"):
        stems = ",".join(Path(file.strip()).stem for file in short["data"].split(","))
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stems).strip("-.") or "rows"
        full.append(f"--workdir=runs/{short.get('method', 'lora')}_{stem[:80]}")
    return full


def _require_one_of_each(short: Iterable[str], words: Sequence[str]) -> None:
    """Raises `UserError` if a short flag and the key that it is short for are both given.

    Args:
      short: the short flags that were given.
      words: the command line with short flags replaced by keys.
    """
    for name in short:
        key = f"--config.{_SHORT[name][0]}"
        if sum(word.partition("=")[0] == key for word in words) > 1:
            raise UserError(f"--{name} is short for {key}, which is given, too; give one of them.")


def _require_known(words: Sequence[str]) -> None:
    """Raises `UserError` for a word that looks like a flag but is unknown."""
    known = [*_SHORT, "config", "help", *own_flags()]
    for word in words:
        name = word.removeprefix("--").partition("=")[0]
        if word.startswith("--") and name.removeprefix("no") not in known and name not in known:
            if not name.startswith("config."):
                near = difflib.get_close_matches(name, known, n=1)
                meant = f"did you mean --{near[0]}? " if near else ""
                raise UserError(f"--{name[:60]} is no flag; {meant}jpeft train --help lists them.")


def _print_result(result: dict, workdir: Path) -> None:
    from jpeft.cli.run_summary import print_numbers, print_summary

    seconds = result["seconds"]
    print_numbers(result)
    if result["zero_shot"]:
        print(f"zero-shot {result['metric_name']}  {result['zero_shot'][result['metric_name']]:.4f}")
    epochs = f"best of epoch {result['best_epoch']}, {result['epochs_run']} run"
    if result.get("validation_metrics"):
        metric = result["monitor"].partition("/")[2]
        print(f"validation {metric}  {result['validation_metrics'][result['best_epoch']][metric]:.4f}")
    print(f"validation loss  {result['validation_loss']:.4f}, {epochs}")
    print(f"seconds  {', '.join(f'{key} {value:.1f}' for key, value in seconds.items())}")
    print(f"result   {workdir / 'result.json'}")
    print(f"adapter  {workdir / 'adapter'}  ({result['adapter_bytes']:,} bytes)")
    print_summary(result, workdir)


def _print_next(steps: Sequence[tuple[str, str]]) -> None:
    for i, (what, command) in enumerate(steps):
        print(f"{'' if i else 'next':8} {command}    # {what}")
