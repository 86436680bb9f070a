"""LoRA on E2E NLG, at most 100 training examples: one cell of the paper's Table 1.

Run:       python main.py --config configs/lora_e2e_low.py
Published: ROUGE-L 0.48257 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="lora", task="e2e", scale="low")
