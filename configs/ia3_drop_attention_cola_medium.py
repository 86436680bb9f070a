"""(IA)³ (drop attention) on CoLA, at most 1,000 training examples: one cell of the paper's Table 2.

Run:       python main.py --config configs/ia3_drop_attention_cola_medium.py
Published: accuracy 0.7413 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="ia3", ablation="drop_attention", task="cola", scale="medium")
