"""Norm tuning: only the scales and biases of norms train (Zhao et al. 2024, "Tuning LayerNorm in Attention").

A leaf is a copy of the norm's weight, not a difference from it. The gradient is the same, and Hugging Face PEFT stores
the weight, too, so that its files can be read without the base's values.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jpeft.errors import RunFailed, UserError
from jpeft.peft.interchange import PeftFile, PeftLayout, PeftNames, Tensors
from jpeft.peft.method import AddedModules
from jpeft.peft.row_wise import Leaves, Rows
from jpeft.peft.sites import Site
from jpeft.peft.variables import Adapter
from jpeft.peft.views import Original

PARTS = ("both", "scale", "bias")


class NormSite(nnx.Module):
    """The adapted norm with its scale, its bias or both replaced by trained ones."""

    def __init__(self, width: int, *, scale: bool, bias: bool):
        if scale:
            self.norm_scale = Adapter(jnp.ones(width))
        if bias:
            self.norm_bias = Adapter(jnp.zeros(width))

    def __call__(self, compute: Original, *args: Any, **kwargs: Any) -> Any:
        return compute.with_weights(**_by_attribute(compute, _leaves(self)))(*args, **kwargs)

    def fold(self, kernel: Float[Array, "*layers width"], bias: Any) -> tuple[Any, Any]:
        """The scale and bias of the norm with the trained ones in place; `kernel` is the scale of the base."""
        leaves = _leaves(self)
        return leaves.get("norm_scale", kernel), leaves.get("norm_bias", bias)


def _leaves(site: nnx.Module) -> dict[str, Array]:
    return {name: value[...] for name, value in vars(site).items() if isinstance(value, Adapter)}


def _by_attribute(compute: Original, leaves: Leaves) -> dict[str, Array]:
    """The leaves by the attributes of the norm that they replace."""
    names = {"norm_scale": compute.view.kernel, "norm_bias": compute.view.bias}
    return {str(names[leaf]): value for leaf, value in leaves.items()}


@dataclasses.dataclass(frozen=True)
class Norms(Rows):
    """`NormSite` with an adapter per row of a batch; rows without one are normalised by the base's norm."""

    # The weights are `[batch, width]`; the flags, 1 where a row has its own weight, are `[batch, 1]`.
    leaves: tuple[str, ...] = ("norm_scale", "norm_bias", "is_own_scale", "is_own_bias")
    order: ClassVar[int] = -2

    def __call__(
        self, leaves: Leaves, compute: Original, x: Float[Array, "batch *rest"]
    ) -> Float[Array, "batch *rest"]:
        bases = {"norm_scale": compute.matrix, "norm_bias": compute.bias}
        flags = {leaf: leaves[f"is_own_{leaf.removeprefix('norm_')}"] > 0 for leaf in bases if leaf in leaves}

        def one(flags: Leaves, own: Leaves, x: Array) -> Array:
            chosen = {leaf: jnp.where(flag, own[leaf], bases[leaf]()) for leaf, flag in flags.items()}
            return compute.with_weights(**_by_attribute(compute, chosen))(x[None])[0]

        y = jax.vmap(one)(flags, {leaf: leaves[leaf] for leaf in flags}, x)
        has_own = jnp.any(jnp.concatenate(list(flags.values()), axis=1), axis=1)
        return jnp.where(has_own.reshape(-1, *[1] * (x.ndim - 1)), y, compute(x))


@dataclasses.dataclass(frozen=True)
class NormTuning(AddedModules, PeftLayout):
    """Norm tuning (Zhao et al. 2024): trains the weights of every norm of the model, inside and outside its blocks.

    Attributes:
      parts: `scale`, `bias`, or `both`: scales, and the biases of norms that have one (a LayerNorm has, an RMSNorm has
        not).
    """

    name: ClassVar[str] = "ln"
    kinds: ClassVar[tuple[str, ...]] = ("norm",)
    options: ClassVar = {"norm_parts": "parts"}
    leaf_axes: ClassVar = {"norm_scale": (None,), "norm_bias": (None,)}
    peft_type: ClassVar[str] = "LN_TUNING"
    peft_leaves: ClassVar = {"norm_scale": "ln_tuning_layers.weight", "norm_bias": "ln_tuning_layers.bias"}

    parts: str = "both"

    def __post_init__(self):
        super().__post_init__()
        if self.parts not in PARTS:
            raise UserError(f"method.norm_parts is {self.parts!r}; expected one of {', '.join(PARTS)}.")

    @property
    def default_roles(self) -> tuple[str, ...]:
        return ("norm",)

    def default_sites(self, candidates: Sequence[Site]) -> list[Site]:
        return [site for site in candidates if site.has_bias or self.parts != "bias"]

    def create(self, site, key, model):
        if self.parts == "bias" and not site.has_bias:
            raise UserError(
                f"{site.told} has no bias, and method.norm_parts is 'bias'; train its scale, or other sites."
            )
        return NormSite(site.d_out, scale=self.parts != "bias", bias=site.has_bias and self.parts != "scale")

    def start(self, adapter, place):
        module: Any = place.module
        if place.view.kernel is None:
            raise UserError(f"{place.sites[0].told} is a {type(module).__name__} without a scale, which cannot train.")
        own = {"norm_scale": place.view.kernel, "norm_bias": place.view.bias}
        for leaf in _leaves(adapter):
            # A copy, since training donates the buffers of trainable leaves.
            setattr(adapter, leaf, Adapter(jnp.array(getattr(module, own[leaf])[...], jnp.float32, copy=True)))

    def describe(self) -> str:
        what = {"both": "scales and biases", "scale": "scales", "bias": "biases"}[self.parts]
        return f"norm tuning: {what} of norms"

    # --- many adapters in one batch ---

    def rows(self, site: Site, model: nnx.Module) -> Sequence[Rows]:
        return (Norms(),)

    def row_leaves(self, leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**leaves, **{f"is_own_{leaf.removeprefix('norm_')}": np.ones(1, np.float32) for leaf in leaves}}

    # --- Hugging Face PEFT ---

    def peft_config(self, chosen: Sequence[Site], peft: PeftNames) -> dict[str, Any]:
        return {"target_modules": peft.target_modules(chosen)}

    @classmethod
    def from_peft(cls, file: PeftFile) -> tuple["NormTuning", Tensors, list[str]]:
        ours = {theirs: leaf for leaf, theirs in cls.peft_leaves.items()}
        has_bias = {site.path: site.has_bias for site in file.names.sites}
        leaves: Tensors = {}
        kinds: set[str] = set()
        for path, (module, tensors) in file.by_path("norm").items():
            unknown = sorted(set(tensors) - set(ours))
            if unknown:
                raise RunFailed(
                    f"{file.source}: {module} is a norm and has {unknown[0]}; expected its weight and bias."
                )
            leaves |= {f"{path}/{ours[name]}": value for name, value in tensors.items()}
            if has_bias[path]:
                kinds.add("both" if len(tensors) == 2 else ours[next(iter(tensors))].removeprefix("norm_"))
        if len(kinds) > 1:
            raise RunFailed(
                f"{file.source} has weight and bias of some norms and only one of the two of others; jpeft needs the "
                "same of all."
            )
        return cls(parts=kinds.pop() if kinds else "both"), leaves, []
