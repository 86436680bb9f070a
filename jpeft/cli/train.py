"""`jpeft train`: one run from a config and overrides (`jpeft.cli.run`)."""

import argparse

from jpeft.cli import run


def add(commands: argparse._SubParsersAction) -> None:
    """Adds `jpeft train`; its flags are those of the config, which argparse passes on unparsed."""
    parser = commands.add_parser(
        "train", help="train and test an adapter: one run from a config", add_help=False, prefix_chars="\0"
    )
    parser.add_argument("argv", nargs="*")
    parser.set_defaults(run=lambda arguments: run.run(["jpeft train", *arguments.argv]))
