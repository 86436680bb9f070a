"""Prompt tuning: trainable vectors put before the encoder's embedded input (Lester et al. 2021)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jpeft.errors import UserError
from jpeft.peft.base import Adapter, AddedModules

_COMMON_PIECES = 5000  # Lester et al. draw from the most common; sentence pieces are numbered by frequency
_SPECIAL_PIECES = 3  # padding, </s>, <unk>


class SoftPrompt(nnx.Module):
    """Lengthens `x: [batch, enc_len, d_model]` by `prompt_length` rows at its start, and the mask with it."""

    def __init__(self, prompt: Float[Array, "prompt_length d_model"]):
        self.prompt = Adapter(prompt)

    def __call__(
        self, x: Float[Array, "batch enc_len d_model"], mask: Bool[Array, "batch enc_len"]
    ) -> tuple[Float[Array, "batch new_len d_model"], Bool[Array, "batch new_len"]]:
        prompt = self.prompt[...].astype(x.dtype)
        prompts = jnp.broadcast_to(prompt, (x.shape[0], *prompt.shape))
        return (
            jnp.concatenate([prompts, x], axis=1),
            jnp.concatenate([jnp.ones(prompts.shape[:2], bool), mask], axis=1),
        )


@dataclasses.dataclass(frozen=True)
class Prompt(AddedModules):
    """100 soft tokens. The first forward pass is the base model's on an input with 100 pieces of text before it.

    Attributes:
      prompt_length: number of soft tokens.
      init: `vocabulary` copies embeddings of common pieces (Lester et al., section 3.2, "sampled vocabulary");
        `uniform` draws from [-0.5, 0.5], their random initialisation.
    """

    name: ClassVar[str] = "prompt"
    kinds: ClassVar[tuple[str, ...]] = ("input",)
    unmergeable: ClassVar[str | None] = "its vectors are a part of the input, not a change of a weight"

    prompt_length: int = 100
    init: str = "vocabulary"

    def __post_init__(self):
        if self.prompt_length < 1:
            raise UserError(f"method.prompt_length is {self.prompt_length}; a prompt needs at least 1 soft token.")
        if self.init not in ("vocabulary", "uniform"):
            raise UserError(f"method.prompt_init is {self.init!r}; expected 'vocabulary' or 'uniform'.")

    @classmethod
    def official(cls, prompt_length: int = 100) -> "Prompt":
        """Prompt tuning as its authors recommend it, which Hugging Face PEFT can hold."""
        return cls(prompt_length=prompt_length, init="vocabulary")

    def default_names(self, model):
        return ("encoder_input",)

    def create(self, site, key, model):
        if self.init == "uniform":
            shape = (self.prompt_length, model.config.d_model)
            return SoftPrompt(jax.random.uniform(key, shape, minval=-0.5, maxval=0.5))
        # Drawn with replacement only where the vocabulary is smaller than the prompt.
        rows = jnp.arange(_SPECIAL_PIECES, min(_COMMON_PIECES, model.config.vocab_size))
        chosen = jax.random.choice(key, rows, (self.prompt_length,), replace=len(rows) < self.prompt_length)
        return SoftPrompt(model.shared.embedding[...][chosen].astype(jnp.float32))
