"""Configs of decoder-only models: architecture choices and sizes, read from and written to `config.json`.

All models run on one network (`jpeft.model.decoder`); the table `CHOICES` lists their differences.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32

from jpeft.errors import UserError
from jpeft.files import check_fields
from jpeft.model.config_fields import (
    ACTIVATIONS,
    MOST_LAYERS,
    MOST_ROWS,
    MOST_WIDTH,
    NO_TOKEN,
    Ends,
    activation_called,
    check_ends,
    several_ends,
)
from jpeft.model.rotary import RotaryScaling, read_scaling
from jpeft.words import shortened

_BLOOM_BIASES = ("q", "k", "v", "o", "up", "down")

# Architecture choices by the `model_type` of config.json; a field that a row omits has `DecoderConfig`'s default.
CHOICES: dict[str, dict[str, Any]] = {
    "llama": dict(norm="rms", positions="halves", gated=True, activation="silu"),
    "mistral": dict(norm="rms", positions="halves", gated=True, activation="silu"),
    "qwen2": dict(norm="rms", positions="halves", gated=True, activation="silu", biases=("q", "k", "v")),
    "qwen3": dict(norm="rms", positions="halves", gated=True, activation="silu", qk_norm=True),
    "gpt_neo": dict(norm="layer", positions="learned", biases=("o", "up", "down"), scales_scores=False),
    "gptj": dict(norm="layer", positions="pairs", biases=("up", "down", "lm_head"), parallel=True),
    "bloom": dict(norm="layer", positions="alibi", biases=_BLOOM_BIASES, embedding_norm=True),
}
_LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")


@dataclasses.dataclass(frozen=True)
class DecoderConfig(Ends):
    """A decoder-only architecture: its choices, then its sizes.

    Attributes:
      model_type: a key of `CHOICES`, as in `config.json`.
      norm: `rms` (RMSNorm) or `layer` (LayerNorm).
      positions: the kind of position encoding. `learned`: a vector per position is added to the embeddings. `halves`
        and `pairs`: rotary embeddings, in which features `i` and `i + rotary_width / 2` of a head form a pair, or
        features `2i` and `2i + 1`. `alibi`: each score gets a term proportional to the key's position.
      parallel: whether attention and feed-forward read the same normed input and both add to the residual; otherwise
        they run in sequence.
      gated: whether the feed-forward is `down(act(gate x) * up x)` rather than `down(act(up x))`.
      activation: the feed-forward's activation, one of `ACTIVATIONS`.
      biases: names of the linear maps that have a bias.
      scales_scores: whether scores are divided by `sqrt(d_head)`.
      qk_norm: whether queries and keys are normed within each head.
      embedding_norm: whether there is a norm right after the embedding.
      d_head: the width of a head.
      num_kv_heads: the number of heads of keys and values, each of which serves an equal number of neighbouring query
        heads.
      rotary_width: the number of leading features of a head that are rotated.
      rotary_base: the base of the rotary frequencies (`rope_theta`).
      rotary_scaling: how these are scaled to longer texts, as Llama 3.1's are; None if they are not.
      max_positions: the number of learned positions; for other models, the context length that they were trained with.
      window: the sliding window of the layers in `windowed`: the number of tokens that a token attends to, itself
        included.
      windowed: indices of the layers with a sliding window.
      dropout_rate: dropout of the embeddings, the attention weights and each sublayer's output.
      other_eos_token_ids: further tokens at which generation stops; `config.json` has them in `eos_token_id`'s list.
    """

    model_type: str = "llama"
    norm: str = "layer"
    positions: str = "halves"
    parallel: bool = False
    gated: bool = False
    activation: str = "gelu_new"
    biases: tuple[str, ...] = ()
    scales_scores: bool = True
    qk_norm: bool = False
    embedding_norm: bool = False

    vocab_size: int = 49152
    d_model: int = 576
    d_head: int = 64
    d_ff: int = 1536
    num_layers: int = 30
    num_heads: int = 9
    num_kv_heads: int = 3
    rotary_width: int = 64
    rotary_base: float = 10000.0
    rotary_scaling: RotaryScaling | None = None
    max_positions: int = 2048
    window: int | None = None
    windowed: tuple[int, ...] = ()
    norm_epsilon: float = 1e-5
    dropout_rate: float = 0.0
    tie_word_embeddings: bool = True
    pad_token_id: int = 0
    bos_token_id: int | None = None
    eos_token_id: int = 2
    other_eos_token_ids: tuple[int, ...] = ()

    @property
    def stacks(self) -> dict[str, int]:
        """The number of blocks of each stack by its name; the only one is `decoder`."""
        return {"decoder": self.num_layers}

    @property
    def context_length(self) -> int | None:
        """The longest text that the model was trained with, in tokens; None if longer ones are its purpose (ALiBi).

        Learned positions end there. Rotary ones go on, to angles that the model has never seen.
        """
        return None if self.positions == "alibi" else self.max_positions

    @property
    def padding_id(self) -> int:
        """The id that fills up prompts and answers: none of the vocabulary, since a prompt may end with any token."""
        return NO_TOKEN

    @property
    def decoder_start_token_id(self) -> int:
        """The placeholder that packed labels begin with; the network replaces it by the last token of the prompt."""
        return self.pad_token_id

    def rotary_frequencies(self) -> Float32[np.ndarray, " half"]:
        """The rotary frequency of each feature pair, in radians per position."""
        steps = np.arange(0, self.rotary_width, 2, dtype=np.float32) / np.float32(self.rotary_width)
        frequencies = np.float32(1) / np.float32(self.rotary_base) ** steps
        return self.rotary_scaling.scaled(frequencies, self.rotary_base) if self.rotary_scaling else frequencies

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "config.json") -> "DecoderConfig":
        """Read a Hugging Face config; fields that do not affect the network are ignored.

        Args:
          values: the fields of `config.json`.
          source: the file's name in error messages.

        Raises:
          UserError: its model is none of `CHOICES`, a size is missing, out of range or of the wrong type, or it asks
            for a feature that this network does not have.
        """
        check_fields(values, {"model_type": str}, source)
        kind = values.get("model_type") or ""
        if kind not in CHOICES:
            raise UserError(f"{source}: model_type is {kind[:60]!r}; expected one of {', '.join(CHOICES)}.")
        if kind == "gptj" and "rotary_dim" in values and values["rotary_dim"] is None:
            values = {**values, "rotary_dim": 0}  # in `transformers`, null means the whole head, and absent means 64
        if values.get("pad_token_id") == -1:  # in the first Llamas' files: none
            values = {**values, "pad_token_id": None}
        values = {_ALSO.get(kind, {}).get(key, key): value for key, value in values.items() if value is not None}
        keys = _KEYS[kind]
        check_fields(values, {key: _TYPES[name] for name, key in keys.items() if name in _TYPES}, source)
        known = {name: values[key] for name, key in keys.items() if values.get(key) is not None}
        missing = [keys[name] for name in ("vocab_size", "d_model", "num_layers", "num_heads") if name not in known]
        if missing:
            raise UserError(f"{source}: lacks {', '.join(missing)}; it must be the config.json of a {kind} model.")
        known.setdefault("eos_token_id", 0)
        known |= several_ends(known["eos_token_id"])
        known.setdefault("pad_token_id", known["eos_token_id"])
        for name, (least, most) in _RANGES.items():
            _check_range(name, known, least, most, keys, source)
        for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
            _check_range(name, known, 0, known["vocab_size"] - 1, keys, source)
        check_ends(known.get("other_eos_token_ids", ()), known["vocab_size"], source)
        heads = known["num_heads"]
        known.setdefault("num_kv_heads", heads)
        known.setdefault("d_ff", 4 * known["d_model"])
        if "d_head" not in known:
            if known["d_model"] % heads:
                raise UserError(
                    f"{source}: {keys['d_model']} is {known['d_model']}, which {heads} heads do not divide; expected a "
                    f"multiple of {heads}."
                )
            known["d_head"] = known["d_model"] // heads
        if heads % known["num_kv_heads"]:
            raise UserError(
                f"{source}: {known['num_kv_heads']} heads of keys and values for {heads} of queries; expected a "
                f"divisor of {heads}."
            )
        known |= _own_choices(kind, values, known, source)
        for name in ("norm_epsilon", "rotary_base"):
            if name in known and not 0 < known[name] < 1e12:
                raise UserError(f"{source}: {keys.get(name, 'rope_theta')} is {known[name]!r}; expected more than 0.")
        rates = [values[key] for key in _DROPOUTS[kind] if values.get(key) is not None]
        if not all(isinstance(rate, int | float) and 0 <= rate < 1 for rate in rates):
            raise UserError(f"{source}: a dropout rate is {shortened(rates)}; expected at least 0 and less than 1.")
        known["dropout_rate"] = float(max(rates, default=0.0))
        floats = {name: float(known[name]) for name in ("norm_epsilon", "rotary_base") if name in known}
        return cls(**{"model_type": kind, **CHOICES[kind], **known, **floats})

    def to_dict(self) -> dict[str, Any]:
        """The fields of a `config.json` with which `transformers` opens the model."""
        held = {key: getattr(self, name) for name, key in _KEYS[self.model_type].items()}
        held |= {"eos_token_id": list(self.ends)} if self.other_eos_token_ids else {}
        rates = dict.fromkeys(_DROPOUTS[self.model_type], self.dropout_rate)
        held |= rates | {"model_type": self.model_type, "architectures": [AUTO_CLASSES[self.model_type]]}
        if self.model_type in _LLAMA_LIKE:
            held |= {"rope_theta": self.rotary_base, "hidden_act": self.activation}
            # transformers 5 reads `rope_parameters`, older versions `rope_theta` and `rope_scaling`.
            scaling = self.rotary_scaling.to_dict() if self.rotary_scaling else {"rope_type": "default"}
            held["rope_parameters"] = scaling | {"rope_theta": self.rotary_base}
            held |= {"rope_scaling": scaling} if self.rotary_scaling else {}
            if self.model_type in ("llama", "qwen3"):
                held["attention_bias"] = "q" in self.biases
            if self.model_type == "llama":
                held["mlp_bias"] = "up" in self.biases
            if self.model_type == "mistral":
                held["sliding_window"] = self.window
            if self.model_type in ("qwen2", "qwen3"):
                kinds = [f"{'sliding' if i in self.windowed else 'full'}_attention" for i in range(self.num_layers)]
                held |= {"use_sliding_window": self.window is not None, "layer_types": kinds}
                held |= {"sliding_window": self.window} if self.window is not None else {}
        elif self.model_type == "gpt_neo":
            kinds = ["local" if i in self.windowed else "global" for i in range(self.num_layers)]
            held |= {"attention_types": [[[kind], 1] for kind in kinds], "attention_layers": kinds}
            held |= {"window_size": self.window or 256, "activation_function": self.activation}
        elif self.model_type == "gptj":
            held |= {"activation_function": self.activation, "rotary_dim": self.rotary_width}
        return held


AUTO_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gpt_neo": "GPTNeoForCausalLM",
    "gptj": "GPTJForCausalLM",
    "bloom": "BloomForCausalLM",
}

# The keys of our fields in `config.json`.
_IDS = {name: name for name in ("vocab_size", "tie_word_embeddings", "pad_token_id", "bos_token_id", "eos_token_id")}
_LLAMA_KEYS = _IDS | dict(
    d_model="hidden_size",
    d_ff="intermediate_size",
    d_head="head_dim",
    num_layers="num_hidden_layers",
    num_heads="num_attention_heads",
    num_kv_heads="num_key_value_heads",
    max_positions="max_position_embeddings",
    norm_epsilon="rms_norm_eps",
)
_KEYS: dict[str, dict[str, str]] = {
    **dict.fromkeys(_LLAMA_LIKE, _LLAMA_KEYS),
    "gpt_neo": _IDS
    | dict(
        d_model="hidden_size",
        d_ff="intermediate_size",
        num_layers="num_layers",
        num_heads="num_heads",
        max_positions="max_position_embeddings",
        norm_epsilon="layer_norm_epsilon",
    ),
    "gptj": _IDS
    | dict(
        d_model="n_embd",
        d_ff="n_inner",
        num_layers="n_layer",
        num_heads="n_head",
        max_positions="n_positions",
        norm_epsilon="layer_norm_epsilon",
    ),
    "bloom": _IDS
    | dict(d_model="hidden_size", num_layers="n_layer", num_heads="n_head", norm_epsilon="layer_norm_epsilon"),
}
# Older names of some of these keys.
_ALSO = {"bloom": {"n_embed": "hidden_size", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}}
_DROPOUTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_LLAMA_LIKE, ("attention_dropout",)),
    "gpt_neo": ("resid_dropout", "embed_dropout", "attention_dropout"),
    "gptj": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    "bloom": ("hidden_dropout", "attention_dropout"),
}
_TYPES: dict[str, type | tuple[type, ...]] = {
    "norm_epsilon": (int, float),
    "tie_word_embeddings": bool,
    "eos_token_id": (int, list),
}
_RANGES = {
    "vocab_size": (1, MOST_ROWS),
    **dict.fromkeys(("d_model", "d_head", "d_ff", "num_heads", "num_kv_heads", "max_positions"), (1, MOST_WIDTH)),
    "num_layers": (1, MOST_LAYERS),
}
_DEFAULT_TIES = {"gpt_neo": True, "bloom": True}  # `tie_word_embeddings` if absent; False for other models
_DEFAULT_EPSILON = {**dict.fromkeys(_LLAMA_LIKE, 1e-6)}


def _check_range(
    name: str, known: Mapping[str, Any], least: int, most: int, keys: Mapping[str, str], source: str
) -> None:
    value = known.get(name)
    if value is not None and (type(value) is not int or not least <= value <= most):
        key = keys.get(name, name)
        raise UserError(f"{source}: {key} is {shortened(value)}; expected an integer from {least} to {most:,}.")


def _own_choices(kind: str, values: Mapping[str, Any], known: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Fields that override or complete the row of `CHOICES`, from the model's own config."""
    layers, width = known["num_layers"], known["d_head"]
    found: dict[str, Any] = {
        "tie_word_embeddings": known.get("tie_word_embeddings", _DEFAULT_TIES.get(kind, False)),
        "norm_epsilon": known.get("norm_epsilon", _DEFAULT_EPSILON.get(kind, 1e-5)),
        "rotary_width": width,
    }
    if kind in _LLAMA_LIKE:
        found |= _rotary(values, known.get("max_positions", DecoderConfig.max_positions), source)
        found["activation"] = _activation(values, "hidden_act", "silu", source)
        if kind in ("llama", "qwen3") and values.get("attention_bias"):
            found["biases"] = ("q", "k", "v", "o")
        if kind == "llama" and values.get("mlp_bias"):
            found["biases"] = (*found.get("biases", ()), "gate", "up", "down")
        found |= _window(kind, values, layers, source)
    if kind == "gpt_neo":
        found["activation"] = _activation(values, "activation_function", "gelu_new", source)
        kinds = _gpt_neo_layers(values, layers, source)
        windowed = tuple(i for i, one in enumerate(kinds) if one == "local")
        found |= {"window": values.get("window_size") or 256, "windowed": windowed} if windowed else {}
    if kind == "gptj":
        found["activation"] = _activation(values, "activation_function", "gelu_new", source)
        found["rotary_width"] = values.get("rotary_dim", 64) or width
    if kind == "bloom":
        for key in ("apply_residual_connection_post_layernorm", "slow_but_exact"):
            if values.get(key):
                raise UserError(
                    f"{source}: {key} is {shortened(values[key])}, which jpeft does not have; expected false."
                )
    own_keys = {"window": "window_size" if kind == "gpt_neo" else "sliding_window", "rotary_width": "rotary_dim"}
    for name in own_keys:
        _check_range(name, found, 1, MOST_WIDTH if name == "window" else width, own_keys, source)
    if CHOICES[kind]["positions"] in ("halves", "pairs") and found["rotary_width"] % 2:
        raise UserError(f"{source}: {found['rotary_width']} numbers of a head are rotated; expected an even number.")
    return found


