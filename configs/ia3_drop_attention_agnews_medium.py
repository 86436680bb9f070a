"""(IA)³ (drop attention) on AG News, at most 1,000 training examples: one cell of the paper's Table 2.

Run:       python main.py --config configs/ia3_drop_attention_agnews_medium.py
Published: accuracy 0.6972 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="ia3", ablation="drop_attention", task="agnews", scale="medium")
