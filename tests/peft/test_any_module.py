"""Methods on modules that nobody here wrote: Flax's own parts, lists, plain attributes and stacked, scanned blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jpeft
from jpeft.peft.attaching import split
from jpeft.peft.sites import sites
from jpeft.peft.views import view_of
from tests.peft.filled import filled

WIDTH = 16


class Flax(nnx.Module):
    """Flax's attention, whose maps are `nnx.LinearGeneral`, in a list of blocks."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(20, WIDTH, rngs=rngs)
        self.blocks = nnx.List(
            [nnx.MultiHeadAttention(4, WIDTH, decode=False, use_bias=bias, rngs=rngs) for bias in (True, False)]
        )
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 5, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.norm(x))


class Einsums(nnx.Module):
    """Maps into and out of heads, with axes in unusual orders."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(20, WIDTH, rngs=rngs)
        self.kv = nnx.Einsum("BTD,CDNH->CBTNH", (2, WIDTH, 4, 3), (2, 1, 1, 4, 3), rngs=rngs)
        self.out = nnx.Einsum("BTNH,NHD->BTD", (4, 3, WIDTH), (WIDTH,), rngs=rngs)

    def __call__(self, tokens):
        k, v = self.kv(self.embed(tokens))
        return self.out(jax.nn.silu(k) * v)


class Scanned(nnx.Module):
    """Blocks made by `nnx.vmap` and run by `nnx.scan`: every weight has a first axis of layers."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(20, WIDTH, rngs=rngs)

        @nnx.split_rngs(splits=3)
        @nnx.vmap
        def make(rngs):
            return nnx.Linear(WIDTH, WIDTH, rngs=rngs)

        self.layers = make(rngs)

    def __call__(self, tokens):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x, layer):
            return x + jnp.tanh(layer(x))

        return run(self.embed(tokens), self.layers)


CASES = {
    "list": (Flax, jpeft.Lora.official(rank=3), r"blocks/\d/(query|value|out)|head"),
    "scaled": (Flax, jpeft.Lora(rank=2), r"blocks/\d/(query|out)"),
    "embedding": (Flax, jpeft.Lora.official(rank=3), "embed"),
    "ia3": (Flax, jpeft.Ia3.official(), r"blocks/\d/(key|value)|head"),
    "bitfit": (Flax, jpeft.BitFit(), r"blocks/0/.*|head"),  # where there are biases to merge into
    "full": (Flax, jpeft.Full(), None),
    "einsum": (Einsums, jpeft.Lora.official(rank=3), "kv|out"),
    "einsum_ia3": (Einsums, jpeft.Ia3(), "kv|out"),
    "einsum_bitfit": (Einsums, jpeft.BitFit(), "kv|out"),
    "scanned": (Scanned, jpeft.Lora.official(rank=3), "layers"),
    "scanned_ia3": (Scanned, jpeft.Ia3(), "layers"),
}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 20, (4, 6)), jnp.int32)


def loss(model, batch):
    return jnp.mean((model(batch) - 1.0) ** 2)


@pytest.mark.parametrize("case", CASES)
def test_attached_trained_saved_loaded_and_merged(case, tmp_path, key):
    network, method, where = CASES[case]
    model = network(nnx.Rngs(0))
    start = model(TOKENS)
    tuned = jpeft.attach(model, method, where=where)
    np.testing.assert_array_equal(tuned(TOKENS), start)
    before = jax.tree.map(np.array, split(tuned))
    fitted = jpeft.fit(tuned, [TOKENS] * 3, loss, learning_rate=1e-2)
    after = split(fitted.model)
    jax.tree.map(np.testing.assert_array_equal, after[2], before[2])
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), after[1], before[1])
    assert all(jax.tree.leaves(moved)) and fitted.losses[-1] < fitted.losses[0]
    np.testing.assert_array_equal(model(TOKENS), start)  # what was attached to stays as it was

    said = fitted.model(TOKENS)
    assert np.abs(said - start).max() > 1e-3
    merged = jpeft.merge(fitted.model)
    assert not jax.tree.leaves(nnx.state(merged, jpeft.Adapter))
    np.testing.assert_allclose(merged(TOKENS), said, atol=1e-5)
    if not method.trains_base:
        jpeft.save(fitted.model, method, tmp_path)
        np.testing.assert_array_equal(jpeft.load_adapter(tmp_path, model)(TOKENS), said)


def test_sites_of_lists_plain_attributes_and_stacks_are_found():
    found = {site.path: (site.kind, site.d_in, site.d_out, site.layers) for site in sites(Flax(nnx.Rngs(0)))}
    assert found["embed"] == ("embedding", 20, WIDTH, None) and found["norm"] == ("norm", WIDTH, WIDTH, None)
    assert found["blocks/1/query"] == ("linear", WIDTH, WIDTH, None) and found["head"] == ("linear", WIDTH, 5, None)
    (layers,) = (site for site in sites(Scanned(nnx.Rngs(0))) if site.path == "layers")
    assert (layers.kind, layers.layers) == ("linear", 3)


@pytest.mark.parametrize(
    "module",
    [
        lambda rngs: nnx.Conv(3, 4, (2, 2), rngs=rngs),
        lambda rngs: nnx.LinearGeneral((2, 3), 4, axis=(-2, -1), batch_axis={0: 5}, rngs=rngs),
        lambda rngs: nnx.Einsum("EBD,EDH->EBH", (2, 3, 4), None, rngs=rngs),  # a map of its own for each E
    ],
)
def test_what_is_no_map_of_vectors_is_not_taken_for_one(module):
    view = view_of(module(nnx.Rngs(0)))
    assert view is not None and view.kind == "other"


def test_a_model_that_does_not_say_its_roles_asks_for_a_pattern():
    with pytest.raises(jpeft.UserError, match=r"Flax does not say which of its parts are q, v.*blocks/0/query"):
        jpeft.attach(Flax(nnx.Rngs(0)), jpeft.Lora.official())


def test_nothing_is_attached_twice_at_one_place():
    tuned = jpeft.attach(Flax(nnx.Rngs(0)), jpeft.Lora.official(), where="head")
    with pytest.raises(jpeft.UserError, match="head has an adapter already"):
        jpeft.attach(tuned, jpeft.BitFit(), where="head")
    both = jpeft.attach(tuned, jpeft.BitFit(), where="blocks/0/out")
    assert jpeft.count(jpeft.split(both)[1]) == 8 * (WIDTH + 5) + WIDTH


def test_biases_are_merged_only_where_there_are_some(key):
    tuned = jpeft.attach(Flax(nnx.Rngs(0)), jpeft.BitFit(), where="blocks/1/out")
    with pytest.raises(jpeft.UserError, match="BiasSite at blocks/1/out needs a bias"):
        jpeft.merge(filled(tuned, key))
