"""Resolving model names, and the errors when that fails; stubs stand in for the hub."""

import builtins
import importlib
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from jpeft.errors import RunFailed, UserError
from jpeft.model import source
from jpeft.model.decoder_config import DecoderConfig
from jpeft.model.source import load_config, packaged_models, resolve
from jpeft.model.t5_config import RELEASED, T5Config
from tests.conftest import ONE_LAYER, TINY
from tests.decoders import LLAMA, TINY_DECODERS

# The HTTP library of the installed huggingface_hub: httpx, or httpx2 from version 2 on.
HTTP = importlib.import_module(HfHubHTTPError.__mro__[1].__module__.partition(".")[0])
HUB_FILES = {"config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin", "README.md"}


class Hub:
    """A stub of the hub and its local cache."""

    def __init__(self, directory: Path):
        self.directory = directory  # the download, or the cached copy
        self.cached = False
        self.files = HUB_FILES
        self.error: Exception | None = None
        self.fetched: list[list[str]] = []

    def list_repo_files(self, repository):
        if self.error is not None:
            raise self.error
        return sorted(self.files)

    def snapshot_download(self, repository, *, local_files_only=False, allow_patterns=None):
        if local_files_only:
            # The real hub treats a cached snapshot that lacks a requested file as incomplete.
            if not self.cached or allow_patterns is None:
                raise LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder")
        else:
            self.fetched.append(list(allow_patterns or []))
        return str(self.directory)


@pytest.fixture
def hub(tmp_path, tiny_checkpoint, monkeypatch):
    hub = Hub(tmp_path / "snapshot")
    shutil.copytree(tiny_checkpoint, hub.directory)
    monkeypatch.setattr(source, "why_unreachable", lambda: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "list_repo_files", lambda self, repository: hub.list_repo_files(repository)
    )
    return hub


