"""Sources of rows: the hub, local files, TensorFlow Datasets, a generator. Each returns columns by source split.

Source splits are read whole, since the splits of a run are drawn from all rows. The benchmark's tasks have at most
42,000 rows (AG News on the hub 120,000).
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jpeft.data.mixture import names_of, paths_of
from jpeft.data.sample import sample_rows
from jpeft.data.tasks import BENCHMARK, Task
from jpeft.errors import RunFailed, UserError
from jpeft.network import why_unreachable, without_network
from jpeft.rows.reading import KINDS, PACKED, Columns, kind_of, read_columns, require_file
from jpeft.rows.values import is_missing
from jpeft.trouble import first_line

SOURCES = ("auto", "hub", "local", "tfds", "sample")
# The accepted names of each split.
_SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test",),
}
# Endings of files that may hold rows but are not read. Such files are reported; all others are ignored silently.
_OTHER_ENDINGS = (
    *(".txt", ".tab", ".jsonlines", ".xlsx", ".xls", ".ods", ".xml", ".db", ".pkl"),
    *(".arrow", ".feather", ".parq", ".pq", ".orc", ".avro", ".zip", ".tar", ".tgz", ".gzip", ".lz4"),
)
_NO_ROWS = (".py", ".sh", ".md", ".log", ".ipynb", ".yaml", ".yml", ".toml", ".cfg", ".ini", ".lock", ".png", ".svg")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})")  # the names that the hub and TensorFlow give to the shards of a split


def source_in_use(source: str, path: str | None) -> str:
    """Resolves `data.source`: `auto` is `local` if a path is given, and `hub` otherwise."""
    return source if source != "auto" else "hub" if path is None else "local"


def check_source(task: Task, source: str, path: str | None) -> None:
    """Raises `UserError` for an unknown source, or one that does not fit the task or the path."""
    if source not in SOURCES:
        raise UserError(f"data.source is {source!r}; expected one of {', '.join(SOURCES)}.")
    if source == "sample" and task.name not in BENCHMARK:
        raise UserError(
            f"data.task {task.name!r} has no generated rows, only {', '.join(BENCHMARK)} have; give --config.data.path "
            "the file of your rows, and leave data.source at auto."
        )
    if source == "tfds" and task.name == "e2e":
        raise UserError(
            "data.source 'tfds' has E2E only in its cleaned version, which is another dataset than the paper's: name "
            "it, --config.data.task=e2e_cleaned, or take data.source=hub."
        )
    if source == "sample" and path is not None:
        raise UserError(
            f"data.source is 'sample', which generates its rows: data.path {path!r} would not be read. "
            "Give one of the two."
        )


def load_rows(
    task: Task,
    source: str,
    path: str | None,
    *,
    sample_seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Columns]:
    """Loads the columns of every split of a source: `train`, and `validation` and `test` if the source has them.

    Args:
      source: one of `SOURCES`; `auto` is `local` if a path is given and `hub` otherwise.
      path: for `local`: a file, a directory of `train`/`validation`/`test` files, or one with the task's subdirectory.
      sample_seed: for `sample`: seed of the generated rows.
      report: called with a line about files of a directory that are not read, a split that is left out, and rows that
        may be misread.

    Raises:
      UserError: a file is missing or cannot be read, there are no training rows, or the source does not have the task.
      RunFailed: the hub cannot be reached.
    """
    check_source(task, source, path)
    source = source_in_use(source, path)
    if source == "local":
        if path is None:
            raise UserError(
                "data.source is 'local' but data.path is not given; name the file or directory of the rows."
            )
        splits = _from_files(task, _expanded(path), report)
    elif source == "hub":
        splits = _from_hub(task)
    elif source == "sample":
        splits = sample_rows(task.name, sample_seed)
    else:
        splits = _from_tfds(task)
    if not splits.get("train") or not next(iter(splits["train"].values()), []):
        where = task.name if path is None else f"{task.name}: {path}"
        raise UserError(f"{where} has no training rows; a file needs lines with values below the names of its columns.")
    secret = [name for name, columns in splits.items() if name != "train" and labels_are_secret(task, columns)]
    for name in secret:
        report(f"the {name} split is left out: each of its labels is -1, which stands for one that is kept secret")
    return {name: columns for name, columns in splits.items() if name not in secret}


def read_split(
    task: Task, path: Path, name: str, *, report: Callable[[str], None] = lambda line: None
) -> tuple[str, Columns]:
    """Reads one split of a directory, and no other.

    Args:
      name: of the split, or any other accepted name of it, such as `dev` for `validation`.

    Returns:
      The split's canonical name and its columns.

    Raises:
      UserError: the split does not exist, has no labels, or cannot be read.
    """
    split = next((split for split, names in _SPLIT_NAMES.items() if name.lower() in names), name)
    directory, files, of_split = _by_split(task, path)
    if not of_split.get(split):
        there = ", ".join(each for each, found in of_split.items() if found)
        shown = f"only {there}" if there else f"it holds: {', '.join(file.name for file in files[:8]) or 'nothing'}"
        raise UserError(f"{directory} has no {name[:40]} split, {shown}; give one by --split.")
    columns = _joined([read_columns(file, report=report) for file in of_split[split]])
    if labels_are_secret(task, columns):
        raise UserError(f"the {split} split of {directory} has no labels, -1 in every row; give another by --split.")
    return split, columns


def labels_are_secret(task: Task, columns: Columns) -> bool:
    """Whether every label of a benchmark task is -1, as in GLUE's test split, whose labels are not published.

    In a user's own rows -1 may be a class.
    """
    labels = columns.get(task.target)
    return task.name in BENCHMARK and bool(labels) and all(str(label).strip() in ("-1", "-1.0") for label in labels)


def load_sources(
    task: Task,
    source: str,
    path: str | None,
    mix: str | None,
    *,
    sample_seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, dict[str, Columns]]:
    """Loads the rows of every file of `data.path`, by file name; those of a single file under the name "".

    Args:
      mix: `data.mix`; None if `path` is a single path.
      sample_seed, report: see `load_rows`, which also documents the errors.
    """
    paths = paths_of(path, mix)
    return {
        name: load_rows(task, source, each, sample_seed=sample_seed, report=report)
        for name, each in zip(names_of(paths), paths, strict=True)
    }


def together(sources: Mapping[str, Mapping[str, Columns]]) -> dict[str, Columns]:
    """Merges the source splits of all files into one mapping, by `split_name`."""
    return {split_name(name, split): rows for name, splits in sources.items() for split, rows in splits.items()}


def split_name(source: str, split: str) -> str:
    """Returns the name of a source split in row ids: `train`, or `a.csv:train` if there are several files."""
    return f"{source}:{split}" if source else split


def rows_digest(rows: Mapping[str, Columns]) -> str:
    """Returns a digest that identifies rows by content: the hex SHA-256 of split names, column names and all values.

    The order of rows matters, that of splits and columns does not. Numbers and booleans are hashed as the text that a
    model would read, so that the same rows have one digest as CSV, JSON lines and Parquet. A missing value differs from
    an empty text.
    """
    digest = hashlib.sha256()
    for split, columns in sorted(rows.items()):
        digest.update(_framed(split) + b"%d columns " % len(columns))
        for column, values in sorted(columns.items()):
            digest.update(_framed(column) + b"%d values " % len(values))
            for start in range(0, len(values), 1000):  # updating the digest value by value is five times slower
                digest.update(b"".join(map(_framed, values[start : start + 1000])))
    return digest.hexdigest()


def _framed(value: Any) -> bytes:
    """Encodes a value with its length, so that concatenated values are unambiguous."""
    if is_missing(value):
        return b"- "
    if isinstance(value, dict | list):  # in a column that no template can use; the order of keys does not matter
        value = json.dumps(value, sort_keys=True, default=str)
    data = value if isinstance(value, bytes) else str(value).encode(errors="surrogatepass")
    return b"%d %b " % (len(data), data)


def require_paths(source: str, path: str | None, mix: str | None) -> None:
    """Raises `UserError` if rows are read from local files and one of them does not exist.

    Args:
      source, path, mix: `data.source`, `data.path` and `data.mix`.
    """
    if source_in_use(source, path) == "local":
        for each in paths_of(path, mix):
            require_path(each)


def require_path(path: str | None) -> None:
    """Raises `UserError` if `data.path` does not exist. A cheap check, to be made before a model is loaded."""
    if path is None:
        return
    place = _expanded(path)
    try:
        is_directory = place.is_dir()
    except (OSError, ValueError):  # ValueError: a NUL in the name
        is_directory = False
    if not is_directory and _is_list_of_paths(path):
        raise UserError(
            f"data.path lists {path.count(',') + 1} files; say how they are mixed, such as "
            "--config.data.mix=proportional."
        )
    if not is_directory:
        require_file(place, f"data.path {path if len(path) <= 200 else path[:100] + '...'!r}")


def _is_list_of_paths(path: str) -> bool:
    """Whether a path that does not exist is a comma-separated list of paths that do."""
    try:
        return (
            "," in path
            and all(_expanded(part.strip()).exists() for part in path.split(","))
            and not _expanded(path).exists()
        )
    except (OSError, ValueError):
        return False


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # `~name` of an unknown user may still be a file
        return Path(path)


def _from_files(task: Task, path: Path, report: Callable[[str], None]) -> dict[str, Columns]:
    require_path(str(path))
    if not path.is_dir():
        return {"train": read_columns(path, report=report)}
    directory, files, of_split = _by_split(task, path)
    if not of_split["train"]:
        raise UserError(
            f"{directory} has no train.parquet (or .jsonl, .csv, ...); it holds: "
            f"{', '.join(file.name for file in files[:8]) or 'nothing'}."
        )
    read = {file for found in of_split.values() for file in found}
    unread = [file.name for file in files if file not in read and _may_hold_rows(file)]
    if unread:
        shown = ", ".join(unread[:5]) + (f" and {len(unread) - 5} more" if len(unread) > 5 else "")
        names = "; ".join(f"{split}: {' or '.join(names)}" for split, names in _SPLIT_NAMES.items())
        report(f"not read of {directory}: {shown} (what is read is called so: {names})")
    read_all = lambda found: _joined([read_columns(file, report=report) for file in found])
    splits = {split: read_all(found) for split, found in of_split.items() if found}
    for split, columns in splits.items():
        if split != "train" and not any(columns.values()):
            raise UserError(f"{of_split[split][0]} has no rows; fill it or remove it.")
    return splits


def files_read(task: Task, path: Path) -> list[Path]:
    """Lists the files that `load_rows` reads from a path. Raises `UserError` if a directory cannot be read."""
    if not path.is_dir():
        return [path]
    return [file for found in _by_split(task, path)[2].values() for file in found]


def _by_split(task: Task, path: Path) -> tuple[Path, list[Path], dict[str, list[Path]]]:
    """Returns the directory of a task's rows, all of its files, and the files of each split."""
    directory = path / task.local if task.local and (path / task.local).is_dir() else path
    try:
        files = sorted(file for file in directory.iterdir() if not file.name.startswith("."))
    except OSError as error:
        raise UserError(f"{directory} cannot be read ({error.strerror}).") from None
    return directory, files, {split: _files_of(split, files) for split in _SPLIT_NAMES}


