"""What a run does with what, in which order, read from scripted runs."""

import collections
import json

import pytest
from flax import nnx

from jpeft.config import Run
from jpeft.data.task_file import TaskOfRun
from jpeft.eval.evaluators import AnswersEvaluator
from jpeft.model.decoder_family import DECODER_FAMILY
from jpeft.train.session import Session
from tests.decoders import LLAMA, one_layer, random_decoder
from tests.train.scripted import run_scripted


@pytest.fixture(scope="module")
def session():
    return Session()


@pytest.fixture
def do(tiny_checkpoint, toy_data, tmp_path, monkeypatch, session):
    """Executes LoRA on 24 rows in steps of 2 x 4 rows for at most 4 epochs, with given losses and config keys."""

    def run(losses=(3.0, 2.0, 1.0), **keys):
        config = {
            "model": {"name": str(tiny_checkpoint)},
            "method": {"name": "lora"},
            "data": {"task": "agnews", "path": str(toy_data), "max_train": 24, "max_validation": 10, "max_test": 9},
            "train": {"max_epochs": 4, "batch_size": 4, "accumulation_steps": 2},
        }
        for key, value in keys.items():
            section, _, name = key.partition("__")
            config.setdefault(section, {})[name] = value
        workdir = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        return run_scripted(Run.from_config(config), workdir, monkeypatch, session=session, losses=losses)

    return run


