"""Prefix tuning: trainable keys and values put before those of each attention (Li & Liang 2021)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jpeft.errors import RunFailed, UserError
from jpeft.peft.interchange import PeftFile, PeftLayout, PeftNames, Tensors
from jpeft.peft.method import AddedModules, LearningRates
from jpeft.peft.prompt import common_pieces
from jpeft.peft.row_wise import Leaves, Rows
from jpeft.peft.sites import Site
from jpeft.peft.variables import Adapter
from jpeft.peft.views import Original
from jpeft.peft.wrapping import put

INITIALISATIONS = ("vocabulary", "normal")
_DEVIATION = 0.02  # of initial values that are drawn: keys of score 0 and values of nearly nothing


class PrefixSite(nnx.Module):
    """Keys and values `[prefix_length, width]` before those of one attention; every query sees them.

    The attention puts them there (`before`): what a position is, is the model's to know.
    """

    def __init__(self, keys: Float[Array, "*layers length width"], values: Float[Array, "*layers length width"]):
        self.prefix_keys = Adapter(keys)
        self.prefix_values = Adapter(values)

    def keys_values(self) -> tuple[Float[Array, "*layers length width"], Float[Array, "*layers length width"]]:
        """What stands before the text's keys and values; `layers` is there where leaves are stacked."""
        return self.prefix_keys[...], self.prefix_values[...]

    def num_before(self) -> tuple[int, int]:
        """Room for keys before the text, and how many there are: the same in every row."""
        length = self.keys_values()[0].shape[-2]
        return length, length

    def __call__(self, compute, *args: Any) -> Any:
        keys, values = self.keys_values()
        return compute(*args, before=(keys[None], values[None], None))


class ReparametrisedPrefix(PrefixSite):
    """A prefix that a network with one hidden layer makes of a trained vector for each of its places.

    Li & Liang (2021), section 4.3: keys and values that are trained themselves are sensitive to the learning rate and
    to how they begin. Each attention has a network of its own; afterwards only what it makes is needed (`Prefix.kept`).
    """

    def __init__(self, length: int, d_model: int, hidden: int, width: int, key: Array):
        names = ("embedding", "inner", "inner_bias", "outer_keys", "outer_values", "bias_keys", "bias_values")
        keys: dict[str, Array] = dict(zip(names, jax.random.split(key, len(names)), strict=True))

        def uniform(name: str, *shape: int, fan_in: int) -> Adapter:
            bound = fan_in**-0.5  # as PyTorch begins its linear maps, and PEFT with it
            return Adapter(jax.random.uniform(keys[name], shape, minval=-bound, maxval=bound))

        self.prefix_embedding = Adapter(jax.random.normal(keys["embedding"], (length, d_model)))
        self.prefix_inner = uniform("inner", d_model, hidden, fan_in=d_model)
        self.prefix_inner_bias = uniform("inner_bias", hidden, fan_in=d_model)
        self.prefix_outer_keys = uniform("outer_keys", hidden, width, fan_in=hidden)
        self.prefix_outer_values = uniform("outer_values", hidden, width, fan_in=hidden)
        self.prefix_bias_keys = uniform("bias_keys", width, fan_in=hidden)
        self.prefix_bias_values = uniform("bias_values", width, fan_in=hidden)

    def keys_values(self) -> tuple[Float[Array, "*layers length width"], Float[Array, "*layers length width"]]:
        leaves = {name: leaf[...] for name, leaf in vars(self).items() if isinstance(leaf, Adapter)}
        return _made(leaves, jnp)


def _made(leaves: Mapping[str, Any], xp: Any) -> tuple[Any, Any]:
    """The keys and values that the network of `ReparametrisedPrefix` makes, in NumPy or in JAX's."""

    def row(name: str) -> Any:
        return leaves[name][..., None, :]

    hidden = xp.tanh(leaves["prefix_embedding"] @ leaves["prefix_inner"] + row("prefix_inner_bias"))
    keys = hidden @ leaves["prefix_outer_keys"] + row("prefix_bias_keys")
    return keys, hidden @ leaves["prefix_outer_values"] + row("prefix_bias_values")


@dataclasses.dataclass(frozen=True)
class Prefixes(Rows):
    """A prefix of its own before the keys and values of each row, or none; shorter ones end where the text begins."""

    leaves: tuple[str, ...] = ("prefix_keys", "prefix_values", "is_prefix")  # [batch, prefix_length, width]
    filled_at_start: ClassVar[tuple[str, ...]] = ("prefix_keys", "prefix_values", "is_prefix")

    def identity(self, leaf: str) -> np.ndarray | np.generic:
        return np.False_ if leaf == "is_prefix" else np.float32(0)

    def num_before(self, leaves: Leaves) -> tuple[int, Any]:
        shown = leaves["is_prefix"]  # [layers, batch, prefix_length]: alike in all layers that have one
        counts = jnp.max(jnp.sum(shown, axis=-1), axis=tuple(range(shown.ndim - 2)))
        return shown.shape[-1], counts[:, None]

    def __call__(self, leaves: Leaves, compute: Original, *args: Any) -> Any:
        return compute(*args, before=(leaves["prefix_keys"], leaves["prefix_values"], leaves["is_prefix"]))


