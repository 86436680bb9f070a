"""Checkpoints: what was saved is restored, and damaged ones are noticed."""

import dataclasses
import json
import os
import re
import shutil
import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jpeft.errors import RunFailed
from jpeft.run import processes
from jpeft.run.checkpoint import Checkpoints, checksum

# Warnings of Orbax's threads after a failed read; in a run `quiet_threads` hides them.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@dataclasses.dataclass
class Progress:
    epoch: int = 0
    losses: list[float] = dataclasses.field(default_factory=list)


def arrays(value: float):
    return {"a": jnp.full((300,), value), "b": {"c": np.arange(40, dtype=np.int32), "d": jnp.ones((), jnp.bfloat16)}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("saved") / "checkpoint"
    checkpoints = Checkpoints(directory, Progress, report=print)
    checkpoints.save(1, arrays(1.5), Progress(1, [0.123456789]))
    checkpoints.save(2, arrays(2.5), Progress(2, [0.123456789, 0.1]))
    checkpoints.finish()
    checkpoints.close()
    return directory


def restored(directory: Path):
    said: list[str] = []
    checkpoints = Checkpoints(directory, Progress, report=said.append)
    try:
        found = checkpoints.restore(arrays(0.0))
    finally:
        checkpoints.close()
    assert found is not None
    return float(found[0]["a"][0]), found[0], found[1], said


def test_it_gives_back_what_was_saved(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "checkpoint")
    value, tree, progress, said = restored(tmp_path / "checkpoint")
    assert value == 2.5 and progress == Progress(2, [0.123456789, 0.1]) and not said
    assert tree["b"]["d"].dtype == jnp.bfloat16 and tree["b"]["c"].tolist() == list(range(40))


@pytest.mark.parametrize("place", ["file", "gone", "closed"])
def test_where_it_cannot_be_written_one_line_says_so_at_once(place, tmp_path, monkeypatch):
    """Orbax's threads would wait five minutes for a missing directory."""
    directory = tmp_path / "checkpoint"
    checkpoints = Checkpoints(directory, Progress, report=print)
    if place == "closed":
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != directory)  # root may write everywhere
    else:
        directory.rmdir()
    if place == "file":
        directory.touch()
    running = threading.active_count()
    with pytest.raises(RunFailed, match="cannot be written to .*; solve this and give the same command again"):
        checkpoints.save(1, arrays(1.5), Progress())
    assert threading.active_count() == running


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 40))])
def test_a_flipped_byte_never_gives_other_values(seed, saved, tmp_path):
    """Wherever it is, either it has no effect, or the checkpoint before is used."""
    shutil.copytree(saved, tmp_path / "checkpoint")
    draw = np.random.default_rng(seed)
    files = sorted(path for path in (tmp_path / "checkpoint/2/arrays").rglob("*") if path.is_file())
    largest = max(files, key=lambda path: path.stat().st_size)
    file = largest if seed % 2 == 0 else files[draw.integers(len(files))]
    flip(file, int(draw.integers(file.stat().st_size)))
    value, tree, progress, said = restored(tmp_path / "checkpoint")
    np.testing.assert_array_equal(np.asarray(tree["a"]), value)
    assert (value, progress.epoch) in ((2.5, 2), (1.5, 1)) and bool(said) == (value == 1.5)


@pytest.mark.parametrize(
    ("pattern", "instead"), [('"epoch": ?2', '"epoch": 3'), ("0.123456789", "0.123456780"), ('"epoch"', '"epoxh"')]
)
def test_a_changed_digit_beside_the_arrays_is_noticed(pattern, instead, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "checkpoint")
    file = next(path for path in (tmp_path / "checkpoint/2/progress").iterdir() if path.is_file())
    text = file.read_text()
    assert re.search(pattern, text)
    file.write_text(re.sub(pattern, instead, text, count=1))
    value, _, progress, said = restored(tmp_path / "checkpoint")
    assert (value, progress) == (1.5, Progress(1, [0.123456789]))
    assert len(said) == 1 and "set aside" in said[0] and (tmp_path / "damaged/2").is_dir()


def test_arrays_of_another_checkpoint_are_noticed(saved, tmp_path):
    """Every file is intact, as after copying a checkpoint in two attempts."""
    shutil.copytree(saved, tmp_path / "checkpoint")
    shutil.rmtree(tmp_path / "checkpoint/2/arrays")
    shutil.copytree(saved / "1/arrays", tmp_path / "checkpoint/2/arrays")
    value, _, _, said = restored(tmp_path / "checkpoint")
    assert value == 1.5 and "do not match its checksum" in said[0]


def test_a_checkpoint_of_an_earlier_version_is_restored(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "checkpoint")
    file = next(path for path in (tmp_path / "checkpoint/2/progress").iterdir() if path.is_file())
    plain = json.loads(file.read_text())
    del plain["checksum"]
    file.write_text(json.dumps(plain))
    assert restored(tmp_path / "checkpoint")[0] == 2.5


@pytest.mark.parametrize("stage", ["its files are read", "its checksum is told"])
def test_what_another_process_cannot_read_is_read_in_none(stage, saved, tmp_path, monkeypatch):
    """Otherwise processes could resume from different checkpoints."""
    shutil.copytree(saved, tmp_path / "checkpoint")
    asked = []

    def any_of(flags):
        asked.append(list(flags))
        return [len(asked) == 1 if stage == "its files are read" else len(asked) == 2]

    monkeypatch.setattr(processes, "any_of", any_of)
    value, _, progress, said = restored(tmp_path / "checkpoint")
    assert (value, progress.epoch) == (1.5, 1) and (tmp_path / "damaged/2").is_dir()
    assert len(said) == 1 and "(another process of this run cannot read it)" in said[0]
    # All processes agree before each checksum, which all of them compute, and after it.
    assert asked == [[False]] * (3 if stage == "its files are read" else 4)


def test_where_none_is_whole_none_is_thrown_away(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "checkpoint")
    for number in (1, 2):
        file = next(path for path in (tmp_path / f"checkpoint/{number}/progress").iterdir() if path.is_file())
        file.write_text(file.read_text().replace("0.123456789", "0.123456780"))
    with pytest.raises(RunFailed, match="start again with --overwrite"):
        restored(tmp_path / "checkpoint")
    assert {path.name for path in (tmp_path / "checkpoint").iterdir()} == {"1", "2"}


def test_the_checksum_is_of_names_types_shapes_and_values():
    one = {"a": np.zeros(4, np.float32), "b": np.zeros(2, np.int32)}
    others = [
        {"a": one["a"], "c": one["b"]},
        {**one, "b": np.zeros(2, np.float32)},
        {**one, "a": np.zeros((2, 2), np.float32)},
        {**one, "a": np.array([0, 0, 0, -0.0], np.float32)},
    ]
    assert len({checksum(tree, {"x": 1}) for tree in (one, *others)} | {checksum(one, {"x": 2})}) == 6
    assert checksum({name: jnp.asarray(leaf) for name, leaf in one.items()}, {"x": 1}) == checksum(one, {"x": 1})
