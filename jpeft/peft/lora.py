"""LoRA: a low-rank update of a linear map (Hu et al. 2021), plain or with the scaling vectors of T-Few's layer."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jpeft.errors import UserError
from jpeft.model.t5 import added, rescaled
from jpeft.peft.base import Adapter, AddedModules


class LoraSite(nnx.Module):
    """`y = W x + scale * B A x` (Hu et al. 2021, eq. 3)."""

    def __init__(self, lora_a: Float[Array, "d_in rank"], d_out: int, scale: float):
        self.lora_a = Adapter(lora_a)
        self.lora_b = Adapter(jnp.zeros((lora_a.shape[1], d_out)))  # zero: the first forward pass is the base model's
        self.scale = scale

    def __call__(self, compute, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        update = (x @ self.lora_a[...].astype(x.dtype)) @ self.lora_b[...].astype(x.dtype)
        return added(compute(x), update.astype(jnp.float32) * self.scale)

    def fold(self, kernel: Float[Array, "*layers d_in d_out"]) -> Float[Array, "*layers d_in d_out"]:
        """The kernel that alone does what `kernel` and this do together; `layers` is there where leaves are stacked."""
        return kernel + self.scale * jnp.matmul(self.lora_a[...], self.lora_b[...], precision="highest")


class ScaledLoraSite(LoraSite):
    """`y = s_out * W (s_in * x) + (1 / rank) * B A x`: T-Few's layer, whose counts Table 3 of Pu et al. shows."""

    def __init__(self, lora_a: Float[Array, "d_in rank"], d_out: int, scale: float):
        super().__init__(lora_a, d_out, scale)
        self.scale_in = Adapter(jnp.ones(lora_a.shape[0]))
        self.scale_out = Adapter(jnp.ones(d_out))

    def __call__(self, compute, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        def scaled(x):
            return rescaled(compute(rescaled(x, self.scale_in[...])), self.scale_out[...])

        return super().__call__(scaled, x)

    def fold(self, kernel: Float[Array, "*layers d_in d_out"]) -> Float[Array, "*layers d_in d_out"]:
        return super().fold(self.scale_in[..., :, None] * kernel * self.scale_out[..., None, :])


@dataclasses.dataclass(frozen=True)
class Lora(AddedModules):
    """The paper's reading by default: rank 2 on q, k, v, o of every attention, with scaling vectors.

    Attributes:
      rank: inner width of the update.
      alpha: the update is multiplied by `alpha / rank`, or `alpha / sqrt(rank)` when `rank_stabilized`.
      scaling_vectors: the rank-one input and output scaling of T-Few's layer; False is LoRA as published.
      rank_stabilized: rsLoRA (Kalajdzievski 2023), which keeps the update's size as the rank grows.
    """

    name: ClassVar[str] = "lora"

    rank: int = 2
    alpha: float = 1.0
    scaling_vectors: bool = True
    rank_stabilized: bool = False

    def __post_init__(self):
        if self.rank < 1:
            raise UserError(f"method.rank is {self.rank}; a LoRA update needs a rank of at least 1.")

    @classmethod
    def official(cls, rank: int = 8, alpha: float = 16.0, rank_stabilized: bool = False) -> "Lora":
        """Plain LoRA, which Hugging Face PEFT can hold."""
        return cls(rank=rank, alpha=alpha, scaling_vectors=False, rank_stabilized=rank_stabilized)

    @property
    def scale(self) -> float:
        """What the low-rank update is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilized else self.rank)

    def default_names(self, model):
        # Hu et al. (2021) adapt q and v alone and find all four at a lower rank as good: section 7.1.
        return ("q", "k", "v", "o") if self.scaling_vectors else ("q", "v")

    def create(self, site, key, model):
        shape = (site.d_in, self.rank)
        if self.scaling_vectors:
            return ScaledLoraSite(0.01 * jax.random.normal(key, shape), site.d_out, self.scale)
        bound = site.d_in**-0.5  # as in the authors' code: Kaiming-uniform with a = sqrt(5)
        return LoraSite(jax.random.uniform(key, shape, minval=-bound, maxval=bound), site.d_out, self.scale)
