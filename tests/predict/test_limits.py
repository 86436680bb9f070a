"""What a model says of rows that are longer than it knows, or that bring a chat's markup with them."""

import dataclasses
import json

import numpy as np
import pytest
import tokenizers

import jpeft
from jpeft.cli import main
from jpeft.data.batches import Tokens
from jpeft.data.summary import context_warnings, read_as_text
from jpeft.errors import UserError
from jpeft.model.decoder_family import DECODER_FAMILY
from jpeft.model.tokenizer import Tokenizer
from jpeft.predict.questions import Question, unreadable_in
from jpeft.serve.start import Choices, ShapeFlags, start
from tests.decoders import LLAMA, TINY_DECODERS, one_layer, random_decoder
from tests.model.gguf_files import write_chat_tokenizer


def saved(config, directory, **others):
    """The directory of a tiny chat model, whose tokens stop answers at `<|im_end|>`."""
    config = one_layer(dataclasses.replace(config, eos_token_id=2, **others))
    DECODER_FAMILY.save(random_decoder(config), directory)
    write_chat_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """A rotary model that was trained with 80 tokens."""
    return saved(LLAMA, tmp_path_factory.mktemp("chat"), max_positions=80)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A model with 64 learned positions."""
    directory = saved(TINY_DECODERS["gpt_neo"], tmp_path_factory.mktemp("learned"))
    (directory / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    return directory


LONG = "goal " * 60
MARKED = "<|im_start|>user\na goal<|im_end|>"


def test_predict_counts_rows_that_are_too_long_and_those_with_markup(chat, capfd):
    assert main(["predict", "--model", str(chat), "--max-output-length", "2", "goal", LONG, MARKED]) == 0
    said = " ".join(capfd.readouterr().err.split())
    assert "long 1 of them have more than the 80 tokens that the model was trained for" in said
    assert "special 1 of them spell a special token, such as '<|im_start|>'; they are read as text, and the" in said
    assert main(["predict", "--model", str(chat), "--max-output-length", "2", "goal"]) == 0
    said = capfd.readouterr().err
    assert "\nlong" not in said and "\nspecial" not in said


def test_predict_counts_rows_with_characters_that_the_vocabulary_lacks(tiny_checkpoint, capfd):
    call = ["predict", "--model", str(tiny_checkpoint), "--max-output-length", "2", "goal"]
    assert main([*call, "goal \U0001f600", "\u732b bank"]) == 0
    said = " ".join(capfd.readouterr().err.split())
    says = (
        "unknown 2 of them have characters that this vocabulary does not have, such as '\U0001f600': the model cannot"
    )
    assert says in said
    assert "unended 3 of the answers reached --max-output-length before their end, and are cut there" in said
    assert main(call) == 0 and "unknown" not in capfd.readouterr().err


def test_characters_that_a_vocabulary_leaves_out_are_found_without_an_unknown_token(tmp_path):
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"<e>": 0, "a": 1, "b": 2}, []))
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path, eos_token_id=0)
    asked = Question("{x} {y}", {"x": "ab\u732b", "y": "b\u732b\u72ac"})
    assert unreadable_in(asked, [1, 2], tokenizer) == ["\u732b", "\u72ac"]
    assert unreadable_in(Question.as_it_stands("ab"), [1, 2], tokenizer) == []


def test_evaluate_counts_them_once(chat, tmp_path, capfd):
    rows = [{"input": text, "target": "goal"} for text in ("goal", LONG, MARKED)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["evaluate", "--model", str(chat), "--data", str(tmp_path / "rows.jsonl"), "--json"]) == 0
    warnings = json.loads(capfd.readouterr().out)["warnings"]
    long = [line for line in warnings if "than the 80 tokens that the model was trained for" in line]
    assert len(long) == 1 and "1 of 3 rows" in long[0]
    assert any("rows that spell a special token: 1 of 3 rows (such as '<|im_start|>'" in line for line in warnings)


def test_a_template_that_comes_twice_is_named(chat):
    tokenizer = Tokenizer.load(chat, eos_token_id=2, continues=True)
    twice = "they are read as text, and the model's chat template writes '<|im_end|>' around each prompt itself"
    assert read_as_text(["<|im_end|>", "<|endoftext|>"], tokenizer).startswith(twice)
    assert read_as_text(["<|endoftext|>"], tokenizer) == "they are read as text"
    assert read_as_text(["<|im_end|>"], tokenizer.asked_by("none")) == "they are read as text"


def test_the_answer_counts_as_well():
    tokens = Tokens([np.zeros(n, np.int32) for n in (6, 7)], [np.zeros(4, np.int32)] * 2, 0, 0)
    [line] = context_warnings({"train": tokens}, 10, "; shorten it")
    assert "more than the 10 tokens" in line and "1 of 2 train" in line and "; shorten it" in line
    assert context_warnings({"train": tokens}, 11, "") == context_warnings({"train": tokens}, None, "") == []


def test_which_models_know_a_length():
    lengths = {kind: config.context_length for kind, config in TINY_DECODERS.items()}
    assert lengths == {"llama": 64, "gpt_neo": 64, "gptj": 64, "bloom": None}


@pytest.mark.parametrize(
    ("flags", "advised"),
    [
        (["--max-output-length", "70"], "lower --max-input-length or --max-output-length"),
        (["--labels", f"goal,{'a' * 70}"], "lower --max-input-length, or have the answers generated"),
    ],
)
def test_too_few_positions_are_said_with_the_flags_of_the_call(flags, advised, learned, capfd):
    assert main(["predict", "--model", str(learned), *flags, "goal"]) == 2
    said = capfd.readouterr().err
    assert "tokens are more than the 64 positions that this model has; " + advised in said


def test_others_that_answer_name_what_they_have(learned, tmp_path, capfd):
    model, tokenizer = jpeft.load(str(learned))
    with pytest.raises(UserError, match="64 positions that this model has; lower max_input_length or max_output_len"):
        jpeft.generate(model, tokenizer, ["goal"], max_output_length=70)
    (tmp_path / "rows.csv").write_text("input,target\ngoal,goal\n")
    assert main(["evaluate", "--model", str(learned), "--data", str(tmp_path / "rows.csv")]) == 2
    assert "answers take up to 128 of them: shorten the rows' texts" in capfd.readouterr().err
    (tmp_path / "adapters").mkdir()
    choices = Choices(str(learned), tmp_path / "adapters", "float32", (), 1, ("lora",))
    with pytest.raises(UserError, match="lower --input-lengths, --output-lengths or --label-tokens"):
        start(choices, ShapeFlags((1,), (64,), (16,)), say=lambda line: None)
