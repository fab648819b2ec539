"""What a site hears beside the rounds, from a real desk: what is taken, told, or ends the work."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from client import correspondence
from client.correspondence import Correspondence
from client.journal import Journal
from client.leaving import leavable, leave
from client.membership import load
from privacy.errors import AbsentError, DataError, FedwardError, PrivacyError
from privacy.heads import Head, Heads, countersign
from server.folder import BOOKS
from tests.client.desk import Desk, Hospital, asked_for, join, open_desk
from tests.server.conftest import free_port

WAIT_S = 20.0


class Heard:
    """What a correspondence told the site's other thread."""

    def __init__(self) -> None:
        self.answers = 0
        self.trouble: FedwardError | None = None
        self.ended = threading.Event()

    def hear(self) -> None:
        self.answers += 1

    def end(self, trouble: FedwardError) -> None:
        self.trouble = trouble
        self.ended.set()

    def wait(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + WAIT_S
        while not holds():
            assert time.monotonic() < end, self.trouble
            time.sleep(0.02)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path / "coordinator", asked_for()) as one:
        yield one


@pytest.fixture
def sites(desk: Desk, tmp_path: Path) -> list[Hospital]:
    found = join(desk, tmp_path)
    desk.seal()
    return found


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correspondence, "ASK_S", 0.1)
    monkeypatch.setattr(correspondence, "TICK_S", 0.05)


@contextmanager
def talking(site: Hospital, desk: Desk) -> Iterator[tuple[Correspondence, Heard]]:
    heard = Heard()
    roster = desk.books.page().roster
    assert roster is not None
    with closing(site.post()) as post:
        letters = Correspondence(site.member, site.identity, post, roster, heard.hear, heard.end)
        with letters:
            yield letters, heard


def test_a_revocation_is_taken_without_asking(desk: Desk, sites: list[Hospital]) -> None:
    with talking(sites[0], desk) as (letters, heard):
        heard.wait(lambda: heard.answers > 0)
        assert letters.roster.version == 1
        assert letters.waiting == ("bonn", "ulm", "jena", "graz")
        desk.revoke("graz")
        heard.wait(lambda: letters.roster.version == 2)
        assert [one.revoked for one in letters.roster.sites] == [False, False, False, True]
    assert heard.trouble is None


def test_the_log_is_signed_up_to_its_end(desk: Desk, sites: list[Hospital]) -> None:
    with talking(sites[0], desk) as (letters, heard):
        heard.wait(lambda: heard.answers > 1)
        with Journal(sites[0].folder / "journal.db") as journal:
            end = journal.note("sent", bytes=1).head
        letters.tell_end()
    assert (end, desk.folder.identity().public) in ends(sites[0], of=sites[0])


def test_the_ends_of_peers_logs_are_kept(desk: Desk, sites: list[Hospital]) -> None:
    with talking(sites[1], desk) as (_, heard):
        heard.wait(lambda: heard.answers > 0)
    with talking(sites[0], desk) as (_, heard):
        heard.wait(lambda: heard.answers > 0)
    kept = ends(sites[0], of=sites[1])
    assert [(head.rows, signer) for head, signer in kept] == [(3, sites[1].identity.public)]


def test_an_older_copy_of_the_folder_ends_the_work(desk: Desk, sites: list[Hospital]) -> None:
    server = desk.folder.identity()
    later = Head(9, "ab" * 28)
    with Heads(desk.folder / BOOKS) as heads:
        heads.keep(countersign(server, sites[0].identity.public, later), {server.public})
    with talking(sites[0], desk) as (_, heard):
        assert heard.ended.wait(WAIT_S)
    assert isinstance(heard.trouble, PrivacyError)
    assert "older copy" in str(heard.trouble)


def test_a_peer_that_says_so_of_this_sites_log_ends_nothing(
    desk: Desk, sites: list[Hospital]
) -> None:
    later = Head(9, "ab" * 28)
    lie = countersign(sites[1].identity, sites[0].identity.public, later)
    with Heads(desk.folder / BOOKS) as heads:
        heads.keep(lie, {sites[1].identity.public})
    desk.office._heads_for = lambda *_: (lie.encode().hex(),)  # type: ignore[method-assign]
    with talking(sites[0], desk) as (_, heard):
        heard.wait(lambda: heard.answers > 2)
    assert heard.trouble is None
    assert ends(sites[0], of=sites[0]) == []


