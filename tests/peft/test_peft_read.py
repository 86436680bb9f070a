"""Forms of `adapter_config.json` that are published for T5s are read, or refused with the name of the setting."""

import dataclasses
import functools
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

import jpeft
from jpeft.adapters.files import load_adapter, open_adapter, read_adapter, save_adapter
from jpeft.adapters.own_tokenizer import note_on_tokenizer
from jpeft.cli import main
from jpeft.errors import RunFailed, UserError
from jpeft.leaves import named_leaves
from jpeft.model import t5_weights
from jpeft.model.family import abstract_model
from jpeft.model.tokenizer import Tokenizer
from jpeft.peft.adalora import AdaLora
from jpeft.peft.attaching import attach
from jpeft.peft.dora import Dora
from jpeft.peft.ia3 import Ia3
from jpeft.peft.lora import Lora
from jpeft.peft.prompt import Prompt
from jpeft.peft.selection import Selection, select
from jpeft.peft.sites import Site
from jpeft.peft.variables import Adapter
from tests.conftest import TINY, random_t5
from tests.peft.filled import filled

LORA = Lora.official(rank=4, alpha=8.0)
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def tiny_t5():
    """A random model, shared by all tests, none of which changes it."""
    return random_t5(TINY)


@functools.cache
def stored(method, pattern: str | None) -> tuple[dict[str, bytes], list[Site]]:
    """The files of an adapter with random values, and its sites."""
    key, model = jax.random.key(3), random_t5(TINY)
    chosen = select(model, method, Selection(pattern=pattern))
    with tempfile.TemporaryDirectory() as directory:
        adapted = filled(attach(model, method, chosen, key), key)
        save_adapter(adapted, method, chosen, Path(directory), base_name="tiny")
        return {file.name: file.read_bytes() for file in Path(directory).iterdir()}, chosen


@pytest.fixture
def saved(tmp_path):
    """Saves an adapter in PEFT's layout with changes to its config; `edit` changes its tensors in place."""

    def save(method=LORA, pattern=None, edit=None, **changes):
        for name, content in stored(method, pattern)[0].items():
            (tmp_path / name).write_bytes(content)
        config = json.loads((tmp_path / CONFIG).read_text()) | changes
        (tmp_path / CONFIG).write_text(json.dumps(config))
        if edit is not None:
            tensors = dict(load_file(tmp_path / WEIGHTS))
            edit(tensors)
            save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, tmp_path / WEIGHTS)
        return tmp_path

    return save


def leaves_of(directory, model) -> dict[str, np.ndarray]:
    return {k: np.asarray(v) for k, v in named_leaves(load_adapter(directory, model)[0], Adapter).items()}


ALL, DECODER, Q, LAYER_1 = None, "decoder/.*/[qv]", ".*/q", ".*/1/.*/[qv]"


@pytest.mark.parametrize(
    ("pattern", "changes"),
    [
        (ALL, {"target_modules": ["q", "v"]}),
        (
            ALL,
            {"target_modules": ["SelfAttention.q", "SelfAttention.v", "EncDecAttention.q", "EncDecAttention.v"]},
        ),
        (ALL, {"target_modules": r".*\.(q|v)"}),
        (ALL, {"target_modules": None}),
        (DECODER, {"target_modules": r"decoder\.block\.\d+\..*Attention\.[qv]"}),
        (DECODER, {"target_modules": ["q", "v"], "exclude_modules": r"encoder\..*"}),
        (Q, {"target_modules": ["q", "v"], "exclude_modules": ["v"]}),
        (LAYER_1, {"target_modules": ["q", "v"], "layers_to_transform": [1], "layers_pattern": "block"}),
        (LAYER_1, {"target_modules": ["q", "v"], "layers_to_transform": 1, "layers_pattern": ["layers", "block"]}),
        (LAYER_1, {"target_modules": ["q", "v"], "layers_to_transform": [1]}),
        (".*/(q|k|v|o|wi_0|wi_1|wo)", {"target_modules": "all-linear"}),
    ],
)
def test_ways_to_name_modules(pattern, changes, saved, tiny_t5):
    _, method, sites = load_adapter(saved(pattern=pattern, **changes), tiny_t5)
    assert method == LORA and sites == stored(LORA, pattern)[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": ["q", "k", "v"]},
        {"target_modules": ["q"]},
        {"target_modules": r".*\.(q|v|o)"},
        {"target_modules": ["q", "v"], "layers_to_transform": [0], "layers_pattern": "block"},
    ],
)
def test_config_and_weights_have_to_agree_on_the_modules(changes, saved, tiny_t5):
    with pytest.raises(UserError, match="its config adapts .* modules of it, its weights file 12"):
        load_adapter(saved(**changes), tiny_t5)


