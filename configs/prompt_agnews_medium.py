"""Prompt tuning on AG News, at most 1,000 training examples: one cell of the paper's Table 1.

Run:       python main.py --config configs/prompt_agnews_medium.py
Published: accuracy 0.7312 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="prompt", task="agnews", scale="medium")
