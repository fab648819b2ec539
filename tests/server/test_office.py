"""The office: who is believed, what a stranger learns, and what a letter that comes twice does."""

import logging
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from privacy.errors import ProtocolError
from privacy.heads import Head, countersign, read_head
from privacy.keys import Identity
from privacy.keys import identity as from_secret
from server import desk
from server.attendance import Attendance
from server.books import Books
from server.folder import BOOKS, Folder
from server.hub import Hub
from server.office import Office
from shared_models import letters
from shared_models.invitation import read_token
from shared_models.roster_file import read_roster
from tests.server.members import NAMES, key, pem

STRANGER = from_secret(bytes([7]) * 32)


class Room:
    """An office with its books and its fleet, and pens for letters."""

    def __init__(self, folder: Folder, hub: Hub) -> None:
        self.folder, self.hub, self.books = folder, hub, Books(folder / BOOKS)
        self.server = folder.identity()
        self.attendance = Attendance(hub, self.books)
        self.office = Office(
            folder.study,
            folder.first_model,
            self.server,
            self.books,
            folder / BOOKS,
            hub.admit,
            self.attendance.settle,
            self.attendance.hear,
        )
        self._written = 0

    def about(self, site: str, **more: object) -> dict[str, object]:
        self._written += 1
        study = self.folder.settings.study
        return {"study": study, "site": site, "nonce": f"{self._written:032x}", **more}

    def enrolment(self, site: str, secret: bytes, keys: str = "", **changes: object) -> bytes:
        name = keys or site
        fields = self.about(
            site,
            secret=secret.hex(),
            public=key(name).public.hex(),
            node=pem(name).decode(),
        )
        letter = letters.Enrol.model_validate({**fields, **changes})
        return letters.write(key(name), letter)

    def invite(self, site: str, days: int = 1) -> bytes:
        return read_token(desk.invite(self.folder, self.books, site, days)[0]).secret

    def enrol(self, *names: str) -> None:
        for name in names or NAMES:
            self.say(self.enrolment(name, self.invite(name)), letters.Enrolled)

    def ask(self, site: str, who: Identity | None = None, **more: object) -> bytes:
        return letters.write(who or key(site), letters.Ask(**self.about(site, **more)))  # type: ignore[arg-type]

    def approval(self, site: str, plan: str, *confirmed: str) -> bytes:
        letter = letters.Approve(**self.about(site, plan=plan, confirmed=confirmed))  # type: ignore[arg-type]
        return letters.write(key(site), letter)

    def leave(self, site: str) -> bytes:
        return letters.write(key(site), letters.Leave(**self.about(site)))  # type: ignore[arg-type]

    def answer(self, question: bytes) -> object:
        """What a site reads of the answer, which must be to this question."""
        answer = self.office.answer(question)
        assert answer is not None
        return letters.read_answer(answer, self.server.public, question)

    def say(self, question: bytes, kind: type[object]) -> object:
        answer = self.answer(question)
        assert isinstance(answer, kind), answer
        return answer

    def refusal(self, question: bytes) -> str:
        answer = self.say(question, letters.Refused)
        assert isinstance(answer, letters.Refused)
        return answer.reason

    def news(self, site: str) -> letters.News:
        answer = self.say(self.ask(site), letters.News)
        assert isinstance(answer, letters.News)
        return answer


@pytest.fixture
def room(make_folder: Callable[..., Folder]) -> Iterator[Room]:
    folder = make_folder()
    hub = Hub(None, folder / "flower")
    made = Room(folder, hub)
    yield made
    made.books.close()
    hub.close()


# --- enrolment -----------------------------------------------------------------------------------


def test_a_letter_enrols_and_sent_again_changes_nothing(room: Room) -> None:
    letter = room.enrolment("bonn", room.invite("bonn"))
    first = room.answer(letter)
    assert isinstance(first, letters.Enrolled)
    assert room.answer(letter) == first
    assert first.study == room.folder.study.canonical()
    assert len(room.books.page().sites) == 1


def test_a_look_shows_the_study_and_uses_nothing_up(room: Room) -> None:
    secret = room.invite("bonn")
    looked = room.say(room.enrolment("bonn", secret, look=True), letters.Enrolled)
    assert isinstance(looked, letters.Enrolled)
    assert looked.node == 0
    assert room.books.page().invited == ("bonn",)
    room.say(room.enrolment("bonn", secret), letters.Enrolled)


