"""Checks that a merged model computes what base and adapter do, before and after it is saved."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jpeft.adapters.files import open_adapter
from jpeft.errors import RunFailed, UserError
from jpeft.model.family import family_in, family_with, load_model
from jpeft.model.gguf import is_gguf
from jpeft.model.gguf_weights import GgufWeights
from jpeft.model.weight_files import open_checkpoint, weight_files


def refuse_unmergeable_file(directory: Path, base: Path) -> None:
    """Checks, without reading the weights of the base, that an adapter can be merged into it.

    Args:
      directory: the adapter's directory.
      base: the base's directory.

    Raises:
      UserError: it cannot, or the directory holds no adapter that fits the base.
      RunFailed: a file of the adapter is damaged.
    """
    family = family_in(base)
    opened = open_adapter(directory, family.abstract(family.read_config(base)))
    why = opened.method.unmergeable_at(opened.sites)
    if why is not None:
        raise UserError(f"{opened.method.name} cannot be merged into a {family.name}: {why}; use it as an adapter.")


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Largest absolute differences between logits on random tokens, all computed in float32.

    Attributes:
      moved: between the base and the base with the adapter; the scale to compare the others with.
      merged: between the base with the adapter and the merged weights before rounding.
      stored: between the base with the adapter and the merged weights as saved.
      reread: between the saved model as jpeft loads it and as a second, independent reader does (`model.plain`).
      same_choice: fraction of positions at which the saved model has the same most likely token as base and adapter.
    """

    moved: float
    merged: float
    stored: float
    reread: float
    same_choice: float


@dataclasses.dataclass(frozen=True)
class Probe:
    """Logits of three models for the same random tokens, as NumPy float32 arrays.

    Attributes:
      base: of the base.
      adapted: of the base with the adapter.
      merged: of the merged model.
    """

    base: np.ndarray
    adapted: np.ndarray
    merged: np.ndarray

    @classmethod
    def of(cls, base: Any, adapted: Any, merged: Any, *, directory: Path | None) -> "Probe":
        """Computes the logits and checks that they agree.

        Args:
          base: the base, with float32 activations like the other two.
          adapted: the base with the adapter.
          merged: the merged model.
          directory: the base's directory, which a second reader loads for comparison; None for a base that was
            quantized when it was loaded, whose weights are in no file.

        Raises:
          RunFailed: logits of the base, the adapted or the merged model are not finite, the second reader's logits of
            the base differ, or the merged model's differ from those of base and adapter.
        """
        probe = cls(probe_logits(base), probe_logits(adapted), probe_logits(merged))
        if not np.isfinite(probe.base).all():
            raise RunFailed("the base gives logits that are not finite; are its files damaged?")
        if not (np.isfinite(probe.adapted).all() and np.isfinite(probe.merged).all()):
            raise RunFailed("the model with its adapter gives logits that are not finite; is the adapter damaged?")
        if directory is not None:
            _read_again(probe.base, directory, base.config)
        if not _agree(probe.adapted, probe.merged):
            raise RunFailed(
                f"the merged weights give logits that differ by up to {_largest(probe.adapted, probe.merged):.3g} from "
                "those of base and adapter; nothing is written."
            )
        return probe

    def agreement(self, directory: Path) -> Agreement:
        """Loads the saved merged model and compares its logits with those of base and adapter.

        Args:
          directory: the directory of the merged model.

        Raises:
          RunFailed: its logits are not finite, because a merged weight overflows its dtype; or they differ too much
            from those before saving, or from a second reader's.
        """
        stored = load_model(directory)
        logits = probe_logits(stored)
        if not np.isfinite(logits).all():
            raise RunFailed("the merged weights are too large for the dtype they are stored in; try --dtype float32.")
        # Rounding to a 16-bit dtype changes logits by a hundredth of their spread or more, a wrong head by all of it.
        if not _agree(self.merged, logits, 0.5):
            raise RunFailed(
                f"the merged model as it was stored gives logits that differ by up to "
                f"{_largest(self.merged, logits):.3g} from those of the merged weights before they were stored; "
                "nothing is written."
            )
        return Agreement(
            moved=_largest(self.base, self.adapted),
            merged=_largest(self.adapted, self.merged),
            stored=_largest(self.adapted, logits),
            reread=_read_again(logits, directory, stored.config),
            same_choice=float(np.mean(np.argmax(logits, axis=-1) == np.argmax(self.adapted, axis=-1))),
        )


# Relative to the standard deviation of the logits. Float32 rounding gives a thousandth, a wrong head or scale 0.1.
_TOLERANCE = 0.01


def _agree(first: np.ndarray, second: np.ndarray, tolerance: float = _TOLERANCE) -> bool:
    return float(np.sqrt(np.mean((first - second) ** 2))) <= tolerance * float(np.std(first))


def _read_again(logits: np.ndarray, directory: Path, config: Any) -> float:
    """The largest difference from a second reader's logits of a directory. Raises `RunFailed` if they do not agree."""
    family = family_with(config)
    second = family.plain_logits(directory, *family.probe(config))
    if not _agree(logits, second):
        raise RunFailed(
            f"{directory} is not the same model to a second reader of its files: logits differ by up to "
            f"{_largest(logits, second):.3g}; please report its config.json. Nothing is written."
        )
    return _largest(logits, second)


def _largest(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first - second).max())


@jax.jit
def _logits(model: Any, probe: tuple[Any, ...]) -> Float[Array, "batch length vocab"]:
    return model(*probe)


def probe_logits(model: Any) -> Float[np.ndarray, "batch length vocab"]:
    """A model's logits for its family's `probe` inputs, with float32 matrix products on every device."""
    probe = family_with(model.config).probe(model.config)
    with jax.default_matmul_precision("highest"):
        return np.asarray(_logits(model, tuple(map(jnp.asarray, probe))))


def stored_dtype(base: Path) -> Any:
    """The dtype in which a base's directory stores its matrices.

    It is float32 for files of PyTorch and Flax, and for quantized GGUF files, whose dequantized numbers need it to be
    exact.
    """
    if is_gguf(base):
        return np.dtype(GgufWeights(base).stored_dtype)
    name, _ = weight_files(base)
    if name != "model.safetensors":  # the other formats are read whole, PyTorch's as float32
        return np.dtype(np.float32)
    checkpoint = open_checkpoint(base)
    first = (slice(0, 1), slice(0, 1))
    family = family_in(base)
    config = family.read_config(base)
    query = f"{family.module_name(config, f'{next(iter(family.stacks(config)))}/layers/0/self_attention/q')}.weight"
    # Some files of decoder-only models lack the prefix that names have in transformers.
    stored = next(name for name in sorted(checkpoint.names()) if f".{query}".endswith(f".{name}"))
    return checkpoint.read(stored, first).dtype
