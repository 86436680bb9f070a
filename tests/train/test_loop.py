"""Whole runs on a tiny checkpoint and toy data, through `main.py`'s code path."""

import contextlib
import json
import os
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from jpeft.cli import run_experiment
from jpeft.data.task_file import TaskOfRun
from jpeft.model.weight_files import model_fingerprint
from jpeft.run.checkpoint import Checkpoints
from jpeft.run.display import Display
from jpeft.run.metrics_log import MetricsLog
from jpeft.train import loop
from tests.conftest import slow_but

CONFIGS = Path(__file__).parents[2] / "configs"
RESULT_KEYS = set(
    "status method ablation task scale seed model trainable_parameters total_parameters metric_name metric "
    "validation_loss best_epoch epochs_run train_examples seconds tokens_per_second peak_memory_bytes adapter_bytes "
    "device device_count mesh versions commit started finished".split()
)


def run(config: str, workdir: Path, checkpoint: Path, data: Path, *overrides: str) -> int:
    return run_experiment(
        [
            "main.py",
            f"--config={CONFIGS / config}.py",
            f"--workdir={workdir}",
            "--quiet",
            f"--config.model.name={checkpoint}",
            f"--config.data.path={data}",
            "--config.train.max_epochs=2",
            "--config.train.batch_size=8",
            "--config.train.accumulation_steps=2",
            "--config.data.max_train=40",
            "--config.data.max_target_length=12",
            *overrides,
        ]
    )


def result_of(workdir: Path) -> dict:
    return json.loads((workdir / "result.json").read_text())


def adapter_of(workdir: Path) -> dict[str, np.ndarray]:
    return load_file(next((workdir / "adapter").glob("*.safetensors")))


@pytest.mark.parametrize("method", slow_but(("lora",), ["full", "lora", "ia3", "bitfit", "prompt"]))
def test_one_cell_of_each_method(method, tiny_checkpoint, toy_data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop, "unchecked_products", lambda platform, flags: f"{platform} is told {flags}")
    assert run(f"{method}_agnews_low", tmp_path / "run", tiny_checkpoint, toy_data) == 0
    result = result_of(tmp_path / "run")
    assert f"cpu is told {os.environ['XLA_FLAGS']}" in result["warnings"]
    trust = result["uncertainty"]
    low, high = trust["interval"]
    assert trust["method"] == "wilson" and trust["rows"] == 24 and low <= result["metric"] <= high
    assert f"accuracy  {result['metric']:.4f}  (95 %: {low:.3f} to {high:.3f}" in capsys.readouterr().out
    assert RESULT_KEYS <= set(result)
    assert result["status"] == "done" and result["method"] == method and result["epochs_run"] == 2
    assert set(result["seconds"]) == {"total", "train", "validation", "test", "compile"}
    assert result["train_examples"] == 40 and result["test_examples"] == 24
    assert 0 <= result["metric"] <= 1 and result["metric_name"] == "accuracy"
    assert result["adapter_bytes"] == sum(f.stat().st_size for f in (tmp_path / "run/adapter").glob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "test_rows", "metrics"),
    [
        ("lora_cola_medium", 16, {"accuracy", "matthews_correlation", "unknown_answers"}),
        ("ia3_drop_attention_e2e_medium", 24, {"rouge_l", "rouge_l_multi_reference"}),
        ("lora_later_samsum_medium", 18, {"rouge_l"}),
    ],
)
def test_one_cell_of_each_task_and_of_ablations(config, test_rows, metrics, deeper_checkpoint, toy_data, tmp_path):
    assert run(config, tmp_path / "run", deeper_checkpoint, toy_data) == 0
    result = result_of(tmp_path / "run")
    assert set(result["metrics"]) == metrics and result["metric"] == result["metrics"][result["metric_name"]]
    lines = [json.loads(line) for line in (tmp_path / "run/predictions.jsonl").read_text().splitlines()]
    assert len(lines) == test_rows
    assert set(lines[0]) == {"id", "input", "target", "prediction", "score"}
    assert np.mean([line["score"] for line in lines]) == pytest.approx(result["metric"])


def test_rows_that_are_not_there_are_said_before_a_model_is_asked_for(tmp_path, capsys):
    """A mistyped path must not wait for the hub, nor be hidden by the hub's errors."""
    assert run("lora_agnews_low", tmp_path / "run", tmp_path / "no_model", tmp_path / "rows.jsonl") == 2
    error = capsys.readouterr().err
    assert "rows.jsonl' does not exist" in error and "no_model" not in error


