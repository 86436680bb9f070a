"""The compiled programs of a run, laid out over its devices."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import jax
from flax import nnx

from jpeft.eval.generate import make_generate
from jpeft.eval.labels import PackedLabels, make_label_log_probs
from jpeft.eval.loss import make_loss
from jpeft.mesh.layout import Layout
from jpeft.model.family import Batch, family_with
from jpeft.peft.method import Method
from jpeft.program import Program, spec
from jpeft.recent import Recent
from jpeft.train.meeting import Meeting, MeetingProgram
from jpeft.train.optimizer import Optimizer
from jpeft.train.step import (
    ACCUMULATE_BASE,
    ACCUMULATE_SUMS,
    Sums,
    TrainState,
    make_accumulate,
    make_update,
    zero_sums,
)

# The cycle that every run repeats, in this order (`Meeting.join`).
_ACCUMULATE_TURN, _UPDATE_TURN, _LOSS_TURN = range(3)
_BASE = 1  # its position among the arguments of the loss and the answering programs: adapter, base, batch

# The program of a single run, or of a run whose calls are batched with those of others: both are called alike.
P = TypeVar("P", bound=Program | MeetingProgram)


@dataclasses.dataclass(frozen=True)
class AnsweringPrograms(Generic[P]):
    """The programs that answer a batch of inputs.

    Attributes:
      layout: where they expect weights; may differ from training's (`Layout.for_answers`).
      generate: generates answers.
      label_log_probs: scores labels; None if labels are not scored.
      move: moves adapter and base from training's layout to this one; None if the layouts agree.
    """

    layout: Layout
    generate: P
    label_log_probs: P | None
    move: Program | None = None

    def ready(self, adapter: nnx.State, base: nnx.State) -> tuple[nnx.State, nnx.State]:
        """Returns adapter and base in the layout of the programs; to be called once for a whole split."""
        return (adapter, base) if self.move is None else self.move((adapter, base))


@dataclasses.dataclass(frozen=True)
class Programs(Generic[P]):
    """The programs of a run: gradients of a micro-batch, the update, the loss of a batch, and answers to a batch.

    They are `MeetingProgram`s for a run whose calls are batched with those of other runs.

    Attributes:
      parts: the number of parts of a micro-batch whose sums stay apart until the update.
    """

    accumulate: P
    update: P
    loss: P
    answering: AnsweringPrograms[P]
    parts: int = 1

    def zero_sums(self, adapter: nnx.State) -> Sums:
        """The sums that a run's first `accumulate` adds to, for a tree like `adapter`; on no device yet."""
        return zero_sums(adapter, self.parts)


def meeting_others(
    programs: Programs[Program], meeting: Meeting, config: Any, *, kind: Hashable | None = None
) -> Programs[MeetingProgram]:
    """Wraps a run's programs so that their calls are batched with those of the other runs of this process.

    Args:
      programs: the programs of the run alone.
      meeting: where the calls meet.
      config: of the network, whose family pads batches to a common shape.
      kind: `kind_of` the run if runs of other ranks may meet it; None if only the same programs may.
    """

    def pad_alike(batches: Sequence[Batch]) -> list[Batch]:
        return family_with(config).padded_alike(batches, config)

    def answers(program: Program) -> MeetingProgram:
        return meeting.join(program, shared=(_BASE,))

    def passing(program: Program, turn: int, *, shared: Sequence[int], like: int | None = None) -> MeetingProgram:
        """A forward or backward pass over a batch, whose leaves may be padded."""
        kind_of_turn = None if kind is None else (turn, kind)
        return meeting.join(program, shared=shared, turn=turn, pad_alike=pad_alike, kind=kind_of_turn, like=like)

    answering = programs.answering
    return Programs(
        parts=programs.parts,
        accumulate=passing(programs.accumulate, _ACCUMULATE_TURN, shared=(ACCUMULATE_BASE,), like=ACCUMULATE_SUMS),
        update=meeting.join(programs.update, shared=(), turn=_UPDATE_TURN),
        loss=passing(programs.loss, _LOSS_TURN, shared=(_BASE,)),
        answering=AnsweringPrograms(
            layout=answering.layout,
            generate=answers(answering.generate),
            label_log_probs=None if answering.label_log_probs is None else answers(answering.label_log_probs),
            move=answering.move,
        ),
    )


