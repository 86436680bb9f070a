"""The config of a T5, read from and written to `config.json`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

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
from jpeft.words import shortened


@dataclasses.dataclass(frozen=True)
class T5Config(Ends):
    """One architecture for T5 1.0 (`relu`, tied head), T5 1.1 and FLAN-T5 (`gated-gelu`, untied head).

    Field names and meanings are those of the Hugging Face `config.json`. `d_kv * num_heads` need not equal `d_model`
    (FLAN-T5-small: 64 * 6 against 512).

    Attributes:
      tie_word_embeddings: whether the head is the embedding. For a checkpoint, its weights decide (`t5_weights.load`).
      scale_decoder_outputs: whether the decoder's output is multiplied by `d_model ** -0.5` before the head; None means
        if the head is tied, as in T5 1.0. New models of transformers 5 may be tied and not scaled.
      dense_act_fn: the activation, if it is not the one that `feed_forward_proj` names; else None.
      other_eos_token_ids: further tokens at which generation stops; `config.json` has them in `eos_token_id`'s list.
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
    scale_decoder_outputs: bool | None = None
    dense_act_fn: str | None = None
    pad_token_id: int = 0
    eos_token_id: int = 1
    other_eos_token_ids: tuple[int, ...] = ()
    decoder_start_token_id: int = 0

    @property
    def stacks(self) -> dict[str, int]:
        """The number of blocks of each stack by its name, `encoder` and `decoder`."""
        return {"encoder": self.num_layers, "decoder": self.num_decoder_layers}

    @property
    def context_length(self) -> int | None:
        """None: beyond a distance all relative positions are alike, so that no length is new to the model."""
        return None

    @property
    def padding_id(self) -> int:
        """The id that fills up inputs and answers.

        `pad_token_id`, unless that ends inputs, too. The network masks what follows an input's last other token, so the
        token may occur before that, such as an unknown one where both are the same.
        """
        return NO_TOKEN if self.pad_token_id in self.ends else self.pad_token_id

    @property
    def is_gated(self) -> bool:
        """Whether the feed-forward has two input projections, `act(wi_0 x) * wi_1 x`, instead of one."""
        return self.feed_forward_proj.startswith("gated-")

    @property
    def activation(self) -> str:
        """The activation, one of `ACTIVATIONS`; `gated-gelu` means the tanh approximation."""
        if self.dense_act_fn is not None:
            return self.dense_act_fn
        name = self.feed_forward_proj.removeprefix("gated-")
        return "gelu_new" if self.feed_forward_proj == "gated-gelu" else activation_called(name)

    @property
    def scales_outputs(self) -> bool:
        """Whether the decoder's output is multiplied by `d_model ** -0.5` before the head."""
        return self.tie_word_embeddings if self.scale_decoder_outputs is None else self.scale_decoder_outputs

    def with_head(self, *, tied: bool) -> "T5Config":
        """A copy with a tied or a separate head; whether outputs are scaled does not change."""
        scales = self.scales_outputs
        return dataclasses.replace(
            self, tie_word_embeddings=tied, scale_decoder_outputs=None if scales == tied else scales
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "config.json") -> "T5Config":
        """Read a Hugging Face T5 or mT5 config; fields that do not affect the network are ignored.

        Whether the head is tied is only a guess here, since the weights decide (`t5_weights.load`).

        Args:
          values: the fields of `config.json`.
          source: the file's name in error messages.

        Raises:
          UserError: it is not a T5, a size is missing, out of range or of the wrong type, or the activation is unknown.
        """
        check_fields(values, _KINDS, source)
        family = values.get("model_type") or "t5"
        if family == "umt5":
            raise UserError(
                f"{source}: umt5 has a relative bias in every layer, which this network does not; use a t5."
            )
        if family not in ("t5", "mt5"):
            raise UserError(f"{source}: model_type is {family[:60]!r}; jpeft adapts T5-family models ('t5').")
        known = {name: values[name] for name in _FIELDS if values.get(name) is not None}
        missing = [
            name for name in ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads") if name not in known
        ]
        if missing:
            raise UserError(f"{source}: lacks {', '.join(missing)}; it must be the config.json of a T5 checkpoint.")
        # T5's convention; `T5Family.notes` says so.
        known.setdefault("decoder_start_token_id", known.get("pad_token_id", cls.pad_token_id))
        known.setdefault("num_decoder_layers", known["num_layers"])
        known |= several_ends(known.get("eos_token_id"))
        known |= _head(values, family) | _feed_forward(values, family, source)
        for name, (least, most) in _ranges(known.get("vocab_size", 0)).items():
            value = known.get(name, _DEFAULTS[name])
            if type(value) is not int or not least <= value <= most:
                raise UserError(
                    f"{source}: {name} is {shortened(value)}; expected an integer from {least} to {most:,}."
                )
        check_ends(known.get("other_eos_token_ids", ()), known["vocab_size"], source)
        if not 0 <= known.get("dropout_rate", 0) < 1:
            shown = shortened(known["dropout_rate"])
            raise UserError(f"{source}: dropout_rate is {shown}; expected at least 0 and less than 1.")
        if not 0 < known.get("layer_norm_epsilon", 1) <= 1:
            shown = shortened(known["layer_norm_epsilon"])
            raise UserError(f"{source}: layer_norm_epsilon is {shown}; expected more than 0 and at most 1.")
        floats: dict[str, Any] = {name: float(known[name]) for name in _FLOATS if name in known}
        config = cls(**known | floats)
        if config.relative_attention_max_distance <= config.relative_attention_num_buckets // 2:
            raise UserError(
                f"{source}: relative_attention_max_distance is {config.relative_attention_max_distance}; expected more "
                f"than half of the {config.relative_attention_num_buckets} buckets."
            )
        return config

    def to_dict(self) -> dict[str, Any]:
        """The fields of a `config.json` that `transformers` opens as a `T5ForConditionalGeneration`."""
        # For transformers 4, `tie_word_embeddings` means both a tied head and scaled outputs; version 5 reads
        # `scale_decoder_outputs` and takes the head from the weights.
        held = dataclasses.asdict(self)
        del held["other_eos_token_ids"]
        return {
            **held,
            "eos_token_id": list(self.ends) if self.other_eos_token_ids else self.eos_token_id,
            "tie_word_embeddings": self.tie_word_embeddings and self.scales_outputs,
            "scale_decoder_outputs": self.scales_outputs,
            "architectures": ["T5ForConditionalGeneration"],
            "model_type": "t5",
            "is_encoder_decoder": True,
            "is_gated_act": self.is_gated,
            "dense_act_fn": self.activation,
            "use_cache": True,
        }


