"""Matrix products, with sums in float32 whatever the dtype of their operands.

Accelerators sum the product of two bfloat16 arrays in float32 and round each sum once. CPUs with instructions for it
(AMX, AVX512-BF16) do so, too, but XLA uses those where the result is float32: for a bfloat16 result, jax 0.10 widens
both operands and takes three to ten times as long (docs/log.md). On an accelerator, on the other hand, a float32 result
would be written and read at twice the size, and summed over devices at twice the bytes.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import CustomVJPPrimal
from jax.typing import DTypeLike
from jaxtyping import Array, Float

PRODUCT = "product"  # the name under which checkpoint policies save a product's output


def einsum(text: str, a: Array, b: Array, dtype: DTypeLike) -> Array:
    """Compute `jnp.einsum(text, a, b)` with sums in float32, each rounded once to `dtype`.

    It is meant for functions with gradients of their own: JAX would multiply the gradient in float32.
    """
    if jnp.dtype(dtype).itemsize >= 4 or a.dtype != b.dtype:
        return jnp.einsum(text, a, b, preferred_element_type=dtype)
    return jax.lax.platform_dependent(
        a,
        b,
        cpu=lambda a, b: jnp.einsum(text, a, b, preferred_element_type=jnp.float32).astype(dtype),
        default=lambda a, b: jnp.einsum(text, a, b, preferred_element_type=dtype),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(
    x: Float[Array, "*batch d_in"], kernel: Float[Array, "d_in d_out"], dtype: DTypeLike
) -> Float[Array, "*batch d_out"]:
    """Compute `x @ kernel` in `dtype`, with a kernel gradient that transposes the narrower of its two operands.

    JAX would always transpose the output's gradient. If that is wide, XLA on a CPU recomputes its elementwise part
    column by column; for the gated feed-forward this took longer than all matrix products of the step (docs/log.md).
    """
    return _matmul(x, kernel, dtype)


def _matmul(x: Array, kernel: Array, dtype: DTypeLike) -> Array:
    return checkpoint_name(einsum("...i,io->...o", x, kernel, dtype), PRODUCT)


def _product_forward(
    x: CustomVJPPrimal, kernel: CustomVJPPrimal, dtype: DTypeLike
) -> tuple[Array, tuple[Array, Array]]:
    # Save only what the backward pass needs: x unless the kernel is frozen, and the kernel unless nothing trainable
    # comes before x. What is not needed is an empty array rather than None, since layers share one program: JAX wants
    # the same tree from a first layer without trainable inputs and from the layers after it.
    y = _matmul(x.value, kernel.value, dtype)
    nothing = jnp.zeros(0, x.value.dtype)
    return y, (x.value if kernel.perturbed else nothing, kernel.value if x.perturbed else nothing)


def _product_backward(dtype: DTypeLike, saved: tuple[Array, Array], grad: Array) -> tuple[Array | None, Array | None]:
    x, kernel = (operand if operand.size else None for operand in saved)
    for operand in (x, kernel):
        grad = grad if operand is None else grad.astype(operand.dtype)  # the gradient of logits is float32
    grad_x = None if kernel is None else einsum("...o,io->...i", grad, kernel, grad.dtype)
    if x is None:
        return grad_x, None
    if x.shape[-1] < grad.shape[-1]:
        return grad_x, einsum("...i,...o->io", x, grad, grad.dtype)
    return grad_x, einsum("...o,...i->oi", grad, x, grad.dtype).T


product.defvjp(_product_forward, _product_backward, symbolic_zeros=True)
