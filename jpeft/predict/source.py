"""What answers: a model, an adapter, and what the adapter's run knows of its task."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax.typing import DTypeLike

from jpeft.config import Run
from jpeft.errors import RunFailed, UserError
from jpeft.model import weights
from jpeft.model.source import resolve
from jpeft.model.t5 import T5, arrange_layers
from jpeft.model.tokenizer import TOKENIZER_FILES, Tokenizer
from jpeft.peft.hub import CONFIGS, load_adapter
from jpeft.peft.locate import base_of, locate, whole_model


@dataclasses.dataclass(frozen=True)
class TaskOfRun:
    """What a run was about, as far as answering like it needs to know.

    Attributes:
      labels: of a classification, empty otherwise.
      max_input_length, max_output_length: in tokens.
    """

    template: str
    labels: tuple[str, ...]
    max_input_length: int
    max_output_length: int

    @classmethod
    def of(cls, adapter: Path) -> "TaskOfRun | None":
        """Of the run that the directory `adapter/` is a part of, None where there is none.

        Raises:
          RunFailed: a file of the run is damaged, or of a version that has other keys.
        """
        directory = adapter.absolute().parent
        if adapter.absolute().name != "adapter" or not (directory / "result.json").is_file():
            return None
        try:
            run = Run.from_config(json.loads((directory / "config.json").read_text()))
            labels = json.loads((directory / "result.json").read_text()).get("labels")
        except (OSError, ValueError, AttributeError) as error:
            raise RunFailed(
                f"{directory} is no run that this jpeft can read ({error}); copy its adapter elsewhere."
            ) from None
        task = run.build_task()
        return cls(
            template=task.template,
            labels=tuple(labels or task.answers),  # what an older run wrote has none
            max_input_length=run.data.max_input_length or task.max_input_length,
            max_output_length=run.data.max_target_length or task.max_target_length,
        )


@dataclasses.dataclass(frozen=True)
class Source:
    """A model and, on it, an adapter; found and not yet loaded.

    Attributes:
      model: its name, as it was given or as the adapter names it.
      directory: where the model is.
      adapter: where the adapter is, None without one.
      task: of the run that made the adapter or, by full tuning, the model.
    """

    model: str
    directory: Path
    adapter: Path | None = None
    task: TaskOfRun | None = None

    @classmethod
    def find(cls, model: str | None, adapter: Path | None, *, report: Callable[[str], None]) -> "Source":
        """What a call names; `report` hears what takes long.

        Raises:
          UserError: neither is named, or one is not there or not what it should be.
          RunFailed: the hub can not be reached, or a file is damaged.
        """
        if adapter is None:
            if model is None:
                raise UserError("name --model (mini, a hub id, a directory), --adapter (a run or an adapter), or both.")
            return cls(model, resolve(model, report=report))
        whole = whole_model(adapter)
        if whole is not None:
            if model is not None:
                raise UserError(f"{whole} is a whole model, the result of full tuning; leave --model away.")
            return cls(str(whole), whole, task=TaskOfRun.of(whole))
        found = locate(adapter)
        name = base_of(found, model)
        return cls(name, resolve(name, report=report), found.directory, TaskOfRun.of(found.directory))

    def identity(self) -> dict[str, Any]:
        """Names and contents of model and adapter, for telling whether answers are of the same ones."""
        files = [*weights.weight_files(self.directory)[1], *(self.directory / name for name in TOKENIZER_FILES)]
        identity = {"model": f"{self.model} ({_digest([*files, self.directory / 'config.json'])})"}
        if self.adapter is None:
            return {**identity, "adapter": None}
        names = (*CONFIGS, *(path.name for path in self.adapter.glob("*.safetensors")))
        return {**identity, "adapter": f"{self.adapter} ({_digest([self.adapter / name for name in names])})"}

    def load(self, dtype: DTypeLike) -> tuple[T5, Tokenizer]:
        """The model with the adapter attached, computing in `dtype`. Raises as `weights.load` and `load_adapter`."""
        model = weights.load(self.directory, dtype=dtype)
        arrange_layers(model, None)
        tokenizer = Tokenizer.load(
            self.directory, vocab_size=model.config.vocab_size, eos_token_id=model.config.eos_token_id
        )
        if self.adapter is not None:
            model, _, _ = load_adapter(self.adapter, model)
        return model, tokenizer


def _digest(paths: list[Path]) -> str:
    """The first digits of the SHA-256 of those of the files that are there."""
    digest = hashlib.sha256()
    for path in sorted(path for path in paths if path.is_file()):
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return f"sha256 {digest.hexdigest()[:16]}"
