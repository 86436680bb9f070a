"""Any cell on `mini`, the small model that comes with jpeft: the benchmark on a laptop, with no network.

  jpeft train --config mini:lora_agnews_medium --config.data.source=sample
  jpeft train --config mini:ia3_samsum_low --config.data.path=DATA
  jpeft train --config mini:lora_custom_all --config.data.path=my.jsonl

After the colon: <method>[_<ablation>]_<task>_<scale>. A model of 9 million parameters needs other settings than the
paper's, which are FLAN-T5-XL's; its own come with it (jpeft/model/pretrained/mini/jpeft.json, docs/mini.md), so that
any config with `model.name=mini` takes them. A zero-shot score is added here.
"""

from ml_collections import ConfigDict

from jpeft.configs.benchmark import cell, parts


def get_config(name: str = "lora_agnews_medium") -> ConfigDict:
    """The config called `name`, with the packaged model `mini` in the place of the paper's."""
    config = cell(**parts(name))
    config.update_from_flattened_dict({"model.name": "mini", "eval.zero_shot": True})
    return config
