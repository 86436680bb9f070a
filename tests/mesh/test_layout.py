"""The sharding rules: every leaf has one, and an impossible mesh is rejected with the reason."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from jpeft.errors import UserError
from jpeft.mesh.layout import Layout
from jpeft.mesh.rules import leaf_name, spec_of
from jpeft.model.family import family_with
from jpeft.model.placement import placed
from jpeft.peft.attaching import attach, split
from jpeft.peft.method import AddedModules
from jpeft.peft.methods import METHODS, build
from jpeft.peft.selection import select
from jpeft.peft.variables import Adapter
from jpeft.pretrain.optimizer import RelativeOptimizer
from jpeft.train.optimizer import AdamW
from jpeft.train.schedule import constant
from jpeft.train.step import init_state, zero_sums
from tests.conftest import TINY
from tests.decoders import MORE, TINY_DECODERS

FOUR_HEADS = dataclasses.replace(TINY, num_heads=4)


def trees(method: str, reading: str, config=FOUR_HEADS):
    """Shapes of a run's trees: base, state with optimizer, gradient sums."""

    graphdef, shapes = nnx.split(family_with(config).abstract(config))

    def make(weights):
        model = nnx.merge(graphdef, weights)
        chosen = build(method, reading, {})
        _, adapter, base = split(attach(model, chosen, select(model, chosen), jax.random.key(0)))
        state = init_state(adapter, AdamW(weight_decay=0.1, clip_grad_norm=1.0))
        return base, state, zero_sums(adapter)

    return jax.eval_shape(make, shapes)


@pytest.mark.parametrize(("tied", "gated"), [(True, False), (False, True)])
@pytest.mark.parametrize("reading", ["paper", "official"])
@pytest.mark.parametrize("method", METHODS)
def test_every_leaf_has_a_rule(method, reading, tied, gated):
    config = dataclasses.replace(
        FOUR_HEADS, tie_word_embeddings=tied, feed_forward_proj="gated-gelu" if gated else "relu"
    )
    layout = Layout.of_devices(model=4)
    for tree in trees(method, reading, config):
        jax.tree.map(lambda leaf, sharding: sharding.shard_shape(leaf.shape), tree, layout.shardings(tree))


@pytest.mark.parametrize("kind", [*TINY_DECODERS, *MORE])
@pytest.mark.parametrize("method", ["full", "lora", "bitfit", "prompt", "prefix"])
def test_every_leaf_of_a_decoder_only_model_has_a_rule(method, kind):
    """Biases are sharded like their layer's output: split into heads or widths, or whole after a product over them."""
    layout = Layout.of_devices(model=4)
    for tree in trees(method, "official", {**TINY_DECODERS, **MORE}[kind]):
        jax.tree.map(lambda leaf, sharding: sharding.shard_shape(leaf.shape), tree, layout.shardings(tree))
    key = jax.tree_util.DictKey
    path = [key(part) for part in ("decoder", "segments", 0, "feed_forward", "up", "bias")]
    assert spec_of(path, (3, 24)) == P(None, "model")
    assert spec_of([*path[:4], key("down"), key("bias")], (3, 16)) in (P(None), P(None, None), P())


def test_what_an_optimizer_sums_over_dimensions_is_whole():
    """Adafactor keeps a row and a column per factored matrix, and a placeholder of one element for the others."""
    kernel = {"encoder": {"self_attention": {"q": {"kernel": jax.ShapeDtypeStruct((128, 256), "float32")}}}}
    state = jax.eval_shape(RelativeOptimizer("adafactor", 0.0, 1.0)(constant(0.1)).init, kernel)
    shardings = Layout.of_devices(fsdp=2, model=2).shardings(state)
    jax.tree.map(lambda leaf, sharding: sharding.shard_shape(leaf.shape), state, shardings)
    assert {s.spec for s in jax.tree.leaves(shardings)} == {P()} and len(jax.tree.leaves(state)) > 3


def test_a_leaf_that_nobody_thought_of_is_an_error():
    with pytest.raises(LookupError, match="no sharding rule for .*new_thing.*shape"):
        spec_of([jax.tree_util.DictKey("encoder"), jax.tree_util.DictKey("new_thing")], (3, 4))


class Halves(nnx.Module):
    def __init__(self, key, d_in: int, d_out: int):
        self.kernel = Adapter(jax.random.normal(key, (d_in, 3)))  # of no weight's shape
        self.half_out = Adapter(jnp.zeros((3, d_out)))

    def __call__(self, compute, x):
        return compute(x) + x @ self.kernel[...] @ self.half_out[...]


@dataclasses.dataclass(frozen=True)
class Undeclared(AddedModules):
    name: ClassVar[str] = "undeclared"

    @property
    def default_roles(self):
        return ("q",)

    def create(self, site, key, model):
        return Halves(key, site.d_in, site.d_out)


def test_leaves_of_a_method_without_leaf_axes_are_replicated(monkeypatch):
    monkeypatch.setitem(METHODS, Undeclared.name, Undeclared)
    layout = Layout.of_devices(fsdp=2, model=2)
    _, state, sums = trees("undeclared", "paper")
    shardings = jax.tree.leaves(layout.shardings((state, sums)))
    assert shardings and not any(axis == "model" for sharding in shardings for axis in sharding.spec)


