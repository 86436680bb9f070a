"""Prompt tuning on SAMSum, at most 10,000 training examples: one cell of the paper's Table 1.

Run:       python main.py --config configs/prompt_samsum_high.py
Published: ROUGE-L 0.3914 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="prompt", task="samsum", scale="high")