def _may_hold_rows(file: Path) -> bool:
    """Whether a user may expect a file to be read: by its ending, or because it has the name of a split."""
    first = file.name.partition(".")[0]
    shard = _SHARD.fullmatch(first)
    if (shard[1] if shard else first).lower() in {name for names in _SPLIT_NAMES.values() for name in names}:
        return file.suffix.lower() not in _NO_ROWS
    return bool(kind_of(file) or file.suffix.lower() in _OTHER_ENDINGS) and not file.is_dir()


def _files_of(split: str, files: list[Path]) -> list[Path]:
    """Finds the file of a split, or all of its shards.

    Raises:
      UserError: there are several candidates, or a shard is missing.
    """
    found: dict[str, list[Path]] = {}
    for file in files:
        kind, stem = kind_of(file), _stem(file)
        shard = _SHARD.fullmatch(stem)
        if kind and (shard[1] if shard else stem).lower() in _SPLIT_NAMES[split]:
            found.setdefault(f"{shard[1]} {shard[3]} {kind}" if shard else file.name, []).append(file)
    if len(found) > 1:
        names = [parts[0].name for parts in found.values()]
        raise UserError(
            f"{files[0].parent} has {len(names)} files for the {split} split: {', '.join(names[:5])}; leave one of "
            "them there."
        )
    for parts in found.values():
        if _SHARD.fullmatch(_stem(parts[0])):
            _require_all_shards(split, parts)
    return [file for parts in found.values() for file in parts]


