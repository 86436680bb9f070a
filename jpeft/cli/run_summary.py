"""Prints a test's summary: the metric with its uncertainty, a table of classes, files to look at, and warnings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jpeft.errors import UserError
from jpeft.eval.uncertainty import in_words
from jpeft.files import read_json_object
from jpeft.words import counted

_MOST_CLASSES = 12  # in the table
_MOST_MISTAKES = 3  # beside each class


def metric_line(result: Mapping[str, Any]) -> str:
    """The metric with its uncertainty, number of rows and majority baseline, as far as the result has them."""
    said = [
        in_words(result.get("uncertainty")),
        (result.get("computed_by") or {}).get(result["metric_name"]),
        counted(result["test_examples"], "test row"),
        _majority(result.get("per_class"), result["metric_name"]),
    ]
    return f"{result['metric_name']}  {result['metric']:.4f}  ({'; '.join(filter(None, said))})"


def print_numbers(result: Mapping[str, Any]) -> None:
    """Prints the metric and the other metrics of the test, each with its uncertainty and how it was computed."""
    print(metric_line(result))
    trust, ways = (result.get(key) or {} for key in ("uncertainties", "computed_by"))
    for name, value in result["metrics"].items():
        if name != result["metric_name"]:
            said = "; ".join(filter(None, (in_words(trust.get(name)), ways.get(name))))
            print(f"{name}  {value:.4f}" + (f"  ({said})" if said else ""))


def _majority(per_class: Mapping[str, Any] | None, metric: str) -> str:
    if not per_class:
        return ""
    majority, of = per_class["majority"], "" if metric == "accuracy" else "accuracy "
    return f"always answering {majority['label']!r} gives {of}{majority['share']:.4f}"


def print_summary(result: Mapping[str, Any], workdir: Path) -> None:
    """Prints the metrics of each file of rows, the table of classes, the run's files to look at, and its warnings."""
    for source, part in (result.get("by_source") or {}).items():
        numbers = ", ".join(f"{name} {value:.4f}" for name, value in part["metrics"].items())
        rows = counted(part["test_examples"], "test row")
        print(f"of {source}  {numbers} ({rows}), validation loss {part['validation_loss']:.4f}")
    if result.get("per_class"):
        print_macro_f1(result)
        try:
            print_classes(read_json_object(workdir / "per_class.json"))
        except (UserError, KeyError, TypeError):  # removed or damaged since: the result is valid without it
            pass
    for name, what in (
        ("worst_rows.jsonl", "the rows answered worst, and why"),
        ("per_class.json", "precision, recall, F1 and confusions of each class"),
        ("learning_curve.png", "losses by step"),
    ):
        if (workdir / name).is_file():
            print(f"look at  {workdir / name}  ({what})")
    for line in result.get("warnings", []):
        print(f"warning  {line}")


def print_macro_f1(result: Mapping[str, Any]) -> None:
    """Prints the macro F1 of a classification, unless it is among the metrics anyway."""
    if "macro_f1" not in result.get("metrics", {}):
        print(f"macro_f1  {result['per_class']['macro_f1']:.4f}")


def print_classes(record: Mapping[str, Any]) -> None:
    """Prints the contents of `per_class.json` as a table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    classes, matrix = record["classes"], record["confusion"]
    order = list(classes)
    title = "each class of the test"
    if len(order) > _MOST_CLASSES:
        order = sorted(order, key=lambda label: classes[label]["f1"])[:_MOST_CLASSES]
        title = f"the {_MOST_CLASSES} of {len(classes)} classes with the lowest F1"
    table = Table(title=title, title_justify="left")
    table.add_column("class")
    for name in ("precision", "recall", "F1", "rows"):
        table.add_column(name, justify="right")
    table.add_column("answered instead")
    counts = dict(zip(matrix["rows"], matrix["counts"], strict=True))
    for label in order:
        numbers = classes[label]
        shown = (f"{numbers[name]:.3f}" for name in ("precision", "recall", "f1"))
        table.add_row(Text(label), *shown, f"{numbers['support']:,}", Text(_instead(label, counts[label], matrix)))
    Console(highlight=False).print(table)


def _instead(label: str, counts: list[int], matrix: Mapping[str, Any]) -> str:
    found = [
        (count, "no label" if name is None else str(name))
        for count, name in zip(counts, matrix["columns"], strict=True)
        if count and name != label
    ]
    found.sort(key=lambda mistake: -mistake[0])
    rest = sum(count for count, _ in found[_MOST_MISTAKES:])
    said = [f"{name} {count:,}" for count, name in found[:_MOST_MISTAKES]]
    return ", ".join([*said, *([f"others {rest:,}"] if rest else [])])
