"""The model and adapter that answer, and the task of the run that trained them."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax.typing import DTypeLike

from jpeft.adapters.files import CONFIGS, load_adapter
from jpeft.adapters.locate import base_of, locate, whole_model, words_for
from jpeft.adapters.own_tokenizer import note_on_tokenizer
from jpeft.config import Run
from jpeft.data.task_file import TaskOfRun
from jpeft.errors import RunFailed, UserError
from jpeft.eval.labels import answer_in_use
from jpeft.files import read_json_object
from jpeft.model.family import family_in
from jpeft.model.quantized import Quantization, quantization_of
from jpeft.model.source import resolve
from jpeft.model.tokenizer import TOKENIZER_FILES, Tokenizer
from jpeft.model.weight_files import model_files, model_fingerprint, quantization_in
from jpeft.peft.made_by import remember
from jpeft.results import NotARecord, RunRecord


def task_of(directory: Path) -> TaskOfRun | None:
    """Reads the task that an adapter or a model was tuned for; None if its files do not say.

    It is in `task.json`, which copies, exports and merged models keep. Runs of versions that wrote none are read from
    their config and result.

    Raises:
      RunFailed: a file is damaged, or of an incompatible version.
    """
    return TaskOfRun.read(directory) or _of_older_run(directory.absolute())


def _of_older_run(adapter: Path) -> TaskOfRun | None:
    directory = adapter.parent
    if adapter.name != "adapter" or not all((directory / name).is_file() for name in ("config.json", "result.json")):
        return None
    try:
        run = Run.from_config(read_json_object(directory / "config.json", error=RunFailed))
        labels = RunRecord.read(directory / "result.json").labels or ()
    except NotARecord as why:
        raise RunFailed(f"{directory / 'result.json'} is damaged ({why}); copy the adapter elsewhere.") from None
    except (RunFailed, UserError) as error:
        raise RunFailed(
            f"{directory} is not a run that this jpeft can read ({str(error).rstrip('.')}); copy its adapter elsewhere."
        ) from None
    task = run.build_task()
    if labels:  # of a user's own task the run takes them from the rows
        task = dataclasses.replace(task, kind="classification", answers=tuple(labels))
    task = dataclasses.replace(
        task,
        max_input_length=run.data.max_input_length or task.max_input_length,
        max_target_length=run.data.max_target_length or task.max_target_length,
    )
    made = {"answer": answer_in_use(run.eval.answer, task), "num_beams": run.eval.num_beams, "dtype": run.model.dtype}
    made |= {"quantization": str(run.quantization() or "auto")}
    return TaskOfRun.of(task, **made, input=run.data.input)


@dataclasses.dataclass(frozen=True)
class AnswerSource:
    """A model and an optional adapter, located but not loaded.

    Attributes:
      model: the model's name, as given or from the adapter's files.
      directory: of the model.
      adapter: directory of the adapter; None without one.
      task: of the run that trained the adapter or, by full tuning, the model; None if unknown.
    """

    model: str
    directory: Path
    adapter: Path | None = None
    task: TaskOfRun | None = None

    @classmethod
    def find(
        cls, model: str | None, adapter: Path | None, *, report: Callable[[str], None], flag: str = "--model"
    ) -> "AnswerSource":
        """Locates a model and an adapter.

        Args:
          model: name of the model; None for the adapter's base.
          adapter: directory of a run or an adapter; None for the model alone.
          report: called with a line about a download.
          flag: the name of `model` in messages.

        Raises:
          UserError: neither is given, or one does not exist or is of the wrong kind.
          RunFailed: the hub cannot be reached, or a file is damaged.
        """
        if adapter is None:
            if model is None:
                raise UserError("give --model (mini, a hub id, a directory), --adapter (a run or an adapter), or both.")
            directory = resolve(model, what=flag, flag=flag, report=report)
            return cls(model, directory, task=task_of(directory))
        whole = whole_model(adapter)
        if whole is not None:
            if model is not None:
                raise UserError(f"{whole} is a whole model, the result of full tuning; leave {flag} out.")
            return cls(str(whole), whole, task=task_of(whole))
        found = locate(adapter)
        name = base_of(found, model, flag)
        directory = resolve(name, **words_for(found, model, flag), report=report)
        return cls(name, directory, found.directory, task_of(found.directory))

    def kept(self, quantization: str | None) -> str:
        """The quantization of the base, in words: as requested or, for None, that of the run.

        Files in nf4 have double quantization or not, whatever the run recorded: it may have been of the wide weights,
        or of a version that did not compare.
        """
        if quantization is not None or self.task is None:
            return quantization or "auto"
        kept = Quantization.parse(self.task.quantization)
        if kept is None or kept.kind != "nf4":
            return self.task.quantization
        stored = quantization_in(self.directory)
        return str(kept if stored is None or stored.kind != "nf4" else dataclasses.replace(kept, double=stored.double))

    def identity(self) -> dict[str, Any]:
        """Names and digests of model and adapter, to recognise answers by the same ones."""
        files = [*model_files(self.directory), *(self.directory / name for name in TOKENIZER_FILES)]
        identity = {"model": f"{self.model} ({_digest(files)})"}
        if self.adapter is None:
            return {**identity, "adapter": None}
        names = (*CONFIGS, *(path.name for path in self.adapter.glob("*.safetensors")))
        return {**identity, "adapter": f"{self.adapter} ({_digest([self.adapter / name for name in names])})"}

    def load(
        self,
        dtype: DTypeLike,
        quantization: Quantization | None = None,
        *,
        report: Callable[[str], None] = lambda line: None,
    ) -> tuple[Any, Tokenizer]:
        """Loads the model with the adapter attached, and the tokenizer.

        Args:
          dtype: of computation.
          quantization: of the base; None as in its files.
          report: called with notes: the adapter was trained on another base or another quantization of it, or parts of
            its files or of the base's are ignored.

        Raises as `Family.load` and `load_adapter`.
        """
        family = family_in(self.directory)
        tokenizer = family.tokenizer(self.directory, family.read_config(self.directory))
        own = None if self.adapter is None else note_on_tokenizer(self.adapter, lambda: tokenizer)
        for line in filter(None, [*family.notes(self.directory, tokenizer), own]):
            report(line)
        model = family.load(self.directory, dtype=dtype, quantization=quantization)
        if self.task is not None and (line := self.task.in_other_bits(quantization_of(model))) is not None:
            report(f"the {'model' if self.adapter is None else 'adapter'} {line}")
        if self.adapter is not None and self.task is not None:
            if (line := self.task.on_another_base(model_fingerprint(self.directory))) is not None:
                report(f"the adapter {line}")
        family.arrange(model, scan_layers=None)
        tokenizer = tokenizer.asked_by(None if self.task is None else self.task.chat_template)
        if self.task is not None and (line := self.task.in_other_tokens(tokenizer.chat_tokens)) is not None:
            report(f"the {'model' if self.adapter is None else 'adapter'} {line}")
        if self.adapter is not None:
            model, method, _ = load_adapter(self.adapter, model, report=report)
            remember(method, model)
        return model, tokenizer


def _digest(paths: list[Path]) -> str:
    """The first digits of the SHA-256 of those files that exist."""
    digest = hashlib.sha256()
    for path in sorted(path for path in paths if path.is_file()):
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return f"sha256 {digest.hexdigest()[:16]}"