def test_a_deeper_base_of_the_same_width_is_not_taken_for_the_right_one(saved, tiny_t5):
    deeper = random_t5(dataclasses.replace(tiny_t5.config, num_layers=3))
    with pytest.raises(UserError, match=r"adapts 14 modules of it, its weights file 12; encoder.block.2"):
        load_adapter(saved(), deeper)


def test_ranks_and_alphas_by_pattern_become_one_rank_and_one_alpha_of_the_same_function(saved, tiny_t5):
    def narrow(tensors):  # encoder.block.0's q is of rank 1
        for name in tensors:
            if re.search(r"encoder\.block\.0\..*\.q\.", name):
                tensors[name] = tensors[name][:1] if "lora_A" in name else tensors[name][:, :1]

    plain = saved(edit=narrow, rank_pattern={r"encoder\.block\.0\..*\.q": 1}, alpha_pattern={"v": 16, "0.q": 1})
    stored, found = load_file(plain / WEIGHTS), leaves_of(plain, tiny_t5)
    _, method, _ = load_adapter(plain, tiny_t5)
    assert method == LORA
    for path, module, scale in [
        ("encoder/layers/0/self_attention/q", "encoder.block.0.layer.0.SelfAttention.q", 8 / 1),
        ("encoder/layers/1/self_attention/q", "encoder.block.1.layer.0.SelfAttention.q", 8 / 4),
        ("decoder/layers/1/cross_attention/v", "decoder.block.1.layer.1.EncDecAttention.v", 16 / 4),
    ]:
        theirs = stored[f"base_model.model.{module}.lora_B.weight"] @ stored[f"base_model.model.{module}.lora_A.weight"]
        ours = found[f"{path}/lora_a"] @ found[f"{path}/lora_b"]
        np.testing.assert_allclose(LORA.scale * ours, scale * theirs.T, rtol=1e-5, atol=1e-6)
        assert found[f"{path}/lora_a"].shape[1] == 4


def test_the_second_prompt_that_peft_allocates_is_left_out(saved, tiny_t5):
    def double(tensors):
        tensors["prompt_embeddings"] = np.concatenate([tensors["prompt_embeddings"], np.ones((5, 16), np.float32)])

    directory = saved(Prompt(prompt_length=5), edit=double, num_transformer_submodules=2)
    assert load_adapter(directory, tiny_t5)[1] == Prompt(prompt_length=5)
    prompt = leaves_of(directory, tiny_t5)["encoder_input/prompt"]
    np.testing.assert_array_equal(prompt, load_file(directory / WEIGHTS)["prompt_embeddings"][:5])


