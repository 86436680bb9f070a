"""BitFit: only biases train (Ben Zaken et al. 2021): zeros are added to those there are, or where there are none.

What is added to a bias and trained from 0 is that bias, trained: the same function, the same gradient.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jpeft.peft.arithmetic import added
from jpeft.peft.method import AddedModules
from jpeft.peft.row_wise import Leaves, Rows, each
from jpeft.peft.sites import ATTENTION_ROLES, FEED_FORWARD_ROLES, Site
from jpeft.peft.variables import Adapter
from jpeft.peft.views import Original


class BiasSite(nnx.Module):
    """`y = W x + b`: a trained bias `b`, starting at 0, added to what comes out of a map or a norm."""

    def __init__(self, d_out: int):
        self.bias = Adapter(jnp.zeros(d_out))

    def __call__(self, compute, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        return added(compute(x), self.bias[...])

    def fold(self, kernel: Float[Array, "..."], bias: Any) -> tuple[Any, Any]:
        """Kernel and bias that alone do what they and this do together; the bias is one where there was none.

        A norm's kernel is its scale.
        """
        return kernel, self.bias[...] if bias is None else bias + self.bias[...]


@dataclasses.dataclass(frozen=True)
class Bias(Rows):
    """`y + b`: as `BiasSite`, each row of a batch with a bias of its own."""

    leaves: tuple[str, ...] = ("bias",)
    order: ClassVar[int] = 2

    def __call__(
        self, leaves: Leaves, compute: Original, x: Float[Array, "batch length d_in"]
    ) -> Float[Array, "batch length d_out"]:
        return added(compute(x), each(leaves["bias"]))


@dataclasses.dataclass(frozen=True)
class BitFit(AddedModules):
    """BitFit (Ben Zaken et al. 2021), by default as Pu et al. (2023) count it: the bias of every map in the blocks.

    `BitFit.official()` trains biases of norms as well. Where a model has biases, these are all that there are. Where it
    has none, as T5 and Llama, each map gets one.

    Attributes:
      norms: also a bias on every norm, as BERT's LayerNorms have and its authors train: their method on T5.
    """

    name: ClassVar[str] = "bitfit"
    unmergeable: ClassVar[str | None] = "it adds biases where the base has none to hold them"
    leaf_axes: ClassVar = {"bias": ("out",)}

    norms: bool = False

    @classmethod
    def official(cls) -> "BitFit":
        """Every bias that a transformer with biases has, as its authors train them."""
        return cls(norms=True)

    @property
    def kinds(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]  (an option decides)
        return ("linear", "norm") if self.norms else ("linear",)

    @property
    def default_roles(self) -> tuple[str, ...]:
        return (*ATTENTION_ROLES, *FEED_FORWARD_ROLES, *(("norm",) if self.norms else ()))

    def default_sites(self, candidates: Sequence[Site]) -> list[Site]:
        return [site for site in candidates if site.has_bias] or list(candidates)

    def unmergeable_at(self, chosen: Sequence[Site]) -> str | None:
        return None if all(site.has_bias for site in chosen) else self.unmergeable

    def create(self, site, key, model):
        return BiasSite(site.d_out)

    def describe(self) -> str:
        return f"BitFit: biases on linear maps{' and norms' if self.norms else ''}"

    @property
    def reading(self) -> str:
        return "official" if self.norms else "paper"

    @property
    def peft_lacks(self) -> str | None:
        return "biases that train by themselves"

    def rows(self, site: Site, model: nnx.Module) -> Sequence[Rows]:
        return (Bias(),)