def _require_all_shards(split: str, parts: list[Path]) -> None:
    """Raises `UserError` if a shard of a split, numbered from 0 or from 1, is missing or exists twice."""
    where, count, seen = parts[0].parent, 0, dict[int, Path]()
    for part in parts:
        shard = _SHARD.fullmatch(_stem(part))
        assert shard is not None, "the caller has checked the names"
        number, count = int(shard[2]), int(shard[3])
        other = seen.setdefault(number, part)
        if other != part:
            raise UserError(
                f"{where} has a part of its {split} split twice: {other.name} and {part.name}; leave one of them."
            )
    first = int(0 not in seen and count in seen)
    beyond = next((part for number, part in seen.items() if not first <= number < first + count), None)
    if beyond is not None:
        raise UserError(
            f"{beyond} is numbered past the {count} parts of its {split} split, from {first:05}; rename or remove it."
        )
    if len(parts) < count:
        lacking = next(number for number in range(first, first + count) if number not in seen)
        which = f"; the one numbered {lacking:05} is missing" if {0, count} & set(seen) else ""
        raise UserError(f"{where} has {len(parts)} of the {count} parts of its {split} split{which}.")


def _stem(file: Path) -> str:
    """Returns a file's name without its endings: `train` for `train.jsonl.gz`."""
    name = file.name
    for endings in (PACKED, KINDS):
        ending = next((ending for ending in endings if name.lower().endswith(ending)), "")
        name = name[: len(name) - len(ending)]
    return name


