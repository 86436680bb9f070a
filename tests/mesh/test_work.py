"""Operations and messages of programs whose numbers can be told by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jpeft.errors import UserError
from jpeft.mesh.hardware import HARDWARE, hardware, memory_bytes
from jpeft.mesh.layout import Layout
from jpeft.mesh.work import matmul_flops, messages


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


def test_products_are_counted_with_their_batches_loops_and_gradients():
    assert matmul_flops(lambda a, b: a @ b, shape(3, 4), shape(4, 5)) == 2 * 3 * 4 * 5
    assert matmul_flops(jax.jit(lambda a, b: jnp.einsum("bij,bjk->bik", a, b)), shape(7, 3, 4), shape(7, 4, 5)) == 840

    def layers(x, kernels):
        return jax.lax.scan(lambda x, kernel: (x @ kernel, None), x, kernels)[0].sum()

    once = 2 * 3 * 4 * 4
    assert matmul_flops(layers, shape(3, 4), shape(6, 4, 4)) == 6 * once
    # Backward: one product for each layer's input, one for each layer's kernel.
    assert matmul_flops(jax.grad(layers, argnums=(0, 1)), shape(3, 4), shape(6, 4, 4)) == 3 * 6 * once

    def until(x, kernel):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ kernel, x)

    assert matmul_flops(until, shape(3, 4), shape(4, 4), turns=11) == 11 * once


def test_messages_are_counted_as_often_as_their_loop_runs():
    """Each turn multiplies by columns, then by rows: the parts are summed over the devices, [8, 16] in float32."""
    mesh = Layout.of_devices(model=4).mesh

    def put(*dims, spec):
        return jax.ShapeDtypeStruct(dims, jnp.float32, sharding=NamedSharding(mesh, spec))

    def layers(x, first, second):
        return jax.lax.scan(lambda x, pair: (jnp.tanh(x @ pair[0]) @ pair[1], None), x, (first, second))[0]

    args = put(8, 16, spec=P()), put(5, 16, 32, spec=P(None, None, "model")), put(5, 32, 16, spec=P(None, "model"))
    found = messages(jax.jit(layers).lower(*args).compile().as_text() or "")
    assert found.count == {"all-reduce": 5}
    assert found.bytes == {"all-reduce": 5 * 8 * 16 * 4}


@pytest.mark.parametrize(("text", "size"), [("24GB", 24e9), ("80 GiB", 80 * 2**30), ("1.5tb", 1.5e12)])
def test_amounts_of_memory(text, size):
    assert memory_bytes(text) == size


@pytest.mark.parametrize("text", ["24", "GB", "-3GB", "0GB", "1.2.3GB", "24 GBs"])
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(UserError, match="expected an amount such as 24GB"):
        memory_bytes(text)


def test_devices_are_known_however_they_are_written():
    assert hardware("a100_80gb") == HARDWARE["A100-80GB"] and hardware("TPU v5e") == HARDWARE["TPU-v5e"]
    with pytest.raises(UserError, match="--device B7 is not known; there are A10, "):
        hardware("B7")
