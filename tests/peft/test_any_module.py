"""Methods on modules from outside jpeft: Flax's own layers, lists, plain attributes and stacked, scanned blocks."""

import copy
import dataclasses
import json
import pickle
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import load_file

import jpeft
from jpeft.arguments import require_texts
from jpeft.peft.attaching import split
from jpeft.peft.made_by import remembered
from jpeft.peft.method import AddedModules
from jpeft.peft.sites import sites
from jpeft.peft.views import view_of
from jpeft.peft.wrapping import AttachedMethod
from tests.conftest import TINY, random_t5, slow_but
from tests.peft.filled import filled

WIDTH = 16
LORA = jpeft.Lora.official(rank=2)


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
    """Linear maps into and out of heads, with axes in unusual orders."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(20, WIDTH, rngs=rngs)
        self.kv = nnx.Einsum("BTD,CDNH->CBTNH", (2, WIDTH, 4, 3), (2, 1, 1, 4, 3), rngs=rngs)
        self.out = nnx.Einsum("BTNH,NHD->BTD", (4, 3, WIDTH), (WIDTH,), rngs=rngs)

    def __call__(self, tokens):
        k, v = self.kv(self.embed(tokens))
        return self.out(jax.nn.silu(k) * v)


class Scanned(nnx.Module):
    """Blocks created by `nnx.vmap` and run by `nnx.scan`; every weight has a leading axis of layers."""

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
    "bitfit": (Flax, jpeft.BitFit(), r"blocks/0/.*|head"),  # sites with biases to merge into
    "ln": (Flax, jpeft.NormTuning(), "norm"),
    "dora": (Flax, jpeft.Dora(rank=3), r"blocks/0/(query|out)|head"),
    "scanned_dora": (Scanned, jpeft.Dora(rank=3), "layers"),
    "einsum_dora": (Einsums, jpeft.Dora(rank=3), "kv|out"),
    "vera": (Flax, jpeft.Vera(rank=7), r"blocks/0/(query|out)|head"),
    "scanned_vera": (Scanned, jpeft.Vera(rank=7), "layers"),
    "full": (Flax, jpeft.Full(), None),
    "einsum": (Einsums, jpeft.Lora.official(rank=3), "kv|out"),
    "einsum_ia3": (Einsums, jpeft.Ia3(), "kv|out"),
    "einsum_bitfit": (Einsums, jpeft.BitFit(), "kv|out"),
    "scanned": (Scanned, jpeft.Lora.official(rank=3), "layers"),
    "scanned_ia3": (Scanned, jpeft.Ia3(), "layers"),
    "scanned_pissa": (Scanned, jpeft.Lora.official(rank=2, init="pissa"), "layers"),
}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 20, (4, 6)), jnp.int32)


def loss(model, batch):
    return jnp.mean((model(batch) - 1.0) ** 2)


@pytest.mark.parametrize("case", slow_but(("list", "ia3", "scanned"), CASES))
def test_attached_trained_saved_loaded_and_merged(case, tmp_path, key):
    network, method, where = CASES[case]
    model = network(nnx.Rngs(0))
    start = model(TOKENS)
    tuned = jpeft.attach(model, method, where=where)
    off = 1e-6 if "dora" in case or "pissa" in case else 0  # the base's output goes through additional float32 sums
    np.testing.assert_allclose(tuned(TOKENS), start, rtol=0, atol=off)
    before = jax.tree.map(np.array, split(tuned))
    fitted = jpeft.fit(tuned, [TOKENS] * 3, loss, learning_rate=1e-2)
    after = split(fitted.model)
    jax.tree.map(np.testing.assert_array_equal, after[2], before[2])
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), after[1], before[1])
    assert all(jax.tree.leaves(moved)) and fitted.losses[-1] < fitted.losses[0]
    np.testing.assert_array_equal(model(TOKENS), start)  # the original model is unchanged

    said = fitted.model(TOKENS)
    assert np.abs(said - start).max() > 1e-3
    merged = jpeft.merge(fitted.model, heads_apart=case == "embedding")
    assert not jax.tree.leaves(nnx.state(merged, jpeft.Adapter))
    np.testing.assert_allclose(merged(TOKENS), said, atol=1e-5)
    if not method.trains_base:
        jpeft.save(fitted.model, method, tmp_path)
        loaded = jpeft.load_adapter(tmp_path, model)(TOKENS)
        np.testing.assert_allclose(
            loaded, said, rtol=0, atol=1e-5 if "pissa" in case else 0
        )  # as LoRA of twice the rank


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
        lambda rngs: nnx.Einsum("EBD,EDH->EBH", (2, 3, 4), None, rngs=rngs),  # a separate map for each index of E
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


class ScalingSite(nnx.Module):
    def __init__(self, width):
        self.scale_out = jpeft.Adapter(jnp.ones(width))

    def __call__(self, compute, x):
        return compute(x) * self.scale_out[...]

    def fold(self, kernel, bias):
        return kernel * self.scale_out[...], None if bias is None else bias * self.scale_out[...]


@dataclasses.dataclass(frozen=True)
class Scaling(AddedModules):
    """A method of somebody's own that scales the output of norms."""

    name: ClassVar[str] = "scaling"
    kinds: ClassVar[tuple[str, ...]] = ("norm",)

    def create(self, site, key, model):
        return ScalingSite(site.d_out)


