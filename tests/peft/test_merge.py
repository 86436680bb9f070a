"""Merging an adapter into a T5: outputs, files, and the errors where it cannot be merged."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from jpeft.adapters.files import save_adapter
from jpeft.adapters.merge import Probe, probe_logits
from jpeft.cli import main
from jpeft.errors import RunFailed
from jpeft.model import t5_weights
from jpeft.model.t5 import T5
from jpeft.model.tokenizer import Tokenizer
from jpeft.peft.adalora import AdaLora
from jpeft.peft.attaching import attach
from jpeft.peft.bitfit import BitFit
from jpeft.peft.dora import Dora
from jpeft.peft.full import Full
from jpeft.peft.ia3 import Ia3
from jpeft.peft.ln import NormTuning
from jpeft.peft.lora import Lora, LoraSite
from jpeft.peft.merging import merge
from jpeft.peft.methods import ablation, ablations
from jpeft.peft.prompt import Prompt
from jpeft.peft.selection import Selection, select
from jpeft.peft.variables import Adapter
from jpeft.peft.vera import Vera
from tests.conftest import TINY, random_t5, slow_but
from tests.peft.filled import filled


@pytest.fixture(scope="module")
def tiny_t5():
    """A random model, shared by all tests, none of which changes it."""
    return random_t5(TINY)


ABLATED = [(method, name) for method, names in ablations().items() for name in names]
CASES = {
    "lora": (Lora(), Selection()),
    "lora_of_all_linear_maps": (Lora(rank=3), Selection(pattern=".*/(q|k|v|o|wi_0|wi_1|wo)|lm_head")),
    "lora_official": (Lora.official(rank=3), Selection()),
    # Scaled like trained adapters: at alpha 16 updates outweigh their kernels, and half an ulp changes logits by 4e-4.
    "lora_rank_stabilized": (Lora.official(rank=4, alpha=2.0, rank_stabilized=True), Selection()),
    "adalora": (AdaLora(rank=2, alpha=1.0), Selection()),
    "lora_pissa": (Lora.official(rank=4, init="pissa"), Selection()),
    "ia3": (Ia3(), Selection()),
    "ia3_official": (Ia3.official(), Selection()),
    "ln": (NormTuning(), Selection()),
    "dora": (Dora(rank=3), Selection()),
    "vera": (Vera(rank=7), Selection(pattern=".*/(q|v|wi_1|wo)")),
    "full_of_some_weights": (Full(), Selection(pattern="shared|decoder/layers/1/.*")),
} | {
    f"{method}_{name}": ({"lora": Lora(), "ia3": Ia3()}[method], ablation(method, name, TINY.stacks))
    for method, name in ABLATED
}


def adapted(model: T5, method, selection=Selection(), *, seed: int = 1):  # noqa: B008
    chosen = select(model, method, selection)
    key = jax.random.key(seed)
    return filled(attach(model, method, chosen, key), key), chosen


def saved(model: T5, method, directory, *, base, selection=Selection()):  # noqa: B008
    """An adapter directory, and the base with that adapter."""
    filled_model, chosen = adapted(model, method, selection)
    save_adapter(filled_model, method, chosen, directory, base_name=str(base))
    return filled_model


@pytest.mark.parametrize("case", slow_but(("lora", "ia3_official", "dora", "lora_early"), CASES))
def test_merged_weights_do_what_base_and_adapter_do(case, tiny_t5):
    method, selection = CASES[case]
    model, _ = adapted(tiny_t5, method, selection)
    merged = merge(model)
    assert not jax.tree.leaves(nnx.state(merged, Adapter))
    expected = probe_logits(model)
    np.testing.assert_allclose(probe_logits(merged), expected, rtol=0, atol=1e-4)
    assert np.abs(expected - probe_logits(tiny_t5)).max() > 0.1
    assert jax.tree.leaves(nnx.state(model, Adapter))  # the given model is unchanged


def test_a_relu_model_with_a_tied_head_merges():
    model = random_t5(dataclasses.replace(TINY, feed_forward_proj="relu", tie_word_embeddings=True))
    both, _ = adapted(model, Ia3())
    np.testing.assert_allclose(probe_logits(merge(both)), probe_logits(both), rtol=0, atol=1e-4)


def test_a_bfloat16_base_is_merged_in_float32(tiny_t5):
    graphdef, exact = nnx.split(tiny_t5)
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), exact)
    widened = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), rounded)
    merged = [merge(adapted(nnx.merge(graphdef, state), Lora())[0]) for state in (rounded, widened)]
    q = [model.encoder.segments[0].self_attention.q.kernel[...] for model in merged]
    assert q[0].dtype == jnp.float32
    np.testing.assert_array_equal(q[0], q[1])


@pytest.fixture
def run(tiny_checkpoint, tmp_path):
    """Those parts of a finished run's directory that merging reads."""
    saved(t5_weights.load(tiny_checkpoint), Lora(), tmp_path / "run/adapter", base=tiny_checkpoint)
    (tmp_path / "run/result.json").write_text(json.dumps({"task": "agnews", "metrics": {"accuracy": 0.75}}))
    return tmp_path / "run"


