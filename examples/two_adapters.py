"""Two adapters of one base in one batch: every row uses its own adapter, or none.

Run it: python examples/two_adapters.py
"""

import tempfile
from pathlib import Path

import jax
import numpy as np
from flax import nnx

import jpeft
from jpeft.serve.bank import AdapterBank
from jpeft.serve.pool import room_for


def moved_at_random(adapter: nnx.State, seed: int) -> nnx.State:
    """The adapter with random values added, in place of training."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + 0.3 * draw.normal(size=leaf.shape).astype(np.float32), adapter)


def main() -> None:
    """Makes two adapters for the bundled model `mini` and generates with both in one batch."""
    model, tokenizer = jpeft.load("mini")
    lora, ia3 = jpeft.Lora.official(rank=4), jpeft.Ia3.official()
    bank = AdapterBank(model, capacity=2, room=room_for(model, lora, ia3))
    with tempfile.TemporaryDirectory() as directory:
        for seed, (name, method) in enumerate({"first": lora, "second": ia3}.items()):
            tuned = jpeft.attach(model, method)
            graphdef, adapter, base = jpeft.split(tuned)
            moved = nnx.merge(graphdef, moved_at_random(adapter, seed), base)
            jpeft.save(moved, method, Path(directory) / name, base_name="mini")
            bank.add(name, Path(directory) / name)
    text = "The cat sat on the <extra_id_0>."
    tokens = np.array([tokenizer.ids([text])[0]] * 3, np.int32)
    answers = bank.generate(tokens, ["first", "second", None], max_length=8)
    for name, ids in zip(("first", "second", "the base"), np.asarray(answers.tokens), strict=True):
        print(f"{name:9} {ids.tolist()}")


if __name__ == "__main__":
    main()
