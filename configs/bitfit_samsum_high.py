"""BitFit on SAMSum, at most 10,000 training examples: one cell of the paper's Table 1.

Run:       python main.py --config configs/bitfit_samsum_high.py
Published: ROUGE-L 0.43098 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="bitfit", task="samsum", scale="high")
