"""The books: who gets in by which token, and what a site's name and keys can never do again."""

import os
import resource
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from privacy.errors import DataError, PrivacyError
from privacy.roster import Member
from server.books import Books, TurnedAwayError
from shared_models.roster_file import RosterFile, sign_roster
from tests.server.members import NAMES, enrol, key, later, node, open_books, pem

SERVER = key("server")


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    made = open_books(tmp_path)
    yield made
    made.close()


def sign(version: int, sites: Sequence[Member]) -> RosterFile:
    return sign_roster("toy", version, sites, SERVER)


def sealed(books: Books, plan: str = "ab" * 32) -> None:
    enrol(books)
    books.seal(sign, lambda _: plan)


def enter(books: Books, site: str, secret: bytes, keys: str = "") -> tuple[int, bool]:
    name = keys or site
    return books.enrol(site, secret, key(name).public, pem(name), lambda: node(name))


def turned_away(what: Callable[[], object]) -> str:
    with pytest.raises(TurnedAwayError) as found:
        what()
    return found.value.reason


def state(books: Books, site: str) -> str:
    return next(one.state for one in books.page().news() if one.name == site)


# --- tokens --------------------------------------------------------------------------------------


def test_a_secret_lets_one_site_in_and_asked_again_says_the_same(books: Books) -> None:
    secret = books.invite("bonn", later())
    assert enter(books, "bonn", secret) == (node("bonn"), True)
    assert enter(books, "bonn", secret) == (node("bonn"), False)
    assert len(books.page().sites) == 1


def test_a_used_secret_lets_nobody_else_in(books: Books) -> None:
    secret = books.invite("bonn", later())
    enter(books, "bonn", secret)
    assert turned_away(lambda: enter(books, "bonn", secret, keys="thief")) == "token"
    same_pem = lambda: books.enrol(  # noqa: E731
        "bonn", secret, key("thief").public, pem("bonn"), lambda: 1
    )
    assert turned_away(same_pem) == "token"
    assert books.page().sites[0].public == key("bonn").public


def test_an_expired_secret_lets_nobody_in_and_only_its_holder_learns_why(books: Books) -> None:
    secret = books.invite("bonn", later() - 2000)
    assert turned_away(lambda: enter(books, "bonn", secret)) == "expired"
    assert turned_away(lambda: enter(books, "bonn", bytes(16))) == "token"
    assert books.page().sites == ()


