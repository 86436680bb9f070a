"""Sizes of a T5, as `config.json` of a released checkpoint states them."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jpeft.errors import UserError

ACTIVATIONS = ("relu", "gelu", "gelu_new", "silu")


@dataclasses.dataclass(frozen=True)
class T5Config:
    """One architecture for T5 1.0 (`relu`, tied head), T5 1.1 and FLAN-T5 (`gated-gelu`, untied head).

    Field names and meanings are those of the Hugging Face `config.json`. `d_kv * num_heads` need not equal `d_model`
    (FLAN-T5-small: 64 * 6 against 512).
    """

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"
    tie_word_embeddings: bool = True
    pad_token_id: int = 0
    eos_token_id: int = 1
    decoder_start_token_id: int = 0

    @property
    def is_gated(self) -> bool:
        """Whether the feed-forward block has two input projections, `act(wi_0 x) * wi_1 x`, instead of one."""
        return self.feed_forward_proj.startswith("gated-")

    @property
    def activation(self) -> str:
        """One of `ACTIVATIONS`. Released `gated-gelu` checkpoints mean the tanh approximation."""
        name = self.feed_forward_proj.removeprefix("gated-")
        return "gelu_new" if self.feed_forward_proj == "gated-gelu" else name

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "config.json") -> "T5Config":
        """Reads the fields of a Hugging Face T5 config and ignores what does not change the network.

        Raises:
          UserError: it is not a T5, a size is missing or not a positive integer, or the activation is unknown.
        """
        if values.get("model_type", "t5") not in ("t5", "mt5", "umt5"):
            raise UserError(f"{source}: model_type is {values['model_type']!r}; jpeft adapts T5-family models ('t5').")
        if values.get("model_type") == "umt5":
            raise UserError(
                f"{source}: umt5 has a relative bias in every layer, which this network does not; use a t5."
            )
        missing = [
            key for key in ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads") if key not in values
        ]
        if missing:
            raise UserError(f"{source}: lacks {', '.join(missing)}; it must be the config.json of a T5 checkpoint.")
        fields = {field.name for field in dataclasses.fields(cls)}
        known = {key: value for key, value in values.items() if key in fields and value is not None}
        known.setdefault("num_decoder_layers", known["num_layers"])
        if isinstance(known.get("eos_token_id"), list):
            known["eos_token_id"] = known["eos_token_id"][0]
        # transformers 5 rewrites `tie_word_embeddings` to True and keeps what it meant under this name.
        if "scale_decoder_outputs" in values:
            known["tie_word_embeddings"] = bool(values["scale_decoder_outputs"])
        for field in dataclasses.fields(cls):
            value = known.get(field.name, field.default)
            least = 0 if field.name.endswith("_id") else 1
            if field.type is int and (not isinstance(value, int) or value < least):
                raise UserError(f"{source}: {field.name} is {value!r}; expected an integer of at least {least}.")
            if field.type is float:
                if not isinstance(value, int | float):
                    raise UserError(f"{source}: {field.name} is {value!r}; expected a number.")
                known[field.name] = float(value)
        config = cls(**known)
        if config.activation not in ACTIVATIONS:
            raise UserError(
                f"{source}: feed_forward_proj is {config.feed_forward_proj!r}; known: {', '.join(ACTIVATIONS)}."
            )
        return config

    @classmethod
    def from_file(cls, path: Path) -> "T5Config":
        """Reads `config.json`. Raises `UserError` as `from_dict`, or when the file is absent or not JSON."""
        try:
            values = json.loads(path.read_text())
        except FileNotFoundError:
            raise UserError(
                f"{path.parent} holds no config.json; a model directory in Hugging Face layout has one."
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not valid JSON ({error}); is the download complete?") from None
        if not isinstance(values, dict):
            raise UserError(f"{path} holds no keys; it must be the config.json of a T5 checkpoint.")
        return cls.from_dict(values, source=str(path))

    def to_dict(self) -> dict[str, Any]:
        """The `config.json` that `transformers` opens as a `T5ForConditionalGeneration`."""
        return {
            **dataclasses.asdict(self),
            "architectures": ["T5ForConditionalGeneration"],
            "model_type": "t5",
            "is_encoder_decoder": True,
            "is_gated_act": self.is_gated,
            "dense_act_fn": self.activation,
            "use_cache": True,
        }


def _flan(d_model: int, d_ff: int, num_layers: int, num_heads: int) -> T5Config:
    return T5Config(
        d_model=d_model,
        d_ff=d_ff,
        num_layers=num_layers,
        num_decoder_layers=num_layers,
        num_heads=num_heads,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )


def _original(d_model: int, d_kv: int, d_ff: int, num_layers: int, num_heads: int) -> T5Config:
    return T5Config(
        d_model=d_model, d_kv=d_kv, d_ff=d_ff, num_layers=num_layers, num_decoder_layers=num_layers, num_heads=num_heads
    )


_FLAN_SIZES = {
    "small": _flan(512, 1024, 8, 6),
    "base": _flan(768, 2048, 12, 12),
    "large": _flan(1024, 2816, 24, 16),
    "xl": _flan(2048, 5120, 24, 32),
    "xxl": _flan(4096, 10240, 24, 64),
}

# Sizes of released checkpoints, so that parameters can be counted with no weights and no network.
RELEASED = {
    **{f"google/flan-t5-{size}": config for size, config in _FLAN_SIZES.items()},
    **{f"google/t5-v1_1-{size}": config for size, config in _FLAN_SIZES.items()},
    "google-t5/t5-small": _original(512, 64, 2048, 6, 8),
    "google-t5/t5-base": _original(768, 64, 3072, 12, 12),
    "google-t5/t5-large": _original(1024, 64, 4096, 24, 16),
    "google-t5/t5-3b": _original(1024, 128, 16384, 24, 32),
    "google-t5/t5-11b": _original(1024, 128, 65536, 24, 128),
}
