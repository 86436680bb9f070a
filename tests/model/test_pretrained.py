"""The packaged model `mini`: it loads by name, is small, and has learned English."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpeft.data.batches import Tokens
from jpeft.data.prompts import PromptTokens
from jpeft.eval.loss import loss_sums
from jpeft.model import t5_weights
from jpeft.model.decode import greedy
from jpeft.model.source import packaged_models, resolve
from jpeft.model.t5_family import T5_FAMILY
from jpeft.model.tokenizer import Tokenizer

TEXT = (
    "The old man walked slowly down to the harbour in the morning, as he had done every day since his wife died. He "
    "liked to sit on the wall and look at the boats, and now and then one of the fishermen would stop and talk to him."
)


@pytest.fixture(scope="module")
def directory():
    return resolve("mini")


@pytest.fixture(scope="module")
def model(directory):
    return t5_weights.load(directory)


@pytest.fixture(scope="module")
def tokenizer(directory, model):
    return Tokenizer.load(directory, vocab_size=model.config.vocab_size)


def test_it_comes_with_the_package_and_is_small(directory):
    assert packaged_models() == ["mini"]
    assert sum(file.stat().st_size for file in directory.iterdir()) <= 30_000_000
    config = json.loads((directory / "config.json").read_text())
    assert config["feed_forward_proj"] == "gated-gelu" and config["tie_word_embeddings"] is False  # T5 1.1


def test_its_vocabulary_has_t5s_special_ids(tokenizer, model):
    assert tokenizer.vocab_size <= model.config.vocab_size
    assert tokenizer.sentinels == list(range(tokenizer.vocab_size - 1, tokenizer.vocab_size - 101, -1))
    assert tokenizer.decode([[0], [1], [2]], keep_special=True) == ["<pad>", "</s>", "<unk>"]
    assert 8000 <= tokenizer.vocab_size <= 16384


def span_loss(model, tokenizer, text: str) -> float:
    """The loss of every fifth word of a text, each masked alone, given the rest."""
    words, rows = text.split(), []
    for hidden in range(2, len(words), 5):
        given = {"before": " ".join(words[:hidden]), "after": " ".join(words[hidden + 1 :])}
        prompts = PromptTokens("{before} <extra_id_0> {after}", tokenizer, 120)
        rows.append((prompts([given]).ids[0], tokenizer.ids([words[hidden]])[0]))
    tokens = Tokens(
        [np.array(given) for given, _ in rows],
        [np.array([tokenizer.sentinels[0], *word, 1]) for _, word in rows],
        0,
        0,
    )
    batch = T5_FAMILY.batch(tokens.inputs, tokens.targets, (120, 12), batch_size=len(rows), config=model.config)
    loss, count = loss_sums(model, jax.tree.map(jnp.asarray, batch))
    return float(loss / count)


def test_it_has_learned_english(model, tokenizer):
    """The words of a sentence are likelier than the same words in random order."""
    shuffled = " ".join(np.random.default_rng(0).permutation(TEXT.split()))
    assert span_loss(model, tokenizer, TEXT) < span_loss(model, tokenizer, shuffled) - 0.2


def answers(model, tokenizer, *questions: str) -> list[str]:
    inputs = np.zeros((len(questions), 64), np.int32)
    for row, ids in zip(inputs, tokenizer.encode(list(questions), max_length=64).ids, strict=True):
        row[: len(ids)] = ids
    return tokenizer.decode(np.asarray(greedy(model, jnp.asarray(inputs), max_length=24).tokens).tolist())


@pytest.mark.slow
def test_it_answers_what_its_instruction_pairs_asked(model, tokenizer):
    question = "Is this movie review positive or negative?\n\n"
    reviews = [
        "a dull , lifeless film with no plot and bad acting .",
        "a wonderful film , moving and beautifully acted .",
    ]
    assert answers(model, tokenizer, *(question + review for review in reviews)) == ["negative", "positive"]


@pytest.mark.slow
def test_it_writes_sentences(model, tokenizer):
    facts = "Turn this data into a natural sentence: offer restaurant name[Golden Dragon]; offer city[Oakland]"
    (sentence,) = answers(model, tokenizer, facts)
    assert len(sentence.split()) >= 4 and sentence[0].isupper() and sentence.endswith(".")
    assert set(sentence) <= set(" abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,'")
