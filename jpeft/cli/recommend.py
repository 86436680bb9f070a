"""`jpeft recommend`: recommends a method by published numbers, by the user's results or by a search on their rows."""

import argparse
import sys

from jpeft.cli.arguments import MODEL, number, path, whole
from jpeft.errors import RunFailed, UserError
from jpeft.words import counted

_SCARCE = ("quality", "time", "memory")
_DESCRIPTION = """Recommends a method and says why. Three ways to ask:

  by the published numbers (section 3.2 of the paper, as code; nothing is run):
    jpeft recommend --task classification --examples 80
    jpeft recommend --task samsum --examples 5000 --scarce time

  by your own runs (means over seeds; models and sources of data are never mixed):
    jpeft recommend --task agnews --examples 100 --scarce quality --runs runs/mini

  by a search on your own rows: each method with a few learning rates and ranks, chosen by validation loss:
    jpeft recommend --data my.jsonl --model mini --budget 20
    jpeft recommend --data my.jsonl --model google/flan-t5-base --methods lora,ia3 --scarce memory --jobs 2
    jpeft recommend --data tickets.csv --model mini --config.data.input=text --config.data.target=category

The same command resumes a search that was stopped. Keys of every run's config are set by --config.KEY=VALUE."""


def add(commands: argparse._SubParsersAction) -> None:
    """Adds `jpeft recommend` with its flags to the command line."""
    parser = commands.add_parser(
        "recommend",
        help="which method to use: by the paper, by your runs, or by a search on your data",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--scarce",
        choices=_SCARCE,
        help="the scarcest resource, to be spared; by default all three are shown, and a search takes quality",
    )
    parser.add_argument("--json", action="store_true", help="print the ranking and its numbers as JSON")
    numbers = parser.add_argument_group("by numbers that exist")
    numbers.add_argument(
        "--task", metavar="TASK", help="classification, generation, or agnews, cola, e2e, samsum; custom with --runs"
    )
    numbers.add_argument("--examples", type=whole(1), metavar="N", help="rows that you have to train on")
    numbers.add_argument(
        "--runs", nargs="+", type=path, metavar="DIR", help="your results instead of the published ones"
    )
    trying = parser.add_argument_group("by a search on your own rows")
    trying.add_argument("--data", metavar="FILE", help="rows: JSONL, CSV, Parquet, or a directory of splits")
    trying.add_argument("--model", metavar="NAME", help=MODEL)
    trying.add_argument(
        "--methods",
        default="lora,ia3,bitfit,prompt,full",
        help="methods to try, separated by commas (default: %(default)s)",
    )
    trying.add_argument(
        "--budget", type=number(), metavar="MINUTES", help="the time the search may take, about; no limit by default"
    )
    trying.add_argument(
        "--config",
        metavar="FILE",
        help="a config file whose get_config takes a cell's name (default: the benchmark config of jpeft)",
    )
    trying.add_argument("--workdir", type=path, help="directory of the search (default: runs/recommend_<data>_<model>)")
    trying.add_argument(
        "--jobs", type=whole(1, 4096), default=1, metavar="N", help="runs at once (default: %(default)s)"
    )
    trying.add_argument(
        "--fuse",
        default="1",
        metavar="N",
        help="runs that one process trains side by side, as for jpeft grid: a number, or auto (default: %(default)s)",
    )
    trying.add_argument("--retry-failed", action="store_true", help="run failed runs again, too")
    parser.set_defaults(run=_recommend, takes_config_keys=True)


def _recommend(arguments: argparse.Namespace) -> int:
    if arguments.data is not None:
        from jpeft.cli.recommend_search import search_and_print

        return search_and_print(arguments)
    if arguments.task is None:
        raise UserError(
            "name a task and the rows that you have (--task classification --examples 100), or the rows themselves "
            "(--data my.jsonl --model mini); see jpeft recommend --help."
        )
    if arguments.task == "custom" and not arguments.runs:
        raise UserError(
            "--task custom needs --runs with runs on your rows; or give the rows themselves "
            "(--data my.jsonl --model mini)."
        )
    for flag in ("model", "budget", "config", "workdir"):
        if getattr(arguments, flag) is not None:
            raise UserError(f"--{flag} is for a search only; give --data, too.")
    if arguments.config_keys:
        raise UserError(f"{arguments.config_keys[0].partition('=')[0]} is for a search only; give --data, too.")
    return _by_numbers(arguments)


def _by_numbers(arguments: argparse.Namespace) -> int:
    from jpeft.recommend import advice
    from jpeft.report import records
    from jpeft.report.groups import group, published_group
    from jpeft.report.write import to_json

    groups = [published_group()]
    if arguments.runs:
        results, problems = records.load(arguments.runs)
        for problem in problems:
            print(f"left out: {problem}", file=sys.stderr)
        if not results:
            raise RunFailed(f"no result can be used: {counted(len(problems), 'file')} left out.")
        groups = group(results)
    question = advice.question(arguments.task, arguments.examples, groups, own=bool(arguments.runs))
    found = advice.recommendations(question, groups, [arguments.scarce] if arguments.scarce else _SCARCE)
    if arguments.json:
        print(to_json(advice.as_data(question, found)), end="")
        return 0
    from rich.console import Console

    from jpeft.report.terminal import print_document

    print_document(advice.document(question, found), Console())
    if not arguments.runs:
        print("\nnext     the paper's model is not yours; on your rows: jpeft recommend --data my.jsonl --model mini")
    return 0