@pytest.mark.slow
def test_labels_scored_instead_of_generated(tiny_checkpoint, toy_data, tmp_path):
    """A random model generates no labels, but scoring always answers with one."""
    flags = ("--config.eval.answer=score", "--config.eval.zero_shot=True")
    assert run("lora_agnews_low", tmp_path / "run", tiny_checkpoint, toy_data, *flags) == 0
    result = result_of(tmp_path / "run")
    assert result["answer"] == "score" and result["labels"] == ["World", "Sports", "Business", "Sci/Tech"]
    assert set(result["zero_shot"]) == set(result["metrics"]) == {
        "accuracy", "matthews_correlation", "unknown_answers", "agreement_with_generation", "generation_accuracy",
        "generation_matthews_correlation", "generation_unknown_answers",
    }  # fmt: skip
    zero_shot = result["zero_shot"]
    assert zero_shot["generation_unknown_answers"] == 1 and zero_shot["agreement_with_generation"] == 0
    assert zero_shot["unknown_answers"] == 0 and result["metric"] == result["metrics"]["accuracy"]
    lines = [json.loads(line) for line in (tmp_path / "run/zero_shot.jsonl").read_text().splitlines()]
    assert {line["prediction"] for line in lines} <= set(result["labels"])


def test_labels_are_not_scored_where_the_rows_have_none(tiny_checkpoint, tmp_path, capsys):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"input": f"goal {i}", "target": f"coach {i}"}) + "\n" for i in range(60)))
    assert run("lora_custom", tmp_path / "run", tiny_checkpoint, path, "--config.eval.answer=score") == 2
    assert "custom has no fixed set of labels; use eval.answer=generate" in capsys.readouterr().err


