"""Full tuning on CoLA, at most 100 training examples: one cell of the paper's Table 1.

Run:       python main.py --config configs/full_cola_low.py
Published: accuracy 0.699 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="full", task="cola", scale="low")
