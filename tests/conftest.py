"""Shared fixtures: tiny models and datasets in the formats of the real ones, without a network."""

import dataclasses
import functools
import gc
import hashlib
import itertools
import json
import os
import random
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

# Set before JAX starts. Tests compile far more than they compute, and some need four devices.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0 --xla_force_host_platform_device_count=4"
)
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):  # later versions abort on these flags
    # XLA's newer loop emitters take two to three times as long to compile a tiny training step.
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
# Otherwise XLA drops some roundings to bfloat16, in different places in each program.
os.environ["XLA_FLAGS"] += " --xla_allow_excess_precision=false"

from tests import type_checks  # noqa: F401, I001  (before anything of the package is imported)

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import tokenizers
from flax import nnx
from jax._src.interpreters import mlir

from jpeft.model import t5_weights
from jpeft.model.t5 import T5
from jpeft.model.t5_config import T5Config
from jpeft.pretrain import loop as pretrain_loop
from jpeft.program import use_compilation_cache
from jpeft.recent import Recent
from jpeft.train import loop as train_loop
from jpeft.train.session import Session

gc.set_threshold(
    50_000, 50, 50
)  # tracing creates many objects and little garbage, and JAX has callbacks at every collection


def _shared_contexts(make, programs: int = 256):
    """Makes MLIR contexts that serve many programs each.

    JAX creates one for every program, which takes as long as lowering a small one, and its caches keep them: a seventh
    of the tests' time and half of their memory.
    """
    made = itertools.count()
    shared = functools.lru_cache(maxsize=1)(lambda number: make())
    return lambda: shared(next(made) // programs)


if hasattr(mlir, "make_ir_context"):  # private, so it may be gone some day
    mlir.make_ir_context = _shared_contexts(mlir.make_ir_context)

hypothesis.settings.register_profile("jpeft", deadline=None)  # the machine may be busy, and a first call imports
hypothesis.settings.load_profile("jpeft")
pytest.register_assert_rewrite("tests.serve.alike")  # its failed assertions then show values

TINY = T5Config(
    vocab_size=320,
    d_model=16,
    d_kv=4,
    d_ff=24,
    num_layers=2,
    num_decoder_layers=2,
    num_heads=2,
    feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,
    dropout_rate=0.0,  # random bits dominate the compile time of a tiny training step
)
# For tests that are not about layers, at half the compile time: a single layer needs no loop and no stacked leaves.
ONE_LAYER = dataclasses.replace(TINY, num_layers=1, num_decoder_layers=1)
TOPICS = ["World", "Sports", "Business", "Sci/Tech"]
_WORDS = {
    "World": "president treaty border embassy election minister".split(),
    "Sports": "coach goal season striker league final".split(),
    "Business": "shares profit market bank merger earnings".split(),
    "Sci/Tech": "software chip planet robot browser gene".split(),
}


def pytest_addoption(parser):
    group = parser.getgroup("run a part of the tests, when there is no time for all")
    group.addoption("--order", metavar="TEXT", help="shuffle the test files, with this text as the seed")
    group.addoption("--minutes", type=float, help="skip the tests that have not started after this many minutes")


def pytest_configure(config):
    config._begun = time.monotonic()


def pytest_sessionfinish():
    # At its end pytest collects garbage five times to find warnings; freezing makes all but the first one fast.
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)  # after other options have deselected tests
def pytest_collection_modifyitems(config, items):
    if text := config.getoption("--order"):
        items.sort(key=lambda item: hashlib.sha256(f"{text} {item.nodeid.partition('::')[0]}".encode()).digest())


def pytest_runtest_setup(item):
    minutes = item.config.getoption("--minutes")
    if minutes is not None and time.monotonic() - item.config._begun > 60 * minutes:
        pytest.skip(f"the {minutes:g} minutes of --minutes are over")


def slow_but(quick: Sequence[str], names: Iterable[str]) -> list:
    """Parameter values for `parametrize`; all but those in `quick` are marked slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def of_devices(count: int) -> dict[str, str]:
    """The environment for a subprocess with `count` devices and the compiler flags of these tests."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=4", f"device_count={count}")
    return {**os.environ, "XLA_FLAGS": flags}


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory):
    """A cache directory for this test run, shared with its subprocesses."""
    directory = tmp_path_factory.mktemp("cache")
    os.environ["JPEFT_CACHE"] = str(directory)
    use_compilation_cache(directory / "compiled")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1)
    return directory