def _joined(parts: list[Columns]) -> Columns:
    names = dict.fromkeys(column for part in parts for column in part)
    sizes = [len(next(iter(part.values()), [])) for part in parts]
    return {
        column: [value for part, size in zip(parts, sizes, strict=True) for value in part.get(column, [None] * size)]
        for column in names
    }


def _from_hub(task: Task) -> dict[str, Columns]:
    if task.hub is None:
        raise UserError(f"data.task {task.name!r} has no place on the hub; give --config.data.path.")
    import datasets

    repository, configuration, revision = task.hub
    unreachable = why_unreachable()
    try:
        # Without a network the library's cache may suffice; with requests allowed, it would retry the hub five times.
        with contextlib.nullcontext() if unreachable is None else without_network():
            loaded: Any = datasets.load_dataset(repository, configuration, revision=revision)
    except Exception as error:  # the type depends on which layer of the libraries or the network fails
        reason = unreachable or first_line(error)
        raise RunFailed(
            f"the hub cannot be reached for {repository} ({reason}); without a network, give --config.data.path "
            f"a directory that holds {task.local}/train.parquet, validation.parquet and test.parquet, or try the task "
            "on generated rows: --config.data.source=sample."
        ) from None
    splits: dict[str, Columns] = {split: loaded[split].to_dict() for split in _SPLIT_NAMES if split in loaded}
    for columns in splits.values():  # the hub's copy of SAMSum is CSV, where an empty dialogue is read as None
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
    except Exception as error:  # see `_from_hub`
        reason = first_line(error)
        raise RunFailed(
            f"TensorFlow Datasets cannot provide {task.tfds} ({reason}); give --config.data.path."
        ) from None
    return {split: _tfds_columns(task, rows) for split, rows in available.items()}


def _tfds_columns(task: Task, rows: Any) -> Columns:
    existing = set(rows[0]) if len(rows) else set()
    names = {column: task.tfds_columns.get(column, (column,)) for column in task.columns}
    columns: Columns = {column: [] for column, parts in names.items() if existing.issuperset(parts)}
    for row in rows:
        for column, values in columns.items():
            parts = [_plain(row[name]) for name in names[column]]
            values.append(parts[0] if len(parts) == 1 else " ".join(map(str, parts)))
    return columns


def _plain(value: Any) -> Any:
    """Decodes bytes, and converts a NumPy number to Python."""
    return value.decode() if isinstance(value, bytes) else value.item()
