"""The doctor: whether this site can work, from its folder to the server and back; nothing hangs.

It repairs nothing, and no record leaves the machine. What was found is for the site's own screen.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from client import folder as names
from client.finding import Finding, failed, within
from client.line_checks import line_checks
from client.machine_checks import FILES_S, folder_check, machine_checks
from client.membership import Member, load
from client.screen import plain
from privacy.errors import AbsentError, DataError, FedwardError
from privacy.identity import load as load_identity
from privacy.keys import Identity
from shared_models.fingerprint import fingerprint

_DISK = "look at the disk or the network that the folder is on"
_STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}


def examine(folder: Path, *, unhurried: bool = False) -> Iterator[Finding]:
    """Yield one finding after the other, as they are made.

    Args:
        folder: of an enrolled site; another one is the first finding.
        unhurried: to read the records may take as long as it takes.
    """
    yield folder_check(folder)
    try:
        member, identity = within(FILES_S, lambda: _enrolled(folder))
    except FedwardError as error:
        yield failed("enrolment", error)
        return
    except TimeoutError:
        late = failed("enrolment", DataError(f"{folder}: cannot be read in time", _DISK))
        yield replace(late, passes=True)
        return
    about = f"{member.membership.site} in the study {member.study.name}"
    yield Finding("enrolment", "ok", f"{about}; own key {fingerprint(identity.public)}")
    yield from machine_checks(member, identity, unhurried)
    yield from line_checks(member, identity)


def exit_code(findings: Iterable[Finding]) -> int:
    """Return what the program ends with: warnings are no failure, a server that is away is 5."""
    bad = [finding for finding in findings if finding.verdict == "failed"]
    if not bad:
        return 0
    return AbsentError.exit_code if all(one.absent for one in bad) else DataError.exit_code


def show_finding(finding: Finding, console: Console) -> None:
    """Print one finding: its verdict, what was found, and what to do about it."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for width in (7, 11):
        table.add_column(width=width)
    table.add_column(overflow="fold")
    table.add_row(
        plain(finding.verdict, _STYLES[finding.verdict]), finding.name, plain(finding.text)
    )
    if finding.hint:
        table.add_row("", "", plain(f"to do: {finding.hint}", "italic"))
    console.print(table)


def _enrolled(folder: Path) -> tuple[Member, Identity]:
    return load(folder), load_identity(folder / names.IDENTITY)
