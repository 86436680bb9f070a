"""`jpeft export`: writes an adapter in the layout of Hugging Face PEFT."""

import argparse
import json
import shlex
import sys

from jpeft.cli.arguments import MODEL, path
from jpeft.errors import UserError

_DESCRIPTION = """Writes an adapter as Hugging Face PEFT opens it, with a model card (README.md) that has its scores.

  jpeft export runs/lora_agnews_low --out agnews-lora
  jpeft export runs/lora_agnews_low --base-name google/flan-t5-small --out agnews-lora

  peft.PeftModel.from_pretrained(base, "agnews-lora")       there, in Python

Plain LoRA, the published (IA)3 (method.reading=official), prompt tuning, norm tuning and other methods that PEFT has
are kept in PEFT's own layout (docs/adapters.md has the table). It has no place for the paper's scaled LoRA and
two-sided (IA)3, for BitFit and for bottleneck adapters: these are kept in jpeft's layout, and the command says so; the
first two reach PyTorch by jpeft merge. The adapter is checked against the sizes of its base, of which no weight is
read."""


def add(commands: argparse._SubParsersAction) -> None:
    """Adds `jpeft export` with its flags to the command line."""
    parser = commands.add_parser(
        "export",
        help="an adapter as Hugging Face PEFT opens it",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("adapter", type=path, metavar="RUN_OR_ADAPTER", help="a run's directory, or an adapter's")
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="where to write; new or empty")
    parser.add_argument("--model", metavar="BASE", help=f"{MODEL} (default: the base the adapter names)")
    parser.add_argument(
        "--base-name", metavar="NAME", help="what to call the base in the files, as others find it (default: BASE)"
    )
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    parser.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    from jpeft.adapters.card import is_hub_id
    from jpeft.adapters.files import open_adapter
    from jpeft.adapters.locate import base_of, locate, words_for
    from jpeft.adapters.peft_layout import peft_lacks
    from jpeft.cli.output import adapter_record, note_base, write_adapter
    from jpeft.model.family import abstract_model, family_with
    from jpeft.model.source import load_config
    from jpeft.predict.answer_source import task_of

    found = locate(arguments.adapter)
    model = base_of(found, arguments.model)
    opened = open_adapter(found.directory, abstract_model(load_config(model, **words_for(found, arguments.model))))
    task = task_of(found.directory)
    opened = note_base(opened, task, model)
    for note in opened.notes:
        print(f"note     {note}", file=sys.stderr)
    if arguments.base_name is not None and not arguments.base_name.strip():
        raise UserError("--base-name is empty; name the base, or leave the flag out.")
    base = arguments.base_name or model
    size = write_adapter(opened, arguments.out, base=base, result=found.result, task=task)
    lacks = peft_lacks(opened.method, opened.sites, opened.model)
    unmergeable = opened.method.unmergeable_at(opened.sites)
    if arguments.json:
        print(json.dumps(adapter_record(opened, arguments.out, base=base, weights_bytes=size), indent=2))
        return 0
    layout = "Hugging Face PEFT's layout" if lacks is None else "jpeft's own layout"
    print(f"exported {opened.method.name} to {arguments.out} in {layout} ({size:,} bytes, and a card)")
    print(
        f"base     {base}" + ("" if is_hub_id(base) else "  (means nothing elsewhere; --base-name calls it otherwise)")
    )
    if task is not None and (line := task.in_other_bits(None)) is not None:
        print(f"note     the adapter {line}")
    if lacks is None:
        print(f"next     peft.PeftModel.from_pretrained(base, {str(arguments.out)!r})")
    else:
        print(f"note     PEFT cannot open it: its format has no place for {lacks}")
        family = family_with(opened.model.config)
        merged = f"next     for PyTorch: jpeft merge {shlex.quote(str(arguments.adapter))} --out MERGED"
        print(merged if unmergeable is None else f"         nor can it be merged into a {family.name}: {unmergeable}")
    return 0
