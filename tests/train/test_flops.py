"""A PEFT step computes no weight gradients of the base, as XLA's own count of the compiled step's FLOPs shows.

Per token: 2N FLOPs forward, 2N for activation gradients, 2N for weight gradients; without the last, 2/3.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jpeft.model.stack import arrange
from jpeft.model.t5 import T5
from jpeft.model.t5_config import RELEASED
from jpeft.peft.attaching import attach, split
from jpeft.peft.methods import build
from jpeft.peft.selection import select
from jpeft.train.optimizer import AdamW
from jpeft.train.schedule import constant
from jpeft.train.step import init_state, make_accumulate, make_update, zero_sums

# Without dropout, whose random bits are counted as FLOPs and are the same for every method.
SMALL = dataclasses.replace(RELEASED["google/flan-t5-small"], dropout_rate=0.0)


def step_flops(method_name: str) -> float:
    """FLOPs of one optimizer step of one micro-batch, FLAN-T5-small, 16 rows of 128 input and 64 target tokens."""
    method = build(method_name)

    def adapted() -> T5:
        model = T5(SMALL, rngs=nnx.Rngs(0))
        model = attach(model, method, select(model, method), jax.random.key(0))
        arrange((model.encoder, model.decoder), scan=False)  # XLA counts the body of a loop once, whatever its length
        return model

    graphdef, adapter, base = split(nnx.eval_shape(adapted))
    optimizer = AdamW()
    batch = {
        "encoder_input_tokens": jax.ShapeDtypeStruct((16, 128), jnp.int32),
        "decoder_input_tokens": jax.ShapeDtypeStruct((16, 64), jnp.int32),
        "decoder_target_tokens": jax.ShapeDtypeStruct((16, 64), jnp.int32),
        "decoder_loss_weights": jax.ShapeDtypeStruct((16, 64), jnp.float32),
    }
    state = jax.eval_shape(lambda adapter: init_state(adapter, optimizer), adapter)
    sums = jax.eval_shape(zero_sums, adapter)
    scalar = np.int32(0)
    key = jax.random.key(0)
    accumulate = jax.jit(make_accumulate(graphdef)).lower(sums, adapter, base, key, scalar, scalar, batch)
    update = jax.jit(make_update(optimizer)).lower(state, sums, constant(1e-3))
    costs = [lowered.compile().cost_analysis() for lowered in (accumulate, update)]
    return sum(cost["flops"] for cost in costs if cost)


@pytest.mark.slow
def test_a_peft_step_costs_at_most_72_percent_of_a_full_one():
    full = step_flops("full")
    ratios = {name: step_flops(name) / full for name in ("lora", "ia3", "bitfit")}
    print({name: round(ratio, 4) for name, ratio in ratios.items()}, f"of {full:.4g} FLOPs")
    assert all(0.6 < ratio <= 0.72 for ratio in ratios.values())
