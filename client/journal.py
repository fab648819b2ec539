"""A site's log of what was decided and what left it: one note a row, chained, on disk when written.

It decides nothing and holds no message: a message is its kind, its bytes and its SHA-256. The end
of the chain goes to the server and to peers, so that a log that was cut or written anew is found.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from privacy.chainfile import ChainFile, Link, changed, through
from privacy.heads import Head

Fact = str | int | float | list[str] | None

_NOUN = "journal"
_VERSION = 1001  # far from a ledger's: neither is taken for the other


class Note(NamedTuple):
    """One row; ``digest`` covers it and every row before it."""

    number: int  # from 1
    kind: str
    time: str  # ISO 8601, UTC, by this machine's clock
    facts: Mapping[str, Fact]
    digest: str

    @property
    def head(self) -> Head:
        """The chain's end when this note was its last."""
        return Head(self.number, self.digest)


class Journal:
    """The file, open; several processes may write to it, each thread through one of its own."""

    def __init__(self, path: Path) -> None:
        """Open ``path``, creating it with mode 0600 in an existing folder.

        Raises:
            PrivacyError: it is no journal.
            DataError: it cannot be opened or written.
        """
        self._file = ChainFile(path, _NOUN, _VERSION)

    def note(self, kind: str, **facts: Fact) -> Note:
        """Write a note down; it is on disk (synchronous=FULL) when this returns.

        Args:
            kind: what happened.
            facts: about it: digests, counts of bytes, names of sites; never a value of a record.

        Raises:
            PrivacyError, DataError: the last row was changed, or the disk failed. What was to be
                noted must not be done.
        """
        time = datetime.now(UTC).isoformat(timespec="seconds")
        text = json.dumps(
            {"kind": kind, "time": time, **facts},
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=False,
            allow_nan=False,
        )
        with self._file.failing("nothing was noted"), self._file.transaction():
            return _note(self._file.append(f"{kind}/{self._file.last().rows + 1}", text))

    def rows(self) -> list[Note]:
        """Return all notes, oldest first; PrivacyError, naming the row, where one is wrong."""
        with self._file.failing("nothing was read"):
            return [_note(link) for link in self._file.links()]

    def head(self) -> Head:
        """Return the end of the chain, its last row checked, to be kept by server and peers."""
        with self._file.failing("nothing was read"):
            return self._file.last()

    def verify(self, *known: Head) -> Head:
        """Check every row, and that the chain goes through each of ``known``; return its end.

        Raises:
            PrivacyError: the first wrong row is named.
        """
        return through(self.rows(), known)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def ledger_ends(notes: Sequence[Note]) -> list[Head]:
    """Return the ends of the ledger that a log names."""
    found = {str(note.facts["ledger"]) for note in notes if note.kind == "sent"}
    ends = []
    for text in found:
        rows, _, digest = text.partition("/")
        if int(rows):
            ends.append(Head(int(rows), digest))
    return sorted(ends)


def _note(link: Link) -> Note:
    try:
        facts = json.loads(link.text)
        kind, time = facts.pop("kind"), facts.pop("time")
    except (ValueError, KeyError, AttributeError):  # sound in itself, so another program wrote it
        raise changed(_NOUN, link.number) from None
    return Note(link.number, kind, time, facts, link.digest)
