"""Norm tuning: only the scales and biases of norms train (Zhao et al. 2024, "Tuning LayerNorm in Attention").

A leaf is the weight itself, starting as the base has it, and not a difference: the gradient is the same, and so is what
Hugging Face PEFT keeps in a file, so that reading one asks nothing of the base.
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
_THEIRS = {"norm_scale": "ln_tuning_layers.weight", "norm_bias": "ln_tuning_layers.bias"}


class NormSite(nnx.Module):
    """The norm that stands there, with a scale, a bias or both in the place of its own."""

    def __init__(self, width: int, *, scale: bool, bias: bool):
        if scale:
            self.norm_scale = Adapter(jnp.ones(width))
        if bias:
            self.norm_bias = Adapter(jnp.zeros(width))

    def __call__(self, compute: Original, *args: Any, **kwargs: Any) -> Any:
        return compute.with_weights(**_by_attribute(compute, _leaves(self)))(*args, **kwargs)

    def fold(self, kernel: Float[Array, "*layers width"], bias: Any) -> tuple[Any, Any]:
        """Scale and bias of a norm that alone does what this does; `kernel` is the base norm's scale."""
        leaves = _leaves(self)
        return leaves.get("norm_scale", kernel), leaves.get("norm_bias", bias)


def _leaves(site: nnx.Module) -> dict[str, Array]:
    return {name: value[...] for name, value in vars(site).items() if isinstance(value, Adapter)}


def _by_attribute(compute: Original, leaves: Leaves) -> dict[str, Array]:
    """Leaves by the names that the norm's class has for what they stand for."""
    names = {"norm_scale": compute.view.kernel, "norm_bias": compute.view.bias}
    return {str(names[leaf]): value for leaf, value in leaves.items()}


@dataclasses.dataclass(frozen=True)
class Norms(Rows):
    """As `NormSite`, each row of a batch by a norm of its own, or by the base's where it has no adapter."""

    # `[batch, width]`, and `[batch, 1]`: 1 where a row has its own.
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
    """Trains the weights of every norm of the model, in its blocks and outside of them (Zhao et al. 2024).

    Attributes:
      parts: `both` trains scales, and biases where norms have them, as a LayerNorm's and not an RMSNorm's; `scale` and
        `bias` train one of the two.
    """

    name: ClassVar[str] = "ln"
    kinds: ClassVar[tuple[str, ...]] = ("norm",)
    options: ClassVar = {"norm_parts": "parts"}
    leaf_axes: ClassVar = {"norm_scale": (None,), "norm_bias": (None,)}
    peft_type: ClassVar[str] = "LN_TUNING"

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
                f"{site.path} has no bias, and method.norm_parts is 'bias'; train its scale, or other sites."
            )
        return NormSite(site.d_out, scale=self.parts != "bias", bias=site.has_bias and self.parts != "scale")

    def start(self, adapter, place):
        module: Any = place.module
        if place.view.kernel is None:
            raise UserError(f"{place.sites[0].path} is a {type(module).__name__} without a scale, which cannot train.")
        own = {"norm_scale": place.view.kernel, "norm_bias": place.view.bias}
        for leaf in _leaves(adapter):
            # A copy: training takes the buffer of what trains, and the base keeps its own.
            setattr(adapter, leaf, Adapter(jnp.array(getattr(module, own[leaf])[...], jnp.float32, copy=True)))

    def describe(self) -> str:
        what = {"both": "scales and biases", "scale": "scales", "bias": "biases"}[self.parts]
        return f"norm tuning: {what} of norms"

    # --- many in one batch ---

    def rows(self, site: Site, model: nnx.Module) -> Sequence[Rows]:
        return (Norms(),)

    def row_leaves(self, leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**leaves, **{f"is_own_{leaf.removeprefix('norm_')}": np.ones(1, np.float32) for leaf in leaves}}

    # --- Hugging Face PEFT ---

    def peft_config(self, chosen: Sequence[Site], peft: PeftNames) -> dict[str, Any]:
        return {"target_modules": peft.target_modules(chosen)}

    @classmethod
    def peft_tensor(cls, leaf: str, value: np.ndarray) -> tuple[str, np.ndarray]:
        return _THEIRS[leaf], value

    @classmethod
    def from_peft(cls, file: PeftFile) -> tuple["NormTuning", Tensors, list[str]]:
        ours = {theirs: leaf for leaf, theirs in _THEIRS.items()}
        has_bias = {site.path: site.has_bias for site in file.names.sites}
        leaves: Tensors = {}
        kinds: set[str] = set()
        for path, (module, tensors) in file.by_path("norm").items():
            strange = sorted(set(tensors) - set(ours))
            if strange:
                raise RunFailed(
                    f"{file.source}: {module} is a norm and has {strange[0]}; expected its weight and bias."
                )
            leaves |= {f"{path}/{ours[name]}": value for name, value in tensors.items()}
            if has_bias[path]:
                kinds.add("both" if len(tensors) == 2 else ours[next(iter(tensors))].removeprefix("norm_"))
        if len(kinds) > 1:
            raise RunFailed(f"{file.source} has weight and bias of some norms, and one of the two of others.")
        return cls(parts=kinds.pop() if kinds else "both"), leaves, []
