"""Bottleneck adapters: a small two-layer network with a skip connection after a sublayer (Houlsby et al. 2019).

They act on the output of a sublayer before it is added to the residual stream: after attention and after the
feed-forward (Houlsby et al., section 2.1), or after the feed-forward only (Pfeiffer et al. 2021).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jpeft.errors import UserError
from jpeft.peft.arithmetic import added
from jpeft.peft.method import AddedModules, LearningRates
from jpeft.peft.row_wise import Leaves, Rows, per_row
from jpeft.peft.sites import Site
from jpeft.peft.variables import Adapter
from jpeft.peft.views import Original

ACTIVATIONS = {"gelu": jax.nn.gelu, "relu": jax.nn.relu, "silu": jax.nn.silu}  # all are 0 at 0
PLACEMENTS = {"houlsby": ("o", "down"), "pfeiffer": ("down",)}


class BottleneckSite(nnx.Module):
    """`h + W_up act(W_down h + b_down) + b_up`, where `h = W x` is the output of the adapted map."""

    def __init__(self, w_down: Float[Array, "d_out width"], activation: str):
        d_out, width = w_down.shape
        self.w_down, self.b_down = Adapter(w_down), Adapter(jnp.zeros(width))
        # Zero: the first forward pass is the base model's.
        self.w_up, self.b_up = Adapter(jnp.zeros((width, d_out))), Adapter(jnp.zeros(d_out))
        self.activation = activation

    def __call__(self, compute: Original, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        h = compute(x)
        inner = ACTIVATIONS[self.activation](added(h @ self.w_down[...].astype(h.dtype), self.b_down[...]))
        return added(h, inner @ self.w_up[...].astype(h.dtype), self.b_up[...])


@dataclasses.dataclass(frozen=True)
class Bottlenecks(Rows):
    """`BottleneckSite` with an adapter per row; narrower ones are padded with zeros, for which activations are 0."""

    # `[batch, width, d_out]` and `[batch, width]`, so that padding is along the first dimension of an adapter's leaf.
    leaves: tuple[str, ...] = ("w_down", "b_down", "w_up", "b_up", "activation")
    order: ClassVar[int] = 3  # after the parts that change the map itself

    def __call__(
        self, leaves: Leaves, compute: Original, x: Float[Array, "batch length d_in"]
    ) -> Float[Array, "batch length d_out"]:
        h = compute(x)
        inner = jnp.einsum("bld,bwd->blw", h, leaves["w_down"].astype(h.dtype))
        inner = added(inner, per_row(leaves["b_down"]))
        which = per_row(leaves["activation"])
        inner = sum(jnp.where(which == i, act(inner), 0) for i, act in enumerate(ACTIVATIONS.values()))
        update = jnp.einsum("blw,bwd->bld", inner, leaves["w_up"].astype(h.dtype))
        return added(h, update, per_row(leaves["b_up"]))


@dataclasses.dataclass(frozen=True)
class BottleneckAdapter(AddedModules):
    """Bottleneck adapters (Houlsby et al. 2019): one after every sublayer, or after every feed-forward.

    Attributes:
      bottleneck: width of the hidden layer. Houlsby et al. try 8, 64 and 256 on GLUE and use 64 elsewhere (sections 3.2
        and 3.3).
      placement: `houlsby`: after attention and feed-forward; `pfeiffer`: after the feed-forward only.
      activation: activation of the hidden layer, one of `ACTIVATIONS`.
    """

    name: ClassVar[str] = "adapter"
    unmergeable: ClassVar[str | None] = "what it adds to a sublayer's output is no linear map of the input"
    learning_rates: ClassVar = LearningRates(3e-5, 3e-4, 3e-5)  # the middle of Houlsby et al.'s sweep, section 3.2
    options: ClassVar = {"bottleneck": "bottleneck", "placement": "placement", "activation": "activation"}
    leaf_axes: ClassVar = {"w_down": ("out", None), "b_down": (None,), "w_up": (None, "out"), "b_up": ("out",)}
    sizes: ClassVar = {"bottleneck": ("w_down", -1)}
    padded_options: ClassVar = ("bottleneck",)  # every activation is 0 at 0

    bottleneck: int = 64
    placement: str = "houlsby"
    activation: str = "gelu"

    def __post_init__(self):
        super().__post_init__()
        if self.bottleneck < 1:
            raise UserError(f"method.bottleneck is {self.bottleneck}; an adapter needs a width of at least 1.")
        for key, value, known in (
            ("placement", self.placement, PLACEMENTS),
            ("activation", self.activation, ACTIVATIONS),
        ):
            if value not in known:
                raise UserError(f"method.{key} is {value!r}; expected one of {', '.join(known)}.")

    @property
    def default_roles(self) -> tuple[str, ...]:
        return PLACEMENTS[self.placement]

    def create(self, site, key, model):
        bound = site.d_out**-0.5
        w_down = jax.random.uniform(key, (site.d_out, self.bottleneck), minval=-bound, maxval=bound)
        return BottleneckSite(w_down, self.activation)

    def describe(self) -> str:
        placed = f"placed as by {self.placement.title()} et al."
        return f"bottleneck adapters of width {self.bottleneck}, {placed}, {self.activation}"

    @property
    def peft_lacks(self) -> str | None:
        return "bottleneck adapters"

    # --- many adapters in one batch ---

    def rows(self, site: Site, model: nnx.Module) -> Sequence[Rows]:
        return (Bottlenecks(),)

    def row_leaves(self, leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        which = np.full(1, list(ACTIVATIONS).index(self.activation), np.float32)
        return {**leaves, "w_down": leaves["w_down"].T, "activation": which}

    def row_size(self, leaf: str, size: int) -> str:
        return f"width {size}"
