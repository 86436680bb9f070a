"""Full tuning on CoLA, at most 10,000 training examples: one cell of the paper's Table 1.

Run:       python main.py --config configs/full_cola_high.py
Published: accuracy 0.81417 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="full", task="cola", scale="high")
