"""The engine answers a text as its adapter alone would, whatever the padding."""

import dataclasses
import shutil
import threading
import time

import jax
import numpy as np
import pytest
import tokenizers

from jpeft.data.task_file import TASK_FILE, TaskOfRun
from jpeft.errors import RunFailed, UserError
from jpeft.serve.bank import UnknownAdapter
from jpeft.serve.engine import NoNumber, PaddedShapes, QueuedRow, Replaced
from tests.serve.conftest import ON_SHELF

TEXTS = ["goal league", "bank merger profit market", "robot"]


def rows(engine, adapter=None, limit=4):
    return engine.rows(TEXTS, adapter, max_output_tokens=limit)


def test_rows_of_a_batch_are_answered_as_each_alone(started):
    engine, _ = started
    mixed = [rows(engine, name)[i] for i, name in enumerate(("ia3", None, "bitfit"))]
    assert engine.answer(mixed) == [engine.answer([row])[0] for row in mixed]
    assert len({engine.answer(rows(engine, name))[1].text for name in (None, *ON_SHELF)}) > 1


def test_an_answer_is_cut_at_its_own_limit(started):
    engine, _ = started
    row = rows(engine, "ia3")[0]
    whole, cut = engine.answer([row, dataclasses.replace(row, max_output_tokens=1)])
    assert whole.output_tokens > 1 and cut.output_tokens == 1 and not cut.ended
    assert whole.text.startswith(cut.text)


def test_nothing_compiles_after_the_start(started):
    engine, _ = started
    compiled = engine.bank.num_programs
    for count in (1, 2, 3):
        engine.answer(rows(engine, "ia3")[:count])
    assert engine.bank.num_programs == compiled == len(list(engine.shapes)) + 1  # plus the program that writes adapters


def test_a_generated_row_for_which_the_model_gives_no_number_fails_alone(started, tiny_shelf, monkeypatch):
    engine, bank = started[0], started[0].bank
    mixed = [rows(engine, name)[0] for name in ("ia3", "bitfit", None)]
    expected = engine.answer(mixed)
    slot = bank._slots["ia3"]
    sick = tuple(leaf.at[:, slot].set(np.nan) for leaf in bank._pool)
    with monkeypatch.context() as patch:
        patch.setattr(bank, "_pool", sick)
        refused, *answers = engine.answer(mixed)
    assert isinstance(refused, NoNumber) and answers == expected[1:]
    assert "by adapter 'ia3' is no number" in str(refused) and "--dtype float32" in str(refused)
    with monkeypatch.context() as patch:
        patch.setattr(bank, "base", jax.tree.map(lambda leaf: leaf * np.nan if leaf.ndim > 1 else leaf, bank.base))
        [refused] = engine.answer(mixed[2:])
    assert isinstance(refused, NoNumber) and "by the base model is no number" in str(refused)


def test_an_adapter_that_is_gone_leaves_the_others_answered(started):
    engine, _ = started
    here, gone = rows(engine, "ia3")[:2]
    answers = engine.answer([here, dataclasses.replace(gone, adapter="gone"), here])
    assert isinstance(answers[1], UnknownAdapter) and answers[0] == answers[2] == engine.answer([here])[0]


