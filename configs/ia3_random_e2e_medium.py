"""(IA)³ (random) on E2E NLG, at most 1,000 training examples: one cell of the paper's Table 2.

Run:       python main.py --config configs/ia3_random_e2e_medium.py
Published: ROUGE-L 0.4 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="ia3", ablation="random", task="e2e", scale="medium")
