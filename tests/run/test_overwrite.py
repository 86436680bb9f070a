"""A directory never loses a run: not to a wrong call, not to edited rows, not to a kill."""

import dataclasses
import errno
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from jpeft.cli import run_experiment
from jpeft.config import DataConfig, EvalConfig, MethodConfig, ModelConfig, Run
from jpeft.errors import RunFailed, Stopped, UserError
from jpeft.eval.metrics import own
from jpeft.run.aside import Aside
from jpeft.run.directory import ENTRIES, RunDirectory, has_work, other_origins, run_once
from jpeft.run.stop import RunStopped
from jpeft.train import loop
from jpeft.train.origins import origins
from jpeft.trouble import explained
from tests.decoders import LLAMA
from tests.model.gguf_files import CHAT, write_chat_tokenizer

CONFIG = Path(__file__).parents[2] / "configs/lora_custom.py"


def flags(workdir: Path, checkpoint: Path, data: Path) -> list[str]:
    return [
        "main.py",
        f"--config={CONFIG}",
        f"--workdir={workdir}",
        "--quiet",
        f"--config.model.name={checkpoint}",
        f"--config.data.path={data}",
        "--config.train.max_epochs=1",
        "--config.train.batch_size=8",
        "--config.train.accumulation_steps=1",
        "--config.data.max_train=16",
        "--config.data.max_target_length=8",
    ]


