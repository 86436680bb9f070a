"""Any cell on SmolLM2-135M-Instruct: `configs/smollm2.py:lora_agnews_low` (jpeft/configs/smollm2.py)."""

from jpeft.configs.smollm2 import get_config

__all__ = ["get_config"]