class CentringNorm(nnx.Module):
    """A norm whose scale has a name that says nothing, so that jpeft sees neither a scale nor a bias."""

    def __init__(self):
        self.gamma = nnx.Param(jnp.full(4, 2.0))

    def __call__(self, x):
        return (x - x.mean(-1, keepdims=True)) * self.gamma[...]


def test_a_bias_is_merged_into_a_norm_without_a_scale(key):
    norm = lambda: nnx.LayerNorm(4, use_scale=False, rngs=nnx.Rngs(0))
    x = jax.random.normal(key, (3, 4))
    tuned = filled(jpeft.attach(nnx.Dict(it=norm()), jpeft.BitFit(norms=True), where="it"), key)
    merged = jpeft.merge(tuned)
    np.testing.assert_allclose(merged.it(x), tuned.it(x), atol=1e-6)
    assert type(merged.it) is nnx.LayerNorm and merged.it.scale is None
    stacked = nnx.vmap(lambda rngs: nnx.LayerNorm(4, use_scale=False, rngs=rngs))(nnx.Rngs(0).split(2))
    tuned = filled(jpeft.attach(nnx.Dict(it=stacked), jpeft.BitFit(norms=True), where="it"), key)
    np.testing.assert_allclose(jpeft.merge(tuned).it.bias[...], tuned.it.adapter.bias[...])


def test_a_norm_that_has_no_weight_to_hold_it_takes_no_merged_one(key):
    tuned = filled(jpeft.attach(nnx.Dict(it=CentringNorm()), jpeft.BitFit(norms=True), where="it"), key)
    with pytest.raises(jpeft.UserError, match="BiasSite at it needs a bias, and the module has none; it cannot be"):
        jpeft.merge(tuned)
    tuned = jpeft.attach(nnx.Dict(it=nnx.LayerNorm(4, use_scale=False, rngs=nnx.Rngs(0))), Scaling(), where="it")
    with pytest.raises(jpeft.UserError, match="ScalingSite at it needs a scale, and the module has none; it cannot be"):
        jpeft.merge(filled(tuned, key))


def test_nothing_that_happens_to_a_tuned_or_merged_model_happens_to_the_base():
    model = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.BatchNorm(4, rngs=nnx.Rngs(0)))
    tuned = jpeft.attach(model, LORA, where="layers/0")
    tuned(jnp.ones((3, 4)) * 5.0)
    assert not model.layers[1].mean[...].any() and tuned.layers[1].mean[...].any()
    assert tuned.layers[0].kernel is not model.layers[0].kernel
    assert tuned.layers[0].kernel[...] is model.layers[0].kernel[...]  # the array is shared
    assert jpeft.merge(tuned).layers[1].mean is not tuned.layers[1].mean


def test_each_step_of_a_fit_drops_anew_and_statistics_move():
    layers = nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.BatchNorm(4, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(7))
    tuned = jpeft.attach(nnx.Sequential(*layers), LORA, where="layers/0")
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    fitted = jpeft.fit(tuned, [x] * 2, lambda model, batch: jnp.mean(model(batch) ** 2), learning_rate=1e-9)
    assert abs(fitted.losses[0] - fitted.losses[1]) > 1e-3
    assert fitted.model.layers[1].mean[...].any() and not tuned.layers[1].mean[...].any()


class Table(nnx.Module):
    """A table that is not callable and is used through its own methods."""

    def __init__(self):
        self.embedding = nnx.Param(jnp.ones((5, 4)))

    def encode(self, rows):
        return self.embedding[...][rows]


class Activated(nnx.Linear):
    def __call__(self, x):
        return nnx.relu(super().__call__(x))


class Turned(nnx.Module):
    def __init__(self):
        self.kernel = nnx.Param(jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)), jnp.float32))

    def __call__(self, x):
        return x @ self.kernel[...].T


class Convolution(nnx.Module):
    """A module whose kernel only looks like a stack of three layers."""

    def __init__(self):
        self.in_features = self.out_features = 4
        self.kernel = nnx.Param(jnp.ones((3, 4, 4)))

    def __call__(self, x):
        return sum(x @ self.kernel[i] for i in range(3))


def test_a_module_that_is_not_called_is_refused():
    with pytest.raises(jpeft.UserError, match="is a Table, which is not called itself"):
        jpeft.attach(nnx.Dict(table=Table()), LORA, where="table")


@pytest.mark.parametrize("make", [lambda: Activated(4, 4, rngs=nnx.Rngs(0)), Turned])
def test_a_module_that_does_not_compute_what_its_kernel_looks_like_is_not_merged(make, key):
    tuned = filled(jpeft.attach(nnx.Dict(it=make()), LORA, where="it"), key)
    with pytest.raises(jpeft.UserError, match="it is a (Activated|Turned), which does not compute what its weights"):
        jpeft.merge(tuned)


