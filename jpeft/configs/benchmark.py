"""The cells of the paper's benchmark: a method on a task at a scale, every other setting at the paper's default.

  jpeft grid --config benchmark               runs every cell
  jpeft train --config ia3_agnews_low         runs one

`jpeft train --help` and `jpeft/config.py` list the config keys, their meaning and defaults.
"""

from typing import Any

from ml_collections import ConfigDict

from jpeft.config import SCALES, default_config
from jpeft.data.tasks import TASKS
from jpeft.peft.methods import METHODS


def cell(*, method: str, task: str, scale: str, ablation: str | None = None) -> ConfigDict:
    """The config of one cell of the paper's Table 1 or, with an ablation, of Table 2."""
    config = default_config()
    config.update_from_flattened_dict(
        {"method.name": method, "data.task": task, "data.scale": scale, "ablation.name": ablation}
    )
    return config


def parts(name: str) -> dict[str, Any]:
    """Parse the name of a cell, `<method>[_<ablation>]_<task>_<scale>`, into the arguments of `cell`.

    The ablation is not checked.

    Raises:
      ValueError: the method, task or scale is unknown.
    """
    method, *ablation, task, scale = split if len(split := name.split("_")) >= 3 else ("", "", "")
    if method not in METHODS or task not in TASKS or scale not in SCALES:
        raise ValueError(f"there is no cell {name!r}; one is lora_agnews_medium.")
    return {"method": method, "task": task, "scale": scale, "ablation": "_".join(ablation) or None}


def get_config(name: str = "lora_agnews_low") -> ConfigDict:
    """The config of the cell called `name`, with the paper's settings."""
    return cell(**parts(name))
