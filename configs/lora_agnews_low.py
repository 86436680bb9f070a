"""LoRA on AG News, at most 100 training examples: one cell of the paper's Table 1.

Run:       python main.py --config configs/lora_agnews_low.py
Published: accuracy 0.8612 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="lora", task="agnews", scale="low")
