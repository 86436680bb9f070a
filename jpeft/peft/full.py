"""Full tuning, the paper's baseline: every weight trains, by the same code path as the other methods."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from jpeft.errors import UserError
from jpeft.leaves import Quantized
from jpeft.peft.method import LearningRates, Method
from jpeft.peft.variables import Adapter


@dataclasses.dataclass(frozen=True)
class Full(Method):
    """Full tuning: the model's own weights, or those at the selected sites, become float32 `Adapter` leaves."""

    name: ClassVar[str] = "full"
    trains_base: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = ("linear", "norm", "embedding", "other")
    learning_rates: ClassVar = LearningRates(3e-5, 3e-4, 3e-5)

    @property
    def peft_lacks(self) -> str | None:
        return "weights of the base"

    def describe(self) -> str:
        return "full tuning of some weights"

    def attach_to(self, place, key, model, made):
        if any(isinstance(value, Quantized) for value in vars(place.module).values()):
            raise UserError(
                f"{place.sites[0].told} is kept in 8 or 4 bits, which do not train; load the model without "
                "quantization, or choose a method that adds to a frozen base."
            )
        for name, value in list(vars(place.module).items()):
            if isinstance(value, nnx.Param) and jnp.issubdtype(value[...].dtype, jnp.floating):
                # A weight that several modules share stays one shared weight.
                trained = made.setdefault(id(value), (value, Adapter(jnp.asarray(value[...], jnp.float32))))[1]
                setattr(place.module, name, trained)
