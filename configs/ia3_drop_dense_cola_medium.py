"""(IA)³ (drop dense) on CoLA, at most 1,000 training examples: one cell of the paper's Table 2.

Run:       python main.py --config configs/ia3_drop_dense_cola_medium.py
Published: accuracy 0.7643 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="ia3", ablation="drop_dense", task="cola", scale="medium")
