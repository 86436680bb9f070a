"""Trainable parameters of a method on a model, counted from shapes without allocating weights."""

import dataclasses

import jax
from flax import nnx

from jpeft.peft.attaching import attach, count, split
from jpeft.peft.method import Method
from jpeft.peft.methods import METHODS, OF_THE_PAPER, ablation_of, missing_sublayer
from jpeft.peft.selection import Selection, select


@dataclasses.dataclass(frozen=True)
class Count:
    """The number of trainable parameters of a method or of one of its ablations; a row of the paper's Table 3."""

    method: str
    ablation: str | None
    parameters: int


def trainable_parameters(model: nnx.Module, method: Method, selection: Selection = Selection()) -> int:  # noqa: B008
    """The number of trainable parameters of `method` on a model, which may hold shapes instead of arrays."""
    chosen = select(model, method, selection)
    graphdef, state = nnx.split(model)

    def adapted(state: nnx.State) -> nnx.State:
        return split(attach(nnx.merge(graphdef, state), method, chosen, jax.random.key(0)))[1]

    return count(jax.eval_shape(adapted, state))


def counts_of_the_paper(model: nnx.Module) -> list[Count]:
    """Counts of the paper's methods and of the ablations that the model has the sublayers for; full tuning is first."""
    rows = []
    for name in OF_THE_PAPER:
        method = METHODS[name]
        rows.append(Count(name, None, trainable_parameters(model, method())))
        for ablated in method.ablations:
            if missing_sublayer(model, name, ablated) is not None:
                continue
            selection = ablation_of(model, name, ablated)
            rows.append(Count(name, ablated, trainable_parameters(model, method(), selection)))
    return rows


def other_methods(model: nnx.Module) -> list[Count]:
    """Counts of the methods that are not in the paper, with their default options."""
    others = {name: method for name, method in METHODS.items() if name not in OF_THE_PAPER}
    return [Count(name, None, trainable_parameters(model, method())) for name, method in others.items()]
