"""Rows of your own: a JSONL, CSV or Parquet file, or a directory of such splits (docs/data.md).

  jpeft train --config custom --config.data.path=my.jsonl --config.model.name=google/flan-t5-base
  jpeft train --config custom:ia3 --config.data.path=my.csv --config.model.name=mini

After the colon: the method, LoRA by default. All rows train but a tenth each for validation and test, for 10 epochs at
most. Few different targets are taken for classes and judged by accuracy; otherwise answers are judged by ROUGE-L.
"""

from ml_collections import ConfigDict

from jpeft.configs.benchmark import cell
from jpeft.peft.methods import METHODS


def get_config(method: str = "lora") -> ConfigDict:
    """The method of that name on rows of the user's own."""
    if method not in METHODS:
        raise ValueError(f"there is no method {method!r}; expected one of {', '.join(METHODS)}.")
    return cell(method=method, task="custom", scale="all")
