"""Full tuning on SAMSum, at most 100 training examples: one cell of the paper's Table 1.

Run:       python main.py --config configs/full_samsum_low.py
Published: ROUGE-L 0.3876 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="full", task="samsum", scale="low")
