"""Compare one whole cell of the benchmark: jpeft against Seq2SeqTrainer + PEFT used in the common way.

  python -m benchmarks.cell --data DATA --task agnews
  python -m benchmarks.cell --data DATA --task samsum --train 300 --validation 100 --test 100
  python -m benchmarks.cell --data DATA --size small --train 320 --validation 160 --test 160

Both tune `mini` (or, with `--size small`, random weights of FLAN-T5-small's sizes, whose answers mean nothing) by LoRA
with rank 8 on q and v, on the same rows, 16 per step, for the same number of epochs, with the Trainer's schedule
(linear warmup from 0 and decay to 0) and gradient clipping. They validate after each epoch, keep the best adapter and
answer the test rows by greedy decoding. Each repeat has its own seed for LoRA's initialisation and the order of rows.
Times are those of whole processes, with imports and compilation: jpeft's first with an empty compilation cache, then
with a warm one.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.work import LORA_RANK, SIZES, write_checkpoint
from jpeft.config import DataConfig
from jpeft.data.prepare import Data, DataRequest, choose_task, prepare
from jpeft.data.sources import require_path
from jpeft.data.tasks import Task
from jpeft.errors import UserError
from jpeft.eval.metrics import judge
from jpeft.model.source import resolve
from jpeft.model.tokenizer import Tokenizer

LEARNING_RATE = 1e-2
BATCH_SIZE = 16  # rows of a step, which jpeft takes in micro-batches, as is recommended for mini
MICRO_BATCH_SIZE = 4
EVAL_BATCH_SIZE = 32


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="directory of the datasets (default: generated rows)")
    parser.add_argument("--task", default="agnews", choices=("agnews", "cola", "e2e", "samsum"))
    parser.add_argument("--size", default="mini", choices=("mini", "small"))
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--validation", type=int, default=400)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--max-input-length", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args(argv)
    try:
        require_path(arguments.data)
    except UserError as error:
        parser.error(str(error))

    seconds: dict[str, list[float]] = {"jpeft, cold": [], "jpeft, warm": [], "Seq2SeqTrainer + PEFT": []}
    metrics: dict[str, list[float]] = {name: [] for name in seconds}
    with tempfile.TemporaryDirectory() as directory:
        model = _model(arguments.size, Path(directory))
        data = _data(arguments, model)
        for seed in range(arguments.repeats):
            place = Path(directory) / str(seed)
            for name in seconds:
                started = time.perf_counter()
                if name.startswith("jpeft"):
                    metric = _ours(arguments, model, place / name.replace(", ", "_"), seed=seed, cache=place / "cache")
                else:
                    metric = _theirs(arguments, model, data, place / "trainer", seed=seed)
                metrics[name].append(metric)
                seconds[name].append(time.perf_counter() - started)
    figures = {"arguments": {k: str(v) for k, v in vars(arguments).items()}, "seconds": seconds, "metric": metrics}
    _show(figures, arguments.size, data.task)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def _model(size: str, directory: Path) -> Path:
    """The checkpoint that both sides load: `mini`, or random weights with its tokenizer."""
    mini = resolve("mini", report=print)
    if size == "mini":
        return mini
    directory = directory / size
    write_checkpoint(SIZES[size], directory, dropout_rate=0.0)
    for file in mini.glob("*token*"):
        shutil.copy(file, directory)
    return directory


def _data(arguments: argparse.Namespace, model: Path) -> Data:
    """The rows that jpeft draws for the cell; the other side gets the same."""
    defaults = DataConfig()
    request = DataRequest(
        source="local" if arguments.data else "sample",
        path=arguments.data,
        split_seed=defaults.split_seed,
        max_train=arguments.train,
        max_validation=arguments.validation,
        max_test=arguments.test,
        batch_size=MICRO_BATCH_SIZE,
        accumulation_steps=BATCH_SIZE // MICRO_BATCH_SIZE,
        eval_batch_size=EVAL_BATCH_SIZE,
        max_input_length=arguments.max_input_length,
    )
    tokenizer = Tokenizer.load(model, vocab_size=SIZES[arguments.size].vocab_size)
    return prepare(choose_task(arguments.task), tokenizer, request)


def _ours(arguments: argparse.Namespace, model: Path, workdir: Path, *, seed: int, cache: Path) -> float:
    source = f"--config.data.path={arguments.data}" if arguments.data else "--config.data.source=sample"
    command = [sys.executable, "main.py", f"--config=configs/mini.py:lora_{arguments.task}_medium", source]
    settings = {
        "model.name": model,
        "method.reading": "official",
        "method.rank": LORA_RANK,
        "method.alpha": 2.0 * LORA_RANK,
        "data.max_train": arguments.train,
        "data.max_validation": arguments.validation,
        "data.max_test": arguments.test,
        "data.max_input_length": arguments.max_input_length,
        "model.dropout_rate": 0.0,
        "train.batch_size": MICRO_BATCH_SIZE,
        "train.accumulation_steps": BATCH_SIZE // MICRO_BATCH_SIZE,
        "eval.batch_size": EVAL_BATCH_SIZE,
        "train.max_epochs": arguments.epochs,
        "train.patience": arguments.epochs,
        "train.seed": seed,
        "train.learning_rate.initial": 0.0,
        "train.learning_rate.warmup": LEARNING_RATE,
        "train.learning_rate.annealing": 0.0,
        "train.clip_grad_norm": 1.0,
        "eval.zero_shot": False,
    }
    command += [f"--config.{key}={value}" for key, value in settings.items()]
    _run([*command, f"--workdir={workdir}", "--quiet"], JPEFT_CACHE=str(cache))
    return json.loads((workdir / "result.json").read_text())["metric"]


def _theirs(arguments: argparse.Namespace, model: Path, data: Data, workdir: Path, *, seed: int) -> float:
    workdir.mkdir(parents=True)
    cell = {
        "model": str(model),
        "rows": {name: [[row.input, row.target] for row in rows] for name, rows in data.examples.items()},
        "seed": seed,
        "epochs": arguments.epochs,
        "learning_rate": LEARNING_RATE,
        "batch_size": BATCH_SIZE,
        "eval_batch_size": EVAL_BATCH_SIZE,
        "rank": LORA_RANK,
        "max_input_length": data.task.max_input_length,
        "max_target_length": data.task.max_target_length,
    }
    (workdir / "cell.json").write_text(json.dumps(cell))
    _run([sys.executable, "-m", "benchmarks.trainer_cell", str(workdir)])
    predictions = json.loads((workdir / "predictions.json").read_text())
    return judge(data.task, data.examples["test"], predictions).numbers[data.task.metric]


def _run(command: Sequence[str], **environment: str) -> None:
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if run.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{run.stderr}")


def _show(figures: dict[str, Any], size: str, task: Task) -> None:
    table = Table("a whole cell", title=f"LoRA of {size} on {task.name}")
    for column in ("seconds", "trainer's / its", task.metric):
        table.add_column(column, justify="right")
    theirs = statistics.median(figures["seconds"]["Seq2SeqTrainer + PEFT"])
    for name, seconds in figures["seconds"].items():
        shown = ", ".join(f"{s:.1f}" for s in seconds)
        table.add_row(name, shown, f"{theirs / statistics.median(seconds):.2f}", _spread(figures["metric"][name]))
    Console().print(table)


def _spread(metrics: Sequence[float]) -> str:
    mean = f"{statistics.mean(metrics):.4f}"
    return mean if len(metrics) == 1 else f"{mean} ± {statistics.stdev(metrics):.4f}"


if __name__ == "__main__":
    main()
