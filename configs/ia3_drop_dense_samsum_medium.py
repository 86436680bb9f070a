"""(IA)³ (drop dense) on SAMSum, at most 1,000 training examples: one cell of the paper's Table 2.

Run:       python main.py --config configs/ia3_drop_dense_samsum_medium.py
Published: ROUGE-L 0.4292 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="ia3", ablation="drop_dense", task="samsum", scale="medium")
