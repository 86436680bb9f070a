"""LoRA on rows of your own: a JSONL, CSV or Parquet file, or a directory of such splits (docs/data.md).

Run:       python main.py --config configs/lora_custom.py --config.data.path=my.jsonl \\
               --config.model.name=google/flan-t5-base

It is `--config custom`, which comes with the package. Another method: --config.method.name=ia3.
"""

from jpeft.configs.custom import get_config

__all__ = ["get_config"]
