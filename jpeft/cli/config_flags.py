"""Command lines that name a config file and set its keys: `--config FILE[:ARG] --config.KEY=VALUE --workdir DIR`."""

import dataclasses
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jpeft import configs
from jpeft.cli.arguments import as_path, require_utf8
from jpeft.configs import ConfigFile
from jpeft.errors import UserError


@dataclasses.dataclass(frozen=True)
class ConfigCall:
    """A parsed command line that names a config file.

    Attributes:
      config: the file's config with the command line's keys set.
      workdir: the run's directory.
      overwrite: whether a finished or different run in that directory is replaced.
      quiet: whether only the result and errors are printed.
      group: the `jpeft.run.processes.ProcessGroup` that this process belongs to; None if it runs alone.
    """

    config: Any
    workdir: Path
    overwrite: bool
    quiet: bool
    group: Any = None


def parse_call(
    argv: Sequence[str], config_type: type, help_text: str, *, in_processes: bool = False
) -> ConfigCall | None:
    """Parses `--config FILE [--config.KEY=VALUE ...] [--workdir DIR]`.

    FILE may be the name of a config that comes with the package (`jpeft.configs`).

    Args:
      argv: the command's name, then its words.
      config_type: the dataclass whose sections and fields are the config's keys.
      help_text: printed before the list of keys by `--help`.
      in_processes: whether to accept the flags of a run by several processes.

    Returns:
      The call; None for `--help`, which is printed.

    Raises:
      UserError: the config file or a flag is wrong.
    """
    from absl import flags

    argv, found = _with_file(argv)
    values = flags.FlagValues()
    _define_flags(values, argv, in_processes)
    if len(argv) < 2 or any(arg in ("-h", "-help", "--help") for arg in argv[1:]):
        print(help_text + _describe_keys(config_type))
        for name in ("workdir", "overwrite", "quiet", *(_PROCESS_FLAGS if in_processes else ())):
            print(f"  --{name}: {values[name].help}")
        if len(argv) < 2:
            raise UserError(_MISSING)
        return None
    if found is None:
        raise UserError(_MISSING)
    given = _given(values, argv, config_type, found.path)
    if not given["quiet"]:
        note_repeated_keys(argv[1:])
    workdir = Path("runs") / found.name if given["workdir"] is None else as_path(given["workdir"], "--workdir")
    require_utf8([str(workdir.absolute())])  # the current directory's name counts, too
    return ConfigCall(
        given["config"], workdir, given["overwrite"], given["quiet"], _group(given) if in_processes else None
    )


def _given(values: Any, argv: Sequence[str], config_type: type, config_file: Path) -> dict[str, Any]:
    """The values of all flags by name; `config` is the file's config with the command line's keys set.

    Raises:
      UserError: a flag is wrong, or the file has no usable config; its code may fail in any way.
    """
    from ml_collections import ConfigDict

    # ml_collections executes every config file in the same module, which keeps the names of the previous file.
    sys.modules.pop("config_config", None)
    try:
        rest = values(list(argv))
    except (SyntaxError, ImportError, NameError) as error:
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise UserError(f"{config_file}{where} is not valid Python: {error.args[0]}.") from None
    except RecursionError:
        raise UserError(f"{config_file} recurses without end.") from None
    except MemoryError:
        raise UserError(f"{config_file} needs more memory than there is.") from None
    except (Exception, SystemExit) as error:  # the file is the user's Python: it may raise anything, or exit
        if "has no attribute 'get_config'" in str(error):
            raise UserError(
                f"{config_file} has no get_config(), which returns the run's config; write one as in jpeft/configs/."
            ) from None
        raise UserError(_explain_flag(error, argv, config_type, config_file)) from None
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is no flag; write --config.KEY=VALUE.")
    given: dict[str, Any] = values.flag_values_dict()
    if not isinstance(given["config"], Mapping | ConfigDict):
        kind = type(given["config"]).__name__
        raise UserError(f"get_config() of {config_file} returns {kind}; expected a config (ConfigDict) or a dict.")
    return given


_LONGEST_LINE = 500
_PROCESS_FLAGS = ("distributed", "coordinator_address", "num_processes", "process_id")


def own_flags() -> tuple[str, ...]:
    """The flags of these command lines besides `--config` and its keys."""
    return ("workdir", "overwrite", "quiet", *_PROCESS_FLAGS)


