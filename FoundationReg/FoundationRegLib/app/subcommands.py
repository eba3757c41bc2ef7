"""How the command line's subcommands are declared. Imports nothing heavy."""

from __future__ import annotations

import argparse


def add_subcommand(commands, name: str, summary: str) -> argparse.ArgumentParser:
    """The parser of a new subcommand ``name``, whose function is found by that name."""
    parser = commands.add_parser(name, help=summary, description=summary)
    parser.set_defaults(command=name)
    return parser
