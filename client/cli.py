"""fedward-site: one hospital in federated studies. It parses and prints."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from shared_models import program

PROGRAM = "fedward-site"

app = typer.Typer(
    help="One hospital in federated studies: its limits, its budget, its part in a study.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _commands() -> None:
    """Keep the name of a command even while there is one alone."""


@app.command()
def budget(
    folder: Annotated[
        Path,
        typer.Option("--dir", metavar="DIR", help="The site's folder. [.]", show_default=False),
    ] = Path(),
    json_: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Show what was spent of each dataset's privacy, by which study, and what is left."""
    with program.errors(PROGRAM):
        # Only now: adding up a long history imports scipy.
        from rich.console import Console

        from client.budget import document, read_budget, show_budget

        console = Console(stderr=True)
        with console.status("Adding up what was spent") if console.is_terminal else console:
            found = read_budget(folder)
        if json_:
            sys.stdout.write(json.dumps(document(found), indent=1, allow_nan=False) + "\n")
            return
        show_budget(found, Console(), console)


_Dir = Annotated[
    Path, typer.Option("--dir", metavar="DIR", help="The site's folder. [.]", show_default=False)
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@app.command()
def policy(folder: _Dir = Path(), json_: _Json = False) -> None:
    """Show the policy in force, its digest, and where the file differs from it."""
    with program.errors(PROGRAM):
        from rich.console import Console

        from client.in_force import read_in_force, show_in_force

        found = read_in_force(folder)
        if json_:
            _print(found.document())
            return
        show_in_force(found, Console(), Console(stderr=True))


def _print(document: object) -> None:
    sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def main() -> None:
    """Run the program."""
    program.run(app, PROGRAM)