def _define_flags(values: Any, argv: Sequence[str], in_processes: bool) -> None:
    from absl import flags
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(
        "config", None, "A file with get_config().", flag_values=values, sys_argv=list(argv)
    )
    flags.DEFINE_string(
        "workdir",
        None,
        "Directory of the run; by default runs/<name of the config>, or, with `jpeft train --data FILE` and no "
        "--config, runs/<method>_<name of FILE without its ending>.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "overwrite", False, "Run again what is finished, or was run with another config.", flag_values=values
    )
    flags.DEFINE_bool("quiet", False, "Print the result and errors only.", flag_values=values)
    if not in_processes:
        return
    flags.DEFINE_bool(
        "distributed",
        False,
        "This is one of several processes of a run; SLURM, Open MPI, Kubernetes or a TPU pod says which.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "coordinator_address", None, "HOST:PORT of the first process, if no cluster sets it.", flag_values=values
    )
    flags.DEFINE_integer("num_processes", None, "How many there are, if no cluster sets it.", flag_values=values)
    flags.DEFINE_integer("process_id", None, "Which one this is, from 0, if no cluster sets it.", flag_values=values)


def _group(given: dict[str, Any]) -> Any:
    known = {name: given[name] for name in _PROCESS_FLAGS[1:]}
    if not given["distributed"] and all(value is None for value in known.values()):
        return None
    from jpeft.run.processes import ProcessGroup

    return ProcessGroup(**known)


_MISSING = "--config is missing; name a file, or what comes with jpeft: custom, lora_agnews_low (see --help)."


def _with_file(argv: Sequence[str]) -> tuple[list[str], ConfigFile | None]:
    """The command line with the value of `--config` replaced by a file's path, and that file; None without a config."""
    changed, found = list(argv), None
    for i, arg in enumerate(changed):
        if arg in ("--config", "-config") and i + 1 < len(changed):
            at, before, given = i + 1, "", changed[i + 1]
        elif arg.startswith(("--config=", "-config=")):
            at, before, given = i, "--config=", arg.partition("=")[2]
        else:
            continue
        if found is not None:
            raise UserError(f"--config is given twice, the second time with {given[:80]!r}; give it once.")
        found = configs.find(given)
        changed[at] = f"{before}{found.path}" + (f":{found.argument}" if found.argument else "")
    return changed, found


def note_repeated_keys(words: Sequence[str]) -> None:
    """Prints a note for each key that is given again with another value, as by appending to an earlier command."""
    given: dict[str, str] = {}
    for word, after in zip(words, [*words[1:], ""][: len(words)], strict=True):
        named = re.match(r"--?(config\.[^=]+|workdir)(=|$)", word)
        if named is None:
            continue
        name, value = named[1], word[named.end() :] if named[2] else after
        before, given[name] = given.get(name, value), value
        if before != value:
            line = f"--{name} is given twice, {before[:80]!r} and {value[:80]!r}; the last counts"
            print(f"note: {line}", file=sys.stderr)


def refuse_keys(words: Sequence[str], instead: Mapping[str, str], setter: str) -> None:
    """Raises `UserError` for a key that a command sets itself.

    Args:
      words: the flags of the config's keys.
      instead: by key, or the section of several, what to use in its place.
      setter: what sets them, such as `the grid`.
    """
    for word in words:
        key = word.lstrip("-").partition("=")[0].removeprefix("config.")
        for ours, by in instead.items():
            if key == ours or key.startswith(f"{ours}."):
                raise UserError(f"--config.{key} is set by {setter}: {by}.")


def _explain_flag(error: BaseException, argv: Sequence[str], config_type: type, config_file: Path) -> str:
    """The error message for a flag or config file that was refused, with the closest known key."""
    from absl import flags

    known = _config_keys(config_type)
    for arg in argv[1:]:
        name = arg.lstrip("-").partition("=")[0]
        key = name.removeprefix("config.")
        users_own = any(key.startswith(f"{section}.") for section in known)  # in a section whose keys users choose
        if name.startswith("config.") and key not in known and not users_own:
            from jpeft.typed_config import unknown_key  # loads ml_collections, which other commands need not

            return unknown_key(config_type, key)
    text = str(error.args[0] if error.args else error).strip()
    if "Traceback (most recent call last)" in text:  # get_config() itself raised: its error is the last line
        kind, _, said = text.splitlines()[-1].partition(": ")
        return said or f"{config_file} raises {kind}."
    if isinstance(error, flags.Error | ValueError) and text:  # about a flag's value, or a config file's argument
        return text.partition("\n")[0][:_LONGEST_LINE]
    return f"{config_file} raises {type(error).__name__}{f' ({text.splitlines()[0]})' if text else ''}."[:_LONGEST_LINE]


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
