"""Weight files in every released format: single, sharded, damaged and malicious."""

import json
import shutil
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from flax import serialization, traverse_util
from safetensors.numpy import load_file, save_file

from jpeft.errors import RunFailed, UserError
from jpeft.model import t5_weights
from tests.model.conftest import same, values


def as_msgpack(stored):
    """The weights with Flax's names and orientation: `kernel`s are (in, out), tables are called `embedding`."""
    flat = {}
    for name, value in stored.items():
        *module, _ = name.split(".")
        if module[-1] in ("shared", "relative_attention_bias"):
            flat[(*module, "embedding")] = value
        elif module[-1].endswith("layer_norm"):
            flat[(*module, "weight")] = value
        else:
            flat[(*module, "kernel")] = np.ascontiguousarray(value.T)
    return serialization.msgpack_serialize(traverse_util.unflatten_dict(flat))


def test_shards_with_an_index_are_the_same_model(saved):
    model, directory = saved
    stored = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(stored)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: stored[name] for name in part}, directory / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    same(values(t5_weights.load(directory)), values(model))


def test_a_flax_checkpoint_is_the_same_model(saved):
    model, directory = saved
    stored = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    (directory / "flax_model.msgpack").write_bytes(as_msgpack(stored))
    names: Any = traverse_util.flatten_dict(
        serialization.msgpack_restore((directory / "flax_model.msgpack").read_bytes()), sep="/"
    )
    assert names["encoder/block/0/layer/0/SelfAttention/q/kernel"].shape == (16, 8)
    assert {"shared/embedding", "encoder/block/0/layer/0/layer_norm/weight"} < set(names)
    same(values(t5_weights.load(directory)), values(model))


@pytest.mark.reference
def test_pytorch_weights_are_the_same_model(saved):
    import torch

    model, directory = saved
    stored = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    torch.save({name: torch.from_numpy(value) for name, value in stored.items()}, directory / "pytorch_model.bin")
    same(values(t5_weights.load(directory)), values(model))


