"""Modules of other people's, called in ways that jpeft's own never are: what is attached is right, or refuses."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.nnx import bridge

import jpeft
from jpeft.peft.made_by import remembered
from jpeft.peft.method import AddedModules
from tests.peft.filled import filled

LORA = jpeft.Lora.official(rank=2)
X = jax.random.normal(jax.random.key(0), (3, 4))


def linear(**options):
    return nnx.Linear(4, 4, rngs=nnx.Rngs(0), **options)


def squares(model, x):
    return jnp.mean((model(x) - 1) ** 2)


METHODS = (LORA, jpeft.Lora(rank=2), jpeft.Ia3(), jpeft.Dora(rank=2), jpeft.AdaLora(rank=2), jpeft.Vera(rank=2))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.name}-{method.reading}")
def test_integers_are_activations_as_they_are_to_the_base(method, key):
    tuned = filled(jpeft.attach(nnx.Dict(a=linear()), method, where="a"), key).a
    whole = jnp.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(tuned(whole), tuned(whole.astype(jnp.float32)))
    np.testing.assert_array_equal(tuned(whole > 5), tuned((whole > 5).astype(jnp.float32)))
    with pytest.raises(jpeft.UserError, match="is called with complex64; methods act on real numbers"):
        tuned(X + 1j * X)


class TouchingSite(nnx.Module):
    def __init__(self, width):
        self.shift = jpeft.Adapter(jnp.zeros(width))

    def __call__(self, compute, x):
        return compute(x) + self.shift[...]


@dataclasses.dataclass(frozen=True)
class Touching(AddedModules):
    """A method of somebody's own at maps, tables and norms, whose module is called as the documentation says."""

    name: ClassVar[str] = "touching"
    kinds: ClassVar[tuple[str, ...]] = ("linear", "embedding", "norm")

    def create(self, site, key, model):
        return TouchingSite(site.d_out)


def test_integers_keep_the_dtype_that_the_base_gives():
    base = linear(param_dtype=jnp.bfloat16)
    tuned = jpeft.attach(nnx.Dict(a=base), LORA, where="a").a
    whole = jnp.arange(12).reshape(3, 4)
    assert tuned(whole).dtype == base(whole).dtype == jnp.bfloat16
    np.testing.assert_array_equal(tuned(whole), base(whole))


class Gated(nnx.Module):
    """A linear map with another array beside its activations."""

    def __init__(self):
        self.kernel = nnx.Param(jax.random.normal(jax.random.key(1), (4, 4)))

    def __call__(self, x, *, gate):
        return (x @ self.kernel[...]) * gate


def test_activations_are_the_first_parameter_in_whatever_order_arrays_come(key):
    tuned = filled(jpeft.attach(nnx.Dict(a=Gated()), LORA, where="a"), key).a
    gate = jnp.full((3, 4), 0.3)
    right = tuned(X, gate=gate)
    np.testing.assert_array_equal(tuned(x=X, gate=gate), right)
    np.testing.assert_array_equal(tuned(gate=gate, x=X), right)
    with pytest.raises(jpeft.UserError, match=r"called with an array of shape \(3, 5\) first; expected .* width 4"):
        tuned(jnp.ones((3, 5)), gate=gate)


class Looked(nnx.Module):
    """A table with another array beside its rows."""

    def __init__(self):
        self.embedding = nnx.Param(jax.random.normal(jax.random.key(1), (10, 4)))

    def __call__(self, rows, *, times):
        return self.embedding[...][rows] * times


@pytest.mark.parametrize("method", [LORA, Touching()], ids=["lora", "of_ones_own"])
def test_a_table_is_called_by_keyword_as_by_position(method, key):
    rows, times = jnp.array([[1, 2, 9]]), jnp.full((1, 3, 1), 0.5)
    tuned = filled(jpeft.attach(nnx.Dict(a=nnx.Embed(10, 4, rngs=nnx.Rngs(0)), b=Looked()), method, where=".*"), key)
    np.testing.assert_array_equal(tuned.a(inputs=rows), tuned.a(rows))
    for call in ({"rows": rows, "times": times}, {"times": times, "rows": rows}):
        np.testing.assert_array_equal(tuned.b(**call), tuned.b(rows, times=times))


class Embedded(nnx.Module):
    """An embedded input whose parameters have names of their own."""

    site_kind, site_widths = "input", (4, 4)

    def __call__(self, embedded, visible):
        return embedded, visible


