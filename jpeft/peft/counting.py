"""Trainable parameters of a method on a model, counted on shapes alone: no weight is allocated."""

import dataclasses

import jax
from flax import nnx

from jpeft.peft.attaching import attach, count, split
from jpeft.peft.method import Method
from jpeft.peft.methods import METHODS, OF_THE_PAPER, ablation_of, lacks_for
from jpeft.peft.selection import Selection, select


@dataclasses.dataclass(frozen=True)
class Count:
    """Parameters of a method, or of an ablation of it, such as one row of the paper's Table 3."""

    method: str
    ablation: str | None
    parameters: int


def trainable_parameters(model: nnx.Module, method: Method, selection: Selection = Selection()) -> int:  # noqa: B008
    """Size of the trainable tree of `method` on a model, or on shapes in its place."""
    chosen = select(model, method, selection)
    graphdef, state = nnx.split(model)

    def adapted(state: nnx.State) -> nnx.State:
        return split(attach(nnx.merge(graphdef, state), method, chosen, jax.random.key(0)))[1]

    return count(jax.eval_shape(adapted, state))


def counts_of_the_paper(model: nnx.Module) -> list[Count]:
    """The paper's methods and ablations of the model in its reading; the first row is the whole model."""
    rows = []
    for name in OF_THE_PAPER:
        method = METHODS[name]
        rows.append(Count(name, None, trainable_parameters(model, method())))
        for ablated in method.ablations:
            if lacks_for(model, name, ablated) is not None:
                continue
            selection = ablation_of(model, name, ablated)
            rows.append(Count(name, ablated, trainable_parameters(model, method(), selection)))
    return rows


def other_methods(model: nnx.Module) -> list[Count]:
    """Parameters of the methods that the paper does not have, each as it is by default; see `counts_of_the_paper`."""
    others = {name: method for name, method in METHODS.items() if name not in OF_THE_PAPER}
    return [Count(name, None, trainable_parameters(model, method())) for name, method in others.items()]
