"""LoRA (drop self attention) on SAMSum, at most 1,000 training examples: one cell of the paper's Table 2.

Run:       python main.py --config configs/lora_drop_self_attention_samsum_medium.py
Published: ROUGE-L 0.415 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="lora", ablation="drop_self_attention", task="samsum", scale="medium")
