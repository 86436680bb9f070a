"""BitFit: only biases train (Ben Zaken et al. 2021).

The trained leaf is a vector that starts at 0 and is added to the output, whether or not the module has a bias. To train
it is to train the bias: outputs and gradients are the same.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jpeft.peft.arithmetic import added
from jpeft.peft.method import AddedModules
from jpeft.peft.row_wise import Leaves, Rows, per_row
from jpeft.peft.sites import ATTENTION_ROLES, FEED_FORWARD_ROLES, Site
from jpeft.peft.variables import Adapter
from jpeft.peft.views import Original


class BiasSite(nnx.Module):
    """`y = W x + b`: a trained bias `b`, starting at 0, added to the output of a linear map or a norm."""

    def __init__(self, d_out: int):
        self.bias = Adapter(jnp.zeros(d_out))

    def __call__(self, compute: Original, *args: Any, **kwargs: Any) -> Float[Array, "..."]:
        y = compute(*args, **kwargs)
        return compute.view.on_features(lambda vectors: added(vectors, self.bias[...]), compute.module, y)

    def fold(self, kernel: Float[Array, "..."], bias: Any) -> tuple[Any, Any]:
        """The kernel, unchanged, and a bias to which this one is added; a norm's kernel is its scale.

        The result has a bias even where the module has none; `merge` refuses such a module.
        """
        return kernel, self.bias[...] if bias is None else bias + self.bias[...]


@dataclasses.dataclass(frozen=True)
class Bias(Rows):
    """`y + b`, each row of a batch with its own bias."""

    leaves: tuple[str, ...] = ("bias",)
    order: ClassVar[int] = 2

    def __call__(
        self, leaves: Leaves, compute: Original, x: Float[Array, "batch length d_in"]
    ) -> Float[Array, "batch length d_out"]:
        return added(compute(x), per_row(leaves["bias"]))


@dataclasses.dataclass(frozen=True)
class BitFit(AddedModules):
    """BitFit (Ben Zaken et al. 2021), by default as Pu et al. (2023) count it: the bias of every map in the blocks.

    In a model that has biases, only the maps with a bias are adapted by default. In a model without any, such as T5 and
    Llama, every map gets one. `BitFit.official()` includes the norms.

    Attributes:
      norms: whether norms get a bias as well; the authors train those of BERT's LayerNorms. It lies along Flax's
        `feature_axes` (`axis` of a `nnx.BatchNorm`), and along the last axis of the output of other norms.
    """

    name: ClassVar[str] = "bitfit"
    unmergeable: ClassVar[str | None] = "it adds biases where the base has none to hold them"
    leaf_axes: ClassVar = {"bias": ("out",)}

    norms: bool = False

    @classmethod
    def official(cls) -> "BitFit":
        """BitFit as published: biases of linear maps and of norms."""
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
