"""Any cell on `mini`, the small model that ships with jpeft: the benchmark on a laptop, without a network.

  jpeft train --config mini:lora_agnews_medium --config.data.source=sample
  jpeft train --config mini:ia3_samsum_low --config.data.path=DATA
  jpeft train --config mini:lora_custom_all --config.data.path=my.jsonl

The part after the colon is <method>[_<ablation>]_<task>_<scale>. The paper's settings are for FLAN-T5-XL; a model of 9
million parameters needs others. They are stored with the model (jpeft/model/pretrained/mini/jpeft.json, docs/mini.md)
and apply to any config with `model.name=mini`. This config also measures the zero-shot score.
"""

from ml_collections import ConfigDict

from jpeft.configs.benchmark import cell, parts


def get_config(name: str = "lora_agnews_medium") -> ConfigDict:
    """The config of the cell `name`, with the packaged model `mini` instead of the paper's."""
    config = cell(**parts(name))
    config.update_from_flattened_dict({"model.name": "mini", "eval.zero_shot": True})
    return config
