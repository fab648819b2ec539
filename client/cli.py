"""fedward-site: one hospital in federated studies. It parses and prints."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from privacy.errors import DataError, PrivacyError
from shared_models import program

if TYPE_CHECKING:
    from rich.console import Console

PROGRAM = "fedward-site"

app = typer.Typer(
    help="One hospital in federated studies: its limits, its budget, its part in a study.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


Dir = Annotated[
    Path, typer.Option("--dir", metavar="DIR", help="The site's folder. [.]", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@app.command()
def enrol(
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="From the coordinator.")],
    data: Annotated[Path, typer.Option(metavar="PATH", help="File or folder of records.")],
    folder: Dir = Path(),
    json_: Json = False,
) -> None:
    """Become a member of the study that a coordinator's TOKEN invites to.

    Keys are made here and stay here, and the records are held against the study.
    """
    with program.errors(PROGRAM):
        from client.enrolment import enrol as become
        from client.enrolment import show_enrolment

        console = _console()
        found = become(token, data, folder, _teller(console))
        if json_:
            _print(found.document())
        show_enrolment(found, console)


@app.command()
def start(
    folder: Dir = Path(),
    approve: Annotated[
        str | None,
        typer.Option(
            metavar="DIGEST", help="The plan that is approved, for machines; with --confirmed."
        ),
    ] = None,
    confirmed: Annotated[
        str | None,
        typer.Option(metavar="all|NAME,...", help="Whose six words were compared."),
    ] = None,
) -> None:
    """Take part until the study ends: waits for the roster, shows the packet, asks, and works."""
    with program.errors(PROGRAM, "start it again: the site goes on where it was"):
        if (approve is None) != (confirmed is None):
            raise DataError("expected --approve and --confirmed together; nothing was approved")
        # Only now: torch and flwr take seconds to import.
        from client.station import work
        from client.steward import Asked, Typed
        from client.watching import watching

        console = _console()
        _ready(folder, console)
        steward = Asked(console) if confirmed is None else Typed(confirmed)
        with program.terminable(), watching(console) as (tell, watch, pause):
            ended = work(folder, pause(steward), tell, watch, meant=approve)
        _say(console, ended.words)
        _say(console, f"the model, its card and what it cost are in {ended.model}")


@app.command()
def inspect(folder: Dir = Path(), json_: Json = False) -> None:
    """Show the approval packet again, and what was answered."""
    with program.errors(PROGRAM):
        from rich.console import Console

        from client.inspection import look, show_inspection

        found = look(folder)
        if json_:
            _print(found.document())
            return
        show_inspection(found, Console())


@app.command()
def leave(
    folder: Dir = Path(),
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Take part no longer, from the next message on; past rounds stay in the model."""
    with program.errors(PROGRAM):
        from client.leaving import leavable
        from client.leaving import leave as go

        member, console = leavable(folder), _console()
        name = member.study.name
        _say(
            console,
            "Past rounds stay in the model, and the ledger keeps what they cost: `fedward-site "
            "budget` shows it. The other hospitals go on as long as enough of them stay.",
        )
        if not yes and not sys.stdin.isatty():
            raise DataError("expected --yes where nobody can be asked; nothing was changed")
        if not yes and not typer.confirm(f"Leave {name}?", default=False, err=True):
            raise PrivacyError("not left; nothing was changed")
        go(member)
        _say(console, f"left {name}; the coordinator knows it, and it is in the log")


@app.command()
def audit(folder: Dir = Path(), json_: Json = False) -> None:
    """Verify the site's log and show what left the building, when, and under which approval."""
    with program.errors(PROGRAM):
        from rich.console import Console

        from client.audit import read_audit, show_audit

        found = read_audit(folder)
        if json_:
            _print(found.document())
            return
        show_audit(found, Console(), _console())


@app.command()
def budget(folder: Dir = Path(), json_: Json = False) -> None:
    """Show what was spent of each dataset's privacy, by which study, and what is left."""
    with program.errors(PROGRAM):
        # Only now: adding up a long history imports scipy.
        from rich.console import Console

        from client.budget import document, read_budget, show_budget

        console = Console(stderr=True)
        with console.status("Adding up what was spent") if console.is_terminal else console:
            found = read_budget(folder)
        if json_:
            _print(document(found))
            return
        show_budget(found, Console(), console)


