"""A shelf of adapters of the two-block checkpoint, and an engine that serves them."""

from pathlib import Path

import pytest

from jpeft.adapters.files import save_adapter
from jpeft.model import t5_weights
from jpeft.serve.engine import Engine
from jpeft.serve.shelf import Shelf
from jpeft.serve.start import Choices, ShapeFlags, start
from tests.serve.adapters import METHODS, make

ON_SHELF = ("ia3", "ia3_official", "bitfit")
SIZES = ShapeFlags(batch_sizes=(4,), input_lengths=(16,), output_lengths=(4,))


@pytest.fixture(scope="session")
def tiny_shelf(tmp_path_factory, deeper_checkpoint) -> Path:
    """Adapters of the two-block checkpoint, one directory each; treat as read-only."""
    root = tmp_path_factory.mktemp("shelf")
    base = t5_weights.load(deeper_checkpoint)
    for seed, name in enumerate(ON_SHELF):
        adapter = make(base, *METHODS[name], seed=seed)
        save_adapter(adapter.model, adapter.method, adapter.sites, root / name, base_name="tiny")
    return root


@pytest.fixture(scope="session")
def started(deeper_checkpoint, tiny_shelf) -> tuple[Engine, Shelf]:
    """A compiled engine with every adapter of the shelf; a test that unloads an adapter must load it again."""
    choices = Choices(
        model=str(deeper_checkpoint),
        adapters=tiny_shelf,
        dtype="float32",
        base_names=(str(deeper_checkpoint), "tiny"),
        capacity=4,
        room=(),
    )
    return start(choices, SIZES, say=lambda line: None)
