"""LoRA on AG News, at most 10,000 training examples: one cell of the paper's Table 1.

Run:       python main.py --config configs/lora_agnews_high.py
Published: accuracy 0.9264 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="lora", task="agnews", scale="high")
