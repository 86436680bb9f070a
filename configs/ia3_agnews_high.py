"""(IA)³ on AG News, at most 10,000 training examples: one cell of the paper's Table 1.

Run:       python main.py --config configs/ia3_agnews_high.py
Published: accuracy 0.9252 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="ia3", task="agnews", scale="high")
