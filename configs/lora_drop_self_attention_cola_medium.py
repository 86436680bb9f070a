"""LoRA (drop self attention) on CoLA, at most 1,000 training examples: one cell of the paper's Table 2.

Run:       python main.py --config configs/lora_drop_self_attention_cola_medium.py
Published: accuracy 0.7107 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="lora", ablation="drop_self_attention", task="cola", scale="medium")
