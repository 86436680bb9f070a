"""Fingerprints of what a run reads beside its rows, so that it does not resume on another base of the same name."""

import ast
from collections.abc import Callable, Sequence
from pathlib import Path

from jpeft.adapters.files import adapter_files
from jpeft.adapters.locate import locate
from jpeft.config import Run, monitored_metric
from jpeft.eval.metrics.own import is_own
from jpeft.fingerprints import fingerprint, fingerprints_of
from jpeft.model.chat import chat_template_digest
from jpeft.model.family import chat_tokens_in
from jpeft.model.source import find_here
from jpeft.model.tokenizer import tokenizer_files
from jpeft.model.weight_files import model_fingerprint


def origins(run: Run) -> dict[str, str]:
    """Fingerprints of the files that a run would read now, by the names in `jpeft.run.directory.ORIGINS`.

    Files that are not on this machine, cannot be read or are not used by the run have none.
    """
    readers: dict[str, Callable[[], str | None]] = {
        "chat_template": lambda: chat_template_digest(run.data.chat_template)
    }
    if (directory := find_here(run.model.name)) is not None:
        readers["base"] = lambda: model_fingerprint(directory)
        readers["tokenizer"] = lambda: fingerprint(tokenizer_files(directory))
        readers["chat_tokens"] = lambda: chat_tokens_in(directory, run.data.chat_template)
    if (adapter := run.method.from_adapter) is not None:
        readers["from_adapter"] = lambda: fingerprint(adapter_files(locate(Path(adapter).expanduser()).directory))
    modules = _own_metric_modules(run)
    if metric_files := [file for module in modules if (file := Path(f"{module.replace('.', '/')}.py")).is_file()]:
        readers["metrics"] = lambda: fingerprint(metric_files)
    if imported := sorted(_files_behind(modules) - set(metric_files)):  # apart, since earlier versions did not look
        readers["imported_by_metrics"] = lambda: fingerprint(imported)
    return fingerprints_of(readers)


def _own_metric_modules(run: Run) -> list[str]:
    names = [*run.build_task().metrics, *filter(None, [monitored_metric(run.train.monitor)])]
    return list(dict.fromkeys(name.partition(":")[0] for name in names if is_own(name)))


def _files_behind(modules: Sequence[str]) -> set[Path]:
    """The files in the working directory that importing modules runs, those that they import from there included.

    Modules from elsewhere, such as installed ones, are not looked for, nor is jpeft itself.
    """
    waiting, files = list(modules), set[Path]()
    while waiting:
        found = [file for file in _files_of(waiting.pop()) if file not in files]
        waiting += [name for file in found for name in _imported(file) if name.partition(".")[0] != "jpeft"]
        files |= set(found)
    return files


def _files_of(module: str) -> list[Path]:
    """The files in the working directory that importing a module runs: its own and those of the packages around it."""
    parts = module.split(".")
    packages = [Path(*parts[:depth], "__init__.py") for depth in range(1, len(parts) + 1)]
    return [file for file in (*packages, Path(*parts[:-1], f"{parts[-1]}.py")) if file.is_file()]


def _imported(file: Path) -> list[str]:
    """Absolute names of all that a file of the working directory imports, modules or not; none if it is no Python."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []  # importing it will say so
    package = file.parent.parts
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            around = package[: max(0, len(package) - node.level + 1)] if node.level else []
            source = ".".join([*around, *([node.module] if node.module else [])])
            names += [*([source] if source else []), *(".".join(filter(None, [source, a.name])) for a in node.names)]
    return [name for name in names if "*" not in name]
