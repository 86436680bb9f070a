"""Full tuning on E2E NLG, at most 100 training examples: one cell of the paper's Table 1.

Run:       python main.py --config configs/full_e2e_low.py
Published: ROUGE-L 0.46464 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="full", task="e2e", scale="low")
