"""A pretraining run from its command: the files it writes, and that stopping it changes nothing."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from jpeft.cli import main
from jpeft.errors import Stopped, UserError
from jpeft.model import t5_weights
from jpeft.pretrain import config as pretrain_config
from jpeft.pretrain import mixture, setup
from jpeft.pretrain.config import Pretraining
from jpeft.pretrain.loop import pretrain, unigram_entropy
from jpeft.pretrain.setup import build_network, load_tokenizer, mixture_of_run, network_config
from jpeft.run.display import Display
from jpeft.run.metrics_log import MetricsLog

QUIET = Display(quiet=True)


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    """Makes blocks of a few batches, so that six steps use several blocks."""
    monkeypatch.setattr(mixture, "_EXAMPLES_IN_BLOCK", 40)


def records(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_a_model_that_opens_and_a_result(tiny_pretraining, tmp_path):
    tiny_pretraining.tokenizer.path = None
    tiny_pretraining.tokenizer.size = 400
    tiny_pretraining.tokenizer.megabytes = 0.1
    tiny_pretraining.train.steps = 40
    tiny_pretraining.train.learning_rate = 2e-2
    result = pretrain(Pretraining.from_config(tiny_pretraining), tmp_path / "run", display=QUIET)
    assert result == json.loads((tmp_path / "run/result.json").read_text())
    assert result["steps"] == 40 and result["status"] == "done"
    model = t5_weights.load(tmp_path / "run/model")
    assert model.config.dropout_rate == 0.1 and not model.config.tie_word_embeddings
    assert (tmp_path / "run/model/tokenizer.json").is_file()
    losses = [record["loss"] for record in records(tmp_path / "run") if "loss" in record]
    assert losses[-1] < losses[0] - 0.5
    assert result["validation_loss"]["text"] < losses[0]
    assert 0.5 < result["fill"]["input"] <= 1
    assert result["input_tokens"] > 40 * 4 * 64 * 0.5
    samples = [json.loads(line) for line in (tmp_path / "run/samples/step_0000039.jsonl").read_text().splitlines()]
    assert 2 <= len(samples) <= 2 * 2 and "<extra_id_0>" in samples[0]["input"]
    assert samples[-1]["input"].startswith("Last")


def test_a_run_without_held_out_loss_says_why(tiny_pretraining, one_file, tmp_path, capsys):
    """Of 60 rows, the one drawn is among the 50 that are too short."""
    write_rows(one_file, [*["a"] * 10, *RUSSIAN[:10], *["b"] * 40])
    pretrain(Pretraining.from_config(tiny_pretraining), tmp_path / "run")
    said = " ".join(capsys.readouterr().err.split())
    assert "step 6: no held-out loss: 1 row drawn for it is left out as too short" in said


def test_the_entropy_is_that_of_token_frequencies():
    batch = {
        "decoder_target_tokens": np.array([[5, 5, 6, 7, 0, 0]]),
        "decoder_loss_weights": np.array([[1.0, 1, 1, 1, 0, 0]]),
    }
    assert unigram_entropy([batch]) == pytest.approx(1.5 * np.log(2))


def stopped_after(steps: int, monkeypatch) -> None:
    """Sends this process SIGTERM when step `steps` is recorded, which is while the next step is computed."""
    step = MetricsLog.step

    def counted(self, *, step: int, **values):
        original(self, step=step, **values)
        if step == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    original = step
    monkeypatch.setattr(MetricsLog, "step", counted)


@pytest.mark.parametrize("steps", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_a_stopped_run_goes_on_to_the_same_weights(tiny_pretraining, tmp_path, monkeypatch, steps):
    corpus = tmp_path / "corpus"
    shutil.copytree(tiny_pretraining.data.path, corpus)
    tiny_pretraining.data.path = str(corpus)
    run = Pretraining.from_config(tiny_pretraining)
    whole = pretrain(run, tmp_path / "whole", display=QUIET)
    with monkeypatch.context() as patch:
        stopped_after(steps, patch)
        with pytest.raises(Stopped, match=f"stopped by SIGTERM after step {steps + 1}"):
            pretrain(run, tmp_path / "broken", display=QUIET)
    assert not (tmp_path / "broken/result.json").exists()
    news = (corpus / "news.jsonl").read_text()
    (corpus / "news.jsonl").write_text(news.replace("the", "no", 1))
    with pytest.raises(UserError, match=r"the corpus of data\.path differs from the one that it was run on"):
        pretrain(run, tmp_path / "broken", display=QUIET)
    (corpus / "news.jsonl").write_text(news)
    resumed = pretrain(run, tmp_path / "broken", display=QUIET)
    assert same_files(tmp_path / "whole/model/model.safetensors", tmp_path / "broken/model/model.safetensors")
    for key in ("steps", "input_tokens", "target_tokens", "validation_loss"):
        assert resumed[key] == whole[key]
    assert records(tmp_path / "broken") == records(tmp_path / "whole")


def vocabulary_of(values, workdir: Path) -> tuple[bytes, list[str]]:
    """The `tokenizer.json` that a run in `workdir` uses, and what it says of it."""
    lines = []
    load_tokenizer(Pretraining.from_config(values), workdir, lines.append)
    return (workdir / "tokenizer/tokenizer.json").read_bytes(), lines


@pytest.fixture
def one_file(tiny_pretraining, tmp_path) -> Path:
    """The file of the one source of `tiny_pretraining`, which makes its own vocabulary."""
    (directory := tmp_path / "texts").mkdir()
    values = {"files": "rows.jsonl", "kind": "text", "rate": 1.0}
    tiny_pretraining.data.sources = {"rows": values}
    tiny_pretraining.data.path = str(directory)
    tiny_pretraining.tokenizer.path = None
    write_rows(file := directory / "rows.jsonl", ["the old river and the young ship"] * 30)
    return file


def write_rows(file: Path, texts: list[str]) -> None:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


RUSSIAN = [f"Мы читаем новую книгу номер {day} у старой реки" for day in range(300)]


def test_another_corpus_makes_the_vocabulary_again(tiny_pretraining, one_file, tmp_path):
    """The first corpus, which can train nothing, leaves its vocabulary in the run's directory."""
    run = Pretraining.from_config(tiny_pretraining)
    with pytest.raises(UserError, match="has nothing to train on"):
        pretrain(run, tmp_path / "run", display=QUIET)
    english = (tmp_path / "run/tokenizer/tokenizer.json").read_bytes()
    assert vocabulary_of(tiny_pretraining, tmp_path / "run") == (english, [])  # once for a corpus
    write_rows(one_file, RUSSIAN)
    pretrain(run, tmp_path / "run", display=QUIET)
    russian, _ = vocabulary_of(tiny_pretraining, tmp_path / "fresh")
    assert (tmp_path / "run/tokenizer/tokenizer.json").read_bytes() == russian != english


