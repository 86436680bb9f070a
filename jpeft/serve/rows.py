"""What the adapters of a batch do, each to its own row.

The modules stand where those of `jpeft.peft` would, and compute the same; but every leaf has one entry a row. In a bank
the same leaves have one entry a slot instead (`jpeft.serve.pool`), and a program takes its rows' entries out of it.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jpeft.model.t5 import added
from jpeft.peft.base import Site


class Pooled(nnx.Variable):
    """A leaf of adapters: `[slots, ...]` in a bank, `[batch, ...]` in a program, `layers` before it where stacked."""


class AdapterRows(nnx.Module):
    """`y = s_out * W (s_in * x) + scale * B A x + b`, of which a bank has room for some parts.

    A leaf at its identity (s_in and s_out one, all others zero) leaves its row as it was.
    """

    lora_a: Pooled | None  # [batch, rank, d_in]
    lora_b: Pooled | None  # [batch, rank, d_out]
    lora_scale: Pooled | None  # [batch, 1]
    scale_in: Pooled | None  # [batch, d_in]
    scale_out: Pooled | None  # [batch, d_out]
    bias: Pooled | None  # [batch, d_out]

    def __init__(self, leaves: Mapping[str, Array]):
        for name in ("lora_a", "lora_b", "lora_scale", "scale_in", "scale_out", "bias"):
            setattr(self, name, Pooled(leaves[name]) if name in leaves else None)

    def __call__(self, compute, x: Float[Array, "batch length d_in"]) -> Float[Array, "batch length d_out"]:
        def each(leaf: Pooled) -> Float[Array, "batch 1 width"]:
            return leaf[...].astype(jnp.float32)[:, None]

        def rescaled(x: Array, scale: Pooled | None) -> Array:  # as in jpeft.model.t5, a row at a time
            return x if scale is None else (x.astype(jnp.float32) * each(scale)).astype(x.dtype)

        y = rescaled(compute(rescaled(x, self.scale_in)), self.scale_out)
        if self.lora_a is not None and self.lora_b is not None and self.lora_scale is not None:
            inner = jnp.einsum("bld,brd->blr", x, self.lora_a[...].astype(x.dtype))
            update = jnp.einsum("blr,brd->bld", inner, self.lora_b[...].astype(x.dtype))
            y = added(y, update.astype(jnp.float32) * each(self.lora_scale))
        return y if self.bias is None else added(y, each(self.bias))


class PromptRows(nnx.Module):
    """A soft prompt of its own before each row's input, or none.

    Prompts end where the text begins, and what is left of a shorter one is hidden: T5 knows positions by their
    distances alone, and these are then what they would be without the others in the batch.
    """

    def __init__(self, leaves: Mapping[str, Array]):
        self.prompt = Pooled(leaves["prompt"])  # [batch, prompt_length, d_model]
        self.is_prompt = Pooled(leaves["is_prompt"])  # [batch, prompt_length], False where there is nothing

    def __call__(
        self, x: Float[Array, "batch enc_len d_model"], mask: Bool[Array, "batch enc_len"]
    ) -> tuple[Float[Array, "batch new_len d_model"], Bool[Array, "batch new_len"]]:
        prompts, shown = self.prompt[...].astype(x.dtype), self.is_prompt[...]
        return jnp.concatenate([prompts, x], axis=1), jnp.concatenate([shown, mask], axis=1)


def rows_module(site: Site, leaves: Mapping[str, Array]) -> nnx.Module:
    """The module for one site."""
    return PromptRows(leaves) if site.kind == "input" else AdapterRows(leaves)
