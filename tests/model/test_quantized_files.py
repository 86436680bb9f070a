"""Writing quantized checkpoints: the same values as quantizing on load, in several files, and what is rejected."""

import json

import numpy as np
import pytest
from flax import nnx

import jpeft
from jpeft.cli import main
from jpeft.config import Run
from jpeft.data.task_file import TaskOfRun
from jpeft.errors import RunFailed, UserError
from jpeft.leaves import named_leaves
from jpeft.model import t5_weights, weight_files
from jpeft.model.decoder_family import DECODER_FAMILY
from jpeft.model.family import family_in, load_model, save_model
from jpeft.model.quantized import Quantization, quantization_of
from jpeft.model.quantized_files import tensor_count, write_quantized
from jpeft.plan.memory import quantization_of_run
from tests.conftest import random_t5
from tests.decoders import TINY_DECODERS, random_decoder
from tests.model.test_quantized import SMALL


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    path = tmp_path_factory.mktemp("wide")
    t5_weights.save(random_t5(SMALL, seed=3), path)
    return path


def same_weights(one, other):
    first, second = (
        {name: np.asarray(value) for name, value in named_leaves(model, nnx.Param).items()} for model in (one, other)
    )
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_a_damaged_weight_that_is_not_quantized_is_refused_too(tmp_path):
    model = random_t5(SMALL, seed=3)
    model.shared.embedding.set_value(model.shared.embedding[...].at[5, 1].set(np.nan))
    t5_weights.save(model, tmp_path / "damaged")
    filling = t5_weights.open_filling(tmp_path / "damaged")
    with pytest.raises(RunFailed, match="shared/embedding holds NaN or infinity, which is not quantized; is the file"):
        write_quantized(filling, tmp_path / "out", Quantization.parse("int8"))


@pytest.mark.parametrize("text", ["nf4,double", pytest.param("int8,wo", marks=pytest.mark.slow)])
def test_what_is_written_is_what_a_rounded_load_gives_in_however_many_parts(text, wide, tmp_path):
    quantization, filling, heard = Quantization.parse(text), t5_weights.open_filling(wide), []
    written = write_quantized(filling, tmp_path, quantization, on_tensor=lambda: heard.append(1), most_bytes=100_000)
    assert len(heard) == tensor_count(filling) == written.maps + written.wide
    names = sorted(path.name for path in tmp_path.glob("model-*.safetensors"))
    assert written.files == len(names) > 3 and names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    assert max(path.stat().st_size for path in tmp_path.glob("model-*")) < 200_000  # `most_bytes` plus a header
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == written.bytes < written.bytes_before / 2
    modules = {name.partition(".weight.")[0].removesuffix(".weight"): set() for name in index["weight_map"]}
    for name, file in index["weight_map"].items():
        modules[name.partition(".weight.")[0].removesuffix(".weight").removesuffix(".SCB")].add(file)
    assert {len(files) for files in modules.values()} <= {0, 1}, "what belongs to a map is in one file"
    opened, rounded = load_model(tmp_path), load_model(wide, quantization=quantization)
    same_weights(opened, rounded)
    assert quantization_of(opened) == text and str(weight_files.quantization_in(tmp_path)) == text
    for directory, kept in ((wide, None), (tmp_path, text)):  # the default that `jpeft plan` uses
        found = quantization_of_run(Run.from_config({"model": {"name": str(directory)}}))
        assert (None if found is None else str(found)) == kept
    save_model(rounded, tmp_path / "saved")  # saving a loaded model gives the same files
    assert json.loads((tmp_path / "saved/config.json").read_text()) == json.loads(
        (tmp_path / "config.json").read_text()
    )


@pytest.mark.slow
def test_a_decoder_is_written_so(tmp_path):
    save_model(random_decoder(TINY_DECODERS["llama"]), tmp_path / "wide")
    assert main(["quantize", str(tmp_path / "wide"), "--out", str(tmp_path / "x")]) == 2  # it has no tokenizer
    filling = family_in(tmp_path / "wide").open_filling(tmp_path / "wide")
    (tmp_path / "few").mkdir()
    assert write_quantized(filling, tmp_path / "few", Quantization("int8")).files == 1
    same_weights(load_model(tmp_path / "few"), load_model(tmp_path / "wide", quantization=Quantization("int8")))


def test_one_with_fused_maps_is_not():
    with pytest.raises(UserError, match="a bloom has queries, keys and values fused in its files"):
        DECODER_FAMILY.quantized_layout(TINY_DECODERS["bloom"])


def test_the_command_writes_a_model_that_opens_with_all_that_belongs_to_it(tiny_checkpoint, tmp_path, capsys):
    out, task = tmp_path / "int8", TaskOfRun("{text}?")
    source = tmp_path / "source"
    jpeft_files = {path.name: path.read_bytes() for path in tiny_checkpoint.iterdir() if path.is_file()}
    source.mkdir()
    for name, content in jpeft_files.items():
        (source / name).write_bytes(content)
    task.write(source)
    assert main(["quantize", str(source), "--out", str(out), "--quantization", "int8", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert f"written  {out}: " in said and "maps in int8" in said and f"--model {out}" in said
    card = (out / "README.md").read_text()
    assert "library_name: transformers" in card and "| kept in | int8 |" in card
    assert TaskOfRun.read(out) == task
    with pytest.warns(UserWarning, match="the model was tuned with its base wide, and answers with it in int8"):
        model, tokenizer = jpeft.load(out)
    assert quantization_of(model) == "int8" and tokenizer.encode(["goal"], max_length=8).ids[0]
    assert main(["quantize", str(source), "--out", str(tmp_path / "wo"), "--quantization", "int8,wo"]) == 0
    assert "transformers keeps wo wide and does not open this" in capsys.readouterr().out
    assert "does not open it" in (tmp_path / "wo/README.md").read_text()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["{wide}", "--out", "{wide}"], "exists already; name a directory that is empty"),
        (["{wide}", "--out", "{out}"], "has 16 inputs, no multiple of 64; it cannot be saved as nf4: take int8"),
        (["{wide}", "--out", "{out}", "--quantization", "none"], "--quantization is 'none'; expected int8, nf4"),
        (["{wide}", "--out", "{out}", "--quantization", "int4"], "expected one of auto, none, int8, nf4"),
        (["{int8}", "--out", "{out}", "--quantization", "int8"], "is in int8 already, and is not quantized a second"),
        (["nobody", "--out", "{out}"], "MODEL 'nobody' is no directory here"),
    ],
)
def test_what_cannot_be_written_is_one_line_and_leaves_nothing(flags, says, tiny_checkpoint, tmp_path, capsys):
    places = {"wide": tiny_checkpoint, "out": tmp_path / "out", "int8": tmp_path / "int8"}
    if "{int8}" in flags:
        call = ["quantize", str(tiny_checkpoint), "--out", str(places["int8"]), "--quantization", "int8", "--quiet"]
        assert main(call) == 0
    capsys.readouterr()
    assert main(["quantize", *(flag.format(**places) for flag in flags)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and says in error
    assert not places["out"].exists() and not list(tmp_path.glob(".*partial"))
