"""`task.json` beside an adapter: what its run was about, so that whoever answers by it answers as its test did."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jpeft.data.tasks import KINDS, TASKS, Task, check_template
from jpeft.errors import RunFailed, UserError
from jpeft.files import check_fields, read_json_object, write_whole
from jpeft.words import clipped, in_bits

TASK_FILE = "task.json"
ANSWERS = ("generate", "score")  # how a test row is answered
DTYPES = ("auto", "float32", "bfloat16")
# Of a base, as jpeft.model.quantized has them in words.
QUANTIZED = ("auto", "none", *(f"{kind}{wo}" for kind in ("int8", "nf4", "nf4,double") for wo in ("", ",wo")))
MOST_SCORED = 100  # labels that are scored unasked: each costs as much as a short answer

# What a stranger's file may ask for. A run's own stay below, most of them far: `require_recordable`.
_LONGEST_TEXT = 100_000  # characters of a template, of a prompt or a chat, of a label or a column's name
_MOST_LABELS = 10_000
_MOST_TOKENS = 65_536
_MOST_ANSWERED = 4_096  # tokens: generating takes memory by their square
_MOST_BEAMS = 256
_FORMAT = 1
_KEYS = {
    "format_version": int,
    "task": str,
    "kind": str,
    "template": str,
    "input": str,
    "target": str,
    "options": str,
    "chat_template": str,
    "same_input": str,
    "labels": list,
    "max_input_length": int,
    "max_target_length": int,
    "answer": str,
    "num_beams": int,
    "dtype": str,
    "quantization": str,
    "base": str,
    "metrics": list,
}


@dataclasses.dataclass(frozen=True)
class TaskOfRun:
    """The task of a finished run, with all that is needed to answer and to judge as that run did.

    Attributes:
      template: the prompt, with `{column}` in it.
      labels: of a classification, empty otherwise.
      max_input_length, max_target_length: in tokens, `</s>` counted.
      name: of the task, `custom` for rows of one's own.
      kind: `classification` or `generation`.
      input, target: columns of the text and of the answer; `input` is None where the template alone names columns.
      options: how the labels got into the prompt, as the config said it; None for runs that did not know of it.
      chat_template: that prompt and answer stood in, its text, or `none`; None for models that have no choice.
      same_input: column whose equal values make rows references of each other.
      answer: how the run's own test answered, as `eval.answer` of its config.
      num_beams: of that test's generation.
      dtype: as `model.dtype` of the run.
      quantization: of the run's base, such as `nf4,double`, whether the run rounded it or its files have it so; `auto`
        and `none` of a wide one.
      base: fingerprint of the model's files that the adapter was tuned on (`jpeft.model.weight_files`); None where
        there was none, as after full tuning, and of older runs.
      metrics: names of what the run's answers were judged by, where it was asked for any. Names only: that of a
        function (`module:name`) is not imported for standing here.
    """

    template: str
    labels: tuple[str, ...] = ()
    max_input_length: int = 512
    max_target_length: int = 128
    name: str = "custom"
    kind: str = "generation"
    input: str | None = None
    target: str = "target"
    options: str | None = None
    chat_template: str | None = None
    same_input: str | None = None
    answer: str = "generate"
    num_beams: int = 1
    dtype: str = "auto"
    quantization: str = "auto"
    base: str | None = None
    metrics: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        task: Task,
        *,
        answer: str,
        num_beams: int,
        dtype: str,
        quantization: str = "auto",
        base: str | None = None,
        input: str | None = None,
        options: str | None = None,
        chat_template: str | None = None,
    ) -> "TaskOfRun":
        """Makes the record of a run's task as `prepare` leaves it, its labels and lengths known."""
        return cls(
            template=task.template,
            labels=tuple(task.answers),
            max_input_length=task.max_input_length,
            max_target_length=task.max_target_length,
            name=task.name,
            kind=task.kind,
            input=input,
            target=task.target,
            options=options,
            chat_template=chat_template,
            same_input=task.same_input,
            answer=answer,
            num_beams=num_beams,
            dtype=dtype,
            quantization=quantization,
            base=base,
            metrics=task.metrics,
        )

    def in_other_bits(self, here: str | None) -> str | None:
        """A line that says that the run's base was in other bits than the one that answers; None where it was not.

        It begins with a verb, so that whoever says it names the subject: the adapter, or the model.

        Args:
          here: how the base is kept that answers, as `jpeft.model.quantized.quantization_of` says it.
        """
        run, now = in_bits(self.quantization), in_bits(here)
        if run == now:
            return None
        return f"was tuned with its base {run}, and answers with it {now}: answers differ by what rounding does"

    def on_another_base(self, here: str | None) -> str | None:
        """A line that says that the base that answers is not the one that the adapter was tuned on; None where it is.

        It begins with a verb, as `in_other_bits`. A name does not tell: a directory may be another model's by now.

        Args:
          here: fingerprint of the base at hand, None where nobody knows it.
        """
        if self.base is None or here is None or self.base == here:
            return None
        return "was tuned on a base of other files: unless these hold the same weights, it fits by shapes alone"

    @property
    def chosen_from(self) -> tuple[str, ...]:
        """Labels to choose an answer from where nobody says otherwise.

        Empty where answers are text, where there is nothing to choose, and where labels are so many that the run, too,
        had its answers generated.
        """
        generated = len(self.labels) > MOST_SCORED and self.answer != "score"
        return () if len(self.labels) < 2 or generated else self.labels

    def task(self) -> Task:
        """The task, for making examples of labelled rows and judging answers to them as the run did."""
        return dataclasses.replace(
            TASKS.get(self.name, TASKS["custom"]),
            kind=self.kind,
            template=self.template,
            target=self.target,
            answers=self.labels,
            same_input=self.same_input,
            max_input_length=self.max_input_length,
            max_target_length=self.max_target_length,
            metrics=self.metrics,
        )

    def write(self, directory: Path) -> None:
        """Writes `task.json` to a directory that is there, whole or not at all."""
        values = dataclasses.asdict(self)
        values = {"format_version": _FORMAT, "task": values.pop("name"), **values, "labels": list(self.labels) or None}
        values["metrics"] = list(self.metrics) or None
        with write_whole(directory / TASK_FILE) as beside:
            beside.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> "TaskOfRun | None":
        """Reads the `task.json` of a directory; None if it has none.

        Raises:
          RunFailed: the file is damaged, or says what no run writes.
        """
        path = directory / TASK_FILE
        if not path.exists() and not path.is_symlink():  # a link that leads nowhere was a task once
            return None
        values = read_json_object(path, error=RunFailed)
        check_fields(values, _KEYS, str(path), error=RunFailed)
        if values.get("format_version") != _FORMAT:
            raise RunFailed(
                f"{path} is of format version {values.get('format_version')}; this jpeft reads version {_FORMAT}."
            )
        given = {
            "name" if key == "task" else key: value
            for key, value in values.items()
            if key in _KEYS and key != "format_version" and value is not None
        }
        given["labels"] = _texts("labels", given.get("labels", []), path)
        given["metrics"] = _texts("metrics", given.get("metrics", []), path)
        if "template" not in given:
            raise RunFailed(f"{path} has no template; copy the adapter again.")
        for key, value in given.items():
            if isinstance(value, str) and len(value) > _LONGEST_TEXT:
                raise RunFailed(f"{path}: {key} has {len(value):,} characters; expected {_LONGEST_TEXT:,} at most.")
        made = cls(**given)
        for key, value, most in (
            ("max_input_length", made.max_input_length, _MOST_TOKENS),
            ("max_target_length", made.max_target_length, _MOST_ANSWERED),
            ("num_beams", made.num_beams, _MOST_BEAMS),
        ):
            least = 1 if key == "num_beams" else 2
            if not least <= value <= most:
                raise RunFailed(f"{path}: {key} is {value}; expected {least} to {most:,}.")
        for key, value, known in (
            ("kind", made.kind, KINDS),
            ("answer", made.answer, ANSWERS),
            ("dtype", made.dtype, DTYPES),
            ("quantization", made.quantization, QUANTIZED),
        ):
            if value not in known:
                raise RunFailed(f"{path}: {key} is {value[:40]!r}; expected {' or '.join(known)}.")
        try:
            check_template(made.template, "template", besides=made.target)
        except UserError as error:
            raise RunFailed(f"{path}: {error}") from None
        return made


