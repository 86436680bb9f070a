"""The interface of a model family, and functions that work with models of any family.

A family combines a network with its config, its checkpoint files and the layout of its batches. The network is a
`jpeft.model.language_model.LanguageModel` whose class attribute `site_roles` maps the names of its modules to the roles
that PEFT methods and sharding rules know. To add a family, write a network and a subclass of `Family`, and list that in
`families`.
"""

import abc
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jpeft.errors import UserError
from jpeft.files import read_json_object
from jpeft.fingerprints import fingerprint
from jpeft.model.abstract import abstract
from jpeft.model.chat import NONE, chat_template_of
from jpeft.model.ends import settings_passed_over
from jpeft.model.gguf import is_gguf
from jpeft.model.tokenizer import Tokenizer, tokenizer_files

Batch = dict[str, np.ndarray]  # arrays by name, rows first, as a family's network takes them


class Family(abc.ABC):
    """A network and everything that is specific to it.

    Attributes:
      name: what messages call one of its models, such as `T5`.
      tag: the Hugging Face hub's tag of such models.
      network: the network's class, called as `network(config, dtype=..., rngs=...)`.
      modules: the network's attributes that hold weights or sites of PEFT methods, stacks included.
      config_type: the class of its config.
      model_types: the values of `model_type` in its `config.json`.
      released: configs of released models by their names on the hub.
      task_type: Hugging Face PEFT's `task_type` of such models.
      auto_class: the `transformers` class that opens them.
      continues: whether a model continues the prompt (decoder-only), rather than reading it with an encoder.
    """

    name: ClassVar[str]
    tag: ClassVar[str]
    network: ClassVar[type[nnx.Module]]
    modules: ClassVar[tuple[str, ...]]
    config_type: ClassVar[type]
    model_types: ClassVar[tuple[str, ...]]
    released: ClassVar[Mapping[str, Any]]
    task_type: ClassVar[str]
    auto_class: ClassVar[str]
    continues: ClassVar[bool]

    # --- files ---

    def recognises(self, model_type: str) -> bool:
        """Whether this family reads, or refuses with a reason of its own, configs of this `model_type`."""
        return model_type in self.model_types

    @abc.abstractmethod
    def read_config(self, directory: Path) -> Any:
        """Read the config of a model's directory. Raises `UserError` if it is of another family or invalid."""

    @abc.abstractmethod
    def load(self, directory: Path, **options: Any) -> Any:
        """Load the model of a directory; options as of `jpeft.model.t5_weights.load`."""

    @abc.abstractmethod
    def save(self, model: Any, directory: Path, *, kind: type[nnx.Variable] = nnx.Param, dtype: Any = None) -> None:
        """Write a model's weights and config to a directory that `transformers` can open.

        Args:
          model: the model to save.
          directory: where to write; made if it does not exist.
          kind: the type of variable that holds the weights; `Adapter` after full tuning.
          dtype: the dtype of the stored weights; None keeps each weight's own.
        """

    @abc.abstractmethod
    def open_filling(self, directory: Path) -> Any:
        """Open a directory without reading its weights; returns a `jpeft.model.weights.Filling`. Raises as `load`."""

    @abc.abstractmethod
    def quantized_layout(self, config: Any) -> tuple[Sequence[str], Mapping[str, str]]:
        """What a checkpoint of such a model in 8 or 4 bits holds beside its quantized maps.

        Returns:
          The modules that `quantization_config` lists as not quantized, and tensors that are stored as copies of
          others: from the name of a copy to the name of its original.

        Raises:
          UserError: jpeft does not write such a model quantized.
        """

    @abc.abstractmethod
    def module_name(self, config: Any, path: str) -> str:
        """The `transformers` name of the module at one of our paths, in a model of that config."""

    def fused_rows(self, config: Any, path: str) -> np.ndarray | None:
        """The output rows of the `transformers` module that belong to the module at one of our paths.

        None if they are all of them. To be overridden by a family whose files fuse several of our maps into one.
        """
        return None

    @abc.abstractmethod
    def plain_logits(self, directory: Path, *probe: np.ndarray) -> np.ndarray:
        """Compute the logits of `probe` by an independent NumPy implementation, straight from a directory's files."""

    def special_ids(self, config: Any) -> tuple[int, ...]:
        """Ids that are special whatever the tokenizer's files say.

        By default none: a decoder-only model's are marked in those files, and its padding may be any token.
        """
        return ()

    def tokenizer(self, directory: Path, config: Any) -> Tokenizer:
        """Load the tokenizer of a model's directory. Raises `UserError` as `Tokenizer.load`."""
        return Tokenizer.load(
            directory,
            vocab_size=config.vocab_size,
            eos_token_id=config.eos_token_id,
            continues=self.continues,
            other_ends=config.other_eos_token_ids,
            special_ids=self.special_ids(config),
        )

    def notes(self, directory: Path, tokenizer: Tokenizer) -> list[str]:
        """What `transformers` applies of the files beside a model's weights and jpeft does not, in a line each."""
        return [*filter(None, [settings_passed_over(directory)]), *tokenizer.notes]

    # --- the network ---

    @abc.abstractmethod
    def build(self, config: Any, *, dtype: Any, seed: int = 0) -> Any:
        """Create a network with random float32 weights, computing in `dtype`."""

    @abc.abstractmethod
    def arrange(self, model: Any, *, scan_layers: bool | None, remat: str | None = None) -> None:
        """Set how a model's layers are run, in place.

        Args:
          model: the model to change.
          scan_layers: True compiles one loop over the layers, False unrolls them; None scans more than eight layers.
          remat: what the backward pass recomputes, one of `jpeft.model.stack.REMAT_POLICIES`; None keeps the setting.
        """

    @abc.abstractmethod
    def stacks(self, config: Any) -> dict[str, int]:
        """The number of blocks of each stack by its name, such as `{"encoder": 12, "decoder": 12}`."""

    @abc.abstractmethod
    def probe(self, config: Any) -> tuple[np.ndarray, ...]:
        """Fixed pseudo-random tokens, the arguments of a call that compares two models' logits."""

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
        """Pad rows of token ids to a training batch of the network.

        Args:
          inputs, targets: ids of each row, at most `batch_size` rows; missing rows are padding with weight 0.
          shape: the padded lengths of inputs and targets.
          batch_size: the number of rows of the batch.
          config: the model's config.
          row_weights: the loss weight of each row's tokens; None is 1 for all rows.

        Returns:
          Arrays by name, among them `decoder_target_tokens` and `decoder_loss_weights`, both `[batch_size, target
          length]`, the weights 0 on padding.
        """

    @abc.abstractmethod
    def padded_alike(self, batches: Sequence[Batch], config: Any) -> list[Batch]:
        """Pad batches further, so that all have the lengths of the longest inputs and targets among them."""

    @abc.abstractmethod
    def batch_shapes(self, rows: int, shape: tuple[int, int]) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes by name of a batch of `rows` rows whose inputs and targets are padded to `shape`."""

    @abc.abstractmethod
    def cache_numbers(self, config: Any, shape: tuple[int, int], *, parts: int = 1) -> int:
        """The number of elements per row of the key-value caches on one device during generation.

        Args:
          config: the model's config.
          shape: padded lengths of the input and of the answer.
          parts: the number of devices over which heads are sharded.
        """

    def abstract(self, config: Any, *, dtype: Any = np.float32) -> Any:
        """Build the network with `jax.ShapeDtypeStruct`s in the place of weights, without allocating memory."""
        return abstract(self.network, config, dtype=dtype)


def families() -> tuple[Family, ...]:
    """All known model families."""
    from jpeft.model.decoder_family import DECODER_FAMILY
    from jpeft.model.t5_family import T5_FAMILY

    return (T5_FAMILY, DECODER_FAMILY)


def family_of(model: nnx.Module) -> Family | None:
    """The family of a model; None if its class is none of jpeft's networks."""
    return next((family for family in families() if isinstance(model, family.network)), None)