class TiedDecoder(nnx.Module):
    """An autoencoder that decodes with the weights of its encoder, which it reads without calling it."""

    def __init__(self, dtype=None):
        self.encoder = nnx.Linear(4, 4, dtype=dtype, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(4, 4, dtype=dtype, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.head(nnx.tanh(self.encoder(x)) @ self.encoder.kernel[...].T)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_a_weight_that_a_parent_reads_is_noticed_by_a_check_of_the_whole_model(dtype, key):
    x = jax.random.normal(key, (3, 4))
    tuned = filled(jpeft.attach(TiedDecoder(dtype), LORA, where="encoder"), key)
    with pytest.raises(jpeft.UserError, match="merged, the model differs by .* of its output: a part of it seems to"):
        jpeft.merge(tuned, check=lambda model: model(x))
    tuned = filled(jpeft.attach(TiedDecoder(dtype), LORA, where="head"), key)
    merged = jpeft.merge(tuned, check=lambda model: {"y": model(x).astype(jnp.float32)})
    np.testing.assert_allclose(merged(x).astype(float), tuned(x).astype(float), atol=0.1 if dtype else 1e-5)


def test_a_check_may_return_masked_logits_and_look_at_modules_of_any_dtype(key):
    tuned = filled(jpeft.attach(TiedDecoder(), LORA, where="head"), key)
    tuned.encoder.dtype = "auto"
    masked = lambda model: jnp.where(jnp.arange(4) < 2, model.head(jnp.ones((1, 4))), -jnp.inf)
    jpeft.merge(tuned, check=masked)
    calls = iter([0.0, 1.0])
    with pytest.raises(jpeft.UserError, match="merged, the model differs by"):
        jpeft.merge(tuned, check=lambda model: masked(model) + next(calls))


def test_full_tuning_leaves_no_trace_of_itself_when_it_is_merged():
    base = Chain()
    merged = jpeft.merge(jpeft.attach(base, jpeft.Full(), where="first"))
    assert nnx.graphdef(merged) == nnx.graphdef(base)


def test_a_check_that_says_nothing_is_refused():
    tuned = jpeft.attach(TiedDecoder(), LORA, where="head")
    for check, says in (
        (lambda model: model("x"), r"check fails \(.*\); expected a function that returns what a model computes"),
        (lambda model: None, "check returns no array"),
    ):
        with pytest.raises(jpeft.UserError, match=says):
            jpeft.merge(tuned, check=check)


class Roles(nnx.Module):
    """A model of one's own that says its roles as jpeft's do, which does not make its modules jpeft's."""

    site_roles = {"it": "q", "table": "vocabulary"}

    def __init__(self):
        self.it = Activated(4, 4, rngs=nnx.Rngs(0))
        self.table = nnx.Embed(4, 4, rngs=nnx.Rngs(0))


def test_roles_do_not_spare_a_model_of_ones_own_the_checks_of_a_merge(key):
    with pytest.raises(jpeft.UserError, match="it is a Activated, which does not compute what its weights"):
        jpeft.merge(filled(jpeft.attach(Roles(), LORA, where="it"), key))
    with pytest.raises(jpeft.UserError, match="say heads_apart=True if it does not"):
        jpeft.merge(filled(jpeft.attach(Roles(), LORA, where="table"), key))


def test_a_table_that_may_be_the_head_is_merged_only_if_told_that_it_is_not(key):
    """An adapter acts on the lookup; whether the model also calls `attend` for its logits cannot be known."""
    tuned = filled(jpeft.attach(Flax(nnx.Rngs(0)), LORA, where="embed"), key)
    with pytest.raises(jpeft.UserError, match="embed is a Embed.* say heads_apart=True if it does not"):
        jpeft.merge(tuned)
    np.testing.assert_allclose(jpeft.merge(tuned, heads_apart=True)(TOKENS), tuned(TOKENS), atol=1e-5)


class Kinds(nnx.Module):
    """A map, a norm and a table, each by itself."""

    def __init__(self):
        self.embed = nnx.Embed(7, 4, rngs=nnx.Rngs(0))
        self.norm = nnx.LayerNorm(4, rngs=nnx.Rngs(0))
        self.map = nnx.Linear(4, 4, rngs=nnx.Rngs(0))

    def __call__(self, rows):
        return self.map(self.norm(self.embed(rows)))


PICKLED = (LORA, jpeft.Vera(rank=2), jpeft.BitFit(norms=True), jpeft.NormTuning(), jpeft.Full())


@pytest.mark.parametrize("method", PICKLED, ids=lambda method: method.name)
def test_a_tuned_model_is_pickled_as_its_base_is(method, key):
    rows = jnp.arange(7)
    tuned = filled(jpeft.attach(Kinds(), method, where=".*"), key)
    again = pickle.loads(pickle.dumps(tuned))
    assert nnx.graphdef(again) == nnx.graphdef(tuned) and remembered(again) == [method]
    assert [type(part) for _, part in nnx.iter_graph(again)] == [type(part) for _, part in nnx.iter_graph(tuned)]
    graphdef, adapter, base = pickle.loads(pickle.dumps(jpeft.split(tuned)))
    for same in (again, nnx.merge(graphdef, adapter, base), copy.deepcopy(again), nnx.clone(again)):
        np.testing.assert_array_equal(same(rows), tuned(rows))


def test_a_tuned_model_that_was_pickled_is_compiled(key):
    tuned = filled(jpeft.attach(nnx.Dict(it=nnx.Linear(4, 4, rngs=nnx.Rngs(0))), LORA, where="it"), key)
    x = jnp.ones((2, 4))
    compiled = nnx.jit(lambda model, x: model.it(x))
    np.testing.assert_allclose(compiled(pickle.loads(pickle.dumps(tuned)), x), tuned.it(x), atol=1e-6)


def test_a_method_that_was_pickled_in_another_process_has_the_hash_of_this_one():
    attached = AttachedMethod(LORA)
    attached._hash += 1  # Python's hashes of texts differ by process
    assert hash(pickle.loads(pickle.dumps(attached))) == hash(AttachedMethod(LORA))


def test_what_only_looks_like_a_stack_is_told_when_it_is_called():
    tuned = jpeft.attach(nnx.Dict(it=Convolution()), LORA, where="it")
    with pytest.raises(jpeft.UserError, match="a Convolution .*holds 3 layers and is called as one"):
        tuned.it(jnp.ones((2, 4)))


def test_axes_in_any_order_are_as_flax_takes_them(key):
    model = nnx.Dict(it=nnx.LinearGeneral((3, 5), 6, axis=(-1, 0), rngs=nnx.Rngs(0)))
    tuned = filled(jpeft.attach(model, LORA, where="it"), key)
    x = jax.random.normal(key, (3, 4, 5))
    np.testing.assert_allclose(jpeft.merge(tuned).it(x), tuned.it(x), atol=1e-5)


def test_a_scan_that_leaves_adapters_out_is_told():
    class Filtered(Scanned):
        def __call__(self, tokens):
            axes = nnx.StateAxes({nnx.Param: 0, ...: None})

            @nnx.scan(in_axes=(nnx.Carry, axes), out_axes=nnx.Carry)
            def run(x, layer):
                return x + jnp.tanh(layer(x))

            return run(self.embed(tokens), self.layers)

    tuned = jpeft.attach(Filtered(nnx.Rngs(0)), jpeft.Ia3(), where="layers")
    with pytest.raises(jpeft.UserError, match="name jpeft.Adapter, too"):
        tuned(TOKENS)


def test_calls_by_keyword_are_calls(key):
    tuned = filled(jpeft.attach(nnx.Dict(it=nnx.Linear(4, 4, rngs=nnx.Rngs(0))), LORA, where="it"), key)
    x = jax.random.normal(key, (2, 4))
    np.testing.assert_array_equal(tuned.it(out_sharding=None, inputs=x), tuned.it(x))


def test_every_weight_trains_and_a_shared_one_once():
    class Tied(nnx.Module):
        def __init__(self):
            self.a, self.b = nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 4, rngs=nnx.Rngs(1))
            self.b.kernel = self.a.kernel

    class Tower(nnx.Pytree):
        def __init__(self):
            self.inner = nnx.Linear(4, 4, rngs=nnx.Rngs(0))

    for model, weights in ((Tied(), 16 + 8), (nnx.Dict(tower=Tower(), own=nnx.Param(jnp.ones(3))), 20 + 3)):
        assert jpeft.count(jpeft.split(jpeft.attach(model, jpeft.Full()))[1]) == weights


def test_layers_of_a_list_start_apart_whatever_it_is_called():
    model = nnx.Dict(a=nnx.Dict(layers=nnx.List([nnx.Linear(4, 4, rngs=nnx.Rngs(0)) for _ in range(2)])))
    first, second = jpeft.attach(model, LORA, where=".*").a.layers
    assert (first.adapter.lora_a[...] != second.adapter.lora_a[...]).any()


def test_sites_that_are_given_are_looked_at():
    model = Flax(nnx.Rngs(0))
    norm = [site for site in sites(model) if site.kind == "norm"]
    strange = sites(Scanned(nnx.Rngs(0)))[1:]
    for where, says in (
        ([], "where is empty"),
        (norm, "norm is of kind norm"),
        (strange, "the model has no site layers"),
    ):
        with pytest.raises(jpeft.UserError, match=says):
            jpeft.attach(model, LORA, where=where)


def test_an_adapter_is_saved_by_its_own_method_alone_and_lies_alone(tmp_path, key):
    model = Flax(nnx.Rngs(0))
    tuned = filled(jpeft.attach(model, LORA, where="head"), key)
    for method in (jpeft.Ia3(), jpeft.Full(), jpeft.Lora.official(rank=3), jpeft.Lora.official(rank=2, alpha=1.0)):
        with pytest.raises(jpeft.UserError, match="name the method, with its options, that"):
            jpeft.save(tuned, method, tmp_path)
    with pytest.raises(jpeft.UserError, match="nothing is attached"):
        jpeft.save(model, LORA, tmp_path)
    graphdef, adapter, base = split(tuned)
    with pytest.raises(jpeft.UserError, match="holds NaN"):
        jpeft.save(nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf * np.nan, adapter), base), LORA, tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")  # left by an earlier adapter in PEFT's layout
    jpeft.save(tuned, LORA, tmp_path)
    np.testing.assert_array_equal(jpeft.load_adapter(tmp_path, model)(TOKENS), tuned(TOKENS))
    assert not (tmp_path / "adapter_config.json").exists()


