"""Fingerprints of what a run reads beside its rows, so that it does not resume on another base of the same name."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from jpeft.adapters.files import adapter_files
from jpeft.adapters.locate import locate
from jpeft.config import Run
from jpeft.fingerprints import fingerprint, fingerprints_of
from jpeft.model.chat import AUTO, NONE, chat_template_of
from jpeft.model.source import find_here
from jpeft.model.tokenizer import tokenizer_files
from jpeft.model.weight_files import model_fingerprint


def origins(run: Run) -> dict[str, str]:
    """Fingerprints of the files that a run would read now, by the names in `jpeft.run.directory.ORIGINS`.

    Files that are not on this machine, cannot be read or are not used by the run have none.
    """
    readers: dict[str, Callable[[], str | None]] = {}
    if (directory := find_here(run.model.name)) is not None:
        readers["base"] = lambda: model_fingerprint(directory)
        readers["tokenizer"] = lambda: fingerprint(tokenizer_files(directory))
    if (template := run.data.chat_template) not in (None, AUTO, NONE):
        readers["chat_template"] = lambda: hashlib.sha256(chat_template_of(template).encode()).hexdigest()
    if (adapter := run.method.from_adapter) is not None:
        readers["from_adapter"] = lambda: fingerprint(adapter_files(locate(Path(adapter).expanduser()).directory))
    return fingerprints_of(readers)
