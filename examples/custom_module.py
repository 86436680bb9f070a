"""LoRA on a custom module, which needs no changes: the linear maps to adapt are chosen by a pattern of their paths.

Run it: python examples/custom_module.py
"""

import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jpeft


class Block(nnx.Module):
    """A transformer block made of Flax modules."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, width, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(width, 2 * width, rngs=rngs), nnx.Linear(2 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.norm(x))
        return x + self.down(jax.nn.gelu(self.up(x)))


class Classifier(nnx.Module):
    """A small transformer classifier of token sequences."""

    def __init__(self, vocabulary: int = 50, width: int = 32, layers: int = 2, classes: int = 3, *, rngs: nnx.Rngs):
        self.embed = nnx.Embed(vocabulary, width, rngs=rngs)
        self.blocks = nnx.List([Block(width, rngs) for _ in range(layers)])
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(axis=1))


def loss(model: Classifier, batch: tuple[np.ndarray, np.ndarray]) -> jax.Array:
    """Mean cross-entropy."""
    log_probs = jax.nn.log_softmax(model(batch[0]))
    return -jnp.mean(jnp.take_along_axis(log_probs, batch[1][:, None], axis=1))


def main() -> None:
    """Attaches, trains, saves, loads and merges."""
    model = Classifier(rngs=nnx.Rngs(0))
    for site in jpeft.sites(model):
        print(f"  {site.path:28} {site.kind:10} {site.d_in} -> {site.d_out}")
    lora = jpeft.Lora.official(rank=4)
    tuned = jpeft.attach(model, lora, where=r"blocks/\d/attention/(query|value)|head")
    tokens = np.random.default_rng(0).integers(0, 50, (32, 6))
    batch = (tokens, tokens[:, 0] % 3)
    fitted = jpeft.fit(tuned, [batch] * 60, loss, learning_rate=1e-2)
    print(
        f"{jpeft.count(jpeft.split(tuned)[1]):,} trainable parameters; the loss went from {fitted.losses[0]:.3f} to "
        f"{fitted.losses[-1]:.3f}"
    )
    with tempfile.TemporaryDirectory() as directory:
        jpeft.save(fitted.model, lora, directory)
        again = jpeft.load_adapter(directory, model)
    merged = jpeft.merge(again)
    difference = jnp.abs(merged(tokens) - fitted.model(tokens)).max()
    print(f"saved, loaded and merged: the largest difference is {difference:.1e}")


if __name__ == "__main__":
    main()