def test_a_norm_and_an_input_are_called_by_keyword_as_by_position(key):
    model = nnx.Dict(norm=nnx.LayerNorm(4, rngs=nnx.Rngs(0)), input=Embedded())
    prompt = jpeft.Prompt(prompt_length=2, init="uniform")
    tuned = filled(jpeft.attach(jpeft.attach(model, Touching(), where="norm"), prompt, where="input"), key)
    x, mask = jax.random.normal(key, (2, 3, 4)), jnp.ones((2, 3), bool)
    np.testing.assert_array_equal(tuned.norm(x=x), tuned.norm(x))
    jax.tree.map(np.testing.assert_array_equal, tuned.input(x, visible=mask), tuned.input(x, mask))


class Product(nnx.Module):
    """A table that is multiplied by what would be its rows, in floats."""

    def __init__(self):
        self.embedding = nnx.Param(jax.random.normal(jax.random.key(1), (10, 4)))

    def __call__(self, x):
        return x @ self.embedding[...]


@pytest.mark.parametrize("method", [LORA, Touching()], ids=["lora", "of_ones_own"])
def test_a_table_that_is_called_with_no_rows_is_refused(method):
    tuned = jpeft.attach(nnx.Dict(a=Product()), method, where="a").a
    with pytest.raises(jpeft.UserError, match="a Product with something attached is called with float32; .*rows of"):
        tuned(jax.nn.one_hot(jnp.array([1, 2]), 10))


class Returning(nnx.Module):
    """A map, a table, or a norm whose call returns what `returned` makes of its output."""

    def __init__(self, kind, returned):
        shape = {"kernel": (4, 4), "embedding": (9, 4), "scale": (4,)}[kind]
        self.kind, self.returned = kind, returned
        setattr(self, kind, nnx.Param(jax.random.normal(jax.random.key(1), shape)))

    def __call__(self, x):
        weight = getattr(self, self.kind)[...]
        return self.returned(
            {"kernel": jnp.matmul, "embedding": lambda x, w: w[x], "scale": jnp.multiply}[self.kind](x, weight)
        )


class ReturningEinsum(Returning):
    einsum_str = "ab,bc->ca"

    def __call__(self, x):
        return self.returned(jnp.einsum(self.einsum_str, x, self.kernel[...]))


class ReturningGeneral(Returning):
    in_features, out_features, axis = (4,), (4,), (-1,)


OTHERWISE = {
    "tuple": (lambda y: (y, y.sum()), "returns a tuple; expected an array of shape"),
    "pooled": (lambda y: y.mean(0), r"returns an array of shape \(\d,\); expected"),
    "wider": (lambda y: y[..., None] + jnp.zeros(2), r"returns an array of shape \(\d, \d, 2\); expected"),
}


@pytest.mark.parametrize("returned, says", OTHERWISE.values(), ids=OTHERWISE)
@pytest.mark.parametrize("make", [Returning, ReturningEinsum, ReturningGeneral])
def test_a_map_that_returns_another_shape_is_refused(make, returned, says):
    tuned = jpeft.attach(nnx.Dict(a=make("kernel", returned)), LORA, where="a").a
    with pytest.raises(jpeft.UserError, match=f"a {make.__name__} with something attached {says}"):
        tuned(X)


@pytest.mark.parametrize("method", (*METHODS, jpeft.BitFit(), Touching()), ids=lambda m: f"{m.name}-{m.reading}")
def test_no_method_takes_a_map_that_returns_a_tuple(method):
    tuned = jpeft.attach(nnx.Dict(a=Returning("kernel", OTHERWISE["tuple"][0])), method, where="a").a
    with pytest.raises(jpeft.UserError, match=f"a Returning with something attached {OTHERWISE['tuple'][1]}"):
        tuned(X)


@pytest.mark.parametrize("method", [LORA, Touching()], ids=["lora", "of_ones_own"])
@pytest.mark.parametrize("returned, says", OTHERWISE.values(), ids=OTHERWISE)
def test_a_table_that_returns_another_shape_is_refused(method, returned, says):
    tuned = jpeft.attach(nnx.Dict(a=Returning("embedding", returned), b=Product()), method, where=".*")
    with pytest.raises(jpeft.UserError, match=f"a Returning with something attached {says}"):
        tuned.a(jnp.array([1, 2, 8]))
    with pytest.raises(
        jpeft.UserError, match=r"a Product .* of shape \(2, 4\); expected an array of shape \(2, 10, 4\)"
    ):
        tuned.b(jax.nn.one_hot(jnp.array([1, 2]), 10, dtype=jnp.int32))


