"""`task.json` beside an adapter: prompt, labels and settings that are needed to answer as the run's test did."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jpeft.data.tasks import CUSTOM, KINDS, TASKS, Task, check_template, options_list
from jpeft.errors import RunFailed, UserError
from jpeft.files import check_fields, read_json_object, write_whole
from jpeft.words import clipped, in_bits

TASK_FILE = "task.json"
ANSWERS = ("generate", "score")  # how test rows are answered
DTYPES = ("auto", "float32", "bfloat16")
# Quantizations of a base, as `jpeft.model.quantized.Quantization` prints them.
QUANTIZED = ("auto", "none", *(f"{kind}{wo}" for kind in ("int8", "nf4", "nf4,double") for wo in ("", ",wo")))
MOST_SCORED = 100  # the most labels that are scored by default: each costs as much as a short answer

# Limits of an untrusted file. `require_recordable` holds a run's own to them.
_LONGEST_TEXT = 100_000  # characters of a template, a chat template, a label or the name of a column
_MOST_LABELS = 10_000
_MOST_TOKENS = 65_536
_MOST_ANSWERED = 4_096  # tokens: the memory of generation grows with their square
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
    "chat_tokens": str,
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
    """The task of a finished run, with everything that is needed to answer and judge rows as that run did.

    Attributes:
      template: the prompt, with columns in braces.
      labels: of a classification; empty for a generation.
      max_input_length, max_target_length: in tokens, `</s>` included.
      name: of the task; `custom` for a user's own rows.
      kind: `classification` or `generation`.
      input, target: columns of the text and of the answer; `input` is None if only the template names columns.
      options: `data.options` of the run; None for runs of versions without this key.
      chat_template: text of the chat template around prompt and answer, or `none`; None for models without chat.
      chat_tokens: digest of how texts in that template become tokens (`Tokenizer.chat_tokens`); None if they do as by
        themselves, as in runs of earlier versions.
      same_input: column whose equal values make rows references of each other.
      answer: `generate` or `score`, how the run answered its test rows.
      num_beams: of the generation in that test.
      dtype: `model.dtype` of the run.
      quantization: of the run's base, such as `nf4,double`, whether the run or the model's files quantized it; `auto`
        or `none` if it is not quantized.
      base: fingerprint of the base's files (`jpeft.model.weight_files`); None after full tuning and for older runs.
      metrics: names of the metrics that the run was asked for. A user's function (`module:name`) is not imported
        because of this name.
    """

    template: str
    labels: tuple[str, ...] = ()
    max_input_length: int = 512
    max_target_length: int = 128
    name: str = CUSTOM
    kind: str = "generation"
    input: str | None = None
    target: str = "target"
    options: str | None = None
    chat_template: str | None = None
    chat_tokens: str | None = None
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
        chat_tokens: str | None = None,
    ) -> "TaskOfRun":
        """Makes the record of a run from its task after `prepare`, when labels and lengths are known."""
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
            chat_tokens=chat_tokens,
            same_input=task.same_input,
            answer=answer,
            num_beams=num_beams,
            dtype=dtype,
            quantization=quantization,
            base=base,
            metrics=task.metrics,
        )

    def in_other_bits(self, here: str | None) -> str | None:
        """Returns a warning if the base at hand is quantized differently from the run's base; None if not.

        The warning begins with a verb: the caller puts its subject, the adapter or the model, in front.

        Args:
          here: quantization of the base at hand, from `jpeft.model.quantized.quantization_of`.
        """
        run, now = in_bits(self.quantization), in_bits(here)
        if run == now:
            return None
        return f"was tuned with its base {run}, and answers with it {now}: answers may differ by rounding"

    def on_another_base(self, here: str | None) -> str | None:
        """Returns a warning if the base at hand has other files than the one that the adapter was tuned on; else None.

        Files are compared, because a directory of the same name may hold another model by now. The warning begins with
        a verb, as that of `in_other_bits`.

        Args:
          here: fingerprint of the base at hand; None if it is unknown.
        """
        if self.base is None or here is None or self.base == here:
            return None
        return "was tuned on a base of other files: unless these hold the same weights, it fits by shapes alone"

    def in_other_tokens(self, here: str | None) -> str | None:
        """Returns a warning if texts in the chat template were other tokens in the run than here; None if not.

        The warning begins with a verb, as that of `in_other_bits`.

        Args:
          here: `Tokenizer.chat_tokens` of the tokenizer at hand, with this chat template.
        """
        if self.chat_template is None or here == self.chat_tokens:
            return None
        return (
            "was tuned when texts in its chat template were other tokens, in another version of jpeft: train it again"
        )

    @property
    def chosen_from(self) -> tuple[str, ...]:
        """Labels to score by default. Empty if answers are generated by default.

        Answers are generated for a generation, for fewer than two labels, and for more than `MOST_SCORED` unless the
        run scored them, too.
        """
        generated = len(self.labels) > MOST_SCORED and self.answer != "score"
        return () if len(self.labels) < 2 or generated else self.labels

    def task(self) -> Task:
        """Returns the task, for making examples of labelled rows and judging answers as the run did."""
        return dataclasses.replace(
            TASKS.get(self.name, TASKS[CUSTOM]),
            kind=self.kind,
            template=self.template,
            target=self.target,
            answers=self.labels,
            same_input=self.same_input,
            max_input_length=self.max_input_length,
            max_target_length=self.max_target_length,
            metrics=self.metrics,
        )

    def prompt(self, template: str | None = None, labels: Sequence[str] | None = None) -> str:
        """Returns the template of prompts with another text or other labels, which lists labels if the run's does.

        Args:
          template: in the place of the run's, without the list; None for the run's own.
          labels: in the place of the run's.
        """
        run, asked = self.task(), self._asked(template, labels)
        if not run.lists_answers:
            return asked.template
        if asked.template == run.template:
            own = run.template.removesuffix(options_list(run.answers))
            return own + options_list(asked.answers) if self._can_list(asked.answers) else own
        if asked.names_answers or not self._can_list(asked.answers):
            return asked.template
        return asked.with_options().template if asked.takes_options(self.options or "auto") else asked.template

    def prompt_note(self, template: str | None = None, labels: Sequence[str] | None = None) -> str | None:
        """Returns a line if the labels are not in the template of `prompt` as its caller expects; None if they are."""
        run, asked = self.task(), self._asked(template, labels)
        made = self.prompt(template, labels)
        if asked.template == run.template:
            if run.lists_answers and made == run.template.removesuffix(options_list(run.answers)):
                return "the prompt does not list the labels, which do not fit it; in the run it did"
            others = run.answers and made == run.template and run.names_answers and not asked.names_answers
            return "the prompt names the run's labels, not those given (--template makes another)" if others else None
        if not run.lists_answers:
            return None
        if made != asked.template:
            return "the prompt ends in a list of the labels, as in the run"
        return None if asked.names_answers else "the prompt does not list the labels; in the run it did"

    def _can_list(self, labels: Sequence[str]) -> bool:
        """Whether a list of labels leaves room for a text, at four characters a token, and has no special token."""
        listed = options_list(labels)
        return tuple(labels) == self.labels or (len(listed) <= self.max_input_length and "<extra_id_" not in listed)

    def _asked(self, template: str | None, labels: Sequence[str] | None) -> Task:
        return dataclasses.replace(
            self.task(),
            template=self.template if template is None else template,
            answers=self.labels if labels is None else tuple(label.strip() for label in labels),
        )

    def write(self, directory: Path) -> None:
        """Writes `task.json` to an existing directory, atomically."""
        values = dataclasses.asdict(self)
        values = {"format_version": _FORMAT, "task": values.pop("name"), **values, "labels": list(self.labels) or None}
        values["metrics"] = list(self.metrics) or None
        with write_whole(directory / TASK_FILE) as beside:
            beside.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> "TaskOfRun | None":
        """Reads the `task.json` of a directory; returns None if there is none.

        Raises:
          RunFailed: the file is damaged, or has a value that no run writes.
        """
        path = directory / TASK_FILE
        if not path.exists() and not path.is_symlink():  # a broken link is an error, not a missing file
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
    """Raises `UserError` if a task exceeds the limits of `task.json`, so that its adapter could not be used later."""
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
