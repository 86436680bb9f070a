"""(IA)³ (drop attention) on SAMSum, at most 1,000 training examples: one cell of the paper's Table 2.

Run:       python main.py --config configs/ia3_drop_attention_samsum_medium.py
Published: ROUGE-L 0.2359 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="ia3", ablation="drop_attention", task="samsum", scale="medium")
