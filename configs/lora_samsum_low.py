"""LoRA on SAMSum, at most 100 training examples: one cell of the paper's Table 1.

Run:       python main.py --config configs/lora_samsum_low.py
Published: ROUGE-L 0.41197 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="lora", task="samsum", scale="low")
