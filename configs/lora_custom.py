"""LoRA on rows of your own: a JSONL, CSV or Parquet file with `input` and `target`, or a directory of such splits.

Run:       python main.py --config configs/lora_custom.py --config.data.path=my.jsonl \
               --config.model.name=google/flan-t5-base

All rows train but a tenth each for validation and test, for 10 epochs at most. Few different targets are taken for
classes and judged by accuracy; otherwise answers are judged by ROUGE-L. Another method: --config.method.name=ia3.
"""

from configs.benchmark import cell


def get_config():
    return cell(method="lora", task="custom", scale="all")
