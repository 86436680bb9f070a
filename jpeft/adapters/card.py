"""Model cards of adapters, merged models and quantized bases, as Markdown text: description, results, loading."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jpeft.adapters.merge import Agreement
from jpeft.adapters.peft_layout import peft_lacks
from jpeft.model.family import Family, family_with
from jpeft.model.source import INSTALLED, packaged_models
from jpeft.peft.method import Method
from jpeft.peft.sites import Site
from jpeft.words import in_bits

ResultJson = Mapping[str, Any]


def places(sites: Sequence[Site]) -> str:
    """Where a method is attached, in a few words, as `q, v of 16 layers`."""
    names = ", ".join(sorted({site.name for site in sites}))
    layers = len({(site.stack, site.layer) for site in sites if site.layer is not None})
    return f"{names} of {layers} layer{'s' if layers > 1 else ''}" if layers else names


def adapter_card(
    method: Method,
    sites: Sequence[Site],
    *,
    base: str,
    model: Any,
    parameters: int,
    result: ResultJson | None,
    notes: Sequence[str],
    quantization: str | None = None,
) -> str:
    """The card of an adapter as `save_adapter` writes it.

    Args:
      method: the method of the adapter.
      sites: the sites where it is attached.
      base: name of the base.
      model: the base, which may hold shapes instead of arrays.
      parameters: number of parameters of the adapter.
      result: content of the run's `result.json`; None if there is none.
      notes: what was rewritten when the adapter was read.
      quantization: quantization of the base in the adapter's run, as in `task.json`.
    """
    lacks, family = peft_lacks(method, sites, model), family_with(model.config)
    rows = [("method", method.describe()), ("at", places(sites)), ("parameters", f"{parameters:,}"), ("base", base)]
    quantized = None if in_bits(quantization) == "wide" else quantization
    rows += [] if quantized is None else [("base kept in", quantized)]
    return (
        "\n\n".join(
            [
                _front_matter("peft" if lacks is None else "jpeft", base, [family.tag, method.name]),
                f"# {_title(method, result)}",
                _table(rows),
                *[f"As read from its original, {note}." for note in notes],
                *_results(result),
                "## How to load it",
                "`DIR` is this directory.",
                *_about_quantization(quantized),
                *(
                    [_with_peft(base, family, quantized)]
                    if lacks is None
                    else [_without_peft(method, sites, lacks, family, quantized)]
                ),
                _with_jpeft(method, base, quantized),
            ]
        )
        + "\n"
    )


def merged_card(
    method: Method,
    sites: Sequence[Site],
    *,
    base: str,
    family: Family,
    result: ResultJson | None,
    agreement: Agreement,
    dtype: str,
    quantization: str | None = None,
) -> str:
    """The card of a base with an adapter merged into it, as Markdown.

    Args:
      method: the method of the adapter.
      sites: the sites where it was attached.
      base: name of the model that the adapter was trained on.
      family: family of that model, which decides how `transformers` opens the result.
      result: content of the run's `result.json`; None if there is none.
      agreement: measured differences between the merged model and base with adapter.
      dtype: dtype of the weights as saved.
      quantization: quantization of the base before it was merged; None if it was not quantized.
    """
    rows = [("base", base), ("merged into it", method.describe()), ("at", places(sites)), ("dtype", dtype)]
    rows += [] if quantization is None else [("weights of the base", f"dequantized from {quantization}")]
    measured = (
        f"On random tokens the adapter changes the base's logits by up to {agreement.moved:.3g}. The merged weights "
        f"give logits within {agreement.merged:.2g} of base and adapter in float32, and within {agreement.stored:.2g} "
        f"as saved here; the most likely token is the same at {100 * agreement.same_choice:.1f} % of positions."
    )
    load = _code("python", "import transformers", f'model = transformers.{family.auto_class}.from_pretrained("DIR")')
    return (
        "\n\n".join(
            [
                _front_matter("transformers", base, [family.tag, method.name]),
                f"# {_title(method, result)}, merged",
                _table(rows),
                measured,
                *_results(result, of="the unmerged adapter"),
                "## How to load it",
                f"`DIR` is this directory. It is a {family.name} like any other:\n\n{load}",
            ]
        )
        + "\n"
    )


def quantized_card(*, base: str, family: Family, quantization: str, maps: int) -> str:
    """The card of a quantized base, as Markdown.

    Args:
      base: name of the original model.
      family: family of that model, which decides how `transformers` opens the result.
      quantization: the quantization, as `jpeft.model.quantized.Quantization` writes it.
      maps: number of quantized linear maps.
    """
    rows = [("base", base), ("kept in", quantization), ("quantized", f"{maps:,} linear maps within the blocks")]
    load = _code("python", "import transformers", f'model = transformers.{family.auto_class}.from_pretrained("DIR")')
    ours = _code("sh", "jpeft train --data my.csv --model DIR")
    theirs = f"With transformers, where bitsandbytes is installed:\n\n{load}"
    if quantization.endswith(",wo"):
        theirs = "transformers keeps T5's `wo` wide and does not open it."
    return (
        "\n\n".join(
            [
                _front_matter("transformers", base, [family.tag, "bitsandbytes"]),
                f"# {_plain(base)} in {quantization}",
                _table(rows),
                "Embeddings, norms, biases and the head are as they were. The arithmetic and the layout of the "
                "quantized maps are those of bitsandbytes (Dettmers et al. 2023, QLoRA).",
                "## How to load it",
                f"`DIR` is this directory. With jpeft, to tune it:\n\n{ours}",
                theirs,
            ]
        )
        + "\n"
    )


def is_hub_id(name: str) -> bool:
    """Whether a base's name is valid on other machines: it has the form of a hub id and is no local path."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None and not Path(name).exists()


