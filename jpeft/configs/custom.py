"""Rows of your own: a JSONL, CSV or Parquet file, or a directory of such splits (docs/data.md).

  jpeft train --config custom --config.data.path=my.jsonl --config.model.name=google/flan-t5-base
  jpeft train --config custom:ia3 --config.data.path=my.csv --config.model.name=mini

The part after the colon is the method, LoRA by default. A tenth of the rows each validates and tests, the others train,
for at most 10 epochs. A few distinct targets are taken as classes and scored by accuracy; other answers are scored by
ROUGE-L.
"""

from ml_collections import ConfigDict

from jpeft.configs.benchmark import cell
from jpeft.peft.methods import METHODS


def get_config(method: str = "lora") -> ConfigDict:
    """The config of `method` on the user's own rows."""
    if method not in METHODS:
        raise ValueError(f"there is no method {method!r}; expected one of {', '.join(METHODS)}.")
    return cell(method=method, task="custom", scale="all")