def _rotary(values: Mapping[str, Any], max_positions: int, source: str) -> dict[str, Any]:
    """The fields `rotary_base` and `rotary_scaling`.

    They are in `rope_theta` and `rope_scaling`, in configs of transformers 5 in `rope_parameters`. As there, the second
    counts where a config has both of the latter.
    """
    held = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if not isinstance(held, Mapping):
        raise UserError(f"{source}: rope_parameters or rope_scaling is {shortened(held)}; expected an object.")
    for where in (held, values):
        if (share := where.get("partial_rotary_factor")) not in (None, 1):
            raise UserError(
                f"{source}: partial_rotary_factor is {shortened(share)}, but jpeft rotates the whole head of this kind "
                "of model; expected 1, or no such field."
            )
    base = held.get("rope_theta") or values.get("rope_theta") or 10000.0
    if isinstance(base, bool) or not isinstance(base, int | float):
        raise UserError(f"{source}: rope_theta is {shortened(base)}; expected a number.")
    trained = "original_max_position_embeddings"
    held = {**held, trained: values.get(trained) or held.get(trained)}
    scaling = read_scaling(held, max_positions, source)
    if scaling and base <= 1:
        raise UserError(f"{source}: rope_theta is {shortened(base)}; expected more than 1.")
    return {"rotary_base": float(base), "rotary_scaling": scaling}


