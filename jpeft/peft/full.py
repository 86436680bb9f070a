"""Full tuning: every weight trains. The paper's baseline, by the same code path as the methods."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from jpeft.peft.base import Adapter, Method


@dataclasses.dataclass(frozen=True)
class Full(Method):
    """The model's own weights become `Adapter` leaves, in float32. With a selection, only those of the chosen sites."""

    name: ClassVar[str] = "full"
    trains_base: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = ("linear", "norm", "embedding")

    def default_names(self, model):
        return None

    def attach_to(self, module, layer_sites, key, model):
        for name, value in vars(module).items():
            if isinstance(value, nnx.Param):
                setattr(module, name, Adapter(jnp.asarray(value[...], jnp.float32)))
