"""A full disk under what a site must not forget: nothing by halves, and it goes on afterwards.

The system itself refuses to let a file grow (RLIMIT_FSIZE), as it does when a disk or a quota is
full.
"""

import hashlib
import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from privacy import keys
from privacy.accounting import Event
from privacy.disk import disk_error
from privacy.errors import DataError
from privacy.heads import Head, Heads, countersign
from privacy.ledger import Ledger
from privacy.secagg_store import SiteStore

DEBIT = Event(
    study="a1",
    dataset="ward",
    unit="record",
    sampling_rate=0.1,
    noise_multiplier=1.1,
    clipping_norm=1.0,
    steps=1,
    denominator=16.0,
    mode="local",
)
OWNER = keys.identity(bytes([1]) * 32)


@contextmanager
def full(most: int = 0) -> Iterator[None]:
    """No file of this process grows beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def head(rows: int) -> Head:
    return Head(rows, hashlib.sha256(bytes([rows])).hexdigest()[:56])


class Debits:
    def __init__(self, path: Path) -> None:
        self.file = Ledger(path)

    def write(self, number: int) -> None:
        self.file.debit(DEBIT, str(number))

    def count(self) -> int:
        return self.file.verify().rows


class Words:
    def __init__(self, path: Path) -> None:
        self.file = Heads(path)

    def write(self, number: int) -> None:
        self.file.keep(countersign(OWNER, OWNER.public, head(number)), {OWNER.public})

    def count(self) -> int:
        return self.file.latest(OWNER.public).rows


class Runs:
    def __init__(self, path: Path) -> None:
        self.file = SiteStore(path)

    def write(self, number: int) -> None:
        self.file.begin_run(bytes([number]) * 16)

    def count(self) -> int:
        rows = self.file._connection.execute("SELECT count(*) FROM runs").fetchone()
        return int(rows[0])


def grow(kept: Debits | Words | Runs) -> None:
    for _ in range(50):  # some of it may fit
        kept.write(kept.count() + 1)


Kind = Callable[[Path], Debits | Words | Runs]


@pytest.mark.parametrize("kind", [Debits, Words, Runs])
def test_a_full_disk_is_told_as_such_and_what_came_before_stays(tmp_path: Path, kind: Kind) -> None:
    kept = kind(tmp_path / "kept.db")
    kept.write(1)
    for most in (0, 8192):
        words = r"kept\.db: cannot be read or written \(.*\); nothing"
        with full(most), pytest.raises(DataError, match=words):
            grow(kept)
        before = kept.count()
        kept.write(before + 1)  # by the same connection, once there is room
        assert kept.count() == before + 1
    kept.file.close()
    assert kind(tmp_path / "kept.db").count() == before + 1


@pytest.mark.parametrize("kind", [Debits, Words, Runs])
def test_a_file_that_cannot_be_made_is_told_with_what_to_do(tmp_path: Path, kind: Kind) -> None:
    with pytest.raises(DataError, match=r"nowhere/kept\.db: cannot be") as refused:
        kind(tmp_path / "nowhere" / "kept.db")
    assert "make room" in refused.value.hint


@pytest.mark.parametrize(
    "statement", ["SELECT * FROM nothing", "INSERT INTO one VALUES (1)", "syntax"]
)
def test_what_is_not_the_disks_fault_is_no_error_of_the_disk(statement: str) -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE one (number PRIMARY KEY)")
    connection.execute("INSERT INTO one VALUES (1)")
    with pytest.raises(sqlite3.Error) as refused:
        connection.execute(statement)
    connection.close()
    assert disk_error(refused.value, "a file", "nothing was done") is None
    assert disk_error(sqlite3.ProgrammingError("closed"), "a file", "nothing was done") is None
