"""The log of a run's metrics: `metrics.jsonl` and TensorBoard events."""

import contextlib
import functools
import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jpeft.errors import UserError
from jpeft.files import parse_json, write_whole
from jpeft.words import counted


class NoLog:
    """A no-op in place of `MetricsLog`, for all processes but the first, which writes the log."""

    def step(self, **values: float | int) -> None:
        """No-op."""

    def validation(self, **values: float | int) -> None:
        """No-op."""

    def close(self) -> None:
        """No-op."""


class MetricsLog:
    """Writes `metrics.jsonl` and TensorBoard events: one record per optimizer step and one per validation.

    A resumed run first drops the records after its checkpoint (those for which `keep` is false), so that no step is
    logged twice. Invalid lines, which a power cut may leave, are dropped too; the original file is then copied to
    `damaged/`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        steps_done: int,
        keep: Callable[[Mapping[str, Any]], bool],
        report: Callable[[str], None] = lambda line: None,
    ):
        self._path = directory / "metrics.jsonl"
        kept, foreign = [], 0
        for line in _whole_lines(self._path):
            try:
                record = parse_json(line, str(self._path))
                kept += [line] if keep(record) else []
            except (UserError, LookupError, TypeError, AttributeError):  # it is not what `keep` asks of a record
                foreign += 1
        if foreign:
            place = directory / "damaged" / "metrics.jsonl"
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(self._path, place)
            report(f"{self._path} has {counted(foreign, 'damaged line')}, left out; the file as it was is {place}")
        with write_whole(self._path) as beside:
            beside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._file = self._path.open("a", encoding="utf-8")
        self._events_directory = directory / "tensorboard"
        self._purge_step = steps_done + 1 if steps_done else None

    @functools.cached_property
    def _events(self) -> Any:
        """The writer of TensorBoard events, created at the first record."""
        with _hidden("torch"):  # tensorboardX imports it for one annotation, which takes a second
            from tensorboardX import SummaryWriter

        return SummaryWriter(str(self._events_directory), purge_step=self._purge_step)

    def step(self, *, step: int, **values: float | int) -> None:
        """Records one optimizer step, counted from 1."""
        self._write("train", step, {"step": step, **values})

    def validation(self, *, steps_done: int, **values: float | int) -> None:
        """Records a validation after `steps_done` optimizer steps."""
        self._write("validation", steps_done, {"steps_done": steps_done, **values})

    def close(self) -> None:
        self._file.close()
        if "_events" in vars(self):
            with contextlib.suppress(OSError):  # on a full disk: unwritten events are in metrics.jsonl, too
                self._events.close()

    def _write(self, group: str, at: int, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in record.items():
            if isinstance(value, float):  # integers are positions
                self._events.add_scalar(f"{group}/{name}", value, at)


_HIDING = threading.Lock()


@contextlib.contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Makes the import of a module fail within the block, in every thread, unless it is already loaded.

    Blocks of several threads, such as runs side by side that open their logs, run one after the other.
    """
    with _HIDING:
        if module in sys.modules:
            yield
            return
        sys.modules[module] = None  # makes `import` raise  # pyright: ignore[reportArgumentType]
        try:
            yield
        finally:
            sys.modules.pop(module, None)


def _whole_lines(path: Path) -> list[str]:
    """Lines of a JSON Lines file, without an incomplete last line."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [line for line in lines[:-1] if line]
