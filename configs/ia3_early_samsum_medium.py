"""(IA)³ (early) on SAMSum, at most 1,000 training examples: one cell of the paper's Table 2.

Run:       python main.py --config configs/ia3_early_samsum_medium.py
Published: ROUGE-L 0.4154 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="ia3", ablation="early", task="samsum", scale="medium")
