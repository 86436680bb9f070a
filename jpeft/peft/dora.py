"""DoRA: the magnitude and the direction of each column of a matrix are trained separately (Liu et al. 2024)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jpeft.errors import UserError
from jpeft.peft.arithmetic import added, at_least_float32
from jpeft.peft.bitfit import Bias
from jpeft.peft.interchange import PeftNames
from jpeft.peft.lora import Lora, LoraSite, LowRank
from jpeft.peft.method import LearningRates, SiteWeights
from jpeft.peft.row_wise import Rescale, Rows
from jpeft.peft.sites import Site
from jpeft.peft.variables import Adapter
from jpeft.peft.views import Original


@functools.partial(jax.jit, inline=True)  # one compiled program when called eagerly, once per map
def column_norms(
    kernel: Float[Array, "*layers d_in d_out"],
    a: Float[Array, "*layers d_in rank"],
    b: Float[Array, "*layers rank d_out"],
    scale: float | Array,
) -> Float[Array, "*layers d_out"]:
    """The norm of each column of `W + scale A B` in float32, computed without a temporary of the size of W.

    Its square is `||W||² + 2 scale (AᵀW)·B + scale² B·(AᵀA)B`, by column. A is rounded to the dtype of W in `AᵀW`.
    """
    own = jnp.sum(jnp.square(kernel.astype(jnp.float32)), axis=-2)
    product = lambda text, *arrays: jnp.einsum(text, *arrays, precision="highest", preferred_element_type=jnp.float32)
    cross = jnp.sum(product("...ir,...io->...ro", a.astype(kernel.dtype), kernel) * b, axis=-2)
    update = jnp.sum(product("...rs,...so->...ro", product("...ir,...is->...rs", a, a), b) * b, axis=-2)
    return jnp.sqrt(jnp.maximum(own + 2 * scale * cross + scale**2 * update, jnp.finfo(jnp.float32).tiny))


class DoraSite(LoraSite):
    """`y = m (W + scale B A) x / ||W + scale B A||`, plus the original bias (Liu et al. 2024, eq. 5).

    No gradient flows through the norm (section 4.3). The magnitude `m` starts as the norm of W.
    """

    def __init__(self, lora_a: Float[Array, "d_in rank"], d_out: int, scale: float):
        super().__init__(lora_a, d_out, scale)
        self.lora_magnitude = Adapter(jnp.ones(d_out))

    def factor(self, kernel: Float[Array, "*layers d_in d_out"]) -> Float[Array, "*layers d_out"]:
        """`m / ||W + scale B A||`, the factor of each column of `W + scale B A` (eq. 5)."""
        weights = jax.lax.stop_gradient((kernel, self.lora_a[...], self.lora_b[...]))
        return self.lora_magnitude[...] / column_norms(*weights, self.scale)

    def __call__(self, compute: Original, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        update = (x @ self.lora_a[...].astype(x.dtype)) @ self.lora_b[...].astype(x.dtype)
        y, factor, bias = compute(x), self.factor(compute.matrix()), compute.bias()
        product = at_least_float32(y) if bias is None else at_least_float32(y) - bias
        return added(y, (factor - 1) * product, at_least_float32(update) * (self.scale * factor))

    def fold(self, kernel: Float[Array, "*layers d_in d_out"], bias: Any) -> tuple[Any, Any]:
        factor = self.factor(kernel)
        return super().fold(kernel, bias)[0] * factor[..., None, :], bias


@dataclasses.dataclass(frozen=True)
class Dora(Lora):
    """DoRA (Liu et al. 2024), by default on q, k, v, up and down, as its authors use it on Llama.

    The options are those of LoRA, without `init` and `scaling_vectors`.
    """

    name: ClassVar[str] = "dora"
    options: ClassVar[Mapping[str, str]] = {key: field for key, field in Lora.options.items() if key != "lora_init"}
    leaf_axes: ClassVar = {"lora_a": ("in", None), "lora_b": (None, "out"), "lora_magnitude": ("out",)}
    ablations: ClassVar = {}
    learning_rates: ClassVar = LearningRates(2e-5, 2e-4, 2e-5)  # the peak of its authors' runs with Llama-7B
    peft_leaves: ClassVar = {**Lora.peft_leaves, "lora_magnitude": "lora_magnitude_vector"}

    rank: int = 8
    alpha: float = 16.0
    scaling_vectors: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.init != "plain":
            raise UserError(f"dora starts with B at 0, and init={self.init!r} is an option of lora; leave it out.")
        if self.scaling_vectors:
            raise UserError("dora has no scaling vectors, which are an option of lora; leave scaling_vectors out.")

    @property
    def trains_nothing(self):
        return None  # magnitudes train whatever the scale is

    @property
    def kinds(self) -> tuple[str, ...]:
        return ("linear",)

    @property
    def default_roles(self) -> tuple[str, ...]:
        return ("q", "k", "v", "up", "down")

    def create(self, site, key, model):
        bound = site.d_in**-0.5  # as LoRA
        lora_a = jax.random.uniform(key, (site.d_in, self.rank), minval=-bound, maxval=bound)
        return DoraSite(lora_a, site.d_out, self.scale)

    def start(self, adapter, place):
        kernel, weights = place.view.matrix(place.module), (adapter.lora_a[...], adapter.lora_b[...])
        adapter.lora_magnitude = Adapter(column_norms(kernel, *weights, self.scale))

    def describe(self) -> str:
        return super().describe().replace("LoRA", "DoRA", 1)

    # --- many adapters in one batch ---

    def rows(self, site: Site, model: nnx.Module) -> Sequence[Rows]:
        return (Rescale(), LowRank(), *([Bias()] if site.has_bias else []))

    def row_leaves_at(
        self, site: Site, leaves: Mapping[str, np.ndarray], weights: Callable[[], SiteWeights] | None
    ) -> dict[str, np.ndarray]:
        """The leaves of a LoRA whose output is scaled by DoRA's factor, which is computed once, here."""
        factor = bias = leaves["lora_magnitude"]  # of the right shapes, if there are no weights
        if weights is not None:
            kernel, bias = weights()
            factor = leaves["lora_magnitude"] / np.asarray(
                column_norms(kernel, jnp.asarray(leaves["lora_a"]), jnp.asarray(leaves["lora_b"]), self.scale)
            )
        in_rows = super().row_leaves({"lora_a": leaves["lora_a"], "lora_b": leaves["lora_b"] * factor})
        added = {"bias": (1 - factor) * np.asarray(bias, np.float32)} if site.has_bias else {}
        return {**in_rows, "scale_out": factor, **added}

    # --- Hugging Face PEFT ---

    @classmethod
    def peft_reads(cls, config: Mapping[str, Any]) -> bool:
        return bool(config.get("use_dora"))

    @classmethod
    def peft_has_output_rows(cls, leaf: str, value: np.ndarray) -> bool:
        return leaf == cls.peft_leaves["lora_magnitude"] or super().peft_has_output_rows(leaf, value)

    def peft_config(self, chosen: Sequence[Site], peft: PeftNames) -> dict[str, Any]:
        return {**super().peft_config(chosen, peft), "use_dora": True}
