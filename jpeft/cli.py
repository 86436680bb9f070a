"""The commands: `main.py` for one run, and the console script `jpeft`.

Exit status: 0 done, 1 the work failed, 2 the call was wrong; both of the latter with one line on standard error.
"""

import argparse
import dataclasses
import difflib
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jpeft import __version__
from jpeft.errors import RunFailed, UserError

_RUN_HELP = """One run of the benchmark, or of a task of your own: trains an adapter, tests it, writes result.json.

  python main.py --config configs/mini.py:lora_agnews_medium --config.data.source=sample     (no network needed)
  python main.py --config configs/ia3_agnews_low.py --workdir runs/ia3_agnews_low
  python main.py --config configs/lora_custom.py --config.data.path=my.jsonl --config.model.name=google/flan-t5-base

Killed and started again with the same command, it goes on where it was. Every key of the config can be set by a flag:

"""

_PRETRAIN_HELP = """Pretrains a T5 on a corpus: span corruption of texts, mixed with pairs of input and target.

  jpeft pretrain --config configs/pretrain/mini.py --config.data.path=CORPUS --workdir runs/mini

The model, with its tokenizer, is left in WORKDIR/model: give that to main.py as --config.model.name. Killed and started
again with the same command, it goes on where it was. Every key of the config can be set by a flag:

"""


def one_line_errors(command: Callable[[], int]) -> int:
    """Runs a command; an error that is not a defect of ours becomes one line and an exit status."""
    try:
        return command()
    except UserError as error:
        return _fail(2, error)
    except RunFailed as error:
        return _fail(1, error)
    except KeyboardInterrupt:
        return _fail(1, "interrupted; the same command goes on from the last checkpoint")


def _fail(status: int, error: object) -> int:
    print(f"error: {error}", file=sys.stderr)
    return status


def run_experiment(argv: Sequence[str]) -> int:
    """`main.py`: one run from a config file and overrides."""
    return one_line_errors(lambda: _run_experiment(argv))


def _run_experiment(argv: Sequence[str]) -> int:
    from jpeft.config import Run

    call = _parse_call(argv, Run, _RUN_HELP)
    if call is None:
        return 0

    from jpeft.train.display import Display
    from jpeft.train.loop import execute

    run = Run.from_config(call.config)
    result = execute(run, call.workdir, overwrite=call.overwrite, display=Display(quiet=call.quiet))
    _print_result(result, call.workdir)
    return 0


def _pretrain(argv: Sequence[str]) -> int:
    from jpeft.pretrain.config import Pretraining

    call = _parse_call(["jpeft pretrain", *argv], Pretraining, _PRETRAIN_HELP)
    if call is None:
        return 0

    from jpeft.pretrain.loop import pretrain
    from jpeft.train.display import Display

    run = Pretraining.from_config(call.config)
    result = pretrain(run, call.workdir, overwrite=call.overwrite, display=Display(quiet=call.quiet))
    for kind, loss in result["validation_loss"].items():
        entropy = result["unigram_entropy"][kind]
        print(f"held-out loss of {kind}  {loss:.4f} nats a token (by token frequency alone {entropy:.4f})")
    tokens = result["input_tokens"] + result["target_tokens"]
    print(f"tokens   {tokens:,} in {result['steps']:,} steps, {result['tokens_per_second']:,.0f} a second")
    print(f"model    {call.workdir / 'model'}  ({result['parameters']:,} parameters)")
    print(f"next     python main.py --config configs/lora_agnews_low.py --config.model.name={call.workdir / 'model'}")
    return 0


@dataclasses.dataclass(frozen=True)
class _Call:
    """A command line that names a config file: what it holds after the overrides, and where and how to run it."""

    config: Any
    workdir: Path
    overwrite: bool
    quiet: bool


