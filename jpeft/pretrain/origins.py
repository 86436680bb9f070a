"""Fingerprints of the files that a pretraining run reads, so that it does not resume after one of them has changed."""

from collections.abc import Callable, Sequence
from pathlib import Path

from jpeft.fingerprints import fingerprint, fingerprints_of
from jpeft.model.chat import chat_template_digest
from jpeft.model.source import find_here
from jpeft.model.tokenizer import tokenizer_files
from jpeft.model.weight_files import model_files
from jpeft.pretrain.config import Pretraining
from jpeft.pretrain.mixture import source_files


def origins(run: Pretraining) -> dict[str, str]:
    """Fingerprints of the files that a run would read now, by the names in `jpeft.run.directory.ORIGINS`.

    Files that are not on this machine, cannot be read or are not used by the run have none.
    """

    def fingerprint_of(name: str | None, files_of: Callable[[Path], Sequence[Path]]) -> str | None:
        directory = None if name is None else find_here(name)
        files = [] if directory is None else files_of(directory)
        return fingerprint(files) if files else None

    return fingerprints_of(
        {
            "chat_template": lambda: chat_template_digest(run.data.chat_template),
            "corpus": lambda: fingerprint(_corpus(run)),
            "start": lambda: fingerprint_of(run.model.start, lambda path: [*model_files(path), *tokenizer_files(path)]),
            "vocabulary": lambda: fingerprint_of(run.tokenizer.path, tokenizer_files),
        }
    )


def _corpus(run: Pretraining) -> list[Path]:
    """The files of every source, in the order of the sources."""
    assert run.data.path is not None, "Pretraining.from_config asks for it"
    directory, sources = Path(run.data.path).expanduser(), run.data.sources
    return [file for name, source in sources.items() for file in source_files(directory, name, source)]
