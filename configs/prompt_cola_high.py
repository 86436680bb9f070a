"""Prompt tuning on CoLA, at most 10,000 training examples: one cell of the paper's Table 1.

Run:       python main.py --config configs/prompt_cola_high.py
Published: accuracy 0.80567 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="prompt", task="cola", scale="high")
