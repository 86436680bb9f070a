"""A corpus of a few hundred generated rows, and the config of a tiny network that trains on it quickly."""

import json
import random
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from jpeft.pretrain.config import SourceConfig, default_pretraining
from jpeft.pretrain.vocabulary import train_vocabulary

_WORDS = "the a old young river house king sister letter ship garden winter morning spoke walked saw found lost".split()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)

    def text(words: int) -> str:
        return " ".join(draw.choices(_WORDS, k=words)).capitalize() + "."

    def write(name: str, rows: list[dict]) -> None:
        (directory / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("books-0.jsonl", [{"text": text(draw.randint(20, 150))} for _ in range(120)])
    write("books-1.jsonl", [{"text": text(draw.randint(20, 150))} for _ in range(120)])
    write("news.jsonl", [{"text": text(draw.randint(10, 30))} for _ in range(220)])
    pairs = [text(4) for _ in range(230)]
    write("pairs.jsonl", [{"input": f"Last word? {pair}", "target": pair.split()[-1]} for pair in pairs])
    return directory


@pytest.fixture(scope="session")
def vocabulary(corpus, tmp_path_factory) -> Path:
    """A vocabulary trained on the corpus."""
    directory = tmp_path_factory.mktemp("vocabulary")
    rows = [json.loads(line) for line in (corpus / "books-0.jsonl").read_text().splitlines()]
    train_vocabulary([row["text"] for row in rows], 400, directory)
    return directory


@pytest.fixture
def tiny_pretraining(corpus, vocabulary) -> ConfigDict:
    config = default_pretraining(
        {
            "books": SourceConfig("books-*.jsonl", "text", 0.5),
            "news": SourceConfig("news.jsonl", "text", 0.2),
            "pairs": SourceConfig("pairs.jsonl", "pairs", 0.3),
        }
    )
    config.update_from_flattened_dict(
        {
            "data.path": str(corpus),
            "data.input_length": 64,
            "data.target_length": 24,
            "tokenizer.path": str(vocabulary),
            "model.d_model": 16,
            "model.d_kv": 8,
            "model.d_ff": 16,
            "model.num_heads": 2,
            "model.num_layers": 1,
            "model.num_decoder_layers": 1,
            "train.steps": 6,
            "train.batch_size": 4,
            "train.warmup_steps": 2,
            "log.validate_every": 3,
            "log.validation_batches": 2,
            "log.samples": 2,
        }
    )
    return config
