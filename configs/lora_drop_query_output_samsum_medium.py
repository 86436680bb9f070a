"""LoRA (drop query output) on SAMSum, at most 1,000 training examples: one cell of the paper's Table 2.

Run:       python main.py --config configs/lora_drop_query_output_samsum_medium.py
Published: ROUGE-L 0.43459 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="lora", ablation="drop_query_output", task="samsum", scale="medium")
