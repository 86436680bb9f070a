"""Full tuning on AG News, at most 10,000 training examples: one cell of the paper's Table 1.

Run:       python main.py --config configs/full_agnews_high.py
Published: accuracy 0.934 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="full", task="agnews", scale="high")
