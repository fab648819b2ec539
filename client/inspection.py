"""The approval packet again, from the site's own files, and what was answered to it.

Where the roster is not held yet the coordinator is asked for it, once. It approves nothing.
"""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from client import approval as approvals
from client import folder as names
from client.approval import Approval
from client.consent import held, packet_of, plan_of
from client.membership import Member, load
from client.packet import Packet, show
from client.policy import load_policy
from client.post import post_of
from client.screen import say
from privacy import identity as identities
from privacy.errors import AbsentError
from privacy.keys import Identity
from privacy.ledger import Ledger
from shared_models.registry import count_parameters
from shared_models.roster_file import RosterFile, read_roster


@dataclass(frozen=True)
class Inspection:
    """The packet, and the approval that holds for it, if one does."""

    packet: Packet
    approval: Approval | None

    def document(self) -> dict[str, object]:
        """Return it for machines."""
        given = None if self.approval is None else self.approval.model_dump(mode="json")
        return {**self.packet.document(), "approval": given}


def look(folder: Path) -> Inspection:
    """Return what a site has approved, or would approve.

    Raises:
        DataError: nobody is enrolled here, or a file cannot be used.
        PrivacyError: the policy or its ceiling refuses: there is nothing to approve.
        AbsentError: the roster is not sealed yet, or the coordinator did not answer.
    """
    member = load(folder)
    identity = identities.load(folder / names.IDENTITY)
    roster = held(folder) or _asked(member, identity)
    plan = plan_of(member, roster, count_parameters(member.study))
    with Ledger(folder / names.LEDGER) as ledger:
        packet = packet_of(member, load_policy(folder / names.POLICY), roster, plan, ledger)
    given = approvals.load(folder / names.APPROVAL, identity.public)
    if given is not None and not approvals.holds(given, plan.digest.hex(), roster):
        given = None
    return Inspection(packet, given)


def show_inspection(found: Inspection, console: Console) -> None:
    """Print the packet and the answer."""
    show(found.packet, console)
    if found.approval is None:
        words = "Not approved: `fedward-site start` asks."
    else:
        who = ", ".join(found.approval.confirmed) or "nobody"
        words = f"Approved {found.approval.time}; fingerprints compared with {who}."
    say(console, words)


def _asked(member: Member, identity: Identity) -> RosterFile:
    with closing(post_of(member, identity)) as post:
        news = post.ask()
    if news.roster is None:
        there = ", ".join(one.name for one in news.sites if one.state != "invited")
        raise AbsentError(
            f"the coordinator has not sealed the roster yet; enrolled: {there}",
            "`fedward-site start` waits for it",
        )
    return read_roster(news.roster.encode())