def family_with(config: Any) -> Family:
    """The family of a config, such as a `T5Config`."""
    return next(family for family in families() if isinstance(config, family.config_type))


def chat_tokens_in(directory: Path, choice: str) -> str | None:
    """`Tokenizer.chat_tokens` of the model in a directory or a GGUF file, for a value of `data.chat_template`.

    Cached within the process for files of the same content. Raises `OSError`, or `UserError` as `Family.tokenizer` and
    `Tokenizer.wording`.
    """
    family, template = family_in(directory), chat_template_of(choice)
    if not family.continues or template == NONE:
        return None
    return _chat_tokens(directory, template, fingerprint(tokenizer_files(directory) or [directory]))


@functools.lru_cache(maxsize=64)
def _chat_tokens(directory: Path, template: str, content: str) -> str | None:
    family = family_in(directory)
    return family.tokenizer(directory, family.read_config(directory)).asked_by(template).chat_tokens


def family_in(directory: Path) -> Family:
    """The family of the model in a directory or a GGUF file.

    Without a readable `model_type` this is the first family, whose `read_config` then reports what is wrong.

    Raises:
      UserError: the model is of a family that jpeft does not have.
      RunFailed: the GGUF file is damaged.
    """
    file = directory / "config.json"
    kind = None
    if is_gguf(directory):
        from jpeft.model.gguf_weights import gguf_config

        kind = gguf_config(directory)["model_type"]
    elif file.is_file():
        kind = read_json_object(file).get("model_type")
    if not isinstance(kind, str):
        return families()[0]
    for family in families():
        if family.recognises(kind):
            return family
    known = ", ".join(name for family in families() for name in family.model_types)
    raise UserError(f"{file}: model_type is {kind[:60]!r}; jpeft has a network for {known}.")


def abstract_model(config: Any) -> Any:
    """Build the network of a config with shapes in the place of weights."""
    return family_with(config).abstract(config)


def stack_names() -> list[str]:
    """The names of the layer stacks of all families: `encoder` and `decoder`."""
    return list(dict.fromkeys(stack for family in families() for stack in family.stacks(family.config_type())))


def compute_dtype(name: str) -> jnp.dtype:
    """The dtype of activations by its name in configs and flags; `auto` is bfloat16, or float32 on a CPU."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def load_model(directory: Path, **options: Any) -> Any:
    """Load the model of a directory, of any family; options and errors as of `jpeft.model.t5_weights.load`."""
    return family_in(directory).load(directory, **options)


def save_model(model: Any, directory: Path, *, kind: type[nnx.Variable] = nnx.Param, dtype: Any = None) -> None:
    """Write a model as `transformers` opens it; arguments as of `Family.save`.

    Raises:
      UserError: the model's class is none of jpeft's networks.
    """
    family = family_of(model)
    if family is None:
        raise UserError(
            f"{type(model).__name__} is of no family that jpeft can write as a whole model; save the state of "
            "flax.nnx.split yourself, with Orbax for instance."
        )
    family.save(model, directory, kind=kind, dtype=dtype)
