"""The cells of a grid: the requested combinations of method, ablation, task, scale and seed."""

import dataclasses
import fnmatch
import itertools
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from jpeft.config import Run
from jpeft.errors import UserError
from jpeft.peft import methods as peft_methods
from jpeft.typed_config import one_of
from jpeft.words import counted

# The paper ablates at medium scale only.
_PAPER_ABLATION_SCALE = "medium"
ALL_ABLATIONS = ("paper", "all", "none")  # each stands for many names and is given alone


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
      config_name: the argument that a config file makes it from, `<method>[_<ablation>]_<task>_<scale>`.
      run: its whole config.
    """

    config_name: str
    run: Run

    @property
    def name(self) -> str:
        """The name of the cell and of its directory, unique within a grid."""
        return f"{self.config_name}_seed{self.run.train.seed}"

    @property
    def kinship(self) -> tuple[str, str, str]:
        """Task, method and ablation: the longer the common prefix of two cells, the more one process reuses."""
        return self.run.data.task, self.run.method.name, self.run.ablation.name or ""

    def directory(self, workdir: Path) -> Path:
        return workdir / self.name


def config_names(
    methods: Sequence[str], tasks: Sequence[str], scales: Sequence[str], ablations: Sequence[str] | str
) -> list[str]:
    """The cells' config names; those that share most are next to each other.

    Args:
      ablations: names, each used for the methods that have it; or `none`; `all` (every ablation at every scale); or
        `paper` (every ablation at medium scale). With the paper's methods, tasks and scales, `paper` gives the 60 cells
        of Table 1 and the 44 of Table 2 that are not in Table 1.

    Raises:
      UserError: none of the methods knows an ablation of that name.
    """
    of_method = peft_methods.ablations()
    known = {name for method in methods for name in of_method.get(method, ())}
    if isinstance(ablations, str):
        wanted = set() if ablations == "none" else known
    else:
        wanted = {_known_ablation(name, known) for name in ablations}
    names = []
    for task, method in itertools.product(tasks, methods):
        names += [f"{method}_{task}_{scale}" for scale in scales]
        for ablation in (name for name in of_method.get(method, ()) if name in wanted):
            names += [
                f"{method}_{ablation}_{task}_{scale}"
                for scale in scales
                if ablations != "paper" or scale == _PAPER_ABLATION_SCALE
            ]
    return names


def _known_ablation(name: str, known: Collection[str]) -> str:
    if name in ALL_ABLATIONS:
        raise UserError(f"--ablations {name} is given alone; leave it out, or the other names.")
    return one_of("--ablations", name, sorted(known))


def expand(
    names: Sequence[str], seeds: Sequence[int], configure: Callable[[str, int], Run], *, only: str | None = None
) -> list[Cell]:
    """Makes a cell for each name and seed.

    Args:
      configure: makes the run of a name and a seed.
      only: a pattern with `*` and `?` that the whole config name has to match; None keeps all.

    Raises:
      UserError: no name matches, or as `configure` does.
    """
    chosen = [name for name in names if only is None or fnmatch.fnmatchcase(name, only)]
    if not chosen:
        raise UserError(f"--only {only!r} matches none of the {counted(len(names), 'cell')}; one is {names[0]}.")
    return [Cell(name, configure(name, seed)) for name in chosen for seed in seeds]
