"""Every config file loads, is the cell that its name says, and states the figure that the paper prints for it."""

import importlib
import json
import re
from importlib import resources
from pathlib import Path

import pytest

import jpeft.configs as packaged
from jpeft.config import Run
from jpeft.configs import find
from jpeft.errors import UserError
from jpeft.model.settings import settings_of
from jpeft.peft.methods import OF_THE_PAPER

CONFIGS = Path(__file__).parent.parent / "configs"
TASKS = {"agnews": "AG News", "cola": "CoLA", "e2e": "E2E NLG", "samsum": "SAMSum"}
SCALES = {"low": (100, 10), "medium": (1_000, 5), "high": (10_000, 1)}
# What Table 2 calls each ablation.
ABLATIONS = {
    "lora": {
        "early": "select early layers",
        "later": "select later layers",
        "random": "select 50% random layers",
        "drop_self_attention": "drop self-attention",
        "drop_cross_attention": "drop enc/dec-attention",
        "drop_query_output": "drop query/output attention",
    },
    "ia3": {
        "early": "select early layers",
        "later": "select later layers",
        "random": "select 50% random layers",
        "drop_attention": "drop attention",
        "drop_dense": "drop dense activation",
    },
}
TABLE_1 = {
    f"{method}_{task}_{scale}": (method, None, task, scale)
    for method in OF_THE_PAPER
    for task in TASKS
    for scale in SCALES
}
TABLE_2 = {
    f"{method}_{ablation}_{task}_medium": (method, ablation, task, "medium")
    for method, ablations in ABLATIONS.items()
    for ablation in ablations
    for task in TASKS
}
CELLS = TABLE_1 | TABLE_2


@pytest.fixture(scope="module")
def paper():
    return json.loads(resources.files("jpeft.report").joinpath("published.json").read_text())


def load(name):
    return importlib.import_module(f"configs.{name}")


def test_there_is_a_file_for_each_of_60_cells_of_table_1_and_44_of_table_2():
    assert (len(TABLE_1), len(TABLE_2)) == (60, 44)
    names = {path.stem for path in CONFIGS.glob("*.py")}
    assert {name for name in names if name.endswith(("_low", "_medium", "_high"))} == set(CELLS)


@pytest.mark.parametrize("name", CELLS)
def test_a_config_is_the_cell_of_its_name_with_the_papers_settings(name, paper):
    method, ablation, task, scale = CELLS[name]
    run = Run.from_config(load(name).get_config())
    assert (run.method.name, run.ablation.name, run.data.task, run.data.scale) == (method, ablation, task, scale)
    assert (run.data.max_train, run.train.max_epochs) == SCALES[scale]
    assert (run.data.max_validation, run.data.max_test) == (2500, 2500)
    settings = paper["hyperparameters"]
    assert run.model.name == settings["model"]
    assert (run.train.batch_size, run.train.accumulation_steps) == (
        settings["batch_size"],
        settings["gradient_accumulation_steps"],
    )


@pytest.mark.parametrize("name", CELLS)
def test_a_config_states_its_cell_its_command_and_the_published_figure(name, paper):
    method, ablation, task, scale = CELLS[name]
    if ablation is None:
        figure = paper["table1_metric"][scale][method][task]
    else:
        figure = paper["table2_ablation_metric_medium"][method][ABLATIONS[method][ablation]][task]
    title, _, text = (load(name).__doc__ or "").partition("\n")
    assert f"on {TASKS[task]}, at most {SCALES[scale][0]:,} training examples" in title
    assert title.endswith(f"Table {2 if ablation else 1}.")
    assert f"python main.py --config configs/{name}.py" in text
    published = re.search(r"Published: (accuracy|ROUGE-L) ([\d.]+) \(FLAN-T5-XL\)", text)
    assert published is not None
    assert published[1] == ("accuracy" if task in ("agnews", "cola") else "ROUGE-L")
    assert float(published[2]) == figure


@pytest.mark.parametrize("name", [*TABLE_1, "lora_drop_self_attention_cola_medium", "lora_custom_all"])
def test_every_cell_runs_on_mini_too(name):
    config = load("mini").get_config(name)
    config.data.path = "somewhere"
    run = Run.from_config(config)
    method, *ablation, task, scale = name.split("_")
    assert (run.method.name, run.data.task, run.data.scale) == (method, task, scale)
    assert run.ablation.name == ("_".join(ablation) or None)
    assert run.model.name == "mini" and run.eval.zero_shot


@pytest.mark.parametrize("name", ["lora_agnews_low", "full_samsum_medium", "ia3_drop_attention_cola_medium"])
def test_a_cell_of_smollm2_has_its_settings_and_fewer_rows_to_judge_by(name):
    run = Run.from_config(load("smollm2").get_config(name))
    validation = 100 if name.endswith("low") else 300
    assert (run.model.name, run.data.max_validation, run.data.max_test) == ("smollm2", validation, 500)
    assert run.data.max_input_length == (384 if "samsum" in name else None)
    settings = settings_of("smollm2")
    assert settings is not None
    recommended = settings.for_method(run.method.name, run.method.reading)
    assert run.train.learning_rate.warmup == recommended["train.learning_rate.warmup"]
    assert run.train.batch_size == recommended["train.batch_size"]


def test_a_cell_of_mini_that_is_none_is_one_line(capsys):
    from jpeft.cli import run_experiment

    assert run_experiment(["main.py", f"--config={CONFIGS / 'mini.py'}:lora_news_medium"]) == 2
    assert "there is no cell 'lora_news_medium'; one is lora_agnews_medium." in capsys.readouterr().err
    assert run_experiment(["main.py", f"--config={CONFIGS / 'mini.py'}:lora"]) == 2
    assert "there is no cell 'lora'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "file", "argument", "name"),
    [
        ("lora_agnews_low", "benchmark.py", "lora_agnews_low", "lora_agnews_low"),
        ("ia3_drop_attention_e2e_medium", "benchmark.py", "ia3_drop_attention_e2e_medium", None),
        ("custom", "custom.py", "", "custom"),
        ("custom:ia3", "custom.py", "ia3", "custom_ia3"),
        ("mini:lora_custom_all", "mini.py", "lora_custom_all", "mini_lora_custom_all"),
        ("pretrain/mini_pairs", "pretrain/mini_pairs.py", "", "mini_pairs"),
    ],
)
def test_configs_come_with_the_package_by_name(given, file, argument, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no checkout around
    found = find(given)
    assert found.path == Path(packaged.__file__).parent / file
    assert (found.argument, found.name) == (argument, name or given)


def test_a_file_of_the_users_comes_before_what_comes_with_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "custom").write_text("")
    assert find("custom:x").path == Path("custom")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("lora_agnew_low", "did you mean lora_agnews_low?"),
        ("configs/lora_agnews_low.py", "--config lora_agnews_low is the one that comes with jpeft"),
        ("configs/mini.py:lora_custom_all", "--config mini:lora_custom_all is the one that comes with jpeft"),
        ("../../etc/passwd.py", "does not exist"),
        ("x" * 5000, "is no file's name"),
        ("", "does not exist"),
    ],
)
def test_a_config_that_is_not_there_is_one_line_that_helps(given, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as raised:
        find(given)
    assert says in str(raised.value) and "\n" not in str(raised.value) and len(str(raised.value)) < 600


def test_the_checkouts_files_are_those_of_the_package():
    for name in ("benchmark", "mini", "smollm2", "pretrain.mini", "pretrain.mini_pairs"):
        ours = importlib.import_module(f"jpeft.configs.{name}")
        assert importlib.import_module(f"configs.{name}").get_config is ours.get_config
