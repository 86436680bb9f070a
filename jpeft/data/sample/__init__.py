"""Generated rows in the format of the benchmark's four tasks, to try jpeft without network or files.

They are not a measure of a model. Each module generates one task: one row at a time or, for E2E, the several references
of one input.
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
    """Generates the columns of `train`, `validation` and `test` from a seed. No input is in two splits."""
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
