"""From an enrolled site to an approved plan, against a real desk: who waits, who is asked, when."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from client import approval as approvals
from client import consent
from client.approval import Approval
from client.consent import Agreed, agree, recall
from client.journal import Journal
from client.leaving import leave
from client.packet import Packet
from client.policy import load_policy
from client.steward import Typed
from privacy.errors import DataError, PrivacyError, ProtocolError
from privacy.keys import identity as from_secret
from shared_models import letters
from shared_models import plan as plans
from shared_models.fingerprint import fingerprint
from shared_models.roster_file import Member, RosterFile, sign_roster
from tests.client.desk import NAMES, Desk, Hospital, asked_for, join, open_desk
from tests.server.conftest import DISTRIBUTED, free_port


class Stopped(Exception):
    """The test has seen enough."""


class Steward:
    """Confirms the peers that it is given, and keeps what it was shown."""

    def __init__(self, *confirmed: str) -> None:
        self.confirmed, self.packets, self.changes = set(confirmed), [], []
        self.packets: list[Packet]
        self.changes: list[Sequence[str]]

    def decide(self, packet: Packet, changes: Sequence[str], peers: Sequence[str]) -> set[str]:
        self.packets.append(packet)
        self.changes.append(changes)
        return self.confirmed or set(peers)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path / "coordinator", asked_for()) as one:
        yield one


def ask(
    site: Hospital,
    steward: consent.Steward,
    tell: Callable[[str], None] = lambda _: None,
    wait: Callable[[float], None] = lambda _: None,
    meant: str | None = None,
) -> Agreed:
    policy = load_policy(site.folder / "policy.toml")
    with closing(site.post()) as post:
        return agree(site.member, site.identity, policy, post, steward, tell, wait, meant)


def kept(site: Hospital) -> Approval | None:
    return approvals.load(site.folder / "approval.json", site.identity.public)


def noted(site: Hospital, kind: str) -> list[dict[str, object]]:
    with Journal(site.folder / "journal.db") as journal:
        return [dict(note.facts) for note in journal.rows() if note.kind == kind]


def test_a_site_waits_for_the_roster_and_says_who_is_missing(desk: Desk, tmp_path: Path) -> None:
    sites = join(desk, tmp_path, *NAMES[:3])
    desk.invite("graz")
    told: list[str] = []

    def wait(_: float) -> None:
        if len(told) > 1:
            desk.seal()

    agreed = ask(sites[0], Steward(), told.append, wait)
    assert set(told) == {
        "waiting until the coordinator seals the roster; enrolled: bonn, ulm, jena; missing: graz",
        "approved; fingerprints compared with jena, ulm",
    }
    assert [one.name for one in agreed.roster.sites] == list(NAMES[:3])


def test_a_coordinator_that_is_away_is_waited_for_longer_each_time(
    desk: Desk, tmp_path: Path
) -> None:
    site = join(desk, tmp_path, "bonn")[0]
    site.member = replace(
        site.member, membership=site.member.membership.model_copy(update={"port": free_port()})
    )
    told: list[str] = []
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 8:
            raise Stopped

    with pytest.raises(Stopped):
        ask(site, Steward(), told.append, wait)
    assert all("cannot be reached" in words for words in told)
    assert 0.5 <= waits[0] <= 1.0
    assert 7.5 <= waits[-1] <= 15.0


def test_what_is_approved_is_signed_logged_and_told(desk: Desk, tmp_path: Path) -> None:
    sites = join(desk, tmp_path)
    page = desk.seal()
    steward = Steward("ulm", "jena")
    agreed = ask(sites[0], steward)
    given = kept(sites[0])
    assert given is not None
    assert given == agreed.approval
    assert given.plan == page.plan == agreed.plan.digest.hex() == steward.packets[0].digest
    assert given.confirmed == ("jena", "ulm")
    assert desk.state("bonn") == "approved"
    assert desk.state("ulm") == "enrolled"
    assert [note["plan"] for note in noted(sites[0], "approve")] == [page.plan]
    own = next(one for one in steward.packets[0].hospitals if one.own)
    assert own.words == fingerprint(sites[0].identity.public)


def test_each_letter_that_tells_something_is_in_the_log(desk: Desk, tmp_path: Path) -> None:
    site = join(desk, tmp_path)[0]
    desk.seal()
    ask(site, Steward())
    leave(site.member)
    sent = [body for path, body in desk.asked if path == letters.PATH]
    own = {
        hashlib.sha256(body).hexdigest(): len(body)
        for body, letter in zip(sent, map(letters.read_question, sent), strict=True)
        if letter.site == "bonn" and not isinstance(letter, letters.Ask)
    }
    found = noted(site, "letter")
    assert [note["letter"] for note in found] == ["look", "enrol", "approve", "leave"]
    assert {note["sha256"]: note["bytes"] for note in found} == own


def test_an_approval_that_is_told_again_is_one_letter(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = join(desk, tmp_path)[0]
    desk.seal()
    answer, told = desk.office.answer, []

    def answer_the_third(data: bytes) -> bytes | None:
        told.extend([data] * isinstance(letters.read_question(data), letters.Approve))
        return None if len(told) in (1, 2) else answer(data)

    monkeypatch.setattr(desk.office, "answer", answer_the_third)
    ask(site, Steward())
    assert desk.state("bonn") == "approved"
    assert (len(told), len(set(told))) == (3, 1)
    assert [note["letter"] for note in noted(site, "letter")] == ["look", "enrol", "approve"]


def test_nobody_is_asked_again_while_the_approval_holds(desk: Desk, tmp_path: Path) -> None:
    sites = join(desk, tmp_path)
    desk.seal()
    ask(sites[0], Steward())
    steward = Steward()
    again = ask(sites[0], steward)
    assert steward.packets == []
    assert again.approval == kept(sites[0])


def test_too_few_fingerprints_approve_nothing(desk: Desk, tmp_path: Path) -> None:
    sites = join(desk, tmp_path)
    desk.seal()
    with pytest.raises(PrivacyError, match="at most 1 of 3 other hospitals"):
        ask(sites[0], Steward("ulm"))
    assert kept(sites[0]) is None
    assert noted(sites[0], "approve") == []
    assert desk.state("bonn") == "enrolled"


def test_with_three_sites_every_peer_must_be_confirmed(desk: Desk, tmp_path: Path) -> None:
    sites = join(desk, tmp_path, *NAMES[:3])
    desk.seal()
    with pytest.raises(PrivacyError, match="at most 0 of 2"):
        ask(sites[0], Steward("ulm"))
    assert ask(sites[0], Steward("ulm", "jena")).plan.n == 3


def test_noise_that_allows_for_no_colluder_wants_every_peer_confirmed(tmp_path: Path) -> None:
    """Of four sites the masks allow one, and so would mode local."""
    study = asked_for(
        privacy={**DISTRIBUTED, "colluders": 0},
        training={"learning_rate": 0.5},
    )
    with open_desk(tmp_path / "coordinator", study) as desk:
        sites = join(desk, tmp_path)
        desk.seal()
        with pytest.raises(PrivacyError, match="at most 0 of 3 other hospitals"):
            ask(sites[0], Steward("ulm", "jena"))
        assert kept(sites[0]) is None
        assert ask(sites[0], Steward()).approval.confirmed == ("graz", "jena", "ulm")


def test_the_policys_own_number_of_unconfirmed_peers_counts(desk: Desk, tmp_path: Path) -> None:
    sites = join(desk, tmp_path)
    desk.seal()
    path = sites[0].folder / "policy.toml"
    path.write_text("unconfirmed_max = 0\n" + path.read_text())
    with pytest.raises(PrivacyError, match="at most 0 of 3 other hospitals"):
        ask(sites[0], Steward("ulm", "jena"))
    assert kept(sites[0]) is None
    assert ask(sites[0], Steward()).approval.confirmed == ("graz", "jena", "ulm")


def test_a_site_that_is_revoked_changes_no_approval_of_others(desk: Desk, tmp_path: Path) -> None:
    sites = join(desk, tmp_path)
    desk.seal()
    ask(sites[0], Steward())
    desk.revoke("graz")
    steward = Steward()
    agreed = ask(sites[0], steward)
    assert steward.packets == []
    assert [one.name for one in agreed.roster.sites if one.revoked] == ["graz"]
    assert [note["version"] for note in noted(sites[0], "roster")] == [1, 2]


def test_other_code_asks_again(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sites = join(desk, tmp_path)
    desk.seal()
    first = ask(sites[0], Steward())
    for module in (plans, approvals):  # an upgrade, on both sides
        monkeypatch.setattr(module, "code_digest", lambda: "c0de" * 16)
    roster = desk.books.page().roster
    assert roster is not None
    desk.books.follow_plan(desk.folder.plan(roster.roster()).digest.hex())
    steward = Steward()
    second = ask(sites[0], steward)
    assert steward.changes == [("the code",)]
    assert second.plan.digest != first.plan.digest
    assert desk.state("bonn") == "approved"


def test_a_coordinator_with_another_plan_is_refused(desk: Desk, tmp_path: Path) -> None:
    sites = join(desk, tmp_path)
    desk.seal()
    desk.books.follow_plan("ab" * 32)
    with pytest.raises(PrivacyError, match="another plan"):
        ask(sites[0], Steward())
    assert desk.state("bonn") == "enrolled"


def test_a_digest_that_was_typed_for_another_plan_approves_nothing(
    desk: Desk, tmp_path: Path
) -> None:
    sites = join(desk, tmp_path)
    plan = desk.seal().plan
    assert plan is not None
    with pytest.raises(PrivacyError, match="--approve: expected the plan"):
        ask(sites[0], Typed("all"), meant="ab" * 32)
    with pytest.raises(DataError, match="--confirmed: expected names"):
        ask(sites[0], Typed("mars,ulm"), meant=plan)
    assert kept(sites[0]) is None
    given = ask(sites[0], Typed(" ulm, jena,"), meant=plan).approval
    assert given.confirmed == ("jena", "ulm")
    with pytest.raises(PrivacyError, match="--approve: expected the plan"):
        ask(sites[0], Typed("all"), meant="ab" * 32)  # although an approval holds
    assert kept(sites[0]) == given


def test_a_revoked_site_is_told_so(desk: Desk, tmp_path: Path) -> None:
    sites = join(desk, tmp_path)
    desk.seal()
    desk.revoke("bonn")
    with pytest.raises(PrivacyError, match="revoked, or has left"):
        ask(sites[0], Steward())


def test_a_roster_without_the_site_is_not_approved(desk: Desk, tmp_path: Path) -> None:
    sites = join(desk, tmp_path)
    page = desk.seal()
    assert page.roster is not None
    members = [Member(one.name, bytes.fromhex(one.public)) for one in page.roster.sites]
    # The victim's name under another key: what it would be shown is not itself.
    swapped = [Member("bonn", members[1].public), Member("ulm", members[0].public), *members[2:]]
    server = desk.folder.identity()
    with pytest.raises(DataError, match="this site's name and key"):
        ask_with(sites[0], sign_roster("toy", 1, swapped, server), desk)
    assert ask(sites[0], Steward()).plan.digest.hex() == page.plan  # it holds no other since


@pytest.mark.parametrize("which", ["older", "second", "larger"])
def test_another_roster_than_the_one_that_is_held_is_refused(
    desk: Desk, tmp_path: Path, which: str
) -> None:
    sites = join(desk, tmp_path)
    desk.seal()
    ask(sites[0], Steward())
    desk.revoke("graz")
    ask(sites[0], Steward())  # version 2 is held
    page = desk.books.page()
    assert page.roster is not None
    members = [Member(one.name, bytes.fromhex(one.public)) for one in page.roster.sites]
    server = desk.folder.identity()
    if which == "older":
        roster = sign_roster("toy", 1, members, server)
    elif which == "second":
        members[1] = replace(members[1], revoked=True)
        roster = sign_roster("toy", 2, members, server)
    else:
        members[3] = replace(members[3], revoked=True)
        colluder = Member("mars", from_secret(bytes([9]) * 32).public)
        roster = sign_roster("toy", 3, [*members, colluder], server)
    kind = PrivacyError if which == "larger" else ProtocolError
    with pytest.raises(kind, match="stays in force"):
        ask_with(sites[0], roster, desk)
    assert [note["version"] for note in noted(sites[0], "roster")] == [1, 2]


def test_a_study_that_is_over_is_recalled_without_the_coordinator(
    desk: Desk, tmp_path: Path
) -> None:
    sites = join(desk, tmp_path)
    desk.seal()
    agreed = ask(sites[0], Steward())
    asked = len(desk.asked)
    assert recall(sites[0].member, sites[0].identity) == agreed
    assert len(desk.asked) == asked
    (sites[0].folder / "approval.json").unlink()
    with pytest.raises(DataError, match=r"approval\.json"):
        recall(sites[0].member, sites[0].identity)


def test_an_approval_that_was_edited_is_none(desk: Desk, tmp_path: Path) -> None:
    sites = join(desk, tmp_path)
    desk.seal()
    ask(sites[0], Steward("ulm", "jena"))
    path = sites[0].folder / "approval.json"
    document = json.loads(path.read_text())
    document["confirmed"] = ["graz", "jena", "ulm"]
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    path.write_text(text)
    with pytest.raises(PrivacyError, match="nothing is approved"):
        ask(sites[0], Steward())


def ask_with(site: Hospital, roster: RosterFile, desk: Desk) -> None:
    """Ask while the desk shows another roster than its books have."""
    page = replace(desk.books.page(), roster=roster)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(desk.books, "page", lambda: page)
        ask(site, Steward())