def require_recordable(task: Task) -> None:
    """Raises `UserError`: an adapter's `task.json` could not hold a run's task, so that nothing could answer by it."""
    if len(task.answers) > _MOST_LABELS:
        raise UserError(
            f"the targets are {len(task.answers):,} labels; expected {_MOST_LABELS:,} at most. Take them as text, "
            "--config.data.kind=generation, or name another column with --config.data.target."
        )
    longest = max(task.answers, key=len, default="")
    if len(longest) > _LONGEST_TEXT:
        raise UserError(
            f"the label {clipped(longest, 40)!r} has {len(longest):,} characters; expected {_LONGEST_TEXT:,} at most. "
            "Take the targets as text, --config.data.kind=generation."
        )
    if len(task.template) > _LONGEST_TEXT:
        raise UserError(
            f"the prompt, with the labels listed in it, has {len(task.template):,} characters; expected "
            f"{_LONGEST_TEXT:,} at most. Leave them out: --config.data.options=none."
        )


def _texts(key: str, values: Sequence[Any], path: Path) -> tuple[str, ...]:
    if len(values) > _MOST_LABELS:
        raise RunFailed(f"{path} has {len(values):,} {key}; expected {_MOST_LABELS:,} at most.")
    for value in values:
        if not isinstance(value, str) or not value.strip() or len(value) > _LONGEST_TEXT:
            raise RunFailed(f"{path}: {key} hold {repr(value)[:40]}; expected texts.")
    return tuple(values)
