"""How exactly a merged model does what base and adapter did together, before and after it is stored."""

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
    """Raises `UserError` where what a directory's adapter does is no change of the base's weights; reads none of them.

    Raises as `open_adapter`, too.
    """
    family = family_in(base)
    opened = open_adapter(directory, family.abstract(family.read_config(base)))
    why = opened.method.unmergeable_at(opened.sites)
    if why is not None:
        raise UserError(f"{opened.method.name} cannot be merged into a {family.name}: {why}; use it as an adapter.")


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How a merged model's logits compare with those of base and adapter, on tokens drawn at random; all in float32.

    Attributes:
      moved: the largest difference that the adapter makes to the base's logits; what the others are to be held against.
      merged: the largest between base and adapter and the merged weights before rounding.
      stored: the same of the weights as they were stored.
      reread: the largest between what jpeft opens and what a second reader makes of the same files (`model.plain`).
      same_choice: share of positions at which the stored model finds the same token the most likely.
    """

    moved: float
    merged: float
    stored: float
    reread: float
    same_choice: float


@dataclasses.dataclass(frozen=True)
class Probe:
    """Logits of the base, of base and adapter, and of the merged model, for the same random tokens: numpy float32."""

    base: np.ndarray
    adapted: np.ndarray
    merged: np.ndarray

    @classmethod
    def of(cls, base: Any, adapted: Any, merged: Any, *, directory: Path | None) -> "Probe":
        """Runs the three; all of the same base and with float32 activations.

        Args:
          directory: of the base, which is read a second time in another way; None of one that was rounded, which no
            file holds.

        Raises:
          RunFailed: a logit of the adapted or the merged model is not finite, the base is another to the second reader,
            or the merged weights do not do what base and adapter do.
        """
        probe = cls(probe_logits(base), probe_logits(adapted), probe_logits(merged))
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
        """Opens a stored merged model anew and compares its logits with those of base and adapter.

        Raises:
          RunFailed: one of its logits is not finite: a merged weight is beyond what its dtype holds; or it is another
            to a second reader.
        """
        stored = load_model(directory)
        logits = probe_logits(stored)
        if not np.isfinite(logits).all():
            raise RunFailed("the merged weights are too large for the dtype they are stored in; try --dtype float32.")
        # Rounding to half the bits moves logits by a hundredth of their spread and more, another head by all of it.
        if not _agree(self.merged, logits, 0.5):
            raise RunFailed(
                f"the merged model as it was stored gives logits that differ by up to "
                f"{_largest(self.merged, logits):.3g} from those of base and adapter; nothing is written."
            )
        return Agreement(
            moved=_largest(self.base, self.adapted),
            merged=_largest(self.adapted, self.merged),
            stored=_largest(self.adapted, logits),
            reread=_read_again(logits, directory, stored.config),
            same_choice=float(np.mean(np.argmax(logits, axis=-1) == np.argmax(self.adapted, axis=-1))),
        )


# Of the logits' own spread. Rounding in float32 is a thousandth of it, another head or scale a hundred times more.
_TOLERANCE = 0.01


def _agree(first: np.ndarray, second: np.ndarray, tolerance: float = _TOLERANCE) -> bool:
    return float(np.sqrt(np.mean((first - second) ** 2))) <= tolerance * float(np.std(first))


def _read_again(logits: np.ndarray, directory: Path, config: Any) -> float:
    """How far a second reader's logits of a directory are from these. Raises `RunFailed`: it reads another model."""
    family = family_with(config)
    again = family.plain_logits(directory, *family.probe(config))
    if not _agree(logits, again):
        raise RunFailed(
            f"{directory} is not the same model to a second reader of its files: logits differ by up to "
            f"{_largest(logits, again):.3g}; please report its config.json. Nothing is written."
        )
    return _largest(logits, again)


def _largest(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first - second).max())


@jax.jit
def _logits(model: Any, probe: tuple[Any, ...]) -> Float[Array, "batch length vocab"]:
    return model(*probe)


def probe_logits(model: Any) -> Float[np.ndarray, "batch length vocab"]:
    """A model's logits of its family's `probe`, its products exact to float32 on every device."""
    probe = family_with(model.config).probe(model.config)
    with jax.default_matmul_precision("highest"):
        return np.asarray(_logits(model, tuple(map(jnp.asarray, probe))))


def stored_dtype(base: Path) -> Any:
    """The dtype in which a base's directory stores its matrices; float32 where PyTorch or Flax stored it.

    Of a quantised GGUF file float32 as well: what its numbers come to is exact in that alone.
    """
    if is_gguf(base):
        return np.dtype(GgufWeights(base).stored_dtype)
    name, _ = weight_files(base)
    if name != "model.safetensors":  # the others are read whole, and PyTorch's as float32
        return np.dtype(np.float32)
    checkpoint = open_checkpoint(base)
    first = (slice(0, 1), slice(0, 1))
    family = family_in(base)
    config = family.read_config(base)
    query = f"{family.module_name(config, f'{next(iter(family.stacks(config)))}/layers/0/self_attention/q')}.weight"
    # Some files of decoder-only models lack what transformers has before their names.
    stored = next(name for name in sorted(checkpoint.names()) if f".{query}".endswith(f".{name}"))
    return checkpoint.read(stored, first).dtype