def test_safetensors_are_taken_before_formats_that_are_slower_to_open(directory):
    for name in ("flax_model.msgpack", "pytorch_model.bin"):
        (directory / name).write_bytes(b"never read")
    t5_weights.load(directory)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "flax_model.msgpack", pytest.param("pytorch_model.bin", marks=pytest.mark.reference)],
)
@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1], ids=lambda keep: f"first {keep}")
def test_a_file_that_is_cut_short_is_one_line_that_names_it(directory, name, keep):
    stored = load_file(directory / "model.safetensors")
    whole = as_msgpack(stored) if name == "flax_model.msgpack" else (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").unlink()
    (directory / name).write_bytes(whole[: int(len(whole) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(RunFailed, match=rf"{name} is damaged, or|{name} is damaged or cut short") as raised:
        t5_weights.load(directory)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["model.safetensors", "flax_model.msgpack"])
def test_a_file_that_is_something_else_is_one_line_that_names_it(directory, name):
    (directory / "model.safetensors").unlink()
    (directory / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 307867048\n")
    with pytest.raises(RunFailed, match=f"{name} is damaged") as raised:
        t5_weights.load(directory)
    assert "\n" not in str(raised.value)


def test_a_sound_file_of_a_dtype_that_is_not_read_is_not_called_damaged(directory):
    file = directory / "model.safetensors"
    narrow = {name: value.astype(ml_dtypes.float8_e4m3fn) for name, value in load_file(file).items()}
    save_file(narrow, file)
    with pytest.raises(UserError, match="is of F8_E4M3, a dtype that jpeft does not read; save the model in bfloat16"):
        t5_weights.load(directory)


def test_a_weight_in_two_shards_is_refused(directory):
    shutil.copyfile(directory / "model.safetensors", directory / "model-00002-of-00002.safetensors")
    (directory / "model.safetensors").rename(directory / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(UserError, match="is both in .*model-00001.* and in model-00002.*; keep one of the two"):
        t5_weights.load(directory)


def write_index(directory, index):
    (directory / "model.safetensors").rename(directory / "model-00001-of-00001.safetensors")
    (directory / "model.safetensors.index.json").write_text(index)


@pytest.mark.parametrize(
    "shard", ["../evil.safetensors", "/etc/passwd", "sub/evil.safetensors", 3, ["b"], "a\0b", "..", "", "x" * 999]
)
def test_an_index_that_leads_out_of_its_directory_is_refused(directory, shard):
    (directory.parent / "evil.safetensors").write_bytes((directory / "model.safetensors").read_bytes())
    write_index(directory, json.dumps({"weight_map": {"shared.weight": shard}}))
    with pytest.raises(UserError, match="a shard must be a file of the same directory"):
        t5_weights.load(directory)


def test_an_index_that_names_an_absent_shard_is_refused(directory):
    write_index(directory, json.dumps({"weight_map": {"shared.weight": "model-00002-of-00002.safetensors"}}))
    with pytest.raises(UserError, match="names model-00002-of-00002.safetensors, which is not in .*download complete"):
        t5_weights.load(directory)


@pytest.mark.parametrize("index", ["{", "{}", "[]", '{"weight_map": 3}', '{"weight_map": {}}', '"text"', "[" * 99999])
def test_a_damaged_index_is_one_line(directory, index):
    write_index(directory, index)
    with pytest.raises(
        RunFailed, match=r"index.json (is damaged: its 'weight_map' is missing|is not|holds a|is nested)"
    ):
        t5_weights.load(directory)


def test_a_directory_without_weights_is_told_what_was_looked_for(directory):
    (directory / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no weights; looked for model.safetensors, flax_model.msgpack, pytorch_"):
        t5_weights.load(directory)


def test_pytorch_weights_without_pytorch_say_what_to_do(directory, monkeypatch):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="only where PyTorch is installed; install it, or save the model as"):
        t5_weights.load(directory)


@pytest.mark.reference
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(directory, tmp_path):
    import torch

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (directory / "model.safetensors").unlink()
    torch.save({"shared.weight": Evil()}, directory / "pytorch_model.bin")
    with pytest.raises(RunFailed, match="pytorch_model.bin is damaged, or holds more than plain weights"):
        t5_weights.load(directory)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight.int(),
        lambda weight: weight > 0,
        lambda weight: weight.cfloat(),
        lambda weight: weight.to_sparse(),
        lambda weight: weight.to("meta"),
    ],
    ids=["whole numbers", "true and false", "complex", "sparse", "without values"],
)
def test_pytorch_weights_of_another_kind_are_one_line(directory, change):
    torch = pytest.importorskip("torch")
    stored = {
        name: torch.from_numpy(value.copy()) for name, value in load_file(directory / "model.safetensors").items()
    }
    (directory / "model.safetensors").unlink()
    torch.save(stored | {"shared.weight": change(stored["shared.weight"])}, directory / "pytorch_model.bin")
    with pytest.raises((UserError, RunFailed)) as raised:
        t5_weights.load(directory)
    assert "\n" not in str(raised.value)


def test_a_pytorch_weight_in_two_shards_is_refused_and_one_that_was_trained_is_read(directory):
    torch = pytest.importorskip("torch")
    stored = {
        name: torch.from_numpy(value.copy()) for name, value in load_file(directory / "model.safetensors").items()
    }
    (directory / "model.safetensors").unlink()
    stored["shared.weight"] = torch.nn.Parameter(stored["shared.weight"])
    torch.save(stored, directory / "pytorch_model.bin")
    t5_weights.load(directory)
    (directory / "pytorch_model.bin").rename(directory / "a.bin")
    torch.save({"shared.weight": stored["shared.weight"] + 1}, directory / "b.bin")
    index = {"weight_map": dict.fromkeys(stored, "a.bin") | {"shared.weight": "b.bin"}}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"shared.weight is there twice"):
        t5_weights.load(directory)