def test_merge_writes_a_model_that_opens_with_its_tokenizer_and_says_how_near_it_is(
    run, tiny_checkpoint, tmp_path, capsys
):
    out = tmp_path / "merged"
    assert main(["merge", str(run), "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    model = t5_weights.load(out)
    Tokenizer.load(out, vocab_size=model.config.vocab_size)
    expected = probe_logits(adapted(t5_weights.load(tiny_checkpoint), Lora())[0])
    np.testing.assert_allclose(probe_logits(model), expected, rtol=0, atol=1e-4)
    assert printed["dtype"] == "float32" and printed["logits"]["stored"] < 1e-4 and printed["logits"]["moved"] > 0.1
    card = (out / "README.md").read_text()
    assert "library_name: transformers" in card and "| accuracy | 0.7500 |" in card
    assert main(["merge", str(run), "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("base", "flags", "stored"), [("float32", ["--dtype=bfloat16"], "bfloat16"), ("float16", [], "float16")]
)
def test_the_merged_weights_are_of_the_dtype_asked_for_or_of_the_bases(
    base, flags, stored, run, tiny_checkpoint, tmp_path, capsys
):
    t5_weights.save(t5_weights.load(tiny_checkpoint), tmp_path / "base", dtype=jnp.dtype(base))
    (tmp_path / "base/tokenizer.json").write_bytes((tiny_checkpoint / "tokenizer.json").read_bytes())
    out = tmp_path / "merged"
    assert main(["merge", str(run), "--model", str(tmp_path / "base"), "--out", str(out), "--json", *flags]) == 0
    assert {str(value.dtype) for value in load_file(out / "model.safetensors").values()} == {stored}
    logits = json.loads(capsys.readouterr().out)["logits"]
    assert logits["merged"] < 1e-4 < logits["stored"]  # the rounding error is measured and reported


@pytest.mark.parametrize(
    ("method", "why"), [(BitFit(), "the base has none to hold them"), (Prompt(prompt_length=4), "a part of the input")]
)
def test_what_is_no_change_of_weights_is_refused_with_the_reason(method, why, tiny_checkpoint, tmp_path, capsys):
    saved(t5_weights.load(tiny_checkpoint), method, tmp_path / "adapter", base=tiny_checkpoint)
    assert main(["merge", str(tmp_path / "adapter"), "--out", str(tmp_path / "merged")]) == 2
    said = capsys.readouterr().err
    assert f"{method.name} cannot be merged into a T5" in said and why in said and said.count("\n") == 1
    assert not (tmp_path / "merged").exists()


def test_a_fully_tuned_model_is_whole_already(tiny_checkpoint, tmp_path, capsys):
    assert main(["merge", str(tiny_checkpoint), "--out", str(tmp_path / "merged")]) == 2
    assert "is already a whole model" in capsys.readouterr().err


def test_a_merge_that_fails_leaves_nothing(run, tmp_path, capsys):
    file = run / "adapter/jpeft_adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    assert main(["merge", str(run), "--out", str(tmp_path / "merged")]) == 1
    assert "damaged or cut short" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_adapter_whose_values_are_not_finite_is_not_merged(tiny_checkpoint, tmp_path, capsys):
    model, chosen = adapted(t5_weights.load(tiny_checkpoint), Ia3())
    nnx.update(model, jax.tree.map(lambda leaf: leaf * jnp.nan, nnx.state(model, Adapter)))
    save_adapter(model, Ia3(), chosen, tmp_path / "adapter", base_name=str(tiny_checkpoint))
    assert main(["merge", str(tmp_path / "adapter"), "--out", str(tmp_path / "merged")]) == 1
    assert "holds NaN or infinity" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_a_base_that_is_damaged_is_named_and_not_its_adapter(tiny_checkpoint, monkeypatch):
    monkeypatch.setattr("jpeft.adapters.merge.probe_logits", lambda model: np.array([1.0, np.nan]))
    with pytest.raises(RunFailed, match="the base gives logits that are not finite; are its files damaged"):
        Probe.of(None, None, None, directory=None)


def test_what_holds_no_adapter_is_told_apart(tiny_checkpoint, tmp_path, capsys):
    def refusal(path) -> str:
        assert main(["merge", str(path), "--out", str(tmp_path / "merged")]) == 2
        return capsys.readouterr().err

    assert "is not there" in refusal(tmp_path / "nowhere")
    (tmp_path / "run/checkpoint").mkdir(parents=True)
    assert "looked for jpeft_adapter.json or adapter_config.json" in refusal(tmp_path / "run")
    (tmp_path / "run/config.json").write_text("{}")
    assert "has not finished" in refusal(tmp_path / "run")
    assert "is a file" in refusal(tmp_path / "run/config.json")


def test_a_base_that_a_second_reader_takes_for_another_is_not_merged(run, tmp_path, capsys, monkeypatch):
    """As if the loader dropped a head: the file written by the same code would agree with it."""
    load = t5_weights.load

    def without_its_head(directory, **options):
        model = load(directory, **options)
        model.lm_head.kernel.set_value(model.shared.embedding[...].T)
        return model

    monkeypatch.setattr(t5_weights, "load", without_its_head)
    assert main(["merge", str(run), "--out", str(tmp_path / "merged")]) == 1
    assert "is not the same model to a second reader of its files" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_what_was_written_is_held_against_base_and_adapter(run, tmp_path, capsys, monkeypatch):
    save = t5_weights.save

    def with_another_head(model, directory, **options):
        model.lm_head.kernel.set_value(model.lm_head.kernel[...] + 1)
        save(model, directory, **options)

    monkeypatch.setattr(t5_weights, "save", with_another_head)
    assert main(["merge", str(run), "--out", str(tmp_path / "merged"), "--json"]) == 1
    told = capsys.readouterr().err
    assert "as it was stored gives" in told and "those of the merged weights before they were stored" in told
    assert not (tmp_path / "merged").exists()


def test_a_tokenizer_that_was_not_copied_whole_is_no_merged_models(run, tmp_path, capsys, monkeypatch):
    save = Tokenizer.save

    def with_another_pad(tokenizer, directory):
        save(tokenizer, directory)
        (directory / "tokenizer_config.json").write_text('{"pad_token": "<unk>"}')

    monkeypatch.setattr(Tokenizer, "save", with_another_pad)
    assert main(["merge", str(run), "--out", str(tmp_path / "merged")]) == 1
    assert "the tokenizer's files as they were copied are not those of" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_weights_that_do_not_do_what_base_and_adapter_do_are_not_written(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(LoraSite, "fold", lambda self, kernel, bias: (kernel, bias))
    assert main(["merge", str(run), "--out", str(tmp_path / "merged")]) == 1
    assert "from those of base and adapter; nothing is written" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()
