"""`jpeft quantize`: writes a model quantized to 8 or 4 bits."""

import argparse
import json
import shlex
import sys

from jpeft.cli.arguments import MODEL, path
from jpeft.errors import UserError

_DESCRIPTION = """Writes a copy of a model with its blocks' linear maps in 8 or 4 bits, its tokenizer and a model card.

  jpeft quantize google/flan-t5-xl --out flan-t5-xl-nf4
  jpeft quantize google/flan-t5-xl --out flan-t5-xl-int8 --quantization int8
  jpeft train --data my.csv --model flan-t5-xl-nf4

The directory takes half of the disk space or less and loads without any rounding; jpeft train, predict, evaluate, serve
and jpeft.load open it like any model. It has the layout of bitsandbytes, so transformers opens it if bitsandbytes is
installed. Quantizing while loading (--config.model.quantization=nf4 on the original model) gives the same numbers.

HOW is int8, nf4, or nf4,double (double quantization: the scales of nf4's blocks in 8 bits). With ,wo appended, T5's wo
is quantized as well, and transformers cannot open the result. Embeddings, norms, biases and the head are not quantized.
The model is read and written one linear map at a time, with about 1 GB in memory. A quantized model is not quantized
again, a BLOOM cannot be written in this layout, and nf4 needs maps whose input width is a multiple of 64.

More: docs/quantised-bases.md."""


def add(commands: argparse._SubParsersAction) -> None:
    """Adds `jpeft quantize` with its flags to the command line."""
    parser = commands.add_parser(
        "quantize",
        help="write a model quantized to 8 or 4 bits",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="the new model; new or empty")
    parser.add_argument(
        "--quantization", default="nf4", metavar="HOW", help="int8, nf4, nf4,double; with ,wo (default: %(default)s)"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of what stays wide (default: as the model's files have it)"
    )
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.set_defaults(run=_quantize)


def _quantize(arguments: argparse.Namespace) -> int:
    import dataclasses

    import numpy as np

    from jpeft.adapters.card import quantized_card
    from jpeft.cli.output import output_directory
    from jpeft.model.family import family_in
    from jpeft.model.gguf import is_gguf
    from jpeft.model.quantized import Quantization
    from jpeft.model.quantized_files import tensor_count, write_quantized
    from jpeft.model.settings import pass_on, settings_of
    from jpeft.model.source import resolve
    from jpeft.predict.answer_source import task_of
    from jpeft.run.display import Display
    from jpeft.words import counted, size

    quantization = Quantization.parse(arguments.quantization)
    if quantization is None or quantization.kind == "none":
        raise UserError(f"--quantization is {arguments.quantization!r}; expected int8, nf4 or nf4,double.")
    display = Display(quiet=arguments.quiet)
    directory = resolve(arguments.model, what="MODEL", flag="MODEL", report=display.say)
    family = family_in(directory)
    with output_directory(arguments.out) as out:
        filling = family.open_filling(directory)
        config = filling.model.config
        tokenizer = family.tokenizer(directory, config)
        task = task_of(directory)
        with display.task(f"to {quantization}", tensor_count(filling), unit="tensors") as bar:
            written = write_quantized(
                filling,
                out,
                quantization,
                dtype=None if arguments.dtype is None else np.dtype(arguments.dtype),
                on_tensor=bar.advance,
            )
        tokenizer.save(out)
        pass_on(str(directory) if settings_of(arguments.model) is None else arguments.model, out)
        if task is not None:  # the model was merged or fully tuned
            task.write(out)
        card = quantized_card(base=arguments.model, family=family, quantization=str(quantization), maps=written.maps)
        (out / "README.md").write_text(card, encoding="utf-8")
    if arguments.json:
        said = {"out": str(arguments.out), "model": arguments.model, "quantization": str(quantization)}
        print(json.dumps({**said, **dataclasses.asdict(written)}, indent=2))
        return 0
    if is_gguf(directory):
        print("note     a GGUF file's numbers were rounded once already; these are rounded from those", file=sys.stderr)
    print(f"written  {arguments.out}: {counted(written.maps, 'map')} in {quantization}, {written.wide:,} tensors wide")
    print(f"size     {size(written.bytes)}, from {size(written.bytes_before)}")
    print(f"next     jpeft train --data FILE --model {shlex.quote(str(arguments.out))}")
    if quantization.wo:
        print("note     transformers keeps wo wide and does not open this; without ,wo it does")
    else:
        print(f'         transformers.{family.auto_class}.from_pretrained("{arguments.out}"), with bitsandbytes')
    return 0
