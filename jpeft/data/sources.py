"""Where rows come from: the hub, local files, TensorFlow Datasets. Each gives columns by source split.

A source split is read whole, since a split is drawn from all of it; the benchmark's tasks have 42,000 rows at most
(AG News on the hub 120,000).
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from jpeft.data.tasks import Task
from jpeft.errors import RunFailed, UserError

SOURCES = ("auto", "hub", "local", "tfds")

Columns = dict[str, list[Any]]

_READERS: Mapping[str, Callable[[Path], pa.Table]] = {
    ".parquet": pyarrow.parquet.read_table,
    ".jsonl": pyarrow.json.read_json,
    ".json": pyarrow.json.read_json,
    ".csv": lambda path: pyarrow.csv.read_csv(path, parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True)),
}
# What a source may call each split.
_SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


def load_rows(task: Task, source: str, path: str | None) -> dict[str, Columns]:
    """Columns of every split that the source has: `train`, and `validation` and `test` where there are such.

    Args:
      source: one of `SOURCES`; `auto` is `local` where a path is given and `hub` otherwise.
      path: of `local`: a file, a directory of `train`/`validation`/`test` files, or one that holds the task's directory.

    Raises:
      UserError: no such file, an unreadable one, no training rows, or a source that this task does not have.
      RunFailed: the hub can not be reached.
    """
    if source not in SOURCES:
        raise UserError(f"data.source is {source!r}; expected one of {', '.join(SOURCES)}.")
    if source == "auto":
        source = "hub" if path is None else "local"
    if source == "local":
        if path is None:
            raise UserError(
                "data.source is 'local' but data.path is not given; name the file or directory of the rows."
            )
        splits = _from_files(task, Path(path).expanduser())
    elif source == "hub":
        splits = _from_hub(task)
    else:
        splits = _from_tfds(task)
    if not splits.get("train") or not next(iter(splits["train"].values()), []):
        raise UserError(f"{task.name}: the source has no training rows.")
    return splits


def _from_files(task: Task, path: Path) -> dict[str, Columns]:
    if path.is_file():
        return {"train": _read(path)}
    if not path.is_dir():
        raise UserError(f"data.path {str(path)!r} does not exist.")
    directory = path / task.local if task.local and (path / task.local).is_dir() else path
    splits = {}
    for split, names in _SPLIT_NAMES.items():
        found = [directory / f"{name}{suffix}" for name in names for suffix in _READERS]
        file = next((candidate for candidate in found if candidate.is_file()), None)
        if file is not None:
            splits[split] = _read(file)
    if "train" not in splits:
        expected = "train.parquet (or .jsonl, .csv)"
        raise UserError(
            f"{directory} has no {expected}; it holds: {', '.join(sorted(os.listdir(directory))[:8]) or 'nothing'}."
        )
    return splits


def _read(path: Path) -> Columns:
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise UserError(f"{path} has the ending {path.suffix!r}; jpeft reads {', '.join(_READERS)}.")
    try:
        return reader(path).to_pydict()
    except pa.ArrowInvalid as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} can not be read as {path.suffix[1:]} ({reason}).") from None


def _from_hub(task: Task) -> dict[str, Columns]:
    if task.hub is None:
        raise UserError(f"data.task {task.name!r} has no place on the hub; give --config.data.path.")
    import datasets

    repository, configuration, revision = task.hub
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(repository, configuration, revision=revision)
    except Exception as error:  # what is raised differs by what is between here and the hub
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise RunFailed(
            f"the hub can not be reached for {repository} ({reason}); without a network, give --config.data.path "
            f"a directory that holds {task.local}/train.parquet, validation.parquet and test.parquet."
        ) from None
    return {split: dict(loaded[split].to_dict()) for split in _SPLIT_NAMES if split in loaded}


def _from_tfds(task: Task) -> dict[str, Columns]:
    if task.tfds is None:
        raise UserError(f"data.task {task.name!r} is not in TensorFlow Datasets; give --config.data.path.")
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise UserError("data.source 'tfds' needs TensorFlow Datasets: pip install 'jpeft[tfds]'.") from None
    try:
        builder = tfds.builder(task.tfds)
        builder.download_and_prepare()
        available = {
            split: builder.as_data_source(split=split) for split in _SPLIT_NAMES if split in builder.info.splits
        }
    except Exception as error:  # as for the hub
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise RunFailed(
            f"TensorFlow Datasets can not provide {task.tfds} ({reason}); give --config.data.path."
        ) from None
    return {split: _tfds_columns(task, rows) for split, rows in available.items()}


def _tfds_columns(task: Task, rows: Any) -> Columns:
    columns: Columns = {column: [] for column in task.columns}
    for row in rows:
        for column, values in columns.items():
            values.append(_plain(row[task.tfds_columns.get(column, column)]))
    if task.name == "agnews":  # elsewhere the title stands before the description, in the same column
        columns["text"] = [f"{_plain(row['title'])} {_plain(row['description'])}" for row in rows]
    return columns


def _plain(value: Any) -> Any:
    """Text of bytes, the Python number of a NumPy one."""
    return value.decode() if isinstance(value, bytes) else value.item()
