"""fedward-server: the coordinator of one study between hospitals. It parses and prints."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from privacy.errors import DataError
from shared_models import program

if TYPE_CHECKING:
    from rich.console import Console

    from server.books import Books, Page
    from shared_models.roster_file import RosterFile

PROGRAM = "fedward-server"
PORT = 8443
DAYS, DAYS_MAX = 14, 365  # time to ask a data protection officer; a secret should not lie longer

app = typer.Typer(
    help="Coordinate a study between hospitals: invite, start, seal, export.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
Dir = Annotated[
    Path,
    typer.Option("--dir", metavar="DIR", help="The study's folder. [.]", show_default=False),
]
Site = Annotated[str, typer.Argument(metavar="SITE", help="The site's name.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@app.command()
def init(
    study: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The study file.")],
    host: Annotated[str, typer.Option(help="Name or address by which hospitals reach it.")],
    dir_: Annotated[Path, typer.Option("--dir", metavar="DIR", help="A new folder.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="The one public port.")] = PORT,
    authority: Annotated[
        Path | None,
        typer.Option(
            metavar="PEM",
            help="A network's own authority, which hospitals pin; with the two below.",
        ),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Its certificate for HOST, with the chain.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(metavar="PEM", help="The certificate's private key.")
    ] = None,
    json_: Json = False,
) -> None:
    """Make the folder of a study: its identity, its certificates, its first model."""
    with program.errors(PROGRAM):
        from shared_models.deployable import check_deployable
        from shared_models.study import load_study

        read = load_study(study)
        check_deployable(read, read.document())
        # Only now: torch takes seconds to import, and a bad study should not wait for it.
        from server.certificates import Certificates
        from server.founding import found
        from shared_models.fingerprint import fingerprint

        given = None
        if authority is not None and certificate is not None and key is not None:
            given = Certificates(authority, certificate, key)
        elif (authority, certificate, key) != (None, None, None):
            raise DataError(
                "expected --authority, --certificate and --key together, or none of them; "
                "nothing was made"
            )
        folder, pinned = found(read, dir_, host, port, given)
        server = folder.identity().public
        if json_:
            _print(
                {
                    "dir": str(dir_),
                    "study": read.name,
                    "study_digest": read.digest(),
                    "host": host,
                    "port": port,
                    "server": server.hex(),
                    "fingerprint": fingerprint(server),
                    "authority": pinned,
                }
            )
        console = _console()
        _say(console, f"made {dir_} for the study {read.name}, digest {read.digest()}")
        _say(console, f"the coordinator's key, in six words: {fingerprint(server)}")
        _say(console, f"hospitals will pin it, and the authority {pinned}")
        _say(console, f"next: fedward-server start --dir {quote(str(dir_))}, and invite the sites")


@app.command()
def invite(
    site: Site,
    dir_: Dir = Path(),
    days: Annotated[int, typer.Option(min=1, max=DAYS_MAX, help="Until it expires.")] = DAYS,
    json_: Json = False,
) -> None:
    """Print the token by which one hospital enrols, once."""
    with program.errors(PROGRAM):
        from server import desk
        from server.folder import open_folder

        folder = open_folder(dir_)
        with _books(dir_) as books:
            token, expires = desk.invite(folder, books, site, days)
        end = datetime.fromtimestamp(expires, UTC)
        if json_:
            _print({"site": site, "token": token, "expires": end.isoformat()})
        else:
            sys.stdout.write(token + "\n")
        _say(
            _console(),
            f"for {site}, until {end:%Y-%m-%d %H:%M} UTC, once; whoever has it can enrol as "
            f"{site}: send it by a channel that only {site} reads",
        )


@app.command()
def start(
    dir_: Dir = Path(),
    listen: Annotated[
        str | None,
        typer.Option(help="Address of this machine; else all, or loopback for a loopback host."),
    ] = None,
) -> None:
    """Serve the study until it ends; after Ctrl-C or a crash, start it again."""
    with program.errors(PROGRAM, "start it again: the study goes on where it was"):
        from server.folder import open_folder

        folder = open_folder(dir_)
        from server.coordinator import Coordinator
        from server.live import live_table

        console = _console()
        coordinator = Coordinator(folder, listen)
        try:
            with program.terminable(), live_table(console, coordinator.standing):
                coordinator.run()
        finally:
            coordinator.close()
        _say(console, f"next: fedward-server export --dir {quote(str(dir_))}")


@app.command()
def seal(dir_: Dir = Path(), json_: Json = False) -> None:
    """Close the roster: who has enrolled takes part. This makes the plan, and its digest."""
    with program.errors(PROGRAM):
        from server import desk
        from server.folder import open_folder
        from shared_models.fingerprint import fingerprint

        folder = open_folder(dir_)
        with _books(dir_) as books:
            missing = books.page().invited
            page = desk.seal(folder, books)
        plan = folder.plan(_roster(page).roster())
        words = {one.name: fingerprint(bytes.fromhex(one.public)) for one in _roster(page).sites}
        if json_:
            sites = [{"name": name, "fingerprint": said} for name, said in words.items()]
            numbers = {"n": plan.n, "t": plan.t, "quorum": plan.quorum, "n_c": plan.n_c}
            _print({"plan": page.plan, **numbers, "sites": sites, "withdrawn": list(missing)})
        else:
            sys.stdout.write(f"{page.plan}\n")
        console = _console()
        for name, said in words.items():
            _say(console, f"{name}: {said}")
        for name in missing:
            _say(console, f"{name} had not enrolled: its invitation is withdrawn")
        _say(
            console,
            f"{plan.n} sites, of which {plan.quorum} must answer and {plan.n_c} may collude; each "
            "site's steward now compares the fingerprints and approves the plan",
        )


@app.command()
def status(dir_: Dir = Path(), json_: Json = False) -> None:
    """Show where the study stands, while `start` runs and when it does not."""
    with program.errors(PROGRAM):
        from rich.console import Console

        from server.folder import is_claimed, open_folder
        from server.live import show_standing
        from server.standing import read_standing

        folder = open_folder(dir_)
        with _books(dir_) as books:
            standing = read_standing(folder, books.page(), is_claimed(dir_))
        if json_:
            _print(standing.document())
        else:
            show_standing(standing, Console())


@app.command()
def revoke(site: Site, dir_: Dir = Path()) -> None:
    """Shut a site out, before its next vector; or withdraw its invitation."""
    with program.errors(PROGRAM):
        from server import desk
        from server.folder import open_folder

        folder = open_folder(dir_)
        with _books(dir_) as books:
            before = books.page()
            done = desk.revoke(folder, books, site)
        if not done:
            words = f"{site} was out before"
        elif before.plan is not None:
            words = f"{site} is out; past rounds stay in the model"
        elif site in before.invited:
            words = f"the invitation of {site} is withdrawn"
        else:
            words = f"{site} is out; invited again, it has to enrol in a new folder, with new keys"
        _say(_console(), words)


@app.command()
def export(
    dir_: Dir = Path(),
    out: Annotated[Path | None, typer.Option(help="The bundle's folder. [DIR/export]")] = None,
) -> None:
    """Write what is taken home of a study that is over: the model, its card, its proof."""
    with program.errors(PROGRAM):
        from server.folder import EXPORT, open_folder

        folder = open_folder(dir_)
        from server.export import export as bundle

        with _books(dir_) as books:
            page = books.page()
        where = bundle(folder, page, out or folder / EXPORT)
        sys.stdout.write(f"{where}\n")


@contextmanager
def _books(folder: Path) -> Iterator["Books"]:
    from server.books import Books
    from server.folder import BOOKS

    books = Books(folder / BOOKS)
    try:
        yield books
    finally:
        books.close()


def _roster(page: "Page") -> "RosterFile":
    if page.roster is None:
        raise ValueError("expected a sealed roster")
    return page.roster


def _console() -> "Console":
    from rich.console import Console

    return Console(stderr=True)


def _say(console: "Console", words: str) -> None:
    # A terminal breaks lines between words; a file or a pipe gets them whole.
    console.print(words, markup=False, highlight=False, soft_wrap=not console.is_terminal)


def _print(document: object) -> None:
    sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def main() -> None:
    """Run the program."""
    program.run(app, PROGRAM)
