"""Fingerprints identify large files by samples of their content."""

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from jpeft import fingerprints
from jpeft.errors import RunFailed
from jpeft.fingerprints import fingerprint, fingerprints_of


@pytest.fixture
def small_limits(monkeypatch):
    for name, value in {"_LARGEST_HASHED_WHOLE": 1000, "_SMALL_TENSOR": 256, "_SAMPLE": 64, "_BEGINNING": 512}.items():
        monkeypatch.setattr(fingerprints, name, value)


def tensors(**changes):
    made = {"matrix": np.zeros((64, 64), np.float32), "norm": np.ones(16, np.float32)}
    for name, (place, value) in changes.items():
        made[name].reshape(-1)[place] = value
    return made


@pytest.mark.usefixtures("small_limits")
def test_a_large_file_of_tensors_is_known_by_its_header_its_vectors_and_pieces_of_its_matrices(tmp_path, monkeypatch):
    def of(made):
        save_file(made, tmp_path / "model.safetensors")
        return fingerprint([tmp_path / "model.safetensors"])

    first = of(tensors())
    assert of(tensors()) == first
    seen = {
        of(tensors(norm=(7, 2.0))),
        of(tensors(matrix=(slice(None), 1.0))),
        of(tensors(matrix=(0, 1.0))),
        of(tensors(matrix=(-1, 1.0))),
        of({"other": tensors()["matrix"], "norm": tensors()["norm"]}),
        of({**tensors(), "more": np.zeros(1, np.float32)}),
    }
    assert len(seen | {first}) == 7
    assert of(tensors(matrix=(100, 1.0))) == first, "between the pieces, as the module says"


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("name", ["model.gguf", "model.safetensors"])  # the second is damaged
def test_any_other_large_file_is_known_by_its_size_its_beginning_and_pieces(name, tmp_path):
    def of(data):
        (tmp_path / name).write_bytes(data)
        return fingerprint([tmp_path / name])

    zeros = bytes(200_000)
    changed = [zeros[:place] + b"x" + zeros[place + 1 :] for place in (0, 511, len(zeros) - 1)]
    assert len({of(data) for data in (zeros, zeros + b"\0", *changed)}) == 5


def test_a_file_that_is_replaced_within_a_clock_tick_is_read_again(tmp_path):
    file, other = tmp_path / "a", tmp_path / "b"
    file.write_bytes(b"one")
    first, times = fingerprint([file]), file.stat()
    other.write_bytes(b"two")
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(file)
    assert fingerprint([file]) != first
    with pytest.raises(FileNotFoundError):
        fingerprint([other])


def test_what_cannot_be_read_has_no_fingerprint_yet_and_is_no_error(tmp_path):
    def damaged():
        raise RunFailed("the index is damaged")

    found = fingerprints_of(
        {
            "there": lambda: "0123",
            "absent": lambda: fingerprint([tmp_path / "absent"]),
            "unnameable": lambda: fingerprint([tmp_path / "a\0b"]),
            "homeless": lambda: fingerprint([Path("~no-such-user/weights").expanduser()]),
            "damaged": damaged,
            "not asked for": lambda: None,
        }
    )
    assert found == {"there": "0123"}
