"""Prefix tuning: trainable keys and values put before those of each attention (Li & Liang 2021)."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
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
from jpeft.peft.sites import Site, leaf_at
from jpeft.peft.variables import Adapter
from jpeft.peft.views import Original
from jpeft.peft.wrapping import put

INITIALISATIONS = ("vocabulary", "normal")
_STDDEV = 0.02  # of random initial values, small enough that scores and outputs of the prefix start near 0


class PrefixSite(nnx.Module):
    """Keys and values `[prefix_length, width]` before those of one attention, visible to every query.

    They are passed to the attention as its argument `before`, since positions are handled by the model.
    """

    def __init__(self, keys: Float[Array, "*layers length width"], values: Float[Array, "*layers length width"]):
        self.prefix_keys = Adapter(keys)
        self.prefix_values = Adapter(values)

    def keys_values(self) -> tuple[Float[Array, "*layers length width"], Float[Array, "*layers length width"]]:
        """The keys and values of the prefix; `layers` is present where the layers of a block are stacked."""
        return self.prefix_keys[...], self.prefix_values[...]

    def num_before(self) -> tuple[int, int]:
        """The allocated and the used length of the prefix, which are the same in every row; see `Rows.num_before`."""
        length = self.keys_values()[0].shape[-2]
        return length, length

    def __call__(self, compute, *args: Any) -> Any:
        keys, values = self.keys_values()
        return compute(*args, before=(keys[None], values[None], None))


class ReparametrisedPrefix(PrefixSite):
    """A prefix computed by a network with one hidden layer from a trained embedding of each position.

    Keys and values that are trained directly are sensitive to the learning rate and the initialisation (Li & Liang
    2021, section 4.3). Each attention has its own network; after training only its outputs are saved
    (`Prefix.to_save`).
    """

    def __init__(self, length: int, d_model: int, hidden: int, width: int, key: Array):
        names = ("embedding", "inner", "inner_bias", "outer_keys", "outer_values", "bias_keys", "bias_values")
        keys: dict[str, Array] = dict(zip(names, jax.random.split(key, len(names)), strict=True))

        def uniform(name: str, *shape: int, fan_in: int) -> Adapter:
            bound = fan_in**-0.5  # PyTorch's initialisation of linear layers, which PEFT uses
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
        return _network_outputs(leaves, jnp)


def _network_outputs(leaves: Mapping[str, Any], xp: Any) -> tuple[Any, Any]:
    """The keys and values that the network of `ReparametrisedPrefix` computes; `xp` is `numpy` or `jax.numpy`."""

    def row(name: str) -> Any:
        return leaves[name][..., None, :]

    hidden = xp.tanh(leaves["prefix_embedding"] @ leaves["prefix_inner"] + row("prefix_inner_bias"))
    keys = hidden @ leaves["prefix_outer_keys"] + row("prefix_bias_keys")
    return keys, hidden @ leaves["prefix_outer_values"] + row("prefix_bias_values")


@dataclasses.dataclass(frozen=True)
class Prefixes(Rows):
    """A prefix per row of a batch, or none. Shorter ones are aligned with the start of the text and padded before."""

    leaves: tuple[str, ...] = ("prefix_keys", "prefix_values", "is_prefix")  # [batch, prefix_length, width]
    padded_at_start: ClassVar[tuple[str, ...]] = ("prefix_keys", "prefix_values", "is_prefix")

    def identity(self, leaf: str) -> np.ndarray | np.generic:
        return np.False_ if leaf == "is_prefix" else np.float32(0)

    def num_before(self, leaves: Leaves) -> tuple[int, Any]:
        visible = leaves["is_prefix"]  # [layers, batch, prefix_length], the same in all layers that have a prefix
        counts = jnp.max(jnp.sum(visible, axis=-1), axis=tuple(range(visible.ndim - 2)))
        return visible.shape[-1], counts[:, None]

    def __call__(self, leaves: Leaves, compute: Original, *args: Any) -> Any:
        return compute(*args, before=(leaves["prefix_keys"], leaves["prefix_values"], leaves["is_prefix"]))


@dataclasses.dataclass(frozen=True)
class Prefix(AddedModules, PeftLayout):
    """Prefix tuning (Li & Liang 2021): trained keys and values before those of each attention, also of cross-attention.

    Every query attends to the prefix, whatever its mask and the window of its layer. In a T5 the prefix has no position
    bias. In a decoder-only model it is placed as in PEFT, like the key-value cache of a text of as many tokens: learned
    positions of the text start after it, and with rotary positions or ALiBi its keys have the positions before the
    text's.

    Attributes:
      prefix_length: number of keys and values per attention.
      init: `vocabulary`: the base's keys and values of common vocabulary pieces, which Li & Liang (section 7.4) find
        best with little data; `normal`: small random numbers.
      projection: hidden width of a network that computes keys and values during training (section 4.3); 0 trains them
        directly.
    """

    name: ClassVar[str] = "prefix"
    kinds: ClassVar[tuple[str, ...]] = ("attention",)
    unmergeable: ClassVar[str | None] = "its keys and values are beside those of the text, not a change of a weight"
    # P-Tuning v2 (Liu et al. 2022), which trains keys and values directly like the default here, uses 5e-3 to 1e-2.
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
    peft_settings: ClassVar = {"num_virtual_tokens": int}
    peft_ignored: ClassVar[Collection[str]] = """
        num_transformer_submodules token_dim num_layers num_attention_heads
        encoder_hidden_size prefix_projection init_weights
    """.split()

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
                f"method.prefix_init is {self.init!r}, for keys and values that are trained directly; those of "
                "method.prefix_projection start from its network: leave one of the two out."
            )

    @classmethod
    def official(cls, prefix_length: int = 10, projection: int = 512) -> "Prefix":
        """Prefix tuning as published: trained through a network, whose hidden width is the authors'."""
        return cls(prefix_length=prefix_length, projection=projection)

    def create(self, site, key, model):
        """Creates a random prefix; `attach_to` initialises from the vocabulary, which needs the whole model."""
        if self.projection:
            return ReparametrisedPrefix(self.prefix_length, site.d_in, self.projection, site.d_out, key)
        drawn = _STDDEV * jax.random.normal(key, (2, self.prefix_length, site.d_out))
        return PrefixSite(drawn[0], drawn[1])

    def attach_to(self, place, key, model, made):
        if self.projection or self.init != "vocabulary":
            super().attach_to(place, key, model, made)
            return
        if id(model) not in made:  # computed at the first place, before any prefix changes the activations
            made[id(model)] = _vocabulary_prefix(model, key, self.prefix_length)
        keys, values = made[id(model)][place.sites[0].any_layer]
        layers = np.asarray([site.layer for site in place.sites])
        put(place, PrefixSite(keys[layers], values[layers]))

    # --- description ---

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

    def to_save(self, leaves: Tensors) -> tuple["Prefix", Tensors]:
        """Replaces the leaves of the network by the keys and values that it computes."""
        if not self.projection:
            return self, leaves
        by_path: dict[str, Tensors] = {}
        for name, value in leaves.items():
            path, _, leaf = name.rpartition("/")
            by_path.setdefault(path, {})[leaf] = value
        direct = {
            leaf_at(path, leaf): value for path, own in by_path.items() for leaf, value in _keys_and_values(own).items()
        }
        return dataclasses.replace(self, projection=0), direct

    # --- many adapters in one batch ---

    def rows(self, site: Site, model: nnx.Module) -> Sequence[Rows]:
        return (Prefixes(),)

    def row_leaves(self, leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        direct = _keys_and_values(leaves)
        return {**direct, "is_prefix": np.ones(len(direct["prefix_keys"]), bool)}

    def row_size(self, leaf: str, size: int) -> str:
        return f"a prefix of {size}"

    # --- Hugging Face PEFT ---

    def peft_lacks_at(self, chosen: Sequence[Site], peft: PeftNames) -> str | None:
        if peft.task_type != "CAUSAL_LM":
            return "prefixes of an encoder-decoder, of which it adapts only the decoder's self-attention"
        everywhere = {site.path for site in peft.sites if site.kind == "attention"}
        if {site.path for site in chosen} != everywhere:
            return "prefixes of some layers and not of others"
        return None if peft.window is None else "a prefix that is visible beyond the window of a layer"

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
    def peft_tensors(cls, named: Mapping[str, np.ndarray], module: Callable[[str], str]) -> Tensors:
        """One tensor, `prompt_embeddings: [prefix_length, layers * 2 * width]`: keys, then values, of each layer."""
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
                f"{file.source} is a prefix for {task or 'no task'}; jpeft reads PEFT's prefixes of decoder-only "
                "models (CAUSAL_LM). Those of an encoder-decoder adapt only the decoder's self-attention; train one "
                "here."
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
                f"layers with a window of {window} tokens see the prefix from any distance here, and in PEFT only "
                "within the window, so outputs for longer texts differ"
            )
        return cls(prefix_length=length), leaves, notes


