"""Prompt tuning: trainable vectors put before a model's embedded input (Lester et al. 2021)."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from jpeft.errors import RunFailed, UserError
from jpeft.peft.interchange import PeftFile, PeftLayout, PeftNames, Tensors
from jpeft.peft.method import AddedModules, LearningRates
from jpeft.peft.row_wise import Leaves, Rows
from jpeft.peft.sites import Site, site_modules
from jpeft.peft.variables import Adapter
from jpeft.peft.views import Original

_COMMON_PIECES = 5000  # Lester et al. sample from the most common; SentencePiece orders its pieces by frequency
_SPECIAL_PIECES = 3  # padding, </s>, <unk>


class SoftPrompt(nnx.Module):
    """Prepends `prompt_length` trained vectors to `x: [batch, enc_len, d_model]`, and extends the mask by as many."""

    def __init__(self, prompt: Float[Array, "prompt_length d_model"]):
        self.prompt = Adapter(prompt)

    def __call__(
        self, compute, x: Float[Array, "batch enc_len d_model"], mask: Bool[Array, "batch enc_len"]
    ) -> tuple[Float[Array, "batch new_len d_model"], Bool[Array, "batch new_len"]]:
        x, mask = compute(x, mask)
        prompt = self.prompt[...].astype(x.dtype)
        prompts = jnp.broadcast_to(prompt, (x.shape[0], *prompt.shape))
        return (
            jnp.concatenate([prompts, x], axis=1),
            jnp.concatenate([jnp.ones(prompts.shape[:2], bool), mask], axis=1),
        )


@dataclasses.dataclass(frozen=True)
class Prompts(Rows):
    """A soft prompt per row of a batch, or none.

    Shorter prompts are padded at the start, and the padding is masked, so that every prompt directly precedes its
    input. Positions are therefore as in a batch of one: T5's are relative, and a decoder-only model counts unmasked
    tokens.
    """

    leaves: tuple[str, ...] = ("prompt", "is_prompt")  # [batch, prompt_length, d_model], [batch, prompt_length]
    padded_at_start: ClassVar[tuple[str, ...]] = ("prompt", "is_prompt")

    def identity(self, leaf: str) -> np.ndarray | np.generic:
        return np.False_ if leaf == "is_prompt" else np.float32(0)

    def __call__(
        self,
        leaves: Leaves,
        compute: Original,
        x: Float[Array, "batch enc_len d_model"],
        mask: Bool[Array, "batch enc_len"],
    ) -> tuple[Float[Array, "batch new_len d_model"], Bool[Array, "batch new_len"]]:
        x, mask = compute(x, mask)
        prompts, visible = leaves["prompt"].astype(x.dtype), leaves["is_prompt"]
        return jnp.concatenate([prompts, x], axis=1), jnp.concatenate([visible, mask], axis=1)


@dataclasses.dataclass(frozen=True)
class Prompt(AddedModules, PeftLayout):
    """Prompt tuning (Lester et al. 2021): trained vectors before the embedded input, by default 100.

    With `init='vocabulary'` the first forward pass is that of the base on an input with as many more tokens before it.

    Attributes:
      prompt_length: number of soft tokens.
      init: `vocabulary`: embeddings of common vocabulary pieces ("sampled vocabulary" in Lester et al., section 3.2);
        `uniform`: random numbers from [-0.5, 0.5], their random initialisation.
    """

    name: ClassVar[str] = "prompt"
    kinds: ClassVar[tuple[str, ...]] = ("input",)
    unmergeable: ClassVar[str | None] = "its vectors are a part of the input, not a change of a weight"
    learning_rates: ClassVar = LearningRates(3e-3, 3e-1, 3e-2)
    options: ClassVar = {"prompt_length": "prompt_length", "prompt_init": "init"}
    leaf_axes: ClassVar = {"prompt": (None, None)}
    sizes: ClassVar = {"prompt_length": ("prompt", 0)}
    peft_type: ClassVar[str] = "PROMPT_TUNING"
    peft_settings: ClassVar = {"num_virtual_tokens": int}
    peft_ignored: ClassVar[Collection[str]] = """
        num_transformer_submodules token_dim num_layers num_attention_heads
        prompt_tuning_init prompt_tuning_init_text tokenizer_name_or_path tokenizer_kwargs
    """.split()

    prompt_length: int = 100
    init: str = "vocabulary"

    def __post_init__(self):
        super().__post_init__()
        if self.prompt_length < 1:
            raise UserError(f"method.prompt_length is {self.prompt_length}; a prompt needs at least 1 soft token.")
        if self.init not in ("vocabulary", "uniform"):
            raise UserError(f"method.prompt_init is {self.init!r}; expected 'vocabulary' or 'uniform'.")

    @property
    def default_roles(self) -> tuple[str, ...]:
        return ("input",)

    def create(self, site, key, model):
        if self.init == "uniform":
            shape = (self.prompt_length, site.d_out)
            return SoftPrompt(jax.random.uniform(key, shape, minval=-0.5, maxval=0.5))
        table = _vocabulary(model)
        return SoftPrompt(table[common_pieces(key, self.prompt_length, len(table))].astype(jnp.float32))

    # --- description ---

    def describe(self) -> str:
        return f"prompt tuning, {self.prompt_length} soft tokens"

    def flags(self) -> dict[str, Any]:
        init = {"prompt_init": self.init} if self.init != "vocabulary" else {}
        return {"prompt_length": self.prompt_length, **init}

    # --- many adapters in one batch ---

    def rows(self, site: Site, model: nnx.Module) -> Sequence[Rows]:
        return (Prompts(),)

    def row_leaves(self, leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**leaves, "is_prompt": np.ones(len(leaves["prompt"]), bool)}

    def row_size(self, leaf: str, size: int) -> str:
        return f"{size} soft tokens"

    # --- Hugging Face PEFT ---

    def peft_config(self, chosen: Sequence[Site], peft: PeftNames) -> dict[str, Any]:
        return {
            "prompt_tuning_init": "RANDOM",
            "num_virtual_tokens": self.prompt_length,
            "token_dim": chosen[0].d_out,
            "num_transformer_submodules": 1,  # the encoder alone; PEFT would otherwise allocate a second prompt
            "num_layers": peft.num_layers,
            "num_attention_heads": peft.num_heads,
        }

    @classmethod
    def peft_tensors(cls, named: Mapping[str, np.ndarray], module: Callable[[str], str]) -> Tensors:
        (prompt,) = named.values()
        return {"prompt_embeddings": prompt}

    @classmethod
    def from_peft(cls, file: PeftFile) -> tuple["Prompt", Tensors, list[str]]:
        prompt, length = file.virtual_tokens("prompt")
        task = file.config.get("task_type")
        if task not in (None, file.names.task_type):
            raise UserError(
                f"{file.source} is a prompt for {task}; expected {file.names.task_type}, the task of this base."
            )
        if len(prompt) not in (length, 2 * length) or length < 1:
            raise RunFailed(f"{file.source} has num_virtual_tokens = {length} and holds {len(prompt)} soft tokens.")
        notes = []
        if len(prompt) > length:  # PEFT's default for an encoder-decoder
            notes.append(f"left out {length} vectors that PEFT allocates for a decoder's prompt and never uses")
        (path,) = (site.path for site in file.names.sites if site.kind == "input")
        return cls(prompt_length=length), {f"{path}/prompt": prompt[:length]}, notes


def common_pieces(key: Key[Array, ""], number: int, vocab_size: int) -> Int[Array, " number"]:
    """Token ids sampled from the most common of a vocabulary, without replacement if it has enough of them."""
    rows = jnp.arange(_SPECIAL_PIECES, min(_COMMON_PIECES, vocab_size))
    return jax.random.choice(key, rows, (number,), replace=len(rows) < number)


def _vocabulary(model: nnx.Module) -> Float[Array, "vocab d_model"]:
    """The input embeddings of a model."""
    for place in site_modules(model):
        if place.sites[0].role == "vocabulary":
            return place.view.matrix(place.module)
    raise UserError(
        f"{type(model).__name__} does not say where its vocabulary is (a site of the role `vocabulary`), from which a "
        "soft prompt starts; use prompt_init='uniform'."
    )
