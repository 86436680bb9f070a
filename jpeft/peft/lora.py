"""LoRA: a low-rank update of a linear map (Hu et al. 2021), plain or with the scaling vectors of T-Few's layer."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jpeft.errors import RunFailed, UserError
from jpeft.peft.ablations import HALVES, Fixed
from jpeft.peft.arithmetic import added, at_least_float32, rescaled
from jpeft.peft.interchange import NUMBER, PeftFile, PeftLayout, PeftNames, Tensors
from jpeft.peft.method import AddedModules
from jpeft.peft.row_wise import Leaves, Rescale, Rows, per_row
from jpeft.peft.selection import Selection
from jpeft.peft.sites import ATTENTION_ROLES, Site, leaf_at
from jpeft.peft.variables import Adapter, Frozen
from jpeft.peft.views import Original


class LoraSite(nnx.Module):
    """`y = W x + scale * B A x` (Hu et al. 2021, eq. 3), with A random and B zero at initialisation."""

    def __init__(self, lora_a: Float[Array, "d_in rank"], d_out: int, scale: float):
        self.lora_a = Adapter(lora_a)
        self.lora_b = Adapter(jnp.zeros((lora_a.shape[1], d_out)))  # zero: the first forward pass is the base model's
        self.scale = scale

    def __call__(self, compute, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        update = (x @ self.lora_a[...].astype(x.dtype)) @ self.lora_b[...].astype(x.dtype)
        return added(compute(x), at_least_float32(update) * self.scale)

    def fold(self, kernel: Float[Array, "*layers d_in d_out"], bias: Any) -> tuple[Any, Any]:
        """The kernel and bias of a linear map that computes the same as kernel, bias and this adapter together.

        `layers` is present where the layers of a block are stacked.
        """
        return _plus_product(kernel, self.lora_a[...], self.lora_b[...], self.scale), bias


@jax.jit  # one compiled program instead of one for each of three operations, called once per merged map
def _plus_product(kernel: Array, a: Array, b: Array, scale: float | Array) -> Array:
    return kernel + scale * jnp.matmul(a, b, precision="highest")


class ScaledLoraSite(LoraSite):
    """`y = s_out * W (s_in * x) + (1 / rank) * B A x`: T-Few's layer, which Table 3 of Pu et al. counts."""

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

    A and B start as A0 and B0. The authors subtract the principal part from W; here W stays unchanged, so that the base
    can be shared, and the initial update is subtracted from the output. That is computed from `A - A0` and `B - B0`,
    which are small, so that it stays accurate in bfloat16.
    """

    def __init__(self, lora_a: Float[Array, "d_in rank"], d_out: int, scale: float):
        super().__init__(lora_a, d_out, scale)
        self.first_a, self.first_b = Frozen(jnp.zeros_like(lora_a)), Frozen(jnp.zeros((lora_a.shape[1], d_out)))

    def init_from(self, kernel: Float[Array, "*layers d_in d_out"]) -> None:
        """Initialises A and B from the largest singular values of W and their vectors (eq. 2)."""
        u, values, v = jnp.linalg.svd(kernel.astype(jnp.float32), full_matrices=False)
        rank = self.lora_a.shape[-1]
        roots = jnp.sqrt(values[..., :rank] / self.scale)
        a, b = u[..., :rank] * roots[..., None, :], roots[..., :, None] * v[..., :rank, :]
        self.lora_a, self.lora_b = Adapter(a), Adapter(b)
        self.first_a, self.first_b = Frozen(jnp.array(a, copy=True)), Frozen(jnp.array(b, copy=True))

    def __call__(self, compute: Original, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        first_a, first_b = self.first_a[...], self.first_b[...]
        change_of_a = (x @ (self.lora_a[...] - first_a).astype(x.dtype)) @ self.lora_b[...].astype(x.dtype)
        change_of_b = (x @ first_a.astype(x.dtype)) @ (self.lora_b[...] - first_b).astype(x.dtype)
        update = at_least_float32(change_of_a) + at_least_float32(change_of_b)
        return added(compute(x), update * self.scale)

    def fold(self, kernel: Float[Array, "*layers d_in d_out"], bias: Any) -> tuple[Any, Any]:
        folded, bias = super().fold(kernel, bias)
        return _plus_product(folded, self.first_a[...], self.first_b[...], -self.scale), bias


class LoraEmbedding(LoraSite):
    """`y = E[i] + scale * A[i] B`: LoRA of an embedding table; A has one row for each row of the table."""

    def __call__(self, compute, rows: Int[Array, "*batch"]) -> Float[Array, "*batch width"]:
        y = compute(rows)
        return added(y, (self.lora_a[...][rows] @ self.lora_b[...]) * self.scale)


@dataclasses.dataclass(frozen=True)
class LowRank(Rows):
    """`y + scale * B A x`, each row of a batch with its own matrices.

    A is stored transposed, `[batch, rank, d_in]`, so that the product of a few activations reads contiguous memory.
    """

    # The matrices are `[batch, rank, width]`, the scale `[batch, 1]`.
    leaves: tuple[str, ...] = ("lora_a", "lora_b", "lora_scale")
    order: ClassVar[int] = 1

    def __call__(
        self, leaves: Leaves, compute: Original, x: Float[Array, "batch length d_in"]
    ) -> Float[Array, "batch length d_out"]:
        y = compute(x)
        inner = jnp.einsum("bld,brd->blr", x, leaves["lora_a"].astype(x.dtype))
        update = jnp.einsum("blr,brd->bld", inner, leaves["lora_b"].astype(x.dtype))
        return added(y, at_least_float32(update) * per_row(leaves["lora_scale"]))


@dataclasses.dataclass(frozen=True)
class LowRankEmbedding(Rows):
    """`E[i] + scale * B A[i]`: `LowRank` for an embedding table; A has one column for each row of the table."""

    leaves: tuple[str, ...] = LowRank.leaves
    order: ClassVar[int] = 1

    def __call__(
        self, leaves: Leaves, compute: Original, rows: Int[Array, "batch length"]
    ) -> Float[Array, "batch length width"]:
        y = compute(rows)
        inner = jnp.take_along_axis(leaves["lora_a"], rows[:, None], axis=2)  # [batch, rank, length]
        update = jnp.einsum("brl,brd->bld", inner, leaves["lora_b"])
        return added(y, update * per_row(leaves["lora_scale"]))


@dataclasses.dataclass(frozen=True)
class Lora(AddedModules, PeftLayout):
    """LoRA (Hu et al. 2021), by default as Pu et al. (2023) count it: rank 2 on q, k, v, o, with scaling vectors.

    `Lora.official()` is plain LoRA on q and v, which Hugging Face PEFT's format can hold.

    Attributes:
      rank: rank of the update.
      alpha: the update is multiplied by `alpha / rank`, or `alpha / sqrt(rank)` when `rank_stabilized`.
      scaling_vectors: whether inputs and outputs are also scaled by trained vectors, as in T-Few's layer; False is LoRA
        as published.
      rank_stabilized: rsLoRA (Kalajdzievski 2023), which keeps the size of the update as the rank grows.
      init: `plain`: A random and B zero; `pissa`: both from the principal part of the matrix (Meng et al. 2024);
        `loftq`: both from the quantization residual of the matrix (Li et al. 2023).
      b_rate_ratio: ratio of the learning rate of B to that of A: LoRA+ (Hayou et al. 2024), whose authors advise 16.
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
    padded_options: ClassVar = ("rank", "alpha")  # runs must agree on their ratio, the scale
    ablations: ClassVar = HALVES | {
        "drop_self_attention": Fixed(Selection(sublayers=("cross_attention",)), needs=("cross_attention",)),
        "drop_cross_attention": Fixed(Selection(sublayers=("self_attention",)), needs=("cross_attention",)),
        "drop_query_output": Fixed(Selection(names=("k", "v"))),
    }
    peft_type: ClassVar[str] = "LORA"
    peft_settings: ClassVar = {
        "r": NUMBER,
        "lora_alpha": NUMBER,
        "use_rslora": bool,
        "use_dora": bool,
        "init_lora_weights": (bool, str),
        "rank_pattern": dict,
        "alpha_pattern": dict,
    }
    peft_ignored: ClassVar[Collection[str]] = """
        lora_dropout megatron_config megatron_core loftq_config eva_config corda_config lora_ga_config
        qalora_group_size ensure_weight_tying
    """.split()
    peft_refused: ClassVar[Collection[str]] = """
        lora_bias layer_replication target_parameters trainable_token_indices alora_invocation_tokens use_qalora
        use_bdlora arrow_config kasa_config monteclora_config velora_config
    """.split()
    peft_leaves: ClassVar[Mapping[str, str]] = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}
    peft_unstored: ClassVar[Collection[str]] = ("b_rate_ratio",)

    rank: int = 2
    alpha: float = 1.0
    scaling_vectors: bool = True
    rank_stabilized: bool = False
    b_rate_ratio: float = dataclasses.field(default=1.0, compare=False)  # affects training, not the outputs
    init: str = "plain"

    def __post_init__(self):
        super().__post_init__()
        if self.init not in ("plain", "pissa", "loftq"):
            raise UserError(f"method.lora_init is {self.init!r}; expected plain, pissa or loftq.")
        if self.init != "plain" and self.scaling_vectors:
            raise UserError(
                f"method.lora_init is {self.init!r}, which needs plain LoRA, without the paper's scaling vectors; set "
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
        """LoRA as published (Hu et al. 2021), without scaling vectors; Hugging Face PEFT's format can hold it."""
        return cls(
            rank=rank,
            alpha=alpha,
            scaling_vectors=False,
            rank_stabilized=rank_stabilized,
            b_rate_ratio=b_rate_ratio,
            init=init,
        )

    @property
    def kinds(self) -> tuple[str, ...]:
        # The inputs of an embedding are token ids, which T-Few's input vector cannot scale.
        return ("linear",) if self.scaling_vectors or self.init == "pissa" else ("linear", "embedding")

    @property
    def scale(self) -> float:
        """The factor of the low-rank update: `alpha / rank`, or `alpha / sqrt(rank)` if `rank_stabilized`."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilized else self.rank)

    @property
    def default_roles(self) -> tuple[str, ...]:
        # Hu et al. (2021) adapt q and v only; all four at a lower rank work equally well (section 7.1).
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
                    f"method.rank is {self.rank}, and {place.sites[0].told} is {kernel.shape[-2]} by "
                    f"{kernel.shape[-1]}, with fewer singular values than method.lora_init=pissa needs; lower the rank."
                )
            adapter.init_from(kernel)

    @property
    def init_from_residual(self):
        return self._init_loftq if self.init == "loftq" else None

    def _init_loftq(self, adapter: Any, residual: Float[np.ndarray, "*layers d_in d_out"], path: str) -> None:
        """Makes `scale * A B` the best approximation of its rank of `W - Q` (Li et al. 2023, Algorithm 1, T = 1)."""
        *layers, d_in, d_out = residual.shape
        if self.rank > min(d_in, d_out):
            raise UserError(
                f"method.rank is {self.rank}, and {path} is {d_in} by {d_out}, with fewer singular values than "
                "method.lora_init=loftq needs; lower the rank."
            )
        factors = [nearest_of_rank(matrix, self.rank) for matrix in residual.reshape(-1, d_in, d_out)]
        for leaf, of_layers in zip(("lora_a", "lora_b"), zip(*factors, strict=True), strict=True):
            value = np.stack(of_layers).reshape(*layers, *of_layers[0].shape) / np.sqrt(self.scale)
            setattr(adapter, leaf, Adapter(jnp.asarray(value, jnp.float32)))

    def to_save(self, leaves: Tensors) -> tuple["Lora", Tensors]:
        """Converts to plain LoRA: PiSSA to one of twice the rank on the original base, LoftQ without a change.

        For PiSSA, `B A - B0 A0 = [B, -B0] [A; A0]`.
        """
        if self.init != "pissa":
            return dataclasses.replace(self, init="plain"), leaves
        sign = {"lora_a": 1, "lora_b": -1}
        joined = {}
        for name, value in leaves.items():
            path, _, leaf = name.rpartition("/")
            if leaf in sign:
                first = leaves[leaf_at(path, leaf.replace("lora", "first"))]
                joined[name] = np.concatenate([value, sign[leaf] * first], axis=-1 if leaf == "lora_a" else -2)
        alpha = self.alpha * (2**0.5 if self.rank_stabilized else 2)  # keeps the scale the same
        return dataclasses.replace(self, rank=2 * self.rank, alpha=alpha, init="plain"), joined

    # --- description ---

    def describe(self) -> str:
        parts = [f"LoRA of rank {self.rank}, alpha {self.alpha:g}"]
        parts += ["scaled by alpha / sqrt(rank)"] if self.rank_stabilized else []
        parts += ["initialised from the principal part of each map (PiSSA)"] if self.init == "pissa" else []
        parts += ["initialised from the quantization residual of each map (LoftQ)"] if self.init == "loftq" else []
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

    # --- training ---

    @property
    def rate_factors(self) -> Mapping[str, float]:
        return {} if self.b_rate_ratio == 1 else {"lora_b": self.b_rate_ratio}

    # --- many adapters in one batch ---

    def rows(self, site: Site, model: nnx.Module) -> Sequence[Rows]:
        if site.kind == "embedding":
            return (LowRankEmbedding(),)
        return (Rescale(), LowRank()) if self.scaling_vectors else (LowRank(),)

    def row_leaves(self, leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.init == "pissa":
            raise UserError(
                "an adapter with lora_init='pissa' cannot share a batch with others in the form in which it trains; "
                "save it, which converts it to plain LoRA, and add the saved one."
            )
        # The scale is not multiplied into B: the products and their order stay those of `LoraSite`, and so do all bits.
        in_rows = {"lora_a": leaves["lora_a"].T, "lora_scale": np.full(1, self.scale, np.float32)}
        return {**leaves, **in_rows}

    def row_size(self, leaf: str, size: int) -> str:
        return f"rank {size}"

    # --- Hugging Face PEFT ---

    @property
    def peft_lacks(self) -> str | None:
        return "the scaling vectors of the paper's LoRA" if self.scaling_vectors else None

    def peft_lacks_at(self, chosen: Sequence[Site], peft: PeftNames) -> str | None:
        has_embedding = any(site.kind == "embedding" for site in chosen)
        return "LoRA of an embedding as jpeft stores it" if has_embedding else None

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
    def peft_tensor(cls, leaf: str, value: np.ndarray) -> np.ndarray:
        return value.T

    @classmethod
    def peft_has_output_rows(cls, leaf: str, value: np.ndarray) -> bool:
        return leaf == cls.peft_leaves["lora_b"]

    @classmethod
    def peft_reads(cls, config: Mapping[str, Any]) -> bool:
        return not config.get("use_dora")

    @classmethod
    def from_peft(cls, file: PeftFile) -> tuple["Lora", Tensors, list[str]]:
        """Converts ranks and scales that differ between modules to one rank and one scale, which jpeft's LoRA has.

        Smaller ranks are padded with zeros, and the ratio of the scales is multiplied into B; neither changes the
        outputs. The padding stays zero in further training, since the gradient of each half is proportional to the
        other.
        """
        if file.config.get("init_lora_weights") not in _INITIALISATIONS:
            raise UserError(
                f"{file.source} was initialised by {file.config['init_lora_weights']!r}, which changes the base's "
                "weights; have PEFT convert it: "
                "save_pretrained(directory, path_initial_model_for_weight_conversion=...)."
            )
        modules = file.by_path()
        for module, tensors in modules.values():
            if set(tensors) != set(cls.peft_leaves.values()):
                expected = ", ".join(name.removesuffix(".weight") for name in cls.peft_leaves.values())
                raise RunFailed(f"{file.source}: {module} should have {expected}, not {sorted(tensors)}.")
            for name, value in tensors.items():
                if value.ndim != (2 if name.endswith(".weight") else 1):
                    raise RunFailed(f"{file.source}: {module}.{name} has shape {value.shape}; expected two dimensions.")
        ranks = {path: _rank(file, module, tensors) for path, (module, tensors) in modules.items()}
        _refuse_excessive_padding(file, modules, ranks)
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
            notes.append(f"ranks {sorted(set(ranks.values()))} were padded with zeros to {rank}")
        if rescaled:
            notes.append("scales that differ between modules were multiplied into B")
        return method, leaves, notes


def nearest_of_rank(
    matrix: Float[np.ndarray, "d_in d_out"], rank: int
) -> tuple[Float[np.ndarray, "d_in rank"], Float[np.ndarray, "rank d_out"]]:
    """Factors of the best approximation of a rank to a matrix; the singular values are split evenly between them.

    Computed in float64 from the last eigenvectors of the smaller of `M Mᵀ` and `Mᵀ M`, which is much faster than a
    singular value decomposition of M.
    """
    import scipy.linalg

    wide = matrix.astype(np.float64)
    transposed = wide.shape[0] > wide.shape[1]
    wide = wide.T if transposed else wide
    size = len(wide)
    vectors = scipy.linalg.eigh(wide @ wide.T, subset_by_index=[size - rank, size - 1])[1][:, ::-1]  # largest first
    rows = vectors.T @ wide
    roots = np.sqrt(np.linalg.norm(rows, axis=1))
    left, right = vectors * roots, rows / np.where(roots > 0, roots, 1)[:, None]
    return (right.T, left.T) if transposed else (left, right)


# Values of `init_lora_weights` that leave the base unchanged. The others (PiSSA, OLoRA, LoftQ, ...) modify its weights.
_INITIALISATIONS = (None, True, False, "gaussian", "eva", "orthogonal")
_MOST_PADDED = 2**24  # parameters of an adapter after padding that are accepted for a base of any size


def _refuse_excessive_padding(
    file: PeftFile, modules: Mapping[str, tuple[str, Tensors]], ranks: Mapping[str, int]
) -> None:
    """Raises `UserError` if padding all modules to the largest rank would make the adapter larger than the base."""
    largest, least = max(ranks.values()), min(ranks.values())
    padded = sum(
        value.size // ranks[path] * largest
        for path, (_, each) in modules.items()
        for value in each.values()
        if value.ndim > 1
    )
    if largest > least and padded > max(_MOST_PADDED, file.names.num_weights):
        raise UserError(
            f"{file.source} has ranks from {least:,} to {largest:,}; jpeft has one for all modules, and padded to it "
            "with zeros the adapter would be larger than the base; have PEFT merge it."
        )


def _rank(file: PeftFile, module: str, tensors: Tensors) -> int:
    rank = len(tensors["lora_A.weight"])
    configured = file.setting("r", "rank_pattern", module, rank)
    if configured != rank:
        raise RunFailed(
            f"{file.source}: {module} is of rank {rank} in the weights file and {configured} in the config."
        )
    return rank
