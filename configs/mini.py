"""Any cell on `mini`, the small model that comes with jpeft: the benchmark on a laptop, with no network.

  python main.py --config configs/mini.py:lora_agnews_medium --config.data.source=sample
  python main.py --config configs/mini.py:ia3_samsum_low --config.data.path=DATA
  python main.py --config configs/mini.py:lora_custom_all --config.data.path=my.jsonl

After the colon: <method>[_<ablation>]_<task>_<scale>. A model of 9 million parameters needs other settings than the
paper's, which are FLAN-T5-XL's: steps of 16 rows, not 64 (in four micro-batches, since four rows of like length are
padded less than sixteen), higher learning rates for what starts at nothing, no dropout,
and more patience, since at such rates the validation loss may rise once before it falls. The rates were chosen by
validation loss (docs/mini.md).
"""

from ml_collections import ConfigDict

from configs.benchmark import cell, parts

_PEAK_LEARNING_RATE = {"full": 3e-4, "lora": 1e-2, "ia3": 1e-1, "bitfit": 3e-2, "prompt": 3e-1}


def get_config(name: str = "lora_agnews_medium") -> ConfigDict:
    """The cell of that name."""
    chosen = parts(name)
    config = cell(**chosen)
    peak = _PEAK_LEARNING_RATE[chosen["method"]]
    config.update_from_flattened_dict(
        {
            "model.name": "mini",
            "model.dropout_rate": 0.0,
            "train.batch_size": 4,
            "train.accumulation_steps": 4,
            "train.patience": 3,
            "train.learning_rate.initial": peak / 10,
            "train.learning_rate.warmup": peak,
            "train.learning_rate.annealing": peak / 10,
            "eval.zero_shot": True,
            "eval.batch_size": 32,
        }
    )
    return config