def test_a_part_of_ones_own_that_is_called_adapter_is_a_part_like_others(tmp_path, key):
    class Block(nnx.Module):
        def __init__(self):
            self.down, self.adapter = (
                nnx.Linear(4, 4, rngs=nnx.Rngs(0)),
                nnx.Dict(down=nnx.Linear(4, 4, rngs=nnx.Rngs(1))),
            )

        def __call__(self, x):
            return self.down(x) + self.adapter.down(x)

    tuned = filled(jpeft.attach(Block(), LORA, where=".*down"), key)
    jpeft.save(tuned, LORA, tmp_path)
    x = jnp.ones((2, 4))
    np.testing.assert_array_equal(jpeft.load_adapter(tmp_path, Block())(x), tuned(x))


def test_a_fit_says_what_no_gradient_reaches():
    class Unread(nnx.Module):
        def __init__(self):
            self.used, self.unused = nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 4, rngs=nnx.Rngs(1))

        def __call__(self, x):
            return self.used(x) @ self.unused.kernel[...]

    tuned = jpeft.attach(Unread(), LORA, where="used|unused")
    with pytest.warns(UserWarning, match="2 trainable leaves had no gradient at any step, the first of them .*unused"):
        jpeft.fit(tuned, [jnp.ones((2, 4))] * 3, lambda model, x: jnp.mean(model(x) ** 2))


