"""Which of some rows an adapter has seen: those that its run trained on or validated with, and the runs before it."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jpeft.adapters.locate import locate
from jpeft.config import Run
from jpeft.data.sources import Columns, load_sources, rows_digest, source_in_use, together
from jpeft.data.splits import without_spacing
from jpeft.data.task_file import TaskOfRun
from jpeft.data.tasks import Example, Task, require_columns
from jpeft.data.template import Template
from jpeft.errors import RunFailed, UserError
from jpeft.files import read_json_object
from jpeft.rows.values import as_text

_MOST_RUNS = 16  # that started from each other's adapters


def seen_by_the_run(
    directory: Path, task: TaskOfRun | None, made: Sequence[Example]
) -> tuple[dict[str, int] | None, str | None]:
    """Counts the examples whose text the adapter's run, or one that it started from, trained on or validated with.

    Texts are compared by the columns that the run's prompts were made of, so that a different template does not matter.

    Args:
      directory: of the adapter or of the whole model, within that of its run.
      task: as stored with it.

    Returns:
      The counts by split, None if those of the adapter's own run are unknown; and the reason why they are unknown, or
      why those of a run before it are and the counts may be too low.
    """
    seen: dict[str, set[int]] = {"train": set(), "validation": set()}
    counts: dict[str, int] | None = None
    for _ in range(_MOST_RUNS):
        rows = _RowsOfRun.read(directory, task)
        if isinstance(rows, str):
            return counts, rows if counts is None else f"of the run that it started from, {rows}"
        asked = [(without_spacing(example.input), _columns_of(example, rows.columns)) for example in made]
        of_this = {
            split: {
                i
                for i, (prompt, columns) in enumerate(asked)
                if prompt in rows.prompts[split] or columns in rows.texts[split]
            }
            for split in seen
        }
        if not any(of_this.values()) and any(columns is None for _, columns in asked):
            return counts, f"its prompts were made of other columns ({', '.join(rows.columns)})"
        for split, found in of_this.items():
            seen[split] |= found
        counts = {split: len(found) for split, found in seen.items()}
        if rows.started_from is None:
            return counts, None
        try:
            directory = locate(Path(rows.started_from).expanduser()).directory
            task = TaskOfRun.read(directory)
        except (RunFailed, UserError, OSError, RuntimeError):
            return counts, f"it started from {rows.started_from}, which is not here"
    return counts, f"it is the last of more than {_MOST_RUNS} runs that started from each other"


def seen_rows_warnings(from_adapter: str, test: Sequence[Example]) -> list[str]:
    """Says before training how many test rows the adapter that a run starts from has trained on or was chosen by.

    Args:
      from_adapter: `method.from_adapter`, an adapter that can be loaded.
    """
    adapter = locate(Path(from_adapter).expanduser()).directory
    task = TaskOfRun.read(adapter)
    if task is None:  # never of a run
        return []
    counts, why_not = seen_by_the_run(adapter, task, test)
    how = {"train": "trained on", "validation": "chose its best epoch by"}
    lines = [
        f"{count:,} of {len(test):,} test rows have a text that the run of method.from_adapter {how[split]}: their "
        "metrics will be too good"
        for split, count in (counts or {}).items()
        if count
    ]
    if why_not is not None:
        more = "has" if counts is None else "has by an earlier run"
        lines.append(f"whether method.from_adapter {more} seen test rows is not known: {why_not}")
    return lines


@dataclasses.dataclass(frozen=True)
class _RowsOfRun:
    """The rows that a run trained on and validated with.

    Attributes:
      columns: that its prompts were made of.
      texts: of these columns, by split.
      prompts: by split.
      started_from: the adapter of `method.from_adapter`.
    """

    columns: Sequence[str]
    texts: Mapping[str, set[tuple[str, ...]]]
    prompts: Mapping[str, set[str]]
    started_from: str | None

    @classmethod
    def read(cls, directory: Path, stored: TaskOfRun | None) -> "_RowsOfRun | str":
        """Reads the rows again, from where the run read them; returns the reason if that is impossible."""
        run_directory = directory.absolute().parent
        if directory.absolute().name != "adapter" or not (run_directory / "splits.json").is_file():
            return "its run's directory is not here"
        try:
            run = Run.from_config(read_json_object(run_directory / "config.json", error=RunFailed))
            splits = read_json_object(run_directory / "splits.json", error=RunFailed)
            drawn, digest = splits["rows"], splits.get("data_digest")  # earlier versions recorded no digest
            data = run.data
            if source_in_use(data.source, data.path) in ("hub", "tfds"):
                return "its run's rows came from the network"
            assert stored is not None, "a run's adapter has a task"
            task = stored.task()
            rows = together(load_sources(task, data.source, data.path, data.mix, sample_seed=data.sample_seed))
            if digest is not None and digest != rows_digest(rows):  # `drawn` holds row numbers of other rows
                return "its rows have changed since its run read them"
            template = Template.parse(task.template)
            texts = {name: _texts(task, template.columns, rows, drawn[name]) for name in ("train", "validation")}
            prompt_of = lambda text: without_spacing(template.render(dict(zip(template.columns, text, strict=True))))
            prompts = {name: set(map(prompt_of, known)) for name, known in texts.items()}
        except (RunFailed, UserError, KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            return f"the rows of its run cannot be read again ({str(error).rstrip('.')})"
        return cls(template.columns, texts, prompts, run.method.from_adapter)


def _columns_of(example: Example, columns: Sequence[str]) -> tuple[str, ...] | None:
    """An example's texts of these columns, of any name if it is one column; None if it lacks them."""
    fields = example.fields or {}
    if len(columns) == len(fields) == 1:
        columns = list(fields)
    return tuple(without_spacing(fields[column]) for column in columns) if set(columns) <= set(fields) else None


def _texts(task: Task, columns: Sequence[str], rows: Mapping[str, Columns], ids: list[Any]) -> set[tuple[str, ...]]:
    for split_name, split_rows in rows.items():
        require_columns(task, split_name, split_rows)
    found = set()
    for each in ids:
        split_name, _, number = each.rpartition("/")
        found.add(tuple(without_spacing(as_text(rows[split_name][column][int(number)])) for column in columns))
    return found