def _parse_call(argv: Sequence[str], config_type: type, help_text: str) -> _Call | None:
    """Reads `--config FILE [--config.KEY=VALUE ...] [--workdir DIR]`; prints help and returns None where that is asked.

    Args:
      config_type: the dataclass of sections that the file's config is read into.

    Raises:
      UserError: the file or a flag is not as it has to be.
    """
    from absl import flags
    from ml_collections import config_flags

    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "A file with get_config().", flag_values=values, sys_argv=list(argv)
    )
    flags.DEFINE_string(
        "workdir", None, "Directory of the run; runs/<name of the config> by default.", flag_values=values
    )
    flags.DEFINE_bool(
        "overwrite", False, "Run again what is finished, or was run with another config.", flag_values=values
    )
    flags.DEFINE_bool("quiet", False, "Print the result and errors only.", flag_values=values)
    if len(argv) < 2 or any(arg in ("-h", "-help", "--help") for arg in argv[1:]):
        print(help_text + _describe_keys(config_type))
        for name in ("workdir", "overwrite", "quiet"):
            print(f"  --{name}: {values[name].help}")
        if len(argv) < 2:
            raise UserError("--config is missing; name a file of configs/.")
        return None
    config_file, argument = _config_file(argv)
    sys.modules.pop(
        "config_config", None
    )  # ml_collections loads every config file into one module, over what was there
    try:
        rest = values(list(argv))
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        if "has no attribute 'get_config'" in str(error):
            raise UserError(f"{config_file} has no get_config(), which returns the run's config.") from None
        raise UserError(_explain_flag(error, argv, config_type)) from None
    except (SyntaxError, ImportError, NameError) as error:
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise UserError(f"{config_file}{where} is no working Python: {error.args[0]}.") from None
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is no flag; write --config.KEY=VALUE.")
    given: dict[str, Any] = values.flag_values_dict()
    name = f"{config_file.stem}_{argument}" if argument else config_file.stem
    workdir = Path(given["workdir"] or Path("runs") / name)
    return _Call(given["config"], workdir, given["overwrite"], given["quiet"])


def _config_file(argv: Sequence[str]) -> tuple[Path, str]:
    """The file that `--config` names, and what stands after a colon for its `get_config`."""
    for i, arg in enumerate(argv):
        if arg.startswith(("--config=", "-config=")):
            given = arg.partition("=")[2]
        elif arg in ("--config", "-config") and i + 1 < len(argv):
            given = argv[i + 1]
        else:
            continue
        name, _, argument = given.partition(":")
        path = Path(name)
        if not path.is_file():
            close = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1, cutoff=0.0)
            hint = f"; did you mean {path.parent / close[0]}?" if close else ""
            raise UserError(f"--config {path} does not exist{hint}")
        return path, argument
    raise UserError("--config is missing; name a file such as configs/lora_agnews_low.py (see --help).")


def _explain_flag(error: Exception, argv: Sequence[str], config_type: type) -> str:
    """One line about a flag that could not be taken, with the closest known key."""
    known = _config_keys(config_type)
    for arg in argv[1:]:
        name = arg.lstrip("-").partition("=")[0]
        key = name.removeprefix("config.")
        users_own = any(key.startswith(f"{section}.") for section in known)  # below a section of keys of their choice
        if name.startswith("config.") and key not in known and not users_own:
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            return f"unknown config key {name}; did you mean config.{close}?"
    text = str(error.args[0] if error.args else error).strip()
    if "Traceback (most recent call last)" in text:  # get_config() itself raised: what it said stands last
        return text.splitlines()[-1].partition(": ")[2]
    return text.partition("\n")[0]


def _config_keys(config_type: type) -> dict[str, str]:
    """Every config key with its type and default."""
    keys: dict[str, str] = {}

    def walk(cls: type, prefix: str) -> None:
        for field in dataclasses.fields(cls):
            if dataclasses.is_dataclass(field.type):
                walk(field.type, f"{prefix}{field.name}.")  # type: ignore[arg-type]
            else:
                kind = getattr(field.type, "__name__", str(field.type))
                default = "empty" if field.default is dataclasses.MISSING else field.default
                keys[f"{prefix}{field.name}"] = f"{kind}, default {default}"

    walk(config_type, "")
    return keys


