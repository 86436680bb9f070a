"""LoRA (early) on CoLA, at most 1,000 training examples: one cell of the paper's Table 2.

Run:       python main.py --config configs/lora_early_cola_medium.py
Published: accuracy 0.70306 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="lora", ablation="early", task="cola", scale="medium")
