"""What a family of models says of itself, in one place, to whoever works with models of any family.

A family is a network with its config, its files, and what a row becomes for it. Its network is a
`jpeft.model.language_model.LanguageModel`, whose class also says what its parts are to PEFT methods (`site_roles`). A
new family is a network, a subclass of `Family` and a place in `families`.
"""

import abc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jpeft.errors import UserError
from jpeft.files import read_json_object
from jpeft.model.abstract import abstract
from jpeft.model.gguf import is_gguf
from jpeft.model.tokenizer import Tokenizer

Batch = dict[str, np.ndarray]  # arrays by name, rows first, as a family's network takes them


class Family(abc.ABC):
    """One network and all that is particular to it.

    Attributes:
      name: by which messages call one of its models: `T5`.
      tag: by which the hub calls such models.
      network: its class, called as `network(config, dtype=..., rngs=...)`.
      config_type: the class of its config.
      model_types: what a `config.json` of it has as `model_type`.
      released: configs of released models by their names on the hub.
      task_type: Hugging Face PEFT's word for what such a model does.
      auto_class: the class of `transformers` that opens one.
    """

    name: ClassVar[str]
    tag: ClassVar[str]
    network: ClassVar[type[nnx.Module]]
    config_type: ClassVar[type]
    model_types: ClassVar[tuple[str, ...]]
    released: ClassVar[Mapping[str, Any]]
    task_type: ClassVar[str]
    auto_class: ClassVar[str]

    # --- files ---

    @abc.abstractmethod
    def read_config(self, directory: Path) -> Any:
        """The config of a model's directory. Raises `UserError`: it is no such model, or a size is wrong."""

    @abc.abstractmethod
    def load(self, directory: Path, **options: Any) -> Any:
        """The model of a directory; options as of `jpeft.model.t5_weights.load`."""

    @abc.abstractmethod
    def save(self, model: Any, directory: Path, *, kind: type[nnx.Variable] = nnx.Param, dtype: Any = None) -> None:
        """Writes a model's weights and its config to a directory that `transformers` opens.

        Args:
          kind: the type of variable that holds the weights; `Adapter` after full tuning.
          dtype: of the stored weights; None keeps each as it is.
        """

    @abc.abstractmethod
    def open_filling(self, directory: Path) -> Any:
        """The model of a directory, its weights not yet read: a `jpeft.model.weights.Filling`. Raises as `load`."""

    @abc.abstractmethod
    def written_in_few_bits(self, config: Any) -> tuple[Sequence[str], Mapping[str, str]]:
        """Of a file in few bits: modules that `transformers` is told of as wide, and tensors that are copies of others.

        Raises:
          UserError: such a model is not written so.
        """

    @abc.abstractmethod
    def module_name(self, config: Any, path: str) -> str:
        """The name in `transformers` of the module at one of our paths, in a model of that config."""

    def fused_rows(self, config: Any, path: str) -> np.ndarray | None:
        """Of the output of the module in `transformers` those rows that are our path's; None where they are all of it.

        A family whose files have several of our maps in one says so here.
        """
        return None

    @abc.abstractmethod
    def plain_logits(self, directory: Path, *probe: np.ndarray) -> np.ndarray:
        """Logits of `probe` by a second reader of a directory, which shares nothing of what the first makes of it."""

    def tokenizer(self, directory: Path, config: Any) -> Tokenizer:
        """The tokenizer of a model's directory. Raises `UserError` as `Tokenizer.load`."""
        continues = self.task_type == "CAUSAL_LM"
        # Of a decoder-only model they are known by the tokenizer's files: with no padding of its own, any id may be it.
        special = () if continues else (config.pad_token_id, config.decoder_start_token_id)
        return Tokenizer.load(
            directory,
            vocab_size=config.vocab_size,
            eos_token_id=config.eos_token_id,
            continues=continues,
            other_ends=config.other_eos_token_ids,
            special_ids=special,
        )

    # --- the network ---

    @abc.abstractmethod
    def build(self, config: Any, *, dtype: Any, seed: int = 0) -> Any:
        """A network with new, random float32 weights, computing in `dtype`."""

    @abc.abstractmethod
    def arrange(self, model: Any, *, scan_layers: bool | None, remat: str | None = None) -> None:
        """Settles how a model's layers run, in place.

        Args:
          scan_layers: by one compiled loop, or one after the other; None is a loop for more than eight layers.
          remat: what the backward pass makes anew, one of `jpeft.model.stack.REMAT_POLICIES`; None leaves it.
        """

    @abc.abstractmethod
    def stacks(self, config: Any) -> dict[str, int]:
        """Number of blocks of each of its stacks by the stack's name, such as `{"encoder": 12, "decoder": 12}`."""

    @abc.abstractmethod
    def probe(self, config: Any) -> tuple[np.ndarray, ...]:
        """Random tokens, always the same, with which a model is called to compare its logits with another's."""

    # --- rows ---

    @abc.abstractmethod
    def batch(
        self,
        inputs: Sequence[np.ndarray],
        targets: Sequence[np.ndarray],
        shape: tuple[int, int],
        *,
        batch_size: int,
        config: Any,
        row_weights: Sequence[float] | None = None,
    ) -> Batch:
        """Rows of tokens as the network is trained on them: arrays by name, `decoder_target_tokens` and
        `decoder_loss_weights` (`[batch_size, target length]`, 0 on padding) among them.

        Args:
          inputs, targets: ids of each row, at most `batch_size` of them; missing rows are padding without weight.
          shape: the lengths that inputs and targets are filled up to.
          row_weights: of each row, how much its tokens count; None is 1 for all.
        """

    @abc.abstractmethod
    def widened(self, batches: Sequence[Batch], config: Any) -> list[Batch]:
        """Batches of as many rows each, all filled up to the longest inputs and targets among them.

        What they say is the same, but for how much padding stands beside it.
        """

    @abc.abstractmethod
    def batch_shapes(self, rows: int, shape: tuple[int, int]) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of the arrays of a batch of `rows` rows padded to `shape`, by name."""

    @abc.abstractmethod
    def cache_numbers(self, config: Any, shape: tuple[int, int], *, parts: int = 1) -> int:
        """How many numbers a device keeps as keys and values of one row while its answer is generated.

        Args:
          shape: padded lengths of the input and of the answer.
          parts: over how many devices the heads are cut.
        """

    def abstract(self, config: Any, *, dtype: Any = np.float32) -> Any:
        """The network with shapes (`jax.ShapeDtypeStruct`) in the place of weights: nothing is allocated."""
        return abstract(self.network, config, dtype=dtype)


def families() -> tuple[Family, ...]:
    """All families of models that are known, each a network with what is particular to it."""
    from jpeft.model.decoder_family import DECODER_FAMILY
    from jpeft.model.t5_family import T5_FAMILY

    return (T5_FAMILY, DECODER_FAMILY)


def family_of(model: nnx.Module) -> Family | None:
    """The family of a model, or None: a module of somebody else's."""
    return next((family for family in families() if isinstance(model, family.network)), None)