def kind_of(
    graphdef: nnx.GraphDef, adapter: nnx.State, base: nnx.State, layout: Layout, *, label_smoothing: float
) -> Hashable:
    """The key of runs whose passes over a batch differ in nothing but the sizes of their trainable leaves."""
    leaves, structure = jax.tree.flatten(adapter)
    dtypes = tuple(str(leaf.dtype) for leaf in leaves)
    return graphdef, structure, dtypes, spec(base), layout, label_smoothing


def parts_apart(layout: Layout, method: Method, dropout_rate: float) -> int:
    """The number of parts of a batch whose sums are kept apart until the update: one exchange between devices per step.

    As many as `mesh.data`, with two exceptions that give 1. Where the base trains, the sums are as large as the model
    and may be sharded over the same devices. With dropout, a GPU's compiler writes masks drawn per part to memory,
    which costs more than the exchange; masks drawn for the whole batch are computed where they are used.
    """
    return 1 if method.trains_base or dropout_rate else layout.shape["data"]


def build_programs(
    graphdef: nnx.GraphDef,
    state: TrainState,
    base: nnx.State,
    optimizer: Optimizer,
    layout: Layout,
    *,
    max_length: int,
    num_beams: int,
    labels: PackedLabels | None = None,
    label_smoothing: float = 0.0,
    method: Method | None = None,
    parts: int = 1,
    cache: Recent[Program],
) -> Programs[Program]:
    """Builds the programs for trees of these shapes, or takes them from `cache` if an earlier run has built them.

    Args:
      state, base: arrays, or their shapes alone.
      optimizer: must be hashable if `cache` is shared: it is part of the update program, the learning rates are not.
      max_length, num_beams: for generation.
      labels: labels to score.
      label_smoothing: of the training loss.
      method: for its hooks into the update, where it has any.
      parts: `parts_apart` of the run.
      cache: programs built before.

    Raises:
      UserError: a dimension cannot be sharded as the layout asks.
    """
    method_with_hooks = method if method is not None and method.has_hooks else None
    sums = jax.eval_shape(lambda adapter: zero_sums(adapter, parts), state.adapter)
    state_shardings, sums_shardings = layout.shardings(state), layout.shardings(sums)
    model = (graphdef, spec(state.adapter), spec(base), layout)

    def program(key: tuple[Hashable, ...], make: Callable[[], Callable], **options: Any) -> Program:
        return cache.get(key, lambda: Program(layout.traced(make()), **options))

    return Programs(
        parts=parts,
        accumulate=program(
            ("accumulate", *model, label_smoothing, parts),
            lambda: make_accumulate(
                graphdef, label_smoothing=label_smoothing, each_part=None if parts == 1 else layout.each_part
            ),
            donate=(ACCUMULATE_SUMS,),
            batch=layout.batch,
            results=sums_shardings,
        ),
        update=program(
            ("update", spec(state), layout, optimizer, method_with_hooks, parts),
            lambda: make_update(optimizer, method_with_hooks),
            donate=(0, 1),
            results=(state_shardings, sums_shardings, layout.whole),
        ),
        loss=program(("loss", *model), lambda: make_loss(graphdef), batch=layout.batch, results=layout.whole),
        answering=build_answering(
            graphdef,
            state.adapter,
            base,
            layout,
            max_length=max_length,
            num_beams=num_beams,
            labels=labels,
            cache=cache,
        ),
    )


def build_answering(
    graphdef: nnx.GraphDef,
    adapter: nnx.State,
    base: nnx.State,
    layout: Layout,
    *,
    max_length: int,
    num_beams: int,
    labels: PackedLabels | None = None,
    cache: Recent[Program],
) -> AnsweringPrograms[Program]:
    """Builds the answering programs, with or without a method attached; arguments as in `build_programs`."""
    training_layout, layout = layout, layout.for_answers((adapter, base))
    model = (graphdef, spec(adapter), spec(base), layout)

    def program(key: tuple[Hashable, ...], make: Callable[[], Callable]) -> Program:
        return cache.get(key, lambda: Program(layout.traced(make()), batch=layout.batch, results=layout.whole))

    def scoring(labels: PackedLabels) -> Program:
        return program(("label_log_probs", *model, labels.key), lambda: make_label_log_probs(graphdef, labels))

    def moving() -> Program:
        return Program(lambda trees: trees, results=layout.shardings((adapter, base)))

    return AnsweringPrograms(
        layout=layout,
        move=None if layout == training_layout else cache.get(("move", *model), moving),
        generate=program(
            ("generate", *model, max_length, num_beams),
            lambda: make_generate(graphdef, max_length=max_length, num_beams=num_beams),
        ),
        label_log_probs=None if labels is None else scoring(labels),
    )
