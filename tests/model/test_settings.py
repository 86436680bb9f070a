"""A model's own settings: they fill what a config leaves open, the user's win, and a bad file is a one-line error."""

import json

import pytest

from jpeft.config import Run, taken_from_model
from jpeft.configs import benchmark, custom
from jpeft.errors import UserError
from jpeft.model.settings import KEYS, in_words, pass_on, settings_of


@pytest.fixture
def model(tmp_path):
    """Create a model directory with settings; resolving them needs no weights."""

    def write(**held):
        text = held.pop("text", None) or json.dumps({"format_version": 1, **held})
        (tmp_path / "jpeft.json").write_text(text)
        return str(tmp_path)

    return write


def config(name, **keys):
    filled = benchmark.get_config("ia3_agnews_low")
    filled.model.name = name
    filled.update_from_flattened_dict({key.replace("__", "."): value for key, value in keys.items()})
    return filled


def test_the_papers_own_command_with_mini_takes_minis_rates():
    run = Run.from_config(config("mini"))
    rates = run.train.learning_rate
    assert (rates.initial, rates.warmup, rates.annealing) == (1e-2, 1e-1, 1e-2)
    assert (run.train.batch_size, run.train.accumulation_steps, run.train.patience) == (4, 4, 3)
    assert run.model.dropout_rate == 0.0 and run.eval.batch_size == 32
    assert Run.from_config(run.to_dict()) == run, "config.json is the same run again"


def test_rows_of_ones_own_take_them_too():
    mine = custom.get_config("bitfit")
    mine.data.path, mine.model.name = "x.csv", "mini"
    assert Run.from_config(mine).train.learning_rate.warmup == 3e-2


def test_another_model_keeps_the_papers(tmp_path):
    for name in ("google/flan-t5-xl", str(tmp_path), str(tmp_path / "nowhere")):
        run = Run.from_config(config(name))
        assert run.train.learning_rate.warmup == 3e-3 and run.train.batch_size == 16 and run.train.patience == 1
        assert taken_from_model(config(name)) == {}


def test_a_name_that_no_directory_has_recommends_nothing():
    for name in ("~nobody-of-that-name/x", "x" * 5000, "a\0b", ""):
        assert settings_of(name) is None


def test_what_is_set_wins_even_where_it_is_the_papers_default():
    asked = config("mini", train__batch_size=16, train__learning_rate__warmup=3e-3, train__patience=1)
    run = Run.from_config(asked)
    assert (run.train.batch_size, run.train.patience, run.train.accumulation_steps) == (16, 1, 4)
    assert (run.train.learning_rate.warmup, run.train.learning_rate.initial) == (3e-3, 1e-2)
    assert "train.batch_size" not in taken_from_model(asked) and "train.accumulation_steps" in taken_from_model(asked)


def test_every_key_that_a_model_may_set_reaches_the_run(model):
    values = {key: 0.25 if kind is float else 7 for key, kind in KEYS.items()}
    name = model(settings=values, learning_rates={"ia3": {"warmup": 0.5}, "lora": {"warmup": 0.7}})
    run = Run.from_config(config(name)).to_dict()
    for key, value in values.items():
        section, _, field = key.partition(".")
        assert run[section][field] == value, key
    assert run["train"]["learning_rate"] == {"initial": 3e-4, "warmup": 0.5, "annealing": 3e-4}
    assert taken_from_model(config(name)) == {**values, "train.learning_rate.warmup": 0.5}


def test_the_line_that_says_so_names_the_model_and_each_value():
    line = in_words("mini", taken_from_model(config("mini", train__patience=2)))
    assert "mini" in line and "train.learning_rate.warmup=0.1" in line and "train.batch_size=4" in line
    assert "patience" not in line and "\n" not in line


@pytest.mark.parametrize(
    ("held", "says"),
    [
        ({"text": "[1]"}, "holds a list; expected an object"),
        ({"text": "[" * 100_000}, "nested"),
        ({"text": '{"format_version": NaN}'}, "NaN"),
        ({"format_version": 2}, "format_version is 2; expected 1"),
        ({"settings": []}, "settings is []; expected an object"),
        ({"settings": {"train.batch_size": "4"}}, "train.batch_size is '4'; expected a number"),
        ({"settings": {"train.batch_size": True}}, "train.batch_size is True; expected a number"),
        ({"settings": {"train.batch_size": 0}}, "train.batch_size is 0; expected"),
        ({"settings": {"model.dropout_rate": 3}}, "model.dropout_rate is 3.0; expected"),
        ({"settings": {"train.max_epochs": 4}}, "'train.max_epochs', which is none of"),
        ({"settings": {"data.path": "/etc/passwd"}}, "'data.path', which is none of"),
        ({"learning_rates": {"ia3": 0.1}}, "learning_rates of ia3 is a number; expected an object"),
        ({"learning_rates": {"ia3": {"peak": 0.1}}}, "'peak', which is none of"),
        ({"learning_rates": {"ia3": {"warmup": "high"}}}, "warmup is 'high'"),
        ({"learning_rates": {"ia3": {"warmup": -1}}}, "train.learning_rate.warmup is -1"),
    ],
)
def test_a_damaged_or_foreign_file_is_one_line_that_names_it(held, says, model):
    name = model(**held)
    with pytest.raises(UserError) as raised:
        Run.from_config(config(name))
    assert says in str(raised.value) and "jpeft.json" in str(raised.value) and "\n" not in str(raised.value)


def test_a_directory_in_its_place_is_refused_and_an_empty_file_of_settings_sets_nothing(model, tmp_path):
    assert taken_from_model(config(model(settings=None))) == {}
    (tmp_path / "jpeft.json").unlink()
    (tmp_path / "jpeft.json").mkdir()
    with pytest.raises(UserError, match="is a directory"):
        settings_of(str(tmp_path))


@pytest.mark.parametrize(
    ("task", "method", "reading"),
    [("custom", "lora", "official"), ("custom", "ia3", "paper"), ("agnews", "lora", "paper")],
)
def test_the_usual_reading(task, method, reading):
    values = {"data": {"task": task, "path": "x.csv"}, "method": {"name": method}}
    assert Run.from_config(values).method.reading == reading
    values["method"]["reading"] = "paper"
    assert Run.from_config(values).method.reading == "paper"


def test_a_model_made_of_another_recommends_the_same(tmp_path):
    pass_on("mini", tmp_path)
    assert taken_from_model(config(str(tmp_path))) == taken_from_model(config("mini")) != {}
    (tmp_path / "other").mkdir()
    pass_on("google/flan-t5-base", tmp_path / "other")
    assert not any((tmp_path / "other").iterdir())


def test_a_reading_may_have_rates_of_its_own():
    mine = custom.get_config()
    mine.data.path, mine.model.name = "x.csv", "mini"
    assert (
        Run.from_config(mine).train.learning_rate.warmup == 3e-3 == taken_from_model(mine)["train.learning_rate.warmup"]
    )
    mine.method.reading = "paper"
    assert Run.from_config(mine).train.learning_rate.warmup == 1e-2
