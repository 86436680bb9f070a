"""What is asked of a model while it trains: named numbers of a split that does not train it."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from flax import nnx

from jpeft.data.batches import Tokens
from jpeft.data.tasks import Example, Task
from jpeft.eval.answering import as_labels
from jpeft.eval.generate import answers
from jpeft.eval.labels import PackedLabels, likeliest_labels
from jpeft.eval.loss import mean_loss
from jpeft.eval.metrics import judge
from jpeft.model.family import Batch
from jpeft.model.tokenizer import Tokenizer


@runtime_checkable
class Evaluator(Protocol):
    """Judges an adapter on a split of its own.

    Attributes:
      split: what its numbers' names begin with: `validation`.
      what: it does to the split, for a progress bar; empty where the split's name says enough.
      rows: that it hears of, one by one or in batches.
    """

    @property
    def split(self) -> str: ...
    @property
    def what(self) -> str: ...
    @property
    def rows(self) -> int: ...

    def __call__(self, adapter: nnx.State, base: nnx.State, on_rows: Callable[[int], None]) -> dict[str, float]:
        """Its numbers by name, `<split>/<number>`; `on_rows` is told of rows as they are done."""
        ...


@dataclasses.dataclass(frozen=True)
class LossEvaluator:
    """`<split>/loss`: the mean cross-entropy in nats of a split's target tokens.

    Attributes:
      loss: a program as of `jpeft.eval.loss.make_loss`.
      batches: the split's, anew each time, each with how many rows it holds.
    """

    split: str
    loss: Callable
    batches: Callable[[], Iterable[tuple[Batch, int]]]
    rows: int
    what: str = ""

    def __call__(self, adapter: nnx.State, base: nnx.State, on_rows: Callable[[int], None]) -> dict[str, float]:
        def told() -> Iterable[Batch]:
            for batch, rows in self.batches():
                yield batch
                on_rows(rows)

        return {f"{self.split}/loss": mean_loss(self.loss, adapter, base, told())}


@dataclasses.dataclass(frozen=True)
class AnswersEvaluator:
    """`<split>/<metric>` of the answers to a split: the likeliest of the labels where these are scored, else generated.

    Attributes:
      task: whose metrics judge the answers.
      generate, label_log_probs: programs as of `make_generate` and `make_label_log_probs`.
      labels: to be scored; None to generate.
      batching: as of `jpeft.eval.generate.by_row`.
      ready: gives adapter and base as the programs take them, once for the split.
    """

    split: str
    task: Task
    examples: Sequence[Example]
    tokens: Tokens
    tokenizer: Tokenizer
    generate: Callable
    label_log_probs: Callable | None
    labels: PackedLabels | None
    batching: Mapping[str, Any]
    ready: Callable[[nnx.State, nnx.State], tuple[nnx.State, nnx.State]] = lambda adapter, base: (adapter, base)
    what: str = "answers"

    @property
    def rows(self) -> int:
        return len(self.tokens)

    def __call__(self, adapter: nnx.State, base: nnx.State, on_rows: Callable[[int], None]) -> dict[str, float]:
        asked = {**self.batching, "on_batch": on_rows}
        adapter, base = self.ready(adapter, base)
        if self.labels is not None:
            assert self.label_log_probs is not None, "labels are scored by a program"
            chosen = likeliest_labels(self.label_log_probs, adapter, base, self.tokens.inputs, self.labels, **asked)
            judged = judge(self.task, self.examples, chosen.texts, chosen.probabilities)
        else:
            given = answers(self.generate, adapter, base, self.tokens, self.tokenizer, **asked)
            written = as_labels(given, self.task.answers, self.tokenizer)
            judged = judge(self.task, self.examples, written)
        return {f"{self.split}/{name}": value for name, value in judged.numbers.items()}