def test_ia3_after_wi_1_as_peft_places_it_for_mt5_is_ia3_before_wo(saved, tiny_t5):
    vectors = {}

    def before_wo_to_after_wi_1(tensors):
        for name in [name for name in tensors if ".wo." in name]:
            vectors[name] = tensors.pop(name)
            tensors[name.replace(".wo.", ".wi_1.")] = vectors[name].T

    directory = saved(
        Ia3.official(), edit=before_wo_to_after_wi_1, target_modules=["k", "v", "wi_1"], feedforward_modules=[]
    )
    found = leaves_of(directory, tiny_t5)
    assert len(vectors) == 4
    for block, path in (
        ("encoder.block.0.layer.1", "encoder/layers/0"),
        ("decoder.block.1.layer.2", "decoder/layers/1"),
    ):
        expected = vectors[f"base_model.model.{block}.DenseReluDense.wo.ia3_l"][0]
        np.testing.assert_array_equal(found[f"{path}/feed_forward/wo/scale_in"], expected)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"modules_to_save": ["lm_head"]}, "uses PEFT's modules_to_save"),
        ({"trainable_token_indices": [1, 2]}, "uses PEFT's trainable_token_indices"),
        ({"layer_replication": [[0, 2]]}, "uses PEFT's layer_replication"),
        ({"lora_bias": True}, "uses PEFT's lora_bias"),
        ({"bias": "all"}, "trains biases (bias='all')"),
        ({"init_lora_weights": "pissa_niter_4"}, "initialised by 'pissa_niter_4'"),
        ({"peft_type": "LOHA"}, "of PEFT type 'LOHA'; jpeft reads LORA, IA3, PROMPT_TUNING"),
        ({"peft_type": "P_TUNING"}, "of PEFT type 'P_TUNING'"),
        ({"target_modules": "("}, "is not a regular expression"),
        ({"target_modules": r".*\.[qv]", "layers_to_transform": [1]}, "goes with a list of target_modules"),
    ],
)
def test_what_jpeft_does_not_have_is_refused_by_name(changes, says, saved, tiny_t5):
    with pytest.raises(UserError, match=re.escape(says)):
        load_adapter(saved(**changes), tiny_t5)


def test_trained_biases_are_not_taken_for_another_bases_weights(saved, tiny_t5):
    directory = saved(pattern="lm_head", bias="lora_only", edit=with_copy_of_head(tiny_t5, lambda weight: weight + 1))
    with pytest.raises(UserError, match=r"also trains biases \(bias='lora_only'\), which jpeft's LORA does not"):
        load_adapter(directory, tiny_t5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"use_dora": True}, "should have lora_A, lora_B, lora_magnitude_vector, not"),
        ({"r": 8}, "is of rank 4 in the weights file and 8 in the config"),
        ({"rank_pattern": {"q": 2}}, "is of rank 4 in the weights file and 2 in the config"),
        ({"lora_alpha": "sixteen"}, "lora_alpha is 'sixteen'; expected a number"),
        ({"alpha_pattern": ["q"]}, "alpha_pattern is ['q']; expected an object"),
    ],
)
def test_a_config_that_contradicts_its_weights_is_damage(changes, says, saved, tiny_t5):
    with pytest.raises(RunFailed, match=re.escape(says)):
        load_adapter(saved(**changes), tiny_t5)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tinit": 200, "tfinal": 500, "total_step": 2000, "deltaT": 5}, (5, 0.1, 0.25)),
        ({"tinit": 0, "tfinal": 0, "total_step": 1}, (3, 0.1, 0.3)),  # of jpeft's earlier files
        ({"tinit": 0, "tfinal": 500, "total_step": None, "deltaT": None}, (1, 0.1, 0.3)),
    ],
)
def test_a_schedule_of_adalora_is_read_in_fractions(changes, expected, saved, tiny_t5):
    method = AdaLora(rank=1, allocate_every=3, initial_fraction=0.2)
    found: Any = read_adapter(saved(method, Q, **changes), tiny_t5)[0]
    assert (found.allocate_every, found.initial_fraction, found.final_fraction) == expected


@pytest.mark.parametrize("options", ["[", "[1]", '{"rank": 2}', '{"b_rate_ratio": "16"}', '{"b_rate_ratio": 1e300}'])
def test_options_in_the_metadata_of_weights_are_those_that_peft_lacks_and_numbers(options, saved, tiny_t5):
    directory = saved()
    save_file(dict(load_file(directory / WEIGHTS)), directory / WEIGHTS, {"jpeft_options": options})
    with pytest.raises(RunFailed, match=r"adapter_model.safetensors is damaged: jpeft_options in its metadata is "):
        read_adapter(directory, tiny_t5)


