"""BitFit on CoLA, at most 100 training examples: one cell of the paper's Table 1.

Run:       python main.py --config configs/bitfit_cola_low.py
Published: accuracy 0.7203 (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell(method="bitfit", task="cola", scale="low")
