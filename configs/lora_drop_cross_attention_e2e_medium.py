"""LoRA (drop cross attention) on E2E NLG, at most 1,000 training examples: one cell of the paper's Table 2.

Run:       python main.py --config configs/lora_drop_cross_attention_e2e_medium.py
Published: ROUGE-L 0.47966 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="lora", ablation="drop_cross_attention", task="e2e", scale="medium")
