"""Layers that all families share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpeft.model.layers import ACTIVATIONS, activated


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [True, False])
def test_an_activation_is_float32_inside_and_rounded_once(activation, gated):
    wide = [jnp.asarray(np.random.default_rng(i).standard_normal((7, 16)), jnp.float32) for i in range(1 + gated)]
    narrow = [x.astype(jnp.bfloat16) for x in wide]

    def by_hand(x, *factors):
        return ACTIVATIONS[activation](x) * (factors[0] if factors else 1.0)

    def ours(*operands):
        return activated(activation, *operands)

    np.testing.assert_array_equal(ours(*wide), by_hand(*wide))
    exact = [x.astype(jnp.float32) for x in narrow]
    np.testing.assert_array_equal(ours(*narrow), by_hand(*exact).astype(jnp.bfloat16))
    grads = jax.grad(lambda *operands: jnp.sum(ours(*operands).astype(jnp.float32)), argnums=range(1 + gated))(*narrow)
    of_exact = jax.grad(lambda *operands: jnp.sum(by_hand(*operands)), argnums=range(1 + gated))(*exact)
    for grad, expected in zip(grads, of_exact, strict=True):
        np.testing.assert_array_equal(grad, expected.astype(jnp.bfloat16))
