"""(IA)³ on AG News, at most 100 training examples: one cell of the paper's Table 1.

Run:       python main.py --config configs/ia3_agnews_low.py
Published: accuracy 0.67 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="ia3", task="agnews", scale="low")
