"""`jpeft pretrain`: pretrains a model on a corpus."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jpeft.cli.config_flags import parse_call

_HELP = """Pretrains a model on a corpus of texts, mixed with pairs of input and target: a T5 by span corruption, a
decoder-only model by next-token prediction; either a new model (config.model.family) or an existing one
(config.model.start).

  jpeft pretrain --config pretrain/mini --config.data.path=CORPUS --workdir runs/mini

The model and its tokenizer are written to WORKDIR/model, which `jpeft train` takes as --config.model.name. A run that
was killed resumes with the same command. config.mesh.* shards it over several devices, and several processes can share
it as with `jpeft train` (docs/mesh.md). Every key of the config can be set by a flag:

"""


def add(commands: argparse._SubParsersAction) -> None:
    """Adds `jpeft pretrain`; its flags are those of the config, which argparse passes on unparsed."""
    parser = commands.add_parser(
        "pretrain", help="pretrain a model on a corpus of your own", add_help=False, prefix_chars="\0"
    )
    parser.add_argument("argv", nargs="*")
    parser.set_defaults(run=lambda arguments: _pretrain(arguments.argv))


def _pretrain(argv: Sequence[str]) -> int:
    from jpeft.pretrain.config import Pretraining

    call = parse_call(["jpeft pretrain", *argv], Pretraining, _HELP, in_processes=True)
    if call is None:
        return 0

    from jpeft.pretrain.loop import pretrain
    from jpeft.process import prepare_process
    from jpeft.run.display import Display
    from jpeft.run.processes import ending_together, is_first
    from jpeft.run.stop import resumable

    prepare_process(lambda line: print(line, file=sys.stderr))  # before `is_first` starts JAX
    if call.group is not None:
        call.group.join()
    with resumable(overwrite=call.overwrite), ending_together(call.group):
        run = Pretraining.from_config(call.config)
        display = Display(quiet=call.quiet or not is_first())
        result = pretrain(run, call.workdir, overwrite=call.overwrite, display=display)
        if is_first():
            _print(result, call.workdir)
    return 0


def _print(result: dict[str, Any], workdir: Path) -> None:
    for kind, loss in result["validation_loss"].items():
        entropy = result["unigram_entropy"][kind]
        print(f"held-out loss of {kind}  {loss:.4f} nats a token (by token frequency alone {entropy:.4f})")
    tokens = result["input_tokens"] + result["target_tokens"]
    print(f"tokens   {tokens:,} in {result['steps']:,} steps, {result['tokens_per_second']:,.0f} a second")
    print(f"model    {workdir / 'model'}  ({result['parameters']:,} parameters)")
    print(f"next     jpeft train --config lora_agnews_low --config.model.name={shlex.quote(str(workdir / 'model'))}")
