"""`jpeft.text_batches` gives the batches of a run, and a model fitted on them learns the texts."""

import re

import pytest

import jpeft
from jpeft.model.tokenizer import Tokenizer
from tests.conftest import ONE_LAYER, random_t5, slow_but
from tests.decoders import LLAMA, one_layer, random_decoder

INPUTS = ["coach goal season", "shares profit", "software chip planet robot", "border treaty", "league", "gene robot"]
TARGETS = ["Sports", "Business", "Sci/Tech", "World", "Sports", "Sci/Tech"]


@pytest.fixture
def model():
    return random_t5(ONE_LAYER)


@pytest.fixture
def tokenizer(tiny_tokenizer):
    return Tokenizer.load(tiny_tokenizer, vocab_size=320)


def test_every_pair_comes_once_an_epoch_in_an_order_of_the_seed(model, tokenizer):
    made = jpeft.text_batches(model, tokenizer, INPUTS, TARGETS, batch_size=4, epochs=2, seed=3)
    assert len(made) == len(list(made)) == 4

    def told(batches):
        ids = [row for batch in batches for row in batch["decoder_target_tokens"].tolist()]
        return [tokenizer.decode([row])[0] for row in ids if any(row)]

    first, second = told(list(made)[:2]), told(list(made)[2:])
    assert sorted(first) == sorted(second) == sorted(TARGETS) and first != second
    other = jpeft.text_batches(model, tokenizer, INPUTS, TARGETS, batch_size=4, epochs=2)
    assert told(made) == told(made) != told(other)
    assert {batch["decoder_target_tokens"].shape[0] for batch in made} == {4}  # what is missing is padding
    assert sum(float(batch["decoder_loss_weights"].sum()) for batch in made) == 2 * sum(
        len(ids) for ids in tokenizer.encode(TARGETS, max_length=99).ids
    )


@pytest.mark.parametrize("family", slow_but(("t5",), ["t5", "llama"]))
def test_a_fit_learns_the_texts_and_generate_asks_alike(family, model, tokenizer, tiny_tokenizer):
    if family == "llama":
        model = random_decoder(one_layer(LLAMA))
        tokenizer = Tokenizer.load(tiny_tokenizer, vocab_size=320, eos_token_id=1, continues=True)
    method = jpeft.Full()
    tuned = jpeft.attach(model, method)
    batches = jpeft.text_batches(tuned, tokenizer, INPUTS[:2], TARGETS[:2], batch_size=2, epochs=60)
    fitted = jpeft.fit(tuned, batches, method=method, learning_rate=3e-2)
    assert len(fitted.losses) == 60 and fitted.losses[-1] < 0.05 < fitted.losses[0]
    assert jpeft.generate(fitted.model, tokenizer, INPUTS[:2], max_output_length=12) == TARGETS[:2]


def test_cut_texts_are_counted(model, tokenizer):
    with pytest.warns(UserWarning) as told:
        jpeft.text_batches(model, tokenizer, INPUTS, TARGETS, max_input_length=8, max_target_length=4)
    said = [str(warning.message) for warning in told]
    assert re.fullmatch(r"\d of 6 inputs lost their end: they are longer than max_input_length, 8 tokens\.", said[0])
    assert re.fullmatch(r"\d of 6 targets lost their end: they are longer than max_target_length, 4 tokens\.", said[1])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"inputs": "coach"}, "inputs is 'coach'; expected a list of texts"),
        ({"targets": ["x"]}, "6 inputs and 1 targets; expected one each"),
        ({"inputs": [], "targets": []}, "0 inputs and 0 targets"),
        ({"targets": [*TARGETS[:5], " "]}, "row 5 has an empty target"),
        ({"inputs": [*INPUTS[:5], "a\ud83d"]}, r"inputs[5]: 'a\ud83d' holds half of a surrogate pair; remove it"),
        ({"targets": [*TARGETS[:5], "a\udcff"]}, r"targets[5]: 'a\xff' holds bytes that are not UTF-8; remove it"),
        ({"batch_size": 0}, "batch_size is 0; expected a whole number, 1 or more"),
        ({"epochs": -2}, "epochs is -2"),
        ({"seed": -1}, "seed is -1; expected a whole number from 0 to 4,294,967,295"),
    ],
)
def test_what_cannot_be_meant_is_one_line(change, says, model, tokenizer):
    given = {"inputs": INPUTS, "targets": TARGETS, **change}
    with pytest.raises(jpeft.UserError, match=re.escape(says)):
        jpeft.text_batches(model, tokenizer, **given)
