"""AdaLoRA: low-rank updates whose ranks are reduced where they are least important (Zhang et al. 2023)."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jpeft.errors import RunFailed, UserError
from jpeft.peft.arithmetic import added, at_least_float32, rescaled
from jpeft.peft.interchange import NUMBER, PeftFile, PeftLayout, PeftNames, Tensors
from jpeft.peft.lora import Lora, LowRank
from jpeft.peft.method import AddedModules, LearningRates
from jpeft.peft.row_wise import Rows
from jpeft.peft.sites import ATTENTION_ROLES, FEED_FORWARD_ROLES, Site
from jpeft.peft.variables import Adapter

_SCHEDULE_STEPS = 1_000_000_000  # `total_step` in PEFT's config, of which its `tinit` and `tfinal` are our fractions
SMOOTHING = 0.85  # beta 1 and beta 2 of eq. 9 and 10, as in all experiments of the paper


class AdaLoraSite(nnx.Module):
    """`y = W x + scale * P diag(lambda) Q x` (eq. 3), with Qᵀ in `lora_a`, lambda in `lora_e` and Pᵀ in `lora_b`."""

    def __init__(self, lora_a: Float[Array, "d_in rank"], lora_b: Float[Array, "rank d_out"], scale: float):
        self.lora_a = Adapter(lora_a)
        self.lora_e = Adapter(jnp.zeros(lora_a.shape[1]))  # zero: the first forward pass is the base model's
        self.lora_b = Adapter(lora_b)
        self.scale = scale

    def __call__(self, compute, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        inner = rescaled(x @ self.lora_a[...].astype(x.dtype), self.lora_e[...])
        update = inner @ self.lora_b[...].astype(x.dtype)
        return added(compute(x), at_least_float32(update) * self.scale)

    def fold(self, kernel: Float[Array, "*layers d_in d_out"], bias: Any) -> tuple[Any, Any]:
        """The kernel and bias of a linear map that computes the same as kernel, bias and this adapter together.

        `layers` is present where the layers of a block are stacked.
        """
        a = self.lora_a[...] * self.lora_e[...][..., None, :]
        return kernel + self.scale * jnp.matmul(a, self.lora_b[...], precision="highest"), bias


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Importance:
    """The state that AdaLoRA carries from step to step.

    Attributes:
      sensitivity: for each trainable parameter, the running mean of `|parameter * gradient|` (eq. 9).
      uncertainty: for each, the running mean of the absolute deviation from the sensitivity (eq. 10).
      kept: for each `lora_e`, by site, a mask of the triplets that remain after the final allocation.
    """

    sensitivity: Any
    uncertainty: Any
    kept: Any


@dataclasses.dataclass(frozen=True)
class AdaLora(AddedModules, PeftLayout):
    """AdaLoRA (Zhang et al. 2023): starts with 1.5 times the target rank at every map and prunes the least important.

    What is pruned are triplets: an entry of lambda with its column of P and row of Q, scored together (eq. 7). Over the
    steps of a run the number of triplets stays constant at first, falls by a cubic schedule (section 3.3), and is
    constant at the end, where the remaining ones train on.

    Attributes:
      rank: mean rank of all maps after pruning.
      initial_rank: rank of each map at the start; 0 means 1.5 times `rank`, as in the paper.
      alpha: the update is multiplied by `alpha / initial_rank`, throughout training.
      orthogonality: weight of the penalty that keeps P's columns and Q's rows orthonormal (eq. 4). As in the authors'
        code and in PEFT, it is the mean over all P and Q of the norm of `P^T P - I`, not the sum of its square.
      allocate_every: number of steps between two allocations of the budget.
      initial_fraction, final_fraction: fractions of the run's steps before pruning begins and after it has ended.
    """

    name: ClassVar[str] = "adalora"
    # The paper's range for GLUE is 5e-4 to 2.2e-3 (appendix).
    learning_rates: ClassVar = LearningRates(1e-4, 1e-3, 1e-4)
    only_in_training: ClassVar[Collection[str]] = ("allocate_every", "initial_fraction", "final_fraction")
    options: ClassVar[Mapping[str, str]] = {
        "rank": "rank",
        "alpha": "alpha",
        "initial_rank": "initial_rank",
        "orthogonality": "orthogonality",
        "allocate_every": "allocate_every",
        "initial_fraction": "initial_fraction",
        "final_fraction": "final_fraction",
    }
    leaf_axes: ClassVar = {"lora_a": ("in", None), "lora_e": (None,), "lora_b": (None, "out")}
    sizes: ClassVar = {"width": ("lora_a", -1)}
    peft_type: ClassVar[str] = "ADALORA"
    peft_settings: ClassVar = {
        "lora_alpha": NUMBER,
        "init_r": NUMBER,
        "target_r": NUMBER,
        "orth_reg_weight": NUMBER,
        "tinit": NUMBER,
        "tfinal": NUMBER,
        "deltaT": NUMBER,
        "total_step": NUMBER,
    }
    # PEFT's AdaLoraConfig has all fields of its LoraConfig as well.
    peft_ignored: ClassVar[Collection[str]] = [
        *Lora.peft_settings,
        *Lora.peft_ignored,
        "beta1",
        "beta2",
    ]
    peft_refused: ClassVar[Collection[str]] = Lora.peft_refused
    peft_leaves: ClassVar = {"lora_a": "lora_A", "lora_b": "lora_B", "lora_e": "lora_E"}
    plans_by_steps: ClassVar[bool] = True

    rank: int = 8
    initial_rank: int = 0
    alpha: float = 16.0
    orthogonality: float = 0.1
    allocate_every: int = 10
    initial_fraction: float = 0.1
    final_fraction: float = 0.3

    def __post_init__(self):
        super().__post_init__()
        if self.rank < 1 or self.initial_rank < 0 or self.width < self.rank:
            raise UserError(
                f"method.rank is {self.rank} and method.initial_rank {self.initial_rank}; AdaLoRA needs a rank of at "
                "least 1, and an initial rank that is no smaller (or 0, for 1.5 times the rank)."
            )
        if not 0 < self.alpha < math.inf:
            raise UserError(f"method.alpha is {self.alpha}; AdaLoRA needs a finite number above 0.")
        if not 0 <= self.orthogonality < math.inf or self.allocate_every < 1:
            raise UserError(
                f"method.orthogonality is {self.orthogonality} and method.allocate_every {self.allocate_every}; "
                "expected a finite number of 0 or more, and at least 1."
            )
        if min(self.initial_fraction, self.final_fraction) < 0 or not self.initial_fraction + self.final_fraction < 1:
            raise UserError(
                f"method.initial_fraction is {self.initial_fraction} and method.final_fraction {self.final_fraction}; "
                "expected fractions of 0 or more, of a sum below 1."
            )

    @property
    def width(self) -> int:
        """The rank that every map starts with: `initial_rank`, or 1.5 times `rank`, rounded up, where that is 0."""
        return self.initial_rank or math.ceil(1.5 * self.rank)

    @property
    def scale(self) -> float:
        """The factor of the update: `alpha` over the initial rank, computed as in PEFT."""
        return self.alpha / (self.width + 1e-5)

    @property
    def default_roles(self) -> tuple[str, ...]:
        return (*ATTENTION_ROLES, *FEED_FORWARD_ROLES)

    def create(self, site, key, model):
        key_a, key_b = jax.random.split(key)
        a = 0.02 * jax.random.normal(key_a, (site.d_in, self.width))  # as in the authors' code
        return AdaLoraSite(a, 0.02 * jax.random.normal(key_b, (self.width, site.d_out)), self.scale)

    # --- training ---

    def penalty(self, adapter: nnx.State) -> Array | None:
        if not self.orthogonality:
            return jnp.float32(0)
        norms = []
        for leaves in _by_site(adapter).values():
            for name, gram in (("lora_a", "...ir,...is->...rs"), ("lora_b", "...ro,...so->...rs")):
                products = jnp.einsum(gram, leaves[name], leaves[name], precision="highest")
                squares = jnp.sum((products - jnp.eye(products.shape[-1])) ** 2, axis=(-2, -1))
                norms.append(jnp.sqrt(squares + 1e-20).reshape(-1))  # the gradient of the root is infinite at 0
        return self.orthogonality * jnp.mean(jnp.concatenate(norms))

    def first_memory(self, adapter: nnx.State) -> Importance:
        sensitivity, uncertainty = (jax.tree.map(jnp.zeros_like, adapter) for _ in range(2))
        kept = {site: jnp.ones(leaves["lora_e"].shape, bool) for site, leaves in _by_site(adapter).items()}
        return Importance(sensitivity, uncertainty, _nested(kept))

    def after_step(
        self, adapter: nnx.State, memory: Importance, before: nnx.State, grads: nnx.State, step: Array, steps: Any
    ) -> tuple[nnx.State, Importance]:
        """Algorithm 1 of the paper; steps are counted from 1, as in PEFT's allocator."""
        now = step + 1
        start, fall_ends = self._phases(steps)
        is_falling = now < fall_ends

        def mean(old: Array, new: Array) -> Array:
            return jnp.where(is_falling, SMOOTHING * old + (1 - SMOOTHING) * new, old)

        products = jax.tree.map(lambda weight, grad: jnp.abs(weight * grad), before, grads)
        sensitivity = jax.tree.map(mean, memory.sensitivity, products)
        deviation = jax.tree.map(lambda new, smooth: jnp.abs(new - smooth), products, sensitivity)
        uncertainty = jax.tree.map(mean, memory.uncertainty, deviation)
        scores = _triplet_scores(jax.tree.map(jnp.multiply, sensitivity, uncertainty))
        chosen = _largest(scores, self._budget(now, start, fall_ends, sum(map(jnp.size, scores.values()))))
        kept = _by_path(memory.kept)
        kept = {site: jnp.where(now == fall_ends, chosen[site], old) for site, old in kept.items()}
        allocates = is_falling & (now > start) & (now % self.allocate_every == 0)

        def masked(path: Any, leaf: Array) -> Array:
            *site, name = _keys(path)
            if name != "lora_e":
                return leaf
            stays = jnp.where(allocates, chosen[tuple(site)], True)
            return jnp.where(jnp.where(is_falling, stays, kept[tuple(site)]), leaf, 0.0)

        after = jax.tree.map_with_path(masked, adapter)
        return after, Importance(sensitivity, uncertainty, _nested(kept))

    def _phases(self, steps: Any) -> tuple[Array, Array]:
        """The step after which pruning begins, and the step at which it has ended."""
        total = jnp.asarray(steps, jnp.float32)
        start = jnp.floor(total * self.initial_fraction).astype(jnp.int32)
        return start, steps - jnp.floor(total * self.final_fraction).astype(jnp.int32)

    def _budget(self, now: Array, start: Array, fall_ends: Array, first: int) -> Array:
        """The number of triplets that remain at a step, of `first` at the start: the cubic schedule of section 3.3."""
        last = first // self.width * self.rank
        left = 1 - (now - start).astype(jnp.float32) / jnp.maximum(fall_ends - start, 1)
        left = jnp.clip(left, 0.0, 1.0)
        return jnp.floor((first - last) * left**3 + last).astype(jnp.int32)

    # --- description ---

    def describe(self) -> str:
        return f"AdaLoRA of mean rank {self.rank} (from {self.width}), alpha {self.alpha:g}"

    # --- many adapters in one batch ---

    def rows(self, site: Site, model: nnx.Module) -> Sequence[Rows]:
        return (LowRank(),)

    def row_leaves(self, leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        a = leaves["lora_a"] * leaves["lora_e"]
        return {"lora_a": a.T, "lora_b": leaves["lora_b"], "lora_scale": np.full(1, self.scale, np.float32)}

    def row_size(self, leaf: str, size: int) -> str:
        return f"rank {size}"

    # --- Hugging Face PEFT ---

    def peft_config(self, chosen: Sequence[Site], peft: PeftNames) -> dict[str, Any]:
        return {
            "init_r": self.width,
            "target_r": self.rank,
            "lora_alpha": int(self.alpha) if float(self.alpha).is_integer() else self.alpha,
            "orth_reg_weight": self.orthogonality,
            "deltaT": self.allocate_every,
            "tinit": round(self.initial_fraction * _SCHEDULE_STEPS),
            "tfinal": round(self.final_fraction * _SCHEDULE_STEPS),
            "total_step": _SCHEDULE_STEPS,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": peft.target_modules(chosen),
        }

    @classmethod
    def peft_tensor(cls, leaf: str, value: np.ndarray) -> np.ndarray:
        return value[:, None] if leaf == "lora_e" else value.T

    @classmethod
    def peft_has_output_rows(cls, leaf: str, value: np.ndarray) -> bool:
        return leaf == "lora_B"

    @classmethod
    def from_peft(cls, file: PeftFile) -> tuple["AdaLora", Tensors, list[str]]:
        """Pads maps whose pruned triplets PEFT did not store with zeros, which do not change the outputs.

        PEFT's schedule, in steps of `total_step`, is read as fractions of a run. The defaults stand for one that leaves
        no steps to prune in, such as that of one step which earlier versions of jpeft wrote.

        In further training a triplet of zeros gets a gradient from the penalty only, so it stays without effect.
        """
        width = int(file.number("init_r", 12))
        target = min(int(file.number("target_r", 8)), width)
        alpha = file.number("lora_alpha", 8)
        if width < 1 or target < 1 or not alpha > 0:
            raise UserError(
                f"{file.source} has init_r = {width}, target_r = {target} and lora_alpha = {alpha}; jpeft's AdaLoRA "
                "needs ranks of at least 1 and an alpha of more than 0."
            )
        weight = file.number("orth_reg_weight", 0.5)
        every, total = int(file.number("deltaT", 1)), file.number("total_step", 0)
        start, end = (file.number(key, 0) for key in ("tinit", "tfinal"))
        prunes = total > 1 and start >= 0 and end >= 0 and start + end < total
        schedule = {"initial_fraction": start / total, "final_fraction": end / total} if prunes else {}
        method = cls(
            rank=target,
            initial_rank=width,
            alpha=float(alpha),
            orthogonality=float(weight),
            allocate_every=max(every, 1),
            **schedule,
        )
        leaves, ranks = {}, set()
        for path, (module, tensors) in file.by_path().items():
            if set(tensors) != {"lora_A", "lora_B", "lora_E"}:
                raise RunFailed(
                    f"{file.source}: {module} should have lora_A, lora_B and lora_E, not {sorted(tensors)}."
                )
            a, b, e = (tensors[name] for name in ("lora_A", "lora_B", "lora_E"))
            if a.ndim != 2 or b.ndim != 2 or e.shape != (len(a), 1) or b.shape[1] != len(a) or len(a) > width:
                raise RunFailed(
                    f"{file.source}: {module} has shapes {a.shape}, {b.shape} and {e.shape}; expected one rank of at "
                    f"most {width}."
                )
            rest = (0, width - len(a))
            leaves[f"{path}/lora_a"] = np.pad(a.T, ((0, 0), rest))
            leaves[f"{path}/lora_e"] = np.pad(e[:, 0], rest)
            leaves[f"{path}/lora_b"] = np.pad(b.T, (rest, (0, 0)))
            ranks.add(len(a))
        notes = []
        if ranks != {width}:
            notes.append(f"ranks from {min(ranks)} to {max(ranks)} were padded with zeros to {width}")
        return method, leaves, notes


def _keys(path: Any) -> tuple[Any, ...]:
    """The keys of a `jax.tree_util` path, without the attribute by which an `nnx.Variable` holds its value."""
    return tuple(part.key for part in path if hasattr(part, "key"))


def _by_path(tree: Any) -> dict[tuple[Any, ...], Any]:
    """The leaves of a tree that has `lora_e` leaves only, by the path of their sites."""
    return {_keys(path)[:-1]: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _by_site(tree: Any) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The leaves `lora_a`, `lora_e` and `lora_b` of each AdaLoRA site, with a leading axis of layers where stacked."""
    sites: dict[tuple[Any, ...], dict[str, Any]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        *site, name = _keys(path)
        sites.setdefault(tuple(site), {})[name] = leaf
    return {site: leaves for site, leaves in sites.items() if "lora_e" in leaves}  # other methods may be attached, too


def _nested(by_path: Mapping[tuple[Any, ...], Any]) -> dict[Any, Any]:
    """A tree with one `lora_e` per site, at the paths of the adapter's tree, so that it is sharded like that."""
    tree: dict[Any, Any] = {}
    for path, leaf in by_path.items():
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node["lora_e"] = leaf
    return tree


def _triplet_scores(importance: nnx.State) -> dict[tuple[Any, ...], Array]:
    """The importance of each site's triplets: lambda's plus the means over their row and column (eq. 7)."""
    return {
        site: leaves["lora_e"] + jnp.mean(leaves["lora_a"], axis=-2) + jnp.mean(leaves["lora_b"], axis=-1)
        for site, leaves in _by_site(importance).items()
    }


def _largest(scores: Mapping[tuple[Any, ...], Array], number: Array) -> dict[tuple[Any, ...], Array]:
    """Masks of the `number` largest scores over all sites; scores equal to the largest pruned one are pruned, too."""
    ascending = jnp.sort(jnp.concatenate([score.reshape(-1) for score in scores.values()]))
    num_pruned = len(ascending) - number
    largest_pruned = jnp.where(num_pruned > 0, ascending[jnp.maximum(num_pruned - 1, 0)], -jnp.inf)
    return {site: score > largest_pruned for site, score in scores.items()}