def test_a_norm_that_returns_no_array_is_refused_a_bias_alone():
    model = nnx.Dict(a=Returning("scale", lambda y: (y, y.sum())))
    with pytest.raises(jpeft.UserError, match="a Returning with something attached returns a tuple; expected"):
        jpeft.attach(model, jpeft.BitFit(norms=True), where="a").a(X)
    assert jpeft.attach(model, jpeft.NormTuning(), where="a").a(X)[0].shape == X.shape


class OwnEinsum(nnx.Module):
    """An einsum of one array and the activations, in the order of its string."""

    def __init__(self, text, kernel_first, shape):
        self.einsum_str, self.kernel_first = text, kernel_first
        self.w = nnx.Param(jax.random.normal(jax.random.key(1), shape))

    def __call__(self, x):
        return jnp.einsum(self.einsum_str, *((self.w[...], x) if self.kernel_first else (x, self.w[...])))


@pytest.mark.parametrize("text, becomes", [("DF,BD->BF", "BD,DF->BF"), ("DF, DB -> FB", "DB,DF->FB")])
@pytest.mark.parametrize("shape", [(4, 4), (4, 3)])
def test_an_einsum_with_its_kernel_first_is_refused(text, becomes, shape):
    model = nnx.Dict(a=OwnEinsum(text, True, shape))
    with pytest.raises(
        jpeft.UserError, match=f"a is a OwnEinsum whose einsum_str .* has the kernel first.*'{becomes}'"
    ):
        jpeft.attach(model, LORA, where="a")


@pytest.mark.parametrize("text", ["BD,DF->BF", "DB,FD->FB"])
def test_an_einsum_of_ones_own_with_its_kernel_second_is_a_map(text, key):
    tuned = filled(jpeft.attach(nnx.Dict(a=OwnEinsum(text, False, (4, 4))), LORA, where="a"), key)
    x = jax.random.normal(key, (4, 4))
    np.testing.assert_allclose(jpeft.merge(tuned).a(x), tuned.a(x), rtol=1e-4, atol=1e-5)


class OneRow(nnx.Module):
    """A linear map of one row, which calls itself for each of several."""

    def __init__(self, mapped):
        self.kernel = nnx.Param(jax.random.normal(jax.random.key(1), (4, 4)))
        self.mapped = mapped

    def __call__(self, x):
        return self.mapped(self)(x) if x.ndim > 1 else x @ self.kernel[...]


MAPPED = {
    "jax": jax.vmap,
    "nnx": lambda module: functools.partial(nnx.vmap(lambda module, x: module(x), in_axes=(None, 0)), module),
    "bound": lambda module: jax.vmap(module.__call__),
}


@pytest.mark.parametrize("mapped", MAPPED.values(), ids=MAPPED)
def test_a_module_that_calls_itself_has_its_adapter_once(mapped, key):
    tuned = filled(jpeft.attach(nnx.Dict(a=OneRow(mapped)), LORA, where="a"), key).a
    np.testing.assert_allclose(tuned(X), jnp.stack([tuned(row) for row in X]), rtol=1e-5)
    np.testing.assert_allclose(jpeft.merge(nnx.Dict(a=tuned)).a(X), tuned(X), rtol=1e-4)


def test_an_einsum_of_another_string_is_refused(key):
    tuned = filled(jpeft.attach(nnx.Dict(a=nnx.Einsum("bi,io->bo", (4, 4), rngs=nnx.Rngs(0))), LORA, where="a"), key).a
    np.testing.assert_array_equal(tuned(X, "bi, io -> bo"), tuned(X))
    for call in (lambda: tuned(X, "bo,io->bi"), lambda: tuned(X, einsum_str="bo,io->bi")):
        with pytest.raises(jpeft.UserError, match="'bi,io->bo' with something attached is called with 'bo,io->bi'"):
            call()


