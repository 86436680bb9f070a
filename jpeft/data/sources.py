"""Where rows come from: the hub, local files, TensorFlow Datasets, a generator. Each gives columns by source split.

A source split is read whole, since a split is drawn from all of it; the benchmark's tasks have 42,000 rows at most
(AG News on the hub 120,000).
"""

import csv
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from jpeft.data.sample import sample_rows
from jpeft.data.tasks import BENCHMARK, Task
from jpeft.errors import RunFailed, UserError

SOURCES = ("auto", "hub", "local", "tfds", "sample")

Columns = dict[str, list[Any]]


def _read_json(path: Path) -> Columns:
    text = path.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        rows = json.loads(text)
    else:  # not splitlines(), which also cuts at line separators within strings
        rows = []
        for number, line in enumerate(text.split("\n"), start=1):
            try:
                rows += [json.loads(line)] if line.strip() else []
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}: {error.msg}") from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} is {str(row)[:40]!r}; expected an object with `input` and `target`")
    return {column: [row.get(column) for row in rows] for column in dict.fromkeys(key for row in rows for key in row)}


def _read_csv(path: Path) -> Columns:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file, strict=True)
        header = next(lines, [])
        columns: Columns = {column: [] for column in header}
        if len(columns) < len(header):
            raise ValueError(f"two columns have the same name: {', '.join(header)}")
        for row in lines:
            if len(row) not in (0, len(header)):
                raise ValueError(f"line {lines.line_num} has {len(row)} values, the first line names {len(header)}")
            for column, value in zip(header, row, strict=False):
                columns[column].append(value)
    return columns


# Text is read as it stands. Readers that guess types (pyarrow's, pandas') turn the answer `007` into 7, `NA` into
# nothing and a date into a time stamp.
_READERS: Mapping[str, Callable[[Path], Columns]] = {
    ".parquet": lambda path: pyarrow.parquet.read_table(path).to_pydict(),
    ".jsonl": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
}
# What a source may call each split.
_SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


def source_in_use(source: str, path: str | None) -> str:
    """What `auto` stands for: `local` where a path is given, the hub otherwise."""
    return source if source != "auto" else "hub" if path is None else "local"


def check_source(task: Task, source: str, path: str | None) -> None:
    """Raises `UserError` for an unknown source, or one that this task and path can not go with."""
    if source not in SOURCES:
        raise UserError(f"data.source is {source!r}; expected one of {', '.join(SOURCES)}.")
    if source == "sample" and task.name not in BENCHMARK:
        raise UserError(
            f"data.task {task.name!r} has no generated rows, only {', '.join(BENCHMARK)} have; give --config.data.path "
            "the file of your rows, and leave data.source at auto."
        )
    if source == "sample" and path is not None:
        raise UserError(
            f"data.source is 'sample', which generates its rows: data.path {path!r} would not be read. "
            "Give one of the two."
        )


def load_rows(task: Task, source: str, path: str | None, *, sample_seed: int = 0) -> dict[str, Columns]:
    """Columns of every split that the source has: `train`, and `validation` and `test` where there are such.

    Args:
      source: one of `SOURCES`; `auto` is `local` where a path is given and `hub` otherwise.
      path: of `local`: a file, a directory of `train`/`validation`/`test` files, or one that holds the task's own.
      sample_seed: of `sample`: which rows are generated.

    Raises:
      UserError: no such file, an unreadable one, no training rows, or a source that this task does not have.
      RunFailed: the hub can not be reached.
    """
    check_source(task, source, path)
    source = source_in_use(source, path)
    if source == "local":
        if path is None:
            raise UserError(
                "data.source is 'local' but data.path is not given; name the file or directory of the rows."
            )
        splits = _from_files(task, Path(path).expanduser())
    elif source == "hub":
        splits = _from_hub(task)
    elif source == "sample":
        splits = sample_rows(task.name, sample_seed)
    else:
        splits = _from_tfds(task)
    if not splits.get("train") or not next(iter(splits["train"].values()), []):
        raise UserError(f"{task.name}: the source has no training rows.")
    # GLUE keeps the labels of its test splits secret: -1 in every row, nothing that could be scored.
    labels = {name: columns.get(task.target) for name, columns in splits.items()}
    secret = {name for name, column in labels.items() if column and all(label == -1 for label in column)}
    return {name: columns for name, columns in splits.items() if name not in secret}


