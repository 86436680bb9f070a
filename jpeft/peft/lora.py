"""LoRA: a low-rank update of a linear map (Hu et al. 2021), plain or with the scaling vectors of T-Few's layer."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jpeft.errors import RunFailed, UserError
from jpeft.peft.ablations import HALVES, Fixed
from jpeft.peft.arithmetic import added, rescaled, widened
from jpeft.peft.interchange import PeftFile, PeftLayout, PeftNames, Tensors
from jpeft.peft.method import AddedModules
from jpeft.peft.row_wise import Leaves, Rescale, Rows, each
from jpeft.peft.selection import Selection
from jpeft.peft.sites import ATTENTION_ROLES, Site
from jpeft.peft.variables import Adapter, Frozen
from jpeft.peft.views import Original


class LoraSite(nnx.Module):
    """`y = W x + scale * B A x` (Hu et al. 2021, eq. 3): A random and B zero at first, so that y starts as `W x`."""

    def __init__(self, lora_a: Float[Array, "d_in rank"], d_out: int, scale: float):
        self.lora_a = Adapter(lora_a)
        self.lora_b = Adapter(jnp.zeros((lora_a.shape[1], d_out)))  # zero: the first forward pass is the base model's
        self.scale = scale

    def __call__(self, compute, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        update = (x @ self.lora_a[...].astype(x.dtype)) @ self.lora_b[...].astype(x.dtype)
        return added(compute(x), widened(update) * self.scale)

    def fold(self, kernel: Float[Array, "*layers d_in d_out"], bias: Any) -> tuple[Any, Any]:
        """Kernel and bias that alone do what they and this do together; `layers` is there where leaves are stacked."""
        return _plus_product(kernel, self.lora_a[...], self.lora_b[...], self.scale), bias


@jax.jit  # one program in the place of three for each map that is merged
def _plus_product(kernel: Array, a: Array, b: Array, scale: float | Array) -> Array:
    return kernel + scale * jnp.matmul(a, b, precision="highest")


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

    def fold(self, kernel: Float[Array, "*layers d_in d_out"], bias: Any) -> tuple[Any, Any]:
        scaled = self.scale_in[..., :, None] * kernel * self.scale_out[..., None, :]
        return super().fold(scaled, None if bias is None else bias * self.scale_out[...])


class PissaSite(LoraSite):
    """`y = W x + scale * (B A - B0 A0) x`, where `scale * B0 A0` is the principal part of W (Meng et al. 2024, eq. 3).

    A and B start as A0 and B0. The authors train on what is left of W without its principal part; here W stays as it is
    and what was there at first is taken off again, by small differences, which bfloat16 keeps.
    """

    def __init__(self, lora_a: Float[Array, "d_in rank"], d_out: int, scale: float):
        super().__init__(lora_a, d_out, scale)
        self.first_a, self.first_b = Frozen(jnp.zeros_like(lora_a)), Frozen(jnp.zeros((lora_a.shape[1], d_out)))

    def begin(self, kernel: Float[Array, "*layers d_in d_out"]) -> None:
        """Sets A and B by the largest singular values of W (eq. 2), whose roots both have."""
        u, values, v = jnp.linalg.svd(kernel.astype(jnp.float32), full_matrices=False)
        rank = self.lora_a.shape[-1]
        roots = jnp.sqrt(values[..., :rank] / self.scale)
        a, b = u[..., :rank] * roots[..., None, :], roots[..., :, None] * v[..., :rank, :]
        self.lora_a, self.lora_b = Adapter(a), Adapter(b)
        self.first_a, self.first_b = Frozen(jnp.array(a, copy=True)), Frozen(jnp.array(b, copy=True))

    def __call__(self, compute: Original, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        first_a, first_b = self.first_a[...], self.first_b[...]
        of_a = (x @ (self.lora_a[...] - first_a).astype(x.dtype)) @ self.lora_b[...].astype(x.dtype)
        of_b = (x @ first_a.astype(x.dtype)) @ (self.lora_b[...] - first_b).astype(x.dtype)
        update = widened(of_a) + widened(of_b)
        return added(compute(x), update * self.scale)

    def fold(self, kernel: Float[Array, "*layers d_in d_out"], bias: Any) -> tuple[Any, Any]:
        folded, bias = super().fold(kernel, bias)
        return _plus_product(folded, self.first_a[...], self.first_b[...], -self.scale), bias


class LoraEmbedding(LoraSite):
    """`y = E[i] + scale * A[i] B`: LoRA of a table, of which A holds a row for each row."""

    def __call__(self, compute, rows: Int[Array, "*batch"]) -> Float[Array, "*batch width"]:
        y = compute(rows)
        return added(y, (self.lora_a[...][rows] @ self.lora_b[...]) * self.scale)


@dataclasses.dataclass(frozen=True)
class LowRank(Rows):
    """`y + scale * B A x`, each row by its own matrices; A is transposed, so products of few rows run along memory."""

    leaves: tuple[str, ...] = (
        "lora_a",
        "lora_b",
        "lora_scale",
    )  # `[batch, rank, width]` and `[batch, 1]`
    order: ClassVar[int] = 1

    def __call__(
        self, leaves: Leaves, compute: Original, x: Float[Array, "batch length d_in"]
    ) -> Float[Array, "batch length d_out"]:
        y = compute(x)
        inner = jnp.einsum("bld,brd->blr", x, leaves["lora_a"].astype(x.dtype))
        update = jnp.einsum("blr,brd->bld", inner, leaves["lora_b"].astype(x.dtype))
        return added(y, widened(update) * each(leaves["lora_scale"]))


@dataclasses.dataclass(frozen=True)
class LowRankOfTable(Rows):
    """`E[i] + scale * B A[i]`: the same for the rows of a table, of which A holds a column for each."""

    leaves: tuple[str, ...] = LowRank.leaves
    order: ClassVar[int] = 1

    def __call__(
        self, leaves: Leaves, compute: Original, rows: Int[Array, "batch length"]
    ) -> Float[Array, "batch length width"]:
        y = compute(rows)
        inner = jnp.take_along_axis(leaves["lora_a"], rows[:, None], axis=2)  # [batch, rank, length]
        update = jnp.einsum("brl,brd->bld", inner, leaves["lora_b"])
        return added(y, update * each(leaves["lora_scale"]))


@dataclasses.dataclass(frozen=True)
class Lora(AddedModules, PeftLayout):
    """LoRA (Hu et al. 2021), by default as Pu et al. (2023) count it: rank 2 on q, k, v, o, with scaling vectors.

    `Lora.official()` is plain LoRA, on q and v, which Hugging Face PEFT can hold.

    Attributes:
      rank: inner width of the update.
      alpha: the update is multiplied by `alpha / rank`, or `alpha / sqrt(rank)` when `rank_stabilized`.
      scaling_vectors: the rank-one input and output scaling of T-Few's layer; False is LoRA as published.
      rank_stabilized: rsLoRA (Kalajdzievski 2023), which keeps the update's size as the rank grows.
      init: `plain`, A random and B 0; `pissa`, both from the principal part of the matrix (Meng et al. 2024); or
        `loftq`, both from what rounding takes away of a base in few bits (Li et al. 2023).
      b_rate_ratio: the learning rate of B over that of A: LoRA+ (Hayou et al. 2024), whose authors advise 16.
    """

    name: ClassVar[str] = "lora"
    options: ClassVar[Mapping[str, str]] = {
        "rank": "rank",
        "alpha": "alpha",
        "rank_stabilized": "rank_stabilized",
        "b_rate_ratio": "b_rate_ratio",
        "lora_init": "init",
    }
    leaf_axes: ClassVar = {
        "lora_a": ("in", None),
        "lora_b": (None, "out"),
        "scale_in": ("in",),
        "scale_out": ("out",),
        "first_a": ("in", None),
        "first_b": (None, "out"),
    }
    sizes: ClassVar = {"rank": ("lora_a", -1)}
    filled_up: ClassVar = ("rank", "alpha")  # where the scale, their ratio, is the same
    ablations: ClassVar = HALVES | {
        "drop_self_attention": Fixed(Selection(sublayers=("cross_attention",)), needs=("cross_attention",)),
        "drop_cross_attention": Fixed(Selection(sublayers=("self_attention",)), needs=("cross_attention",)),
        "drop_query_output": Fixed(Selection(names=("k", "v"))),
    }
    peft_type: ClassVar[str] = "LORA"
    peft_leaves: ClassVar[Mapping[str, str]] = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}

    rank: int = 2
    alpha: float = 1.0
    scaling_vectors: bool = True
    rank_stabilized: bool = False
    b_rate_ratio: float = dataclasses.field(default=1.0, compare=False)  # of training, not of what an adapter does

    init: str = "plain"

    def __post_init__(self):
        super().__post_init__()
        if self.init not in ("plain", "pissa", "loftq"):
            raise UserError(f"method.lora_init is {self.init!r}; expected plain, pissa or loftq.")
        if self.init != "plain" and self.scaling_vectors:
            raise UserError(
                f"method.lora_init is {self.init!r}, which plain LoRA has, without the paper's scaling vectors; set "
                "method.reading=official."
            )
        if not math.isfinite(self.alpha):
            raise UserError(f"method.alpha is {self.alpha}; expected a finite number.")
        if self.init != "plain" and not self.alpha > 0:
            raise UserError(f"method.alpha is {self.alpha}; with method.lora_init={self.init} expected more than 0.")
        if self.rank < 1:
            raise UserError(f"method.rank is {self.rank}; a LoRA update needs a rank of at least 1.")
        if not 0 < self.b_rate_ratio < math.inf:
            raise UserError(f"method.b_rate_ratio is {self.b_rate_ratio}; expected a finite number above 0.")

    @property
    def trains_nothing(self):
        if self.alpha == 0 and not self.scaling_vectors:
            return "method.alpha is 0, by which the update is multiplied"
        return None

    @classmethod
    def official(
        cls,
        rank: int = 8,
        alpha: float = 16.0,
        rank_stabilized: bool = False,
        b_rate_ratio: float = 1.0,
        init: str = "plain",
    ) -> "Lora":
        """LoRA as published (Hu et al. 2021), without scaling vectors, which Hugging Face PEFT can hold."""
        return cls(
            rank=rank,
            alpha=alpha,
            scaling_vectors=False,
            rank_stabilized=rank_stabilized,
            b_rate_ratio=b_rate_ratio,
            init=init,
        )

    @property
    def kinds(self) -> tuple[str, ...]:  # T-Few's vectors rescale what goes in, and a table is asked with integers
        return ("linear",) if self.scaling_vectors or self.init == "pissa" else ("linear", "embedding")

    @property
    def scale(self) -> float:
        """The factor of the low-rank update: `alpha / rank`, or `alpha / sqrt(rank)` where that was chosen."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilized else self.rank)

    @property
    def default_roles(self) -> tuple[str, ...]:
        # Hu et al. (2021) adapt q and v alone and find all four at a lower rank as good: section 7.1.
        return ATTENTION_ROLES if self.scaling_vectors else ("q", "v")

    def create(self, site, key, model):
        shape = (site.d_in, self.rank)
        if self.scaling_vectors:
            return ScaledLoraSite(0.01 * jax.random.normal(key, shape), site.d_out, self.scale)
        if self.init == "pissa":
            return PissaSite(jnp.zeros(shape), site.d_out, self.scale)
        bound = site.d_in**-0.5  # as in the authors' code: Kaiming-uniform with a = sqrt(5)
        lora_a = jax.random.uniform(key, shape, minval=-bound, maxval=bound)
        if site.kind == "embedding":
            return LoraEmbedding(jax.random.normal(key, shape), site.d_out, self.scale)
        return LoraSite(lora_a, site.d_out, self.scale)

    def start(self, adapter, place):
        if self.init == "pissa":
            kernel = place.view.matrix(place.module)
            if self.rank > min(kernel.shape[-2:]):
                raise UserError(
                    f"method.rank is {self.rank}, and {place.sites[0].path} is {kernel.shape[-2]} by "
                    f"{kernel.shape[-1]}, with fewer singular values than method.lora_init=pissa needs; lower the rank."
                )
            adapter.begin(kernel)

    @property
    def begin_with_lost(self):
        return self._begin_with_lost if self.init == "loftq" else None

    def _begin_with_lost(self, adapter: Any, lost: Float[np.ndarray, "*layers d_in d_out"], path: str) -> None:
        """`scale * A B` is the nearest to `W - Q` of all matrices of its rank (Li et al. 2023, Algorithm 1, T = 1)."""
        if self.rank > min(lost.shape[-2:]):
            raise UserError(
                f"method.rank is {self.rank}, and {path} is {lost.shape[-2]} by {lost.shape[-1]}: it has no so many "
                "singular values for method.lora_init=loftq."
            )
        factors = [nearest_of_rank(matrix, self.rank) for matrix in lost.reshape(-1, *lost.shape[-2:])]
        for leaf, made in zip(("lora_a", "lora_b"), zip(*factors, strict=True), strict=True):
            value = np.stack(made).reshape(*lost.shape[:-2], *made[0].shape) / np.sqrt(self.scale)
            setattr(adapter, leaf, Adapter(jnp.asarray(value, jnp.float32)))

    def kept(self, leaves: Tensors) -> tuple["Lora", Tensors]:
        """PiSSA as a plain LoRA of twice the rank, on the base as it was: `B A - B0 A0 = [B, -B0] [A; A0]`.

        LoftQ as the plain LoRA that it is, of the base in few bits.
        """
        if self.init != "pissa":
            return dataclasses.replace(self, init="plain"), leaves
        sign = {"lora_a": 1, "lora_b": -1}
        joined = {}
        for name, value in leaves.items():
            path, _, leaf = name.rpartition("/")
            if leaf in sign:
                first = leaves[f"{path}/{leaf.replace('lora', 'first')}"]
                joined[name] = np.concatenate([value, sign[leaf] * first], axis=-1 if leaf == "lora_a" else -2)
        alpha = self.alpha * (2**0.5 if self.rank_stabilized else 2)  # which keeps the scale
        return dataclasses.replace(self, rank=2 * self.rank, alpha=alpha, init="plain"), joined

    # --- in words ---

    def describe(self) -> str:
        parts = [f"LoRA of rank {self.rank}, alpha {self.alpha:g}"]
        parts += ["scaled by alpha / sqrt(rank)"] if self.rank_stabilized else []
        parts += ["from the principal part of each map (PiSSA)"] if self.init == "pissa" else []
        parts += ["from what rounding takes away of each map (LoftQ)"] if self.init == "loftq" else []
        parts += [f"B at {self.b_rate_ratio:g} times the rate of A"] if self.b_rate_ratio != 1 else []
        parts += ["with input and output scaling vectors"] if self.scaling_vectors else []
        return ", ".join(parts)

    def flags(self) -> dict[str, Any]:
        more = {"rank_stabilized": True} if self.rank_stabilized else {}
        more |= {"lora_init": self.init} if self.init != "plain" else {}
        more |= {"b_rate_ratio": self.b_rate_ratio} if self.b_rate_ratio != 1 else {}
        return {"rank": self.rank, "alpha": self.alpha, **more}

    @property
    def reading(self) -> str:
        return "paper" if self.scaling_vectors else "official"

    # --- in the step ---

    @property
    def rate_factors(self) -> Mapping[str, float]:
        return {} if self.b_rate_ratio == 1 else {"lora_b": self.b_rate_ratio}

    # --- many in one batch ---

    def rows(self, site: Site, model: nnx.Module) -> Sequence[Rows]:
        if site.kind == "embedding":
            return (LowRankOfTable(),)
        return (Rescale(), LowRank()) if self.scaling_vectors else (LowRank(),)

    def row_leaves(self, leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.init == "pissa":
            raise UserError(
                "an adapter with lora_init='pissa' cannot share a batch with others as it trains; save it, which makes "
                "it a plain LoRA, and add that."
            )
        # The scale is not multiplied into B: the same products in the same order give the same logits, to the last bit.
        in_rows = {"lora_a": leaves["lora_a"].T, "lora_scale": np.full(1, self.scale, np.float32)}
        return {**leaves, **in_rows}

    def row_size(self, leaf: str, size: int) -> str:
        return f"rank {size}"

    # --- Hugging Face PEFT ---

    @property
    def peft_lacks(self) -> str | None:
        return "the scaling vectors of the paper's LoRA" if self.scaling_vectors else None

    def peft_lacks_at(self, site: Site) -> str | None:
        return "LoRA of an embedding as jpeft keeps it" if site.kind == "embedding" else None

    def peft_config(self, chosen: Sequence[Site], peft: PeftNames) -> dict[str, Any]:
        return {
            "r": self.rank,
            "lora_alpha": int(self.alpha) if float(self.alpha).is_integer() else self.alpha,
            "lora_dropout": 0.0,
            "use_rslora": self.rank_stabilized,
            "bias": "none",
            "target_modules": peft.target_modules(chosen),
        }

    @classmethod
    def peft_tensor(cls, leaf: str, value: np.ndarray) -> tuple[str, np.ndarray]:
        return cls.peft_leaves[leaf], value.T

    @classmethod
    def peft_reads(cls, config: Mapping[str, Any]) -> bool:
        return not config.get("use_dora")

    @classmethod
    def from_peft(cls, file: PeftFile) -> tuple["Lora", Tensors, list[str]]:
        """One rank and one scale for all sites, as our LoRA has them: smaller ranks are filled up, scales go into B.

        Neither changes the function. Rows and columns of zeros also stay zero when training goes on: each is the
        other's gradient.
        """
        file.refuse_trained_biases("LoRA")
        if file.config.get("init_lora_weights") not in _INITIALISATIONS:
            raise UserError(
                f"{file.source} was initialised by {file.config['init_lora_weights']!r}, which changes the base's "
                "weights; have PEFT convert it: "
                "save_pretrained(directory, path_initial_model_for_weight_conversion=...)."
            )
        modules = file.by_path()
        for module, tensors in modules.values():
            if set(tensors) != set(cls.peft_leaves.values()):
                there = ", ".join(name.removesuffix(".weight") for name in cls.peft_leaves.values())
                raise RunFailed(f"{file.source}: {module} should have {there}, not {sorted(tensors)}.")
            for name, value in tensors.items():
                if value.ndim != (2 if name.endswith(".weight") else 1):
                    raise RunFailed(f"{file.source}: {module}.{name} has shape {value.shape}; expected two dimensions.")
        ranks = {path: _rank(file, module, tensors) for path, (module, tensors) in modules.items()}
        _refuse_filling_up(file, modules, ranks)
        alphas = {path: file.setting("lora_alpha", "alpha_pattern", module, 8) for path, (module, _) in modules.items()}
        rank = max(ranks.values())
        alpha = alphas[next(path for path in modules if ranks[path] == rank)]
        stabilized = bool(file.config.get("use_rslora"))
        method = cls(rank=rank, alpha=float(alpha), scaling_vectors=False, rank_stabilized=stabilized)
        leaves, rescaled = {}, False
        for path, (_, tensors) in modules.items():
            own = dataclasses.replace(method, rank=ranks[path], alpha=float(alphas[path]))
            a, b = tensors["lora_A.weight"].T, tensors["lora_B.weight"].T
            if own.scale != method.scale:
                if method.scale == 0:
                    raise UserError(f"{file.source} scales some updates by 0 (alpha_pattern); jpeft does not.")
                b, rescaled = b * np.float32(own.scale / method.scale), True
            leaves[f"{path}/lora_a"] = np.pad(a, ((0, 0), (0, rank - own.rank)))
            leaves[f"{path}/lora_b"] = np.pad(b, ((0, rank - own.rank), (0, 0)))
            vectors = {leaf: name for leaf, name in cls.peft_leaves.items() if leaf not in ("lora_a", "lora_b")}
            leaves |= {f"{path}/{leaf}": tensors[name] for leaf, name in vectors.items()}
        notes = []
        if len(set(ranks.values())) > 1:
            notes.append(f"ranks {sorted(set(ranks.values()))} were filled up with zeros to {rank}")
        if rescaled:
            notes.append("scales that differ between modules were multiplied into B")
        return method, leaves, notes


def nearest_of_rank(
    matrix: Float[np.ndarray, "d_in d_out"], rank: int
) -> tuple[Float[np.ndarray, "d_in rank"], Float[np.ndarray, "rank d_out"]]:
    """Two factors whose product is the nearest of that rank to a matrix; both have the roots of its singular values.

    By the last eigenvectors of the smaller of `M Mᵀ` and `Mᵀ M`, in float64: a decomposition of M takes far longer.
    """
    import scipy.linalg

    wide = matrix.astype(np.float64)
    turned = wide.shape[0] > wide.shape[1]
    wide = wide.T if turned else wide
    size = len(wide)
    vectors = scipy.linalg.eigh(wide @ wide.T, subset_by_index=[size - rank, size - 1])[1][:, ::-1]  # the largest first
    rows = vectors.T @ wide
    roots = np.sqrt(np.linalg.norm(rows, axis=1))
    left, right = vectors * roots, rows / np.where(roots > 0, roots, 1)[:, None]
    return (right.T, left.T) if turned else (left, right)


# Initial values that leave the base alone. The others (PiSSA, OLoRA, CorDA, LoftQ, ...) take a part of it away.
_INITIALISATIONS = (None, True, False, "gaussian", "eva", "orthogonal")
_MOST_FILLED = 2**24  # numbers of an adapter whose ranks differ, however small the base


def _refuse_filling_up(file: PeftFile, modules: Mapping[str, tuple[str, Tensors]], ranks: Mapping[str, int]) -> None:
    """Raises `UserError`: one module's rank is so much larger that zeros for the others would outgrow the base."""
    largest, least = max(ranks.values()), min(ranks.values())
    filled = sum(
        value.size // ranks[path] * largest
        for path, (_, each) in modules.items()
        for value in each.values()
        if value.ndim > 1
    )
    if largest > least and filled > max(_MOST_FILLED, file.names.num_weights):
        raise UserError(
            f"{file.source} has ranks from {least:,} to {largest:,}; jpeft has one for all modules, and filled up with "
            "zeros they would be larger than the base."
        )


def _rank(file: PeftFile, module: str, tensors: Tensors) -> int:
    rank = len(tensors["lora_A.weight"])
    says = file.setting("r", "rank_pattern", module, rank)
    if says != rank:
        raise RunFailed(f"{file.source}: {module} is of rank {rank} in the weights file and {says} in the config.")
    return rank
