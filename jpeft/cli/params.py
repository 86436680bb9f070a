"""`jpeft params`: how many parameters each method trains."""

import argparse
import json


def add(commands: argparse._SubParsersAction) -> None:
    """Adds `jpeft params` with its flags to the command line."""
    params = commands.add_parser(
        "params",
        help="count trainable parameters of every method and ablation",
        description="Counts what each method trains (Table 3 of the paper, and methods that it has not), on shapes "
        "alone: no weights, no network.",
    )
    params.add_argument("--model", default="google/flan-t5-xl", help="hub id or local directory (default: %(default)s)")
    params.add_argument("--json", action="store_true", help="print JSON")
    params.set_defaults(run=_params)


def _params(arguments: argparse.Namespace) -> int:
    from jpeft.model.family import abstract_model
    from jpeft.model.source import load_config
    from jpeft.peft.counting import other_methods, table_3

    model = abstract_model(load_config(arguments.model, what="--model", flag="--model"))
    rows = table_3(model) + other_methods(model)
    total = rows[0].parameters
    if arguments.json:
        methods: dict[str, dict[str, int]] = {}
        for row in rows:
            methods.setdefault(row.method, {})[row.ablation or "all"] = row.parameters
        print(json.dumps({"model": arguments.model, "total": total, "methods": methods}, indent=2))
        return 0
    from rich.console import Console
    from rich.table import Table

    from jpeft.report.published import published_parameters

    published = published_parameters() if arguments.model == "google/flan-t5-xl" else {}
    table = Table(title=f"Trainable parameters of {arguments.model}")
    for column in ("method", "ablation"):
        table.add_column(column)
    for column in ("parameters", "share", *(["published"] if published else [])):
        table.add_column(column, justify="right")
    for row in rows:
        cells = [row.method, row.ablation or "", f"{row.parameters:,}", f"{100 * row.parameters / total:.3g} %"]
        if published:
            paper = published.get((row.method, row.ablation))
            cells.append("" if paper is None else f"{paper:,}")
        table.add_row(*cells)
    Console().print(table)
    return 0
