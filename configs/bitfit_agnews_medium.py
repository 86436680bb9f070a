"""BitFit on AG News, at most 1,000 training examples: one cell of the paper's Table 1.

Run:       python main.py --config configs/bitfit_agnews_medium.py
Published: accuracy 0.9156 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="bitfit", task="agnews", scale="medium")