@pytest.mark.parametrize("record", [True, False])
def test_a_vocabulary_is_kept_once_a_checkpoint_depends_on_it(record, tiny_pretraining, one_file, tmp_path):
    """Also one of an earlier version, which recorded no corpus; the run's own check refuses another corpus."""
    english, _ = vocabulary_of(tiny_pretraining, tmp_path)
    if not record:
        (tmp_path / "tokenizer/corpus.fingerprint").unlink()
    (tmp_path / "checkpoint/3").mkdir(parents=True)
    write_rows(one_file, RUSSIAN)
    assert vocabulary_of(tiny_pretraining, tmp_path) == (english, [])


def test_a_vocabulary_whose_making_was_interrupted_is_made_again(tiny_pretraining, one_file, tmp_path, monkeypatch):
    """Killed between the new vocabulary and its record; then the first corpus comes back."""
    english, _ = vocabulary_of(tiny_pretraining, tmp_path)
    first = one_file.read_text()
    write_rows(one_file, RUSSIAN)
    with monkeypatch.context() as patch:
        patch.setattr(setup, "write_whole", killed)
        with pytest.raises(KeyboardInterrupt):
            vocabulary_of(tiny_pretraining, tmp_path)
    assert (tmp_path / "tokenizer/tokenizer.json").read_bytes() != english
    one_file.write_text(first)
    assert vocabulary_of(tiny_pretraining, tmp_path)[0] == english


def killed(*_):
    raise KeyboardInterrupt