def family_with(config: Any) -> Family:
    """The family that a config, such as a `T5Config`, is of."""
    return next(family for family in families() if isinstance(config, family.config_type))


def family_in(directory: Path) -> Family:
    """The family of a directory's model, or of a GGUF file's.

    Raises:
      UserError: it has no `config.json`, or one of a family that jpeft does not have.
      RunFailed: the GGUF file is damaged.
    """
    file = directory / "config.json"
    kind = None
    if is_gguf(directory):
        from jpeft.model.gguf_weights import gguf_config

        kind = gguf_config(directory)["model_type"]
    elif file.is_file():
        kind = read_json_object(file).get("model_type")
    first, *others = families()  # the first says what is wrong with what is none of them
    if isinstance(kind, str) and kind not in first.model_types and not kind.endswith("t5"):
        known = [name for family in others for name in family.model_types]
        if kind not in known:
            raise UserError(
                f"{file}: model_type is {kind[:60]!r}; jpeft adapts T5-family models ('t5') and decoder-only ones "
                f"({', '.join(known)})."
            )
    return next((family for family in families() if kind in family.model_types), first)


def abstract_model(config: Any) -> Any:
    """The network of a config with shapes in the place of weights."""
    return family_with(config).abstract(config)


def stack_names() -> list[str]:
    """The names of all layer stacks of all families, such as `encoder`, `decoder`, `blocks`."""
    return list(dict.fromkeys(stack for family in families() for stack in family.stacks(family.config_type())))


def compute_dtype(name: str) -> jnp.dtype:
    """What activations are computed in, by the name that a config or a flag gives it.

    `auto` is bfloat16 where there is an accelerator that is fast in it.
    """
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def load_model(directory: Path, **options: Any) -> Any:
    """The model of a directory, of whichever family. Options and errors as of `jpeft.model.t5_weights.load`."""
    return family_in(directory).load(directory, **options)


def save_model(model: Any, directory: Path, *, kind: type[nnx.Variable] = nnx.Param, dtype: Any = None) -> None:
    """Writes a model as `transformers` opens it. Raises `UserError`: it is of no family."""
    family = family_of(model)
    if family is None:
        raise UserError(
            f"{type(model).__name__} is of no family that jpeft can write as a whole model; write the state that "
            "flax.nnx.split gives of it, by Orbax for instance."
        )
    family.save(model, directory, kind=kind, dtype=dtype)
