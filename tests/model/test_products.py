"""Matrix products in a narrow dtype: summed in float32, in the form that each platform computes fastest."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpeft.model.attention import attend
from jpeft.model.products import product
from jpeft.plan.work import matmul_flops

NARROW = jnp.dtype(jnp.bfloat16)


def of_product(x, kernel):
    return jnp.sum(product(x, kernel, x.dtype).astype(jnp.float32))


def of_attention(x, kernel):
    heads = (x @ kernel)[None]
    return jnp.sum(attend(heads, heads, heads, (), scale=0.5).astype(jnp.float32))


def results(loss, platform: str, dtype) -> list[str]:
    """The dtypes of the results of all matrix products of a loss and its gradients, as lowered for a platform."""
    operands = jnp.ones((2, 5, 8), dtype), jnp.ones((8, 16), dtype)
    gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    text = gradients.trace(*operands).lower(lowering_platforms=(platform,)).as_text()
    found = re.findall(r"dot_general.*-> tensor<(?:\d+x)*(\w+)>", text)
    return found


@pytest.mark.parametrize("loss", [of_product, of_attention])
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_a_cpu_rounds_float32_results_and_accelerators_round_their_own(loss, platform):
    narrow, wide = results(loss, platform, NARROW), results(loss, platform, jnp.float32)
    assert set(wide) == {"f32"} and len(narrow) == len(wide) >= 3, "one form of each product"
    if loss is of_product:
        assert set(narrow) == ({"f32"} if platform == "cpu" else {"bf16"})
    else:  # `x @ kernel` and its two gradients are JAX's; scores, their gradients and the undivided output are float32
        assert narrow.count("bf16") == 3 + (0 if platform == "cpu" else 3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sums_are_float32_and_rounded_once(dtype):
    """A sum of 300 ones in bfloat16 would stay at 256."""
    x, kernel = jnp.ones((300, 300), dtype), jnp.ones((300, 300), dtype)
    value, (of_x, of_kernel) = jax.value_and_grad(of_product, argnums=(0, 1))(x, kernel)
    assert value == 300.0**3 and of_x.dtype == of_kernel.dtype == dtype
    for gradient in (of_x, of_kernel):
        np.testing.assert_array_equal(gradient, jnp.full((300, 300), 300, dtype))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_a_plan_counts_each_product_once(dtype):
    x, kernel = jnp.ones((4, 8), dtype), jnp.ones((8, 16), dtype)
    assert matmul_flops(jax.make_jaxpr(of_product)(x, kernel)) == 2 * 4 * 8 * 16