@pytest.fixture
def packaged(tmp_path, tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(source, "PACKAGED", tmp_path / "pretrained")
    shutil.copytree(tiny_checkpoint, tmp_path / "pretrained" / "mini")
    (tmp_path / "pretrained" / "half").mkdir()  # not a model, as it has no config.json
    return tmp_path / "pretrained" / "mini"


def test_a_local_directory_is_itself(tiny_checkpoint, monkeypatch):
    assert resolve(str(tiny_checkpoint)) == tiny_checkpoint
    monkeypatch.setenv("HOME", str(tiny_checkpoint.parent))
    assert resolve(f"~/{tiny_checkpoint.name}") == tiny_checkpoint


def test_a_packaged_model_is_known_by_its_name(packaged):
    assert packaged_models() == ["mini"]
    assert resolve("mini") == packaged


def test_a_directory_here_comes_before_a_packaged_model(packaged, tmp_path, monkeypatch):
    (tmp_path / "mini").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("mini") == Path("mini")


@pytest.mark.parametrize("name", ["flan", "models/of/mine", "/nowhere/at/all", "a b/c", "./mine", "../mine", "a--b/c"])
def test_a_name_that_is_neither_directory_nor_hub_id_is_answered_with_what_would_be(name, packaged):
    with pytest.raises(UserError) as raised:
        resolve(name)
    message = str(raised.value)
    assert message.startswith(f"model.name {name!r} is no directory here and no hub id such as google/flan-t5-small")
    assert "a local directory in Hugging Face layout, or mini (comes with jpeft)" in message


def test_a_gguf_file_that_is_not_there_is_called_that():
    with pytest.raises(
        UserError, match=r"model\.name 'no/such\.gguf' does not exist; give --config\.model\.name a GGUF"
    ):
        resolve("no/such.gguf")


@pytest.mark.parametrize("below", ["", "adapter/"])
@pytest.mark.parametrize("file", ["adapter_config.json", "jpeft_adapter.json"])
def test_an_adapter_or_a_run_is_no_model(file, below, tmp_path):
    (tmp_path / below).mkdir(exist_ok=True)
    (tmp_path / below / file).write_text("{}")
    (tmp_path / "config.json").write_text("{}")  # the config.json of a run
    with pytest.raises(UserError, match=r"holds an adapter, not a model; give --model the model it was tuned on\.$"):
        resolve(str(tmp_path), what="--model", flag="--model")
    (tmp_path / "model.safetensors").write_bytes(b"")  # an adapter beside its base does not interfere
    assert resolve(str(tmp_path)) == tmp_path


def test_a_fully_tuned_run_says_where_its_model_is(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "model.safetensors").write_bytes(b"")
    with pytest.raises(
        UserError, match=f"is a run's directory; give --config.model.name the model in it, {tmp_path}/ad"
    ):
        resolve(str(tmp_path))


def test_a_file_is_no_model(tiny_checkpoint):
    with pytest.raises(UserError, match="config.json' is a file; it must be a directory in Hugging Face layout"):
        resolve(str(tiny_checkpoint / "config.json"))


@pytest.mark.parametrize(
    "error",
    [
        HTTP.ConnectError("[Errno -2] Name or service not known\nRequest URL: https://huggingface.co"),
        HTTP.ReadTimeout("timed out"),
        OfflineModeIsEnabled("Cannot reach https://huggingface.co: offline mode is enabled"),
        OSError("no route to host"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_unreachable_hub_is_one_line_that_names_the_local_route(hub, packaged, error):
    hub.error = error
    with pytest.raises(RunFailed) as raised:
        resolve("google/flan-t5-small")
    message = str(raised.value)
    assert message.startswith("the hub cannot be reached for google/flan-t5-small (")
    assert str(error).partition("\n")[0] in message
    assert "give --config.model.name a local directory in Hugging Face layout, or mini (comes with jpeft)" in message
    assert "\n" not in message


def test_without_a_network_the_hub_is_not_tried_for_half_a_minute(hub, monkeypatch):
    monkeypatch.setattr(source, "why_unreachable", lambda: "Name or service not known")
    hub.list_repo_files = None  # would fail if it were called
    said = []
    with pytest.raises(RunFailed, match="flan-t5-small .Name or service not known.; without a network, give"):
        resolve("google/flan-t5-small", report=said.append)
    assert said == []
    hub.cached = True  # a cached download needs no network
    assert resolve("google/flan-t5-small") == hub.directory


def test_the_real_client_without_a_network_ends_in_the_same_line(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RunFailed, match="the hub cannot be reached for google/flan-t5-small"):
        resolve("google/flan-t5-small")


def test_no_http_library_of_ones_own_is_needed(hub, monkeypatch):
    real = builtins.__import__

    def without_httpx(name, *args, **kwargs):
        if name.partition(".")[0] in ("httpx", "httpx2", "requests"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_httpx)
    assert resolve("google/flan-t5-small") == hub.directory


def test_an_unknown_repository_is_the_callers_mistake(hub):
    hub.error = RepositoryNotFoundError(
        "404 Client Error", response=HTTP.Response(404, request=HTTP.Request("GET", "https://huggingface.co"))
    )
    with pytest.raises(UserError, match="the hub has no model 'google/flan-t6', or it is private: log in with"):
        resolve("google/flan-t6")


def test_a_repository_without_weights_is_told_what_it_holds(hub):
    hub.files = {"README.md", "config.json", "tf_model.h5"}
    with pytest.raises(
        UserError, match="holds no weights that jpeft reads; it has README.md, config.json, tf_model.h5"
    ):
        resolve("google/flan-t5-small")
    assert hub.fetched == []


@pytest.mark.parametrize(
    ("files", "weights"),
    [
        ({"model.safetensors", "pytorch_model.bin", "flax_model.msgpack"}, ["model.safetensors"]),
        (
            {"model.safetensors.index.json", "model-00001-of-00002.safetensors", "pytorch_model.bin"},
            ["model.safetensors.index.json", "model-*.safetensors"],
        ),
        ({"flax_model.msgpack", "pytorch_model.bin"}, ["flax_model.msgpack"]),
        ({"flax_model.msgpack.index.json"}, ["flax_model.msgpack.index.json", "flax_model-*.msgpack"]),
        ({"pytorch_model.bin", "tf_model.h5"}, ["pytorch_model.bin"]),
        ({"pytorch_model.bin.index.json"}, ["pytorch_model.bin.index.json", "pytorch_model-*.bin"]),
    ],
)
def test_one_format_is_fetched_the_best_that_is_there(hub, files, weights):
    hub.files = {"config.json", *files}
    assert resolve("google/flan-t5-small") == hub.directory
    [fetched] = hub.fetched
    assert fetched[0] == "config.json" and {"tokenizer.json", "spiece.model", "added_tokens.json"} < set(fetched)
    assert [pattern for pattern in fetched if "model" in pattern and pattern != "spiece.model"] == weights


def test_what_was_downloaded_needs_no_network_again(hub):
    hub.cached, hub.error = True, HTTP.ConnectError("no network")
    assert resolve("google/flan-t5-small") == hub.directory
    assert hub.fetched == []


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_download_that_was_interrupted_is_gone_on_with(hub, missing):
    hub.cached = True
    (hub.directory / missing).unlink()
    assert resolve("google/flan-t5-small") == hub.directory
    assert len(hub.fetched) == 1


def test_an_index_without_all_its_shards_is_an_interrupted_download(hub):
    hub.cached = True
    (hub.directory / "model.safetensors").rename(hub.directory / "model-00001-of-00002.safetensors")
    shards = '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    (hub.directory / "model.safetensors.index.json").write_text(shards)
    resolve("google/flan-t5-small")
    assert len(hub.fetched) == 1


@pytest.mark.parametrize("name", RELEASED)
def test_the_sizes_of_a_released_model_need_no_network(name, monkeypatch):
    monkeypatch.setattr(source, "resolve", None)  # would fail if it were called
    assert load_config(name) == RELEASED[name]


def test_the_sizes_of_another_model_are_those_of_its_config(tiny_checkpoint):
    assert load_config(str(tiny_checkpoint)) == ONE_LAYER


def test_a_directory_of_a_released_models_name_is_read(tiny_checkpoint, tmp_path, monkeypatch):
    shutil.copytree(tiny_checkpoint, tmp_path / "google" / "flan-t5-xl")
    monkeypatch.chdir(tmp_path)
    assert load_config("google/flan-t5-xl") == ONE_LAYER


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no config.json"),
        (b"{", "is not valid JSON"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"[]", "holds a list; expected an object"),
        (b'{"model_type": "bert"}', "model_type is 'bert'; jpeft has a network for t5, mt5, llama"),
        (b'{"model_type": "umt5"}', "umt5 has a relative bias in every layer"),
        (b'{"model_type": "t5", "d_model": 8}', "lacks vocab_size, d_kv, d_ff, num_layers, num_heads"),
    ],
)
def test_a_config_that_is_no_t5s_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_config(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 0}, "d_model is 0; expected an integer from 1 to 1,048,576"),
        ({"num_heads": "8"}, "num_heads is '8'; expected an integer from 1"),
        ({"pad_token_id": -1}, "pad_token_id is -1; expected an integer from 0 to 319"),
        ({"pad_token_id": 320}, "pad_token_id is 320; expected an integer from 0 to 319"),
        ({"eos_token_id": []}, r"eos_token_id is \[\]; expected an integer"),
        ({"eos_token_id": [True]}, "eos_token_id is True; expected an integer"),
        ({"eos_token_id": [1, 320]}, "eos_token_id is 320; expected an integer from 0 to 319"),
        ({"num_layers": 100_000}, "num_layers is 100000; expected an integer from 1 to 512"),
        ({"d_ff": 10**4000}, r"d_ff is 10+\.\.\.; expected an integer"),
        ({"dropout_rate": "low"}, "dropout_rate is 'low'; expected a number"),
        ({"dropout_rate": 1}, "dropout_rate is 1; expected at least 0 and less than 1"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon is 0; expected more than 0"),
        ({"relative_attention_num_buckets": 3}, "relative_attention_num_buckets is 3; expected an integer from 4"),
        ({"relative_attention_max_distance": 16}, "max_distance is 16; expected more than half of the 32 buckets"),
        ({"model_type": ["t5"]}, r"model_type is \['t5'\]; expected a text"),
        ({"feed_forward_proj": 3}, "feed_forward_proj is 3; expected a text"),
        ({"feed_forward_proj": "open-gelu"}, "feed_forward_proj is 'open-gelu'; expected an activation, or gated-"),
        ({"dense_act_fn": "tanh"}, "dense_act_fn is 'tanh'; expected one of relu, gelu, gelu_new, silu"),
        (
            {"feed_forward_proj": "gated-tanh"},
            "feed_forward_proj is 'gated-tanh'; expected one of relu, gelu, gelu_new, silu",
        ),
    ],
)
def test_a_size_or_activation_that_can_not_be_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        T5Config.from_dict({**TINY.to_dict(), **change})