def test_what_metrics_make_of_the_references_is_said_before_training(tiny_checkpoint, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    def stop(*_):
        raise Stopped

    monkeypatch.setattr(loop, "_warn", stop)
    said = []
    monkeypatch.setattr(Display, "say", lambda self, line: said.append(line))
    path = tmp_path / "mine.jsonl"
    targets = ["今天天气" + sign + str(i) for i in range(30) for sign in ("", "-")]
    rows = [{"input": f"goal {i}", "target": target} for i, target in enumerate(targets)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(Stopped):
        run("lora_custom", tmp_path / "run", tiny_checkpoint, path, "--config.eval.metrics=bleu,exact_match")
    assert sum("BLEU uses the tokenizer 'zh'" in line for line in said) == 1
    assert sum("test targets are empty, or the same as another one" in line for line in said) == 1


def test_a_run_directory_holds_what_it_should(tiny_checkpoint, toy_data, tmp_path):
    workdir = tmp_path / "run"
    assert run("lora_agnews_low", workdir, tiny_checkpoint, toy_data, "--config.eval.zero_shot=True") == 0
    assert {path.name for path in workdir.iterdir()} - {".lock"} == {
        "config.json", "metrics.jsonl", "tensorboard", "checkpoint", "adapter", "predictions.jsonl", "zero_shot.jsonl",
        "splits.json", "result.json", "per_class.json", "worst_rows.jsonl", "learning_curve.png",
    }  # fmt: skip
    assert json.loads((workdir / "config.json").read_text())["train"]["learning_rate"]["warmup"] == 3e-3
    splits = json.loads((workdir / "splits.json").read_text())
    assert len(splits["rows"]["train"]) == 40 and not set(splits["rows"]["train"]) & set(splits["rows"]["validation"])
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "step" in r] == list(range(1, 7))
    assert [r["epoch"] for r in records if "validation_loss" in r] == [0, 1]
    result = result_of(workdir)
    assert set(result["zero_shot"]) == set(result["metrics"])
    assert result["validation_loss"] == min(r["validation_loss"] for r in records if "validation_loss" in r)
    assert any(workdir.glob("tensorboard/events.*"))


@pytest.mark.slow
def test_the_same_command_gives_the_same_adapter_and_another_seed_another(tiny_checkpoint, toy_data, tmp_path):
    for name, seed in [("a", 0), ("b", 0), ("c", 1)]:
        assert run("ia3_agnews_low", tmp_path / name, tiny_checkpoint, toy_data, f"--config.train.seed={seed}") == 0
    a, b, c = (adapter_of(tmp_path / name) for name in "abc")
    assert all(np.array_equal(a[leaf], b[leaf]) for leaf in a)
    assert any(not np.array_equal(a[leaf], c[leaf]) for leaf in a)
    rows = [json.loads((tmp_path / name / "splits.json").read_text())["rows"] for name in "ac"]
    assert rows[0] == rows[1]  # the seed of training does not move the splits


@pytest.mark.slow
def test_the_best_adapter_is_kept_not_the_last(deeper_checkpoint, toy_data, tmp_path):
    """The learning rate is so high that the loss rises: training stops early, and the best epoch's adapter is saved."""
    constant = [f"--config.train.learning_rate.{point}=2.0" for point in ("initial", "warmup", "annealing")]
    constant.append("--config.train.clip_grad_norm=1.0")
    arguments = ("bitfit_agnews_low", tmp_path / "run", deeper_checkpoint, toy_data, *constant)
    assert run(*arguments, "--config.train.max_epochs=9") == 0
    result = result_of(tmp_path / "run")
    losses = result["validation_losses"]
    assert result["epochs_run"] == len(losses) < 9
    assert losses[-1] >= losses[-2] == min(losses) == result["validation_loss"]
    assert result["best_epoch"] == len(losses) - 2

    # With a constant learning rate, a run that ends after the best epoch takes the same steps up to there.
    arguments = ("bitfit_agnews_low", tmp_path / "shorter", deeper_checkpoint, toy_data, *constant)
    assert run(*arguments, f"--config.train.max_epochs={result['best_epoch'] + 1}") == 0
    kept, last = adapter_of(tmp_path / "run"), adapter_of(tmp_path / "shorter")
    assert all(np.array_equal(kept[leaf], last[leaf]) for leaf in last)


@pytest.mark.slow
def test_a_finished_run_is_not_run_again_unless_told_to(tiny_checkpoint, toy_data, tmp_path, capsys):
    arguments = ("lora_agnews_low", tmp_path / "run", tiny_checkpoint, toy_data)
    assert run(*arguments) == 0
    before = result_of(tmp_path / "run")
    assert run(*arguments) == 0
    assert result_of(tmp_path / "run") == before
    assert run(*arguments, "--config.train.seed=5") == 2
    assert "holds a run of another config (train.seed: 0 -> 5)" in capsys.readouterr().err
    assert run(*arguments, "--overwrite", "--config.train.seed=5") == 0
    assert result_of(tmp_path / "run")["seed"] == 5


def test_a_custom_classification_from_jsonl(tiny_checkpoint, toy_jsonl, tmp_path):
    assert run("lora_custom", tmp_path / "run", tiny_checkpoint, toy_jsonl, "--config.data.max_train=60") == 0
    result = result_of(tmp_path / "run")
    assert result["task"] == "custom" and result["metric_name"] == "accuracy"
    assert (result["train_examples"], result["validation_examples"], result["test_examples"]) == (60, 9, 9)
    task = TaskOfRun.read(tmp_path / "run/adapter")
    assert task is not None and task.base == model_fingerprint(tiny_checkpoint)


@pytest.mark.slow
def test_a_run_can_start_from_an_earlier_adapter(deeper_checkpoint, toy_data, tmp_path, capsys):
    assert run("lora_agnews_low", tmp_path / "first", deeper_checkpoint, toy_data) == 0
    start = f"--config.method.from_adapter={tmp_path / 'first'}"  # a run, or the adapter in it
    small_steps = [f"--config.train.learning_rate.{point}=1e-9" for point in ("initial", "warmup", "annealing")]
    assert run("lora_agnews_low", tmp_path / "second", deeper_checkpoint, toy_data, start, *small_steps) == 0
    first, second = adapter_of(tmp_path / "first"), adapter_of(tmp_path / "second")
    for leaf in first:
        np.testing.assert_allclose(second[leaf], first[leaf], atol=1e-6)
    assert run("ia3_agnews_low", tmp_path / "third", deeper_checkpoint, toy_data, start) == 2
    assert "make them agree" in capsys.readouterr().err
    shutil.copytree(tmp_path / "first", tmp_path / "moved")
    described = (deeper_checkpoint / "tokenizer.json").read_text()
    swapped = described.replace('"<pad>"', '"<x>"').replace('"<unk>"', '"<pad>"').replace('"<x>"', '"<unk>"')
    (tmp_path / "moved/adapter/tokenizer.json").write_text(swapped)
    moved = f"--config.method.from_adapter={tmp_path / 'moved'}"
    assert run("lora_agnews_low", tmp_path / "third", deeper_checkpoint, toy_data, moved) == 2
    assert "the adapter learned other ids" in capsys.readouterr().err
    for elsewhere in ("method.targets=q", "method.stacks=encoder", "method.layers=0", "ablation.name=early"):
        arguments = ("lora_agnews_low", tmp_path / "third", deeper_checkpoint, toy_data, start, f"--config.{elsewhere}")
        assert run(*arguments) == 2
        assert "an adapter keeps its sites" in capsys.readouterr().err
    same = "--config.method.targets=q,k,v,o"
    assert run("lora_agnews_low", tmp_path / "third", deeper_checkpoint, toy_data, start, same, *small_steps) == 0
    other = shutil.copytree(deeper_checkpoint, tmp_path / "other")
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    for base, says in ((deeper_checkpoint, False), (other, True)):
        aloud = (start, *small_steps, "--quiet=false")
        assert run("lora_agnews_low", tmp_path / f"on {base.name}", base, toy_data, *aloud) == 0
        out = " ".join("".join(capsys.readouterr()).split())
        assert ("method.from_adapter was tuned on a base of other files" in out) == says
        assert "test rows have a text that the run of method.from_adapter" not in out and "is not known" not in out


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_with_the_rows(deeper_checkpoint, toy_data, tmp_path, capsys):
    absurd = [f"--config.train.learning_rate.{point}=1e30" for point in ("initial", "warmup", "annealing")]
    assert run("full_agnews_low", tmp_path / "run", deeper_checkpoint, toy_data, *absurd) == 1
    line = capsys.readouterr().err
    assert "is nan at step" in line or "is inf at step" in line
    assert "rows train/" in line and "lower train.learning_rate.warmup" in line
    assert not (tmp_path / "run/result.json").exists()


@contextlib.contextmanager
def signal_after(monkeypatch, steps: int, number: int):
    """Sends this process a signal after some steps."""
    made = 0
    step = MetricsLog.step

    def counted(self, **values):
        nonlocal made
        made += 1
        step(self, **values)
        if made == steps:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "step", counted)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_and_the_run_goes_on(number, tiny_checkpoint, toy_data, tmp_path, monkeypatch, capsys):
    assert threading.current_thread() is threading.main_thread()
    arguments = ("lora_agnews_low", tmp_path / "stopped", tiny_checkpoint, toy_data)
    with signal_after(monkeypatch, 2, number):
        assert run(*arguments) == 1
    message = capsys.readouterr().err
    assert f"stopped by {signal.Signals(number).name} after step 3" in message and "the same command goes on" in message
    assert not (tmp_path / "stopped/result.json").exists()
    assert run(*arguments) == 0
    assert run("lora_agnews_low", tmp_path / "unbroken", tiny_checkpoint, toy_data) == 0
    stopped, unbroken = adapter_of(tmp_path / "stopped"), adapter_of(tmp_path / "unbroken")
    assert all(np.array_equal(stopped[leaf], unbroken[leaf]) for leaf in unbroken)
    steps = [json.loads(line).get("step") for line in (tmp_path / "stopped/metrics.jsonl").read_text().splitlines()]
    assert [step for step in steps if step] == list(range(1, 7))


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(tiny_checkpoint, toy_data, tmp_path, monkeypatch):
    arguments = (
        "lora_agnews_low",
        tmp_path / "run",
        tiny_checkpoint,
        toy_data,
        "--config.train.checkpoint_every_seconds=0",
    )
    with signal_after(monkeypatch, 5, signal.SIGTERM):
        assert run(*arguments) == 1
    steps = sorted((tmp_path / "run/checkpoint").iterdir(), key=lambda path: int(path.name))
    assert len(steps) == 2
    for file in steps[-1].rglob("d/*"):
        file.write_bytes(file.read_bytes()[:7])
    assert run(*arguments) == 0
    assert run("lora_agnews_low", tmp_path / "unbroken", tiny_checkpoint, toy_data) == 0
    assert (tmp_path / "run/damaged" / steps[-1].name).is_dir()  # moved, not deleted
    mended, unbroken = adapter_of(tmp_path / "run"), adapter_of(tmp_path / "unbroken")
    assert all(np.array_equal(mended[leaf], unbroken[leaf]) for leaf in unbroken)