@app.command()
def policy(folder: Dir = Path(), json_: Json = False) -> None:
    """Show the policy in force, its digest, and where the file differs from it."""
    with program.errors(PROGRAM):
        from rich.console import Console

        from client.in_force import read_in_force, show_in_force

        found = read_in_force(folder)
        if json_:
            _print(found.document())
            return
        show_in_force(found, Console(), Console(stderr=True))


@app.command()
def doctor(folder: Dir = Path(), json_: Json = False) -> None:
    """Look at everything that can keep this site from working, and say what to do."""
    with program.errors(PROGRAM):
        from dataclasses import asdict

        from rich.console import Console

        from client.doctor import examine, exit_code, show_finding

        findings = []
        for finding in examine(folder):
            findings.append(finding)
            if not json_:
                show_finding(finding, Console())
        if json_:
            _print([asdict(finding) for finding in findings])
        code = exit_code(findings)
        if code:
            raise typer.Exit(code)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The folder taken home.")],
    data: Annotated[Path, typer.Option(metavar="PATH", help="File or folder of records.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A CSV file, or .npz for masks; else stdout."),
    ] = None,
    json_: Json = False,
) -> None:
    """Use a model, in the folder MODEL that was taken home, on local records.

    One line a record, and figures where the answer is known.
    """
    with program.errors(PROGRAM):
        from client.predict import predict as ask
        from client.predict import show_figures, write_predictions

        found = ask(model, data)
        if json_:
            _print(found.document())
        else:
            write_predictions(found, out)
        show_figures(found, _console())


@app.command()
def explain(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The folder taken home.")],
    data: Annotated[Path, typer.Option(metavar="PATH", help="File or folder of records.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder for the report.")],
    record: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="Explain record N, from 1; repeat for more. [the first 6]"),
    ] = None,
    json_: Json = False,
) -> None:
    """Show why a model says what it says of local records: a page that stays here."""
    with program.errors(PROGRAM):
        from client.explain.explanation import explain as ask
        from client.explain.folder import check_folder, keep
        from client.explain.report import files_of, show_checks, summary

        console = _console()
        check_folder(out)
        with _bar(console) as tell:
            found = ask(model, data, record or (), tell)
            keep(out, files_of(found))
        if json_:
            _print(summary(found))
        show_checks(found, console)
        _say(console, f"the page is {out / 'explanation.html'}: it holds patients' data")


def _ready(folder: Path, console: "Console") -> None:
    """Show what the doctor finds wrong on this machine, unless there is no more work to do.

    What may pass (a server that is away, a clock that is off) is waited for afterwards, as by a
    site that works already: nobody may be there to start it again. What the server answers to
    letters (the echo) is met by the work itself: a study may have ended since, which is no fault.
    So is what the policy refuses.
    """
    from dataclasses import replace

    from client.doctor import examine, show_finding
    from client.folder import NOTICE
    from client.membership import check_stays, load

    member = load(folder)
    check_stays(member)
    if member.has(NOTICE):
        return
    met = (("echo", "failed"), ("echo", "warning"), ("code", "warning"), ("policy", "failed"))
    with console.status("Looking at this machine, its records and the way to the coordinator"):
        found = [one for one in examine(folder, unhurried=True) if one.verdict != "ok"]
    bad = [
        replace(one, verdict="warning") if one.passes else one
        for one in found
        if (one.name, one.verdict) not in met
    ]
    for finding in bad:
        show_finding(finding, console)
    here = [one.name for one in bad if one.verdict == "failed"]
    if here:
        raise DataError(
            f"expected a site that can work, found {', '.join(here)} failed; nothing was begun",
            "do what is said above, and `fedward-site doctor` looks again",
        )


def _console() -> "Console":
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def _bar(console: "Console") -> Iterator[Callable[[str, float], None]]:
    """Show what is being done, and how much of it is done, where somebody looks."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("Explaining", total=1.0)
        yield lambda what, share: bar.update(
            task, description=f"Explaining: {what}", completed=share
        )


def _say(console: "Console", words: str) -> None:
    from client.screen import say

    say(console, words)


def _teller(console: "Console") -> Callable[[str], None]:
    return lambda words: _say(console, words)


def _print(document: object) -> None:
    sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def main() -> None:
    """Run the program."""
    program.run(app, PROGRAM)
