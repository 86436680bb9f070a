"""What a pretraining run reads, known by content: a run does not go on with another corpus, start or vocabulary."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from jpeft.errors import RunFailed, UserError
from jpeft.fingerprints import fingerprint
from jpeft.model.source import find_here
from jpeft.model.tokenizer import tokenizer_files
from jpeft.model.weights import model_files
from jpeft.pretrain.config import Pretraining
from jpeft.pretrain.mixture import source_files


def origins(run: Pretraining) -> dict[str, str]:
    """Fingerprints of what a run would read now, by the names in `jpeft.run.directory.ORIGINS`.

    What is not on this machine, cannot be read or is not asked for has none: whoever loads it says what is wrong.
    """

    def of_model(name: str | None, files_of: Callable[[Path], Sequence[Path]]) -> list[Path]:
        directory = None if name is None else find_here(name)
        return [] if directory is None else [*files_of(directory)]

    asked: dict[str, Callable[[], list[Path]]] = {
        "corpus": lambda: _corpus(run),
        "start": lambda: of_model(run.model.start, lambda path: [*model_files(path), *tokenizer_files(path)]),
        "vocabulary": lambda: of_model(run.tokenizer.path, tokenizer_files),
    }
    found = {}
    for name, files_of in asked.items():
        with contextlib.suppress(UserError, RunFailed, OSError, RuntimeError, ValueError):
            if files := files_of():
                found[name] = fingerprint(files)
    return found


def _corpus(run: Pretraining) -> list[Path]:
    """Every source's files, in the order of the sources."""
    assert run.data.path is not None, "Pretraining.from_config asks for it"
    directory, sources = Path(run.data.path), run.data.sources
    return [file for name, source in sources.items() for file in source_files(directory, name, source)]
