"""The published numbers of Pu et al. (2023), from `published.json`, by jpeft's names."""

import functools
import json
from importlib import resources
from typing import Any

# The paper's labels of the ablations.
ABLATION_LABELS = {
    None: "full layers/modules",
    "early": "select early layers",
    "later": "select later layers",
    "random": "select random layers",
    "drop_self_attention": "drop self-attention",
    "drop_cross_attention": "drop enc/dec-attention",
    "drop_query_output": "drop query/output attention",
    "drop_attention": "drop attention",
    "drop_dense": "drop dense activation",
}
# Table 2 words two of them differently from Table 3.
TABLE_2_LABELS = {**ABLATION_LABELS, None: "all layers", "random": "select 50% random layers"}


@functools.cache
def published() -> dict[str, Any]:
    """All numbers of the paper that jpeft compares with, by table, as printed."""
    return json.loads(resources.files("jpeft.report").joinpath("published.json").read_text(encoding="utf-8"))


def published_parameters() -> dict[tuple[str, str | None], int]:
    """Trainable parameters by method and ablation, from Table 3 and the text of appendix A.4."""
    table = published()["table3_parameters"]
    counts: dict[tuple[str, str | None], int]
    counts = {("full", None): table["total"], ("bitfit", None): table["bitfit"], ("prompt", None): table["prompt"]}
    for method in ("lora", "ia3"):
        for ablation, label in ABLATION_LABELS.items():
            if label in table[method]:
                counts[method, ablation] = table[method][label]
    return counts


def published_metric(method: str, task: str, scale: str, ablation: str | None = None) -> float | None:
    """The metric of Table 1, or of Table 2 for an ablation; None if the paper has none."""
    if ablation is None:
        return published()["table1_metric"][scale][method][task]
    if scale != "medium":
        return None
    return published()["table2_ablation_metric_medium"].get(method, {}).get(TABLE_2_LABELS[ablation], {}).get(task)
