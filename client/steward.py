"""Who approves: a person who is shown the packet and asked, or what was typed beforehand.

It keeps nothing and tells nobody; `client.consent` does.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click
from rich.console import Console

from client.packet import Packet, show
from client.screen import say
from privacy.errors import DataError, PrivacyError

EVERYBODY = "all"


@dataclass(frozen=True)
class Asked:
    """A person at a terminal."""

    console: Console  # of stderr

    def decide(self, packet: Packet, changes: Sequence[str], peers: Sequence[str]) -> set[str]:
        """Show the packet and ask; as `client.consent.Steward`."""
        show(packet, self.console)
        if changes:
            say(self.console, f"Approved before, and changed since: {', '.join(changes)}.")
        if not (self.console.is_terminal and sys.stdin.isatty()):
            raise PrivacyError(
                "expected an approval, and there is nobody to ask; nothing was approved",
                f"fedward-site start --approve {packet.digest} --confirmed all, once the "
                "fingerprints were compared",
            )
        most = packet.answers.unconfirmed
        left = f"At most {most} may stay unconfirmed." if most else "None may stay unconfirmed."
        say(
            self.console,
            "Call each hospital, or meet its steward, and compare the six words above. " + left,
        )
        words = {one.name: one.words for one in packet.hospitals}
        confirmed = {
            name
            for name in peers
            if click.confirm(f"Compared with {name}: {words[name]}?", default=False, err=True)
        }
        if not click.confirm(f"Approve plan {packet.digest}?", default=False, err=True):
            raise PrivacyError("not approved; nothing was sent", "`fedward-site start` asks again")
        return confirmed


@dataclass(frozen=True)
class Typed:
    """What was given on the command line, beside the digest of the plan that is approved.

    Attributes:
        confirmed: names with commas between them, or "all".
    """

    confirmed: str

    def decide(self, packet: Packet, changes: Sequence[str], peers: Sequence[str]) -> set[str]:
        """Return who was named; as `client.consent.Steward`."""
        del packet, changes
        if self.confirmed == EVERYBODY:
            return set(peers)
        named = {name.strip() for name in self.confirmed.split(",") if name.strip()}
        strangers = sorted(named - set(peers))
        if strangers:
            raise DataError(
                f"--confirmed: expected names of the other hospitals, got {strangers[0]!a}; "
                "nothing was approved",
                f"they are {', '.join(peers)}",
            )
        return named
