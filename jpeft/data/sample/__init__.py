"""Four small generated tasks in the shapes of the benchmark's four: no network, no files, and no measure of a model.

Each file is one task and makes rows that share an input: one row, or in E2E's case several references.
"""

from types import ModuleType
from typing import Any

from jpeft.data.sample import acceptability, dialogues, news, restaurants
from jpeft.data.sample.grammar import Draw

SIZES = {"train": 4_000, "validation": 600, "test": 600}

_TASKS: dict[str, ModuleType] = {
    "agnews": news,
    "cola": acceptability,
    "e2e": restaurants,
    "samsum": dialogues,
}


def sample_rows(task_name: str, seed: int) -> dict[str, dict[str, list[Any]]]:
    """Columns of `train`, `validation` and `test`; the same rows for the same seed. No input is in two splits."""
    task, draw = _TASKS[task_name], Draw(seed)
    seen = set()
    splits = {}
    for split, size in SIZES.items():
        rows: list[dict[str, Any]] = []
        while len(rows) < size:
            made = task.make(draw)
            if made[0][task.INPUT] not in seen:
                seen.add(made[0][task.INPUT])
                rows += made
        splits[split] = {column: [row[column] for row in rows[:size]] for column in rows[0]}
    return splits
