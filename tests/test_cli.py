"""What a wrong call is answered with: one line and exit status 2."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jpeft import configs
from jpeft.cli import build_parser, main, run_experiment
from jpeft.cli.arguments import require_utf8
from jpeft.cli.config_flags import parse_call
from jpeft.cli.next_steps import next_steps
from jpeft.cli.run import _in_full
from jpeft.config import Run
from jpeft.errors import UserError
from jpeft.predict.rows import Input
from jpeft.program import Program

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
        ("def get_config(: pass", "line 1 is not valid Python"),
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


def test_no_file_gets_the_number_of_a_closed_stream():
    """Else what a library prints would stand in a file that was opened."""
    script = "import os, jpeft.cli; jpeft.cli._repair_environment(); print(os.open('/', 0), flush=True)"
    call = [sys.executable, "-c", f"import os; os.close(0); os.close(2)\n{script}"]
    said = subprocess.run(call, stdout=subprocess.PIPE, check=True, text=True).stdout
    assert int(said) > 2


def test_a_home_directory_is_found_behind_an_equals_sign_and_in_quotes(tmp_path, monkeypatch):
    """A shell resolves `~` in neither place."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.csv").write_text("input\nx\n")
    (tmp_path / "mine.py").write_text("def get_config():\n    return {}\n")
    assert Input.of((), "~/c.csv", None).file == tmp_path / "c.csv"
    assert configs.find("~/mine.py:x").path == tmp_path / "mine.py"
    assert build_parser().parse_args(["report", "~/runs"]).runs == [tmp_path / "runs"]
    assert build_parser().parse_args(["recommend", "--runs", "~/runs", "b"]).runs == [tmp_path / "runs", Path("b")]


def test_an_unknown_command_is_a_wrong_call(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["parms"])
    assert ended.value.code == 2 and "params" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--model=--", "--batch-size=--"])
def test_two_dashes_are_no_value(flag, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["predict", flag, "a text"])
    name = flag.removesuffix("=--")
    assert capsys.readouterr().err.startswith(f"error: argument {name}: expected a value, not '--'")


@pytest.mark.parametrize(
    ("call", "flag"),
    [
        (["predict", "--adapter", "a", "--adapter=b", "x"], "--adapter: is given twice, 'a' and 'b'"),
        (["predict", "--model=mini", "--input=a", "--input", "a"], "--input: is given twice, 'a' and 'a'"),
        (["evaluate", "--data=a.csv", "--data=b.csv"], "--data: is given twice, 'a.csv' and 'b.csv'"),
        (["recommend", "--runs", "a", "b", "--runs", "c"], "--runs: is given twice"),
    ],
)
def test_a_flag_that_is_given_twice_is_refused(call, flag, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(call)
    said = capsys.readouterr().err
    assert said.startswith(f"error: argument {flag}") and "; give it once" in said and said.count("\n") == 1


def test_a_flag_is_counted_for_one_call_alone():
    for _ in range(2):
        given = build_parser().parse_args(["serve", "--model=mini", "--also-base=x", "--also-base=y", "--adapters=z"])
        assert given.also_base == ["x", "y"] and not any(name.startswith("_") for name in vars(given))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (["grid", "--dry-run", "--seeds={}"], "--seeds is '999"),
        (["plan", "--mesh=data={}"], "--mesh is 'data=999"),
        (["serve", "--model=mini", "--adapters=.", "--port=0", "--room=lora:official:{}"], "takes no size '999"),
    ],
)
def test_a_number_of_thousands_of_digits_is_one_line(call, says, capsys):
    """Python refuses to make a number of them."""
    assert main([arg.format("9" * 5000) for arg in call]) == 2
    line = capsys.readouterr().err
    assert says in line and len(line) < 1000


def test_two_dashes_end_the_flags(tmp_path, capsys):
    assert main(["predict", f"--model={tmp_path}/none", "--", "--model=--"]) == 2
    assert "none" in capsys.readouterr().err