@pytest.mark.parametrize("moment", ["before the batch", "while it is answered", "while it is put into the bank"])
def test_a_row_that_waited_is_not_answered_by_an_adapter_that_is_asked_otherwise(
    moment, started, tiny_shelf, tmp_path, monkeypatch
):
    engine, _ = started
    for name, template in (("a", "Is it {text}?"), ("b", "{text}: which?"), ("c", "Is it {text}?")):
        shutil.copytree(tiny_shelf / ("bitfit" if name == "c" else "ia3"), tmp_path / name)
        TaskOfRun(template=template, max_input_length=16, max_target_length=4).write(tmp_path / name)
    engine.load("asked", tmp_path / "a")
    try:
        asked, other = engine.rows(["goal"], "asked")[0], rows(engine, "ia3")[0]
        engine.load("asked", tmp_path / "c")
        first, second = engine.answer([asked, other])
        assert first == engine.answer(engine.rows(["goal"], "asked"))[0]  # another adapter with the same prompt format
        if moment == "before the batch":
            engine.load("asked", tmp_path / "b")
        elif moment == "while it is answered":
            generate = engine.bank.generate
            replace = lambda *given, **named: engine.load("asked", tmp_path / "b") and generate(*given, **named)
            monkeypatch.setattr(engine.bank, "generate", replace)
        if moment != "while it is put into the bank":
            replaced, same = engine.answer([asked, other])
        else:
            put, meanwhile = engine.bank.put, []
            monkeypatch.setattr(
                engine.bank,
                "put",
                lambda *given, **named: (put(*given, **named), meanwhile.extend(engine.answer([asked, other]))),
            )
            engine.load("asked", tmp_path / "b")
            replaced, same = meanwhile
        assert (
            isinstance(replaced, Replaced)
            and "was replaced while this request waited" in str(replaced)
            and same == second
        )
    finally:
        engine.unload("asked")


def test_a_refused_replacement_and_an_unloading_leave_answers_alone(started, tiny_shelf, tmp_path, monkeypatch):
    engine, _ = started
    for name, template in (("a", "Is it {text}?"), ("b", "{text}: which?")):
        shutil.copytree(tiny_shelf / "ia3", tmp_path / name)
        TaskOfRun(template=template, max_input_length=16, max_target_length=4).write(tmp_path / name)
    engine.load("asked", tmp_path / "a")
    asked, meanwhile = engine.rows(["goal"], "asked"), []
    expected = engine.answer(asked)

    def damaged(directory):
        meanwhile.extend(engine.answer(asked))
        raise RunFailed("damaged")

    with monkeypatch.context() as patch:
        patch.setattr(engine.bank, "read", damaged)
        with pytest.raises(RunFailed):
            engine.load("asked", tmp_path / "b")
    assert meanwhile == expected == engine.answer(asked)
    generate = engine.bank.generate

    def unloaded(*given, **named):
        answers = generate(*given, **named)
        engine.unload("asked")
        return answers

    with monkeypatch.context() as patch:
        patch.setattr(engine.bank, "generate", unloaded)
        assert engine.answer(asked) == expected
    (tmp_path / "b" / TASK_FILE).unlink()  # reload the name with an adapter that has no task file
    put = engine.bank.put

    def while_put(*given, **named):
        put(*given, **named)
        [answer] = engine.answer(asked)
        assert isinstance(answer, Replaced)

    monkeypatch.setattr(engine.bank, "put", while_put)
    engine.load("asked", tmp_path / "b")
    engine.unload("asked")


@pytest.fixture
def asked_ways(tiny_shelf, tmp_path):
    """Adapters `a` and `b`, which are the same with different prompt formats, and `plain`, which has no task file."""
    for name, template in (("a", "Is it {text}?"), ("b", "{text}: which?"), ("plain", None)):
        shutil.copytree(tiny_shelf / "ia3", tmp_path / name)
        if template is not None:
            TaskOfRun(template=template, max_input_length=16, max_target_length=4).write(tmp_path / name)
    return tmp_path


def test_the_labels_of_a_request_stand_in_the_list_of_the_prompt(started, tiny_shelf, tmp_path, monkeypatch):
    engine, _ = started
    shutil.copytree(tiny_shelf / "ia3", tmp_path / "listing")
    listing = "goal?\n\nOPTIONS:\n- {}\n- {}"
    own = listing.format("a", "b").replace("goal", "{text}")
    TaskOfRun(own, ("a", "b"), 64, 4, kind="classification", options="auto").write(tmp_path / "listing")
    shapes = dataclasses.replace(engine.shapes, input_lengths=(64,), label_tokens=32)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "shapes", shapes)
        engine.load("listing", tmp_path / "listing")
        try:
            for named, labels in (({}, ("a", "b")), ({"labels": ["yes", "no"]}, ("yes", "no"))):
                (asked,) = engine.rows(["goal"], "listing", **named)
                (whole,) = engine.rows([listing.format(*labels)], "listing", template=False, **named)
                assert asked.tokens == whole.tokens and asked.labels.texts == labels
        finally:
            engine.unload("listing")


