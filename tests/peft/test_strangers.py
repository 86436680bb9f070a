"""Damaged and malicious directories: the error is one line, comes soon, and has the right exit status.

Each case damages a valid tiny directory in one way. The default tests read it with the library; the slow ones start
commands and check time and memory, too.
"""

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx, serialization
from safetensors.numpy import load_file, save_file

from jpeft import patterns
from jpeft.adapters.files import open_adapter, save_adapter
from jpeft.errors import RunFailed, UserError
from jpeft.leaves import fill
from jpeft.model import t5_weights
from jpeft.model.family import abstract_model
from jpeft.model.source import load_config
from jpeft.model.t5 import T5
from jpeft.model.tokenizer import Tokenizer
from jpeft.peft.attaching import attach
from jpeft.peft.lora import Lora
from jpeft.peft.selection import select
from jpeft.peft.variables import Adapter
from tests.conftest import ONE_LAYER, TINY

Damage = Callable[[Path], None]
DEEP = "[" * 100_000
HUGE = "9" * 5000


def text(name: str, content: str | bytes) -> Damage:
    def damage(directory: Path) -> None:
        (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def keys(name: str, **values: Any) -> Damage:
    """Sets keys of a JSON file; a value of type `bytes` is inserted as raw JSON."""

    def damage(directory: Path) -> None:
        whole = json.loads((directory / name).read_text())
        raw = {key: value for key, value in values.items() if isinstance(value, bytes)}
        written = json.dumps(whole | {key: f"@{key}@" if key in raw else value for key, value in values.items()})
        for key, value in raw.items():
            written = written.replace(f'"@{key}@"', value.decode())
        (directory / name).write_text(written)

    return damage


def both(*damages: Damage) -> Damage:
    def damage(directory: Path) -> None:
        for each in damages:
            each(directory)

    return damage


def without(name: str, key: str) -> Damage:
    def damage(directory: Path) -> None:
        whole = json.loads((directory / name).read_text())
        del whole[key]
        (directory / name).write_text(json.dumps(whole))

    return damage


def instead(name: str, what: str) -> Damage:
    """Replaces a file by a directory, a pipe or nothing."""

    def damage(directory: Path) -> None:
        (directory / name).unlink()
        if what == "directory":
            (directory / name).mkdir()
        elif what == "pipe":
            os.mkfifo(directory / name)

    return damage


def tensors(name: str, change: Callable[[dict[str, np.ndarray]], Any]) -> Damage:
    def damage(directory: Path) -> None:
        stored = load_file(directory / name)
        stored = change(stored) or stored
        save_file({key: np.asarray(value, order="C") for key, value in stored.items()}, directory / name)

    return damage


def header(name: str, entries: dict[str, Any], data: bytes = b"") -> Damage:
    """Writes a safetensors file with a given header."""

    def damage(directory: Path) -> None:
        head = json.dumps(entries).encode()
        (directory / name).write_bytes(struct.pack("<Q", len(head)) + head + data)

    return damage


def msgpack(value: Any) -> Damage:
    def damage(directory: Path) -> None:
        (directory / "model.safetensors").unlink()
        raw = value if isinstance(value, bytes) else serialization.msgpack_serialize(value)
        (directory / "flax_model.msgpack").write_bytes(raw)

    return damage


def flax(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Writes weights in Flax's format after a change to their (incomplete) tree."""

    def damage(directory: Path) -> None:
        stored = load_file(directory / "model.safetensors")
        tree = {"shared": {"embedding": stored["shared.weight"]}, "lm_head": {"kernel": stored["lm_head.weight"].T}}
        change(tree)
        msgpack(tree)(directory)

    return damage


def sparse(name: str, size: int) -> Damage:
    """Replaces the weights by a sparse file, which takes no space on disk and its full size in memory."""

    def damage(directory: Path) -> None:
        for path in directory.glob("*.safetensors"):
            path.unlink()
        with (directory / name).open("wb") as file:
            file.truncate(size)

    return damage


def sparse_tensor(name: str, tensor: str, shape: list[int]) -> Damage:
    def damage(directory: Path) -> None:
        size = 4 * shape[0] * shape[1]
        header(name, {tensor: {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}})(directory)
        os.truncate(directory / name, (directory / name).stat().st_size + size)

    return damage


def index(content: Any) -> Damage:
    def damage(directory: Path) -> None:
        (directory / "model.safetensors").rename(directory / "part.safetensors")
        written = content if isinstance(content, str) else json.dumps(content)
        (directory / "model.safetensors.index.json").write_text(written)

    return damage


def of_every_json(name: str) -> dict[str, Damage]:
    contents = {
        "deep": DEEP + "]" * 100_000,
        "deep key": '{"a":' * 100_000,
        "empty": "",
        "null": "null",
        "list": "[]",
        "number": "3",
        "no JSON": "{",
        "not UTF-8": b'{"a": "\xff\xfe"}',
        "half a surrogate": '{"model_type": "\\ud800"}',
        "a NaN": '{"d_model": NaN}',
        "an infinity": '{"d_model": 1e999}',
        "huge integer": f'{{"d_model": {HUGE}}}',
    }
    return {f"{name} {what}": text(name, content) for what, content in contents.items()} | {
        f"{name} is a {what}": instead(name, what) for what in ("directory", "pipe")
    }


_Q = "encoder.block.0.layer.0.SelfAttention.q.weight"
_SIZES = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "relative_attention_num_buckets")
WRONG_VALUES = [0, -1, 2**40, 10**4000, 1.5, "8", [8], {"a": 8}, True]
CONFIGS: dict[str, Damage] = {
    **of_every_json("config.json"),
    **{
        f"{name} = {repr(value)[:12]}": keys("config.json", **{name: value})
        for name in _SIZES
        for value in WRONG_VALUES
    },
    "100,000 layers": keys("config.json", num_layers=100_000, num_decoder_layers=100_000),
    "no end": keys("config.json", eos_token_id=[]),
    "ends of text": keys("config.json", eos_token_id=["</s>"]),
    "an end beyond the vocabulary": keys("config.json", eos_token_id=10**6),
    "padding is a list": keys("config.json", pad_token_id=[0]),
    "dropout NaN": keys("config.json", dropout_rate=b"NaN"),
    "dropout 2": keys("config.json", dropout_rate=2),
    "dropout of thousands of digits": keys("config.json", dropout_rate=10**4000),
    "epsilon -1": keys("config.json", layer_norm_epsilon=-1),
    "epsilon of hundreds of digits": keys("config.json", layer_norm_epsilon=10**400),
    "epsilon 1e300": keys("config.json", layer_norm_epsilon=1e300),
    "family is a list": keys("config.json", model_type=["t5"]),
    "family is long": keys("config.json", model_type="x" * 10**6),
    "activation is a number": keys("config.json", feed_forward_proj=7),
    "activation is unknown": keys("config.json", dense_act_fn="exec"),
    "scaled is a text": keys("config.json", scale_decoder_outputs="no"),
    "without a size": without("config.json", "d_ff"),
}
MODELS: dict[str, Damage] = {
    "astronomical": keys("config.json", d_model=2**20, d_ff=2**20, vocab_size=2**24, num_layers=512),
    "no tensors": header("model.safetensors", {}),
    "0 dimensions": tensors("model.safetensors", lambda s: s.update({_Q: np.float32(1)[()].reshape(())})),
    "60 dimensions": tensors("model.safetensors", lambda s: s.update({_Q: s[_Q].reshape((1,) * 58 + s[_Q].shape)})),
    "100 dimensions": header(
        "model.safetensors", {_Q: {"dtype": "F32", "shape": [1] * 100, "data_offsets": [0, 4]}}, b"\0" * 4
    ),
    "a shape beyond the file": header(
        "model.safetensors", {_Q: {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, b"\0" * 4
    ),
    "integers": tensors("model.safetensors", lambda s: s.update({_Q: s[_Q].astype(np.int32)})),
    "an 8-bit float": header(
        "model.safetensors", {_Q: {"dtype": "F8_E4M3", "shape": [2, 2], "data_offsets": [0, 4]}}, b"\0" * 4
    ),
    "a long header": text("model.safetensors", struct.pack("<Q", 2**62) + b"{"),
    "a name of lines": tensors("model.safetensors", lambda s: s.update({"a\nb" * 1000: s[_Q]})),
    "a directory for weights": instead("model.safetensors", "directory"),
    "a pipe for weights": instead("model.safetensors", "pipe"),
    "no weights": instead("model.safetensors", "nothing"),
    "index deep": index(DEEP),
    "index up": index({"weight_map": {"shared.weight": "../part.safetensors"}}),
    "index absolute": index({"weight_map": {"shared.weight": "/etc/passwd"}}),
    "index of a directory": index({"weight_map": {"shared.weight": ".."}}),
    "index of numbers": index({"weight_map": {"shared.weight": 3}}),
    "index with a long name": index({"weight_map": {"shared.weight": "x" * 5000}}),
    "index is a list": index([]),
    "index maps to nothing": index({"weight_map": {}}),
    "msgpack deep": msgpack(b"\x91" * 100_000),
    "msgpack of a huge list": msgpack(b"\xdd\xff\xff\xff\xff"),
    "msgpack of a million lists": msgpack(b"\xdd\0\x20\0\0" + b"\x90" * 2**21),
    "msgpack of lists in lists": msgpack(b"\x93" + (b"\xdc\xff\xff" + b"\xc0" * 0xFFFF) * 20),
    "msgpack far larger than the model": sparse("flax_model.msgpack", 2**36),
    "msgpack with a weight by two names": flax(lambda tree: tree["lm_head"].update(weight=np.ones((320, 16), "f4"))),
    "msgpack with a weight in two branches": flax(lambda tree: tree.update({"shared.embedding": np.ones(3, "f4")})),
    "index with a name of lines": index({"weight_map": {"shared.weight": "x\ny"}}),
    "msgpack list": msgpack(b"\x93\x01\x02\x03"),
    "msgpack of texts": msgpack({"shared": {"embedding": "text"}}),
    "msgpack of integers": msgpack({"shared": {"embedding": np.ones((2, 2), np.int32)}}),
    "msgpack of numbers": msgpack({"shared": {"embedding": 3}}),
    "msgpack is something else": msgpack(b"version https://git-lfs.github.com/spec/v1\n"),
}
_SPLIT = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
TOKENIZERS: dict[str, Damage] = {
    **of_every_json("tokenizer.json"),
    "an expression that panics": keys("tokenizer.json", pre_tokenizer=_SPLIT),
    "an expression that is none": keys("tokenizer.json", pre_tokenizer=_SPLIT | {"pattern": {"Regex": "("}}),
    "a prefix of ten million": keys("tokenizer.json", normalizer={"type": "Prepend", "prepend": "a" * 10**7}),
    "a character map that panics": keys(
        "tokenizer.json", normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    ),
    "no vocabulary": keys("tokenizer.json", model={"type": "Unigram", "unk_id": 0, "vocab": []}),
    "unknown beyond the vocabulary": keys(
        "tokenizer.json", model={"type": "Unigram", "unk_id": 9, "vocab": [["a", 0.0]]}
    ),
}
_EVIL = "(.|.)*[!?]"  # exponential in the length of the text
_B = "base_model.model.encoder.block.0.layer.0.SelfAttention.q.lora_B.weight"
_A = "base_model.model.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight"


def _wrong(*names: str, values: list[Any]) -> dict[str, Damage]:
    return {
        f"{name} = {repr(value)[:16]}": keys("adapter_config.json", **{name: value})
        for name in names
        for value in values
    }


ADAPTERS: dict[str, Damage] = {
    **{name: damage for name, damage in of_every_json("adapter_config.json").items() if "pipe" not in name},
    **_wrong("r", values=[10**9, 10**4000, "8", [8], True, -1, 1.5]),
    **_wrong("lora_alpha", values=[10**4000, "8", [8], True, b"1e308", b"NaN", b"Infinity"]),
    **_wrong("target_modules", values=[7, {"q": 1}, [7], [["q"]], [None], True, "(", _EVIL, "(" * 5000, ["q"] * 10**5]),
    **_wrong("target_modules", values=["(?R)?q", "((?1))", "(?:q){e<=500}", r"\L<words>"]),
    **_wrong("exclude_modules", values=[7, [7], "(", _EVIL]),
    **_wrong("rank_pattern", values=[7, ["q"], {"q": "8"}, {"q": None}, {_EVIL: 2}, {"(": 2}, {"q": 10**9}]),
    **_wrong("alpha_pattern", values=[7, ["q"], {"q": "8"}, {_EVIL: 2}, {"q": 10**400}]),
    **_wrong("layers_to_transform", values=["1", [["1"]], [1.5], {"a": 1}]),
    **_wrong("peft_type", values=[7, ["LORA"], "x" * 10**6, "P_TUNING"]),
    **_wrong("bias", "task_type", values=[["none"]]),
    **_wrong("use_rslora", values=["yes", 1]),
    **_wrong("init_lora_weights", values=[["pissa"], "pissa"]),
    "layers' expression": keys("adapter_config.json", layers_to_transform=[0], layers_pattern=_EVIL),
    "no tensors": header("adapter_model.safetensors", {}),
    "0 dimensions": tensors("adapter_model.safetensors", lambda s: s.update({_A: np.float32(1).reshape(())})),
    "60 dimensions": tensors(
        "adapter_model.safetensors", lambda s: s.update({_A: s[_A].reshape((1,) * 58 + s[_A].shape)})
    ),
    "100 dimensions": header(
        "adapter_model.safetensors", {_A: {"dtype": "F32", "shape": [1] * 100, "data_offsets": [0, 4]}}, b"\0" * 4
    ),
    "one dimension": tensors("adapter_model.safetensors", lambda s: s.update({_A: s[_A][:, 0]})),
    "B of one dimension": tensors("adapter_model.safetensors", lambda s: s.update({_B: s[_B][:, 0]})),
    "NaN": tensors("adapter_model.safetensors", lambda s: s[_A].__setitem__((0, 0), np.nan)),
    "infinity": tensors("adapter_model.safetensors", lambda s: s[_B].__setitem__((0, 0), -np.inf)),
    "beyond float32": tensors("adapter_model.safetensors", lambda s: s.update({_A: s[_A].astype("f8") * 1e300})),
    "larger than any base": sparse_tensor("adapter_model.safetensors", _A, [2, 2**31]),
    "a rank that all others are filled up to": both(
        tensors(
            "adapter_model.safetensors",
            lambda s: s.update(
                {_A: np.ones((2**17, s[_A].shape[1]), "f4"), _B: np.ones((s[_B].shape[0], 2**17), "f4")}
            ),
        ),
        keys("adapter_config.json", rank_pattern={"encoder.block.0.layer.0.SelfAttention.q": 2**17}),
    ),
    "a rank of 0": tensors("adapter_model.safetensors", lambda s: s.update({_A: s[_A][:0]})),
    "integers": tensors("adapter_model.safetensors", lambda s: s.update({_A: s[_A].astype(np.int64)})),
    "an 8-bit float": header(
        "adapter_model.safetensors", {_A: {"dtype": "F8_E4M3", "shape": [2, 2], "data_offsets": [0, 4]}}, b"\0" * 4
    ),
    "a stranger": tensors("adapter_model.safetensors", lambda s: s.update({"x" * 10**5: s[_A]})),
    "a directory for weights": instead("adapter_model.safetensors", "directory"),
    "a pipe for weights": instead("adapter_model.safetensors", "pipe"),
    "weights cut short": text("adapter_model.safetensors", b"\x08\0\0"),
}


def _ours(**options: Any) -> Damage:
    return keys("jpeft_adapter.json", options={"rank": 2, "alpha": 1.0, "scaling_vectors": True} | options)


_OURS = "jpeft_adapter.safetensors"
OURS: dict[str, Damage] = {
    **{name: damage for name, damage in of_every_json("jpeft_adapter.json").items() if "pipe" not in name},
    "NaN": tensors(_OURS, lambda s: next(iter(s.values())).fill(np.nan)),
    "0 dimensions": tensors(_OURS, lambda s: s.update(dict.fromkeys(s, np.float32(1).reshape(())))),
    "one dimension": tensors(_OURS, lambda s: s.update({name: value[..., 0] for name, value in s.items()})),
    "a site of lines": tensors(_OURS, lambda s: s.update({"a\nb/c\nd": np.ones(3, "f4")})),
    "a leaf of lines": tensors(
        _OURS, lambda s: s.update({f"{next(iter(s)).rpartition('/')[0]}/c\nd": np.ones(3, "f4")})
    ),
    "rank 1e9": _ours(rank=10**9),
    "rank of thousands of digits": _ours(rank=10**4000),
    "rank is a text": _ours(rank="2"),
    "rank is true": _ours(rank=True),
    "rank is null": _ours(rank=None),
    "alpha is a list": _ours(alpha=[1]),
    "alpha is huge": _ours(alpha=10**400),
    "an option that is none": _ours(colour="red"),
    "options are a list": keys("jpeft_adapter.json", options=[]),
    "no options": without("jpeft_adapter.json", "options"),
    "method is a list": keys("jpeft_adapter.json", method=["lora"]),
    "method is unknown": keys("jpeft_adapter.json", method="magic"),
    "another version": keys("jpeft_adapter.json", format_version=3),
    "a name of a weight that is not there": keys("jpeft_adapter.json", shared={"a/kernel": "b/kernel"}),
    "a weight's own name for another": keys("jpeft_adapter.json", shared={"a/kernel": 3}),
    "version is a list": keys("jpeft_adapter.json", format_version=[1]),
    "no version": without("jpeft_adapter.json", "format_version"),
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Lowers the time limit of regular expressions, so that tests on a busy machine need not wait."""
    monkeypatch.setattr(patterns, "_SECONDS", 0.1)


def one_line(read: Callable[[], Any]) -> None:
    started = time.monotonic()
    with pytest.raises((UserError, RunFailed)) as raised:
        read()
    message = str(raised.value)
    assert "\n" not in message and len(message) < 2000 and time.monotonic() - started < 15


def broken(good: Path, damage: Damage, tmp_path: Path) -> Path:
    shutil.copytree(good, tmp_path / "it")
    damage(tmp_path / "it")
    return tmp_path / "it"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> dict[str, Path]:
    """One adapter with random values in each layout."""
    made = {}
    for name, method in {"peft": Lora.official(rank=2), "ours": Lora(rank=2)}.items():
        made[name] = tmp_path_factory.mktemp("adapters") / name
        save_adapter(*_adapted(method), made[name], base_name="mini")
    return made


def _adapted(method: Lora) -> tuple[T5, Lora, Any]:
    chosen, draw = select(abstract_model(TINY), method), np.random.default_rng(0)
    model = nnx.eval_shape(lambda: attach(T5(TINY, rngs=nnx.Rngs(0)), method, chosen, jax.random.key(0)))
    fill(model, Adapter, lambda name, shape, part: draw.standard_normal(shape)[part], np.float32)
    return model, method, chosen


def test_the_directories_that_are_broken_here_are_whole_before(tiny_checkpoint, deeper_checkpoint, adapters):
    assert t5_weights.read_config(tiny_checkpoint) == ONE_LAYER
    for directory in adapters.values():
        assert open_adapter(directory, abstract_model(t5_weights.read_config(deeper_checkpoint))).method.rank == 2
    for directory in (tiny_checkpoint, deeper_checkpoint):
        Tokenizer.load(directory)


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_is_wrong_is_one_line(case, tiny_checkpoint, tmp_path):
    directory = broken(tiny_checkpoint, CONFIGS[case], tmp_path)
    one_line(lambda: load_config(str(directory)))


@pytest.mark.parametrize("case", MODELS)
def test_weights_that_are_wrong_are_one_line(case, tiny_checkpoint, tmp_path):
    directory = broken(tiny_checkpoint, MODELS[case], tmp_path)
    one_line(lambda: t5_weights.load(directory))


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_tokenizer_that_is_wrong_is_one_line(case, tiny_checkpoint, tmp_path):
    directory = broken(tiny_checkpoint, TOKENIZERS[case], tmp_path)
    one_line(lambda: Tokenizer.load(directory).ids(["a" * 48 + "!"]))


@pytest.mark.parametrize("case", ADAPTERS)
def test_an_adapter_of_peft_that_is_wrong_is_one_line(case, adapters, tmp_path):
    directory = broken(adapters["peft"], ADAPTERS[case], tmp_path)
    one_line(lambda: open_adapter(directory, abstract_model(TINY)))


@pytest.mark.parametrize("case", OURS)
def test_an_adapter_of_ours_that_is_wrong_is_one_line(case, adapters, tmp_path):
    directory = broken(adapters["ours"], OURS[case], tmp_path)
    one_line(lambda: open_adapter(directory, abstract_model(TINY)))


COMMANDS: dict[str, tuple[dict[str, Damage], str, list[str]]] = {
    "params of a config": (CONFIGS, "model", ["params", "--model", "IT"]),
    "predict with weights": (MODELS, "model", ["predict", "--model", "IT", "text"]),
    "predict with a tokenizer": (TOKENIZERS, "model", ["predict", "--model", "IT", "a" * 48 + "!"]),
    "import": (ADAPTERS, "peft", ["import", "IT", "--model", "BASE", "--out", "OUT"]),
    "merge": (OURS, "ours", ["merge", "IT", "--model", "BASE", "--out", "OUT"]),
}
_STARTED_TOGETHER = """
import re, sys, json, time
from jpeft.cli import main
for line in sys.stdin:
    started, status = time.monotonic(), None
    try:
        status = main(json.loads(line))
    except SystemExit as end:
        status = end.code
    sys.stderr.flush()
    # Not getrusage, whose peak includes the memory of the parent process before exec.
    kilobytes = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
    print(json.dumps([status, time.monotonic() - started, kilobytes]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_end_with_one_line_soon_and_in_little_memory(command, deeper_checkpoint, adapters, tmp_path):
    """One process runs all cases of a table, so that a leak of one would show in the next."""
    table, good, arguments = COMMANDS[command]
    calls = []
    for number, damage in enumerate(table.values()):
        directory = broken({"model": deeper_checkpoint, **adapters}[good], damage, tmp_path / str(number))
        words = {"IT": str(directory), "BASE": str(deeper_checkpoint), "OUT": str(tmp_path / str(number) / "out")}
        calls.append([words.get(word, word) for word in arguments])
    done = subprocess.run(
        [sys.executable, "-c", _STARTED_TOGETHER],
        input="".join(json.dumps(call) + "\n" for call in calls),
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-3000:]
    ends = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(ends) == len(errors) == len(table)
    for case, (status, seconds, kilobytes) in zip(table, ends, strict=True):
        assert status in (1, 2) and seconds < 30 and kilobytes < 2 * 2**20, (case, status, seconds, kilobytes)
    assert not list(tmp_path.glob("*/out"))