_FLOATS = ("dropout_rate", "layer_norm_epsilon")
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(T5Config)}
_FIELDS = _DEFAULTS.keys() - {
    "tie_word_embeddings",
    "scale_decoder_outputs",
    "feed_forward_proj",
    "dense_act_fn",
    "other_eos_token_ids",
}
_KINDS: dict[str, type | tuple[type, ...]] = {
    **{field.name: field.type for field in dataclasses.fields(T5Config) if field.type in (float, str, bool)},
    "model_type": str,
    "scale_decoder_outputs": bool,
    "dense_act_fn": str,
    "is_gated_act": bool,
}


def _ranges(vocab_size: Any) -> dict[str, tuple[int, int]]:
    """The range of each integer field, `vocab_size` first, since ids have to lie within it."""
    width, layers = (1, MOST_WIDTH), (1, MOST_LAYERS)
    last_id = vocab_size - 1 if type(vocab_size) is int else 0
    return {
        "vocab_size": (1, MOST_ROWS),
        **dict.fromkeys(("d_model", "d_kv", "d_ff", "num_heads"), width),
        **dict.fromkeys(("num_layers", "num_decoder_layers"), layers),
        "relative_attention_num_buckets": (4, MOST_WIDTH),  # two directions, near and far in each
        "relative_attention_max_distance": (1, MOST_WIDTH),
        **dict.fromkeys(("pad_token_id", "eos_token_id", "decoder_start_token_id"), (0, last_id)),
    }


def _head(values: Mapping[str, Any], family: str) -> dict[str, bool | None]:
    """Fields of the head as transformers 5 reads a config; whether the head is tied is a guess (the weights decide)."""
    if family == "mt5":  # never scaled, and never tied in released models, whatever transformers 5 writes
        return {"tie_word_embeddings": False, "scale_decoder_outputs": None}
    # In configs of version 4, `tie_word_embeddings` decides about scaling; version 5 always writes it as true.
    scaled = values.get("tie_word_embeddings") is not False
    if "scale_decoder_outputs" in values:
        scaled = bool(values["scale_decoder_outputs"])
    return {"tie_word_embeddings": scaled, "scale_decoder_outputs": None}


def _feed_forward(values: Mapping[str, Any], family: str, source: str) -> dict[str, str | None]:
    """Gate and activation; as in transformers, `is_gated_act` and `dense_act_fn` override `feed_forward_proj`."""
    asked = values.get("feed_forward_proj") or ("gated-gelu" if family == "mt5" else "relu")
    gate, _, name = asked.rpartition("-")
    if gate not in ("", "gated"):
        raise UserError(
            f"{source}: feed_forward_proj is {shortened(asked)}; expected an activation, or gated-ACTIVATION."
        )
    named = "gelu_new" if asked == "gated-gelu" else name
    activation = activation_called(values.get("dense_act_fn") or named)
    for what, function in (("feed_forward_proj", activation_called(named)), ("dense_act_fn", activation)):
        if function not in ACTIVATIONS:
            raise UserError(f"{source}: {what} is {shortened(values[what])}; expected one of {', '.join(ACTIVATIONS)}.")
    gated = values.get("is_gated_act")
    gated = bool(gate) if gated is None else gated
    projection = f"{'gated-' if gated else ''}{activation}".replace("gated-gelu_new", "gated-gelu")
    exact = gated and activation == "gelu"  # `gated-gelu` means the approximation
    return {"feed_forward_proj": projection, "dense_act_fn": "gelu" if exact else None}


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

# Configs of released checkpoints, to count parameters without downloading anything.
RELEASED = {
    **{f"google/flan-t5-{size}": config for size, config in _FLAN_SIZES.items()},
    **{f"google/t5-v1_1-{size}": config for size, config in _FLAN_SIZES.items()},
    "google-t5/t5-small": _original(512, 64, 2048, 6, 8),
    "google-t5/t5-base": _original(768, 64, 3072, 12, 12),
    "google-t5/t5-large": _original(1024, 64, 4096, 24, 16),
    "google-t5/t5-3b": _original(1024, 128, 16384, 24, 32),
    "google-t5/t5-11b": _original(1024, 128, 65536, 24, 128),
}
