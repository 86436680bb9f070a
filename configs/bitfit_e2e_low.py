"""BitFit on E2E NLG, at most 100 training examples: one cell of the paper's Table 1.

Run:       python main.py --config configs/bitfit_e2e_low.py
Published: ROUGE-L 0.48825 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="bitfit", task="e2e", scale="low")
