"""Full tuning on AG News, at most 100 training examples: one cell of the paper's Table 1.

Run:       python main.py --config configs/full_agnews_low.py
Published: accuracy 0.8588 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="full", task="agnews", scale="low")
