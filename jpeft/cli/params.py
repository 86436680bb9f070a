"""`jpeft params`: counts the parameters that each method trains."""

import argparse
import json

from jpeft.cli.arguments import MODEL


def add(commands: argparse._SubParsersAction) -> None:
    """Adds `jpeft params` with its flags to the command line."""
    params = commands.add_parser(
        "params",
        help="count trainable parameters of every method and ablation",
        description="Counts the trainable parameters of each method (Table 3 of the paper, and the other methods) from "
        "shapes alone: no weights, no network. Also prints the memory of the base.",
    )
    params.add_argument("--model", default="google/flan-t5-xl", help=f"{MODEL} (default: %(default)s)")
    params.add_argument(
        "--quantization",
        default="auto",
        metavar="HOW",
        help="of the base, for its memory: none, int8, nf4, nf4,double (auto: as its files have it)",
    )
    params.add_argument("--json", action="store_true", help="print JSON")
    params.set_defaults(run=_params)


def _params(arguments: argparse.Namespace) -> int:
    from jpeft.leaves import weight_bytes
    from jpeft.model.family import abstract_model
    from jpeft.model.quantized import Quantization, chosen_forms, quantization_of, quantize_modules
    from jpeft.model.source import load_config, load_quantization
    from jpeft.peft.counting import counts_of_the_paper, other_methods
    from jpeft.words import in_bits, size

    asked = Quantization.parse(arguments.quantization)
    words = {"what": "--model", "flag": "--model"}
    config = load_config(arguments.model, **words)
    base = abstract_model(config)
    quantization = asked or load_quantization(arguments.model, **words)
    if quantization is not None:
        quantize_modules(base, chosen_forms(base, quantization))
    kept = quantization_of(base)
    held = {dtype: weight_bytes(base, dtype) for dtype in ("float32", "bfloat16")}
    model = abstract_model(config)
    rows = counts_of_the_paper(model) + other_methods(model)
    total = rows[0].parameters
    if arguments.json:
        methods: dict[str, dict[str, int]] = {}
        for row in rows:
            methods.setdefault(row.method, {})[row.ablation or "all"] = row.parameters
        of_base = {"total": total, "quantization": kept, "base_bytes": held}
        print(json.dumps({"model": arguments.model, **of_base, "methods": methods}, indent=2))
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
    narrow, full = (size(held[dtype]) for dtype in ("bfloat16", "float32"))
    if kept is None:
        print(f"the base takes {narrow} in bfloat16, {full} in float32")
    else:
        print(
            f"the base takes {narrow} with its blocks' maps {in_bits(kept)} and the rest in bfloat16; {full} with the"
        )
        print("rest in float32")
    return 0
