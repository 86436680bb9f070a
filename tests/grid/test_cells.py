"""The cells of a grid."""

import pytest

from jpeft.config import Run
from jpeft.errors import UserError
from jpeft.grid.cells import config_names, expand
from jpeft.report.published import published_metric

METHODS = ["full", "lora", "ia3", "bitfit", "prompt"]
TASKS = ["agnews", "cola", "e2e", "samsum"]
SCALES = ["low", "medium", "high"]


def configure(name: str, seed: int) -> Run:
    method, *ablation, task, scale = name.split("_")
    return Run.from_config(
        {
            "method": {"name": method},
            "ablation": {"name": "_".join(ablation) or None},
            "data": {"task": task, "scale": scale},
            "train": {"seed": seed},
        }
    )


def test_the_papers_grid_is_what_its_tables_print():
    names = config_names(METHODS, TASKS, SCALES, "paper")
    assert len(names) == len(set(names)) == 104
    for name in names:
        method, *ablation, task, scale = name.split("_")
        assert published_metric(method, task, scale, "_".join(ablation) or None) is not None, name


@pytest.mark.parametrize(
    ("ablations", "count"), [("none", 12), ("all", 12 + 11 * 6), (["early"], 12 + 2 * 6), (["drop_dense"], 12 + 6)]
)
def test_ablations_are_taken_for_the_methods_that_know_them(ablations, count):
    assert len(config_names(["lora", "ia3"], ["cola", "e2e"], SCALES, ablations)) == count


def test_an_ablation_that_no_method_knows_is_named():
    with pytest.raises(UserError, match="--ablations is 'drop_dense'; expected one of"):
        config_names(["full", "lora"], TASKS, SCALES, ["drop_dense"])
    with pytest.raises(UserError, match="--ablations none is given alone"):
        config_names(["lora"], TASKS, SCALES, ["none", "early"])


def test_each_seed_is_a_cell_of_its_own():
    names = config_names(["ia3"], TASKS, ["low"], "none")
    cells = expand(names, [0, 3], configure, only="*_cola_*")
    assert [cell.name for cell in cells] == ["ia3_cola_low_seed0", "ia3_cola_low_seed3"]
    assert [cell.run.train.seed for cell in cells] == [0, 3]


def test_a_pattern_that_matches_nothing_says_so():
    with pytest.raises(UserError, match="--only 'lora_\\*' matches none of the 4 cells; one is ia3_agnews_low"):
        expand(config_names(["ia3"], TASKS, ["low"], "none"), [0], configure, only="lora_*")