def _activation(values: Mapping[str, Any], key: str, default: str, source: str) -> str:
    asked = values.get(key) or default
    name = activation_called(asked) if isinstance(asked, str) else asked
    if name not in ACTIVATIONS:
        raise UserError(f"{source}: {key} is {shortened(asked)}; expected one of {', '.join(ACTIVATIONS)}.")
    return name


def _window(kind: str, values: Mapping[str, Any], layers: int, source: str) -> dict[str, Any]:
    """The fields `window` and `windowed`: all layers of a Mistral, and some of a Qwen's, may have a sliding window."""
    window = values.get("sliding_window")
    if kind == "llama" or window is None or (kind != "mistral" and not values.get("use_sliding_window")):
        return {}
    if kind == "mistral":
        return {"window": window, "windowed": tuple(range(layers))}
    kinds = values.get("layer_types")
    if kinds is None:
        first = values.get("max_window_layers", 28)
        _check_range("max_window_layers", {"max_window_layers": first}, 0, MOST_WIDTH, {}, source)
        return {"window": window, "windowed": tuple(range(first, layers))}
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise UserError(f"{source}: layer_types is {shortened(kinds)}; expected a list of {layers}.")
    return {"window": window, "windowed": tuple(i for i, one in enumerate(kinds) if one == "sliding_attention")}