@pytest.mark.parametrize(
    "module", [linen.Dense(3), linen.LayerNorm(), linen.Embed(5, 3)], ids=lambda m: type(m).__name__
)
def test_a_bridged_linen_module_has_weights_and_no_sites_for_what_is_added(module):
    bridged = bridge.ToNNX(module, rngs=nnx.Rngs(0))
    bridge.lazy_init(bridged, jnp.ones((2, 4), jnp.int32 if isinstance(module, linen.Embed) else jnp.float32))
    assert [site.kind for site in jpeft.sites(bridged)] == ["other"]
    with pytest.raises(jpeft.UserError, match="the model has none"):
        jpeft.attach(bridged, LORA, where=".*")


class Scaled(nnx.Module):
    """A linear map times a Python number."""

    def __init__(self):
        self.linear, self.times = linear(), nnx.Param(0.5)

    def __call__(self, x):
        return self.linear(x) * self.times


def test_a_number_of_python_is_no_weight_of_a_site():
    assert [site.path for site in jpeft.sites(Scaled())] == ["linear"]
    fitted = jpeft.fit(jpeft.attach(Scaled(), LORA, where="linear"), [X] * 3, squares)
    assert fitted.losses[2] < fitted.losses[0]
    with pytest.raises(jpeft.UserError, match="1 weights would not train, the first of them times"):
        jpeft.attach(Scaled(), jpeft.Full())


class OwnMap(nnx.Module):
    def __init__(self, rngs):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (4, 4)))

    def __call__(self, x):
        return x @ self.kernel[...]


class OwnMapOfWidths(OwnMap):
    in_features = out_features = 4


class Pair(nnx.Module):
    def __init__(self, rngs):
        self.unknown, self.known = OwnMap(rngs), OwnMapOfWidths(rngs)


def test_a_stacked_map_of_ones_own_is_known_by_its_widths_or_told():
    model = nnx.vmap(Pair)(nnx.Rngs(0).split(3))
    assert {site.path: site.kind for site in jpeft.sites(model)} == {"unknown": "other", "known": "linear"}
    with pytest.warns(UserWarning, match=r"1 module that `where` matches, .* unknown \(kernel \[3, 4, 4"):
        jpeft.attach(model, LORA, where=".*")
    jpeft.attach(model, LORA, where="known")


class Kinds(nnx.Module):
    """Modules of several kinds, side by side and one within another."""

    def __init__(self):
        self.conv, self.norm = nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0)), nnx.GroupNorm(4, 2, rngs=nnx.Rngs(0))
        self.fc, self.emb = linear(), nnx.Embed(5, 4, rngs=nnx.Rngs(0))
        self.layers = nnx.List([nnx.Dict(fc=linear(), norm=nnx.LayerNorm(4, rngs=nnx.Rngs(0))) for _ in range(2)])
        self.mlp = nnx.Sequential(linear(), nnx.LayerNorm(4, rngs=nnx.Rngs(0)), linear())


LINEAR = "since lora acts on sites of the kind linear or embedding: "
NAMED = {
    "conv|fc": (LORA, rf"where 'conv\|fc' names 1 module to which nothing is attached, {LINEAR}conv \(Conv, other\)$"),
    "fc|norm": (LORA, rf"1 module .*{LINEAR}norm \(GroupNorm, norm\)$"),
    ".*(fc|norm)": (LORA, r"3 modules .*: norm \(GroupNorm, norm\); layers/\*/norm \(LayerNorm, norm\)$"),
    ".*norm|fc": (jpeft.NormTuning(), r"ln acts on sites of the kind norm: fc \(Linear, linear\)$"),
    "(fc|emb|norm)": (jpeft.Lora(rank=2), r"2 modules .*: norm \(GroupNorm, norm\); emb \(Embed, embedding\)$"),
    "mlp/layers/(0|1)": (LORA, r"1 module .*: mlp/layers/1 \(LayerNorm, norm\)$"),
    "conv|norm|emb|fc|mlp/layers/1": (jpeft.Ia3(), r"4 modules .*; emb \(Embed, embedding\) \.\.\.$"),
}


@pytest.mark.parametrize("where", NAMED)
def test_what_a_pattern_names_and_the_method_cannot_adapt_is_told_once(where):
    method, says = NAMED[where]
    for given in (where, jpeft.Selection(pattern=where, called={"pattern": "where"})):
        with pytest.warns(UserWarning, match=says) as told:
            jpeft.attach(Kinds(), method, where=given)
        assert len(told) == 1


