"""VeRA: one pair of random matrices shared by all maps, and two trained vectors per map (Kopiczko et al. 2024).

The matrices are not stored. They are generated from a seed, with the same numbers as in Hugging Face PEFT, and are
constants in the compiled programs that use them.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jpeft.errors import RunFailed, UserError
from jpeft.peft.arithmetic import added, at_least_float32, rescaled
from jpeft.peft.interchange import NUMBER, PeftFile, PeftLayout, PeftNames, Tensors
from jpeft.peft.method import AddedModules, LearningRates
from jpeft.peft.row_wise import Leaves, Rows, per_row
from jpeft.peft.sites import Site
from jpeft.peft.variables import Adapter
from jpeft.peft.views import Original

MOST_RANK = 16_384
_PROJECTION = ("base_model.vera_A", "base_model.vera_B")


@functools.lru_cache(maxsize=8)
def shared_matrices(seed: int, rank: int, width_in: int, width_out: int) -> tuple[np.ndarray, np.ndarray]:
    """The float32 matrices A `[width_in, rank]` and B `[rank, width_out]`; smaller maps use the first rows and columns.

    They are Kaiming-uniform and equal to PyTorch's numbers: 24 bits of the Mersenne Twister for each, A before B, drawn
    row by row in PEFT's orientation, which is the transposed one.
    """
    draw = np.random.RandomState(seed)  # NumPy guarantees that the numbers of this legacy generator do not change

    def uniform(rows: int, columns: int) -> np.ndarray:
        bits = draw.randint(0, 2**32, size=(rows, columns), dtype=np.uint32) & np.uint32(2**24 - 1)
        bound = np.float32(3.0**0.5 * 2.0**0.5 / columns**0.5)
        # In float64 and rounded once, like PyTorch's fused multiply-add.
        return (bits * 2.0**-24 * np.float64(bound + bound) - np.float64(bound)).astype(np.float32)

    a, b = uniform(rank, width_in), uniform(width_out, rank)
    return np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)


@dataclasses.dataclass(frozen=True)
class Projection:
    """The part of the shared matrices that one map uses.

    Attributes:
      seed, rank, width_in, width_out: arguments of `shared_matrices`.
      d_in, d_out: widths of the map, at most `width_in` and `width_out`.
    """

    seed: int
    rank: int
    width_in: int
    width_out: int
    d_in: int
    d_out: int

    def matrices(self, dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
        """The rows of A and columns of B of this map, `[d_in, rank]` and `[rank, d_out]`."""
        a, b = shared_matrices(self.seed, self.rank, self.width_in, self.width_out)
        return a[: self.d_in].astype(dtype), b[:, : self.d_out].astype(dtype)

    @property
    def tag(self) -> str:
        """An identifier of the shared matrices, the same for all maps of one adapter."""
        return f"{self.seed}_{self.rank}_{self.width_in}_{self.width_out}"


class VeraSite(nnx.Module):
    """`y = W x + b * (B (d * (A x)))` (Kopiczko et al. 2024, eq. 2), with A and B shared and frozen."""

    def __init__(self, projection: Projection):
        self.vera_d = Adapter(jnp.full(projection.rank, 0.1, jnp.float32))
        self.vera_b = Adapter(jnp.zeros(projection.d_out))  # zero: the first forward pass is the base model's
        self.projection = nnx.static(projection)

    def __call__(self, compute: Original, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        a, b = self.projection.matrices(x.dtype)
        update = rescaled(x @ a, self.vera_d[...]) @ b
        return added(compute(x), at_least_float32(update) * self.vera_b[...])

    def fold(self, kernel: Float[Array, "*layers d_in d_out"], bias: Any) -> tuple[Any, Any]:
        """The kernel and bias of a linear map that computes the same as kernel, bias and this adapter together."""
        a, b = self.projection.matrices()
        update = jnp.matmul(a * self.vera_d[...][..., None, :], b * self.vera_b[...][..., None, :], precision="highest")
        return kernel + update, bias


@dataclasses.dataclass(frozen=True)
class Projected(Rows):
    """`VeraSite` with vectors per row of a batch; the products with A and B are over the whole batch."""

    projection: Projection
    order: ClassVar[int] = 1

    @property
    def leaves(self) -> tuple[str, ...]:  # tagged, so that a batch may mix adapters of different matrices
        return tuple(f"{leaf}_{self.projection.tag}" for leaf in ("vera_d", "vera_b"))

    def __call__(
        self, leaves: Leaves, compute: Original, x: Float[Array, "batch length d_in"]
    ) -> Float[Array, "batch length d_out"]:
        (a, b), (d, scale) = self.projection.matrices(x.dtype), (leaves[name] for name in self.leaves)
        inner = ((x @ a).astype(jnp.float32) * per_row(d)).astype(x.dtype)
        return added(compute(x), (inner @ b).astype(jnp.float32) * per_row(scale))


@dataclasses.dataclass(frozen=True)
class Vera(AddedModules, PeftLayout):
    """VeRA (Kopiczko et al. 2024), by default on q and v, as its authors use it.

    Attributes:
      rank: rank of the shared matrices.
      projection_seed: seed of the shared matrices; PEFT's `projection_prng_key`.
      width_in, width_out: widths of the shared matrices, the largest of all adapted maps; set by `settled`.
    """

    name: ClassVar[str] = "vera"
    options: ClassVar = {"rank": "rank", "projection_seed": "projection_seed"}
    learning_rates: ClassVar = LearningRates(4e-4, 4e-3, 4e-4)  # the peak of its authors' runs with Llama
    leaf_axes: ClassVar = {"vera_d": (None,), "vera_b": ("out",)}
    sizes: ClassVar = {"rank": ("vera_d", -1)}
    peft_type: ClassVar[str] = "VERA"
    peft_settings: ClassVar = {"r": NUMBER, "projection_prng_key": int}
    peft_ignored: ClassVar = ("save_projection", "vera_dropout", "d_initial", "init_weights")
    peft_leaves: ClassVar = {"vera_d": "vera_lambda_d", "vera_b": "vera_lambda_b"}

    rank: int = 256
    projection_seed: int = 0
    width_in: int = dataclasses.field(default=0, compare=False)
    width_out: int = dataclasses.field(default=0, compare=False)

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.rank <= MOST_RANK:
            raise UserError(f"method.rank is {self.rank}; VeRA's matrices need a rank of 1 to {MOST_RANK:,}.")
        if not 0 <= self.projection_seed < 2**32:
            raise UserError(f"method.projection_seed is {self.projection_seed}; expected 0 to {2**32 - 1:,}.")

    @property
    def default_roles(self) -> tuple[str, ...]:
        return ("q", "v")

    def settled(self, chosen: Sequence[Site]) -> "Vera":
        widths = {"width_in": max(site.d_in for site in chosen), "width_out": max(site.d_out for site in chosen)}
        return dataclasses.replace(self, **widths)

    def _projection(self, site: Site) -> Projection:
        widths = (max(self.width_in, site.d_in), max(self.width_out, site.d_out))
        return Projection(self.projection_seed, self.rank, *widths, site.d_in, site.d_out)

    def create(self, site, key, model):
        return VeraSite(self._projection(site))

    def describe(self) -> str:
        return f"VeRA of rank {self.rank}, matrices from seed {self.projection_seed}"

    def flags(self) -> dict[str, Any]:
        seed = {"projection_seed": self.projection_seed} if self.projection_seed else {}
        return {"rank": self.rank, **seed}

    # --- many adapters in one batch ---

    def rows(self, site: Site, model: nnx.Module) -> Sequence[Rows]:
        return (Projected(self._projection(site)),)

    def row_leaves(self, leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        tag = Projection(self.projection_seed, self.rank, self.width_in, self.width_out, 0, 0).tag
        return {f"{leaf}_{tag}": value for leaf, value in leaves.items()}

    # --- Hugging Face PEFT ---

    def peft_config(self, chosen: Sequence[Site], peft: PeftNames) -> dict[str, Any]:
        return {
            "r": self.rank,
            "vera_dropout": 0.0,
            "projection_prng_key": self.projection_seed,
            "save_projection": False,
            "bias": "none",
            "target_modules": peft.target_modules(chosen),
        }

    @classmethod
    def from_peft(cls, file: PeftFile) -> tuple["Vera", Tensors, list[str]]:
        projection = {name: file.tensors[name] for name in _PROJECTION if name in file.tensors}
        rest = {name: value for name, value in file.tensors.items() if name not in projection}
        leaves, by_path = {}, {site.path: site for site in file.names.sites}
        modules = dataclasses.replace(file, tensors=rest).by_path()
        for path, (module, tensors) in modules.items():
            if set(tensors) != set(cls.peft_leaves.values()):
                raise RunFailed(
                    f"{file.source}: {module} should have {', '.join(cls.peft_leaves.values())}, not {sorted(tensors)}."
                )
            if file.names.rows(path) is not None:
                raise UserError(
                    f"{file.source} adapts {module}, which is several maps here; jpeft has no VeRA of them together."
                )
            leaves |= {f"{path}/{leaf}": tensors[theirs] for leaf, theirs in cls.peft_leaves.items()}
        rank = int(file.number("r", 256))
        method = cls(rank=rank, projection_seed=int(file.number("projection_prng_key", 0)))
        method = method.settled([by_path[path] for path in modules])
        for name, value in leaves.items():
            if name.endswith("vera_d") and value.shape != (rank,):
                raise RunFailed(f"{file.source}: {name} has shape {value.shape}, and the config says r = {rank}.")
        made = shared_matrices(method.projection_seed, rank, method.width_in, method.width_out)
        for name, expected in zip(_PROJECTION, made, strict=True):
            stored = projection.get(name)
            if stored is not None and (stored.shape != expected.T.shape or np.abs(stored - expected.T).max() > 1e-6):
                raise UserError(
                    f"{file.source}: {name} is not what PEFT makes of projection_prng_key {method.projection_seed}, "
                    "and jpeft has only matrices made from a seed; have PEFT merge it."
                )
        return method, leaves, ["its matrices were left out; they are generated from their seed"] if projection else []
