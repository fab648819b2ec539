"""Ends of ledgers that others keep: what a site's chain was, signed by a peer or the server.

It opens no ledger. A chain proves its own order, not that its end is there: whoever cuts it, or
puts an older copy back, is found by an end that somebody else has kept.
"""

import os
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from privacy.disk import disk_error
from privacy.errors import PrivacyError, ProtocolError
from privacy.keys import KEY_BYTES, SIGNATURE_BYTES, Identity, verify

WIRE_BYTES = 32
RECORD_BYTES = 2 * KEY_BYTES + WIRE_BYTES + SIGNATURE_BYTES
_DIGEST_BYTES = 28  # of SHA-256, cut as NIST SP 800-107 rev. 1, section 5.1, allows: 2^112 to forge
_CONTEXT = b"fedward ledger head"  # no FSA1 header and no roster begins so
_WAIT_S = 60.0
_TABLE = """
CREATE TABLE IF NOT EXISTS heads (
    owner BLOB, signer BLOB, head BLOB NOT NULL, signature BLOB NOT NULL,
    PRIMARY KEY (owner, signer)) WITHOUT ROWID;
"""


class Head(NamedTuple):
    """The end of a chain, for others to keep: with it a cut or an older copy is found."""

    rows: int
    digest: str  # hex of SHA-256, or of its first 28 bytes; zeros when there are no rows

    def wire(self) -> bytes:
        """Return 32 bytes: the number of rows, u32, then the first 28 bytes of the digest."""
        return self.rows.to_bytes(4, "little") + bytes.fromhex(self.digest)[:_DIGEST_BYTES]


EMPTY = Head(0, "0" * 64)


def head_of(wire: bytes) -> Head:
    """Return the head that `Head.wire` wrote, its digest cut."""
    if len(wire) != WIRE_BYTES:
        raise ValueError(f"expected a head of {WIRE_BYTES} bytes, got {len(wire)}")
    return Head(int.from_bytes(wire[:4], "little"), wire[4:].hex())


@dataclass(frozen=True)
class SignedHead:
    """What ``signer`` saw of ``owner``'s ledger. Keys are Ed25519, 32 bytes."""

    owner: bytes
    head: Head
    signer: bytes
    signature: bytes

    def encode(self) -> bytes:
        """Return 160 bytes: owner, head, signer, signature."""
        return self.owner + self.head.wire() + self.signer + self.signature


def countersign(identity: Identity, owner: bytes, head: Head) -> SignedHead:
    """Return ``head`` of ``owner``'s ledger, signed by ``identity``."""
    signature = identity.sign(_CONTEXT, owner + head.wire())
    return SignedHead(owner, head, identity.public, signature)


def read_head(record: bytes) -> SignedHead:
    """Return the record that `SignedHead.encode` wrote, its signature checked.

    Raises:
        ProtocolError: it has another length, or its signature does not hold.
    """
    if len(record) != RECORD_BYTES:
        raise ProtocolError(
            f"expected a signed head of {RECORD_BYTES} bytes, got {len(record)}; it was not kept"
        )
    owner, rest = record[:KEY_BYTES], record[KEY_BYTES:]
    wire, signer = rest[:WIRE_BYTES], rest[WIRE_BYTES : WIRE_BYTES + KEY_BYTES]
    signature = rest[WIRE_BYTES + KEY_BYTES :]
    if not verify(signer, _CONTEXT, owner + wire, signature):
        raise ProtocolError("expected a signed head, got another signature; it was not kept")
    return SignedHead(owner, head_of(wire), signer, signature)


def follows(before: Head, now: Head) -> bool:
    """Say whether a ledger may have gone from ``before`` to ``now``: it grew, or it is the same.

    Fewer rows mean that it was cut or an older copy was put back, as many but others that it was
    written anew. That a longer chain goes through ``before`` only its own rows can show.
    """
    return now.rows > before.rows or now.wire() == before.wire()


class Heads:
    """The latest head that each signer has seen of each ledger, in SQLite beside a ledger.

    A site keeps one file of what others signed about its own ledger, to verify it against, and one
    of what it saw of its peers.
    """

    def __init__(self, path: Path) -> None:
        """Open ``path``, creating it with mode 0600 in an existing folder.

        Raises:
            PrivacyError: it is no such file.
            DataError: the disk failed.
        """
        self._path = path
        with self._failing():
            # Not when it is there: to close it would drop the locks that this process has on it.
            if not path.exists():
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._connection = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(_TABLE)

    def keep(self, record: SignedHead, pinned: Collection[bytes]) -> None:
        """Keep a head that is later than what its signer said before; an earlier one is dropped.

        Args:
            record: from `countersign` or `read_head`.
            pinned: keys whose word counts: those of the roster. Anybody else could make a sound
                ledger look cut.

        Raises:
            ProtocolError: the signer is not pinned.
            PrivacyError: another chain of the same length was signed before.
            DataError: the disk failed.
        """
        if record.signer not in pinned:
            raise ProtocolError("expected a head signed by a pinned key, got another's; not kept")
        new = record.head
        with self._failing():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                known = [one for one in self.all() if one.owner == record.owner]
                for one in known:
                    if one.head.rows == new.rows and not follows(one.head, new):
                        raise PrivacyError(
                            f"expected one chain in a ledger, got another of {new.rows} rows than "
                            "was signed before; it was not kept"
                        )
                own = max((o.head.rows for o in known if o.signer == record.signer), default=-1)
                if new.rows > own:
                    self._connection.execute(
                        "INSERT OR REPLACE INTO heads VALUES (?, ?, ?, ?)",
                        (record.owner, record.signer, new.wire(), record.signature),
                    )
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    def latest(self, owner: bytes) -> Head:
        """Return the head with the most rows that anybody signed of ``owner``'s ledger."""
        return max((one.head for one in self.all() if one.owner == owner), default=EMPTY)

    def all(self) -> list[SignedHead]:
        """Return what is kept, each signature checked again.

        Raises:
            ProtocolError: a record was changed.
            DataError: the disk failed.
        """
        with self._failing():
            rows = self._connection.execute(
                "SELECT owner, head, signer, signature FROM heads ORDER BY owner, signer"
            ).fetchall()
        return [read_head(b"".join(row)) for row in rows]

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            if (failed := disk_error(error, str(self._path), "nothing was kept")) is not None:
                raise failed from error
            raise PrivacyError(
                f"expected a file of heads that can be read and written at '{self._path.name}', "
                f"got {type(error).__name__}: {error}; nothing was kept"
            ) from error
