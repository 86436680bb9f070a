"""`jpeft import`: checks an adapter of Hugging Face PEFT against its base and writes it for jpeft."""

import argparse
import json
import shlex
import sys

from jpeft.cli.arguments import MODEL, path
from jpeft.errors import UserError

_DESCRIPTION = """Reads an adapter that Hugging Face PEFT saved, checks it against its base model and describes it.

  jpeft import their-lora --model google/flan-t5-base --out adapter
  jpeft merge adapter --out merged

LORA (also DoRA and rsLoRA), ADALORA, VERA, IA3, LN_TUNING, PROMPT_TUNING and, for decoder-only models, PREFIX_TUNING
are read, with target_modules as a list or a pattern, layers_to_transform, rank_pattern and alpha_pattern. What jpeft
has no equal for (trained biases, modules_to_save, ...) is refused by its name, as are pickled weights
(adapter_model.bin). Config and weights must agree on which modules of the base are adapted. What is written computes
the same in jpeft's terms, one rank and one alpha; what was rewritten is printed. docs/adapters.md has the table."""


def add(commands: argparse._SubParsersAction) -> None:
    """Adds `jpeft import` with its flags to the command line."""
    parser = commands.add_parser(
        "import",
        help="an adapter of Hugging Face PEFT, checked and made ready to train on or merge",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("adapter", type=path, metavar="PEFT_DIR", help="a directory with adapter_config.json")
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="where to write; new or empty")
    parser.add_argument("--model", metavar="BASE", help=f"{MODEL} (default: the base the adapter names)")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    parser.set_defaults(run=_import)


def _tokenizer_here(base: str):
    """The tokenizer of a base that is at hand; None if its files are not, since its config may be known without."""
    from jpeft.model.family import family_in
    from jpeft.model.gguf import is_gguf
    from jpeft.model.source import find_here
    from jpeft.model.tokenizer import tokenizer_files

    directory = find_here(base)
    if directory is None or not (is_gguf(directory) or tokenizer_files(directory)):
        return None
    family = family_in(directory)
    return family.tokenizer(directory, family.read_config(directory))


def _import(arguments: argparse.Namespace) -> int:
    from jpeft.adapters.card import config_flags, places
    from jpeft.adapters.files import PEFTS, layout_of, open_adapter
    from jpeft.adapters.locate import base_of, locate, words_for
    from jpeft.adapters.own_tokenizer import note_on_tokenizer
    from jpeft.cli.output import adapter_record, note_base, write_adapter
    from jpeft.model.family import abstract_model
    from jpeft.model.source import load_config
    from jpeft.predict.answer_source import task_of

    found = locate(arguments.adapter)
    if layout_of(found.directory) != PEFTS:
        raise UserError(f"{found.directory} is in jpeft's own layout already; there is nothing to import.")
    base = base_of(found, arguments.model)
    own = note_on_tokenizer(found.directory, lambda: _tokenizer_here(base))
    opened = open_adapter(found.directory, abstract_model(load_config(base, **words_for(found, arguments.model))))
    task = task_of(found.directory)
    opened = note_base(opened, task, base)
    size = write_adapter(opened, arguments.out, base=base, result=found.result, task=task)
    record = adapter_record(opened, arguments.out, base=base, weights_bytes=size)
    if own is not None:
        print(f"note     {own}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(record, indent=2))
        return 0
    print(f"found    {opened.method.describe()}, at {places(opened.sites)}: {record['parameters']:,} parameters")
    for note in opened.notes:
        print(f"note     {note}")
    print(f"fits     {base}")
    print(f"written  {arguments.out}")
    print(f"next     jpeft merge {shlex.quote(str(arguments.out))} --out MERGED, or train on with")
    print(f"         {shlex.join([f'--config.model.name={base}', *config_flags(opened.method, str(arguments.out))])}")
    return 0