def test_a_token_that_is_not_valid_is_refused_by_a_reason_alone(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, other = room.invite("bonn"), room.invite("ulm")
    assert room.refusal(room.enrolment("bonn", other)) == "token"  # of another site
    assert room.refusal(room.enrolment("bonn", secret[::-1])) == "token"  # altered
    assert room.refusal(room.enrolment("mars", secret)) == "token"
    room.say(room.enrolment("bonn", secret), letters.Enrolled)
    assert room.refusal(room.enrolment("bonn", secret, keys="thief")) == "token"  # reused
    true = time.time
    monkeypatch.setattr("server.books.time.time", lambda: true() + 2 * 86400)
    assert room.refusal(room.enrolment("ulm", other)) == "expired"
    assert [one.site for one in room.books.page().sites] == ["bonn"]


def test_a_letter_that_was_signed_by_somebody_else_enrols_nobody(room: Room) -> None:
    letter = room.enrolment("bonn", room.invite("bonn"))
    text = letter[64:]
    forged = STRANGER.sign(b"fedward letter", text) + text
    assert room.refusal(forged) == "token"
    assert room.books.page().invited == ("bonn",)


def test_a_key_under_which_anybody_can_sign_enrols_nobody(room: Room) -> None:
    """Under the neutral element of the curve, 0 times the base point signs everything."""
    neutral = b"\1" + bytes(31)
    text = room.enrolment("bonn", room.invite("bonn"), public=neutral.hex())[64:]
    forged = neutral + bytes(32) + text
    letters.check(neutral, forged)  # the signature holds
    assert room.refusal(forged) == "token"
    assert room.books.page().invited == ("bonn",)


def test_a_key_of_requests_that_is_none_enrols_nobody(room: Room) -> None:
    letter = room.enrolment("bonn", room.invite("bonn"), node="no key")
    assert room.refusal(letter) == "token"
    assert room.books.page().invited == ("bonn",)


def test_a_key_of_requests_that_was_revoked_never_comes_back(room: Room) -> None:
    room.enrol("bonn")
    desk.revoke(room.folder, room.books, "bonn")
    assert room.refusal(room.enrolment("bonn", room.invite("bonn"))) == "revoked"
    room.say(room.enrolment("bonn", room.invite("bonn"), keys="bonn-2"), letters.Enrolled)


def test_after_sealing_a_token_is_withdrawn(room: Room) -> None:
    room.enrol()
    late = room.invite("late")
    desk.seal(room.folder, room.books)
    assert room.refusal(room.enrolment("late", late)) == "token"


def test_another_study_is_said(room: Room) -> None:
    letter = room.enrolment("bonn", room.invite("bonn"), study="ab" * 32)
    assert room.refusal(letter) == "study"


# --- who is believed -----------------------------------------------------------------------------


def test_a_stranger_does_not_learn_which_names_there_are(room: Room) -> None:
    room.enrol("bonn")
    room.invite("ulm")
    for name in ("bonn", "ulm", "mars"):
        assert room.refusal(room.ask(name, STRANGER)) == "unknown"


def test_a_site_is_not_believed_in_anothers_name(room: Room) -> None:
    room.enrol()
    desk.seal(room.folder, room.books)
    text = room.leave("ulm")[64:]
    assert room.refusal(key("bonn").sign(b"fedward letter", text) + text) == "unknown"
    assert "ulm" in room.books.page().staying


def test_every_changed_byte_is_no_letter_or_a_strangers(room: Room) -> None:
    room.enrol()
    desk.seal(room.folder, room.books)
    letter = room.leave("ulm")
    for place in range(0, len(letter), 5):
        changed = bytearray(letter)
        changed[place] ^= 1
        answer = room.office.answer(bytes(changed))
        if answer is not None:
            found = letters.read_answer(answer, room.server.public, bytes(changed))
            assert isinstance(found, letters.Refused)
    assert "ulm" in room.books.page().staying
    room.say(letter, letters.News)
    assert "ulm" not in room.books.page().staying


def test_a_revoked_site_is_told_so_whatever_it_asks(room: Room) -> None:
    room.enrol()
    plan = desk.seal(room.folder, room.books).plan
    assert plan is not None
    desk.revoke(room.folder, room.books, "graz")
    for letter in (room.ask("graz"), room.approval("graz", plan), room.leave("graz")):
        assert room.refusal(letter) == "revoked"


def test_who_writes_is_seen_and_is_asked_nothing_before_it_is_at_work(room: Room) -> None:
    room.enrol("bonn", "ulm")
    room.news("bonn")
    room.answer(room.ask("ulm", STRANGER))
    page = room.books.page()
    assert list(room.attendance.seen(page)) == ["bonn"]
    assert room.attendance.here(page) == frozenset()
    room.attendance.settle()
    assert [one.site for one in room.books.page().sites if one.seen is not None] == ["bonn"]


def test_what_is_no_letter_gets_no_answer(room: Room) -> None:
    answer = room.office.answer(room.enrolment("bonn", room.invite("bonn")))
    assert answer is not None
    for data in (b"", bytes(64), b"x" * 70_000, answer):
        assert room.office.answer(data) is None


# --- letters that come twice ---------------------------------------------------------------------


def test_an_answer_is_to_one_question(room: Room) -> None:
    room.enrol("bonn")
    first, second = room.ask("bonn"), room.ask("bonn")
    old = room.office.answer(first)
    assert old is not None
    with pytest.raises(ProtocolError, match="answer to this letter, got another's"):
        letters.read_answer(old, room.server.public, second)


def test_an_approval_that_is_played_again_approves_no_other_plan(room: Room) -> None:
    room.enrol()
    plan = desk.seal(room.folder, room.books).plan
    assert plan is not None
    letter = room.approval("bonn", plan, "ulm", "jena")
    room.say(letter, letters.News)
    room.books.follow_plan("cd" * 32)
    assert room.refusal(letter) == "plan"
    assert {one.name: one.state for one in room.news("ulm").sites}["bonn"] == "enrolled"


def test_an_enrolment_that_is_played_again_brings_no_site_back(room: Room) -> None:
    letter = room.enrolment("bonn", room.invite("bonn"))
    room.say(letter, letters.Enrolled)
    desk.revoke(room.folder, room.books, "bonn")
    assert room.refusal(letter) == "token"
    room.invite("bonn")
    assert room.refusal(letter) == "token"
    assert room.books.page().staying == ()


def test_the_end_of_a_log_that_is_played_again_stays_the_later_one(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    room.enrol("bonn", "ulm")

    def told(rows: int) -> bytes:
        head = countersign(key("bonn"), key("bonn").public, Head(rows, f"{rows:02x}" * 28))
        return room.ask("bonn", head=head.encode().hex())

    old = told(3)
    room.say(old, letters.News)
    room.say(told(5), letters.News)
    with caplog.at_level(logging.WARNING, "fedward.server"):
        for _ in range(3):
            room.say(old, letters.News)
    assert [one.message for one in caplog.records] == [
        "bonn: its log is shorter than it was; the later end is kept"
    ]
    (mine,) = room.news("bonn").heads
    (peers,) = room.news("ulm").heads
    for text, signer in ((mine, room.server.public), (peers, key("bonn").public)):
        head = read_head(bytes.fromhex(text))
        assert (head.owner, head.signer, head.head.rows) == (key("bonn").public, signer, 5)


def test_the_end_of_anothers_log_is_not_kept(room: Room) -> None:
    room.enrol("bonn", "ulm")
    head = countersign(key("bonn"), key("ulm").public, Head(3, "ab" * 28))
    assert room.office.answer(room.ask("bonn", head=head.encode().hex())) is None
    assert room.news("ulm").heads == ()


def test_a_farewell_takes_effect_at_once_and_shortens_the_roster(room: Room) -> None:
    room.enrol()
    desk.seal(room.folder, room.books)
    node = next(one.node for one in room.books.page().sites if one.site == "graz")
    news = room.say(room.leave("graz"), letters.News)
    assert isinstance(news, letters.News)
    assert news.roster is not None
    roster = read_roster(news.roster.encode())
    assert [one.name for one in roster.sites if one.revoked] == ["graz"]
    assert node not in room.hub._nodes.values()


# --- the disk and the log ------------------------------------------------------------------------


def test_a_full_disk_is_told_as_such_and_costs_no_token(room: Room) -> None:
    letter = room.enrolment("bonn", room.invite("bonn"))
    size = (room.folder / f"{BOOKS}-wal").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        assert room.refusal(letter) == "full"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert room.books.page().invited == ("bonn",)
    room.say(letter, letters.Enrolled)


def test_strangers_fill_no_log_and_a_site_is_told_of_once(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    room.invite("bonn")
    with caplog.at_level(logging.INFO, "fedward.server"):
        for name in ("mars", "venus", "bonn", "bonn"):
            room.refusal(room.ask(name, STRANGER))
    assert [one.message for one in caplog.records] == [
        "bonn: ask was refused: the coordinator does not know this site"
    ]


def test_secrets_are_in_no_log_and_no_file(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        secret = room.invite("bonn")
        room.say(room.enrolment("bonn", secret), letters.Enrolled)
        room.refusal(room.enrolment("bonn", secret, keys="thief"))
    assert secret.hex() not in caplog.text
    held = b"".join(p.read_bytes() for p in Path(room.folder.path).rglob("*") if p.is_file())
    assert secret.hex().encode() not in held
    assert secret not in held
