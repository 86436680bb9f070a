"""Trainable parameters of a method on a model, counted on shapes alone: no weight is allocated."""

import dataclasses

import jax
from flax import nnx

from jpeft.model.config import T5Config
from jpeft.model.t5 import T5
from jpeft.peft.ablations import ABLATIONS, ablation
from jpeft.peft.base import Method, Selection, attach, count, select, split
from jpeft.peft.methods import METHODS


@dataclasses.dataclass(frozen=True)
class Count:
    """Parameters of one row of the paper's Table 3."""

    method: str
    ablation: str | None
    parameters: int


def abstract_model(config: T5Config) -> T5:
    """The network with shapes in the place of weights."""
    return nnx.eval_shape(lambda: T5(config, rngs=nnx.Rngs(0)))


def trainable_parameters(config: T5Config, method: Method, selection: Selection = Selection()) -> int:  # noqa: B008
    """Size of the trainable tree of `method` on a T5 of these sizes."""

    def adapted() -> nnx.State:
        model = T5(config, rngs=nnx.Rngs(0))
        return split(attach(model, method, select(model, method, selection), jax.random.key(0)))[1]

    return count(jax.eval_shape(adapted))


def table_3(config: T5Config) -> list[Count]:
    """Every method and ablation in the paper's reading; the first row is the whole model."""
    rows = []
    for name, cls in METHODS.items():
        rows.append(Count(name, None, trainable_parameters(config, cls())))
        for ablated in ABLATIONS.get(name, {}):
            rows.append(Count(name, ablated, trainable_parameters(config, cls(), ablation(name, ablated, config))))
    return rows
