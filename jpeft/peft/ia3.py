"""(IA)³: learned vectors rescale activations (Liu et al. 2022), on both sides as the paper counts, or as published."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jpeft.model.t5 import rescaled
from jpeft.peft.base import Adapter, AddedModules


class TwoSidedScale(nnx.Module):
    """`y = s_out * W (s_in * x)`: T-Few's layer with a scaling rank of one. Both vectors start at 1."""

    def __init__(self, d_in: int, d_out: int):
        self.scale_in = Adapter(jnp.ones(d_in))
        self.scale_out = Adapter(jnp.ones(d_out))

    def __call__(self, compute, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        return rescaled(compute(rescaled(x, self.scale_in[...])), self.scale_out[...])

    def fold(self, kernel: Float[Array, "*layers d_in d_out"]) -> Float[Array, "*layers d_in d_out"]:
        """The kernel that alone does what `kernel` and this do together; `layers` is there where leaves are stacked."""
        return self.scale_in[..., :, None] * kernel * self.scale_out[..., None, :]


class InputScale(nnx.Module):
    """`y = W (l * x)`: on `wo`, where `x` is the activation inside the feed-forward block (Liu et al., eq. in 3.3)."""

    def __init__(self, d_in: int):
        self.scale_in = Adapter(jnp.ones(d_in))

    def __call__(self, compute, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        return compute(rescaled(x, self.scale_in[...]))

    def fold(self, kernel: Float[Array, "*layers d_in d_out"]) -> Float[Array, "*layers d_in d_out"]:
        """As `TwoSidedScale.fold`."""
        return self.scale_in[..., :, None] * kernel


class OutputScale(nnx.Module):
    """`y = l * W x`: on the keys and values of attention."""

    def __init__(self, d_out: int):
        self.scale_out = Adapter(jnp.ones(d_out))

    def __call__(self, compute, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        return rescaled(compute(x), self.scale_out[...])

    def fold(self, kernel: Float[Array, "*layers d_in d_out"]) -> Float[Array, "*layers d_in d_out"]:
        """As `TwoSidedScale.fold`."""
        return kernel * self.scale_out[..., None, :]


@dataclasses.dataclass(frozen=True)
class Ia3(AddedModules):
    """The paper's reading by default: both sides of k, v and the feed-forward's last input projection.

    Attributes:
      two_sided: False is (IA)³ as published: k and v scaled after, the feed-forward's activation before `wo`.
    """

    name: ClassVar[str] = "ia3"

    two_sided: bool = True

    @classmethod
    def official(cls) -> "Ia3":
        """(IA)³ as its authors published it, which Hugging Face PEFT can hold."""
        return cls(two_sided=False)

    def default_names(self, model):
        if not self.two_sided:
            return ("k", "v", "wo")
        return ("k", "v", "wi_1" if model.config.is_gated else "wi")

    def create(self, site, key, model):
        if self.two_sided:
            return TwoSidedScale(site.d_in, site.d_out)
        return InputScale(site.d_in) if site.sublayer == "feed_forward" else OutputScale(site.d_out)
