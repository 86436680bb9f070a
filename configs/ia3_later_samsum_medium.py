"""(IA)³ (later) on SAMSum, at most 1,000 training examples: one cell of the paper's Table 2.

Run:       python main.py --config configs/ia3_later_samsum_medium.py
Published: ROUGE-L 0.4128 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="ia3", ablation="later", task="samsum", scale="medium")
