"""A custom PEFT method in one file: a rank-one update with two trainable vectors per linear map.

Run it: python examples/custom_method.py
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jpeft


class RankOneSite(nnx.Module):
    """The module for one site: `y = W x + (u . x) v`. `v` starts at zero, so the first pass equals the base model's."""

    def __init__(self, u: jax.Array, d_out: int):
        self.one_u = jpeft.Adapter(u)
        self.one_v = jpeft.Adapter(jnp.zeros(d_out))

    def __call__(self, compute, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        update = (wide @ self.one_u[...][:, None]) * self.one_v[...][(None,) * (x.ndim - 1)]
        y = compute(x)
        return (y.astype(jnp.float32) + update).astype(y.dtype)

    def fold(self, kernel: jax.Array, bias: Any) -> tuple[Any, Any]:
        """The kernel with the update folded in; used by `jpeft.merge`."""
        return kernel + self.one_u[...][..., :, None] * self.one_v[...][..., None, :], bias


@dataclasses.dataclass(frozen=True)
class RankOne(jpeft.AddedModules):
    """A rank-one update of q and v.

    Attributes:
      stddev: standard deviation of the initial u.
    """

    name: ClassVar[str] = "rank_one"
    leaf_axes: ClassVar = {"one_u": ("in",), "one_v": ("out",)}  # sharded on a mesh like the weight's axes

    stddev: float = 0.1

    @property
    def default_roles(self):
        return ("q", "v")

    def create(self, site, key, model):
        return RankOneSite(self.stddev * jax.random.normal(key, (site.d_in,)), site.d_out)

    def describe(self):
        return f"a rank-one update, u of deviation {self.stddev:g}"


jpeft.METHODS["rank_one"] = RankOne  # now `method.name=rank_one` trains, saves and serves like the built-in methods


def main() -> None:
    """Attaches the method to a small network and fits it to random data."""

    class Network(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.first, self.second = nnx.Linear(8, 32, rngs=rngs), nnx.Linear(32, 1, rngs=rngs)

        def __call__(self, x):
            return self.second(jax.nn.relu(self.first(x)))

    model = Network(nnx.Rngs(0))
    tuned = jpeft.attach(model, RankOne(), where="first|second")
    x = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    y = x[:, :1] * x[:, 1:2]
    fitted = jpeft.fit(tuned, [(x, y)] * 200, lambda model, batch: jnp.mean((model(batch[0]) - batch[1]) ** 2))
    trained = jpeft.count(jpeft.split(tuned)[1])
    print(f"{trained} trainable parameters; the loss went from {fitted.losses[0]:.3f} to {fitted.losses[-1]:.3f}")


if __name__ == "__main__":
    main()
