"""What the benchmark's config files share. A cell is a method on a task at a scale; the rest are the paper's defaults.

  jpeft grid --config benchmark

does all of them; one alone is --config ia3_agnews_low. Keys, their meaning and defaults: `jpeft train --help`, or
`jpeft/config.py`.
"""

from typing import Any

from ml_collections import ConfigDict

from jpeft.config import SCALES, default_config
from jpeft.data.tasks import TASKS
from jpeft.peft.methods import METHODS


def cell(*, method: str, task: str, scale: str, ablation: str | None = None) -> ConfigDict:
    """One cell of Table 1 or, with an ablation, of Table 2."""
    config = default_config()
    config.update_from_flattened_dict(
        {"method.name": method, "data.task": task, "data.scale": scale, "ablation.name": ablation}
    )
    return config


def parts(name: str) -> dict[str, Any]:
    """What `cell` needs, from a name `<method>[_<ablation>]_<task>_<scale>`. Raises ValueError for any other."""
    method, *ablation, task, scale = split if len(split := name.split("_")) >= 3 else ("", "", "")
    if method not in METHODS or task not in TASKS or scale not in SCALES:
        raise ValueError(f"there is no cell {name!r}; one is lora_agnews_medium.")
    return {"method": method, "task": task, "scale": scale, "ablation": "_".join(ablation) or None}


def get_config(name: str = "lora_agnews_low") -> ConfigDict:
    """The cell of that name, with the paper's settings."""
    return cell(**parts(name))
