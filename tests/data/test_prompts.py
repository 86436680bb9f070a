"""Prompts as tokens, and which part of a long prompt is cut."""

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from jpeft.data.prompts import PromptTokens
from jpeft.errors import UserError
from jpeft.model.tokenizer import Tokenizer

INSTRUCTION = "\n\nleague or market?"


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return Tokenizer.load(tiny_tokenizer, vocab_size=320)


@pytest.fixture(scope="module")
def with_sentinels(tiny_tokenizer, tmp_path_factory):
    backend = tokenizers.Tokenizer.from_file(str(tiny_tokenizer / "tokenizer.json"))
    backend.add_special_tokens(["<extra_id_0>", "<extra_id_1>"])
    directory = tmp_path_factory.mktemp("sentinels")
    backend.save(str(directory / "tokenizer.json"))
    return Tokenizer.load(directory)


def test_a_prompt_that_fits_is_its_text_and_an_end(tokenizer):
    prompts = PromptTokens("{input}" + INSTRUCTION, tokenizer, 50)([{"input": "coach goal"}])
    assert prompts.ids == [[*tokenizer.ids(["coach goal" + INSTRUCTION])[0], 1]]
    assert prompts.cut == [False]


def test_what_is_too_long_loses_the_end_of_its_text_and_never_the_instruction(tokenizer):
    prompts = PromptTokens("{input}" + INSTRUCTION, tokenizer, 24)([{"input": "coach goal " * 40}, {"input": "coach"}])
    assert (prompts.cut, prompts.num_cut) == ([True, False], 1)
    assert len(prompts.ids[0]) == 24
    [text] = tokenizer.decode(prompts.ids[:1])
    assert text.startswith("coach goal")
    assert text.endswith(tokenizer.decode(tokenizer.ids([INSTRUCTION]))[0])


def test_the_longest_column_is_cut_and_the_others_stay(tokenizer):
    rows = [{"a": "shares profit", "b": "goal " * 60}, {"a": "goal " * 60, "b": "shares profit"}]
    for text in tokenizer.decode(PromptTokens("{a} | {b} |", tokenizer, 30)(rows).ids):
        assert "shares profit" in text
        assert text.endswith("|")


def test_two_long_columns_are_cut_to_one_length(tokenizer):
    rows = [{"a": "goal " * 60, "b": "bank " * 40, "c": "coach"}]
    prompts = PromptTokens("{a}|{b}|{c}", tokenizer, 41)(rows)
    a, b, c = tokenizer.decode(prompts.ids)[0].split("|")
    assert abs(a.count("goal") - b.count("bank")) <= 1
    assert (len(prompts.ids[0]), c) == (41, "coach")


def test_a_column_that_stands_twice_is_cut_in_both_places(tokenizer):
    prompts = PromptTokens("{a}|{a}", tokenizer, 30)([{"a": "goal " * 60}])
    first, second = tokenizer.decode(prompts.ids)[0].split("|")
    assert len(prompts.ids[0]) <= 30
    assert first.strip() == second.strip() != ""


def test_a_bare_text_is_cut_at_its_end_token_by_token(tokenizer):
    text = "coach goal season president treaty"
    [whole] = tokenizer.encode([text], max_length=99).ids
    assert PromptTokens("{input}", tokenizer, 5)([{"input": text}]).ids == [[*whole[:4], 1]]


@pytest.mark.parametrize("room", [0, 1])
def test_a_template_that_leaves_no_room_is_an_error_with_the_length_that_does(tokenizer, room):
    own = len(tokenizer.ids([INSTRUCTION])[0]) + 1
    if room:
        PromptTokens("{input}" + INSTRUCTION, tokenizer, own + 1)([{"input": "goal " * 9}])
        return
    with pytest.raises(UserError, match=rf"own text has {own} tokens.*set data.max_input_length to {own + 1} or more"):
        PromptTokens("{input}" + INSTRUCTION, tokenizer, own)


@given(
    a=st.text(max_size=60),
    b=st.text(alphabet="goal <>/s{}pad½ﬁ\n", max_size=60),
    length=st.integers(16, 40),
)
def test_no_prompt_is_longer_than_asked_for_and_each_keeps_its_instruction(tokenizer, a, b, length):
    prompts = PromptTokens("{a}\n{b}\n\nmarket?", tokenizer, length)([{"a": a, "b": b}])
    assert len(prompts.ids[0]) <= length
    assert prompts.ids[0][-1] == 1
    assert tokenizer.decode(prompts.ids)[0].endswith("market?")
    assert not {0, 1} & set(prompts.ids[0][:-1])


def test_sentinels_of_a_template_are_sentinels_and_those_of_a_row_are_text(with_sentinels):
    first, second = with_sentinels.sentinels
    rows = [{"input": "goal"}, {"input": "goal <extra_id_1>"}, {"input": "goal " * 50}]
    prompts = PromptTokens("{input} It is <extra_id_0>.", with_sentinels, 60)(rows)
    assert [ids.count(first) for ids in prompts.ids] == [1, 1, 1]
    assert not any(second in ids for ids in prompts.ids)
    assert "<extra_id_1>" in with_sentinels.decode(prompts.ids)[1]
    assert len(PromptTokens("{input} It is <extra_id_0>.", with_sentinels, 20)(rows).ids[2]) == 20
