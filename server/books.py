"""The coordinator's books: who was invited, enrolled, approved, left or was revoked, in SQLite.

`start` and the other commands write into one file at the same time; each change is one transaction
and on disk before anybody is told. It opens no connection, and secrets are in it as SHA-256 alone.
"""

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from hmac import compare_digest
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from privacy.errors import DataError, PrivacyError
from privacy.roster import SITES_MAX, Member
from shared_models.invitation import SECRET_BYTES
from shared_models.letters import Reason, SiteNews
from shared_models.notice import Reason as End
from shared_models.roster_file import RosterFile, accept, read_roster, roster_bytes

if TYPE_CHECKING:  # it brings torch with it, which `status` can do without
    from shared_models.debits import Phase

_WAIT_S = 60.0
_TABLES = """
CREATE TABLE IF NOT EXISTS study (
    one INTEGER PRIMARY KEY CHECK (one = 1), plan TEXT, ended TEXT, why TEXT, epsilon REAL);
INSERT OR IGNORE INTO study (one) VALUES (1);
CREATE TABLE IF NOT EXISTS invitations (
    site TEXT PRIMARY KEY COLLATE NOCASE, secret BLOB NOT NULL, expires INTEGER NOT NULL,
    used INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS sites (
    number INTEGER PRIMARY KEY, site TEXT NOT NULL UNIQUE COLLATE NOCASE,
    public BLOB NOT NULL UNIQUE, pem BLOB NOT NULL UNIQUE, node TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'enrolled', seen REAL, told INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS expelled (node TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS rosters (version INTEGER PRIMARY KEY, file BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS approvals (
    site TEXT, plan TEXT, confirmed TEXT NOT NULL, letter BLOB NOT NULL, time REAL NOT NULL,
    PRIMARY KEY (site, plan));
CREATE TABLE IF NOT EXISTS attempts (phase TEXT PRIMARY KEY, begun INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS notes (
    number INTEGER PRIMARY KEY, time REAL NOT NULL, site TEXT, what TEXT NOT NULL, letter BLOB);
"""

State = Literal["inviting", "approving", "running", "ended", "stopped"]
Sign = Callable[[int, Sequence[Member]], RosterFile]  # version, sites -> a signed roster