@pytest.fixture(scope="session", autouse=True)
def programs_of_runs():
    """Share compiled programs between the runs of a test process that get no session, as the cells of a grid do."""
    programs = Recent(128)

    def session() -> Session:
        alone = Session()
        alone.programs = programs
        return alone

    with pytest.MonkeyPatch.context() as patch:
        for module in (train_loop, pretrain_loop):
            patch.setattr(module, "Session", session)
        yield


@pytest.fixture
def key():
    return jax.random.key(7)


def random_t5(config: T5Config, *, dtype=jnp.float32, seed: int = 0) -> T5:
    """A new random model of a config; its weights are drawn once and copied for each call."""
    graphdef, weights_ = _drawn(config, dtype, seed)
    return nnx.merge(graphdef, jax.device_put(jax.tree.map(np.copy, weights_)))


@functools.lru_cache(maxsize=32)
def _drawn(config: T5Config, dtype, seed: int):
    graphdef, weights_ = nnx.split(T5(config, dtype=dtype, rngs=nnx.Rngs(seed)))
    return graphdef, jax.tree.map(np.asarray, weights_)


@pytest.fixture
def tiny_t5():
    """A random model of the `TINY` config."""
    return random_t5(TINY)


@pytest.fixture
def batch():
    return make_batch(TINY, rows=3, enc_len=8, dec_len=5)