def test_ia3_elsewhere_is_refused_by_the_name_of_the_module(saved, tiny_t5):
    def after_wo(tensors):
        for name in [name for name in tensors if ".wo." in name]:
            tensors[name] = np.ones((16, 1), np.float32)

    with pytest.raises(UserError, match=r"rescales the output of \w+\.block\.\d\.layer\.\d\.DenseReluDense\.wo,"):
        load_adapter(saved(Ia3.official(), edit=after_wo, feedforward_modules=[]), tiny_t5)


def test_pickled_weights_are_not_opened(saved, tiny_t5):
    directory = saved()
    (directory / WEIGHTS).rename(directory / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model.bin, a pickle, which jpeft does not open"):
        load_adapter(directory, tiny_t5)


def test_a_strange_tensor_is_refused(saved, tiny_t5):
    def stranger(tensors):
        tensors["base_model.model.shared.lora_C"] = np.ones((4, 320), np.float32)

    with pytest.raises(UserError, match="lora_C, which jpeft does not know"):
        load_adapter(saved(edit=stranger), tiny_t5)


HEAD = "base_model.model.lm_head"


def with_copy_of_head(model, change=lambda weight: weight):
    """Adds the copy of the base's weight that PEFT writes for LoRA on the head, in PyTorch's orientation."""

    def edit(tensors):
        tensors[f"{HEAD}.base_layer.weight"] = change(np.asarray(model.lm_head.kernel[...]).T)

    return edit


def test_a_copy_of_the_bases_own_weight_is_passed_over_with_a_note(saved, tiny_t5):
    plain = leaves_of(saved(pattern="lm_head"), tiny_t5)
    directory = saved(pattern="lm_head", edit=with_copy_of_head(tiny_t5))
    found = leaves_of(directory, tiny_t5)
    assert found.keys() == plain.keys() and all(np.array_equal(found[name], plain[name]) for name in plain)
    told = []
    load_adapter(directory, tiny_t5, report=told.append)
    assert told == [f"adapter {directory}: lm_head.base_layer.weight is a copy of the base's own weight"]
    with pytest.warns(UserWarning, match="lm_head.base_layer.weight is a copy"):
        jpeft.load_adapter(directory, tiny_t5)
    [note] = open_adapter(directory, abstract_model(TINY)).notes
    assert note == "lm_head.base_layer.weight has the shape of the base's own weight, of which PEFT writes a copy"
    rounded = with_copy_of_head(tiny_t5, lambda weight: np.asarray(jnp.asarray(weight, jnp.bfloat16), np.float32))
    _, _, notes = read_adapter(saved(pattern="lm_head", edit=rounded), tiny_t5)
    assert notes == ("lm_head.base_layer.weight is a copy of the base's own weight",)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda weight: weight + 0.05, r"lm_head.base_layer.weight, a base's own weight, and this base has another"),
        (lambda weight: weight[:-8], r"of shape \(312, 16\), and this base has one of \(320, 16\)"),
    ],
)
def test_a_weight_of_another_base_is_refused(change, says, saved, tiny_t5):
    with pytest.raises(UserError, match=says):
        load_adapter(saved(pattern="lm_head", edit=with_copy_of_head(tiny_t5, change)), tiny_t5)


def test_a_head_that_is_the_embedding_and_an_embedding_are_refused_by_their_reasons(saved, tiny_t5):
    tied = random_t5(TINY.with_head(tied=True))
    with pytest.raises(UserError, match="adapts lm_head, and the head of this base is its embedding; have PEFT merge"):
        load_adapter(saved(pattern="lm_head", edit=with_copy_of_head(tiny_t5)), tied)

    def embedding(tensors):
        tensors["base_model.model.shared.base_layer.weight"] = np.ones((320, 16), np.float32)
        tensors["base_model.model.shared.lora_embedding_A"] = np.ones((4, 320), np.float32)

    with pytest.raises(UserError, match="adapts shared, an embedding, which jpeft does not read; have PEFT"):
        load_adapter(saved(edit=embedding), tiny_t5)