@pytest.mark.slow  # compiling for four devices takes seconds a program
@pytest.mark.parametrize("mesh", [{"data": 2, "model": 2}, {"fsdp": 4}])
def test_three_steps_on_four_devices_agree_with_one(mesh, tiny_pretraining, tmp_path, monkeypatch):
    """Also for a run that was stopped on one device and resumed on four."""
    tiny_pretraining.train.steps = 3
    tiny_pretraining.model.num_heads = 4
    run = Pretraining.from_config(tiny_pretraining)
    one = pretrain(run, tmp_path / "one", display=QUIET)
    tiny_pretraining.mesh.update(mesh)
    spread = Pretraining.from_config(tiny_pretraining)
    with monkeypatch.context() as patch:
        stopped_after(1, patch)
        with pytest.raises(Stopped):
            pretrain(run, tmp_path / "four", display=QUIET)
    four = pretrain(spread, tmp_path / "four", display=QUIET)
    assert four["device_count"] == 4 and four["mesh"] == {"data": 1, "fsdp": 1, "model": 1, **mesh}
    assert {key: four[key] for key in ("steps", "input_tokens", "fill")} == {
        key: one[key] for key in ("steps", "input_tokens", "fill")
    }
    losses, of_one = ([r["loss"] for r in records(tmp_path / name) if "loss" in r] for name in ("four", "one"))
    np.testing.assert_allclose(losses, of_one, atol=1e-5)
    for kind, loss in one["validation_loss"].items():
        assert abs(four["validation_loss"][kind] - loss) < 1e-5
    samples = [(tmp_path / name / "samples/step_0000003.jsonl").read_text() for name in ("one", "four")]
    assert samples[0] == samples[1]


def same_files(a: Path, b: Path) -> bool:
    return a.read_bytes() == b.read_bytes()


@pytest.mark.slow
def test_adafactor_and_random_embeddings_train_too(tiny_pretraining, tmp_path):
    tiny_pretraining.train.optimizer = "adafactor"
    tiny_pretraining.model.embeddings = "random"
    result = pretrain(Pretraining.from_config(tiny_pretraining), tmp_path / "run", display=QUIET)
    assert np.isfinite(result["validation_loss"]["text"])


@pytest.mark.slow
def test_a_model_can_be_trained_further(tiny_pretraining, tmp_path):
    pretrain(Pretraining.from_config(tiny_pretraining), tmp_path / "first", display=QUIET)
    tiny_pretraining.model.start = str(tmp_path / "first/model")
    tiny_pretraining.tokenizer.path = None
    tiny_pretraining.train.steps = 1
    tiny_pretraining.train.learning_rate = 1e-30
    tiny_pretraining.model.stored_dtype = "float32"
    pretrain(Pretraining.from_config(tiny_pretraining), tmp_path / "second", display=QUIET)
    first, second = (load_file(tmp_path / name / "model/model.safetensors") for name in ("first", "second"))
    for name, value in first.items():
        np.testing.assert_array_equal(np.asarray(value, np.float32), second[name])
    tiny_pretraining.model.d_model = 48
    run, lines = Pretraining.from_config(tiny_pretraining), []
    tokenizer = load_tokenizer(run, tmp_path, lines.append)
    config = network_config(run, tokenizer)
    build_network(run, config, mixture_of_run(run, tokenizer, config, lines.append), lines.append)
    assert "brings its own vocabulary and sizes (d_model 16, d_kv 8, d_ff 16, num_heads 2, " in lines[-1]
    assert "; not used: model.d_model, " in lines[-1]  # a size that is given


def test_a_model_in_few_bits_is_no_start(tiny_pretraining, tiny_checkpoint, tmp_path):
    main(["quantize", str(tiny_checkpoint), "--out", str(tmp_path / "bits"), "--quantization", "int8", "--quiet"])
    tiny_pretraining.model.start = str(tmp_path / "bits")
    tiny_pretraining.tokenizer.path = None
    run = Pretraining.from_config(tiny_pretraining)
    with pytest.raises(UserError, match="stored as int8: quantized weights cannot be trained; name the model"):
        network_config(run, load_tokenizer(run, tmp_path, lambda line: None))


def test_a_warm_up_that_the_run_does_not_live_to_see_the_end_of_is_said(tiny_pretraining, tmp_path, capsys):
    tiny_pretraining.train.steps, tiny_pretraining.train.warmup_steps = 3, 8
    pretrain(Pretraining.from_config(tiny_pretraining), tmp_path / "run", display=Display())
    assert "train.warmup_steps=8 of 3 steps: the learning rate ends at 25% of" in capsys.readouterr().err


