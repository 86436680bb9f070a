"""LoRA (later) on AG News, at most 1,000 training examples: one cell of the paper's Table 2.

Run:       python main.py --config configs/lora_later_agnews_medium.py
Published: accuracy 0.8892 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="lora", ablation="later", task="agnews", scale="medium")