def test_short_flags_are_a_call_in_full():
    full = _in_full(["jpeft train", "--data", "my rows.csv", "--target=category", "--model", "mini", "--quiet"])
    assert full == [
        "jpeft train",
        "--config=custom",
        "--config.data.path=my rows.csv",
        "--config.data.target=category",
        "--config.model.name=mini",
        "--quiet",
        "--workdir=runs/lora_my-rows",
    ]
    given = ["main.py", "--config=mini:lora_custom_all", "--config.data.path=x", "--workdir=w"]
    assert _in_full(given) == given
    assert _in_full(["main.py", "--config=lora_agnews_low", "--model=mini"])[2] == "--config.model.name=mini"
    assert _in_full(["main.py", "--data=x.csv", "--model=m", "--method=ia3"])[-1] == "--workdir=runs/ia3_x"
    assert _in_full(["main.py", "--data=here/a.csv,there/b.csv", "--model=m"])[-1] == "--workdir=runs/lora_a-b"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--data", "x.csv"], "--model is missing: mini"),
        (["--data"], "--data has no value; write --data my.csv"),
        (["--model=", "--data=x.csv"], "--model has no value; write --model mini"),
        (["--data", "a.csv", "--data", "b.csv"], "--data is given twice, 'a.csv' and 'b.csv'; give it once; several"),
        (
            ["--data=x.csv", "--model=mini", "--model", "other"],
            "--model is given twice, 'mini' and 'other'; give it once",
        ),
        (["--model=mini"], "--model goes with --data FILE"),
        (
            ["--data", "w.csv", "--model=mini", "--config.data.path=c.csv"],
            "--data is short for --config.data.path, which is given, too; give one of them.",
        ),
        (["--config=custom", "--config.method.name", "ia3", "--method=lora"], "--method is short for --config.m"),
        (["--data=no.csv", "--model=mini"], "'no.csv' does not exist"),
        (["--dta", "x.csv"], "--dta is no flag; did you mean --data? jpeft train --help lists them."),
        (["--data=x.csv", "--modle=mini"], "--modle is no flag; did you mean --model?"),
        (["--zzzzqqq"], "--zzzzqqq is no flag; jpeft train --help"),
    ],
)
def test_a_wrong_short_flag(flags, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_experiment(["main.py", *flags]) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]


def test_a_locale_that_is_not_utf8_is_told_as_that():
    for word, says in (
        ("\udcc3\udca9", r"the locale .* b'\\xc3\\xa9'; set PYTHONUTF8=1"),
        ("\udcff", "holds bytes that are not"),
    ):
        with pytest.raises(UserError, match=says):
            require_utf8([word])


def test_a_key_given_again_overrides_and_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    call = ["main.py", "--config=custom", "--config.data.path=none.csv", "--config.train.seed=1", "--workdir=a"]
    assert run_experiment([*call, "--config.train.seed", "2", "-workdir=a"]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if "twice" in line]
    assert told == ["note: --config.train.seed is given twice, '1' and '2'; the last counts"]
    assert run_experiment([*call, "--config.train.seed=2", "--quiet"]) == 2
    assert "twice" not in capsys.readouterr().err


