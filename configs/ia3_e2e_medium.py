"""(IA)³ on E2E NLG, at most 1,000 training examples: one cell of the paper's Table 1.

Run:       python main.py --config configs/ia3_e2e_medium.py
Published: ROUGE-L 0.48483 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="ia3", task="e2e", scale="medium")
