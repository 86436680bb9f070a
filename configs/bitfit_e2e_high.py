"""BitFit on E2E NLG, at most 10,000 training examples: one cell of the paper's Table 1.

Run:       python main.py --config configs/bitfit_e2e_high.py
Published: ROUGE-L 0.47973 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="bitfit", task="e2e", scale="high")
