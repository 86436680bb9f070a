"""What a run reads beside its rows, known by content: a run does not go on with another base under the same name."""

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

from jpeft.adapters.files import adapter_files
from jpeft.adapters.locate import locate
from jpeft.config import Run
from jpeft.errors import RunFailed, UserError
from jpeft.fingerprints import fingerprint
from jpeft.model.chat import AUTO, NONE, chat_template_of
from jpeft.model.source import find_here
from jpeft.model.tokenizer import tokenizer_files
from jpeft.model.weights import model_files


def origins(run: Run) -> dict[str, str]:
    """Fingerprints of what a run would read now, by the names in `jpeft.run.directory.ORIGINS`.

    What is not on this machine, cannot be read or is not asked for has none: whoever loads it says what is wrong.
    """
    found: dict[str, str | None] = {}
    if (directory := find_here(run.model.name)) is not None:
        found["base"] = base_fingerprint(directory)
        found["tokenizer"] = _readable(lambda: fingerprint(tokenizer_files(directory)))
    if (template := run.data.chat_template) not in (None, AUTO, NONE):
        found["chat_template"] = _readable(lambda: hashlib.sha256(chat_template_of(template).encode()).hexdigest())
    if (adapter := run.method.from_adapter) is not None:
        found["from_adapter"] = _readable(
            lambda: fingerprint(adapter_files(locate(Path(adapter).expanduser()).directory))
        )
    return {name: value for name, value in found.items() if value is not None}


def base_fingerprint(directory: Path) -> str | None:
    """By what a model's weights and config are known again; None where they cannot be read."""
    return _readable(lambda: fingerprint(model_files(directory)))


def _readable(of: Callable[[], str]) -> str | None:
    with contextlib.suppress(UserError, RunFailed, OSError, RuntimeError, ValueError):
        return of()
    return None
