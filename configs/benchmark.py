"""What the benchmark's config files share. A cell is a method on a task at a scale; the rest are the paper's defaults.

Keys, their meaning and their defaults: `python main.py --help`, or `jpeft/config.py`.
"""

from ml_collections import ConfigDict

from jpeft.config import default_config


def cell(*, method: str, task: str, scale: str, ablation: str | None = None) -> ConfigDict:
    """One cell of Table 1 or, with an ablation, of Table 2."""
    config = default_config()
    config.update_from_flattened_dict(
        {"method.name": method, "data.task": task, "data.scale": scale, "ablation.name": ablation}
    )
    return config
