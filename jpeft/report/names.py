"""Labels of the names in result files, in the paper's order and words; written out here since JAX is not loaded."""

from collections.abc import Iterable

from jpeft.eval import metrics
from jpeft.report.published import ABLATION_LABELS

PAPER_METHODS = {"full": "Full Tuning", "ia3": "(IA)³", "lora": "LoRA", "bitfit": "BitFit", "prompt": "Prompt Tune"}
# The methods that are not in the paper.
OTHER_METHODS = {
    "adapter": "Adapter",
    "prefix": "Prefix Tuning",
    "dora": "DoRA",
    "vera": "VeRA",
    "ln": "LayerNorm Tuning",
    "adalora": "AdaLoRA",
}
PEFT = ("ia3", "lora", "bitfit", "prompt")
PAPER_TASKS = {"agnews": "AG News", "cola": "CoLA", "e2e": "E2E NLG", "samsum": "SAMSum"}
PAPER_SCALES = {"low": "low", "medium": "med.", "high": "high"}
_PAPERS_METRICS = ("accuracy", "rouge_l", "matthews_correlation", "unknown_answers", "rouge_l_multi_reference")
METRIC_LABELS = {name: metrics.METRICS[name].title for name in dict.fromkeys([*_PAPERS_METRICS, *metrics.METRICS])}
PAPER_ABLATIONS = {
    "ia3": ("early", "later", "random", "drop_attention", "drop_dense"),
    "lora": ("early", "later", "random", "drop_self_attention", "drop_cross_attention", "drop_query_output"),
}
PAPER_MODEL = "google/flan-t5-xl"
# Test rows of the paper: at most 2,500; half of CoLA's 1,043 labelled validation rows; all of SAMSum's.
PAPER_TEST_ROWS = {"agnews": 2500, "cola": 522, "e2e": 2500, "samsum": 819}


def method_label(method: str) -> str:
    """The label of a method, such as `LoRA`; a user's own method keeps its name."""
    return PAPER_METHODS.get(method) or OTHER_METHODS.get(method, method)


def task_label(task: str) -> str:
    """The label of a task, such as `AG News`."""
    return PAPER_TASKS.get(task, task)


def row_label(method: str, scale: str) -> str:
    """The label of a row in the paper's tables, such as `LoRA (med.)`."""
    return f"{method_label(method)} ({PAPER_SCALES.get(scale, scale)})"


def ablation_label(ablation: str | None) -> str:
    """The label of an ablation in Table 3, such as `drop attention`."""
    return ABLATION_LABELS.get(ablation) or str(ablation).replace("_", " ")


def in_order(found: Iterable[str], known: Iterable[str]) -> list[str]:
    """Sorts names: those in `known` by their order there, then all others alphabetically."""
    found, known = set(found), list(known)
    return [name for name in known if name in found] + sorted(found.difference(known))