@pytest.mark.slow
def test_when_no_checkpoint_can_be_read_the_way_out_is_named(tiny_checkpoint, toy_data, tmp_path, monkeypatch, capsys):
    arguments = ("lora_agnews_low", tmp_path / "run", tiny_checkpoint, toy_data)
    with signal_after(monkeypatch, 1, signal.SIGTERM):
        assert run(*arguments) == 1
    for file in (tmp_path / "run/checkpoint").rglob("d/*"):
        file.write_bytes(b"")
    capsys.readouterr()
    for _ in range(2):  # the next start does not take it for a new run
        assert run(*arguments) == 1
        assert "can be read; start again with --overwrite" in capsys.readouterr().err
    assert any((tmp_path / "run/checkpoint").rglob("d/*"))
    assert run(*arguments, "--overwrite") == 0


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_before(
    tiny_checkpoint, toy_data, tmp_path, monkeypatch, capsys
):
    arguments = (
        "lora_agnews_low",
        tmp_path / "run",
        tiny_checkpoint,
        toy_data,
        "--config.train.checkpoint_every_seconds=0",
    )
    saves = 0
    manager_save = Checkpoints.save

    def full(self, *snapshot):
        nonlocal saves
        saves += 1
        if saves == 3:
            monkeypatch.setattr(
                self._manager, "save", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device"))
            )
        manager_save(self, *snapshot)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", full)
        assert run(*arguments) == 1
    assert "cannot be written" in (line := capsys.readouterr().err) and "(No space left); free some space" in line
    assert run(*arguments) == 0
    assert result_of(tmp_path / "run")["status"] == "done"


