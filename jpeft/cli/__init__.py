"""The commands of the console script `jpeft`, one file each; `main.py` of a checkout is `jpeft train`.

Exit status: 0 done, 1 the work failed, 2 the call was wrong; a failure prints one line on standard error.
"""

import argparse
import io
import itertools
import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from jpeft import __version__
from jpeft.cli import (
    evaluate,
    export,
    grid,
    import_adapter,
    merge,
    params,
    plan,
    predict,
    pretrain,
    quantize,
    recommend,
    report,
    run,
    serve,
    train,
)
from jpeft.cli.arguments import require_utf8
from jpeft.errors import RunFailed, UserError
from jpeft.trouble import explained
from jpeft.words import clipped

_COMMANDS = (
    train,
    predict,
    evaluate,
    serve,
    merge,
    export,
    import_adapter,
    recommend,
    report,
    grid,
    plan,
    params,
    quantize,
    pretrain,
)


def build_parser() -> argparse.ArgumentParser:
    """The parser of `jpeft`, with every command."""
    parser = _Parser(
        prog="jpeft",
        description="Parameter-efficient fine-tuning in JAX. Start with `jpeft train`; see the README.",
    )
    parser.add_argument("--version", action="version", version=f"jpeft {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `jpeft ARGUMENTS` and returns its exit status."""
    _repair_environment()
    return _one_line_errors(lambda: _command(sys.argv[1:] if argv is None else argv))


def _command(argv: Sequence[str]) -> int:
    """Parses the command line and runs the command."""
    require_utf8(argv)
    parser = build_parser()
    arguments, others = parser.parse_known_args(argv)
    keys = [arg for arg in others if arg.startswith("--config.")] if hasattr(arguments, "takes_config_keys") else []
    if len(keys) < len(others):
        parser.error(f"unrecognized arguments: {' '.join(arg for arg in others if arg not in keys)}")
    arguments.config_keys = keys
    return arguments.run(arguments)


def run_experiment(argv: Sequence[str]) -> int:
    """`main.py`: one run from a config file and overrides, as `jpeft train`. Returns the exit status."""
    _repair_environment()
    return _one_line_errors(lambda: _experiment(argv))


def _experiment(argv: Sequence[str]) -> int:
    require_utf8(argv)
    return run.run(argv)


def _one_line_errors(command: Callable[[], int]) -> int:
    """Runs a command; an expected error becomes one line and an exit status, a bug keeps its traceback."""
    try:
        return command()
    except UserError as error:
        return _fail(2, error)
    except RunFailed as error:
        return _fail(1, error)
    except BrokenPipeError:  # the reader of a pipe is gone (`| head`); /dev/null takes what is flushed at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return _fail(1, "interrupted.")
    except Exception as error:
        explanation = explained(error)
        if explanation is None:
            raise  # a bug, with its traceback
        return _fail(2 if isinstance(explanation, UserError) else 1, explanation)


def _fail(status: int, error: object) -> int:
    print("error: " + " ".join(str(error).split("\n")), file=sys.stderr)
    return status


def _repair_environment() -> None:
    """Provides what a container or shell may lack (open standard streams, a home directory) before libraries load."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next opened file would get this number, and what libraries print
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # do not fail on a character that the locale cannot print
            stream.reconfigure(errors="backslashreplace")
    if os.path.expanduser("~") == "~":  # no $HOME and no user name: libraries would make a directory `~`
        os.environ["HOME"] = str(Path(tempfile.gettempdir()) / f"jpeft-{os.getuid()}")


_SEEN = "_given"  # namespace attribute with the flags seen so far, while parsing


class _Once(argparse._StoreAction):
    """An argparse action for a flag that may be given once; argparse would silently take the last of two."""

    def __call__(self, parser, namespace, values, option_string=None):
        seen = vars(namespace).setdefault(_SEEN, {})
        if option_string is not None and self.dest in seen:
            before, again = (clipped(str(value), 40) for value in (seen[self.dest], values))
            raise argparse.ArgumentError(self, f"is given twice, {before!r} and {again!r}; give it once")
        seen[self.dest] = values
        super().__call__(parser, namespace, values, option_string)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for name in (None, "store"):
            self.register("action", name, _Once)

    def parse_known_args(self, args=None, namespace=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        """As argparse, but `--flag=--` is an error; before Python 3.13 argparse parses it as an empty list."""
        given = sys.argv[1:] if args is None else list(args)
        for arg in itertools.takewhile(lambda arg: arg != "--", given):
            if re.fullmatch(r"--[^=]+=--", arg) and not arg.startswith("--config."):
                self.error(f"argument {arg.removesuffix('=--')}: expected a value, not '--'")
        parsed, others = super().parse_known_args(given, namespace)
        vars(parsed).pop(_SEEN, None)
        return parsed, others

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {' '.join(message.split())} (see {self.prog} --help)\n")
