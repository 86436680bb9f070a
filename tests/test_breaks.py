"""Breaks of a run's wiring that once passed the whole default suite: each, made in a copy, is noticed by its tests.

A break is a line of the code and what it is changed to. It has to be found as it stands here: who changes that line
changes it here too. `pytest -m slow tests/test_breaks.py` makes them one at a time.
"""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Break:
    """A change that makes the code wrong.

    Attributes:
      file: below `jpeft/`.
      line, becomes: what stands there, once, and what it is changed to.
      noticed_by: tests of the default suite, at least one of which has to fail.
    """

    file: str
    line: str
    becomes: str
    noticed_by: str


_KEYS = "tests/train/test_config_keys.py -k {}"
BREAKS = {
    "dropout masks are the same at each step": Break(
        "train/step.py",
        "jax.random.fold_in(jax.random.fold_in(key, step), micro)",
        "jax.random.fold_in(key, micro)",
        "tests/train/test_step.py",
    ),
    "every epoch goes in the order of the first": Break(
        "train/stream.py",
        "                epoch=epoch,\n                mix",
        "                epoch=0,\n                mix",
        "tests/train/test_wiring.py -k order",
    ),
    "files are not mixed": Break("train/stream.py", "mix=tokens.mix", "mix=None", _KEYS.format("mix")),
    "a file begins again with each epoch": Break(
        "data/mixture.py",
        "np.arange(epoch * quota, (epoch + 1) * quota)",
        "np.arange(quota)",
        "tests/data/test_mixture.py",
    ),
    "rows do not weigh": Break(
        "model/t5_family.py",
        "1.0 if row_weights is None else row_weights[i]",
        "1.0",
        "tests/data/test_mixture.py tests/train/test_weighted_loss.py",
    ),
    "label smoothing is ignored": Break(
        "train/assembly.py",
        "label_smoothing=run.train.label_smoothing,",
        "label_smoothing=0.0,",
        _KEYS.format("smoothing"),
    ),
    "metrics that were asked for are ignored": Break(
        "eval/metrics/__init__.py",
        "names = [task.metric, *task.metrics]",
        "names = [task.metric]",
        "tests/eval/test_metrics_by_name.py",
    ),
    "a file gets its code run": Break(
        "predict/evaluation.py",
        "            if own.is_own(name):\n                why",
        "            if own.is_own(name) and not own.load(name):\n                why",
        "tests/predict/test_evaluate.py -k metrics",
    ),
    "a config that is read imports code": Break(
        "eval/metrics/__init__.py",
        "            own.check_name(part)\n        name",
        "            own.load(part)\n        name",
        "tests/eval/test_metrics_by_name.py -k naming",
    ),
    "the last adapter is tested, not the best": Break(
        "train/final_test.py",
        "    best = assembly.layout.place(trainer.best)\n    with",
        "    best = trainer.state.adapter\n    with",
        "tests/train/test_wiring.py -k best",
    ),
    "weight decay is ignored": Break(
        "train/assembly.py", "weight_decay=run.train.weight_decay", "weight_decay=0.0", _KEYS.format("weight_decay")
    ),
    "clipping is ignored": Break(
        "train/assembly.py",
        "clip_grad_norm=run.train.clip_grad_norm",
        "clip_grad_norm=None",
        _KEYS.format("clip_grad"),
    ),
    "beams are ignored": Break(
        "train/assembly.py", '"num_beams": run.eval.num_beams', '"num_beams": 1', _KEYS.format("num_beams")
    ),
    "the share of warm-up is ignored": Break(
        "train/assembly.py", "warmup_fraction=train.warmup_fraction", "warmup_fraction=0.1", _KEYS.format("warmup")
    ),
    "the monitor's direction is ignored": Break(
        "train/monitor.py",
        "value > values[best] if self.higher_is_better else value < values[best]",
        "value < values[best]",
        "tests/train/test_wiring.py -k monitored",
    ),
    "what was evaluated before a stop is taken for what is to be": Break(
        "train/trainer.py",
        "self.progress.position, self.progress.evaluated = step.position, False",
        "self.progress.position, self.progress.evaluated = step.position, True",
        "tests/train/test_trainer.py -k stopped",
    ),
    "nothing is rematerialised": Break(
        "train/setup.py", "remat=run.model.remat)", 'remat="none")', _KEYS.format("remat")
    ),
    "the config's dropout rate is ignored": Break(
        "train/setup.py", "dropout_rate=run.model.dropout_rate", "dropout_rate=None", _KEYS.format("dropout_rate")
    ),
    "attention's weights are not dropped": Break(
        "model/t5.py",
        "bias, dropout_rate=self.dropout_rate, key=key)",
        "bias)",
        "tests/model/test_t5.py -k wherever",
    ),
}


def test_every_break_can_be_made():
    for name, change in BREAKS.items():
        assert (ROOT / "jpeft" / change.file).read_text(encoding="utf-8").count(change.line) == 1, name


@pytest.mark.slow
@pytest.mark.parametrize("name", BREAKS)
def test_a_break_is_noticed(name, tmp_path):
    change = BREAKS[name]
    for part in ("jpeft", "tests", "configs", "benchmarks", "examples"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "main.py"):
        shutil.copy(ROOT / file, tmp_path / file)
    path = tmp_path / "jpeft" / change.file
    path.write_text(path.read_text(encoding="utf-8").replace(change.line, change.becomes), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}  # before an installed jpeft
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *change.noticed_by.split()]
    told = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert told.returncode == 1 and "1 failed" in told.stdout, told.stdout[-2000:] + told.stderr[-2000:]