def test_two_methods_with_other_axes_for_one_leaf_are_told(monkeypatch):
    class Other(Undeclared):
        name: ClassVar[str] = "other"
        leaf_axes: ClassVar = {"lora_a": ("out", None)}

    monkeypatch.setitem(METHODS, Other.name, Other)
    with pytest.raises(UserError, match="of other has .'out', None. for the leaf 'lora_a', and that of lora .'in', No"):
        Layout.of_devices().shardings(trees("lora", "paper")[1])


def test_heads_widths_and_vocabulary_are_cut_and_the_optimizer_follows():
    base, state, _ = trees("lora", "paper")
    layout = Layout.of_devices(model=4)
    cut = {
        leaf_name(path): sharding.spec
        for path, sharding in jax.tree_util.tree_flatten_with_path(layout.shardings((base, state.adapter)))[0]
    }
    assert cut["shared/embedding"] == P("model", "fsdp") and cut["lm_head/kernel"] == P("fsdp", "model")
    assert cut["self_attention/q/kernel"] == P(None, "fsdp", "model")
    assert cut["self_attention/o/kernel"] == P(None, "model", "fsdp")
    assert cut["self_attention/q/lora_b"] == P(None, None, "model") and cut["self_attention/q/lora_a"] == P(None)
    assert cut["self_attention/o/lora_a"] == P(None, "model", None)
    assert cut["feed_forward_norm/scale"] == P(None)
    of_adapter = jax.tree.leaves(layout.shardings(state.adapter))
    of_moments = [s for s in jax.tree.leaves(layout.shardings(state.opt_state)) if s.spec != P()]
    assert of_moments == [s for s in of_adapter * 2 if s.spec != P()]  # first and second moments


@pytest.mark.parametrize("method", METHODS)
def test_what_trains_is_cut_alike_wherever_it_is(method):
    """In the state of a run, in its moments, by itself; and full tuning's leaves like the weights that they replace."""
    base, state, _ = trees(method, "paper")
    layout = Layout.of_devices(fsdp=2, model=2)
    alone = layout.shardings(state.adapter)
    in_state = layout.shardings(state)
    assert in_state.adapter == alone
    cut = lambda tree: [s.spec for s in jax.tree.leaves(tree) if any(s.spec)]
    assert cut(in_state.opt_state) == cut(alone) * 2
    if method == "full":
        original, _, _ = trees("lora", "paper")
        weights = layout.shardings(original)
        assert jax.tree.leaves(alone) == jax.tree.leaves(weights) and not jax.tree.leaves(base)
        assert cut(alone)


@pytest.mark.parametrize(
    ("mesh", "says"),
    [
        ({"model": 4}, "relative_attention_bias/embedding has a dimension of 2, which mesh.model=4 does not divide"),
        ({"data": 8}, "mesh.data=8 x mesh.fsdp=1 x mesh.model=1 asks for 8 devices; there are 4"),
    ],
)
def test_what_can_not_be_cut_is_refused_with_the_reason(mesh, says):
    """The tiny T5 has two heads."""
    with pytest.raises(UserError, match=says):
        Layout.of_devices(**mesh).shardings(trees("lora", "paper", TINY)[0])


@pytest.mark.parametrize(
    ("mesh", "config", "answers"),
    [
        ({"model": 4}, FOUR_HEADS, {"data": 1, "fsdp": 1, "model": 4}),
        ({"fsdp": 4}, FOUR_HEADS, {"data": 1, "fsdp": 1, "model": 4}),
        ({"data": 2, "fsdp": 2}, FOUR_HEADS, {"data": 2, "fsdp": 1, "model": 2}),
        ({"fsdp": 4}, TINY, {"data": 4, "fsdp": 1, "model": 1}),  # two heads: their biases do not split in four
    ],
)
def test_weights_are_whole_or_cut_by_heads_where_answers_are_written(mesh, config, answers):
    base, state, _ = trees("lora", "paper", config)
    layout = Layout.of_devices(**mesh)
    others = layout.for_answers((state.adapter, base))
    assert others.shape == answers and (others == layout) == ("fsdp" not in mesh)
    assert list(others.mesh.devices.flat) == list(layout.mesh.devices.flat)


def test_each_part_of_a_batch_draws_for_itself_and_gives_its_own_result():
    layout = Layout.of_devices(data=2, model=2)

    def part(offset, key, batch):
        rows = placed(batch, "hidden") + offset
        return jnp.sum(rows), jax.random.uniform(key), jax.grad(lambda offset: jnp.sum(batch * offset))(offset)

    batch = np.arange(4.0, dtype=np.float32).reshape(4, 1, 1)
    sums, drawn, grads = jax.jit(layout.traced(layout.each_part(part)))(jnp.float32(10), jax.random.key(0), batch)
    assert sums.tolist() == [21.0, 25.0] and grads.tolist() == [1.0, 5.0]
    assert drawn.shape == (2,) and drawn[0] != drawn[1]


def test_sums_of_parts_lie_with_those_who_make_them():
    layout = Layout.of_devices(data=2, model=2)
    _, state, _ = trees("lora", "paper")
    sums = layout.describe(jax.eval_shape(lambda adapter: zero_sums(adapter, 2), state.adapter))
    assert sums.by_part.loss.sharding.spec == P("data")
    for part, whole in zip(jax.tree.leaves(sums.grads), jax.tree.leaves(layout.describe(state.adapter)), strict=True):
        assert part.shape == (2, *whole.shape) and part.sharding.spec == P("data", *whole.sharding.spec)
