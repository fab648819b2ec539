"""From an enrolled site to an approved plan: wait for the roster, show the packet, ask, sign, tell.

Nobody is asked while an approval still holds. It reads no record.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypeVar

from client import approval as approvals
from client import folder as names
from client.approval import Approval
from client.journal import Journal
from client.membership import Member
from client.packet import Packet, make_packet
from client.policy import Policy
from client.post import Post
from privacy.errors import AbsentError, DataError, PrivacyError
from privacy.keys import Identity
from privacy.ledger import Ledger
from privacy.roster import Plan
from shared_models.durable import write_durably
from shared_models.letters import News
from shared_models.plan import make_plan, plan_document
from shared_models.registry import count_parameters
from shared_models.roster_file import RosterFile, accept, read_roster, roster_bytes

ASK_S = 2.0  # between two questions while the roster is open
AGAIN_FIRST_S, AGAIN_MOST_S = 1.0, 15.0  # before the next attempt to reach one that is not there
_DRAW = random.SystemRandom()


class Steward(Protocol):
    """Who decides: a person at a terminal, or what was typed beforehand."""

    def decide(self, packet: Packet, changes: Sequence[str], peers: Sequence[str]) -> set[str]:
        """Return the peers whose fingerprints were compared by another channel: this approves.

        Args:
            packet: to be approved.
            changes: what is not as it was approved before; empty the first time.
            peers: names of the other hospitals.

        Raises:
            PrivacyError: it is not approved.
        """


@dataclass(frozen=True)
class Agreed:
    """What a site works under."""

    roster: RosterFile
    plan: Plan
    parameters: int
    approval: Approval


def plan_of(member: Member, roster: RosterFile, parameters: int) -> Plan:
    """Return the plan as this site computes it; StudyError when the study does not fit it."""
    first = bytes.fromhex(member.membership.first_model)
    return make_plan(member.study, roster.roster(), parameters, first)


def agree(
    member: Member,
    identity: Identity,
    policy: Policy,
    post: Post,
    steward: Steward,
    tell: Callable[[str], None],
    wait: Callable[[float], None] = time.sleep,
    meant: str | None = None,
) -> Agreed:
    """Return what the steward has approved, once the roster is sealed.

    Args:
        member: the site.
        identity: signs the approval.
        policy: of the site.
        post: its line to the coordinator.
        steward: is asked, unless an approval still holds.
        tell: is told what is waited for, whenever that changes.
        wait: sleeps; raises what ends the program.
        meant: digest of the plan that is expected; None takes any that the steward approves.

    Raises:
        PrivacyError: not approved; another plan than the one that was meant; the policy or its
            ceiling refuses; the site was revoked.
        DataError: the coordinator does not know the site, or a file cannot be used.
        ProtocolError: the roster is not the coordinator's, or older than the one that is held.
    """
    found = sealed(post, tell, wait)
    place_of(member, identity, found)  # before it is held: another may not replace it
    roster = hold(member, found)
    parameters = count_parameters(member.study)
    plan = plan_of(member, roster, parameters)
    check_meant(plan.digest.hex(), meant)  # also where an approval holds
    given = approvals.load(member.folder / names.APPROVAL, identity.public)
    if given is None or not approvals.holds(given, plan.digest.hex(), roster):
        given = _ask(member, identity, policy, steward, roster, plan, given)
        tell(f"approved; fingerprints compared with {', '.join(given.confirmed) or 'nobody'}")
    # Told again after every start: the coordinator may have been put back.
    _until(lambda: post.approve(given.plan, given.confirmed), tell, wait)
    return Agreed(roster, plan, parameters, given)


def check_meant(plan: str, meant: str | None) -> None:
    """Refuse a plan that is not the one whose digest was typed; PrivacyError."""
    if meant not in (None, plan):
        raise PrivacyError(
            f"--approve: expected the plan {plan}, got another; nothing was approved",
            "`fedward-site inspect` shows what there is to approve",
        )


def recall(member: Member, identity: Identity) -> Agreed:
    """Return what was approved, from the site's own files alone: for a study that is over.

    Raises:
        DataError: a file is lost or damaged.
        PrivacyError: the approval is not this site's.
    """
    roster = held(member.folder)
    given = approvals.load(member.folder / names.APPROVAL, identity.public)
    if roster is None or given is None:
        lost = names.ROSTER if roster is None else names.APPROVAL
        raise DataError(
            f"{member.folder / lost}: expected the file of a study that has ended, found none",
            "restore the file from your own copy",
        )
    parameters = count_parameters(member.study)
    return Agreed(roster, plan_of(member, roster, parameters), parameters, given)


def packet_of(
    member: Member, policy: Policy, roster: RosterFile, plan: Plan, ledger: Ledger
) -> Packet:
    """Return the packet of a plan; errors as `client.packet.make_packet`."""
    first = bytes.fromhex(member.membership.first_model)
    parameters = count_parameters(member.study)
    return make_packet(
        member.study,
        roster,
        plan,
        plan_document(member.study, roster.roster(), parameters, first),
        policy,
        ledger,
        member.membership.site,
        f"{member.membership.host}:{member.membership.port}",
    )


def sealed(
    post: Post, tell: Callable[[str], None], wait: Callable[[float], None] = time.sleep
) -> RosterFile:
    """Wait until the roster is sealed, telling who is missing; return it.

    Raises:
        DataError, PrivacyError, ProtocolError: as `Post.ask`.
    """
    while True:
        news = _until(post.ask, tell, wait)
        if news.roster is not None:
            return read_roster(news.roster.encode())
        tell(_missing(news))
        wait(ASK_S)


def held(folder: Path) -> RosterFile | None:
    """Return the roster that this site holds; None before it was sealed.

    Raises:
        DataError: the file cannot be read, or is none.
    """
    path = folder / names.ROSTER
    try:
        return read_roster(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def hold(member: Member, roster: RosterFile) -> RosterFile:
    """Check a roster against the site's own place in it and the one that is held; keep it.

    Raises:
        ProtocolError, PrivacyError: as `shared_models.roster_file.accept`; or it is another
            study's, another server's, or has another key of this site.
        DataError: it cannot be written.
    """
    before = held(member.folder)
    if before is not None:
        roster = accept(before, roster)
        if roster is before or roster == before:
            return before
    if roster.study != member.study.name or roster.server != member.membership.server:
        raise DataError(
            "expected the roster of the study and the coordinator of the token, got another; "
            "it was not taken"
        )
    try:
        write_durably(member.folder / names.ROSTER, roster_bytes(roster))
    except OSError as error:
        raise DataError(
            f"{member.folder / names.ROSTER}: cannot be written ({error.strerror})"
        ) from error
    with Journal(member.folder / names.JOURNAL) as journal:
        journal.note(
            "roster",
            study=member.membership.study,
            version=roster.version,
            sites=[one.name for one in roster.sites],
            revoked=[one.name for one in roster.sites if one.revoked],
        )
    return roster


def place_of(member: Member, identity: Identity, roster: RosterFile) -> int:
    """Return the site's index.

    Raises:
        DataError: its name is not in the roster under its own key.
    """
    for one in roster.sites:
        if one.name == member.membership.site and one.public == identity.public.hex():
            return one.index
    raise DataError(
        "expected this site's name and key in the roster, found neither; nothing was approved",
        "the coordinator sealed the roster without this site, or with another key: call it",
    )


def _ask(
    member: Member,
    identity: Identity,
    policy: Policy,
    steward: Steward,
    roster: RosterFile,
    plan: Plan,
    before: Approval | None,
) -> Approval:
    with Ledger(member.folder / names.LEDGER) as ledger:
        packet = packet_of(member, policy, roster, plan, ledger)
    changes = () if before is None else approvals.changes(before, member.study, roster)
    peers = approvals.peers_of(roster, member.membership.site)
    confirmed = steward.decide(packet, changes, peers)
    distributed = member.study.privacy.mode == "distributed"
    approvals.check_confirmed(plan, distributed, peers, confirmed, policy)
    given = approvals.sign(identity, member.study, plan, roster, confirmed, datetime.now(UTC))
    with Journal(member.folder / names.JOURNAL) as journal:
        journal.note(
            "approve",
            study=member.membership.study,
            plan=given.plan,
            code=given.code,
            policy=policy.digest(),
            confirmed=list(given.confirmed),
            signature=given.signature,
        )
    approvals.keep(given, member.folder / names.APPROVAL)
    return given


def _missing(news: News) -> str:
    there = [one.name for one in news.sites if one.state in ("enrolled", "approved")]
    away = [one.name for one in news.sites if one.state == "invited"]
    words = f"waiting until the coordinator seals the roster; enrolled: {', '.join(there)}"
    return f"{words}; missing: {', '.join(away)}" if away else words


_Answer = TypeVar("_Answer")


def _until(
    ask: Callable[[], _Answer], tell: Callable[[str], None], wait: Callable[[float], None]
) -> _Answer:
    """Ask until there is an answer; an absent coordinator is told of and waited for."""
    pause = AGAIN_FIRST_S
    while True:
        try:
            return ask()
        except AbsentError as error:
            tell(f"{error}; trying again")
            wait(pause * _DRAW.uniform(0.5, 1.0))  # never in step with other sites
            pause = min(2 * pause, AGAIN_MOST_S)