def make_batch(config: T5Config, *, rows: int, enc_len: int, dec_len: int, seed: int = 0):
    """A batch of random tokens; the second row is half padding."""
    draw = np.random.default_rng(seed)
    encoder = draw.integers(3, config.vocab_size, (rows, enc_len)).astype(np.int32)
    target = draw.integers(3, config.vocab_size, (rows, dec_len)).astype(np.int32)
    weights_ = np.ones((rows, dec_len), np.float32)
    encoder[1, enc_len // 2 :] = 0
    target[1, dec_len // 2 :] = 0
    weights_[1, dec_len // 2 :] = 0
    batch = {
        "encoder_input_tokens": encoder,
        "decoder_input_tokens": np.concatenate([np.zeros((rows, 1), np.int32), target[:, :-1]], axis=1),
        "decoder_target_tokens": target,
        "decoder_loss_weights": weights_,
    }
    return jax.device_put(batch)  # jnp.asarray would compile a program for each shape


def spec(tree) -> dict[str, str]:
    """The path, dtype and shape of every leaf, `{path: "f32[2,16,2]"}`, to assert a whole tree at once."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    names = {"float32": "f32", "bfloat16": "bf16", "int32": "i32"}
    return {
        "/".join(str(getattr(p, "key", getattr(p, "name", p))) for p in path if str(p) != ".value"): names[
            str(leaf.dtype)
        ]
        + str(list(leaf.shape)).replace(" ", "")
        for path, leaf in leaves
    }


def news(rows: int, seed: int) -> dict[str, list]:
    """Rows with the columns of AG News whose words determine the label."""
    draw = random.Random(seed)
    labels = [draw.randrange(4) for _ in range(rows)]
    text = [" ".join(draw.choices(_WORDS[TOPICS[label]], k=draw.randint(3, 9))) for label in labels]
    return {"text": text, "label": labels}


def _sentences(rows: int, seed: int) -> dict[str, list]:
    draw = random.Random(seed)
    words = sum(_WORDS.values(), [])
    sentences = [" ".join(draw.choices(words, k=draw.randint(2, 6))) for _ in range(rows)]
    return {"sentence": sentences, "label": [len(s.split()) % 2 for s in sentences], "idx": list(range(rows))}


def _restaurants(rows: int, seed: int) -> dict[str, list]:
    draw = random.Random(seed)
    facts = [(draw.choice(["Alimentum", "Giraffe"]), draw.choice(["Thai", "French"])) for _ in range(rows)]
    return {
        "meaning_representation": [f"name[{name}], food[{food}]" for name, food in facts],
        "human_reference": [
            draw.choice(["{} serves {} food.", "At {} the food is {}."]).format(*fact) for fact in facts
        ],
    }


def _dialogues(rows: int, seed: int) -> dict[str, list]:
    draw = random.Random(seed)
    pairs = [draw.sample(["Ann", "Bob", "Eve"], 2) for _ in range(rows)]
    return {
        "id": [str(i) for i in range(rows)],
        "dialogue": [f"{a}: lunch?\r\n{b}: yes" for a, b in pairs],
        "summary": [f"{a} and {b} have lunch." for a, b in pairs],
    }


def write_parquet(path: Path, columns: dict[str, list]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pa.table(columns), path)


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory) -> Path:
    """The four tasks with the files and columns of the real data and a few dozen rows each."""
    root = tmp_path_factory.mktemp("data")
    for seed, (name, make, splits) in enumerate(
        [
            ("ag_news", news, {"train": 120, "test": 24}),
            ("cola", _sentences, {"train": 60, "validation": 31}),
            ("e2e_nlg", _restaurants, {"train": 60, "validation": 20, "test": 24}),
            ("samsum", _dialogues, {"train": 60, "validation": 20, "test": 18}),
        ]
    ):
        for split, rows in splits.items():
            write_parquet(root / name / f"{split}.parquet", make(rows, seed * 10 + len(split)))
    return root


@pytest.fixture(scope="session")
def toy_jsonl(tmp_path_factory) -> Path:
    """A custom dataset: a JSONL file with the columns `input` and `target`."""
    path = tmp_path_factory.mktemp("mine") / "mine.jsonl"
    rows = news(90, seed=99)
    lines = [{"input": t, "target": TOPICS[label]} for t, label in zip(rows["text"], rows["label"], strict=True)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory) -> Path:
    """A directory with a sentence-piece tokenizer of at most `TINY.vocab_size` pieces and T5's special ids."""
    directory = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(
        directory, [" ".join(sum(_WORDS.values(), TOPICS)), "Ann and Bob and Eve have lunch. acceptable unacceptable"]
    )
    return directory


def make_tokenizer(
    directory: Path,
    texts: list[str],
    *,
    vocab_size: int = 320,
    special_tokens: Sequence[str] = ("<pad>", "</s>", "<unk>"),
) -> None:
    """Train a unigram tokenizer on a few texts and write a reproducible `tokenizer.json`.

    The trainer orders equally frequent pieces arbitrarily: without the final sort, ids and so the answers of random
    weights would differ between processes, and some are so close that rounding at another batch size changes them.
    """
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        unk_token="<unk>",
        show_progress=False,
        initial_alphabet=[chr(i) for i in range(33, 127)],
    )
    tokenizer.train_from_iterator(texts * 3, trainer)
    made = json.loads(tokenizer.to_str())
    special, pieces = made["model"]["vocab"][: len(special_tokens)], made["model"]["vocab"][len(special_tokens) :]
    about = sorted(((round(score, 1), piece) for piece, score in pieces), key=lambda each: (-each[0], each[1]))
    made["model"]["vocab"] = special + [[piece, score] for score, piece in about]
    (directory / "tokenizer.json").write_text(json.dumps(made, ensure_ascii=False))


@pytest.fixture(scope="session")
def four_headed_checkpoint(tmp_path_factory, tiny_tokenizer) -> Path:
    """A tiny random T5 whose heads, widths and vocabulary are divisible by four devices."""
    config = dataclasses.replace(TINY, num_heads=4)
    return _checkpoint(config, tmp_path_factory.mktemp("checkpoint") / "tiny4", tiny_tokenizer)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory, tiny_tokenizer) -> Path:
    """A random T5 with one block per stack in the Hugging Face layout, with its tokenizer."""
    return _checkpoint(ONE_LAYER, tmp_path_factory.mktemp("checkpoint") / "tiny", tiny_tokenizer)


@pytest.fixture(scope="session")
def deeper_checkpoint(tmp_path_factory, tiny_tokenizer) -> Path:
    """The same with two blocks per stack, for tests about layers."""
    return _checkpoint(TINY, tmp_path_factory.mktemp("checkpoint") / "deeper", tiny_tokenizer)


def _checkpoint(config: T5Config, directory: Path, tokenizer: Path) -> Path:
    t5_weights.save(random_t5(config, seed=3), directory)
    (directory / "tokenizer.json").write_bytes((tokenizer / "tokenizer.json").read_bytes())
    return directory