@pytest.mark.parametrize(
    "where", [".*", "", "layers/.*", r"mlp/layers/\d", r"mlp/layers/\d+|fc", r"(?!fc)[\w/]+", "f.*|l.*"]
)
def test_what_a_pattern_matches_without_a_name_is_left_out_in_silence(where):
    model = Kinds() if where else linear()
    tuned = jpeft.attach(model, LORA, where=where)  # a warning is an error
    assert nnx.to_flat_state(nnx.state(tuned, jpeft.Adapter))


def test_a_module_of_unknown_shape_is_told_as_such_alone():
    model = nnx.vmap(Pair)(nnx.Rngs(0).split(3))
    with pytest.warns(UserWarning, match=r"1 module that `where` matches, .* unknown \(kernel \[3, 4, 4") as told:
        jpeft.attach(model, LORA, where="known|unknown")
    assert len(told) == 1


def test_norms_are_left_out_of_bitfit_where_its_option_says_so():
    model = nnx.Dict(map=linear(), norm=nnx.LayerNorm(4, rngs=nnx.Rngs(0)))
    for norms, paths in ((False, {"map"}), (True, {"map", "norm"})):
        tuned = jpeft.attach(model, jpeft.BitFit(norms=norms), where=".*")
        assert {path[0] for path, _ in nnx.to_flat_state(nnx.state(tuned, jpeft.Adapter))} == paths


NORMS = {
    "batch": (lambda: nnx.BatchNorm(4, axis=1, rngs=nnx.Rngs(0)), 1),
    "layer": (lambda: nnx.LayerNorm(4, feature_axes=1, rngs=nnx.Rngs(0)), 1),
    "of_a_tuple": (lambda: nnx.LayerNorm(4, feature_axes=(-2,), rngs=nnx.Rngs(0)), -2),
    "last": (lambda: nnx.LayerNorm(4, rngs=nnx.Rngs(0)), -1),
}


@pytest.mark.parametrize("case", NORMS)
def test_a_bias_lies_along_the_axis_of_a_norms_features(case, key):
    make, axis = NORMS[case]
    base = nnx.Dict(a=make())
    tuned = jpeft.attach(base, jpeft.BitFit(norms=True), where="a")
    tuned.a.adapter.bias.set_value(jnp.arange(1.0, 5))
    x = jnp.moveaxis(jax.random.normal(key, (2, 1, 4)), -1, axis)
    bias = jnp.moveaxis(jnp.arange(1.0, 5).reshape(1, 1, 4), -1, axis)
    right = make()(x) + bias
    np.testing.assert_allclose(tuned.a(x), right, atol=1e-6)
    np.testing.assert_allclose(jpeft.merge(tuned).a(x), right, atol=1e-3)  # statistics move


class Channels(nnx.Module):
    """A norm of images of `[batch, channels, width]`, which does not say along which axis its scale lies."""

    def __init__(self):
        self.scale = nnx.Param(jnp.ones(4))

    def __call__(self, x):
        return x * self.scale[...][:, None]


def test_a_bias_of_another_width_than_the_norms_output_is_refused():
    tuned = jpeft.attach(nnx.Dict(a=Channels()), jpeft.BitFit(norms=True), where="a")
    with pytest.raises(jpeft.UserError, match=r"a Channels .*shape \(2, 4, 1\); expected a width of 4 along axis -1"):
        tuned.a(jnp.ones((2, 4, 1)))


class Gain(nnx.Module):
    """A norm with one scale for all features."""

    def __init__(self):
        self.scale = nnx.Param(jnp.full(1, 2.0))

    def __call__(self, x):
        return x * self.scale[...]


def test_a_bias_of_a_norm_with_one_weight_is_one_number():
    tuned = jpeft.attach(nnx.Dict(a=Gain()), jpeft.BitFit(norms=True), where="a")
    tuned.a.adapter.bias.set_value(jnp.full(1, 3.0))
    np.testing.assert_array_equal(tuned.a(jnp.ones((2, 8))), np.full((2, 8), 5.0))


class Rebinding(nnx.Module):
    """A norm that puts a new variable in place of its statistics, and counts its calls."""

    def __init__(self):
        self.scale, self.mean, self.calls = nnx.Param(jnp.ones(4)), nnx.BatchStat(jnp.zeros(4)), 0

    def __call__(self, x):
        self.mean, self.calls = nnx.BatchStat(0.9 * self.mean[...] + 0.1 * x.mean(0)), self.calls + 1
        return (x - self.mean[...]) * self.scale[...]


