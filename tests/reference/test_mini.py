"""The packaged model `mini`, loaded by `transformers`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jpeft.data.prompts import PromptTokens
from jpeft.model import t5_weights
from jpeft.model.decode import greedy
from jpeft.model.source import resolve
from jpeft.model.tokenizer import Tokenizer

pytestmark = [
    pytest.mark.reference,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
TEXTS = [
    "What is the <extra_id_0> of the sea?\n\nOPTIONS:\n- blue\n- green",
    "Turn this data into a natural sentence: inform restaurant name[The Swan]; inform city[San Jose]",
]


def test_transformers_reads_the_same_tokens_and_writes_the_same_answers():
    directory = resolve("mini")
    ours = t5_weights.load(directory)
    theirs: Any = transformers.T5ForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = Tokenizer.load(directory, vocab_size=ours.config.vocab_size)
    batch = transformers.AutoTokenizer.from_pretrained(directory)(TEXTS, padding=True, return_tensors="pt")
    rows = [PromptTokens(text, tokenizer, 200)([{}]).ids[0] for text in TEXTS]  # a sentinel of a template
    assert [row[: len(ids)].tolist() for row, ids in zip(batch.input_ids, rows, strict=True)] == rows

    decoder_input = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        expected = theirs(**batch, decoder_input_ids=decoder_input).logits.numpy()
        answers = theirs.generate(**batch, max_new_tokens=30, do_sample=False).numpy()[:, 1:]
    inputs = jnp.asarray(batch.input_ids.numpy())
    with jax.default_matmul_precision("highest"):
        logits = ours(inputs, jnp.asarray(decoder_input.numpy(), jnp.int32))
        tokens = np.asarray(greedy(ours, inputs, max_length=30).tokens)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(tokens[:, : answers.shape[1]], answers)