def by_epoch(script, steps_per_epoch=3):
    """The rows of each epoch in training order."""
    epochs = collections.defaultdict(list)
    for step, _, rows in script.of("train"):
        epochs[step // steps_per_epoch] += rows
    return list(epochs.values())


def test_every_epoch_trains_every_row_once_in_an_order_of_its_own(do):
    epochs = by_epoch(do())
    assert len(epochs) == 4 and len(epochs[0]) == 24
    assert all(sorted(rows) == sorted(epochs[0]) for rows in epochs)
    assert len({tuple(rows) for rows in epochs}) == 4
    assert by_epoch(do()) == epochs  # and the same again
    other = by_epoch(do(train__seed=1))
    assert sorted(other[0]) == sorted(epochs[0]) and other[0] != epochs[0]


def test_rows_that_are_longer_than_the_model_knows_are_in_the_results_warnings(do, tiny_tokenizer, tmp_path):
    model = tmp_path / "llama"
    DECODER_FAMILY.save(random_decoder(one_layer(LLAMA)), model)
    (model / "tokenizer.json").write_bytes((tiny_tokenizer / "tokenizer.json").read_bytes())
    long = lambda **keys: [
        line
        for line in do(model__name=str(model), train__max_epochs=1, **keys).result["warnings"]
        if "rows with more than the 64 tokens that the model was trained for" in line
    ]
    [line] = long()
    assert " train" in line and "data.max_input_length cuts them" in line
    assert long(data__template="{text}", data__max_input_length=40, data__max_target_length=8) == []


def test_each_micro_batch_is_told_its_step_and_place(do):
    """Dropout keys derive from them: equal ones would give equal masks."""
    script = do()
    assert [event[:2] for event in script.of("train")] == [(step, micro) for step in range(12) for micro in range(2)]
    assert [event[0] for event in script.of("update")] == list(range(12))


@pytest.mark.parametrize(
    ("losses", "patience", "epochs", "best"),
    [
        ((3.0, 1.0, 2.0, 0.5), 1, 3, 1),
        ((3.0, 1.0, 2.0, 0.5), 2, 4, 3),
        ((3.0, 1.0, 1.0, 1.0), 2, 4, 1),
        ((1.0, 2.0, 3.0), 3, 4, 0),
        ((4.0, 3.0, 2.0, 1.0), 1, 4, 3),
    ],
)
def test_it_is_the_best_adapter_that_is_tested_and_saved(do, losses, patience, epochs, best):
    script = do(losses, train__patience=patience)
    assert script.result["epochs_run"] == epochs and script.result["best_epoch"] == best
    after = 100 + 3 * (best + 1) - 1  # the last update of the best epoch
    assert {event[0] for event in script.of("answer")} == {after}
    assert script.adapter == after
    assert script.result["validation_losses"] == list(losses[:epochs]) + [losses[-1]] * (epochs - len(losses))


@pytest.mark.parametrize(
    ("values", "patience", "epochs", "best"),
    [((0.1, 0.5, 0.5, 0.9), 1, 3, 1), ((0.1, 0.5, 0.5, 0.9), 2, 4, 3), ((0.3, 0.2, 0.1, 0.1), 3, 4, 0)],
)
def test_it_is_the_best_by_what_is_monitored_that_is_tested_and_saved(do, monkeypatch, values, patience, epochs, best):
    """The loss would select another epoch each time."""
    given = iter(values)
    monkeypatch.setattr(AnswersEvaluator, "__call__", lambda *_: {"validation/accuracy": next(given)})
    losses = (1.0, 3.0, 2.0, 4.0) if best else (4.0, 3.0, 2.0, 1.0)
    script = do(losses, train__patience=patience, train__monitor="validation/accuracy")
    result, after = script.result, 100 + 3 * (best + 1) - 1
    assert result["epochs_run"] == epochs and result["best_epoch"] == best
    assert {event[0] for event in script.of("answer")} == {after} and script.adapter == after
    assert result["monitor"] == "validation/accuracy" and result["validation_loss"] == losses[best]
    assert result["validation_metrics"] == [{"accuracy": value} for value in values[:epochs]]
    logged = [json.loads(line) for line in (script.workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["validation_accuracy"] for line in logged if "steps_done" in line] == list(values[:epochs])


def test_beside_the_loss_nothing_is_computed_unless_it_is_monitored(do):
    script = do()
    assert script.result["validation_metrics"] is None and script.result["monitor"] == "validation/loss"
    kinds = [event[0] for event in do(train__monitor="validation/accuracy").events]
    assert kinds.count("answer") > len(script.of("answer")) and kinds.index("answer") > kinds.index("validate")


def test_every_epoch_is_validated_with_the_adapter_as_it_is_then(do):
    script = do()
    assert [event[0] for event in script.of("validate")] == [100 + 3 * epoch - 1 for epoch in (1, 2, 3, 4)]
    assert all(len(event[1]) == 10 for event in script.of("validate"))


def test_a_checkpoint_stands_at_every_epochs_end_and_between_where_time_has_passed(do):
    assert do(train__checkpoint_every_seconds=1e6).of("save") == [(7,), (13,), (19,), (25,)]
    saved = [number for (number,) in do(train__checkpoint_every_seconds=0.0).of("save")]
    assert {2, 4, 6, 7} <= set(saved)


def test_the_untuned_model_answers_first_where_it_is_asked(do):
    assert do().result["zero_shot"] is None
    script = do(eval__zero_shot=True)
    assert (
        script.events[0][:2] == ("answer", None)
        and script.result["zero_shot"].keys() == script.result["metrics"].keys()
    )


def test_rows_of_a_batch_are_those_that_the_config_says(do):
    script = do(eval__batch_size=4, train__batch_size=3, train__accumulation_steps=4)
    assert [len(event[1]) for event in script.of("validate")[:3]] == [4, 4, 2]
    assert [len(event[2]) for event in script.of("train")[:4]] == [3, 3, 3, 3]
    assert [event[:2] for event in script.of("train")[:5]] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]
    assert {event[1][0] for event in script.of("answer")} == {4}


@pytest.mark.slow
def test_a_run_on_a_rounded_base_is_not_taken_for_one_on_the_wide_base(do):
    """Neither in its records nor in the session's caches: the untuned models answer differently."""
    wide, few = (do(eval__zero_shot=True, model__quantization=kind) for kind in ("none", "int8"))
    assert wide.result["quantization"] is None and few.result["quantization"] == "int8"
    kept = [TaskOfRun.read(script.workdir / "adapter") for script in (wide, few)]
    assert [task and task.quantization for task in kept] == ["none", "int8"]
    assert all(any(adapter is None for adapter, _ in script.of("answer")) for script in (wide, few))


@pytest.mark.slow
def test_loftq_begins_a_run_with_what_rounding_took_away(do):
    keys = {"method__reading": "official", "method__rank": 2, "model__quantization": "int8"}
    plain, loftq = (do(method__lora_init=init, **keys) for init in ("plain", "loftq"))
    norm = lambda script: {
        leaf: float(sum((x**2).sum() for path, x in nnx.to_flat_state(script.start) if path[-1] == leaf))
        for leaf in ("lora_a", "lora_b")
    }
    assert norm(plain)["lora_b"] == 0 and norm(loftq)["lora_b"] > 0
    assert norm(loftq)["lora_a"] < 0.1 * norm(plain)["lora_a"]  # of what is lost, which is little
