"""`jpeft report`: tables and figures from result files beside the paper's, or the paper's own tables recomputed."""

import argparse
import shlex
import sys

from jpeft.cli.arguments import path
from jpeft.errors import RunFailed, UserError
from jpeft.words import counted

_MOST_LINES = 50  # printed for files left out; the report names all of them


def add(commands: argparse._SubParsersAction) -> None:
    """Adds `jpeft report` with its flags to the command line."""
    report = commands.add_parser(
        "report",
        help="tables and figures from results, beside the paper's",
        description=(
            "Every table and figure of the paper from result files, beside the published numbers, and what the paper "
            "lacks: spreads over seeds, zero-shot scores, times, memory, findings. Without --out it prints them."
        ),
    )
    report.add_argument(
        "runs", nargs="*", type=path, metavar="RUNS", help="run directories, directories of many, or result files"
    )
    report.add_argument("--out", type=path, metavar="DIR", help="write an HTML page, Markdown, CSV and figures there")
    report.add_argument("--paper", action="store_true", help="recompute the published tables from each other; no runs")
    report.add_argument("--json", action="store_true", help="print the collected numbers as JSON")
    report.set_defaults(run=_report)


def _report(arguments: argparse.Namespace) -> int:
    from jpeft.report import document, groups, plain, records
    from jpeft.report.write import to_json, write

    if arguments.paper == bool(arguments.runs):
        raise UserError("name the runs to report on, or give --paper for the published tables alone.")
    found: list[groups.Group] = []
    if arguments.paper:
        report = document.of_paper()
    else:
        results, problems = records.load(arguments.runs)
        for problem in problems[:_MOST_LINES]:
            print(f"left out: {problem}", file=sys.stderr)
        if len(problems) > _MOST_LINES:
            more = len(problems) - _MOST_LINES
            print(f"left out: {more:,} more; the report and --json name all of them", file=sys.stderr)
        if not results:
            raise RunFailed(f"no result can be used: {counted(len(problems), 'file')} left out.")
        found = groups.group(results)
        report = document.of_runs(found, problems)
    written, without = write(report, arguments.out, found) if arguments.out else ([], None)
    if arguments.json:
        print(to_json(plain.of_document(report, found)), end="")
        return 0
    from rich.console import Console

    from jpeft.report.terminal import print_document

    print_document(report, Console(), brief=bool(written))
    if without:
        print(f"\n{without}")
    if written:
        pictures = sum(path.suffix in (".png", ".svg") for path in written)
        tables = sum(path.suffix == ".csv" for path in written)
        print(
            f"\nwritten  {arguments.out}: index.html, report.md, report.json, {tables} CSV files, {pictures} figure "
            "files"
        )
        page, text = (shlex.quote(str(path)) for path in written[:2])
        print(f"next     open {page} in a browser; {text} is the same for reading in place")
    return 0