def _vocabulary_prefix(model: Any, key: Array, length: int) -> dict[str, tuple[Array, Array]]:
    """The base's keys and values of random common pieces, float32 `[layers, length, width]`, by path of attention."""
    if not hasattr(model, "attended"):
        raise UserError(
            f"{type(model).__name__} has no method `attended`, which returns the keys and values that a prefix starts "
            "from; use prefix_init='normal'."
        )
    graphdef, state = nnx.split(model)
    return _compiled_attended(graphdef, length)(state, key)


@functools.lru_cache(maxsize=8)
def _compiled_attended(
    graphdef: nnx.GraphDef, length: int
) -> Callable[[nnx.State, Array], dict[str, tuple[Array, Array]]]:
    """The program of `_vocabulary_prefix`, compiled once for all runs of a process on models of one structure."""

    def read(state: nnx.State, key: Array) -> dict[str, tuple[Array, Array]]:
        base = nnx.merge(graphdef, state)
        found = base.attended(common_pieces(key, length, base.config.vocab_size))
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), found)

    return jax.jit(read)


def _keys_and_values(leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The leaves of a `PrefixSite` for one attention, from its leaves or from those of a `ReparametrisedPrefix`."""
    if "prefix_keys" in leaves:
        return dict(leaves)
    keys, values = _network_outputs(leaves, np)
    return {"prefix_keys": keys, "prefix_values": values}
