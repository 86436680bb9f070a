"""`jpeft merge`: merges an adapter into its base, a model that needs neither jpeft nor PEFT."""

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from jpeft.cli.arguments import MODEL, path
from jpeft.words import in_bits

_DESCRIPTION = """Merges an adapter into its base: a directory that transformers opens, with config and tokenizer.

  jpeft merge runs/lora_agnews_low --out merged
  jpeft merge adapter --model google/flan-t5-small --dtype bfloat16 --out merged

Methods that change the weights of the base can be merged: LoRA, the paper's scaled LoRA, DoRA, AdaLoRA, VeRA, both
variants of (IA)3, norm tuning. Methods that add something else cannot: soft prompts, prefixes, bottleneck adapters, and
BitFit on a base without biases (a T5). Full tuning already leaves a whole model. docs/adapters.md has the table.

An adapter that was trained on a quantized base is merged into the unquantized weights, which differ slightly from those
that it was trained on; --quantization merges it into the dequantized ones instead. The result is never quantized.

Weights are merged in float32 and rounded once, when they are written. The logits of the merged model are compared with
those of base and adapter on random tokens, before rounding and again from the written files. A second, independent
reader checks both the base and the written files, and the tokenizer is read again too. If anything disagrees, the
command fails and writes nothing."""


def add(commands: argparse._SubParsersAction) -> None:
    """Adds `jpeft merge` with its flags to the command line."""
    parser = commands.add_parser(
        "merge",
        help="base and adapter as one model that transformers opens",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("adapter", type=path, metavar="RUN_OR_ADAPTER", help="a run's directory, or an adapter's")
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="the new model; new or empty")
    parser.add_argument("--model", metavar="BASE", help=f"{MODEL} (default: the base the adapter names)")
    parser.add_argument(
        "--quantization",
        metavar="HOW",
        help="merge into the numbers of a base in int8, nf4 or nf4,double (default: into the wide weights)",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the weights (default: the base's)")
    parser.add_argument("--json", action="store_true", help="print what was measured as JSON")
    parser.set_defaults(run=_merge)


def _merge(arguments: argparse.Namespace) -> int:
    import numpy as np

    from jpeft.adapters.card import merged_card
    from jpeft.adapters.files import load_adapter
    from jpeft.adapters.locate import base_of, locate, words_for
    from jpeft.adapters.merge import Probe, refuse_unmergeable_file, stored_dtype
    from jpeft.adapters.own_tokenizer import note_on_tokenizer
    from jpeft.cli.output import output_directory
    from jpeft.errors import RunFailed
    from jpeft.model.family import family_in, load_model, save_model
    from jpeft.model.quantized import Quantization, quantization_of
    from jpeft.model.settings import pass_on, settings_of
    from jpeft.model.source import resolve
    from jpeft.model.weight_files import model_fingerprint
    from jpeft.peft.merging import merge
    from jpeft.predict.answer_source import task_of

    found = locate(arguments.adapter)
    task = task_of(found.directory)
    name = base_of(found, arguments.model)
    directory = resolve(name, **words_for(found, arguments.model), report=lambda line: print(line, file=sys.stderr))
    refuse_unmergeable_file(found.directory, directory)
    # Quantized files are opened as they are; others are only quantized by --quantization.
    quantization = None if arguments.quantization is None else Quantization.parse(arguments.quantization)
    with output_directory(arguments.out) as out:
        config = family_in(directory).read_config(directory)
        tokenizer = family_in(directory).tokenizer(directory, config)
        own = note_on_tokenizer(found.directory, lambda: tokenizer)
        base = load_model(directory, quantization=quantization)
        kept = quantization_of(base)
        another = None if task is None else task.on_another_base(model_fingerprint(directory))
        for note in (own, _quantization_note(task, kept), None if another is None else f"the adapter {another}"):
            if note is not None:
                print(f"note     {note}", file=sys.stderr)
        telling = lambda line: print(f"note     {line}", file=sys.stderr)
        adapted, method, sites = load_adapter(found.directory, base, report=telling)
        merged = merge(adapted)
        probe = Probe.of(base, adapted, merged, directory=directory if kept is None else None)
        del base, adapted  # a large model needs this memory for reading the files back
        dtype = np.dtype(arguments.dtype or stored_dtype(directory))
        save_model(merged, out, dtype=dtype)
        tokenizer.save(out)
        if not family_in(out).tokenizer(out, merged.config).is_same_as(tokenizer):
            raise RunFailed(f"the tokenizer's files as they were copied are not those of {directory}; is one missing?")
        pass_on(str(directory) if settings_of(name) is None else name, out)
        del merged
        agreement = probe.agreement(out)
        family = family_in(directory)
        card = merged_card(
            method,
            sites,
            base=name,
            family=family,
            result=found.result,
            agreement=agreement,
            dtype=dtype.name,
            quantization=kept,
        )
        if task is not None:
            # The merged model is not quantized and is not an adapter's base.
            dataclasses.replace(task, quantization="auto", base=None).write(out)
        (out / "README.md").write_text(card, encoding="utf-8")
    values = {
        "out": str(arguments.out),
        "base": name,
        "method": method.name,
        "dtype": dtype.name,
        "quantization": kept,
        "changed": len(sites),
        "logits": dataclasses.asdict(agreement),
    }
    print(json.dumps(values, indent=2) if arguments.json else _in_words(values, family.auto_class))
    return 0


def _in_words(values: Mapping[str, Any], auto_class: str) -> str:
    """The text output: what was merged and measured, from the values that `--json` prints."""
    return """\
merged   {method} into {changed} weights of {base}: {out} ({dtype})
logits   the adapter moves them by up to {moved:.3g}; merged, they differ from base and adapter by
         up to {merged:.2g} in float32, by {stored:.2g} as stored
reread   a second reader of these files differs by up to {reread:.2g}
choice   the same token is the most likely at {same:.1f} % of positions, as stored
next     {auto_class}.from_pretrained("{out}"); here
         --config.model.name={quoted}""".format(
        **values,
        **values["logits"],
        same=100 * values["logits"]["same_choice"],
        auto_class=auto_class,
        quoted=shlex.quote(str(values["out"])),
    )


def _quantization_note(task, kept: str | None) -> str | None:
    """A note for the user if the adapter was trained on a quantized base or is merged into one; else None.

    Args:
      kept: the quantization of the base that it is merged into; None for float weights.
    """
    made = None if task is None or in_bits(task.quantization) == "wide" else task.quantization
    if kept is not None:
        numbers = f"merges into the numbers that {kept} has for the base's maps, not into the wide weights"
        return numbers if task is None or made == kept else f"{numbers}; the adapter {task.in_other_bits(kept)}"
    if made is None:
        return None
    return (
        f"the adapter was tuned with its base in {made} and is merged into the wide weights; "
        f"--quantization {made} merges into those that it was tuned with"
    )
