"""(IA)³: trained vectors rescale activations (Liu et al. 2022), as published or two-sided as in Pu et al. (2023)."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jpeft.errors import RunFailed, UserError
from jpeft.peft.ablations import HALVES, Fixed
from jpeft.peft.arithmetic import rescaled
from jpeft.peft.interchange import PeftFile, PeftLayout, PeftNames, Tensors
from jpeft.peft.method import AddedModules
from jpeft.peft.row_wise import Rescale, Rows
from jpeft.peft.selection import Selection
from jpeft.peft.sites import FEED_FORWARD_ROLES, Site
from jpeft.peft.variables import Adapter


class TwoSidedScale(nnx.Module):
    """`y = s_out * W (s_in * x)`: T-Few's layer with a scaling rank of one. Both vectors start at 1."""

    def __init__(self, d_in: int, d_out: int):
        self.scale_in = Adapter(jnp.ones(d_in))
        self.scale_out = Adapter(jnp.ones(d_out))

    def __call__(self, compute, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        return rescaled(compute(rescaled(x, self.scale_in[...])), self.scale_out[...])

    def fold(self, kernel: Float[Array, "*layers d_in d_out"], bias: Any) -> tuple[Any, Any]:
        """The kernel and bias of a linear map that computes the same as kernel, bias and this adapter together.

        `layers` is present where the layers of a block are stacked.
        """
        scaled = self.scale_in[..., :, None] * kernel * self.scale_out[..., None, :]
        return scaled, None if bias is None else bias * self.scale_out[...]


class InputScale(nnx.Module):
    """`y = W (l * x)`, for `wo`, whose input is the hidden activation of the feed-forward (Liu et al., section 3.3)."""

    def __init__(self, d_in: int):
        self.scale_in = Adapter(jnp.ones(d_in))

    def __call__(self, compute, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        return compute(rescaled(x, self.scale_in[...]))

    def fold(self, kernel: Float[Array, "*layers d_in d_out"], bias: Any) -> tuple[Any, Any]:
        """As `TwoSidedScale.fold`."""
        return self.scale_in[..., :, None] * kernel, bias


class OutputScale(nnx.Module):
    """`y = l * W x`, for the keys and values of attention (Liu et al. 2022, section 3.3). `l` starts at 1."""

    def __init__(self, d_out: int):
        self.scale_out = Adapter(jnp.ones(d_out))

    def __call__(self, compute, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        return rescaled(compute(x), self.scale_out[...])

    def fold(self, kernel: Float[Array, "*layers d_in d_out"], bias: Any) -> tuple[Any, Any]:
        """As `TwoSidedScale.fold`."""
        return kernel * self.scale_out[..., None, :], None if bias is None else bias * self.scale_out[...]


@dataclasses.dataclass(frozen=True)
class Ia3(AddedModules, PeftLayout):
    """(IA)³ (Liu et al. 2022), by default as Pu et al. (2023) count it: vectors on both sides of k, v and `up`.

    `up` is the linear projection of a gated feed-forward (`wi_1` in T5). `Ia3.official()` is (IA)³ as published, which
    Hugging Face PEFT's format can hold.

    Attributes:
      two_sided: whether inputs and outputs of each map are scaled. False is (IA)³ as published: the outputs of k and v,
        and the input of the feed-forward's last map.
    """

    name: ClassVar[str] = "ia3"
    leaf_axes: ClassVar = {"scale_in": ("in",), "scale_out": ("out",)}
    ablations: ClassVar = HALVES | {
        "drop_attention": Fixed(Selection(sublayers=("feed_forward",))),
        "drop_dense": Fixed(Selection(sublayers=("self_attention", "cross_attention"))),
    }
    peft_type: ClassVar[str] = "IA3"
    peft_settings: ClassVar = {"feedforward_modules": (str, list)}
    peft_ignored: ClassVar = ("init_ia3_weights",)
    peft_leaves: ClassVar = {"scale_in": "ia3_l", "scale_out": "ia3_l"}

    two_sided: bool = True

    @classmethod
    def official(cls) -> "Ia3":
        """(IA)³ as published; Hugging Face PEFT's format can hold it."""
        return cls(two_sided=False)

    @property
    def default_roles(self) -> tuple[str, ...]:
        return ("k", "v", "up") if self.two_sided else ("k", "v", "down")

    def create(self, site, key, model):
        if self.two_sided:
            return TwoSidedScale(site.d_in, site.d_out)
        return InputScale(site.d_in) if site.role in FEED_FORWARD_ROLES else OutputScale(site.d_out)

    def describe(self) -> str:
        return "(IA)³, two-sided" if self.two_sided else "(IA)³ as published"

    @property
    def reading(self) -> str:
        return "paper" if self.two_sided else "official"

    def rows(self, site: Site, model: nnx.Module) -> Sequence[Rows]:
        return (Rescale(),)

    # --- Hugging Face PEFT ---

    @property
    def peft_lacks(self) -> str | None:
        return "the second vector of the paper's two-sided (IA)³" if self.two_sided else None

    def peft_config(self, chosen: Sequence[Site], peft: PeftNames) -> dict[str, Any]:
        feed_forward = [site for site in chosen if site.role in FEED_FORWARD_ROLES]
        return {
            "target_modules": peft.target_modules(chosen),
            "feedforward_modules": peft.target_modules(feed_forward),
        }

    @classmethod
    def peft_tensor(cls, leaf: str, value: np.ndarray) -> np.ndarray:
        return {"scale_in": value[None, :], "scale_out": value[:, None]}[leaf]

    @classmethod
    def peft_has_output_rows(cls, leaf: str, value: np.ndarray) -> bool:
        return value.shape[-1:] == (1,)  # a column scales outputs, a row inputs

    @classmethod
    def from_peft(cls, file: PeftFile) -> tuple["Ia3", Tensors, list[str]]:
        leaves, notes = {}, []
        by_path = {site.path: site for site in file.names.sites}
        down = {path.rpartition("/")[0]: path for path, site in by_path.items() if site.role == "down"}
        moved: Tensors = {}  # vectors on the output of an `up`, by the leaf of the `down` to whose input they move
        for path, (module, tensors) in file.by_path().items():
            value = tensors.get("ia3_l", np.zeros(()))
            if value.ndim != 2 or 1 not in value.shape:
                raise RunFailed(f"{file.source}: {module}.ia3_l has shape {value.shape}; expected a row or a column.")
            on_input = value.shape[0] == 1  # a row scales the input, a column the output
            block, role = path.rpartition("/")[0], by_path[path].role
            gated = any(f"{block}/{site.name}" == site.path and site.role == "gate" for site in by_path.values())
            if (role in FEED_FORWARD_ROLES) == on_input:
                leaves[f"{path}/{'scale_in' if on_input else 'scale_out'}"] = value.reshape(-1)
            elif role == "up" and gated and block in down:
                moved[f"{down[block]}/scale_in"] = value.reshape(-1)
            else:
                side = "input" if on_input else "output"
                raise UserError(
                    f"{file.source} rescales the {side} of {module}, which the published (IA)³ does not; have PEFT "
                    "merge it."
                )
        for name, value in moved.items():  # down(act(gate x) * (l * up x)) = down(l * (act(gate x) * up x))
            leaves[name] = leaves[name] * value if name in leaves else value
        if moved:
            (up,) = {site.name for site in by_path.values() if site.role == "up"}
            (end,) = {path.rpartition("/")[2] for path in down.values()}
            notes.append(f"vectors after {len(moved)} {up} were moved before {end}, where they have the same effect")
        return cls(two_sided=False), leaves, notes
