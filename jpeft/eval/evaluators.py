"""Evaluators: named numbers (loss, metrics) of a validation split, computed during training."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

from flax import nnx

from jpeft.data.batches import Tokens
from jpeft.data.tasks import Example, Task
from jpeft.eval.answering import as_labels
from jpeft.eval.generate import Batching, answers
from jpeft.eval.labels import PackedLabels, likeliest_labels
from jpeft.eval.loss import mean_loss
from jpeft.eval.metrics import judge
from jpeft.model.family import Batch
from jpeft.model.tokenizer import Tokenizer


@runtime_checkable
class Evaluator(Protocol):
    """Evaluates an adapter on a split.

    Attributes:
      split: name of the split, which prefixes the names of the numbers: `validation`.
      what: label of the progress bar besides the split's name; may be empty.
      rows: the total that the calls of `on_rows` add up to.
    """

    @property
    def split(self) -> str: ...
    @property
    def what(self) -> str: ...
    @property
    def rows(self) -> int: ...

    def __call__(self, adapter: nnx.State, base: nnx.State, on_rows: Callable[[int], None]) -> dict[str, float]:
        """Returns numbers by name, `<split>/<number>`. `on_rows` is called with the rows of each finished batch."""
        ...


@dataclasses.dataclass(frozen=True)
class LossEvaluator:
    """Computes `<split>/loss`, the mean cross-entropy per target token of a split, in nats.

    Attributes:
      loss: program of `jpeft.eval.loss.make_loss`.
      batches: returns a new iterator over the split's batches, each with its number of rows.
    """

    split: str
    loss: Callable
    batches: Callable[[], Iterable[tuple[Batch, int]]]
    rows: int
    what: str = ""

    def __call__(self, adapter: nnx.State, base: nnx.State, on_rows: Callable[[int], None]) -> dict[str, float]:
        def reported_batches() -> Iterable[Batch]:
            for batch, rows in self.batches():
                yield batch
                on_rows(rows)

        return {f"{self.split}/loss": mean_loss(self.loss, adapter, base, reported_batches())}


@dataclasses.dataclass(frozen=True)
class AnswersEvaluator:
    """Computes `<split>/<metric>` of the answers to a split, which are scored labels or generated text.

    Attributes:
      task: its metrics judge the answers.
      generate, label_log_probs: programs of `make_generate` and `make_label_log_probs`.
      labels: to be scored; None to generate.
      batching: of the split's rows; its `on_batch` is replaced.
      ready: converts adapter and base to the layout that the programs take, once per evaluation.
    """

    split: str
    task: Task
    examples: Sequence[Example]
    tokens: Tokens
    tokenizer: Tokenizer
    generate: Callable
    label_log_probs: Callable | None
    labels: PackedLabels | None
    batching: Batching
    ready: Callable[[nnx.State, nnx.State], tuple[nnx.State, nnx.State]] = lambda adapter, base: (adapter, base)
    what: str = "answers"

    @property
    def rows(self) -> int:
        return len(self.tokens)

    def __call__(self, adapter: nnx.State, base: nnx.State, on_rows: Callable[[int], None]) -> dict[str, float]:
        batching = dataclasses.replace(self.batching, on_batch=on_rows)
        adapter, base = self.ready(adapter, base)
        if self.labels is not None:
            assert self.label_log_probs is not None, "labels are scored by a program"
            chosen = likeliest_labels(self.label_log_probs, adapter, base, self.tokens.inputs, self.labels, batching)
            judged = judge(self.task, self.examples, chosen.texts, chosen.probabilities)
        else:
            given = answers(self.generate, adapter, base, self.tokens, self.tokenizer, batching)
            written = as_labels(given.texts, self.task.answers, self.tokenizer)
            judged = judge(self.task, self.examples, written)
        return {f"{self.split}/{name}": value for name, value in judged.numbers.items()}
