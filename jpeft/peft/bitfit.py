"""BitFit: only biases train (Ben Zaken et al. 2021). T5 has none, so zeros are added where they would stand."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jpeft.model.t5 import added
from jpeft.peft.base import Adapter, AddedModules


class BiasSite(nnx.Module):
    """`y = W x + b`, `b` starting at 0."""

    def __init__(self, d_out: int):
        self.bias = Adapter(jnp.zeros(d_out))

    def __call__(self, compute, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        return added(compute(x), self.bias[...])


@dataclasses.dataclass(frozen=True)
class BitFit(AddedModules):
    """The paper's reading by default: a bias on the output of every linear map inside the blocks.

    Attributes:
      norms: also a bias on every norm, as BERT's LayerNorms have and its authors train: their method on T5.
    """

    name: ClassVar[str] = "bitfit"
    kinds: ClassVar[tuple[str, ...]] = ("linear", "norm")
    unmergeable: ClassVar[str | None] = "it adds biases, and a T5 has none to hold them"

    norms: bool = False

    @classmethod
    def official(cls) -> "BitFit":
        """Every bias that a transformer with biases has, as its authors train them."""
        return cls(norms=True)

    def default_names(self, model):
        feed_forward = ("wi_0", "wi_1", "wo") if model.config.is_gated else ("wi", "wo")
        norms = ("self_attention_norm", "cross_attention_norm", "feed_forward_norm", "final_norm")
        return ("q", "k", "v", "o", *feed_forward, *(norms if self.norms else ()))

    def create(self, site, key, model):
        return BiasSite(site.d_out)
