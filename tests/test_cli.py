"""What a wrong call is answered with: one line and exit status 2."""

from pathlib import Path

import pytest

from jpeft.cli import main, run_experiment

CONFIG = Path(__file__).parents[1] / "configs/lora_agnews_low.py"


def answer(capsys, *arguments: str) -> str:
    assert run_experiment(["main.py", *arguments]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    return line


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--config.train.sed=1"], "unknown config key config.train.sed; did you mean config.train.seed?"),
        (["--config.train.seed=x"], "--config.train.seed=x"),
        (["--overwrit"], "Did you mean: overwrite"),
        (["--config.model.name"], "Missing value for flag --config.model.name"),
        (["stray"], "'stray' is no flag"),
        (["--config.train.patience=0"], "train.patience is 0"),
    ],
)
def test_a_wrong_flag(flags, says, capsys):
    assert says in answer(capsys, f"--config={CONFIG}", *flags)


def test_a_config_that_is_not_there(capsys):
    assert "did you mean" in answer(capsys, f"--config={CONFIG.parent / 'lora_agnew_low.py'}")
    assert "--config is missing" in answer(capsys, "--quiet")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def get_config(: pass", "line 1 is no working Python"),
        ("import there_is_no_such_module", "No module named 'there_is_no_such_module'"),
        ("x = 1", "has no get_config()"),
        ("def get_config():\n    return {'train': {'sed': 1}}", "did you mean config.train.seed?"),
    ],
)
def test_a_broken_config(text, says, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(text)
    assert says in answer(capsys, f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}")


def test_help_names_every_section_and_flag(capsys):
    assert run_experiment(["main.py", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("--config.method.name", "--config.train.learning_rate.warmup", "--overwrite"))


def test_an_unknown_command_is_a_wrong_call(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["parms"])
    assert ended.value.code == 2 and "params" in capsys.readouterr().err
