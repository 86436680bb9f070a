"""LoRA (drop query output) on CoLA, at most 1,000 training examples: one cell of the paper's Table 2.

Run:       python main.py --config configs/lora_drop_query_output_cola_medium.py
Published: accuracy 0.8084 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="lora", ablation="drop_query_output", task="cola", scale="medium")