def test_every_number_has_bounds():
    values = Pretraining().to_dict()
    numbers = {
        f"{section}.{key}"
        for section, keys in values.items()
        for key, value in keys.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    assert set(pretrain_config._BOUNDS) == numbers | {"tokenizer.size"}


def test_a_new_decoder_without_heads_is_one_line(tiny_pretraining):
    tiny_pretraining.model.update({"family": "llama", "num_heads": 0})
    with pytest.raises(UserError, match=r"model\.num_heads is 0; expected at least 1"):
        Pretraining.from_config(tiny_pretraining)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.path", None, "data.path is not given"),
        ("train.steps", 0, "train.steps is 0; expected at least 1"),
        ("train.optimizer", "sgd", "train.optimizer is 'sgd'; expected one of adamw, adafactor"),
        ("data.noise_density", 1.0, "data.noise_density is 1.0; expected a share below 1"),
        ("model.dropout_rate", 1.0, "model.dropout_rate is 1.0; expected at least 0 and less than 1"),
        ("model.embeddings", "word2vec", "expected one of random, cooccurrence"),
        ("data.sources.books.kind", "prose", "data.sources.books.kind is 'prose'"),
        ("data.sources.books.rate", 0.0, "data.sources.books.rate is 0.0"),
        ("data.sources.books.rate", 1e308, "data.sources.books.rate is 1e+308; expected more than 0, 1e+100 at most"),
        ("mesh.data", 3, "train.batch_size=4 rows cannot be shared out evenly over mesh.data=3"),
        ("mesh.model", 0, "mesh.model is 0; expected at least 1"),
        ("train.learning_rate", 0.0, "train.learning_rate is 0.0; expected more than 0"),
        ("train.clip_grad_norm", 1e10, "train.clip_grad_norm is 10000000000.0; expected at most 1,000,000,000"),
        ("model.num_layers", 2000, "model.num_layers is 2000; expected at most 1,000"),
    ],
)
def test_wrong_values_are_one_line(tiny_pretraining, key, value, message):
    section, _, rest = key.partition(".")
    values = tiny_pretraining.to_dict()
    place = values[section]
    for part in rest.split(".")[:-1]:
        place = place[part]
    place[rest.split(".")[-1]] = value
    with pytest.raises(UserError, match=re.escape(message)):
        Pretraining.from_config(values)


def test_the_command(corpus, tmp_path, capsys):
    """The packaged config on another corpus, from the command line: overrides work, and the next command is printed."""
    config = Path(__file__).parents[2] / "configs/pretrain/mini.py"
    assert main(["pretrain", f"--config={config}", f"--config.data.path={corpus}", "--quiet"]) == 2
    assert "data.sources.books: no file text_books-*.jsonl.xz" in capsys.readouterr().err
    assert main(["pretrain", f"--config={config}", "--config.train.stepps=3"]) == 2
    assert "did you mean config.train.steps?" in capsys.readouterr().err
    assert main(["pretrain", "--help"]) == 0
    assert "--config.train.learning_rate" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_weights(tiny_pretraining, corpus, tmp_path):
    """SIGKILL at five moments, with a checkpoint at every step: the model equals the unbroken run's."""
    tiny_pretraining.train.steps = 30
    tiny_pretraining.log.checkpoint_every_seconds = 0.0
    (tmp_path / "config.json").write_text(json.dumps(tiny_pretraining.to_dict()))
    program = (
        "import json, sys; from pathlib import Path; from jpeft.pretrain.config import Pretraining; "
        "from jpeft.pretrain.loop import pretrain; "
        "pretrain(Pretraining.from_config(json.loads(Path(sys.argv[1]).read_text())), Path(sys.argv[2]))"
    )

    def start(workdir: Path) -> subprocess.Popen:
        command = [sys.executable, "-c", program, str(tmp_path / "config.json"), str(workdir)]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)

    assert start(tmp_path / "whole").wait() == 0
    for steps in (0, 2, 9, 16, 28):
        process = start(tmp_path / "killed")
        log = tmp_path / "killed/metrics.jsonl"
        while process.poll() is None and not (log.is_file() and log.read_text().count('"step"') >= steps):
            time.sleep(0.02)
        assert process.poll() is None, "it ended before it could be killed"
        process.kill()
        process.wait()
    assert start(tmp_path / "killed").wait() == 0
    assert same_files(tmp_path / "whole/model/model.safetensors", tmp_path / "killed/model/model.safetensors")
    assert records(tmp_path / "killed") == records(tmp_path / "whole")
