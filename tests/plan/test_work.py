"""FLOPs of programs, against numbers worked out by hand; names of devices and sizes of memory."""

import jax
import jax.numpy as jnp
import pytest

from jpeft.errors import UserError
from jpeft.mesh.layout import Layout
from jpeft.plan.devices import DEVICES, device_named, memory_bytes
from jpeft.plan.work import matmul_flops


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


def work_of(function, *args, **kwargs):
    return matmul_flops(jax.make_jaxpr(function)(*args), **kwargs)


def test_products_are_counted_with_their_batches_loops_and_gradients():
    assert work_of(lambda a, b: a @ b, shape(3, 4), shape(4, 5)) == 2 * 3 * 4 * 5
    assert work_of(jax.jit(lambda a, b: jnp.einsum("bij,bjk->bik", a, b)), shape(7, 3, 4), shape(7, 4, 5)) == 840

    def layers(x, kernels):
        return jax.lax.scan(lambda x, kernel: (x @ kernel, None), x, kernels)[0].sum()

    once = 2 * 3 * 4 * 4
    assert work_of(layers, shape(3, 4), shape(6, 4, 4)) == 6 * once
    # Backward: one product for each layer's input, one for each layer's kernel.
    assert work_of(jax.grad(layers, argnums=(0, 1)), shape(3, 4), shape(6, 4, 4)) == 3 * 6 * once

    def until(x, kernel):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ kernel, x)

    assert work_of(until, shape(3, 4), shape(4, 4), turns=11) == 11 * once


def test_what_each_part_of_a_mesh_does_is_counted_for_all_parts():
    each = Layout.of_devices(data=2, model=2).each_part(lambda kernel, key, batch: batch @ kernel)
    args = (shape(4, 5), jax.eval_shape(lambda: jax.random.key(0)), shape(6, 4))
    assert work_of(each, *args) == 2 * 6 * 4 * 5


@pytest.mark.parametrize(("text", "size"), [("24GB", 24e9), ("80 GiB", 80 * 2**30), ("1.5tb", 1.5e12)])
def test_amounts_of_memory(text, size):
    assert memory_bytes(text) == size


@pytest.mark.parametrize("text", ["24", "GB", "-3GB", "0GB", "1.2.3GB", "24 GBs"])
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(UserError, match="expected an amount such as 24GB"):
        memory_bytes(text)


def test_devices_are_known_however_they_are_written():
    assert device_named("a100_80gb") is DEVICES["A100-80"] and device_named("TPU v5e") is DEVICES["v5e"]
    assert device_named("RTX 4090") is DEVICES["RTX4090"] and device_named("TPU-v5p") is DEVICES["v5p"]
    with pytest.raises(UserError, match="--device B7 is not known; there are A10, "):
        device_named("B7")