def test_a_tuned_norm_keeps_statistics_that_it_rebinds():
    base = nnx.Dict(a=Rebinding())
    tuned = jpeft.attach(base, jpeft.NormTuning(), where="a")
    scale = tuned.a.scale
    for model in (base, base, tuned, tuned):
        model.a(X)
    np.testing.assert_array_equal(tuned.a.mean[...], base.a.mean[...])
    assert tuned.a.calls == 2 and tuned.a.scale is scale


def test_a_loftq_start_from_a_model_of_other_sizes_is_refused(tiny_checkpoint):
    model, _ = jpeft.load(tiny_checkpoint, quantization="nf4")
    with pytest.raises(jpeft.UserError, match="in the wide model of 192 to 192; name the model that this one was quan"):
        jpeft.attach(model, jpeft.Lora.official(rank=2, init="loftq"), wide="mini")


@pytest.mark.parametrize("method", [jpeft.Lora(rank=2), jpeft.Ia3()], ids=lambda method: method.name)
def test_shards_of_a_narrow_batch_share_their_gradients(method, key):
    tuned = filled(jpeft.attach(nnx.Dict(a=linear(dtype=jnp.bfloat16)), method, where="a"), key)
    graphdef, adapter, base = jpeft.split(tuned)
    mesh, rows = (
        jax.make_mesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,)),
        jax.sharding.PartitionSpec("rows"),
    )
    whole = jax.sharding.PartitionSpec()

    def loss(adapter, base, x):
        return jnp.mean(nnx.merge(graphdef, adapter, base).a(x).astype(jnp.float32) ** 2)

    def sharded(adapter, base, x):
        return jax.grad(lambda adapter: jax.lax.pmean(loss(adapter, base, x), "rows"))(adapter)

    x = jax.random.normal(key, (4, 4), jnp.bfloat16)
    found = jax.jit(jax.shard_map(sharded, mesh=mesh, in_specs=(whole, whole, rows), out_specs=whole))(adapter, base, x)
    expected = jax.jit(jax.grad(loss))(adapter, base, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.02, atol=1e-3), found, expected)


class Sowing(nnx.Module):
    """Changes variables beside its weights: `grown` says how."""

    def __init__(self, grown):
        self.linear, self.grown, self.last = linear(), grown, nnx.Variable(jnp.zeros((1, 4)))

    def __call__(self, x):
        y = self.linear(x)
        if self.grown:
            self.last.set_value(y)
        else:
            self.last.set_value(self.last[...] + jnp.mean(y))
        return y


def test_a_fit_carries_variables_of_one_shape_and_refuses_others():
    kept, grown = (jpeft.attach(Sowing(grown), LORA, where="linear") for grown in (False, True))
    assert float(jpeft.fit(kept, [X] * 3, squares).model.last[...].sum()) != 0
    with pytest.raises(jpeft.UserError, match=r"changes .*last.* from float32\[1, 4\] to float32\[3, 4\]"):
        jpeft.fit(grown, [X] * 3, squares)


class Counting(nnx.Module):
    """Sets a variable to a number of Python's."""

    def __init__(self):
        self.linear, self.calls = linear(), nnx.Variable(0)

    def __call__(self, x):
        self.calls.set_value(3)
        return self.linear(x)


def test_a_variable_may_be_set_to_a_number_of_python():
    fitted = jpeft.fit(jpeft.attach(Counting(), LORA, where="linear"), [X] * 2, squares)
    assert int(fitted.model.calls.get_value()) == 3


@dataclasses.dataclass(frozen=True)
class Listing(jpeft.Lora):
    """A method with a penalty and an option that has no hash."""

    extra: list = dataclasses.field(default_factory=lambda: [1])

    def penalty(self, adapter):
        return self.extra[0] * sum(jnp.sum((leaf - 1) ** 2) for leaf in jax.tree.leaves(adapter))


def test_a_fit_follows_a_method_that_has_no_hash():
    tuned = jpeft.attach(nnx.Sequential(linear()), Listing(rank=2), where=".*")
    hash(jpeft.split(tuned)[0])
    losses = [jpeft.fit(tuned, [X] * 3, squares, **options).losses for options in ({}, {"method": Listing(rank=2)})]
    assert losses[0] == losses[1]