def test_jpeft_train_is_main_py(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # no checkout around
    assert main(["train", "--config", "lora_agnews_low", "--config.train.sed=1"]) == 2
    assert "did you mean config.train.seed?" in capsys.readouterr().err
    assert main(["train", "--help"]) == 0
    assert "--config.train.learning_rate.warmup" in capsys.readouterr().out
    assert main(["train", "--config=custom", "--config=custom", "--quiet"]) == 2
    assert "--config is given twice" in capsys.readouterr().err


RESULT = {"model": "my model", "method": "lora", "task": "custom", "epochs_run": 4, "best_epoch": 1}


def steps(result, workdir, argv=("jpeft train", "--data=x.csv")):
    return [command for _, command in next_steps({**RESULT, **result}, workdir, argv)]


def test_the_next_commands_have_the_runs_own_paths_quoted(tmp_path):
    run = tmp_path / "my run"
    (run / "adapter").mkdir(parents=True)
    (run / "adapter/adapter_config.json").write_text("{}")
    commands = [shlex.split(command) for command in steps({}, run)]
    assert [words[1] for words in commands] == ["predict", "evaluate", "serve", "merge", "export"]
    assert all(str(run) in words for words in commands)
    assert "my model" in commands[2] and commands[3][-1] == str(run / "merged")


def test_training_on_does_not_begin_anew(tmp_path):
    argv = ("main.py", "--config=c.py", "--overwrite", "--config.train.max_epochs=1")
    [command] = [step for step in steps({"best_epoch": 3}, tmp_path, argv) if "max_epochs" in step]
    assert command == "python main.py --config=c.py --config.train.max_epochs=8"


def test_the_next_commands_keep_the_base_in_the_bits_of_the_run(tmp_path):
    commands = steps({"task": "agnews", "quantization": "nf4,double"}, tmp_path)
    found = [command for command in commands if "quantization" in command]
    assert [command.split()[1] for command in found] == ["serve", "merge", "train"]
    assert all("--quantization nf4,double " in command for command in found[:2])
    assert found[2].endswith("--config.model.quantization=nf4 --config.model.double_quantization=True")
    assert "quantization" not in " ".join(steps({"task": "agnews", "quantization": None}, tmp_path))


def test_a_run_with_labels_is_served_in_fewer_shapes(tmp_path):
    assert "--output-lengths 16" in " ".join(steps({"labels": ["a", "b"]}, tmp_path))
    assert "--output-lengths" not in " ".join(steps({"labels": None}, tmp_path))


def test_the_next_commands_are_those_that_work_for_the_method(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/jpeft_adapter.json").write_text("{}")
    assert not any("export" in command for command in steps({}, tmp_path)), "PEFT has no place for it"
    for method in ("prompt", "bitfit"):
        assert not any("merge" in command for command in steps({"method": method}, tmp_path))
    (tmp_path / "adapter/jpeft_adapter.json").unlink()
    (tmp_path / "adapter/config.json").write_text("{}")
    (tmp_path / "adapter/model.safetensors").write_text("")
    whole = steps({"method": "full"}, tmp_path)
    assert not any(word in command for command in whole for word in ("merge", "export", "serve"))
    assert any(f"--model {tmp_path / 'adapter'}" in command for command in whole)


def test_a_run_whose_last_epoch_was_its_best_is_told_how_to_go_on(tmp_path):
    last = {"best_epoch": 3}
    assert steps(last, tmp_path)[-1] == "jpeft train --data=x.csv --config.train.max_epochs=8"
    for epochs in ([], ["--config.train.max_epochs=4"], ["--config.train.max_epochs", "4"]):
        again = steps(last, tmp_path, ["main.py", "--overwrite", *epochs, "--config=a b.py"])[-1]
        assert again == "python main.py '--config=a b.py' --config.train.max_epochs=8"
    assert "jpeft train --data FILE --target COLUMN --model 'my model'" in steps({"task": "agnews"}, tmp_path)


def config_file(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "mine.py"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def get_config():\n    raise RuntimeError('no such luck')", "no such luck"),
        ("def get_config():\n    raise KeyError", "mine.py"),
        ("def get_config():\n    return get_config()", "mine.py"),
        ("import sys\ndef get_config():\n    sys.exit(3)", "mine.py"),
        ("raise SystemExit", "mine.py"),
        ("def get_config():\n    return 1 / 0", "division by zero"),
        ("def get_config():\n    return bytes(2**62)", "mine.py"),
        ("def get_config():\n    pass", "returns NoneType; expected a config"),
        ("def get_config():\n    return ['lora']", "returns list; expected a config"),
        ("def get_config(a, b):\n    return {}", "get_config"),
        ("get_config = 3", "not callable"),
        ("assert False", "mine.py"),
        (b"\x00\x01\xff\xfe", "mine.py"),
        (b"\xff\xfe\x41", "mine.py"),
    ],
)
def test_a_config_file_that_does_something_else(text, says, tmp_path, capsys):
    assert says in answer(capsys, f"--config={config_file(tmp_path, text)}", f"--workdir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--workdir="], "--workdir is empty"),
        (["--workdir=~no_such_user_here/x"], "no such home directory"),
        (["--coordinator_address=nonsense", "--num_processes=2", "--process_id=0"], "expected HOST:PORT"),
        (["--coordinator_address=there.is.no.such.host.invalid:12345", "--num_processes=1", "--process_id=0"], "host"),
        (["--coordinator_address=localhost:99999", "--num_processes=2", "--process_id=0"], "expected HOST:PORT"),
        (["--num_processes=-1"], "--num_processes is -1"),
        (["--num_processes=2", "--process_id=2"], "--process_id is 2; expected from 0 to 1"),
    ],
)
def test_a_flag_that_no_run_can_have(flags, says, capsys):
    assert says in answer(capsys, f"--config={CONFIG}", *flags)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--data", "\udcff.csv", "--model", "mini"],
        ["train", "--data", "x.csv", "--model", "mini", "--workdir", "r/w\udcff"],
        ["train", "--data", "x.csv", "--model", "mini", "--template", "x\udcff {text}"],
        ["predict", "--model", "mini", "--input", "\udcff.csv", "--output", "o.jsonl"],
        ["predict", "--model", "mini", "--labels", "a\udcff,b", "a text"],
        ["recommend", "--data", "\udcff.csv", "--model", "mini"],
        ["report", "\udcff"],
    ],
)
def test_words_that_are_not_utf_8_are_refused_before_anything_is_done(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "\\xff" in said and "holds bytes that are not UTF-8; rename the file, or write the text" in said
    assert said.startswith("error: ") and said.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_run_within_a_directory_whose_name_is_not_utf_8_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "w\udcff").mkdir()
    monkeypatch.chdir(tmp_path / "w\udcff")
    assert "w\\xff/runs/lora_agnews_low' holds bytes that are not UTF-8" in answer(capsys, f"--config={CONFIG}")
    assert "x\\xff' holds bytes" in answer(capsys, f"--config={CONFIG}", "--workdir=/tmp/x\udcff")