def _gpt_neo_layers(values: Mapping[str, Any], layers: int, source: str) -> list[str]:
    """The attention type of each layer, `global` or `local`.

    As in `transformers`, `attention_layers`, the list itself, counts where a config also has `attention_types`.
    """
    key = "attention_types" if values.get("attention_layers") is None else "attention_layers"
    types = values.get(key, [[["global", "local"], 12]])
    try:
        if key == "attention_layers":
            kinds = list(types)
        else:
            kinds = [kind for several, times in types for _ in range(min(times, MOST_LAYERS)) for kind in several]
    except (TypeError, ValueError):
        kinds = []
    if len(kinds) != layers or any(kind not in ("global", "local") for kind in kinds):
        raise UserError(
            f"{source}: {key} is {shortened(types)}; expected 'global' or 'local' for each of {layers} layers."
        )
    return kinds


def _released(kind: str, **sizes: Any) -> DecoderConfig:
    heads, width = sizes["num_heads"], sizes["d_model"]
    own = {"num_kv_heads": heads, "d_head": width // heads, "rotary_width": width // heads, "d_ff": 4 * width}
    return DecoderConfig(**{"model_type": kind, **CHOICES[kind], **own, **sizes})


def _gpt_neo(d_model: int, num_layers: int, num_heads: int) -> DecoderConfig:
    local = tuple(range(1, num_layers, 2))
    ids = dict(pad_token_id=50256, bos_token_id=50256, eos_token_id=50256)
    sizes = dict(vocab_size=50257, d_model=d_model, num_layers=num_layers, num_heads=num_heads)
    return _released("gpt_neo", window=256, windowed=local, **sizes, **ids)


def _bloom(d_model: int, num_layers: int, num_heads: int) -> DecoderConfig:
    ids = dict(pad_token_id=3, bos_token_id=1, eos_token_id=2)
    return _released("bloom", vocab_size=250880, d_model=d_model, num_layers=num_layers, num_heads=num_heads, **ids)


# Configs of released checkpoints, to count parameters without downloading anything.
RELEASED = {
    "EleutherAI/gpt-neo-125m": _gpt_neo(768, 12, 12),
    "EleutherAI/gpt-neo-1.3B": _gpt_neo(2048, 24, 16),
    "EleutherAI/gpt-j-6b": _released(
        "gptj",
        vocab_size=50400,
        d_model=4096,
        num_layers=28,
        num_heads=16,
        rotary_width=64,
        tie_word_embeddings=False,
        pad_token_id=50256,
        bos_token_id=50256,
        eos_token_id=50256,
    ),
    "bigscience/bloom-560m": _bloom(1024, 24, 16),
    "bigscience/bloom-7b1": _bloom(4096, 30, 32),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _released(
        "llama",
        vocab_size=49152,
        d_model=576,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        d_ff=1536,
        rotary_base=100000.0,
        max_positions=8192,
        pad_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "meta-llama/Llama-3.2-1B": _released(
        "llama",
        vocab_size=128256,
        d_model=2048,
        num_layers=16,
        num_heads=32,
        num_kv_heads=8,
        d_ff=8192,
        rotary_base=500000.0,
        rotary_scaling=RotaryScaling("llama3", 32.0, 8192),
        max_positions=131072,
        pad_token_id=128001,
        bos_token_id=128000,
        eos_token_id=128001,
    ),
    "Qwen/Qwen2.5-0.5B": _released(
        "qwen2",
        vocab_size=151936,
        d_model=896,
        num_layers=24,
        num_heads=14,
        num_kv_heads=2,
        d_ff=4864,
        rotary_base=1000000.0,
        max_positions=32768,
        norm_epsilon=1e-6,
        pad_token_id=151643,
        bos_token_id=151643,
        eos_token_id=151643,
    ),
}
