"""(IA)³ on SAMSum, at most 10,000 training examples: one cell of the paper's Table 1.

Run:       python main.py --config configs/ia3_samsum_high.py
Published: ROUGE-L 0.43998 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="ia3", task="samsum", scale="high")
