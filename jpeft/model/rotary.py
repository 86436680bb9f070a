"""Frequencies of rotary embeddings (RoPE), as trained or scaled to texts longer than those of the first training.

Three ways of scaling are known: `linear` (position interpolation, Chen et al. 2023), `llama3` (Llama 3.1 to 3.3) and
`yarn` (Peng et al. 2023). All of them change the frequencies only, YaRN the sizes of sines and cosines, too.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32

from jpeft.errors import UserError
from jpeft.model.config_fields import MOST_WIDTH
from jpeft.words import shortened

SCALINGS = ("linear", "llama3", "yarn")


@dataclasses.dataclass(frozen=True)
class RotaryScaling:
    """How a model's rotary frequencies are scaled: `rope_scaling` or `rope_parameters` of its `config.json`.

    Attributes:
      kind: one of `SCALINGS`.
      factor: by how much longer texts may be; the lowest frequencies are divided by it, and by `linear` all of them.
      trained_positions: of `llama3` and `yarn`: the text length in tokens before scaling, against which wavelengths
        are compared (`original_max_position_embeddings`).
      slow_turns, fast_turns: of `llama3` and `yarn`: frequencies with fewer turns than `slow_turns` over
        `trained_positions` are divided by `factor`, those with more than `fast_turns` stay; in between the two mix.
      whole_pairs: of `yarn`: whether these bounds are rounded outwards to whole feature pairs (`truncate`).
      size: of `yarn`: the factor of cosines and sines (`attention_factor`).
    """

    kind: str
    factor: float
    trained_positions: int = 0
    slow_turns: float = 1.0
    fast_turns: float = 4.0
    whole_pairs: bool = True
    size: float = 1.0

    def scaled(self, frequencies: Float32[np.ndarray, " half"], base: float) -> Float32[np.ndarray, " half"]:
        """The scaled frequencies, in radians per position.

        Args:
          frequencies: those before scaling, of one feature pair each, in falling order.
          base: the base that they are powers of.
        """
        if self.kind == "linear":
            kept = np.zeros_like(frequencies)
        elif self.kind == "llama3":
            turns = frequencies * np.float32(self.trained_positions / (2 * math.pi))
            kept = (turns - self.slow_turns) / (self.fast_turns - self.slow_turns)
        else:
            first, last = (
                self._pair_with(turns, len(frequencies), base) for turns in (self.fast_turns, self.slow_turns)
            )
            if self.whole_pairs:
                first, last = math.floor(first), math.ceil(last)
            first, last = max(first, 0), min(last, 2 * len(frequencies) - 1)
            kept = 1 - (np.arange(len(frequencies)) - first) / (last - first or 1e-3)
        kept = np.clip(kept, 0, 1).astype(np.float32)
        return kept * frequencies + (1 - kept) * (frequencies / np.float32(self.factor))

    def _pair_with(self, turns: float, half: int, base: float) -> float:
        """The index, not rounded, of the feature pair that makes so many turns over `trained_positions`."""
        return half * math.log(self.trained_positions / (2 * math.pi * turns)) / math.log(base)

    def to_dict(self) -> dict[str, Any]:
        """The fields of `rope_scaling` in a `config.json`."""
        held: dict[str, Any] = {"rope_type": self.kind, "factor": self.factor}
        if self.kind == "linear":
            return held
        slow, fast = _TURNS[self.kind]
        held |= {slow: self.slow_turns, fast: self.fast_turns}
        held["original_max_position_embeddings"] = self.trained_positions
        return held | ({"attention_factor": self.size, "truncate": self.whole_pairs} if self.kind == "yarn" else {})


_TURNS = {"llama3": ("low_freq_factor", "high_freq_factor"), "yarn": ("beta_slow", "beta_fast")}
_DEFAULT_TURNS: dict[str, tuple[float | None, float | None]] = {"llama3": (None, None), "yarn": (1.0, 32.0)}


def read_scaling(values: Mapping[str, Any], max_positions: int, source: str) -> RotaryScaling | None:
    """The scaling that a config asks for; None for frequencies as trained.

    Args:
      values: the fields of `rope_scaling` or `rope_parameters`.
      max_positions: the model's text length, of which `original_max_position_embeddings` is the default.
      source: the file's name in error messages.

    Raises:
      UserError: it is none of `SCALINGS`, or a number is missing or out of range.
    """
    kind = values.get("rope_type") or values.get("type") or "default"
    if kind == "default":
        return None
    if kind not in SCALINGS:
        known = ", ".join(("default", *SCALINGS))
        raise UserError(
            f"{source}: rope_type is {shortened(kind)}, which jpeft does not have; expected one of {known}."
        )

    def number(key: str, least: float, default: float | None = None) -> float:
        value = default if values.get(key) is None else values[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= MOST_WIDTH:
            raise UserError(
                f"{source}: {key} of the rope_type {kind} is {shortened(value)}; expected a number from {least:g} to "
                f"{MOST_WIDTH:,}."
            )
        return float(value)

    if kind == "linear":
        return RotaryScaling("linear", number("factor", 1))
    trained = number("original_max_position_embeddings", 1, max_positions)
    slow_key, fast_key = _TURNS[kind]
    slow_default, fast_default = _DEFAULT_TURNS[kind]
    slow, fast = number(slow_key, 1e-3, slow_default), number(fast_key, 1e-3, fast_default)
    if trained != int(trained) or slow >= fast:
        raise UserError(
            f"{source}: original_max_position_embeddings is {trained:g}, {slow_key} {slow:g} and {fast_key} {fast:g}; "
            f"expected an integer, and {slow_key} below {fast_key}."
        )
    if kind == "llama3":
        return RotaryScaling("llama3", number("factor", 1), int(trained), slow, fast)
    factor = number("factor", 1, max_positions / trained)
    growth = [1 + 0.1 * number(key, 0, 1) * math.log(factor) for key in ("mscale", "mscale_all_dim")]
    both = values.get("mscale") and values.get("mscale_all_dim")
    size = number("attention_factor", 0, growth[0] / growth[1] if both else 1 + 0.1 * math.log(factor))
    whole = values.get("truncate", True)
    if not isinstance(whole, bool):
        raise UserError(f"{source}: truncate of the rope_type yarn is {shortened(whole)}; expected true or false.")
    return RotaryScaling("yarn", factor, int(trained), slow, fast, whole, size)