def rows_digest(rows: Mapping[str, Columns]) -> str:
    """What the rows are, whatever file they were read from: SHA-256, in hex, of split and column names and all values.

    The order of rows counts, that of splits and columns does not. A number or bool counts as the text that a model
    would read, so the same rows as CSV, JSON lines and Parquet have one digest; a missing value is not an empty text.
    """
    digest = hashlib.sha256()
    for split, columns in sorted(rows.items()):
        digest.update(_framed(split) + b"%d columns " % len(columns))
        for column, values in sorted(columns.items()):
            digest.update(_framed(column) + b"%d values " % len(values))
            for start in range(0, len(values), 1000):  # not value by value: five times slower
                digest.update(b"".join(map(_framed, values[start : start + 1000])))
    return digest.hexdigest()


def _framed(value: Any) -> bytes:
    """A value as bytes that say where they end."""
    if value is None:
        return b"- "
    if isinstance(value, dict | list):  # of a column that no template can use; keys may come in any order
        value = json.dumps(value, sort_keys=True, default=str)
    data = value if isinstance(value, bytes) else str(value).encode(errors="surrogatepass")
    return b"%d %b " % (len(data), data)


def require_path(path: str | None) -> None:
    """Raises `UserError` where `data.path` leads nowhere: cheap, so that it is said before a model is asked for."""
    if path is not None and not Path(path).expanduser().exists():
        raise UserError(f"data.path {path!r} does not exist.")


def _from_files(task: Task, path: Path) -> dict[str, Columns]:
    require_path(str(path))
    if path.is_file():
        return {"train": _read(path)}
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
        return reader(path)
    except (pa.ArrowException, csv.Error, ValueError, OSError) as error:  # ValueError: also undecodable bytes
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} can not be read as {path.suffix[1:]} ({reason}).") from None


def _from_hub(task: Task) -> dict[str, Columns]:
    if task.hub is None:
        raise UserError(f"data.task {task.name!r} has no place on the hub; give --config.data.path.")
    import datasets

    repository, configuration, revision = task.hub
    try:
        loaded: Any = datasets.load_dataset(repository, configuration, revision=revision)
    except Exception as error:  # what is raised differs by what is between here and the hub
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise RunFailed(
            f"the hub can not be reached for {repository} ({reason}); without a network, give --config.data.path "
            f"a directory that holds {task.local}/train.parquet, validation.parquet and test.parquet, or try the task "
            "on generated rows: --config.data.source=sample."
        ) from None
    splits: dict[str, Columns] = {split: loaded[split].to_dict() for split in _SPLIT_NAMES if split in loaded}
    for columns in splits.values():  # the hub's copy of SAMSum is CSV, in which an empty dialogue reads as None
        for column in set(task.columns) & set(columns) - {task.target}:
            columns[column] = ["" if value is None else value for value in columns[column]]
    return splits


def _from_tfds(task: Task) -> dict[str, Columns]:
    if task.tfds is None:
        raise UserError(f"data.task {task.name!r} is not in TensorFlow Datasets; give --config.data.path.")
    try:
        import tensorflow_datasets as tfds  # pyright: ignore[reportMissingImports]  (an extra)
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
    there = set(rows[0]) if len(rows) else set()
    names = {column: task.tfds_columns.get(column, column) for column in task.columns}
    columns: Columns = {column: [] for column, name in names.items() if name in there}
    for row in rows:
        for column, values in columns.items():
            values.append(_plain(row[names[column]]))
    if task.name == "agnews":  # elsewhere the title stands before the description, in the same column
        columns["text"] = [f"{_plain(row['title'])} {_plain(row['description'])}" for row in rows]
    return columns


def _plain(value: Any) -> Any:
    """Text of bytes, the Python number of a NumPy one."""
    return value.decode() if isinstance(value, bytes) else value.item()