def state(directory: Path) -> dict[str, tuple[bytes, int]]:
    """The content and modification time of every file below a directory."""
    return {
        str(path.relative_to(directory)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def rows(tmp_path_factory, toy_jsonl) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_bytes(toy_jsonl.read_bytes())
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_checkpoint, rows) -> Path:
    workdir = tmp_path_factory.mktemp("finished") / "run"
    assert run_experiment(flags(workdir, tiny_checkpoint, rows)) == 0
    return workdir


_RATES = ("initial", "warmup", "annealing")
WRONG = {
    "a column that no row has": (["--config.data.template={texxt} ?"], 2),
    "no such rows": (["--config.data.path=nowhere.jsonl"], 2),
    "no such model": (["--config.model.name=no/such/model/here"], 2),
    "no such adapter": (["--config.method.from_adapter=nowhere"], 2),
    "no site": (["--config.method.targets=q_proj"], 2),
    "an unknown key": (["--config.train.sed=1"], 2),
    "a value that cannot be": (["--config.train.patience=0"], 2),
    "more devices than there are": (["--config.mesh.data=1024", "--config.train.batch_size=1024"], 2),
    "a loss that is not finite": (
        # Of all weights: steps of 1e30 leave a LoRA of published form finite for two steps, since norms make them 0.
        ["--config.method.name=full", *(f"--config.train.learning_rate.{p}=1e30" for p in _RATES)],
        1,
    ),
}


@pytest.mark.parametrize(
    "wrong", [pytest.param(name, marks=pytest.mark.slow) if "finite" in name else name for name in WRONG]
)
def test_a_call_that_turns_out_wrong_leaves_the_finished_run(wrong, finished, tiny_checkpoint, rows, capsys):
    more, status = WRONG[wrong]
    before = state(finished)
    assert run_experiment([*flags(finished, tiny_checkpoint, rows), "--overwrite", *more]) == status
    assert capsys.readouterr().err.count("\n") == 1
    assert state(finished) == before
    assert {path.name for path in finished.iterdir()} <= {".lock", *ENTRIES}


def test_a_damaged_model_leaves_the_finished_run(finished, tiny_checkpoint, rows, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint, broken)
    (broken / "model.safetensors").write_bytes(b"x" * 99)
    before = state(finished)
    call = [*flags(finished, tiny_checkpoint, rows), "--overwrite", f"--config.model.name={broken}"]
    assert run_experiment(call) in (1, 2)
    assert state(finished) == before


def test_a_finished_run_is_untouched_by_the_same_call(finished, tiny_checkpoint, rows):
    before = state(finished)
    assert run_experiment(flags(finished, tiny_checkpoint, rows)) == 0
    assert state(finished) == before


# --- rows, known by what they are ---


def test_a_run_says_which_rows_it_is_of(finished):
    digest = json.loads((finished / "result.json").read_text())["data_digest"]
    assert len(digest) == 64 and json.loads((finished / "splits.json").read_text())["data_digest"] == digest


def test_the_same_rows_in_another_file_are_the_same_run(finished, tiny_checkpoint, rows, tmp_path, capsys):
    before, lines = state(finished), [json.loads(line) for line in rows.read_text().splitlines()]
    other = tmp_path / "elsewhere.csv"
    other.write_text("target,input\n" + "".join(f"{line['target']},{line['input']}\n" for line in lines))
    assert run_experiment(flags(finished, tiny_checkpoint, other)) == 0
    assert state(finished) == before


def test_the_same_rows_in_another_file_can_be_trained_on_further(finished, tiny_checkpoint, rows, tmp_path, capsys):
    longer, more = tmp_path / "longer", "--config.train.max_epochs=2"
    shutil.copytree(finished, longer)
    other = tmp_path / "elsewhere.jsonl"
    other.write_text(rows.read_text().replace("World", "Planet", 1))
    assert run_experiment([*flags(longer, tiny_checkpoint, other), more]) == 2
    assert re.search("data.path.*the rows differ", capsys.readouterr().err)
    other.write_text(rows.read_text())
    assert run_experiment([*flags(longer, tiny_checkpoint, other), more]) == 0
    assert json.loads((longer / "result.json").read_text())["epochs_run"] == 2


def test_edited_rows_are_another_run(finished, tiny_checkpoint, rows, tmp_path, capsys):
    before = state(finished)
    edited = tmp_path / "edited.jsonl"
    edited.write_text(rows.read_text().replace("World", "Planet", 1))
    assert run_experiment(flags(finished, tiny_checkpoint, edited)) == 2
    assert "the rows differ from those that it was run on" in capsys.readouterr().err
    text = rows.read_text()
    try:
        rows.write_text(edited.read_text())
        assert run_experiment(flags(finished, tiny_checkpoint, rows)) == 2  # the same path, too
        rows.unlink()
        assert run_experiment(flags(finished, tiny_checkpoint, rows)) == 0  # nothing to compare with
    finally:
        rows.write_text(text)
    assert state(finished) == before


def test_a_run_of_a_version_without_digests_is_known_by_its_path(finished, tiny_checkpoint, rows, tmp_path, capsys):
    old = tmp_path / "old"
    shutil.copytree(finished, old)
    for name in ("splits.json", "result.json"):
        record = json.loads((old / name).read_text())
        del record["data_digest"]
        (old / name).write_text(json.dumps(record))
    config = json.loads((old / "config.json").read_text())
    del config["method"]["from_adapter"], config["mesh"]  # keys that it did not have
    (old / "config.json").write_text(json.dumps(config))
    assert run_experiment(flags(old, tiny_checkpoint, rows)) == 0
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(rows.read_bytes())
    assert run_experiment(flags(old, tiny_checkpoint, copy)) == 2
    assert "data.path" in capsys.readouterr().err


def test_a_stopped_run_does_not_go_on_with_other_rows(finished, tiny_checkpoint, rows, tmp_path, capsys):
    stopped = tmp_path / "stopped"
    shutil.copytree(finished, stopped)
    (stopped / "result.json").unlink()  # as if it had been killed while testing
    edited = tmp_path / "edited.jsonl"
    edited.write_text(rows.read_text().replace("World", "Planet", 1))
    before = state(stopped)
    assert run_experiment(flags(stopped, tiny_checkpoint, edited)) == 2
    assert "other rows" in (said := capsys.readouterr().err) or "rows differ" in said
    assert state(stopped) == before
    assert run_experiment(flags(stopped, tiny_checkpoint, rows)) == 0
    assert json.loads((stopped / "result.json").read_text())["status"] == "done"


@pytest.mark.parametrize("damage", [lambda file: file.write_text(file.read_text()[:100]), Path.unlink])
def test_a_stopped_run_that_cannot_say_its_rows_does_not_go_on(
    damage, finished, tiny_checkpoint, rows, tmp_path, capsys
):
    """It could otherwise test on today's rows what was trained on others."""
    stopped = tmp_path / "stopped"
    shutil.copytree(finished, stopped)
    (stopped / "result.json").unlink()
    damage(stopped / "splits.json")
    before = state(stopped)
    assert run_experiment(flags(stopped, tiny_checkpoint, rows)) == 1
    assert re.search(r"splits\.json.*give --overwrite to run again", capsys.readouterr().err)
    assert state(stopped) == before


# --- base, tokenizer, template and adapter to start from, known by what they are ---


@pytest.fixture(scope="module")
def of_own_base(tmp_path_factory, tiny_checkpoint, rows):
    """A finished run on a base that the test may modify, and the original of that base."""
    home = tmp_path_factory.mktemp("own")
    shutil.copytree(tiny_checkpoint, home / "base")
    assert run_experiment(flags(home / "run", home / "base", rows)) == 0
    return home


def changed_weights(base: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    tensors["shared.weight"] = tensors["shared.weight"] + 0.125
    save_file(tensors, base / "model.safetensors", {"format": "pt"})


def changed_tokenizer(base: Path) -> None:
    file = base / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"post_processor": None, "padding": None}, indent=1))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (changed_weights, "the weights or the config of model.name differ from those that it was run on"),
        (changed_tokenizer, "the tokenizer of model.name differs from the one that it was run with"),
    ],
)
def test_a_run_does_not_go_on_with_another_base_under_the_same_name(
    change, says, of_own_base, rows, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(of_own_base, tmp_path, dirs_exist_ok=True)
    config = json.loads(Path("run/config.json").read_text())
    config["model"]["name"] = "base"
    Path("run/config.json").write_text(json.dumps(config))
    call = flags(Path("run"), Path("base"), rows)
    before = state(Path("run"))
    assert run_experiment(call) == 0, "the same files in another place are the same base"
    change(Path("base"))
    for longer in ([], ["--config.train.max_epochs=2"]):
        assert run_experiment([*call, *longer]) == 2
        assert says in capsys.readouterr().err
    assert state(Path("run")) == before
    splits = json.loads(Path("run/splits.json").read_text())
    assert splits.pop("origins").keys() == {"base", "tokenizer"}
    Path("run/splits.json").write_text(json.dumps(splits))  # as an earlier version left it
    assert run_experiment(call) == 0
    shutil.rmtree("base")
    assert run_experiment(call) == 0, "a finished run needs its base no more"


def test_an_edited_metric_of_ones_own_is_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = dataclasses.replace(Run(), eval=EvalConfig(metrics="my_metric:half,accuracy"))

    def written(text: str) -> dict[str, str]:
        (tmp_path / "my_metric.py").write_text(text)
        return {name: value for name, value in origins(run).items() if name == "metrics"}

    first = written("half = lambda p, r: 0.5")
    (tmp_path / "splits.json").write_text(json.dumps({"origins": first}))
    assert len(first) == 1 and other_origins(tmp_path, first) == []
    assert "a metric of your own" in other_origins(tmp_path, written("half = lambda p, r: 0.75"))[0]


def test_an_edited_metric_is_another_wherever_its_code_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = dataclasses.replace(Run(), eval=EvalConfig(metrics="mine.scores:half"))
    files = {
        "mine/__init__.py": "import json, numpy as np",
        "mine/scores.py": "from .parts import table\nfrom mine import *\nimport helper",
        "mine/parts/__init__.py": "from ..deep import *",
        "mine/parts/table.py": "",
        "mine/deep.py": "import mine.scores  # a circle",
        "helper.py": "from numpy import array\nimport jpeft.eval.metrics",
    }
    for name, text in (files | {"unused.py": ""}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    now = lambda: {name: value for name, value in origins(run).items() if "metrics" in name}
    before = now()
    assert before.keys() == {"metrics", "imported_by_metrics"}
    for name, text in files.items():
        (tmp_path / name).write_text(f"{text}\nx = 1")
        assert now() != before, name
        (tmp_path / name).write_text(text)
    (tmp_path / "unused.py").write_text("x = 1")
    assert now() == before
    (tmp_path / "jpeft").mkdir()
    (tmp_path / "jpeft/__init__.py").write_text("")
    assert now() == before, "jpeft's own clone is no part of a metric"
    (tmp_path / "mine/scores.py").write_text("no Python (")
    assert now() != before


def stopped_at_the_test(finished: Path, workdir: Path, **changed: dict) -> None:
    """Copies a run as a metric leaves it that fails on the answers to the test."""
    shutil.copytree(finished, workdir)
    (workdir / "result.json").unlink()
    config, splits = (json.loads((workdir / name).read_text()) for name in ("config.json", "splits.json"))
    (workdir / "config.json").write_text(
        json.dumps({name: section | changed.get(name, {}) for name, section in config.items()})
    )
    splits["origins"]["metrics"] = "0" * 64
    (workdir / "splits.json").write_text(json.dumps(splits))


@pytest.mark.parametrize("metrics", ["mended_metric:half", "accuracy", None])
def test_a_run_that_no_metric_has_judged_goes_on_with_others(
    metrics, finished, tiny_checkpoint, rows, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("mended_metric.py").write_text("half = lambda predictions, references: 0.5")
    stopped_at_the_test(finished, Path("run"), eval={"metrics": "mended_metric:half"})
    asked = [] if metrics is None else [f"--config.eval.metrics={metrics}"]
    assert run_experiment([*flags(Path("run"), tiny_checkpoint, rows), *asked]) == 0
    result = json.loads(Path("run/result.json").read_text())
    assert result["metric_name"] == (metrics or "accuracy") and result["epochs_run"] == 1
    recorded = json.loads(Path("run/splits.json").read_text())["origins"].get("metrics")
    assert recorded != "0" * 64 and (recorded is None) == (metrics != "mended_metric:half")


def test_a_metric_that_fails_at_the_test_alone_is_mended_and_the_run_goes_on(
    tiny_checkpoint, rows, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    file = Path("late_metric.py")
    file.write_text("numbers = iter([0.5, float('nan')])\nhalf = lambda predictions, references: next(numbers)")
    call = [*flags(Path("run"), tiny_checkpoint, rows), "--config.eval.metrics=late_metric:half"]
    assert run_experiment(call) == 2
    said = capsys.readouterr().err
    assert "gave nan" in said and "the command again, which goes on at the test" in said and said.count("\n") == 1
    trained = Path("run/metrics.jsonl").read_bytes()
    file.write_text("half = lambda predictions, references: 0.25  # of another size, so that it is compiled anew")
    monkeypatch.delitem(sys.modules, "late_metric")
    monkeypatch.delitem(own._loaded, "late_metric:half")
    assert run_experiment(call) == 0
    assert json.loads(Path("run/result.json").read_text())["metric"] == 0.25
    assert Path("run/metrics.jsonl").read_bytes() == trained


def test_other_metrics_judge_the_untuned_base_as_well(tiny_checkpoint, rows, tmp_path):
    call = [*flags(tmp_path / "run", tiny_checkpoint, rows), "--config.eval.zero_shot=True"]
    assert run_experiment(call) == 0
    (tmp_path / "run/result.json").unlink()
    assert run_experiment([*call, "--config.eval.metrics=accuracy,macro_f1"]) == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert "macro_f1" in result["zero_shot"] and result["zero_shot"].keys() == result["metrics"].keys()


def test_the_first_process_decides_for_all_whether_the_base_is_judged_again(monkeypatch):
    """One that sees no file of the metric, such as one started elsewhere, would answer the rows alone and wait."""
    first, here = ["my_metric:half", "0" * 64, None], ["my_metric:half", None, None]
    kept = {"zero_shot": {"my_metric:half": 0.5}, "judged_by": first}
    said = []
    monkeypatch.setattr(loop, "from_first", lambda text: said.append(text) or "")
    assert not loop._base_is_to_be_judged(kept, here) and said == ["new"]
    monkeypatch.setattr(loop, "from_first", lambda text: said.append(text) or "new")
    assert loop._base_is_to_be_judged(kept, first) and said == ["new", ""]


def test_a_run_that_follows_a_metric_of_ones_own_keeps_it(
    finished, tiny_checkpoint, rows, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("followed_metric.py").write_text("half = lambda predictions, references: 0.5")
    stopped_at_the_test(finished, Path("run"), train={"monitor": "validation/followed_metric:half"})
    call = [*flags(Path("run"), tiny_checkpoint, rows), "--config.train.monitor=validation/followed_metric:half"]
    assert run_experiment(call) == 2
    assert "the file of a metric of your own differs" in capsys.readouterr().err


def test_a_metric_that_fails_on_the_right_answers_is_refused_before_training(
    tiny_checkpoint, rows, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("faulty_metric.py").write_text("def half(predictions, references):\n    return 1 / 0")
    for key, value in (("eval.metrics", "accuracy,{}"), ("train.monitor", "validation/{}")):
        asked = f"--config.{key}={value.format('faulty_metric:half')}"
        assert run_experiment([*flags(Path("run"), tiny_checkpoint, rows), asked]) == 2
        said = capsys.readouterr().err
        assert "tried with the right answers, before any training: the metric 'faulty_metric:half' fails" in said
        assert not has_work(Path("run"))


def test_a_template_and_an_adapter_to_start_from_are_known_by_content(tmp_path):
    template, adapter = tmp_path / "chat.jinja", tmp_path / "adapter"
    adapter.mkdir()

    def made_of(text: str, weights: bytes) -> dict[str, str]:
        template.write_text(text)
        (adapter / "adapter_config.json").write_text("{}")
        (adapter / "adapter_model.safetensors").write_bytes(weights)
        run = dataclasses.replace(
            Run(), data=DataConfig(chat_template=str(template)), method=MethodConfig(from_adapter=str(adapter))
        )
        return {name: value for name, value in origins(run).items() if name in ("chat_template", "from_adapter")}

    first = made_of("{{ messages }}", b"a")
    (tmp_path / "splits.json").write_text(json.dumps({"origins": first}))
    assert len(first) == 2 and other_origins(tmp_path, made_of("{{ messages }}", b"a")) == []
    assert "data.chat_template" in other_origins(tmp_path, made_of("{{ messages }} ", b"a"))[0]
    assert "method.from_adapter" in other_origins(tmp_path, made_of("{{ messages }}", b"b"))[0]
    template.unlink()
    assert other_origins(tmp_path, origins(Run())) == []


def test_a_run_of_a_version_that_tokenised_each_text_of_a_chat_by_itself_does_not_go_on(tmp_path):
    (base := tmp_path / "base").mkdir()
    write_chat_tokenizer(base)
    (base / "config.json").write_text(json.dumps({**LLAMA.to_dict(), "vocab_size": 320, "eos_token_id": 2}))
    template, same = tmp_path / "chat.jinja", "the same tokens as ever: nothing is recorded"
    template.write_text(CHAT.replace("message['content']", "message['content'] | trim"))

    def now(choice: str) -> dict[str, str]:
        return origins(
            dataclasses.replace(Run(), model=ModelConfig(name=str(base)), data=DataConfig(chat_template=choice))
        )

    assert "chat_tokens" not in now("auto") and "chat_tokens" not in now("none"), same
    today = now(str(template))
    (tmp_path / "splits.json").write_text(json.dumps({"origins": today}))
    assert other_origins(tmp_path, today) == []
    (tmp_path / "splits.json").write_text(json.dumps({"origins": {**today, "chat_tokens": "of other rules"}}))
    said = ["texts in the chat template have other tokens than in the version of jpeft that it was run with"]
    assert other_origins(tmp_path, today) == said
    earlier = {name: value for name, value in today.items() if name != "chat_tokens"}
    (tmp_path / "splits.json").write_text(json.dumps({"origins": earlier}))
    assert other_origins(tmp_path, today) == said
    assert other_origins(tmp_path, earlier) == [], "the base is not on this machine"


# --- kills, at each moment of replacing ---


class Killed(BaseException):
    """Stands for a kill: no code of ours may run after it."""


def make_run(path: Path, text: str) -> None:
    for name in ("checkpoint/4", "adapter"):
        (path / name).mkdir(parents=True)
    for name in ("config.json", "result.json", "splits.json", "adapter/weights", "checkpoint/4/x", "mine.txt"):
        (path / name).write_text("{}" if name == "config.json" else json.dumps({"status": "done", "of": text}))


def files_of(path: Path) -> dict[str, bytes]:
    return {name: content for name, (content, _) in state(path).items() if name != ".lock"}


@pytest.mark.parametrize("kill_at", range(1, 22))
def test_killed_anywhere_while_it_is_replaced_the_old_run_is_there(kill_at, tmp_path, monkeypatch):
    """Killed at every rename and removal: the next process finds either the old run or the new one, complete."""
    path = tmp_path / "run"
    make_run(path, "old")
    old, calls = files_of(path), 0

    def deadly(function):
        def counted(*arguments, **keywords):
            nonlocal calls
            calls += 1
            if calls >= kill_at:
                raise Killed
            return function(*arguments, **keywords)

        return counted

    def work(directory: RunDirectory):
        directory.begin()
        directory.write_json("splits.json", {"of": "new"})
        raise RuntimeError("it comes to nothing")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", deadly(Path.rename))
        patch.setattr(Path, "rmdir", deadly(Path.rmdir))
        patch.setattr(shutil, "rmtree", deadly(shutil.rmtree))
        # As after a kill: the dying process restores nothing.
        with pytest.raises((Killed, RuntimeError)):
            run_once(path, {"a": 1}, work, overwrite=True, report=print)
    found = []
    run_once(
        path, {}, lambda directory: found.append(files_of(path)) or {"status": "done"}, overwrite=True, report=print
    )
    assert found == [old]


def test_what_an_earlier_version_left_half_moved_comes_back(tmp_path):
    half = tmp_path / "replaced/1.half"
    half.mkdir(parents=True)
    (half / "config.json").write_text("{}")
    Aside(tmp_path, ENTRIES).recover()
    assert (tmp_path / "config.json").read_text() == "{}" and not half.exists()


def test_a_checkpoint_that_a_kill_left_half_written_is_none(tmp_path):
    """The replaced run is restored, as after a kill before the first checkpoint, and the partial one is deleted."""
    path = tmp_path / "run"
    make_run(path, "old")
    old = files_of(path)

    def killed(directory: RunDirectory):
        directory.begin()
        (path / "checkpoint/4.orbax-checkpoint-tmp").mkdir(parents=True)
        raise RuntimeError("killed in the first save")

    with pytest.raises(RuntimeError):
        run_once(path, {"a": 1}, killed, overwrite=True, report=print)
    assert files_of(path) == old
    fresh = tmp_path / "fresh"
    with pytest.raises(RuntimeError):
        run_once(fresh, {"a": 1}, killed, overwrite=False, report=print)
    assert not has_work(fresh)
    assert run_once(fresh, {"a": 2}, lambda directory: {"status": "done"}, overwrite=False, report=print)


def test_a_new_run_with_a_checkpoint_goes_on_and_the_old_one_stays_until_its_result(tmp_path):
    path = tmp_path / "run"
    make_run(path, "old")

    def stopped(directory: RunDirectory):
        directory.begin()
        (path / "checkpoint/1").mkdir(parents=True)
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        run_once(path, {"a": 1}, stopped, overwrite=True, report=print)
    assert (path / "replaced/1/result.json").is_file() and (path / "checkpoint/1").is_dir()

    def ends(directory: RunDirectory):
        directory.begin()
        directory.finish({"status": "done"})
        return {"status": "done"}

    run_once(path, {"a": 1}, ends, overwrite=False, report=print)
    assert not (path / "replaced").exists() and (path / "mine.txt").is_file()


@pytest.mark.parametrize("content", ["[]", "null", "{", "[" * 100_000, '{"train": NaN}', "\0" * 50, '{"status": 3}'])
@pytest.mark.parametrize("name", ["config.json", "result.json"])
def test_records_that_are_damaged_are_one_line_and_a_way_out(
    name, content, finished, tiny_checkpoint, rows, tmp_path, capsys
):
    damaged = tmp_path / "damaged"
    shutil.copytree(finished, damaged)
    (damaged / name).write_text(content)
    assert run_experiment(flags(damaged, tiny_checkpoint, rows)) in (1, 2)
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "--overwrite" in line and len(line) < 1000


@pytest.mark.parametrize("damage", ["gone", "no weights", "cut short"])
def test_a_finished_run_without_its_adapter_is_not_finished(damage, finished, tiny_checkpoint, rows, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    weights = tmp_path / "run/adapter/adapter_model.safetensors"
    if damage == "gone":
        shutil.rmtree(weights.parent)
    elif damage == "no weights":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:-8])
    assert run_experiment(flags(tmp_path / "run", tiny_checkpoint, rows)) == 1
    said = capsys.readouterr()
    says = {"gone": "is not there;", "no weights": "has no weights;", "cut short": "bytes of weights;"}[damage]
    assert says in said.err and "--overwrite" in said.err and "next " not in said.out


def test_a_finished_run_trains_on_with_more_epochs(finished, tiny_checkpoint, rows, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    before = json.loads((workdir / "result.json").read_text())
    longer = [*flags(workdir, tiny_checkpoint, rows), "--config.train.max_epochs=2", "--noquiet"]
    assert run_experiment(longer) == 0
    after = json.loads((workdir / "result.json").read_text())
    assert after["epochs_run"] == 2 and after["validation_losses"][:1] == before["validation_losses"]
    assert before["trained_on_after"] == [] and after["trained_on_after"] == [1]
    assert json.loads((workdir / "earlier/result_1_epochs.json").read_text()) == before
    assert json.loads((workdir / "config.json").read_text())["train"]["max_epochs"] == 2
    logged = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in logged if "learning_rate" in line]
    assert [line["step"] for line in logged if "step" in line] == [1, 2, 3, 4]
    assert rates[1] < rates[2], "the schedule now spans both epochs: the rate rises where it goes on"
    said = capsys.readouterr().err
    assert f"the learning rate goes on at {rates[2]:.3g}" in said
    kept = state(workdir)
    assert run_experiment(longer) == 0 and state(workdir) == kept, "and is finished again"
    assert run_experiment(flags(workdir, tiny_checkpoint, rows)) == 2, "fewer epochs are another run"


class _Run:
    """The directory of a run after some epochs, of which `best` was the best, with a checkpoint."""

    def __init__(self, path: Path, *, epochs: int, best: int, patience: int = 1):
        self.path, self.config = path, {"train": {"max_epochs": epochs, "patience": patience, "seed": 0}}
        (path / "checkpoint/1").mkdir(parents=True)
        (path / "config.json").write_text(json.dumps(self.config))
        (path / "result.json").write_text(json.dumps({"status": "done", "epochs_run": epochs, "best_epoch": best}))

    def again(self, *, stop: bool = False, **train) -> list[int | None]:
        """Claims the directory with other training settings; returns `longer_than`, if the run was executed at all."""
        ran = []

        def work(directory):
            directory.begin()
            ran.append(directory.longer_than)
            if stop:
                raise KeyboardInterrupt
            directory.finish({"status": "done", "epochs_run": 9, "best_epoch": 8})
            return {}

        run_once(self.path, {"train": {**self.config["train"], **train}}, work, overwrite=False, report=print)
        return ran


def test_a_run_is_longer_only_where_epochs_or_patience_alone_are_raised(tmp_path):
    for number, changes in enumerate(
        [{"max_epochs": 3}, {"max_epochs": 9, "seed": 1}, {"max_epochs": 9, "patience": 0}]
    ):
        with pytest.raises(UserError, match="another config"):
            _Run(tmp_path / str(number), epochs=4, best=3).again(**changes)
    assert _Run(tmp_path / "more", epochs=4, best=3).again(max_epochs=9) == [4]
    assert _Run(tmp_path / "same", epochs=4, best=3).again() == [], "finished"
    assert _Run(tmp_path / "patient", epochs=4, best=2).again(patience=3) == [4]


def test_more_epochs_of_a_run_that_had_stopped_for_its_loss_are_no_more_training(tmp_path):
    run = _Run(tmp_path, epochs=4, best=2)
    before = state(tmp_path)
    with pytest.raises(UserError, match="--config.train.patience=2 or more, too"):
        run.again(max_epochs=9)
    assert {name: file for name, file in state(tmp_path).items() if name != ".lock"} == before
    assert run.again(max_epochs=9, patience=2) == [4]


def test_a_run_that_trains_on_and_is_stopped_goes_on_by_the_same_command_alone(tmp_path):
    run = _Run(tmp_path, epochs=4, best=3)
    with pytest.raises(KeyboardInterrupt):
        run.again(max_epochs=9, stop=True)
    assert not (tmp_path / "result.json").exists() and (tmp_path / "earlier/result_4_epochs.json").exists()
    with pytest.raises(UserError, match="another config"):
        run.again()
    assert run.again(max_epochs=9) == [None]
    assert RunDirectory(tmp_path).trained_for() == [4]


def test_who_is_stopped_while_overwriting_is_told_what_goes_on(tmp_path):
    make_run(tmp_path / "run", "old")

    def work(directory: RunDirectory):
        directory.begin()
        raise RunStopped("stopped by SIGTERM")

    with pytest.raises(Stopped, match="the same command, without --overwrite, goes on from there"):
        run_once(tmp_path / "run", {}, work, overwrite=True, report=print)


def test_an_error_of_another_file_is_not_the_directorys(tmp_path):
    def reads(name: str, number: int = errno.EACCES):
        def work(directory: RunDirectory):
            raise OSError(number, os.strerror(number), name or None)

        return work

    def said(work) -> str:
        with pytest.raises((OSError, RunFailed)) as raised:
            run_once(tmp_path / "run", {}, work, overwrite=False, report=print)
        error = explained(raised.value)
        assert isinstance(error, RunFailed)
        return str(error)

    assert said(reads("/elsewhere/rows.csv")) == "/elsewhere/rows.csv: Permission denied."
    assert "run cannot be written (Permission denied)" in said(reads(str(tmp_path / "run/metrics.jsonl")))
    assert "run cannot be written (No space left on device)" in said(reads("", errno.ENOSPC))
    assert said(reads("", errno.EMFILE)) == "Too many open files."


def test_who_is_killed_while_writing_the_config_can_run_again(tmp_path):
    """The directory then holds neither a run nor files of the user."""
    (tmp_path / ".config.json.1.partial").write_text('{"tas')
    with RunDirectory(tmp_path).claim({"a": 1}, overwrite=False):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "config.json"]


@pytest.mark.parametrize("name", [".notes.txt.1.partial", ".config.json.partial", "config.json.1.partial"])
def test_a_file_that_no_run_began_stays_and_is_nobodys_run(name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match="holds no run"), RunDirectory(tmp_path).claim({"a": 1}, overwrite=False):
        pass
    assert (tmp_path / name).read_text() == "mine"
