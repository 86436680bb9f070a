"""The sites that a method acts on, and the errors where there are none."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import jpeft
from jpeft.adapters.files import load_adapter, save_adapter
from jpeft.adapters.locate import locate
from jpeft.config import MethodConfig, Run
from jpeft.errors import RunFailed, UserError
from jpeft.eval.loss import loss_sums
from jpeft.mesh.layout import Layout
from jpeft.model import layers
from jpeft.model.family import family_of
from jpeft.model.stack import num_stacked
from jpeft.peft.attaching import attach, split
from jpeft.peft.bitfit import BitFit
from jpeft.peft.full import Full
from jpeft.peft.ia3 import Ia3
from jpeft.peft.lora import Lora
from jpeft.peft.methods import ablation, ablation_of, ablations, build
from jpeft.peft.prompt import Prompt
from jpeft.peft.selection import Selection, select
from jpeft.peft.sites import sites
from jpeft.peft.wrapping import is_adapted
from jpeft.train import setup
from jpeft.train.session import Session
from tests.conftest import TINY, make_batch, random_t5, slow_but
from tests.decoders import LLAMA, random_decoder
from tests.peft.filled import filled


def layers_of(method: str, name: str, config=TINY, *, seed: int = 0) -> dict[str, set[int]]:
    layers = ablation(method, name, config.stacks, seed=seed).layers
    assert layers is not None
    return {stack: set(chosen) for stack, chosen in layers.items()}


def paths(model, method, **selection):
    return [site.path for site in select(model, method, Selection(**selection))]


def test_every_weight_stands_at_a_site(tiny_t5):
    linear = 2 * (4 + 3) + 2 * (8 + 3) + 1  # q k v o twice in the decoder, wi_0 wi_1 wo, and the head
    norms = 2 * 2 + 2 * 3 + 2
    kinds = [site.kind for site in sites(tiny_t5)]
    weights = {"linear": linear, "norm": norms, "embedding": 3}
    assert {kind: kinds.count(kind) for kind in kinds} == {**weights, "input": 1, "attention": 2 + 4}


def test_a_pattern_has_to_match_a_whole_path(tiny_t5):
    assert sorted(paths(tiny_t5, Lora(), pattern="decoder/layers/1/.*_attention/[qv]")) == [
        "decoder/layers/1/cross_attention/q",
        "decoder/layers/1/cross_attention/v",
        "decoder/layers/1/self_attention/q",
        "decoder/layers/1/self_attention/v",
    ]
    with pytest.raises(UserError, match="matches none of the 37 sites.*such as .*attention/q"):
        paths(tiny_t5, Lora(), pattern="attention/q")


def test_names_reach_beyond_a_methods_defaults(tiny_t5):
    assert paths(tiny_t5, Lora(), names=["wo"], stacks=["encoder"]) == [
        "encoder/layers/0/feed_forward/wo",
        "encoder/layers/1/feed_forward/wo",
    ]
    assert paths(tiny_t5, Lora(), names=["lm_head"]) == ["lm_head"]


@pytest.mark.parametrize(
    ("layers", "stacks", "says"),
    [
        (
            {"encoder": [0, 2], "decoder": [0]},
            None,
            "names block 2, and the encoder has 2, 0 to 1.*single stack by stacks",
        ),
        ({"encoder": [0], "decoder": [1, 7, 9]}, None, "names block 7, and the decoder has 2, 0 to 1"),
        ({"encoder": [5], "decoder": [5]}, ["decoder"], "names block 5, and the decoder has 2.*existing blocks\\.$"),
    ],
)
def test_a_block_that_is_not_there_is_refused_beside_those_that_are(tiny_t5, layers, stacks, says):
    with pytest.raises(UserError, match=says):
        paths(tiny_t5, Lora(), layers=layers, stacks=stacks)


def test_layers_leave_out_what_is_in_no_layer(tiny_t5):
    assert "decoder/final_norm" in paths(tiny_t5, BitFit.official())
    chosen = paths(tiny_t5, BitFit.official(), layers={"encoder": [0], "decoder": []})
    assert chosen and all(path.startswith("encoder/layers/0/") for path in chosen)


@pytest.mark.parametrize(
    ("method", "selection", "message"),
    [
        (
            Lora(),
            {"layers": {"encoder": [], "decoder": []}},
            "matches none of the 37 sites that lora.*self_attention/q",
        ),
        (Prompt(), {"layers": {"encoder": [0], "decoder": [0]}}, "matches none of the 1 sites.*encoder_input"),
        (Ia3(), {"names": ["query"]}, "matches none.*feed_forward/wi_1"),
        (
            Lora(),
            {"names": ["q", "querry"]},
            r"\['querry'\] name no site that lora can act on; there are: k, lm_head, o",
        ),
    ],
)
def test_a_selection_that_matches_nothing_says_what_there_is(tiny_t5, method, selection, message):
    with pytest.raises(UserError, match=message):
        paths(tiny_t5, method, **selection)


def test_a_broken_pattern_is_refused():
    with pytest.raises(UserError, match=r"^pattern '\(' is not a regular expression"):
        Selection(pattern="(")


@pytest.mark.parametrize(
    ("model", "selection", "message"),
    [
        (LLAMA, {"layers": {"decoder": [0], "decodr": [1]}}, r"layers \['decodr'\] name no stack .*: decoder\.$"),
        (LLAMA, {"stacks": ("decoder", "encoder")}, r"stacks \['encoder'\] name no stack of the model; .*: decoder\.$"),
        (
            TINY,
            {"sublayers": ("self_attention", "feed_foward")},
            r"sublayers \['feed_foward'\] .*blocks; there are: cross_attention, feed_forward, self_attention\.$",
        ),
        (TINY, {"stacks": "decoder"}, r"stacks is 'decoder'; expected several names, such as \['decoder'\]"),
    ],
)
def test_a_condition_that_is_misspelled_in_part_is_refused(model, selection, message):
    model = random_t5(TINY) if model is TINY else random_decoder(model)
    with pytest.raises(UserError, match=message):
        paths(model, Lora(), **selection)


@pytest.mark.parametrize("name", ablations()["ia3"])
def test_an_ablation_leaves_what_a_decoder_only_model_has_of_it(name):
    model = random_decoder(LLAMA)
    left = {site.sublayer for site in select(model, Ia3(), ablation_of(model, "ia3", name))}
    wanted = {"drop_attention": {"feed_forward"}, "drop_dense": {"self_attention"}}
    assert left == wanted.get(name, {"self_attention", "feed_forward"})


def test_messages_call_the_conditions_as_their_user_does(tiny_t5):
    with pytest.raises(UserError, match=r"^where '\(' is not a regular expression"):
        jpeft.attach(tiny_t5, Lora(), where="(")
    with pytest.raises(UserError, match=r"^the selection {'where': 'q'} matches none"):
        jpeft.attach(tiny_t5, Lora(), where="q")
    run = Run(method=MethodConfig(targets="q,querry"))
    with pytest.raises(UserError, match=r"^method.targets \['querry'\] name no site"):
        select(tiny_t5, Lora(), setup.selection(run, tiny_t5))
    with pytest.raises(UserError, match=r"^names \['querry'\] name no site"):
        select(tiny_t5, Lora(), Selection(names=("q", "querry")))


def test_a_run_says_what_its_pattern_names_and_its_method_cannot_adapt(tiny_checkpoint):
    def told(pattern: str) -> list[str]:
        lines: list[str] = []
        run = Run.from_config({"model": {"name": str(tiny_checkpoint)}, "method": {"name": "lora", "pattern": pattern}})
        setup.set_up(run, Session(), Layout.of_devices(), report=lines.append)
        return lines

    assert told(".*/(q|self_attention_norm|wi_9)") == [
        "method.pattern '.*/(q|self_attention_norm|wi_9)' names 2 modules to which nothing is attached, since lora "
        "acts on sites of the kind linear: decoder/layers/*/self_attention_norm (RMSNorm, norm); "
        "encoder/layers/*/self_attention_norm (RMSNorm, norm)"
    ]
    assert told("encoder/.*") == [] == told(".*/self_attention(/.*)?")


def test_full_tuning_of_a_selection_trains_those_weights_alone(tiny_t5, key):
    chosen = select(tiny_t5, Full(), Selection(stacks=["decoder"], names=["o"]))
    adapter, base = split(attach(tiny_t5, Full(), chosen, key))[1:]
    assert {leaf.shape for leaf in jax.tree.leaves(adapter)} == {(2, 8, 16)}
    assert sum(leaf.size for leaf in jax.tree.leaves(base)) + 2 * 2 * 8 * 16 == sum(
        leaf.size for leaf in jax.tree.leaves(nnx.state(tiny_t5, nnx.Param))
    )


@pytest.mark.parametrize("family", slow_but(("t5",), ["t5", "llama"]))
@pytest.mark.parametrize(
    ("names", "looped"),
    [
        pytest.param(["q"], False, marks=pytest.mark.slow),
        pytest.param(["q", "v"], False, marks=pytest.mark.slow),
        pytest.param(["up", "down", "wi_0", "wo"], False, marks=pytest.mark.slow),
        (["k", "o"], True),
    ],
    ids=["q", "q and v", "feed-forward", "k and o, looped"],
)
def test_full_tuning_of_some_maps_has_the_gradients_of_plain_products(family, names, looped, key, monkeypatch):
    """Layers share a program, in which only layers after the first need a gradient of their input."""
    if family == "t5":
        model = random_t5(dataclasses.replace(TINY, num_layers=3, num_decoder_layers=3))
        batch = make_batch(TINY, rows=2, enc_len=6, dec_len=4)
    else:
        model = random_decoder(LLAMA)
        tokens = np.random.default_rng(0).integers(3, 320, (2, 8)).astype(np.int32)
        weights = np.ones((2, 8), np.float32)
        batch = {"tokens": tokens, "decoder_target_tokens": tokens, "decoder_loss_weights": weights}
        batch = jax.device_put({**batch, "segment_ids": np.ones((2, 8), np.int32)})
    kinds = {site.name for site in sites(model)}
    chosen = select(model, Full(), Selection(names=[name for name in names if name in kinds]))
    family_of(model).arrange(model, scan_layers=looped)
    graphdef, adapter, base = split(attach(model, Full(), chosen, key))

    def gradients():
        return jax.jit(jax.grad(lambda adapter: loss_sums(nnx.merge(graphdef, adapter, base), batch)[0]))(adapter)

    found = gradients()
    monkeypatch.setattr(layers, "product", lambda x, kernel, dtype: jnp.matmul(x, kernel, preferred_element_type=dtype))
    expected = gradients()
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5), found, expected)


def test_segments_are_cut_where_what_is_adapted_changes(key):
    model = random_t5(dataclasses.replace(TINY, num_layers=6))
    method = Lora()
    chosen = select(model, method, Selection(layers={"encoder": [2, 3, 5], "decoder": [0, 1]}))
    cut = attach(model, method, chosen, key)
    assert [num_stacked(block) for block in cut.encoder.segments] == [2, 2, 1, 1]
    assert [num_stacked(block) for block in cut.decoder.segments] == [2]
    assert [is_adapted(block.self_attention.q) for block in cut.encoder.segments] == [False, True, False, True]


@pytest.mark.slow
def test_a_frozen_prefix_of_layers_costs_no_gradient_work(key):
    """By XLA's FLOP count of a training step with unrolled blocks, the encoder's later half costs a quarter less."""
    from jpeft.model.stack import arrange

    config = dataclasses.replace(TINY, d_model=64, d_kv=32, d_ff=256, num_layers=4, num_decoder_layers=1)
    batch = make_batch(config, rows=2, enc_len=128, dec_len=4)

    def flops(layers):
        model = random_t5(config)
        method = BitFit()
        model = attach(model, method, select(model, method, Selection(layers={"encoder": layers, "decoder": [0]})), key)
        arrange((model.encoder, model.decoder), scan=False)
        graphdef, adapter, base = split(model)

        def loss(adapter, base, batch):
            return loss_sums(nnx.merge(graphdef, adapter, base), batch)[0]

        cost = jax.jit(jax.grad(loss)).lower(adapter, base, batch).compile().cost_analysis()
        assert cost is not None
        return cost["flops"]

    assert flops([2, 3]) < 0.8 * flops([0, 1, 2, 3])


@pytest.mark.parametrize("method", ablations())
def test_early_later_and_random_are_halves_of_each_stack(method):
    for name in ("early", "later", "random"):
        layers = layers_of(method, name, seed=5)
        assert {stack: len(chosen) for stack, chosen in layers.items()} == {"encoder": 1, "decoder": 1}
    assert layers_of(method, "early")["encoder"] == {0}
    assert layers_of(method, "later")["encoder"] == {1}


def test_random_layers_follow_the_seed():
    config = dataclasses.replace(TINY, num_layers=24, num_decoder_layers=24)
    first, again, other = (layers_of("lora", "random", config, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert first["encoder"] != first["decoder"]


def test_unknown_names_and_options_are_refused_with_what_there_is():
    with pytest.raises(
        UserError, match="ablation.name is 'drop_dense', which lora does not have; there are: early, later"
    ):
        ablation("lora", "drop_dense", TINY.stacks)
    with pytest.raises(UserError, match="the ones that have any are lora, ia3"):
        ablation("bitfit", "early", TINY.stacks)
    with pytest.raises(UserError, match="method.name is 'lorra'; expected one of full, lora"):
        build("lorra")
    with pytest.raises(UserError, match="method.reading is 'theirs'"):
        build("lora", "theirs")
    # The message names the reading only if the other reading has other options.
    with pytest.raises(UserError, match="method.rank is no option of ia3; it has none"):
        build("ia3", options={"rank": 4})
    with pytest.raises(UserError, match="method.alpha is no option of vera; it has projection_seed, rank"):
        build("vera", options={"alpha": 4.0})
    with pytest.raises(UserError, match="_init is no option of prefix with method.reading=official; it has"):
        build("prefix", "official", {"prefix_init": "normal"})
    assert build("prompt", "official", {"prompt_init": "uniform"}) == Prompt(init="uniform")
    with pytest.raises(UserError, match="rank of at least 1"):
        build("lora", options={"rank": 0})


def test_an_adapter_of_another_size_does_not_fit(tiny_t5, key, tmp_path):
    method = Lora()
    save_adapter(
        attach(tiny_t5, method, select(tiny_t5, method), key),
        method,
        select(tiny_t5, method),
        tmp_path,
        base_name="tiny",
    )
    wider = random_t5(dataclasses.replace(TINY, d_model=32))
    with pytest.raises(
        UserError, match=r"does not fit this base: .* should have shape \(32, 2\), the file has shape \(16, 2\)"
    ):
        load_adapter(tmp_path, wider)
    shallower = random_t5(dataclasses.replace(TINY, num_layers=1))
    with pytest.raises(UserError, match="does not fit this base, which has no encoder/layers/1"):
        load_adapter(tmp_path, shallower)


def test_a_directory_of_adapters_says_which_there_are(tiny_t5, key, tmp_path):
    method = Ia3()
    chosen = select(tiny_t5, method)
    tuned = attach(tiny_t5, method, chosen, key)

    def refused(says: str) -> None:
        for read in (lambda: load_adapter(tmp_path, tiny_t5), lambda: locate(tmp_path)):
            with pytest.raises(UserError, match=f"holds no adapter.*; {says}$"):
                read()

    (tmp_path / "a directory of something else").mkdir()
    save_adapter(tuned, method, chosen, tmp_path / "b", base_name="tiny")
    refused("its subdirectory b does: name it.")
    save_adapter(tuned, method, chosen, tmp_path / "a run" / "adapter", base_name="tiny")
    refused("its subdirectories a run and b do: name one of them.")
    for name in "cdef":
        shutil.copytree(tmp_path / "b", tmp_path / name)
    refused("its subdirectories a run, b, c and 3 others do: name one of them.")


def test_a_damaged_or_absent_adapter_is_one_line(tiny_t5, key, tmp_path):
    with pytest.raises(UserError, match="holds no adapter"):
        load_adapter(tmp_path, tiny_t5)
    method = Ia3()
    chosen = select(tiny_t5, method)
    save_adapter(attach(tiny_t5, method, chosen, key), method, chosen, tmp_path, base_name="tiny")
    file = tmp_path / "jpeft_adapter.safetensors"
    whole, tensors = file.read_bytes(), load_file(file)
    save_file({name: value for name, value in tensors.items() if "/layers/1/" not in name}, file)
    with pytest.raises(RunFailed, match=r"holds \d+ tensors, and jpeft_adapter.json says \d+: one of the two was"):
        load_adapter(tmp_path, tiny_t5)
    config = tmp_path / "jpeft_adapter.json"
    written = json.loads(config.read_text())
    config.write_text(
        json.dumps({key: value for key, value in written.items() if key != "tensors"})
    )  # an older version's
    load_adapter(tmp_path, tiny_t5)
    file.write_bytes(whole[:-10])
    with pytest.raises(RunFailed, match="damaged or cut short"):
        load_adapter(tmp_path, tiny_t5)
    (tmp_path / "jpeft_adapter.json").write_text("{")
    with pytest.raises(RunFailed, match="is not valid JSON"):
        load_adapter(tmp_path, tiny_t5)


def test_a_stack_is_a_model_like_others(key, tmp_path):
    stack, method = random_decoder(LLAMA).decoder, Lora.official(rank=2)
    chosen = select(stack, method, Selection(pattern="layers/[12]/.*/q"))
    assert {site.any_layer for site in chosen} == {"layers/*/self_attention/q"}
    tuned = filled(attach(stack, method, chosen, key), key)
    assert tuned.layer_counts() == [1, 2]
    save_adapter(tuned, method, chosen, tmp_path, base_name="tiny")
    loaded, _, sites_ = load_adapter(tmp_path, stack)
    assert sites_ == chosen
    jax.tree.map(np.testing.assert_array_equal, split(loaded)[1], split(tuned)[1])


def test_a_saved_adapter_loads_whatever_segments_it_was_trained_in(tiny_t5, key, tmp_path):
    method = Lora.official(rank=2)
    chosen = select(tiny_t5, method, Selection(pattern="encoder/layers/1/.*/q|decoder/layers/0/.*/v"))
    model = attach(tiny_t5, method, chosen, key)
    save_adapter(model, method, chosen, tmp_path, base_name="tiny")
    loaded, _, sites_ = load_adapter(tmp_path, tiny_t5)
    assert sites_ == chosen
    jax.tree.map(np.testing.assert_array_equal, split(loaded)[1], split(model)[1])
