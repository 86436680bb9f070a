"""Any cell on `mini`, the model that comes with jpeft: `configs/mini.py:lora_agnews_medium` (jpeft/configs/mini.py)."""

from jpeft.configs.mini import get_config

__all__ = ["get_config"]