def test_a_decoder_may_say_by_minus_one_that_it_has_no_padding():
    assert DecoderConfig.from_dict({**LLAMA.to_dict(), "pad_token_id": -1}).pad_token_id == LLAMA.eos_token_id
    with pytest.raises(UserError, match="pad_token_id is -2; expected an integer from 0"):
        DecoderConfig.from_dict({**LLAMA.to_dict(), "pad_token_id": -2})


@pytest.mark.parametrize(
    ("layers", "types", "windowed"),
    [
        (["local", "global", "local"], [[["global"], 3]], (0, 2)),
        (["global", "global", "local"], None, (2,)),
        (None, [[["global", "local"], 1], [["local"], 1]], (1, 2)),
    ],
)
def test_the_layers_of_a_gpt_neo_are_those_that_its_config_lists(layers, types, windowed):
    config = {**TINY_DECODERS["gpt_neo"].to_dict(), "attention_layers": layers, "attention_types": types}
    assert DecoderConfig.from_dict(config).windowed == windowed
    with pytest.raises(UserError, match=r"attention_layers is .*; expected 'global' or 'local' for each of 3 layers"):
        DecoderConfig.from_dict({**config, "attention_layers": [["global"], "local", "local"]})


@pytest.mark.parametrize(("family", "config"), [(T5Config, TINY), (DecoderConfig, LLAMA)])
def test_all_tokens_that_a_model_stops_at_are_kept(family, config):
    found = family.from_dict({**config.to_dict(), "eos_token_id": [3, 2, 3, 5]})
    assert (found.eos_token_id, found.other_eos_token_ids, found.ends) == (3, (2, 5), (3, 2, 5))
    assert found.to_dict()["eos_token_id"] == [3, 2, 5] and "other_eos_token_ids" not in found.to_dict()
    assert family.from_dict(found.to_dict()) == found
    assert family.from_dict({**config.to_dict(), "eos_token_id": [3]}).to_dict()["eos_token_id"] == 3


def test_a_config_written_by_transformers_5_says_under_another_name_that_the_head_is_tied():
    # It always writes tie_word_embeddings as true.
    values = {**TINY.to_dict(), "tie_word_embeddings": True, "scale_decoder_outputs": False}
    assert not T5Config.from_dict(values).tie_word_embeddings
    assert T5Config.from_dict({**values, "scale_decoder_outputs": True}).tie_word_embeddings