def test_an_optimizer_that_asks_for_more_than_gradients_is_refused():
    tuned = jpeft.attach(nnx.Sequential(linear()), LORA, where=".*")
    with pytest.raises(jpeft.UserError, match="needs more than gradients and parameters .*value_fn"):
        jpeft.fit(tuned, [X] * 3, squares, optimizer=optax.lbfgs())


def test_more_batches_than_a_planned_number_of_steps_are_refused():
    tuned = jpeft.attach(nnx.Sequential(linear()), jpeft.AdaLora(rank=2), where=".*")
    with pytest.raises(jpeft.UserError, match="more than the 3 steps of total_steps, by which adalora plans"):
        jpeft.fit(tuned, (X for _ in range(6)), squares, total_steps=3)


@pytest.mark.parametrize("method", METHODS[:4], ids=lambda method: f"{method.name}-{method.reading}")
def test_a_map_that_computes_in_bfloat16_is_merged(method, key):
    model = nnx.Dict(a=nnx.Linear(64, 64, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    tuned = filled(jpeft.attach(model, method, where="a"), key)
    merged = jpeft.merge(tuned)
    x = jax.random.normal(jax.random.key(1), (3, 64))
    before, after = (np.asarray(one.a(x), np.float32) for one in (tuned, merged))
    np.testing.assert_allclose(after, before, atol=0.02 * np.abs(before).max())


def test_two_modules_of_one_path_are_told_before_anything_is_attached():
    model = nnx.Dict({"b/c": linear(), "b": nnx.Dict(c=linear())})
    with pytest.raises(jpeft.UserError, match="2 modules of the model have the path 'b/c'; rename a key with '/'"):
        jpeft.attach(model, LORA, where=".*")


class Chain(nnx.Module):
    """Two linear maps, one after the other, to each of which a method is attached."""

    def __init__(self, first, second):
        self.a, self.b = linear(), linear()
        for method, name in ((first, "a"), (second, "b")):
            setattr(self, name, jpeft.attach(nnx.Dict(it=linear()), method, where="it").it)

    def __call__(self, x):
        return self.b(self.a(x))


def test_several_methods_are_followed_only_where_they_agree_on_it():
    two_ranks = Chain(jpeft.Vera(rank=2), jpeft.Vera(rank=3))
    losses = [jpeft.fit(two_ranks, [X] * 2, squares, **rate).losses for rate in ({}, {"learning_rate": 4e-3})]
    assert losses[0] == losses[1], "both have VeRA's default rate"
    with pytest.raises(jpeft.UserError, match=r"rates differ \(0.004 of VeRA .* and 0.003 of LoRA .*give"):
        jpeft.fit(Chain(jpeft.Vera(rank=2), LORA), [X] * 2, squares)
    with pytest.raises(
        jpeft.UserError, match="several methods attached.* penalty or steps of its own; say by `method`"
    ):
        jpeft.fit(Chain(LORA, Listing(rank=2)), [X] * 2, squares, learning_rate=1e-3)


def test_full_tuning_is_fitted_at_its_own_default_rate():
    tuned = jpeft.attach(nnx.Dict(it=linear()), jpeft.Full(), where="it")
    loss = lambda model, x: squares(model.it, x)
    losses = [jpeft.fit(tuned, [X] * 2, loss, **rate).losses for rate in ({}, {"learning_rate": 3e-4})]
    assert losses[0] == losses[1]
    assert not hasattr(jpeft.merge(tuned).it, "attached_method")


def test_a_jitted_function_gives_no_model_the_method_of_another():
    methods = [jpeft.Lora.official(rank=2, b_rate_ratio=ratio) for ratio in (1.0, 16.0)]
    evaluated = nnx.jit(lambda model, x: model(x))
    for method in methods:
        tuned = Chain(method, method)
        evaluated(tuned, X)
        assert [found.flags() for found in remembered(tuned)] == [method.flags()]


def test_a_method_that_was_attached_in_two_calls_is_known_by_what_it_is():
    vera = jpeft.Vera(rank=2)
    model = nnx.Sequential(nnx.Linear(4, 6, rngs=nnx.Rngs(0)), nnx.Linear(6, 4, rngs=nnx.Rngs(1)))
    tuned = jpeft.attach(jpeft.attach(model, vera, where="layers/0"), vera, where="layers/1")
    jpeft.fit(tuned, [X] * 2, squares, method=vera)
