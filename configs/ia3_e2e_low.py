"""(IA)³ on E2E NLG, at most 100 training examples: one cell of the paper's Table 1.

Run:       python main.py --config configs/ia3_e2e_low.py
Published: ROUGE-L 0.29508 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="ia3", task="e2e", scale="low")