class TurnedAwayError(Exception):
    """A site's letter is answered by a reason alone; it never reaches a person here."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


@dataclass(frozen=True)
class Enrolment:
    """One site as it enrolled, and how far it is.

    Attributes:
        public: Ed25519, 32 bytes.
        node: of its requests, in the fleet.
        state: enrolled and, once it has approved the plan, approved; left or revoked.
        seen: Unix time of its last valid request; None before the first.
        told: whether it has confirmed the notice of the study's end.
    """

    site: str
    public: bytes
    pem: bytes
    node: int
    state: Literal["enrolled", "approved", "left", "revoked"]
    seen: float | None
    told: bool

    @property
    def stays(self) -> bool:
        """Whether it is neither revoked nor gone."""
        return self.state in ("enrolled", "approved")


@dataclass(frozen=True)
class Page:
    """The books at one moment.

    Attributes:
        sites: in order of enrolment, which is their order in the roster.
        invited: names that have not enrolled.
        roster: the latest version, once it is sealed.
        plan: digest, in hexadecimal, once the roster is sealed.
        ended: why the study is over; None while it is not.
        why: of a study that stopped, in words.
        epsilon: what was debited by the last evaluation, at most.
        begun: attempts of each phase in which records may have been read.
    """

    sites: tuple[Enrolment, ...]
    invited: tuple[str, ...]
    roster: RosterFile | None
    plan: str | None
    ended: End | None
    why: str | None
    epsilon: float | None
    begun: "dict[Phase, int]"

    @property
    def state(self) -> State:
        """Where the study stands."""
        if self.ended is not None:
            return "stopped" if self.ended == "stopped" else "ended"
        if self.roster is None:
            return "inviting"
        staying = [one for one in self.sites if one.stays]
        waits = not staying or any(one.state != "approved" for one in staying)
        return "approving" if waits else "running"

    @property
    def staying(self) -> tuple[str, ...]:
        """The names that are neither revoked nor gone."""
        return tuple(one.site for one in self.sites if one.stays)

    def news(self) -> tuple[SiteNews, ...]:
        """Return every name and how far it is."""
        again = {name.lower() for name in self.invited}  # invited anew after it was out
        known = [one for one in self.sites if one.site.lower() not in again]
        return (
            *(SiteNews(name=one.site, state=one.state) for one in known),
            *(SiteNews(name=name, state="invited") for name in self.invited),
        )


class Books:
    """One study's books; usable from several threads and processes at once."""

    def __init__(self, path: Path) -> None:
        """Open ``path``, creating it with mode 0600.

        Raises:
            DataError: it is no such file, or the disk failed.
        """
        self._path, self._lock = path, threading.Lock()
        with self._failing():
            if not path.exists():
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._connection = sqlite3.connect(
                path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(_TABLES)

    def page(self) -> Page:
        """Return what stands in the books."""
        with self._reading() as connection:
            return _page(connection)

    # --- before the roster is sealed -------------------------------------------------------------

    def invite(self, site: str, expires: int) -> bytes:
        """Return the secret of a new invitation; the one before, if any, is good no more.

        Raises:
            DataError: the roster is sealed, the site has enrolled, or there are too many names.
        """
        secret = os.urandom(SECRET_BYTES)
        with self._writing() as connection:
            page = _page(connection)
            if page.roster is not None:
                raise DataError(
                    f"{site}: expected to be invited before the roster was sealed; nobody was "
                    "invited",
                    "begin another study for other hospitals",
                )
            same = [name for name in (*page.staying, *page.invited) if _same(name, site)]
            if any(name in page.staying for name in same):
                raise DataError(
                    f"{same[0]} has enrolled already; nobody was invited",
                    f"`fedward-server revoke {same[0]}` first, when its keys are lost",
                )
            if not same and len(page.staying) + len(page.invited) >= SITES_MAX:
                raise DataError(
                    f"expected at most {SITES_MAX} sites, got one more; nobody was invited"
                )
            connection.execute(
                "INSERT OR REPLACE INTO invitations VALUES (?, ?, ?, 0)",
                (site, _hash(secret), expires),
            )
            _note(connection, site, "invited")
        return secret

    def enrol(
        self, site: str, secret: bytes, public: bytes, pem: bytes, admit: Callable[[], int]
    ) -> tuple[int, bool]:
        """Make a site a member and use its invitation up; the same keys may ask again.

        Args:
            site: its name, as invited.
            secret: of its invitation.
            public: Ed25519, 32 bytes.
            pem: of its requests' key.
            admit: returns its number in the fleet.

        Returns:
            That number, and whether the site is new.

        Raises:
            TurnedAwayError: token, expired or sealed.
            DataError: the disk failed; the invitation is as good as before.
        """
        with self._writing() as connection:
            if self._invited(connection, site, secret, public, pem):
                known = connection.execute("SELECT node FROM sites WHERE site = ?", (site,))
                return int(known.fetchone()[0]), False
            node = admit()
            try:
                connection.execute("DELETE FROM sites WHERE site = ?", (site,))
                connection.execute(
                    "INSERT INTO sites (site, public, pem, node) VALUES (?, ?, ?, ?)",
                    (site, public, pem, str(node)),
                )
            except sqlite3.IntegrityError:  # another site's key
                raise TurnedAwayError("token") from None
            connection.execute("UPDATE invitations SET used = 1 WHERE site = ?", (site,))
            _note(connection, site, "enrolled")
            return node, True

    def look(self, site: str, secret: bytes, public: bytes, pem: bytes) -> None:
        """Check an invitation without using it up. Errors: as `enrol`."""
        with self._reading() as connection:
            self._invited(connection, site, secret, public, pem)

    def _invited(
        self, connection: sqlite3.Connection, site: str, secret: bytes, public: bytes, pem: bytes
    ) -> bool:
        """Say whether the site is a member already; only the secret's holder learns why not."""
        row = connection.execute(
            "SELECT site, secret, expires, used FROM invitations WHERE site = ?", (site,)
        ).fetchone()
        if row is None or row[0] != site or not compare_digest(row[1], _hash(secret)):
            raise TurnedAwayError("token")
        if row[3]:
            keys = connection.execute(
                "SELECT public, pem FROM sites WHERE site = ? AND state = 'enrolled'", (site,)
            ).fetchone()
            if keys is None or (bytes(keys[0]), bytes(keys[1])) != (public, pem):
                raise TurnedAwayError("token")
            return True
        if row[2] <= time.time():
            raise TurnedAwayError("expired")
        if connection.execute("SELECT 1 FROM rosters").fetchone():
            raise TurnedAwayError("sealed")
        return False

    def seal(self, sign: Sign, plan: Callable[[RosterFile], str]) -> Page:
        """Close the roster: version 1 has the enrolled sites; who did not enrol is withdrawn.

        Args:
            sign: makes the roster.
            plan: returns the digest of its plan.

        Raises:
            DataError: it is sealed already.
            StudyError, PrivacyError: from ``sign`` and ``plan``; nothing was sealed.
        """
        with self._writing() as connection:
            page = _page(connection)
            if page.roster is not None:
                raise DataError("expected a roster that is open, found it sealed; nothing was done")
            roster = sign(1, [Member(one.site, one.public) for one in page.sites if one.stays])
            connection.execute("INSERT INTO rosters VALUES (1, ?)", (roster_bytes(roster),))
            connection.execute("DELETE FROM invitations WHERE NOT used")
            connection.execute("UPDATE study SET plan = ?", (plan(roster),))
            _note(connection, None, "sealed")
            return _page(connection)

    # --- afterwards ------------------------------------------------------------------------------

    def follow_plan(self, plan: str) -> bool:
        """Keep the digest of the plan that is to be approved; say whether it was another before."""
        with self._writing() as connection:
            before = connection.execute("SELECT plan FROM study").fetchone()[0]
            if before == plan:
                return False
            connection.execute("UPDATE study SET plan = ?", (plan,))
            _note(connection, None, "another plan")
            return True

    def approve(self, site: str, plan: str, confirmed: Sequence[str], letter: bytes) -> bool:
        """Keep a site's signed approval; say whether it is a new one.

        Raises:
            TurnedAwayError: unknown, revoked, or another plan than the coordinator's.
        """
        with self._writing() as connection:
            page = _page(connection)
            _member(page, site)
            peers = set() if page.roster is None else {one.name for one in page.roster.sites}
            if plan != page.plan or not peers - {site} >= set(confirmed):
                raise TurnedAwayError("plan")
            done = connection.execute(
                "INSERT OR IGNORE INTO approvals VALUES (?, ?, ?, ?, ?)",
                (site, plan, json.dumps(list(confirmed)), letter, time.time()),
            )
            if done.rowcount:
                _note(connection, site, "approved", letter)
            return bool(done.rowcount)

    def leave(self, site: str, sign: Sign, letter: bytes) -> None:
        """Take a site out as it wishes, also when the study cannot go on without it.

        Raises:
            TurnedAwayError: unknown or revoked.
        """
        with self._writing() as connection:
            page = _page(connection)
            _member(page, site)
            newer = None if page.roster is None else _without(page.roster, site, sign)
            try:
                _remove(connection, page, site, "left", newer)
            except PrivacyError:  # fewer than t: peers would not take such a roster, and stop
                _remove(connection, page, site, "left", None)
            _note(connection, site, "left", letter)

    def revoke(self, site: str, sign: Sign) -> bool:
        """Shut a site out, or withdraw its invitation; False when it was out already.

        Raises:
            DataError: nobody of that name was invited.
            PrivacyError: fewer than t sites would stay; nothing was done.
        """
        with self._writing() as connection:
            page = _page(connection)
            if any(_same(name, site) for name in page.invited):
                connection.execute("DELETE FROM invitations WHERE site = ?", (site,))
                _note(connection, site, "withdrawn")
                return True
            found = [one for one in page.sites if _same(one.site, site)]
            if not found:
                raise DataError(f"{site}: expected the name of a site, found none of that name")
            if not found[0].stays:
                return False
            name = found[0].site
            newer = None if page.roster is None else _without(page.roster, name, sign)
            _remove(connection, page, name, "revoked", newer)
            _note(connection, name, "revoked")
            return True

    def expelled(self) -> list[int]:
        """Return the nodes that must not be let in any more."""
        with self._reading() as connection:
            return [int(row[0]) for row in connection.execute("SELECT node FROM expelled")]

    def saw(self, seen: dict[str, float]) -> None:
        """Keep when sites were last seen."""
        with self._writing() as connection:
            connection.executemany(
                "UPDATE sites SET seen = ? WHERE site = ?",
                [(when, site) for site, when in seen.items()],
            )

    # --- the rounds ------------------------------------------------------------------------------

    def begin_attempt(self, phase: "Phase") -> None:
        """Count an attempt in which records are about to be read."""
        with self._writing() as connection:
            connection.execute(
                "INSERT INTO attempts VALUES (?, 1) "
                "ON CONFLICT (phase) DO UPDATE SET begun = begun + 1",
                (phase,),
            )

    def keep_epsilon(self, epsilon: float) -> None:
        """Keep what was debited so far, at most."""
        with self._writing() as connection:
            connection.execute("UPDATE study SET epsilon = ?", (epsilon,))

    def end(self, reason: End, why: str = "") -> None:
        """Keep that the study is over; the first reason stays."""
        with self._writing() as connection:
            connection.execute(
                "UPDATE study SET ended = ?, why = ? WHERE ended IS NULL", (reason, why or None)
            )
            _note(connection, None, reason)

    def confirm_end(self, site: str) -> None:
        """Keep that a site has the notice of the end."""
        with self._writing() as connection:
            connection.execute("UPDATE sites SET told = 1 WHERE site = ?", (site,))

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._failing():
            self._connection.execute("BEGIN")  # one moment for all that is read
            try:
                yield self._connection
            finally:
                self._connection.execute("ROLLBACK")

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._failing():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise DataError(
                f"{self._path}: the books cannot be read or written ({error}); nothing was done"
            ) from error


def _page(connection: sqlite3.Connection) -> Page:
    plan, ended, why, epsilon = connection.execute(
        "SELECT plan, ended, why, epsilon FROM study"
    ).fetchone()
    approved = {
        row[0] for row in connection.execute("SELECT site FROM approvals WHERE plan = ?", (plan,))
    }
    sites = tuple(
        Enrolment(
            site,
            bytes(public),
            bytes(pem),
            int(node),
            "approved" if state == "enrolled" and site in approved else state,
            seen,
            bool(told),
        )
        for site, public, pem, node, state, seen, told in connection.execute(
            "SELECT site, public, pem, node, state, seen, told FROM sites ORDER BY number"
        )
    )
    invited = connection.execute("SELECT site FROM invitations WHERE NOT used ORDER BY rowid")
    latest = connection.execute("SELECT file FROM rosters ORDER BY version DESC").fetchone()
    return Page(
        sites,
        tuple(row[0] for row in invited),
        None if latest is None else _roster(bytes(latest[0])),
        plan,
        ended,
        why,
        epsilon,
        dict(connection.execute("SELECT phase, begun FROM attempts").fetchall()),
    )


@lru_cache(maxsize=4)
def _roster(file: bytes) -> RosterFile:
    return read_roster(file)  # twenty milliseconds for a hundred sites, and asked for each second


def _member(page: Page, site: str) -> None:
    states = {one.site: one for one in page.sites}
    if site not in states:
        raise TurnedAwayError("unknown")
    if not states[site].stays:
        raise TurnedAwayError("revoked")


def _without(roster: RosterFile, site: str, sign: Sign) -> RosterFile:
    members = [
        Member(one.name, bytes.fromhex(one.public), one.revoked or one.name == site)
        for one in roster.sites
    ]
    return sign(roster.version + 1, members)


def _remove(
    connection: sqlite3.Connection, page: Page, site: str, state: str, newer: RosterFile | None
) -> None:
    """Take a site out of the fleet and, once it is sealed, out of the roster, which may refuse."""
    if page.roster is not None and newer is not None:
        accept(page.roster, newer)
        file = roster_bytes(newer)
        connection.execute("INSERT INTO rosters VALUES (?, ?)", (newer.version, file))
    connection.execute(
        "INSERT OR IGNORE INTO expelled SELECT node FROM sites WHERE site = ?", (site,)
    )
    connection.execute("UPDATE sites SET state = ? WHERE site = ?", (state, site))


def _note(
    connection: sqlite3.Connection, site: str | None, what: str, letter: bytes | None = None
) -> None:
    connection.execute(
        "INSERT INTO notes (time, site, what, letter) VALUES (?, ?, ?, ?)",
        (time.time(), site, what, letter),
    )


def _same(one: str, other: str) -> bool:
    """Names become folders, and some file systems do not tell "Bonn" from "bonn"."""
    return one.lower() == other.lower()


def _hash(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
