"""(IA)³ on SAMSum, at most 100 training examples: one cell of the paper's Table 1.

Run:       python main.py --config configs/ia3_samsum_low.py
Published: ROUGE-L 0.32924 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="ia3", task="samsum", scale="low")
