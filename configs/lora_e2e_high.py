"""LoRA on E2E NLG, at most 10,000 training examples: one cell of the paper's Table 1.

Run:       python main.py --config configs/lora_e2e_high.py
Published: ROUGE-L 0.4756 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="lora", task="e2e", scale="high")