def test_two_processes_do_not_share_a_directory(tiny_checkpoint, toy_data, tmp_path, capsys):
    import fcntl

    (tmp_path / "run").mkdir()
    with (tmp_path / "run/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run("lora_agnews_low", tmp_path / "run", tiny_checkpoint, toy_data) == 2
    assert "another process is at work" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_ended_before_its_first_checkpoint_does_not_hold_its_directory(
    tiny_checkpoint, toy_data, tmp_path, capsys
):
    assert run("lora_agnews_low", tmp_path / "run", tmp_path, toy_data) == 2
    assert "holds no config.json" in capsys.readouterr().err
    assert run("lora_agnews_low", tmp_path / "run", tiny_checkpoint, toy_data) == 0


@pytest.mark.slow
def test_bfloat16_rematerialised_blocks_beams_and_dropout(tiny_checkpoint, toy_data, tmp_path):
    """Options of the computation: the run ends, its adapter is float32 and its losses are near those in float32."""
    assert run("lora_agnews_low", tmp_path / "plain", tiny_checkpoint, toy_data) == 0
    options = ("--config.model.dtype=bfloat16", "--config.model.remat=block", "--config.eval.num_beams=3")
    assert run("lora_agnews_low", tmp_path / "half", tiny_checkpoint, toy_data, *options) == 0
    assert {leaf.dtype for leaf in adapter_of(tmp_path / "half").values()} == {np.dtype("float32")}
    plain, half = result_of(tmp_path / "plain"), result_of(tmp_path / "half")
    np.testing.assert_allclose(half["validation_losses"], plain["validation_losses"], rtol=0.02)
    assert run("lora_agnews_low", tmp_path / "drop", tiny_checkpoint, toy_data, "--config.model.dropout_rate=0.2") == 0
    assert result_of(tmp_path / "drop")["validation_losses"] != plain["validation_losses"]


@pytest.mark.slow
def test_after_full_tuning_the_adapter_is_a_model_to_go_on_from(tiny_checkpoint, toy_data, tmp_path, capsys):
    assert run("full_agnews_low", tmp_path / "first", tiny_checkpoint, toy_data) == 0
    task = TaskOfRun.read(tmp_path / "first/adapter")
    assert task is not None and task.base is None  # a whole model has no base
    tuned = tmp_path / "first/adapter"
    assert run("lora_agnews_low", tmp_path / "second", tuned, toy_data, "--config.eval.zero_shot=True") == 0
    first, second = result_of(tmp_path / "first"), result_of(tmp_path / "second")
    assert second["zero_shot"] == first["metrics"]  # the tuned model answers as it did
    start = f"--config.method.from_adapter={tuned}"
    assert run("full_agnews_low", tmp_path / "third", tiny_checkpoint, toy_data, start) == 2
    assert "give it as model.name instead" in capsys.readouterr().err