@pytest.mark.parametrize("method", [LORA, Dora.official(rank=4, alpha=8.0), Ia3.official()])
def test_tensors_that_bear_an_adapters_name_are_read(method, saved, tiny_t5):
    """Names as in an adapter's state dict; `save_pretrained` removes the adapter's name."""
    plain = leaves_of(saved(method), tiny_t5)

    def named(name: str) -> str:
        if name.endswith("lora_magnitude_vector"):
            return f"{name}.mine.weight"
        return name.removesuffix(".weight") + ".mine" + (".weight" if name.endswith(".weight") else "")

    def edit(tensors):
        for name in list(tensors):
            tensors[named(name)] = tensors.pop(name)

    found = leaves_of(saved(method, edit=edit), tiny_t5)
    assert found.keys() == plain.keys() and all(np.array_equal(found[name], plain[name]) for name in plain)

    def of_two(tensors):
        first = next(iter(tensors))
        tensors[named(first).replace(".mine", ".other")] = tensors[first]
        tensors[named(first)] = tensors.pop(first)

    with pytest.raises(UserError, match="holds several adapters, 'mine' and 'other'; save one alone"):
        load_adapter(saved(method, edit=of_two), tiny_t5)


@pytest.fixture
def with_tokenizer(saved, tiny_tokenizer):
    """An adapter in whose directory a trainer saved the base's tokenizer, with changes to it."""

    def save(change=lambda backend: None, **settings):
        directory = saved()
        backend = tokenizers.Tokenizer.from_file(str(tiny_tokenizer / "tokenizer.json"))
        change(backend)
        backend.save(str(directory / "tokenizer.json"))
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
        return directory

    return save


@pytest.mark.parametrize(
    ("change", "settings", "says"),
    [
        (lambda backend: None, {}, None),
        (lambda backend: backend.add_tokens(["<tool>"]), {}, "own tokenizer (1 token more: '<tool>'), not read here"),
        (lambda backend: None, {"chat_template": "{{ messages }}"}, "own chat template, not read here"),
    ],
)
def test_what_an_adapters_own_tokenizer_has_more_is_named(change, settings, says, with_tokenizer, tiny_tokenizer):
    directory, base = with_tokenizer(change, **settings), Tokenizer.load(tiny_tokenizer)
    said = note_on_tokenizer(directory, lambda: base)
    assert said is None if says is None else says in str(said)
    assert "has its own tokenizer" in str(note_on_tokenizer(directory, lambda: None))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_cannot_be_read_and_is_not_used_is_named(name, with_tokenizer, tiny_tokenizer):
    directory, base = with_tokenizer(), Tokenizer.load(tiny_tokenizer)
    (directory / name).write_text("{")
    assert "has its own tokenizer, not read here and not readable (" in str(note_on_tokenizer(directory, lambda: base))


def test_an_adapter_of_other_ids_is_refused_before_anything_is_loaded(
    with_tokenizer, tiny_t5, tiny_tokenizer, tmp_path, capsys
):
    directory, base = with_tokenizer(), tmp_path / "base"
    t5_weights.save(tiny_t5, base)
    Tokenizer.load(tiny_tokenizer).save(base)
    described = (directory / "tokenizer.json").read_text()
    swapped = described.replace('"<pad>"', '"<x>"').replace('"<unk>"', '"<pad>"').replace('"<x>"', '"<unk>"')
    (directory / "tokenizer.json").write_text(swapped)
    out = ["--out", str(tmp_path / "out")]
    for call in (["import", *out], ["merge", *out], ["predict", "goal", "--adapter"]):
        assert main([*call, str(directory), "--model", str(base)]) == 2
        said = capsys.readouterr().err
        assert "the adapter learned other ids" in said and said.count("\n") == 1
