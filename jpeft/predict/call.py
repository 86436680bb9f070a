"""A call of `jpeft predict`, with defaults from the adapter's run."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from jpeft.data.task_file import DTYPES, QUANTIZED
from jpeft.errors import UserError
from jpeft.model.family import compute_dtype
from jpeft.model.quantized import Quantization
from jpeft.predict.answer_source import AnswerSource
from jpeft.predict.answering import Answering, Choosing, Generating
from jpeft.predict.questions import PromptTemplate
from jpeft.typed_config import one_of

_MAX_INPUT_LENGTH, _MAX_OUTPUT_LENGTH = 512, 128  # without a run's own
_BATCHES_IN_WINDOW = 16  # rows are sorted by length within this many batches; a kill loses at most one window


@dataclasses.dataclass(frozen=True)
class Call:
    """Everything that answers depend on except the rows.

    Attributes:
      labels: to choose from; None to generate.
      max_input_length, max_output_length: in tokens, `</s>` included.
      num_beams: of generation; 1 is greedy decoding.
      dtype: as the config key `model.dtype`.
      quantization: of the base, in words: `nf4,double`.
    """

    source: AnswerSource
    prompt: PromptTemplate
    labels: tuple[str, ...] | None
    max_input_length: int
    max_output_length: int
    num_beams: int
    batch_size: int
    dtype: str
    quantization: str = "auto"

    @classmethod
    def of(
        cls,
        source: AnswerSource,
        *,
        template: str | None = None,
        labels: Sequence[str] | None = None,
        generate: bool = False,
        max_input_length: int | None = None,
        max_output_length: int | None = None,
        num_beams: int | None = None,
        batch_size: int = 32,
        dtype: str | None = None,
        quantization: str | None = None,
        report: Callable[[str], None] = lambda line: None,
    ) -> "Call":
        """Makes a call; what is None is taken from the adapter's run, or is a default.

        Args:
          generate: whether to generate although the run's task has labels.
          report: called with a line if the prompt's list of labels is not as a reader expects.

        Raises:
          UserError: a value is invalid, or two exclude each other.
        """
        if labels is not None and generate:
            raise UserError("--labels and --generate exclude each other: labels are chosen from, not generated.")
        task = source.task
        if labels is None and not generate and task is not None:
            labels = task.chosen_from or None
        if labels is not None and (num_beams or max_output_length):
            flag = "--num-beams" if num_beams else "--max-output-length"
            raise UserError(
                f"{flag} is for generated answers, and labels are chosen from here; leave it out or add --generate."
            )
        if template is not None:
            prompt = PromptTemplate.given(template)
        else:
            prompt = PromptTemplate(required=task is None)
        if task is not None:
            prompt = dataclasses.replace(prompt, template=task.prompt(template, labels))
            if (line := task.prompt_note(template, labels)) is not None:
                report(line)
        return cls(
            source=source,
            prompt=prompt,
            labels=None if labels is None else tuple(labels),
            max_input_length=max_input_length or (task.max_input_length if task else _MAX_INPUT_LENGTH),
            max_output_length=max_output_length or (task.max_target_length if task else _MAX_OUTPUT_LENGTH),
            num_beams=num_beams or (task.num_beams if task and labels is None else 1),
            batch_size=batch_size,
            dtype=one_of("--dtype", dtype or (task.dtype if task else "auto"), DTYPES),
            quantization=one_of("--quantization", source.kept(quantization), QUANTIZED),
        )

    @property
    def window(self) -> int:
        """The number of rows that are sorted by length, answered and written together.

        Windows start at fixed rows, so that a resumed call makes the same batches and bit-identical answers.
        """
        return _BATCHES_IN_WINDOW * self.batch_size

    def record(self) -> dict[str, Any]:
        """The call as JSON values, to recognise the same call. Reads every weight once."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["source"]
        return {
            **self.source.identity(),
            **fields,
            "prompt": self.prompt.template,
            "labels": None if self.labels is None else list(self.labels),
        }

    def load(self, *, report: Callable[[str], None] = lambda line: None) -> Answering:
        """Loads the model. Raises as `AnswerSource.load` and `PackedLabels.of`; notes go to `report`."""
        quantization = Quantization.parse(self.quantization)
        model, tokenizer = self.source.load(compute_dtype(self.dtype), quantization, report=report)
        batching: dict[str, Any] = {"max_input_length": self.max_input_length, "batch_size": self.batch_size}
        if self.labels is not None:
            return Choosing(model, tokenizer, labels=self.labels, **batching)
        return Generating(
            model, tokenizer, max_output_length=self.max_output_length, num_beams=self.num_beams, **batching
        )