def test_a_peer_that_signs_two_logs_is_told_of_and_ends_nothing(
    desk: Desk, sites: list[Hospital], caplog: pytest.LogCaptureFixture
) -> None:
    peer = sites[1].identity
    two = [countersign(peer, peer.public, Head(5, digit * 56)) for digit in "ab"]
    desk.office._heads_for = lambda *_: tuple(  # type: ignore[method-assign]
        one.encode().hex() for one in two
    )
    with talking(sites[0], desk) as (_, heard):
        heard.wait(lambda: heard.answers > 2)
    assert heard.trouble is None
    assert caplog.text.count("the log of ulm is not what it was") == 1
    assert [head.digest[0] for head, _ in ends(sites[0], of=sites[1])] == ["a"]


def test_a_site_that_is_revoked_stops(desk: Desk, sites: list[Hospital]) -> None:
    with talking(sites[0], desk) as (_, heard):
        heard.wait(lambda: heard.answers > 0)
        desk.revoke("bonn")
        assert heard.ended.wait(WAIT_S)
    assert "revoked, or has left" in str(heard.trouble)


def test_leaving_ends_the_work_beside_it(desk: Desk, sites: list[Hospital]) -> None:
    with talking(sites[0], desk) as (_, heard):
        heard.wait(lambda: heard.answers > 0)
        leave(leavable(sites[0].folder))
        assert heard.ended.wait(WAIT_S)
    assert isinstance(heard.trouble, PrivacyError)
    assert desk.state("bonn") == "left"
    roster = desk.books.page().roster
    assert roster is not None
    assert [one.name for one in roster.sites if one.revoked] == ["bonn"]
    with Journal(sites[0].folder / "journal.db") as journal:
        assert [note.kind for note in journal.rows()][-2:] == ["leave", "letter"]


def test_leaving_ends_the_work_also_when_nobody_hears_it(desk: Desk, sites: list[Hospital]) -> None:
    with talking(sites[0], desk) as (_, heard):
        heard.wait(lambda: heard.answers > 0)
        (sites[0].folder / "left.json").write_text("{}")
        assert heard.ended.wait(WAIT_S)
    assert "this site has left toy" in str(heard.trouble)
    assert desk.state("bonn") == "enrolled"


def test_a_coordinator_that_is_away_ends_nothing(
    desk: Desk, sites: list[Hospital], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk.office, "answer", lambda _: None)  # HTTP status 400
    with talking(sites[0], desk) as (_, heard):
        heard.wait(lambda: len(desk.asked) > 12)
        assert heard.trouble is None
        monkeypatch.undo()
        monkeypatch.setattr(correspondence, "ASK_S", 0.1)
        heard.wait(lambda: heard.answers > 0)


def test_a_site_leaves_although_nobody_hears_it(desk: Desk, sites: list[Hospital]) -> None:
    away = sites[0].member.membership.model_copy(update={"port": free_port()})
    path = sites[0].folder / "site.json"
    here = path.read_text()
    path.write_text(away.model_dump_json())
    with pytest.raises(AbsentError, match="sends nothing any more, but"):
        leave(leavable(sites[0].folder))
    assert load(sites[0].folder).has("left.json")
    path.write_text(here)
    leave(leavable(sites[0].folder))
    leave(leavable(sites[0].folder))  # told twice is told
    assert desk.state("bonn") == "left"
    with Journal(sites[0].folder / "journal.db") as journal:
        assert [note.kind for note in journal.rows()].count("leave") == 1


def test_a_study_that_is_over_cannot_be_left(desk: Desk, sites: list[Hospital]) -> None:
    (sites[0].folder / "notice.bin").write_bytes(b"")
    with pytest.raises(DataError, match="toy is over"):
        leavable(sites[0].folder)


def ends(site: Hospital, of: Hospital) -> list[tuple[Head, bytes]]:
    """What a site keeps of the end of a log, and who signed it."""
    with Heads(site.folder / "logs.db") as heads:
        found = [one for one in heads.all() if one.owner == of.identity.public]
    with Journal(of.folder / "journal.db") as journal:
        whole = {note.head.wire(): note.head for note in journal.rows()}
    return [(whole.get(one.head.wire(), one.head), one.signer) for one in found]