@dataclasses.dataclass(frozen=True)
class Prefix(AddedModules, PeftLayout):
    """Prefix tuning (Li & Liang 2021): keys and values before those of each attention, in a T5 cross-attention's, too.

    The keys are seen by every query, whatever is hidden from it and however short the window of its layer is. In a T5
    they have no bias of position. In a decoder-only model they stand where PEFT puts them, as the cache of a text of
    as many tokens: the text's positions begin after them where positions are learned, and scores are those of keys at
    positions before it where they are rotated or biased (rotary positions, ALiBi).

    Attributes:
      prefix_length: how many keys and values each attention gets.
      init: `vocabulary` begins with those of common pieces of text, read by the base (Li & Liang, section 7.4, find
        that best where there is little data); `normal` draws small numbers.
      projection: hidden width of the network that makes them while they train (section 4.3); 0 trains them themselves.
    """

    name: ClassVar[str] = "prefix"
    kinds: ClassVar[tuple[str, ...]] = ("attention",)
    unmergeable: ClassVar[str | None] = "its keys and values are beside those of the text, not a change of a weight"
    # Liu et al. (2022), P-Tuning v2, who train keys and values themselves as the default here: 5e-3 to 1e-2.
    learning_rates: ClassVar = LearningRates(5e-4, 5e-3, 5e-4)
    options: ClassVar[Mapping[str, str]] = {
        "prefix_length": "prefix_length",
        "prefix_init": "init",
        "prefix_projection": "projection",
    }
    leaf_axes: ClassVar = {
        "prefix_keys": (None, "out"),
        "prefix_values": (None, "out"),
        "prefix_embedding": (None, None),
        "prefix_inner": (None, None),
        "prefix_inner_bias": (None,),
        "prefix_outer_keys": (None, "out"),
        "prefix_outer_values": (None, "out"),
        "prefix_bias_keys": ("out",),
        "prefix_bias_values": ("out",),
    }
    sizes: ClassVar = {"prefix_length": ("prefix_keys", 0)}
    peft_type: ClassVar[str] = "PREFIX_TUNING"

    prefix_length: int = 20
    init: str = "vocabulary"
    projection: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.prefix_length < 1:
            raise UserError(f"method.prefix_length is {self.prefix_length}; a prefix needs at least 1 key.")
        if self.init not in INITIALISATIONS:
            raise UserError(f"method.prefix_init is {self.init!r}; expected 'vocabulary' or 'normal'.")
        if self.projection < 0:
            raise UserError(f"method.prefix_projection is {self.projection}; expected a width, or 0 for no network.")
        if self.projection and self.init != "vocabulary":
            raise UserError(
                f"method.prefix_init is {self.init!r}, of keys and values that train themselves; those that "
                "method.prefix_projection makes begin as its network does: leave one of the two out."
            )

    @classmethod
    def official(cls, prefix_length: int = 10, projection: int = 512) -> "Prefix":
        """With the network that the authors train their prefixes by, of their hidden width."""
        return cls(prefix_length=prefix_length, projection=projection)

    def create(self, site, key, model):
        """As `init` says but for `vocabulary`, where `attach_to` puts the values that the whole model makes."""
        if self.projection:
            return ReparametrisedPrefix(self.prefix_length, site.d_in, self.projection, site.d_out, key)
        drawn = _DEVIATION * jax.random.normal(key, (2, self.prefix_length, site.d_out))
        return PrefixSite(drawn[0], drawn[1])

    def attach_to(self, place, key, model, made):
        if self.projection or self.init != "vocabulary":
            super().attach_to(place, key, model, made)
            return
        if id(model) not in made:  # nothing is attached yet: every attention reads as the base does
            made[id(model)] = _read(model, key, self.prefix_length)
        keys, values = made[id(model)][place.sites[0].any_layer]
        layers = np.asarray([site.layer for site in place.sites])
        put(place, PrefixSite(keys[layers], values[layers]))

    # --- in words ---

    def describe(self) -> str:
        network = f", made by a network of {self.projection} hidden units" if self.projection else ""
        return f"prefix tuning, {self.prefix_length} keys and values at each attention{network}"

    @property
    def reading(self) -> str:
        return "official" if self.projection else "paper"

    def flags(self) -> dict[str, Any]:
        network = {"prefix_projection": self.projection} if self.projection else {}
        init = {"prefix_init": self.init} if self.init != "vocabulary" else {}
        return {"prefix_length": self.prefix_length, **network, **init}

    def kept(self, leaves: Tensors) -> tuple["Prefix", Tensors]:
        """Of a prefix that a network made the keys and values alone: the network has done its work."""
        if not self.projection:
            return self, leaves
        at: dict[str, Tensors] = {}
        for name, value in leaves.items():
            path, _, leaf = name.rpartition("/")
            at.setdefault(path, {})[leaf] = value
        found = {f"{path}/{leaf}": value for path, own in at.items() for leaf, value in _plain(own).items()}
        return dataclasses.replace(self, projection=0), found

    # --- many in one batch ---

    def rows(self, site: Site, model: nnx.Module) -> Sequence[Rows]:
        return (Prefixes(),)

    def row_leaves(self, leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        plain = _plain(leaves)
        return {**plain, "is_prefix": np.ones(len(plain["prefix_keys"]), bool)}

    def row_size(self, leaf: str, size: int) -> str:
        return f"a prefix of {size}"

    # --- Hugging Face PEFT ---

    def peft_lacks_of(self, chosen: Sequence[Site], peft: PeftNames) -> str | None:
        if peft.task_type != "CAUSAL_LM":
            return "prefixes of an encoder-decoder, of which it gives the decoder's own attention one alone"
        everywhere = {site.path for site in peft.sites if site.kind == "attention"}
        if {site.path for site in chosen} != everywhere:
            return "prefixes of some layers and not of others"
        return None if peft.window is None else "a prefix that layers with a window see from anywhere"

    def peft_config(self, chosen: Sequence[Site], peft: PeftNames) -> dict[str, Any]:
        return {
            "num_virtual_tokens": self.prefix_length,
            "token_dim": chosen[0].d_out,
            "num_transformer_submodules": 1,
            "num_attention_heads": peft.num_kv_heads,
            "num_layers": peft.num_layers,
            "encoder_hidden_size": chosen[0].d_in,
            "prefix_projection": False,
        }

    @classmethod
    def peft_tensor(cls, leaf: str, value: np.ndarray) -> tuple[str, np.ndarray]:
        raise AssertionError("one tensor holds all leaves: `peft_tensors`")

    @classmethod
    def peft_tensors(cls, named: Mapping[str, np.ndarray], module: Callable[[str], str]) -> Tensors:
        """`prompt_embeddings: [prefix_length, layers * 2 * width]`: of each layer the keys, and then the values."""
        layers = sorted({int(name.split("/")[-3]) for name in named})
        (before,) = {name.rsplit("/", 3)[0] for name in named}
        (attention,) = {name.split("/")[-2] for name in named}
        return {
            "prompt_embeddings": np.concatenate(
                [
                    named[f"{before}/{layer}/{attention}/{leaf}"]
                    for layer in layers
                    for leaf in ("prefix_keys", "prefix_values")
                ],
                axis=1,
            )
        }

    @classmethod
    def from_peft(cls, file: PeftFile) -> tuple["Prefix", Tensors, list[str]]:
        whole, length = file.virtual_tokens("prefix")
        task = file.config.get("task_type")
        if file.names.task_type != "CAUSAL_LM" or task not in (None, file.names.task_type):
            raise UserError(
                f"{file.source} is a prefix for {task or 'no task'}; jpeft reads PEFT's prefixes for a CAUSAL_LM onto "
                "one. An encoder-decoder's PEFT gives the decoder's own attention alone: train it here."
            )
        attentions = [site for site in file.names.sites if site.kind == "attention"]
        width = attentions[0].d_out
        if whole.shape != (length, 2 * width * len(attentions)):
            raise RunFailed(
                f"{file.source}: prompt_embeddings has shape {whole.shape}; expected {length} virtual tokens with keys "
                f"and values of {width} for each of {len(attentions)} layers. Is the base of another size?"
            )
        leaves, parts = {}, np.split(whole, 2 * len(attentions), axis=1)
        for i, site in enumerate(attentions):
            leaves[f"{site.path}/prefix_keys"], leaves[f"{site.path}/prefix_values"] = parts[2 * i : 2 * i + 2]
        window, notes = file.names.window, []
        if window is not None:
            notes.append(
                f"layers that see {window} tokens back see the prefix from anywhere here; PEFT hides it from what is "
                "further away, so longer texts are read otherwise"
            )
        return cls(prefix_length=length), leaves, notes


def _read(model: Any, key: Array, length: int) -> dict[str, tuple[Array, Array]]:
    """Float32 keys and values of each attention, `[layers, length, width]`, while the base reads common pieces."""
    if not hasattr(model, "attended"):
        raise UserError(
            f"{type(model).__name__} does not say what its attentions make of a text, with which a prefix starts; use "
            "prefix_init='normal'."
        )
    graphdef, state = nnx.split(model)
    return _reader(graphdef, length)(state, key)


@functools.lru_cache(maxsize=8)
def _reader(graphdef: nnx.GraphDef, length: int) -> Callable[[nnx.State, Array], dict[str, tuple[Array, Array]]]:
    """A program for all models of one structure: many runs of one process begin from the same."""

    def read(state: nnx.State, key: Array) -> dict[str, tuple[Array, Array]]:
        base = nnx.merge(graphdef, state)
        found = base.attended(common_pieces(key, length, base.config.vocab_size))
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), found)

    return jax.jit(read)


def _plain(leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One attention's keys and values themselves, as a file and a bank have them."""
    if "prefix_keys" in leaves:
        return dict(leaves)
    keys, values = _made(leaves, np)
    return {"prefix_keys": keys, "prefix_values": values}
