"""Pretrains mini's second stage; as it comes with the package: jpeft/configs/pretrain/mini_pairs.py."""

from jpeft.configs.pretrain.mini_pairs import get_config

__all__ = ["get_config"]