def test_an_adapters_own_tokenizer_is_noted_and_refused_where_it_has_other_ids(
    started, tiny_shelf, tiny_tokenizer, tmp_path
):
    engine, _ = started
    shutil.copytree(tiny_shelf / "ia3", tmp_path / "own")
    backend = tokenizers.Tokenizer.from_file(str(tiny_tokenizer / "tokenizer.json"))
    backend.add_tokens(["<tool>"])
    backend.save(str(tmp_path / "own/tokenizer.json"))
    engine.load("own", tmp_path / "own")
    try:
        assert any("own tokenizer (1 token more: '<tool>')" in note for note in engine.asking("own").notes)
    finally:
        engine.unload("own")
    text = backend.to_str().replace('"<pad>"', '"<x>"').replace('"<unk>"', '"<pad>"').replace('"<x>"', '"<unk>"')
    (tmp_path / "own/tokenizer.json").write_text(text)
    with pytest.raises(UserError, match="the adapter learned other ids"):
        engine.load("own", tmp_path / "own")
    assert "the adapter learned other ids" in engine.left_out.pop("own")


def beside(action, ended):
    """Start `action` in a thread and wait until `ended()` holds, or half a second if it is blocked."""
    thread = threading.Thread(target=action)
    thread.start()
    until = time.monotonic() + 0.5
    while not ended() and time.monotonic() < until:
        time.sleep(0.01)
    return thread


def test_no_row_is_made_for_an_adapter_before_it_is_known_how_it_is_asked(started, asked_ways, monkeypatch):
    engine, _ = started
    put, made = engine.bank.put, []

    def put_and_asked(*given, **named):
        put(*given, **named)
        with pytest.raises(UnknownAdapter):
            made.extend(engine.rows(["goal"], "asked"))

    with monkeypatch.context() as patch:
        patch.setattr(engine.bank, "put", put_and_asked)
        engine.load("asked", asked_ways / "a")
    try:
        assert not made and engine.asking("asked").prompt.template == "Is it {text}?"
    finally:
        engine.unload("asked")
    with pytest.raises(UnknownAdapter):
        engine.rows(["goal"], "asked")


def test_an_adapter_that_is_loaded_while_another_of_its_name_is_unloaded_is_asked_its_own_way(
    started, asked_ways, monkeypatch
):
    engine, _ = started
    engine.load("asked", asked_ways / "a")
    remove, loading = engine.bank.remove, []

    def remove_and_load(name):
        remove(name)
        loading.append(beside(lambda: engine.load("asked", asked_ways / "b"), lambda: "asked" in engine.bank.names))
        loading[0].join(0.2)

    with monkeypatch.context() as patch:
        patch.setattr(engine.bank, "remove", remove_and_load)
        engine.unload("asked")
    loading[0].join()
    try:
        assert engine.asking("asked").prompt.template == "{text}: which?"
    finally:
        engine.unload("asked")


def test_of_two_loads_at_once_the_weights_and_the_way_to_ask_are_of_one(started, asked_ways, monkeypatch):
    engine, _ = started
    put, sources, second = engine.bank.put, [], []

    def put_beside(*given, source, **named):
        put(*given, source=source, **named)
        sources.append(source)
        if len(sources) == 1:
            load = lambda: engine.load("asked", asked_ways / "b")
            second.append(beside(load, lambda: len(sources) == 2))
            second[0].join(0.2)

    with monkeypatch.context() as patch:
        patch.setattr(engine.bank, "put", put_beside)
        engine.load("asked", asked_ways / "a")
        second[0].join()
    try:
        assert sources == [str(asked_ways / "a"), str(asked_ways / "b")]
        assert engine.asking("asked").prompt.template == "{text}: which?"
    finally:
        engine.unload("asked")


