"""The commands of the console script `jpeft`, one file each; `main.py` of a checkout is `jpeft train`.

Exit status: 0 done, 1 the work failed, 2 the call was wrong; both of the latter with one line on standard error.
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
        description="Parameter-efficient fine-tuning in JAX. It begins with `jpeft train`; see the README.",
    )
    parser.add_argument("--version", action="version", version=f"jpeft {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `jpeft ARGUMENTS` and returns its exit status."""
    _mend_environment()
    return _one_line_errors(lambda: _command(sys.argv[1:] if argv is None else argv))


def _command(argv: Sequence[str]) -> int:
    """Does what `jpeft ARGUMENTS` asks for."""
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
    _mend_environment()
    return _one_line_errors(lambda: _experiment(argv))


def _experiment(argv: Sequence[str]) -> int:
    require_utf8(argv)
    return run.run(argv)


def _one_line_errors(command: Callable[[], int]) -> int:
    """Runs a command; an error that is not a defect of ours becomes one line and an exit status."""
    try:
        return command()
    except UserError as error:
        return _fail(2, error)
    except RunFailed as error:
        return _fail(1, error)
    except BrokenPipeError:  # `jpeft ... | head` has read enough; nothing is left to flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return _fail(1, "interrupted; the same command goes on from the last checkpoint")
    except Exception as error:
        explanation = explained(error)
        if explanation is None:
            raise  # a defect of ours, with its traceback
        return _fail(2 if isinstance(explanation, UserError) else 1, explanation)


def _fail(status: int, error: object) -> int:
    print("error: " + " ".join(str(error).split("\n")), file=sys.stderr)
    return status


def _mend_environment() -> None:
    """Makes up for what a container or a shell may lack, before a library asks for it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: a file that is opened would get its number, and with it what libraries print there
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a locale that cannot print a letter is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    if os.path.expanduser("~") == "~":  # neither $HOME nor a name for this user: libraries would make a directory `~`
        os.environ["HOME"] = str(Path(tempfile.gettempdir()) / f"jpeft-{os.getuid()}")


_SEEN = "_given"  # where a call that is being read keeps its flags


class _Once(argparse._StoreAction):
    """A flag with a value that may be given once: of two, argparse would take the last without a word."""

    def __call__(self, parser, namespace, values, option_string=None):
        seen = vars(namespace).setdefault(_SEEN, {})
        if option_string is not None and self.dest in seen:
            before, again = (clipped(str(value), 40) for value in (seen[self.dest], values))
            raise argparse.ArgumentError(self, f"is given twice, {before!r} and {again!r}; give it once")
        seen[self.dest] = values
        super().__call__(parser, namespace, values, option_string)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a call in one line, as everything else here does."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for name in (None, "store"):
            self.register("action", name, _Once)

    def parse_known_args(self, args=None, namespace=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        """As argparse does, but `--flag=--` is an error, of which argparse before Python 3.13 makes an empty list."""
        given = sys.argv[1:] if args is None else list(args)
        for arg in itertools.takewhile(lambda arg: arg != "--", given):
            if re.fullmatch(r"--[^=]+=--", arg) and not arg.startswith("--config."):
                self.error(f"argument {arg.removesuffix('=--')}: expected a value, not '--'")
        parsed, others = super().parse_known_args(given, namespace)
        vars(parsed).pop(_SEEN, None)
        return parsed, others

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {' '.join(message.split())} (see {self.prog} --help)\n")
