"""Pretrains `mini`, the model that comes with jpeft; as it comes with the package: jpeft/configs/pretrain/mini.py."""

from jpeft.configs.pretrain.mini import get_config

__all__ = ["get_config"]