@pytest.mark.parametrize(("first", "second"), [("a", "b"), ("plain", "a"), ("a", "plain"), ("a", "a")])
def test_a_row_is_not_answered_by_a_successor_that_is_asked_otherwise_and_gone_again(
    first, second, started, asked_ways, monkeypatch
):
    engine, _ = started
    engine.load("asked", asked_ways / first)
    asked = engine.rows(["goal"], "asked")
    expected = engine.answer(asked)
    engine.unload("asked")
    engine.load("asked", asked_ways / second)
    generate = engine.bank.generate

    def generate_and_unload(*given, **named):
        answers = generate(*given, **named)
        engine.unload("asked")
        return answers

    monkeypatch.setattr(engine.bank, "generate", generate_and_unload)
    [answer] = engine.answer(asked)
    assert answer == expected[0] if first == second else isinstance(answer, Replaced)


def test_a_successor_that_the_bank_refuses_leaves_answers_alone(started, asked_ways, monkeypatch):
    engine, _ = started
    engine.load("asked", asked_ways / "a")
    try:
        asked = engine.rows(["goal"], "asked")
        expected = engine.answer(asked)
        with monkeypatch.context() as patch:
            patch.setattr(engine.bank, "put", lambda *_, **__: (_ for _ in ()).throw(UserError("no room")))
            with pytest.raises(UserError, match="no room"):
                engine.load("asked", asked_ways / "b")
        assert engine.answer(asked) == expected == engine.answer(engine.rows(["goal"], "asked"))
        engine.load("asked", asked_ways / "b")
        assert isinstance(engine.answer(asked)[0], Replaced)
    finally:
        engine.unload("asked")


def test_a_text_that_fits_no_shape_is_refused(started):
    engine, _ = started
    with pytest.raises(UserError, match="inputs\\[1\\] has [0-9]+ tokens; at most 16 are taken"):
        engine.rows(["goal", "goal " * 40], "ia3")


def test_where_a_server_takes_shorter_inputs_than_a_run_it_says_that_longer_ones_are_refused(
    started, tiny_shelf, tmp_path
):
    engine, _ = started
    shutil.copytree(tiny_shelf / "ia3", tmp_path / "long")
    TaskOfRun(template="Is it {text}?", max_input_length=512, max_target_length=4).write(tmp_path / "long")
    engine.load("long", tmp_path / "long")
    try:
        assert (
            "its run took inputs of 512 tokens; here 16 are taken, and longer ones refused."
            in engine.asking("long").notes
        )
        with pytest.raises(UserError, match="tokens; at most 16 are taken"):
            engine.rows(["goal " * 40], "long")
    finally:
        engine.unload("long")


def test_the_padded_shape_is_the_smallest_that_holds_the_rows():
    shapes = PaddedShapes((1, 4), (8, 32), (4, 16))
    assert shapes.of(QueuedRow([1] * 8, None, 4)) == (8, 4)
    assert shapes.of(QueuedRow([1] * 9, None, 5)) == (32, 16)
    assert len(list(shapes)) == 8


@pytest.mark.parametrize("sizes", [(), (0, 1), (4, 1), (1, 1)])
def test_shapes_rise(sizes):
    with pytest.raises(UserError, match="batch_sizes"):
        PaddedShapes(batch_sizes=sizes)


def test_a_generated_row_ends_with_its_first_end(started):
    engine, _ = started
    assert engine._until_end(np.array([5, 1, 0, 0])) == [5, 1] and engine._until_end(np.array([5, 6])) == [5, 6]
