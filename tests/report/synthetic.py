"""Made-up result files, for tests and for measuring the report on thousands of them.

    python tests/report/synthetic.py DIR COUNT

writes about COUNT results.
"""

import copy
import itertools
import json
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jpeft.report.names import PAPER_ABLATIONS, PAPER_METHODS, PAPER_SCALES, PAPER_TASKS
from jpeft.report.published import published_metric, published_parameters

EPOCHS = {"low": 10, "medium": 5, "high": 1}
ROWS = {"low": 100, "medium": 1000, "high": 10000}
TEST_ROWS = {"agnews": 2500, "cola": 522, "e2e": 2500, "samsum": 819}


def cells() -> Iterator[tuple[str, str, str, str | None]]:
    """Method, task, scale and ablation of the paper's 104 cells."""
    for scale, method, task in itertools.product(PAPER_SCALES, PAPER_METHODS, PAPER_TASKS):
        yield method, task, scale, None
    for method, names in PAPER_ABLATIONS.items():
        for name, task in itertools.product(names, PAPER_TASKS):
            yield method, task, "medium", name


def record(
    method: str = "lora",
    task: str = "cola",
    scale: str = "medium",
    ablation: str | None = None,
    seed: int = 0,
    **changes,
) -> dict[str, Any]:
    """A `result.json` with the paper's metric and a little noise by seed; `changes` replace its entries."""
    draw = random.Random(f"{method} {task} {scale} {ablation} {seed}")
    published = published_metric(method, task, scale, ablation)
    assert published is not None
    metric = min(1.0, max(0.0, changes.pop("metric", published + draw.gauss(0, 0.004))))
    name = "accuracy" if task in ("agnews", "cola") else "rouge_l"
    extra = {"accuracy": "matthews_correlation", "rouge_l": "rouge_l_multi_reference"}[name]
    epochs = EPOCHS[scale]
    best = min(epochs - 1, {"full": 1}.get(method, 3))
    losses = [0.3 + 0.5 * math.exp(-e) + 0.02 * abs(e - best) + draw.random() / 100 for e in range(epochs)]
    train, validation = ROWS[scale] * epochs / draw.uniform(38, 42), 60.0 * epochs
    return {
        "status": "done",
        "method": method,
        "reading": "paper",
        "ablation": ablation,
        "task": task,
        "scale": scale,
        "seed": seed,
        "model": "mini",
        "source": "local",
        "trainable_parameters": published_parameters()[method, ablation],
        "total_parameters": 2849757184,
        "metric_name": name,
        "metric": metric,
        "metrics": {name: metric, extra: metric / 2},
        "zero_shot": {name: 0.31, extra: 0.02} if method == "full" else None,
        "validation_loss": min(losses),
        "validation_losses": losses,
        "best_epoch": losses.index(min(losses)),
        "epochs_run": epochs,
        "train_examples": ROWS[scale],
        "validation_examples": 521 if task == "cola" else 2500,
        "test_examples": TEST_ROWS[task],
        "seconds": {
            "total": train + validation + 25.0,
            "train": train,
            "validation": validation,
            "test": 20.0,
            "compile": 5.0,
            **({"zero_shot": 12.0} if method == "full" else {}),
        },
        "tokens_per_second": 2698.2,
        "peak_memory_bytes": 1_589_387_264,
        "adapter_bytes": 4 * published_parameters()[method, ablation],
        "device": "cpu",
        "device_count": 1,
        "mesh": {"data": 1, "fsdp": 1, "model": 1},
        "versions": {"jpeft": "0.1.0", "jax": "0.10.2", "flax": "0.12.8"},
        "commit": "9a9e698426565a02c2f66dec0bf329f4eccd3258",
        "started": "2026-11-24T02:40:46+00:00",
        "finished": "2026-11-24T02:41:53+00:00",
        **changes,
    }


def config(result: dict[str, Any], **train: Any) -> dict[str, Any]:
    """The `config.json` of such a run, abridged."""
    return {
        "model": {"name": result["model"], "dtype": "auto"},
        "method": {"name": result["method"], "reading": result["reading"], "rank": None, "from_adapter": None},
        "ablation": {"name": result["ablation"], "seed": 0},
        "data": {"task": result["task"], "scale": result["scale"], "path": "/data", "split_seed": 0},
        "train": {"seed": result["seed"], "batch_size": 16, "patience": 1, **train},
    }


def write_run(directory: Path, result: dict[str, Any], *, curve: bool = True, **train: Any) -> Path:
    """Write a run directory; returns the path of its `result.json`."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config(result, **train), indent=2))
    if curve:
        lines = [{"step": s, "epoch": 0, "loss": 2 / s + 0.2, "grad_norm": 1.0} for s in range(1, 250)]
        (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    file = directory / "result.json"
    file.write_text(json.dumps(result, indent=2) + "\n")
    return file


def custom(
    root: Path, name: str, *, path: str = "/rows/mine.jsonl", settings=None, curve: bool = False, **changes: Any
):
    """Write a run on custom rows; returns the path of its `result.json`."""
    method = changes.pop("method", "lora")
    result = {**record(method, "agnews", "low"), "task": "custom", "scale": "all", **changes}
    result["metrics"] = {**result["metrics"], result["metric_name"]: result["metric"]}
    file = write_run(root / name, result, curve=curve)
    made = json.loads(file.with_name("config.json").read_text())
    made["data"] |= {"path": path}
    for key, value in (settings or {}).items():
        section, _, key = key.partition(".")
        made[section][key] = value
    file.with_name("config.json").write_text(json.dumps(made))
    return file


def write_grid(root: Path, *, seeds: int = 1, only: int | None = None, curve: bool = True, **changes: Any) -> int:
    """Write the results of the paper's grid, or only the first `only`; returns their number."""
    written = 0
    for seed, (method, task, scale, ablation) in itertools.product(range(seeds), cells()):
        if only is not None and written == only:
            break
        name = "_".join(filter(None, (method, ablation, task, scale)))
        result = record(method, task, scale, ablation, seed, **copy.deepcopy(changes))
        write_run(root / f"seed{seed}" / name, result, curve=curve)
        written += 1
    return written


if __name__ == "__main__":
    target, count = Path(sys.argv[1]), int(sys.argv[2])
    made = 0
    for model, source in (("mini", "local"), ("google/flan-t5-xl", "hub")):
        made += write_grid(target / model, seeds=-(-count // 208), only=count // 2, model=model, source=source)
    print(f"{made} results in {target}")
