"""The compiled functions of a run, laid out over its devices."""

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

# What every run does again and again, in this order (`Meeting.joined`).
_ACCUMULATE_TURN, _UPDATE_TURN, _LOSS_TURN = range(3)
_BASE = 1  # its position among the arguments of the loss and of what answers: adapter, base and a batch

# One run's programs, or those of one that is among several: they are called alike.
P = TypeVar("P", bound=Program | MeetingProgram)


@dataclasses.dataclass(frozen=True)
class AnsweringPrograms(Generic[P]):
    """The programs that answer a batch of inputs.

    Attributes:
      layout: where they have weights, which may be elsewhere than training has them (`Layout.for_answers`).
      label_log_probs: None where labels are not scored.
      move: takes adapter and base there; None where they are there.
    """

    layout: Layout
    generate: P
    label_log_probs: P | None
    move: Program | None = None

    def ready(self, adapter: nnx.State, base: nnx.State) -> tuple[nnx.State, nnx.State]:
        """Adapter and base as the programs take them: moved once for a whole split, if they have to be."""
        return (adapter, base) if self.move is None else self.move((adapter, base))

    def compile_seconds(self) -> float:
        """Seconds spent compiling so far."""
        made = (self.generate, self.label_log_probs, self.move)
        return sum(program.compile_seconds for program in made if program is not None)


@dataclasses.dataclass(frozen=True)
class Programs(Generic[P]):
    """What a run calls on its devices: gradients of a micro-batch, the update, the loss of a batch, answers to one.

    Of a run that is one of several in a process they are what asks together with the others (`MeetingProgram`).

    Attributes:
      parts: of a micro-batch whose sums stay apart until the update.
    """

    accumulate: P
    update: P
    loss: P
    answering: AnsweringPrograms[P]
    parts: int = 1

    def zero_sums(self, adapter: nnx.State) -> Sums:
        """What the first `accumulate` of a run adds to, for a trainable tree of this structure; on no device yet."""
        return zero_sums(adapter, self.parts)

    def compile_seconds(self) -> float:
        """Seconds spent compiling so far."""
        training = self.accumulate.compile_seconds + self.update.compile_seconds
        return training + self.loss.compile_seconds + self.answering.compile_seconds()


def meeting_others(
    programs: Programs[Program], meeting: Meeting, config: Any, *, kind: Hashable | None = None
) -> Programs[MeetingProgram]:
    """The programs of a run that is one of several in this process, which ask for the same ones together.

    Args:
      config: of the network, whose family makes batches alike.
      kind: `kind_of` the run, where those of other ranks may meet it; None where only the very same may.
    """

    def widen(batches: Sequence[Batch]) -> list[Batch]:
        return family_with(config).widened(batches, config)

    def answers(program: Program) -> MeetingProgram:
        return meeting.joined(program, shared=(_BASE,))

    def passing(program: Program, turn: int, *, shared: Sequence[int], like: int | None = None) -> MeetingProgram:
        """A pass over a batch, forward or backward, in which leaves may be filled up."""
        of = None if kind is None else (turn, kind)
        return meeting.joined(program, shared=shared, turn=turn, widen=widen, kind=of, like=like)

    answering = programs.answering
    return Programs(
        parts=programs.parts,
        accumulate=passing(programs.accumulate, _ACCUMULATE_TURN, shared=(ACCUMULATE_BASE,), like=ACCUMULATE_SUMS),
        update=meeting.joined(programs.update, shared=(), turn=_UPDATE_TURN),
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
    """What runs agree in whose passes over a batch are the same but for the sizes of what they train."""
    leaves, structure = jax.tree.flatten(adapter)
    dtypes = tuple(str(leaf.dtype) for leaf in leaves)
    return graphdef, structure, dtypes, spec(base), layout, label_smoothing


def parts_apart(layout: Layout, method: Method, dropout_rate: float) -> int:
    """Into how many parts of a batch the sums of a step are kept until the update, so that one message a step does.

    As many as `mesh.data` has. But 1 where the base trains, whose sums are as large as the model and may be cut over
    the same devices; and 1 with dropout: a GPU's compiler writes masks that are drawn for a part alone to memory,
    which costs more than messages do, and makes those of a whole batch where they are used.
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
    made: Recent[Program],
) -> Programs[Program]:
    """The programs for trees of these shapes; those that were `made` before are taken from there.

    Args:
      state, base: arrays, or their shapes alone.
      optimizer: hashable where what is `made` is shared: it is part of the update, the rates are not.
      max_length, num_beams: of generation.
      labels: to be scored.
      label_smoothing: of the training loss.
      method: for its hooks into the update, where it has any.
      parts: `parts_apart` of the run.

    Raises:
      UserError: a dimension cannot be cut as the layout asks.
    """
    hooked = method if method is not None and method.has_hooks else None
    sums = jax.eval_shape(lambda adapter: zero_sums(adapter, parts), state.adapter)
    of_state, of_sums = layout.shardings(state), layout.shardings(sums)
    model = (graphdef, spec(state.adapter), spec(base), layout)

    def program(key: tuple[Hashable, ...], make: Callable[[], Callable], **options: Any) -> Program:
        return made.get(key, lambda: Program(layout.traced(make()), **options))

    return Programs(
        parts=parts,
        accumulate=program(
            ("accumulate", *model, label_smoothing, parts),
            lambda: make_accumulate(
                graphdef, label_smoothing=label_smoothing, each_part=None if parts == 1 else layout.each_part
            ),
            donate=(ACCUMULATE_SUMS,),
            batch=layout.batch,
            results=of_sums,
        ),
        update=program(
            ("update", spec(state), layout, optimizer, hooked, parts),
            lambda: make_update(optimizer, hooked),
            donate=(0, 1),
            results=(of_state, of_sums, layout.whole),
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
            made=made,
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
    made: Recent[Program],
) -> AnsweringPrograms[Program]:
    """The programs that answer, with a method attached or without any; arguments as of `build_programs`."""
    trained, layout = layout, layout.for_answers((adapter, base))
    model = (graphdef, spec(adapter), spec(base), layout)

    def program(key: tuple[Hashable, ...], make: Callable[[], Callable]) -> Program:
        return made.get(key, lambda: Program(layout.traced(make()), batch=layout.batch, results=layout.whole))

    def scoring(labels: PackedLabels) -> Program:
        return program(("label_log_probs", *model, labels.key), lambda: make_label_log_probs(graphdef, labels))

    def moving() -> Program:
        return Program(lambda trees: trees, results=layout.shardings((adapter, base)))

    return AnsweringPrograms(
        layout=layout,
        move=None if layout == trained else made.get(("move", *model), moving),
        generate=program(
            ("generate", *model, max_length, num_beams),
            lambda: make_generate(graphdef, max_length=max_length, num_beams=num_beams),
        ),
        label_log_probs=None if labels is None else scoring(labels),
    )
