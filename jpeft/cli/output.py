"""Writing an output directory with an adapter, for the commands that do."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jpeft.adapters.card import adapter_card
from jpeft.adapters.files import Opened, save_adapter
from jpeft.adapters.peft_layout import peft_lacks
from jpeft.data.task_file import TaskOfRun
from jpeft.errors import RunFailed, UserError
from jpeft.files import write_directory
from jpeft.model.source import find_here
from jpeft.model.weight_files import model_fingerprint
from jpeft.peft.attaching import count, split
from jpeft.run.background import disk_trouble


@contextlib.contextmanager
def output_directory(out: Path) -> Iterator[Path]:
    """Yields a directory to write to, which becomes `out` if the block raises nothing.

    Raises:
      UserError: `out` is not empty.
      RunFailed: the disk is full or cannot be written.
    """
    try:
        with write_directory(out) as beside:
            yield beside
    except (UserError, RunFailed):
        raise
    except Exception as error:  # safetensors has its own exception for a full disk
        reason = disk_trouble(error) or (error.strerror if isinstance(error, OSError) else None)
        if reason is None:
            raise
        raise RunFailed(f"{out} cannot be written ({reason}); fix that and give the same command again.") from None


def write_adapter(
    opened: Opened, out: Path, *, base: str, result: dict[str, Any] | None, task: TaskOfRun | None
) -> int:
    """Writes an adapter, its task and its model card to `out`; returns the bytes of the weights.

    Raises as `output_directory`.
    """
    with output_directory(out) as beside:
        size = save_adapter(opened.model, opened.method, opened.sites, beside, base_name=base)
        card = adapter_card(
            opened.method,
            opened.sites,
            base=base,
            model=opened.model,
            parameters=parameters(opened),
            result=result,
            notes=opened.notes,
            quantization=(result or {}).get("quantization") if task is None else task.quantization,
        )
        if task is not None:
            task.write(beside)
        (beside / "README.md").write_text(card, encoding="utf-8")
    return size


def note_base(opened: Opened, task: TaskOfRun | None, base: str) -> Opened:
    """Adds a note where the base at hand has other files than the one that the adapter was tuned on."""
    directory = None if task is None or task.base is None else find_here(base)
    another = None if task is None or directory is None else task.on_another_base(model_fingerprint(directory))
    return opened if another is None else dataclasses.replace(opened, notes=(*opened.notes, f"the adapter {another}"))


def parameters(opened: Opened) -> int:
    """The number of trainable parameters of an adapter."""
    return count(split(opened.model)[1])


def adapter_record(opened: Opened, out: Path, *, base: str, weights_bytes: int) -> dict[str, Any]:
    """The record of an adapter written to `out`, as `--json` prints it."""
    return {
        "out": str(out),
        "base": base,
        "method": opened.method.name,
        "options": dataclasses.asdict(opened.method),
        "layout": "peft" if peft_lacks(opened.method, opened.sites, opened.model) is None else "jpeft",
        "sites": [site.path for site in opened.sites],
        "parameters": parameters(opened),
        "weights_bytes": weights_bytes,
        "notes": list(opened.notes),
    }