class Chain(nnx.Module):
    """Two linear maps of width 4, one after the other."""

    def __init__(self):
        self.first, self.second = nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 4, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.second(self.first(x))


def squares(model, x):
    return jnp.mean((model(x) - 1) ** 2)


ADALORA = jpeft.AdaLora(initial_rank=3, rank=1, allocate_every=1, final_fraction=0.2)


@pytest.mark.parametrize(
    "method",
    [jpeft.Lora.official(rank=2, b_rate_ratio=16.0), pytest.param(ADALORA, marks=pytest.mark.slow)],
    ids=lambda m: m.name,
)
def test_a_fit_knows_the_method_that_was_attached(method, tmp_path, recwarn):
    tuned = jpeft.attach(Chain(), method, where="first|second")
    batches = [jax.random.normal(jax.random.key(i), (8, 4)) for i in range(8)]
    options = {"loss": squares, "learning_rate": 1e-2}
    named, unnamed = jpeft.fit(tuned, batches, method=method, **options), jpeft.fit(tuned, batches, **options)
    same_leaves(named.model, unnamed.model)
    jpeft.save(unnamed.model, method, tmp_path)
    again = jpeft.load_adapter(tmp_path, Chain())
    same_leaves(*(jpeft.fit(again, batches, **more, **options).model for more in ({"method": method}, {})))
    # Another's, where it is named, and none where the methods are several.
    several = jpeft.attach(jpeft.attach(Chain(), method, where="first"), jpeft.Ia3(), where="second")
    with pytest.raises(jpeft.UserError, match="several methods attached.* say by `method` which one is followed"):
        jpeft.fit(several, batches, **options)
    jpeft.fit(several, batches, method=method, **options)
    if method.rate_factors:
        plain = jpeft.Lora.official(rank=2)
        assert plain == method, "the rates' ratio is no part of what a method computes"
        one, other = (nnx.graphdef(jpeft.attach(Chain(), each, where="first")) for each in (plain, method))
        assert one != other, "of equal structures `nnx.jit` keeps one"
        two_ratios = jpeft.attach(jpeft.attach(Chain(), method, where="first"), plain, where="second")
        with pytest.raises(jpeft.UserError, match="several methods attached.* has learning rates"):
            jpeft.fit(two_ratios, batches, **options)
    assert not recwarn.list, "AdaLoRA prunes values to zero, which is no lack of gradients"


TRAINED_OTHERWISE = (
    dataclasses.replace(ADALORA, initial_fraction=1 / 3),
    jpeft.Vera(rank=2),
    jpeft.Lora.official(rank=2, b_rate_ratio=16.0),
    jpeft.Dora(rank=2, b_rate_ratio=4.0),
)


@pytest.mark.parametrize("method", TRAINED_OTHERWISE, ids=lambda method: method.name)
def test_a_loaded_model_knows_its_method_as_fit_needs_it(method, tmp_path, tiny_checkpoint):
    tuned = jpeft.attach(jpeft.load(tiny_checkpoint)[0], method)
    jpeft.save(tuned, method, tmp_path, base_name=str(tiny_checkpoint))
    (found,) = remembered(jpeft.load(adapter=tmp_path)[0])
    assert type(found) is type(method) and found.flags() == pytest.approx(method.flags())


