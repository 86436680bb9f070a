"""The compiled functions of a run, laid out over its devices."""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any

import optax
from flax import nnx

from jpeft.eval.generate import make_generate
from jpeft.eval.labels import PackedLabels, make_label_log_probs
from jpeft.eval.loss import make_loss
from jpeft.mesh.layout import Layout
from jpeft.program import Program
from jpeft.train.session import Recent, spec
from jpeft.train.step import StepSums, TrainState, make_accumulate, make_update


@dataclasses.dataclass(frozen=True)
class Programs:
    """What a run calls on its devices: gradients of a micro-batch, the update, the loss of a batch, answers to one.

    Attributes:
      label_log_probs: None where labels are not scored.
    """

    accumulate: Program
    update: Program
    loss: Program
    generate: Program
    label_log_probs: Program | None = None

    def compile_seconds(self) -> float:
        """Spent compiling so far."""
        programs = (getattr(self, field.name) for field in dataclasses.fields(self))
        return sum(program.compile_seconds for program in programs if program is not None)


def build_programs(
    graphdef: nnx.GraphDef,
    state: TrainState,
    base: nnx.State,
    sums: StepSums,
    tx: optax.GradientTransformation,
    layout: Layout,
    *,
    optimizer_key: Hashable,
    max_length: int,
    num_beams: int,
    labels: PackedLabels | None = None,
    made: Recent[Program],
) -> Programs:
    """The programs for trees of these shapes; those that were `made` before are taken from there.

    Args:
      state, base, sums: arrays, or their shapes alone.
      optimizer_key: all that `tx` was made from.
      max_length, num_beams: of generation.
      labels: to be scored.

    Raises:
      UserError: a dimension can not be cut as the layout asks.
    """
    of_state, of_sums = layout.shardings(state), layout.shardings(sums)
    model = (graphdef, spec(state.adapter), spec(base), layout)

    def program(key: tuple[Hashable, ...], make: Callable[[], Callable], **options: Any) -> Program:
        return made.get(key, lambda: Program(layout.traced(make()), **options))

    return Programs(
        accumulate=program(
            ("accumulate", *model), lambda: make_accumulate(graphdef), donate=(0,), batch=layout.batch, results=of_sums
        ),
        update=program(
            ("update", spec(state), layout, optimizer_key),
            lambda: make_update(tx),
            donate=(0, 1),
            results=(of_state, of_sums, layout.whole),
        ),
        loss=program(("loss", *model), lambda: make_loss(graphdef), batch=layout.batch, results=layout.whole),
        generate=program(
            ("generate", *model, max_length, num_beams),
            lambda: make_generate(graphdef, max_length=max_length, num_beams=num_beams),
            batch=layout.batch,
            results=layout.whole,
        ),
        label_log_probs=None
        if labels is None
        else program(
            ("label_log_probs", *model, labels.key),
            lambda: make_label_log_probs(graphdef, labels),
            batch=layout.batch,
            results=layout.whole,
        ),
    )