def test_a_home_directory_is_meant_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    call = parse_call(["main.py", f"--config={CONFIG}", "--workdir=~/x"], Run, "")
    assert call is not None and call.workdir == tmp_path / "x"


TRAIN = ["train", "--config=mini:lora_agnews_low", "--config.data.source=sample"]


class Broken:
    """Stands for a command that ends badly."""

    def __init__(self, error: BaseException):
        self.error = error

    def __call__(self, argv):
        raise self.error


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (MemoryError(), 1, "too little memory"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes.\nmore"), 1, "batch_size"),
        (PermissionError(13, "Permission denied", "/somewhere/rows.csv"), 1, "/somewhere/rows.csv: Permission denied"),
        (OSError(24, "Too many open files"), 1, "Too many open files"),
        (ValueError("embedded null byte"), 2, "NUL"),
    ],
)
def test_what_the_machine_cannot_is_one_line(error, status, says, monkeypatch, capsys):
    monkeypatch.setattr("jpeft.cli.run.run", Broken(error))
    assert run_experiment(["main.py"]) == status
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1 and says in line


@pytest.mark.parametrize(
    ("of", "call", "says"),
    [
        ("jpeft.train.loop.execute", TRAIN, "the same command goes on from the last checkpoint."),
        (
            "jpeft.train.loop.execute",
            [*TRAIN, "--overwrite"],
            "the same command, without --overwrite, goes on from the last checkpoint; where it had none yet, give the "
            "same command again.",
        ),
        (
            "jpeft.pretrain.loop.pretrain",
            ["pretrain", "--config=pretrain/mini", "--config.data.path=."],
            "the same command goes on from",
        ),
        ("jpeft.model.family.abstract_model", ["params", "--model=mini"], None),
    ],
)
def test_ctrl_c_promises_to_go_on_only_where_a_checkpoint_is(of, call, says, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(of, interrupted)
    assert main([*call, *([f"--workdir={tmp_path}"] if says else [])]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: interrupted; {says}") if says else line == "error: interrupted."


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("jpeft.cli.run.run", Broken(KeyError("oops")))
    with pytest.raises(KeyError):
        run_experiment(["main.py"])


@pytest.mark.parametrize(
    ("environment", "arguments", "status", "says"),
    [
        (
            {"JAX_PLATFORMS": "cuda"},
            ["train", "--config=mini:lora_agnews_low", "--config.data.source=sample"],
            2,
            "cpu",
        ),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, ["params", "--model=nö/日本"], 2, "error: "),
        pytest.param(
            {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
            ["params", "--model=mini"],
            0,
            "",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_environment_that_lacks_something(environment, arguments, status, says, tmp_path):
    """Neither a home directory nor a name for the user, in any of them: a container may run as any number."""
    place = tmp_path / "site"
    place.mkdir()
    (place / "sitecustomize.py").write_text("import pwd\npwd.getpwuid = {}.__getitem__  # nobody has a name\n")
    done = subprocess.run(
        [sys.executable, "-m", "jpeft.cli", *arguments],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{place}:{CONFIG.parents[1]}",
            "TMPDIR": str(tmp_path),
            "HF_HUB_OFFLINE": "1",
            **environment,
        },
        capture_output=True,
        cwd=tmp_path,
    )
    error = done.stderr.decode(errors="replace")
    assert done.returncode == status and "Traceback" not in error and says in error
    assert not (tmp_path / "~").exists()


def test_a_step_that_this_machine_cannot_hold_is_said_before_it_is_run(monkeypatch):
    monkeypatch.setattr("jpeft.program.memory_of_host", lambda: 1_000_000)
    with pytest.raises(MemoryError, match=r"a step needs 0.\d GB at once"):
        Program(lambda x: jnp.sort(x) @ jnp.sort(-x))(jnp.ones((2_000_000,)))
