"""The commands that a user may want after a run, with the run's own paths."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jpeft.adapters.card import quantization_flags
from jpeft.adapters.files import PEFTS, layout_of
from jpeft.adapters.locate import whole_model
from jpeft.data.task_file import QUANTIZED
from jpeft.errors import RunFailed, UserError
from jpeft.peft.methods import METHODS


def next_steps(result: Mapping[str, Any], workdir: Path, argv: Sequence[str]) -> list[tuple[str, str]]:
    """The next commands after a finished run.

    Args:
      argv: the command line of the run.

    Returns:
      `(purpose, command)` for each.
    """
    run, model = shlex.quote(str(workdir)), shlex.quote(result["model"])
    kept = result.get("quantization")
    bits = f" --quantization {kept}" if kept in QUANTIZED else ""
    steps = [
        ("answers to texts of yours", f"jpeft predict --adapter {run} 'a text'"),
        ("a test on other rows", f"jpeft evaluate --adapter {run} --data FILE"),
    ]
    whole = whole_model(workdir)
    if whole is not None:
        steps.append(("train on from this model", f"jpeft train --data FILE --model {shlex.quote(str(whole))}"))
    else:
        steps.append(("answers over HTTP", f"jpeft serve --model {model}{bits} --adapters {run}{_shapes(result)}"))
        if METHODS[result["method"]].unmergeable is None:
            steps.append(("one model for transformers", f"jpeft merge {run}{bits} --out {run}/merged"))
        if _in_peft_layout(workdir):
            steps.append(("for Hugging Face PEFT", f"jpeft export {run} --out {run}/for_peft"))
    epochs = result["epochs_run"]
    if result["best_epoch"] == epochs - 1:  # the last epoch was the best: more may be better
        program = ["python", argv[0]] if argv[0].endswith(".py") else argv[0].split()
        command = shlex.join([*program, *_resuming_flags(argv[1:]), f"--config.train.max_epochs={2 * epochs}"])
        steps.append(("train on, since the last epoch was the best", command))
    if result["task"] != "custom":
        own = [f"jpeft train --data FILE --target COLUMN --model {model}", *quantization_flags(kept)]
        steps.append(("rows of your own", " ".join(own)))
    return steps


def _resuming_flags(words: Sequence[str]) -> list[str]:
    """The flags of a command line without `--overwrite`, which would start over, and without the number of epochs."""
    left, given = iter(words), []
    for word in left:
        name, equals, _ = word.lstrip("-").partition("=")
        if name == "config.train.max_epochs":
            if not equals:
                next(left, None)
        elif not name.startswith("overwrite"):
            given.append(word)
    return given


def _shapes(result: Mapping[str, Any]) -> str:
    """Flags of `jpeft serve` that compile fewer shapes, for a classification, which generates no long answers."""
    return " --batch-sizes 1,16 --output-lengths 16" if result.get("labels") else ""


def _in_peft_layout(workdir: Path) -> bool:
    try:
        return layout_of(workdir / "adapter") == PEFTS
    except (OSError, RunFailed, UserError):
        return False