def _front_matter(library: str, base: str, tags: Sequence[str]) -> str:
    lines = ["---", f"library_name: {library}"]
    lines += [f"base_model: {base}"] if is_hub_id(base) else []
    return "\n".join([*lines, "tags:", *[f"- {tag}" for tag in ("jpeft", *tags)], "---"])


def _title(method: Method, result: ResultJson | None) -> str:
    task = (result or {}).get("task")
    return f"{method.name} adapter" + (f" for {_plain(task)}" if task else "")


def _plain(value: object) -> str:
    """A value escaped for a Markdown table cell; result files may hold untrusted text."""
    return re.sub(r"\s+", " ", str(value)).replace("|", "\\|")


def _table(rows: Sequence[tuple[str, object]]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *[f"| {name} | {_plain(value)} |" for name, value in rows]])


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


_RESULT_LABELS = {
    "quantization": "base kept in",
    "task": "task",
    "scale": "scale",
    "source": "rows from",
    "train_examples": "training rows",
    "test_examples": "test rows",
    "validation_loss": "validation loss",
    "best_epoch": "best epoch, from 0",
    "seed": "seed",
    "ablation": "ablation",
    "device": "device",
    "commit": "commit",
    "finished": "finished",
}


def _results(result: ResultJson | None, *, of: str = "the run that made it") -> list[str]:
    if result is None:
        return []
    rows: list[tuple[str, object]] = []
    for kind, metrics in (("", result.get("metrics")), ("zero-shot ", result.get("zero_shot"))):
        if isinstance(metrics, Mapping):
            rows += [(f"{kind}{_plain(name)}", _number(value)) for name, value in metrics.items()]
    rows += [(label, _number(result[key])) for key, label in _RESULT_LABELS.items() if result.get(key) is not None]
    return [f"## Results of {of}", _table(rows)]


def _code(language: str, *lines: str) -> str:
    return "\n".join([f"```{language}", *lines, "```"])


def _about_quantization(quantization: str | None) -> list[str]:
    if quantization is None:
        return []
    return [
        f"Its run quantized the base to {quantization}, with bitsandbytes' arithmetic. On the base without "
        "quantization its answers differ a little."
    ]


def _bitsandbytes(quantization: str) -> str:
    """The `quantization_config` with which `transformers` quantizes a base in the same way, as Python code."""
    kind, *more = quantization.split(",")
    arguments = ["load_in_8bit=True"] if kind == "int8" else ["load_in_4bit=True", 'bnb_4bit_quant_type="nf4"']
    arguments += ["bnb_4bit_use_double_quant=True"] if "double" in more else []
    return f"transformers.BitsAndBytesConfig({', '.join(arguments)})"


def _with_peft(base: str, family: Family, quantization: str | None = None) -> str:
    where, lines, given = repr(base), ["import peft, transformers", ""], "base"
    if base in packaged_models():
        lines = ["import peft, transformers", "from jpeft.model.source import resolve", ""]
        where = f"resolve({base!r})  # comes with jpeft"
    elif base in INSTALLED or base.lower().endswith(".gguf"):
        lines = ["import peft, transformers", "from jpeft.model.source import resolve", ""]
        where, given = f"resolve({base!r})  # a GGUF file", "base.parent, gguf_file=base.name"
    lines += [f"base = {where}"]
    if quantization is not None and "+" not in quantization:
        lines += ["# as in its run; needs bitsandbytes, and is not needed for a base that was saved quantized"]
        lines += [f"bits = {_bitsandbytes(quantization)}"]
        given += ", quantization_config=bits"
    lines += [f"model = transformers.{family.auto_class}.from_pretrained({given})"]
    lines += ['model = peft.PeftModel.from_pretrained(model, "DIR")']
    return f"With Hugging Face PEFT:\n\n{_code('python', *lines)}"


def _without_peft(
    method: Method, sites: Sequence[Site], lacks: str, family: Family, quantization: str | None = None
) -> str:
    why = f"Hugging Face PEFT cannot open it: its format has no place for {lacks}."
    unmergeable = method.unmergeable_at(sites)
    if unmergeable is not None:
        return f"{why} It cannot be merged into a {family.name} either: {unmergeable}."
    bits = "" if quantization is None else f" --quantization {quantization}"
    merge = _code("sh", f"jpeft merge DIR{bits} --out MERGED")
    return f"{why} For PyTorch, merge it into its base:\n\n{merge}"


def _with_jpeft(method: Method, base: str, quantization: str | None = None) -> str:
    flags = [
        f"--config.model.name={shlex.quote(base)}",
        *quantization_flags(quantization),
        *config_flags(method, "DIR"),
    ]
    lines = ["jpeft train --config custom --config.data.path=my.jsonl", *flags]
    command = " \\\n    ".join(lines)
    return f"With jpeft, to train on from it:\n\n{_code('sh', command)}"


def quantization_flags(quantization: str | None) -> list[str]:
    """The flags of `jpeft train` that quantize a base as a run did; none if it was not quantized.

    Args:
      quantization: the quantization as in `task.json` and `result.json`.
    """
    if quantization is None or in_bits(quantization) == "wide" or "+" in quantization:
        return []
    kind, *more = quantization.split(",")
    keys = {"double": "double_quantization", "wo": "quantize_wo"}
    return [f"--config.model.quantization={kind}", *(f"--config.model.{keys[word]}=True" for word in more)]


def config_flags(method: Method, directory: str) -> list[str]:
    """The flags of `jpeft train` that start from the adapter of this method in a directory."""
    flags = {"name": method.name, "reading": method.reading, **method.flags(), "from_adapter": directory}
    return [f"--config.method.{key}={value}" for key, value in flags.items()]