def test_who_was_in_before_the_end_of_the_token_may_ask_again_after_it(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = books.invite("bonn", later())
    enter(books, "bonn", secret)
    monkeypatch.setattr("server.books.time.time", lambda: later() + 1.0)
    assert enter(books, "bonn", secret) == (node("bonn"), False)


@pytest.mark.parametrize("bit", [0, 7, 127])
def test_an_altered_secret_lets_nobody_in(books: Books, bit: int) -> None:
    secret = bytearray(books.invite("bonn", later()))
    secret[bit // 8] ^= 1 << bit % 8
    assert turned_away(lambda: enter(books, "bonn", bytes(secret))) == "token"


@pytest.mark.parametrize("name", ["ulm", "Bonn", "BONN", "bonn ", "nobody"])
def test_a_secret_is_no_other_names(books: Books, name: str) -> None:
    books.invite("ulm", later())
    secret = books.invite("bonn", later())
    assert turned_away(lambda: enter(books, name, secret)) == "token"
    assert books.page().sites == ()


def test_a_second_invitation_ends_the_first(books: Books) -> None:
    first = books.invite("bonn", later())
    second = books.invite("bonn", later())
    assert turned_away(lambda: enter(books, "bonn", first)) == "token"
    assert enter(books, "bonn", second)[1]


def test_a_withdrawn_invitation_lets_nobody_in(books: Books) -> None:
    secret = books.invite("bonn", later())
    assert books.revoke("bonn", sign)
    assert turned_away(lambda: enter(books, "bonn", secret)) == "token"
    assert books.page().news() == ()


def test_a_look_uses_nothing_up(books: Books) -> None:
    secret = books.invite("bonn", later())
    for _ in range(2):
        books.look("bonn", secret, key("bonn").public, pem("bonn"))
    assert state(books, "bonn") == "invited"
    assert turned_away(lambda: books.look("bonn", bytes(16), b"", b"")) == "token"
    assert enter(books, "bonn", secret)[1]


def test_no_key_is_of_two_sites(books: Books) -> None:
    enrol(books, "bonn")
    secret = books.invite("ulm", later())
    both = [(key("bonn").public, pem("ulm")), (key("ulm").public, pem("bonn"))]
    for public, requests in both:
        one = lambda it=(public, requests): books.enrol("ulm", secret, *it, lambda: 1)  # noqa: E731
        assert turned_away(one) == "token"
    assert state(books, "ulm") == "invited"
    assert enter(books, "ulm", secret)[1]  # the invitation is as good as before


def test_names_that_differ_by_case_are_one_name(books: Books) -> None:
    enrol(books, "bonn")
    with pytest.raises(DataError, match="bonn has enrolled already"):
        books.invite("BONN", later())


def test_after_sealing_nobody_is_let_in(books: Books) -> None:
    enrol(books)
    secret = books.invite("late", later())
    books.seal(sign, lambda _: "ab" * 32)
    assert turned_away(lambda: enter(books, "late", secret)) == "token"  # withdrawn
    with pytest.raises(DataError, match="before the roster was sealed"):
        books.invite("late", later())


def test_of_many_who_come_with_one_secret_one_gets_in(books: Books, tmp_path: Path) -> None:
    """Each through a connection of its own, as the coordinator's other programs have."""
    secret = books.invite("bonn", later())
    at_once, got, away = threading.Barrier(8), list[str](), list[str]()

    def come(name: str) -> None:
        own = open_books(tmp_path)
        at_once.wait(60)
        try:
            enter(own, "bonn", secret, keys=name)
            got.append(name)
        except TurnedAwayError as refusal:
            away.append(refusal.reason)
        finally:
            own.close()

    crowd = [threading.Thread(target=come, args=(f"thief-{i}",)) for i in range(8)]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join(60)
    assert (len(got), away) == (1, ["token"] * 7)
    assert [one.public for one in books.page().sites] == [key(got[0]).public]


def test_secrets_are_in_the_file_as_hashes_alone(books: Books, tmp_path: Path) -> None:
    secret = books.invite("bonn", later())
    enter(books, "bonn", secret)
    held = b"".join(path.read_bytes() for path in tmp_path.glob("books.db*"))
    assert secret not in held
    assert secret.hex().encode() not in held
    assert {path.stat().st_mode & 0o077 for path in tmp_path.glob("books.db*")} == {0}


# --- approvals -----------------------------------------------------------------------------------


def test_an_approval_counts_for_the_plan_that_is_there(books: Books) -> None:
    sealed(books)
    assert turned_away(lambda: books.approve("bonn", "cd" * 32, (), b"")) == "plan"
    assert books.approve("bonn", "ab" * 32, ["ulm", "jena"], b"letter")
    assert not books.approve("bonn", "ab" * 32, ["ulm", "jena"], b"letter")  # sent twice
    assert state(books, "bonn") == "approved"
    assert books.follow_plan("cd" * 32)  # another version of the program
    assert state(books, "bonn") == "enrolled"
    assert turned_away(lambda: books.approve("bonn", "ab" * 32, [], b"letter")) == "plan"


@pytest.mark.parametrize("confirmed", ["bonn", "mars"])
def test_nobody_confirms_itself_or_a_stranger(books: Books, confirmed: str) -> None:
    sealed(books)
    assert turned_away(lambda: books.approve("bonn", "ab" * 32, [confirmed], b"")) == "plan"


def test_rounds_begin_when_all_who_stay_have_approved(books: Books) -> None:
    sealed(books)
    for name in NAMES[:3]:
        assert books.page().state == "approving"
        books.approve(name, "ab" * 32, [], b"")
    assert books.page().state == "approving"
    books.revoke("graz", sign)
    assert books.page().state == "running"


# --- who is out ----------------------------------------------------------------------------------


def test_who_is_revoked_does_nothing_more(books: Books) -> None:
    sealed(books)
    assert books.revoke("graz", sign)
    assert not books.revoke("graz", sign)
    assert books.expelled() == [node("graz")]
    assert turned_away(lambda: books.approve("graz", "ab" * 32, [], b"")) == "revoked"
    assert turned_away(lambda: books.leave("graz", sign, b"")) == "revoked"
    page = books.page()
    assert page.roster is not None
    assert page.roster.version == 2
    assert [one.name for one in page.roster.sites if one.revoked] == ["graz"]
    assert page.staying == NAMES[:3]


def test_a_token_of_a_site_that_was_revoked_is_used_up(books: Books) -> None:
    secret = books.invite("bonn", later())
    enter(books, "bonn", secret)
    books.revoke("bonn", sign)
    assert turned_away(lambda: enter(books, "bonn", secret)) == "token"
    again = books.invite("bonn", later())  # its keys were lost: another token, other keys
    assert enter(books, "bonn", again, keys="bonn-2")[1]
    assert [one.public for one in books.page().sites] == [key("bonn-2").public]
    assert books.expelled() == [node("bonn")]  # and the old ones stay out


def test_fewer_than_the_threshold_cannot_stay_by_a_revocation(books: Books) -> None:
    sealed(books)
    books.revoke("graz", sign)
    with pytest.raises(PrivacyError):
        books.revoke("jena", sign)
    assert books.page().staying == NAMES[:3]
    assert books.expelled() == [node("graz")]


def test_a_site_may_leave_though_the_study_cannot_go_on(books: Books) -> None:
    sealed(books)
    books.leave("graz", sign, b"letter")
    books.leave("jena", sign, b"letter")
    page = books.page()
    assert page.staying == NAMES[:2]
    assert sorted(books.expelled()) == sorted([node("graz"), node("jena")])
    assert page.roster is not None
    assert page.roster.version == 2  # no peer would take a roster of two


def test_a_name_that_nobody_has_is_said(books: Books) -> None:
    with pytest.raises(DataError, match="mars: expected the name of a site"):
        books.revoke("mars", sign)


# --- the file ------------------------------------------------------------------------------------


def test_a_full_disk_changes_nothing_and_goes_on_afterwards(books: Books, tmp_path: Path) -> None:
    enrol(books, *NAMES[:3])
    secret = books.invite("graz", later())
    before, size = books.page(), sum(p.stat().st_size for p in tmp_path.glob("books.db-wal"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises(DataError, match=r"books cannot be read or written .*nothing was done"):
            enter(books, "graz", secret)
        assert books.page() == before
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert enter(books, "graz", secret)[1]


def test_what_two_programs_write_is_all_there(books: Books, tmp_path: Path) -> None:
    other = open_books(tmp_path)
    secret = other.invite("bonn", later())
    enter(books, "bonn", secret)
    assert state(other, "bonn") == "enrolled"
    other.close()


def test_a_file_that_is_none_of_books_is_refused(tmp_path: Path) -> None:
    (tmp_path / "books.db").write_bytes(os.urandom(8192))
    with pytest.raises(DataError, match="books cannot be read or written"):
        open_books(tmp_path)


def test_the_first_end_stays(books: Books) -> None:
    books.end("stopped", "why")
    books.end("finished")
    assert (books.page().ended, books.page().why) == ("stopped", "why")


def test_every_decision_is_noted_with_its_letter(books: Books, tmp_path: Path) -> None:
    sealed(books)
    books.approve("bonn", "ab" * 32, [], b"a signed letter")
    books.leave("ulm", sign, b"a farewell")
    with sqlite3.connect(tmp_path / "books.db") as connection:
        rows = connection.execute("SELECT site, what, letter FROM notes ORDER BY number").fetchall()
    connection.close()
    assert rows[-3:] == [
        (None, "sealed", None),
        ("bonn", "approved", b"a signed letter"),
        ("ulm", "left", b"a farewell"),
    ]
