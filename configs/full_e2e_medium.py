"""Full tuning on E2E NLG, at most 1,000 training examples: one cell of the paper's Table 1.

Run:       python main.py --config configs/full_e2e_medium.py
Published: ROUGE-L 0.46523 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="full", task="e2e", scale="medium")