def _describe_keys(config_type: type) -> str:
    parts = []
    for field in dataclasses.fields(config_type):
        parts.append(f"--config.{field.name}.*: {inspect.getdoc(field.type)}\n")
        parts += [
            f"    --config.{key}  ({kind})\n"
            for key, kind in _config_keys(config_type).items()
            if key.startswith(f"{field.name}.")
        ]
        parts.append("\n")
    return "".join(parts)


def _print_result(result: dict, workdir: Path) -> None:
    seconds = result["seconds"]
    print(f"{result['metric_name']}  {result['metric']:.4f}  ({result['test_examples']} test rows)")
    for name, value in result["metrics"].items():
        if name != result["metric_name"]:
            print(f"{name}  {value:.4f}")
    if result["zero_shot"]:
        print(f"zero-shot {result['metric_name']}  {result['zero_shot'][result['metric_name']]:.4f}")
    epochs = f"best of epoch {result['best_epoch']}, {result['epochs_run']} run"
    print(f"validation loss  {result['validation_loss']:.4f}, {epochs}")
    print(f"seconds  {', '.join(f'{key} {value:.1f}' for key, value in seconds.items())}")
    print(f"result   {workdir / 'result.json'}")
    print(f"adapter  {workdir / 'adapter'}  ({result['adapter_bytes']:,} bytes)")
    print(f"next     look at {workdir / 'predictions.jsonl'}; train on from here with --config.method.from_adapter, or")
    print("         on rows of your own: python main.py --config configs/lora_custom.py --config.data.path=my.jsonl \\")
    print(f"             --config.model.name={result['model']}")


def main(argv: Sequence[str] | None = None) -> int:
    """The console script `jpeft`."""
    parser = argparse.ArgumentParser(
        prog="jpeft",
        description="Parameter-efficient fine-tuning of T5 in JAX. One run is started with main.py; see the README.",
    )
    parser.add_argument("--version", action="version", version=f"jpeft {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    params = commands.add_parser(
        "params",
        help="count trainable parameters of every method and ablation",
        description="Counts what each method trains (Table 3 of the paper), on shapes alone: no weights, no network.",
    )
    params.add_argument("--model", default="google/flan-t5-xl", help="hub id or local directory (default: %(default)s)")
    params.add_argument("--json", action="store_true", help="print JSON")
    params.set_defaults(run=_params)
    pretraining = commands.add_parser(
        "pretrain", help="pretrain a T5 on a corpus of your own", add_help=False, prefix_chars="\0"
    )
    pretraining.add_argument("argv", nargs="*")
    pretraining.set_defaults(run=lambda arguments: _pretrain(arguments.argv))
    arguments = parser.parse_args(argv)
    return one_line_errors(lambda: arguments.run(arguments))


def _params(arguments: argparse.Namespace) -> int:
    from jpeft.model.source import load_config
    from jpeft.peft.counting import table_3

    rows = table_3(load_config(arguments.model))
    total = rows[0].parameters
    if arguments.json:
        methods: dict[str, dict[str, int]] = {}
        for row in rows:
            methods.setdefault(row.method, {})[row.ablation or "all"] = row.parameters
        print(json.dumps({"model": arguments.model, "total": total, "methods": methods}, indent=2))
        return 0
    from rich.console import Console
    from rich.table import Table

    from jpeft.report.published import published_parameters

    published = published_parameters() if arguments.model == "google/flan-t5-xl" else {}
    table = Table(title=f"Trainable parameters of {arguments.model}")
    for column in ("method", "ablation"):
        table.add_column(column)
    for column in ("parameters", "share", *(["published"] if published else [])):
        table.add_column(column, justify="right")
    for row in rows:
        cells = [row.method, row.ablation or "", f"{row.parameters:,}", f"{100 * row.parameters / total:.3g} %"]
        if published:
            cells.append(f"{published[row.method, row.ablation]:,}")
        table.add_row(*cells)
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
