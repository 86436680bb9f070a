"""Prompt tuning on AG News, at most 100 training examples: one cell of the paper's Table 1.

Run:       python main.py --config configs/prompt_agnews_low.py
Published: accuracy 0.60684 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="prompt", task="agnews", scale="low")
