"""The cells of the paper's grid by name, as they come with the package: `configs/benchmark.py:ia3_agnews_low`."""

from jpeft.configs.benchmark import cell, get_config, parts

__all__ = ["cell", "get_config", "parts"]