def same_leaves(one, other):
    for a, b in zip(*(jax.tree.leaves(nnx.state(model, jpeft.Adapter)) for model in (one, other)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_table_of_a_tied_model_is_not_merged(key):
    tied = random_t5(dataclasses.replace(TINY, tie_word_embeddings=True))
    tuned = filled(jpeft.attach(tied, LORA, where="shared"), key)
    with pytest.raises(jpeft.UserError, match="shared is also the head of this model"):
        jpeft.merge(tuned)


class Siamese(nnx.Module):
    """Two linear maps that share a kernel, and a third with its own."""

    def __init__(self):
        self.a, self.b, self.c = (nnx.Linear(4, 4, rngs=nnx.Rngs(i)) for i in range(3))
        self.b.kernel = self.a.kernel

    def __call__(self, x):
        return self.c(self.b(jnp.tanh(self.a(x))))


@pytest.mark.parametrize("where", ["a", "b", "a|b", "a|c"])
@pytest.mark.parametrize("method", [LORA, jpeft.Ia3(), jpeft.Dora(rank=2)], ids=lambda method: method.name)
def test_what_is_merged_into_a_shared_weight_acts_where_it_was_attached(method, where, key):
    tuned = filled(jpeft.attach(Siamese(), method, where=where), key)
    x = jax.random.normal(key, (3, 4))
    with pytest.warns(UserWarning, match="shared with other modules and are no longer, the first of them [ab]/kernel"):
        merged = jpeft.merge(tuned)
    np.testing.assert_allclose(merged(x), tuned(x), atol=1e-5)


def test_full_tuning_keeps_shared_weights_shared(tmp_path, key):
    tuned = filled(jpeft.attach(Siamese(), jpeft.Full(), where="a|b"), key)
    x = jax.random.normal(key, (3, 4))
    merged = jpeft.merge(tuned)
    assert merged.a.kernel is merged.b.kernel
    jpeft.save(tuned, jpeft.Full(), tmp_path)
    written = json.loads((tmp_path / "jpeft_adapter.json").read_text())
    assert (written["format_version"], written["shared"]) == (
        2,
        {"b/kernel": "a/kernel"},
    )  # not in version 1
    loaded = jpeft.load_adapter(tmp_path, Siamese())
    assert loaded.a.kernel is loaded.b.kernel
    for model in (merged, loaded):
        np.testing.assert_array_equal(model(x), tuned(x))
    untied = Siamese()
    untied.b.kernel = nnx.Param(untied.b.kernel[...])
    np.testing.assert_array_equal(jpeft.load_adapter(tmp_path, untied)(x), tuned(x))
    with pytest.raises(jpeft.UserError, match="b/kernel is a weight that modules share, and not all"):
        jpeft.attach(Siamese(), jpeft.Full(), where="a|c")


ALONE = [
    LORA,
    jpeft.Lora.official(rank=2, init="pissa"),
    jpeft.BitFit(),
]


@pytest.mark.parametrize("method", ALONE, ids=lambda method: f"{method.name}-{getattr(method, 'init', '')}")
def test_a_model_that_is_a_map_itself_is_saved_and_loaded(method, tmp_path, key):
    base = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    tuned = filled(jpeft.attach(base, method, where=".*"), key)
    jpeft.save(tuned, method, tmp_path)
    x = jax.random.normal(key, (2, 4))
    np.testing.assert_allclose(jpeft.load_adapter(tmp_path, base)(x), tuned(x), atol=1e-5)


class OneAttention(nnx.Module):
    """A model that is an attention itself: a mean of what comes before it and of its input."""

    site_kind, site_widths = "attention", (4, 4)

    def __call__(self, x, before=None):
        return x if before is None else x + before[1].mean(1, keepdims=True)


def test_a_model_that_is_an_attention_itself_saves_the_prefix_of_a_network(tmp_path):
    method = jpeft.Prefix(prefix_length=2, projection=3)
    jpeft.save(jpeft.attach(OneAttention(), method, where=".*"), method, tmp_path)
    assert set(load_file(tmp_path / "jpeft_adapter.safetensors")) == {"prefix_keys", "prefix_values"}


class Twice(nnx.Module):
    """A map that holds its kernel under another name, too, and has a part with a weight that is frozen."""

    def __init__(self):
        self.kernel = nnx.Param(jax.random.normal(jax.random.key(0), (4, 4)))
        self.also = self.kernel
        self.part = nnx.Linear(4, 4, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.part(x @ self.kernel[...] + x @ self.also[...])


def test_a_weight_that_a_model_itself_holds_twice_is_saved_once(tmp_path, key):
    tuned = filled(jpeft.attach(Twice(), jpeft.Full(), where=""), key)
    jpeft.save(tuned, jpeft.Full(), tmp_path)
    assert json.loads((tmp_path / "jpeft_adapter.json").read_text())["shared"] == {"kernel": "also"}
    x = jax.random.normal(key, (2, 4))
    np.testing.assert_array_equal(jpeft.load_adapter(tmp_path, Twice())(x), tuned(x))


def test_messages_name_a_model_that_is_a_site_itself(key):
    base = nnx.Linear(4, 3, use_bias=False, rngs=nnx.Rngs(0))
    tuned = filled(jpeft.attach(base, jpeft.BitFit(), where=".*"), key)
    with pytest.raises(jpeft.UserError, match="BiasSite at the model itself needs a bias"):
        jpeft.merge(tuned)
    with pytest.raises(jpeft.UserError, match="the model itself has an adapter already"):
        jpeft.attach(tuned, LORA, where=".*")
    with pytest.raises(jpeft.UserError, match="what trains at the model itself is not what"):
        jpeft.save(tuned, LORA, "nowhere")
    with pytest.raises(jpeft.UserError, match="^(kernel|bias) is complex64"):
        jpeft.attach(nnx.Linear(4, 3, param_dtype=jnp.complex64, rngs=nnx.Rngs(0)), LORA, where=".*")


class Scaled(nnx.Module):
    """A linear map that multiplies its output by four."""

    def __init__(self, dtype):
        self.kernel = nnx.Param(jax.random.normal(jax.random.key(0), (8, 8)).astype(dtype))

    def __call__(self, x):
        return (x.astype(self.kernel.dtype) @ self.kernel[...]) * 4


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_a_small_change_is_held_against_the_kernel_in_any_dtype(dtype, key):
    tuned = jpeft.attach(nnx.Dict(it=Scaled(dtype)), LORA, where="it")
    tuned.it.adapter.lora_b.set_value(1e-3 * jax.random.normal(key, tuned.it.adapter.lora_b.shape))
    with pytest.raises(jpeft.UserError, match="is off by 3 of what they change"):
        jpeft.merge(tuned)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("computes_in", [None, jnp.bfloat16, jnp.float32])
def test_narrow_weights_are_merged_and_keep_their_dtype(dtype, computes_in, key):
    base = nnx.Dict(it=nnx.Linear(8, 8, param_dtype=dtype, dtype=computes_in, rngs=nnx.Rngs(0)))
    base.it.bias.set_value(jnp.full(8, 100, dtype))  # large beside the rest of the output
    tuned = filled(jpeft.attach(base, LORA, where="it"), key)
    merged, x = jpeft.merge(tuned), jax.random.normal(key, (3, 8))
    assert merged.it.kernel.dtype == dtype and merged.it.bias.dtype == dtype
    np.testing.assert_allclose(*(model.it(x).astype(jnp.float32) for model in (merged, tuned)), atol=1.0)


def test_whole_numbers_and_complex_ones_are_refused(key):
    whole = Scaled(jnp.float32)
    whole.kernel = nnx.Param(jnp.ones((8, 8), jnp.int8))
    with pytest.raises(jpeft.UserError, match="it keeps its weights as int8"):
        jpeft.merge(filled(jpeft.attach(nnx.Dict(it=whole), LORA, where="it"), key))
    imaginary = nnx.Dict(it=nnx.Linear(4, 4, param_dtype=jnp.complex64, rngs=nnx.Rngs(0)))
    with pytest.raises(jpeft.UserError, match="it/(kernel|bias) is complex64; methods attach to real weights only"):
        jpeft.attach(imaginary, LORA, where="it")


@pytest.mark.parametrize("norm", [nnx.WeightNorm, nnx.SpectralNorm])
def test_what_its_parent_normalizes_is_not_merged(norm, key):
    model = nnx.Dict(it=norm(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0)))
    tuned = filled(jpeft.attach(model, LORA, where=".*layer_instance"), key)
    with pytest.raises(jpeft.UserError, match=f"within {norm.__name__}, which would normalize"):
        jpeft.merge(tuned)


def test_a_directory_holds_one_adapter_or_one_model(tmp_path, tiny_checkpoint, key):
    model, tokenizer = jpeft.load(tiny_checkpoint)
    tuned, whole = (filled(jpeft.attach(model, method), key) for method in (jpeft.Lora(rank=2), jpeft.Full()))
    jpeft.save(tuned, jpeft.Lora(rank=2), tmp_path / "first")
    jpeft.save(whole, jpeft.Full(), tmp_path / "first", tokenizer=tokenizer)
    with pytest.raises(jpeft.UserError, match="first is a whole model, .* open it by jpeft.load"):
        jpeft.load_adapter(tmp_path / "first", model)
    opened, _ = jpeft.load(tmp_path / "first")
    own = jax.tree.leaves(nnx.state(whole, jpeft.Adapter))
    for ours, its in zip(own, jax.tree.leaves(nnx.state(opened, nnx.Param)), strict=True):
        np.testing.assert_array_equal(ours, its)
    before = sorted(tmp_path.glob("first/*"))
    with pytest.raises(jpeft.UserError, match="model.safetensors is of a whole model; name another directory"):
        jpeft.save(tuned, jpeft.Lora(rank=2), tmp_path / "first")
    assert sorted(tmp_path.glob("first/*")) == before

    (tmp_path / "second").mkdir()
    (tmp_path / "second/task.json").write_text("{}")
    with pytest.warns(UserWarning, match="second/task.json, of the adapter that was there, stays"):
        jpeft.save(tuned, jpeft.Lora(rank=2), tmp_path / "second")


def test_a_rate_that_trains_nothing_is_refused():
    tuned = jpeft.attach(nnx.Dict(it=nnx.Linear(4, 4, rngs=nnx.Rngs(0))), LORA, where="it")
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(jpeft.UserError, match=f"learning_rate is {rate}; expected a number above 0"):
            jpeft.fit(tuned, [jnp.ones((2, 4))], lambda model, x: jnp.mean(model.it(x)), learning_rate=rate)
    with pytest.raises(jpeft.UserError, match="an optimizer, which has its own rates"):
        jpeft.fit(tuned, [], lambda model, x: 0.0, learning_rate=1e-3, optimizer=optax.sgd(1e-3))


@pytest.mark.filterwarnings("ignore:1 of 1 answer reached max_output_length")
def test_answers_in_code_compile_once_and_look_at_what_they_are_given_first(tiny_checkpoint, monkeypatch):
    model, tokenizer = jpeft.load(tiny_checkpoint)
    compiled = []
    prepare = jax.stages.Lowered.compile
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda *args: compiled.append(1) or prepare(*args))
    sizes = {"max_output_length": 3, "batch_size": 2}
    first = jpeft.generate(model, tokenizer, ["coach goal"], **sizes)
    assert compiled == [1]
    assert jpeft.generate(jpeft.load(tiny_checkpoint)[0], tokenizer, ["coach goal"], **sizes) == first
    tuned = jpeft.attach(model, jpeft.Lora(rank=2))
    for seed in range(2):
        jpeft.generate(filled(tuned, jax.random.key(seed)), tokenizer, ["coach goal"], **sizes)
    assert compiled == [1, 1]  # once with an adapter, not once per adapter
    elsewhere = nnx.merge(nnx.graphdef(model), jax.device_put(nnx.state(model), jax.devices()[1]))
    assert jpeft.generate(elsewhere, tokenizer, ["coach goal"], **sizes) == first
    assert compiled == [1, 1, 1]
    shorter = jpeft.generate(model, tokenizer, ["coach goal"], **{**sizes, "max_output_length": 1})
    jpeft.generate(model, tokenizer, ["coach goal"], **sizes, num_beams=2)
    assert compiled == [1] * 5 and len(shorter[0]) < len(first[0])
    assert jpeft.generate(model, tokenizer, []) == []
    monkeypatch.setattr(jpeft.api, "generate", None)
    for call, says in (
        (lambda: jpeft.evaluate(model, tokenizer, ["a"], ["b", "c"], metric="accuracy"), "1 inputs and 2 targets"),
        (lambda: jpeft.evaluate(model, tokenizer, ["a"], ["b"], metric="acuracy"), "acuracy"),
        (
            lambda: jpeft.evaluate(model, tokenizer, ["a"], ["b"], metric="expected_calibration_error"),
            "needs the probability of every label",
        ),
        (lambda: jpeft.generate(model, tokenizer, "a b"), "inputs is 'a b'; expected a list of texts"),
        (lambda: require_texts("inputs", ["a", 1]), "inputs holds 1; expected texts"),
        (lambda: jpeft.evaluate(model, tokenizer, ["a"], "b", metric="accuracy"), "targets is 'b'; expected a list"),
        (lambda: jpeft.load("nope"), "^name 'nope' is no directory here .* give name a local directory"),
        (
            lambda: jpeft.generate(model, tokenizer, ["a"], num_beams=0),
            "num_beams is 0; expected a whole number, 1 or more",
        ),
        (lambda: jpeft.generate(model, tokenizer, ["a"], max_input_length=1), "and max_input_length is 1: no room"),
    ):
        with pytest.raises(jpeft.UserError, match=says):
            call()


def test_inputs_and_answers_that_are_cut_in_code_are_counted(tiny_checkpoint):
    model, tokenizer = jpeft.load(tiny_checkpoint)
    ask = lambda *inputs: jpeft.generate(model, tokenizer, inputs, max_output_length=2, max_input_length=8)
    with pytest.warns(UserWarning) as told:
        ask("coach goal " * 20, "coach")
        ask("coach", "goal")
    cut = "1 of 2 inputs lost their end: they are longer than max_input_length, 8 tokens."
    unended = "2 of 2 answers reached max_output_length, 2 tokens, before their end."
    assert [str(warning.message) for warning in told] == [cut, unended, unended]


def test_what_has_other_random_matrices_is_not_saved_as_this(tmp_path):
    """A file has VeRA's seed but not its matrices, whose sizes are those of the widest adapted map."""
    vera = jpeft.Vera(rank=4)
    model = random_t5(TINY)
    with pytest.raises(jpeft.UserError, match="name the method, with its options, that was attached"):
        jpeft.save(jpeft.attach(model, vera), jpeft.Vera(rank=4, projection_seed=5), tmp_path)
    in_turns = jpeft.attach(jpeft.attach(model, vera, where=r"encoder/.*/(q|v)"), vera, where=r"encoder/.*/wo")
    with pytest.raises(jpeft.UserError, match=r"attached to all of it, in one call"):
        jpeft.save(in_turns, vera, tmp_path)
    jpeft.save(jpeft.attach(model, vera), vera, tmp_path)


def test_fit_takes_the_method_that_is_attached_and_steps_that_there_are():
    model = nnx.Dict(it=nnx.Linear(4, 4, rngs=nnx.Rngs(0)))
    allocated = jpeft.AdaLora(rank=1, initial_rank=2)
    loss = lambda model, x: jnp.mean(model.it(x) ** 2)
    batches = [jnp.ones((2, 4))] * 3
    for attached, method in ((LORA, allocated), (allocated, LORA)):
        with pytest.raises(jpeft.UserError, match="is not what it makes; name the method"):
            jpeft.fit(jpeft.attach(model, attached, where="it"), batches, loss, method=method, total_steps=3)
    tuned = jpeft.attach(model, allocated, where="it")
    for steps, says in (
        (-1, "total_steps is -1; expected a whole number, 1 or more"),
        (2, "total_steps is 2, and there are 3 batches"),
    ):
        with pytest.raises(jpeft.UserError, match=says):
            jpeft.fit(tuned, batches, loss, method=allocated, total_steps=steps)
    assert len(jpeft.fit(tuned, batches, loss, method=allocated, total_steps=3).losses) == 3


@pytest.mark.slow
def test_fit_looks_for_its_method_beside_what_others_have_attached():
    """The wider maps of the other method do not determine the sizes of VeRA's matrices."""
    model, vera = random_t5(TINY), jpeft.Vera(rank=2)
    both = jpeft.attach(jpeft.attach(model, vera, where=r"encoder/.*/q"), jpeft.Lora(rank=2), where=r"encoder/.*/wo")
    tokens = {name: np.full((1, 2), 3, np.int32) for name in ("decoder_input_tokens", "decoder_target_tokens")}
    batch = {**tokens, "encoder_input_tokens": np.full((1, 4), 3, np.int32)}
    batch["decoder_loss_weights"] = np.ones((1, 2), np.float32)
    for method in (vera, jpeft.Lora(rank=2)):
        assert len(jpeft.fit(both, [batch], method=method).losses) == 1
    for method in (jpeft.Vera(rank=2, projection_seed=1), jpeft.Ia3()):
        with pytest.raises(jpeft.UserError, match="is not what it makes"):
            jpeft.fit(both, [batch], method=method)


def test_a_batch_that_lacks_what_the_loss_reads_is_one_line():
    tuned = jpeft.attach(random_t5(TINY), jpeft.Lora(rank=2))
    with pytest.raises(jpeft.UserError, match="a batch has decoder_input_tokens and lacks '"):
        jpeft.fit(tuned, [{"decoder_input_tokens": np.zeros((1, 2), np.int32)}])


@pytest.mark.slow
def test_a_base_in_few_bits_is_named_when_its_adapter_is_saved(tmp_path):
    model, _ = jpeft.load("mini", quantization="int8")
    with pytest.warns(UserWarning, match="the base is kept in int8, .* load it with quantization='int8'"):
        jpeft.save(jpeft.attach(model, jpeft.Lora(rank=2)), jpeft.Lora(rank=2), tmp_path)
