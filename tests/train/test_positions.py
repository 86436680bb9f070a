"""Rows and answers that learned positions do not hold are refused before training, and the largest that fit are not."""

import dataclasses
import re

import numpy as np
import pytest

from jpeft.config import Run
from jpeft.data.batches import Tokens, choose_shapes
from jpeft.data.prepare import PARTS, Data
from jpeft.data.tasks import TASKS
from jpeft.errors import UserError
from jpeft.eval.labels import PackedLabels
from jpeft.model.decoder_family import DECODER_FAMILY
from jpeft.peft.attaching import attach
from jpeft.peft.prompt import Prompt
from jpeft.peft.selection import select
from jpeft.run.directory import has_work
from jpeft.run.display import Display
from jpeft.train.loop import execute
from jpeft.train.positions import require_positions
from tests.decoders import TINY_DECODERS, random_decoder

GPT_NEO = TINY_DECODERS["gpt_neo"]  # with 64 positions


def data_of(lengths: dict[str, tuple[int, int]], *, max_target_length: int = 8) -> Data:
    """Splits of one row each, of these numbers of input and target tokens; other splits have short ones."""
    lengths = dict.fromkeys(PARTS, (5, 3)) | lengths
    row = lambda length: [np.zeros(length, np.int32)]
    tokens = {part: Tokens(row(length), row(target), 0, 0) for part, (length, target) in lengths.items()}
    task = dataclasses.replace(TASKS["custom"], max_target_length=max_target_length)
    return Data(task, {}, tokens, choose_shapes(np.array(list(lengths.values()))))


def check(data: Data, *, model=None, labels: int | None = None, follows_answers: bool = False) -> None:
    none = np.zeros(labels or 0, np.int32)
    packed = None if labels is None else PackedLabels(("a", "b"), none, none, none)
    require_positions(model or random_decoder(GPT_NEO), data, labels=packed, follows_answers=follows_answers)


@pytest.mark.parametrize("part", PARTS)
def test_a_row_with_its_target_has_to_fit(part):
    check(data_of({part: (48, 8)}, max_target_length=17))
    with pytest.raises(UserError, match=rf"the {part} rows need .* this model has 64 for them"):
        check(data_of({part: (49, 8)}, max_target_length=17))


def test_an_answer_has_to_fit_behind_the_rows_that_are_answered():
    check(data_of({"train": (32, 3), "validation": (32, 3)}, max_target_length=49))  # these are not answered
    with pytest.raises(UserError, match=r"the test rows need 65 positions .*data.max_target_length=49"):
        check(data_of({}, max_target_length=50))
    followed = data_of({"validation": (32, 3)}, max_target_length=34)
    check(followed)
    with pytest.raises(UserError, match=r"the validation rows need 65 positions .*data.max_target_length=33"):
        check(followed, follows_answers=True)


def test_what_is_advised_fits():
    with pytest.raises(UserError) as refused:
        check(data_of({"train": (48, 30), "test": (48, 5)}, max_target_length=30))
    advised = dict(re.findall(r"data.(max_\w+)=(\d+)", str(refused.value)))
    assert advised == {"max_target_length": "16", "max_input_length": "32"}
    check(data_of({"train": (48, 16), "test": (48, 5)}, max_target_length=16))
    check(data_of({"train": (32, 30), "test": (32, 5)}, max_target_length=30))


def test_labels_have_to_fit_together():
    check(data_of({}), labels=48)
    with pytest.raises(UserError, match=r"2 labels of 56 together.*--config.eval.answer=generate"):
        check(data_of({}), labels=56)


def test_a_soft_prompt_takes_positions(key):
    method = Prompt(prompt_length=6)
    model = random_decoder(GPT_NEO)
    model = attach(model, method, select(model, method), key)
    check(data_of({}, max_target_length=43), model=model)
    with pytest.raises(UserError, match="this model has 58 for them"):
        check(data_of({}, max_target_length=44), model=model)


def test_other_models_have_no_limit():
    check(data_of({"train": (480, 80)}), model=random_decoder(TINY_DECODERS["llama"]))


def test_a_run_is_refused_before_it_trains(tiny_tokenizer, toy_jsonl, tmp_path):
    DECODER_FAMILY.save(random_decoder(GPT_NEO), tmp_path / "neo")
    (tmp_path / "neo/tokenizer.json").write_bytes((tiny_tokenizer / "tokenizer.json").read_bytes())
    data = {"task": "custom", "path": str(toy_jsonl), "max_input_length": 16, "options": "none"}
    run = Run.from_config({"model": {"name": str(tmp_path / "neo")}, "method": {"name": "lora"}, "data": data})
    with pytest.raises(UserError, match="the test rows need 143 positions"):
        execute(run, tmp_path / "run", display=Display(quiet=True))
    assert not has_work(tmp_path / "run")
