"""Heads that others keep: what is signed, who is believed, ledgers that were cut or put back."""

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from privacy import keys
from privacy.accounting import Event
from privacy.errors import DataError, PrivacyError, ProtocolError
from privacy.heads import (
    EMPTY,
    RECORD_BYTES,
    Head,
    Heads,
    SignedHead,
    countersign,
    follows,
    head_of,
    read_head,
)
from privacy.ledger import Ledger

OWNER, PEER, SERVER, STRANGER = (keys.identity(bytes([1 + i]) * 32) for i in range(4))
PINNED = {OWNER.public, PEER.public, SERVER.public}
HEAD = Head(3, "ab" * 32)


def event(steps: int) -> Event:
    return Event(
        study="a1",
        dataset="ward",
        unit="record",
        sampling_rate=1.0,
        noise_multiplier=2.0,
        clipping_norm=1.0,
        steps=steps,
        denominator=16.0,
        mode="local",
    )


def fill(path: Path, start: int, stop: int) -> Head:
    with Ledger(path) as ledger:
        for row in range(start, stop):
            ledger.debit(event(row + 1), f"round {row}")
        return ledger.head()


# The wire form


def test_a_head_is_32_bytes_its_rows_first() -> None:
    assert HEAD.wire() == b"\x03\0\0\0" + b"\xab" * 28
    assert head_of(HEAD.wire()) == Head(3, "ab" * 28)
    assert head_of(HEAD.wire()).wire() == HEAD.wire()


def test_no_ledger_is_32_zeros() -> None:
    assert EMPTY.wire() == bytes(32)
    assert head_of(bytes(32)).wire() == EMPTY.wire()


def test_a_head_of_another_length_is_a_bug_of_the_caller() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        head_of(bytes(31))


@pytest.mark.parametrize(
    ("before", "now", "may"),
    [
        (EMPTY, EMPTY, True),
        (EMPTY, HEAD, True),
        (HEAD, HEAD, True),
        (HEAD, head_of(HEAD.wire()), True),
        (HEAD, Head(4, "cd" * 32), True),
        (HEAD, Head(2, "ab" * 32), False),
        (HEAD, Head(3, "cd" * 32), False),
        (HEAD, EMPTY, False),
    ],
)
def test_a_ledger_grows_or_stays(before: Head, now: Head, may: bool) -> None:
    assert follows(before, now) is may


# Signatures


def test_a_countersigned_head_survives_its_bytes() -> None:
    record = countersign(PEER, OWNER.public, HEAD).encode()
    assert len(record) == RECORD_BYTES
    found = read_head(record)
    assert (found.owner, found.signer, found.head.wire()) == (
        OWNER.public,
        PEER.public,
        HEAD.wire(),
    )
    assert found.encode() == record


def test_every_flipped_byte_of_a_record_is_found() -> None:
    record = countersign(PEER, OWNER.public, HEAD).encode()
    for place in range(len(record)):
        forged = bytearray(record)
        forged[place] ^= 1
        with pytest.raises(ProtocolError, match="not kept"):
            read_head(bytes(forged))


@pytest.mark.parametrize("length", [0, RECORD_BYTES - 1, RECORD_BYTES + 1])
def test_a_record_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ProtocolError, match="160 bytes"):
        read_head(bytes(length))


@pytest.mark.parametrize("context", [b"", b"fedward roster", b"FSA1"])
def test_a_signature_over_something_else_is_no_signature_of_a_head(context: bytes) -> None:
    signature = PEER.sign(context, OWNER.public + HEAD.wire())
    with pytest.raises(ProtocolError, match="signature"):
        read_head(SignedHead(OWNER.public, HEAD, PEER.public, signature).encode())


# What is kept


def test_each_signers_latest_head_of_each_ledger_is_kept(tmp_path: Path) -> None:
    later = Head(7, "cd" * 32)
    with Heads(tmp_path / "heads.db") as heads:
        for signer, head in ((PEER, HEAD), (SERVER, later), (PEER, later), (PEER, HEAD)):
            heads.keep(countersign(signer, OWNER.public, head), PINNED)
        heads.keep(countersign(OWNER, PEER.public, HEAD), PINNED)
    with Heads(tmp_path / "heads.db") as heads:
        assert sorted(one.head.rows for one in heads.all()) == [3, 7, 7]
        assert heads.latest(OWNER.public).wire() == later.wire()
        assert heads.latest(PEER.public).wire() == HEAD.wire()
        assert heads.latest(STRANGER.public) == EMPTY


def test_a_stranger_cannot_make_a_ledger_look_cut(tmp_path: Path) -> None:
    with Heads(tmp_path / "heads.db") as heads:
        with pytest.raises(ProtocolError, match="pinned"):
            heads.keep(countersign(STRANGER, OWNER.public, Head(99, "cd" * 32)), PINNED)
        assert heads.all() == []


@pytest.mark.parametrize("signer", [PEER, SERVER])
def test_two_chains_of_one_length_are_found(tmp_path: Path, signer: keys.Identity) -> None:
    with Heads(tmp_path / "heads.db") as heads:
        heads.keep(countersign(PEER, OWNER.public, HEAD), PINNED)
        with pytest.raises(PrivacyError, match=r"one chain .* of 3 rows"):
            heads.keep(countersign(signer, OWNER.public, Head(3, "cd" * 32)), PINNED)
        assert len(heads.all()) == 1


def test_after_a_refusal_the_next_head_is_kept(tmp_path: Path) -> None:
    with Heads(tmp_path / "heads.db") as heads:
        heads.keep(countersign(PEER, OWNER.public, HEAD), PINNED)
        with pytest.raises(PrivacyError, match=r"one chain .* of 3 rows"):
            heads.keep(countersign(PEER, OWNER.public, Head(3, "cd" * 32)), PINNED)
        heads.keep(countersign(PEER, OWNER.public, Head(4, "cd" * 32)), PINNED)
    with Heads(tmp_path / "heads.db") as heads:
        assert heads.latest(OWNER.public).rows == 4


def test_ledgers_of_two_owners_are_not_held_against_each_other(tmp_path: Path) -> None:
    shorter, other = Head(2, "cd" * 32), Head(3, "cd" * 32)
    with Heads(tmp_path / "heads.db") as heads:
        heads.keep(countersign(SERVER, OWNER.public, HEAD), PINNED)
        heads.keep(countersign(SERVER, PEER.public, shorter), PINNED)
        assert heads.latest(PEER.public).wire() == shorter.wire()
        heads.keep(countersign(SERVER, PEER.public, other), PINNED)
        assert heads.latest(PEER.public).wire() == other.wire()
        assert heads.latest(OWNER.public).wire() == HEAD.wire()


def test_a_head_that_was_changed_on_disk_is_not_believed(tmp_path: Path) -> None:
    with Heads(tmp_path / "heads.db") as heads:
        heads.keep(countersign(PEER, OWNER.public, HEAD), PINNED)
    connection = sqlite3.connect(tmp_path / "heads.db")
    connection.execute("UPDATE heads SET head = ?", (Head(1, "ab" * 32).wire(),))
    connection.commit()
    connection.close()
    with Heads(tmp_path / "heads.db") as heads, pytest.raises(ProtocolError, match="signature"):
        heads.all()


def test_another_file_is_no_file_of_heads(tmp_path: Path) -> None:
    (tmp_path / "heads.db").write_text("not a database, but long enough to have a header" * 20)
    with pytest.raises(PrivacyError, match="file of heads"):
        Heads(tmp_path / "heads.db")


def test_a_folder_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"heads\.db: cannot be read or written \(No such file"):
        Heads(tmp_path / "gone" / "heads.db")


def test_closed_heads_fail_by_name(tmp_path: Path) -> None:
    with Heads(tmp_path / "heads.db") as heads:
        pass
    with pytest.raises(PrivacyError, match="file of heads"):
        heads.all()


def test_who_reads_holds_up_nobody_who_writes(tmp_path: Path) -> None:
    with Heads(tmp_path / "heads.db") as heads, Heads(tmp_path / "heads.db") as reader:
        reader._connection.execute("BEGIN")
        assert reader.all() == []
        heads._connection.execute("PRAGMA busy_timeout = 0")
        heads.keep(countersign(PEER, OWNER.public, HEAD), PINNED)


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    Heads(tmp_path / "heads.db").close()
    assert (tmp_path / "heads.db").stat().st_mode & 0o777 == 0o600


def test_a_second_opening_leaves_the_file_locked_against_other_processes(tmp_path: Path) -> None:
    """The locks are the process's: to open and close the file once more would drop them."""
    path = tmp_path / "heads.db"
    with Heads(path), Heads(path):
        code = (
            "import sqlite3, sys;"
            "sqlite3.connect(sys.argv[1], timeout=0).execute('PRAGMA journal_mode = DELETE')"
        )
        found = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
        )
    assert "database is locked" in found.stderr


# Attacks on a ledger


def countersigned(folder: Path, signer: keys.Identity, head: Head) -> None:
    with Heads(folder / "heads.db") as heads:
        heads.keep(countersign(signer, OWNER.public, head_of(head.wire())), PINNED)


def known(folder: Path) -> list[Head]:
    with Heads(folder / "heads.db") as heads:
        return [one.head for one in heads.all()]


def test_an_older_copy_put_back_is_found_by_what_a_peer_signed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    fill(path, 0, 5)
    shutil.copy(path, tmp_path / "backup.db")
    countersigned(tmp_path, PEER, fill(path, 5, 8))
    for file in tmp_path.glob("ledger.db*"):
        file.unlink()
    shutil.copy(tmp_path / "backup.db", path)
    with Ledger(path) as ledger:
        ledger.verify()  # sound in itself
        with pytest.raises(PrivacyError, match="row 6 is gone"):
            ledger.verify(*known(tmp_path))


def test_an_older_copy_that_was_written_on_is_found(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    fill(path, 0, 5)
    shutil.copy(path, tmp_path / "backup.db")
    countersigned(tmp_path, SERVER, fill(path, 5, 8))
    for file in tmp_path.glob("ledger.db*"):
        file.unlink()
    shutil.copy(tmp_path / "backup.db", path)
    fill(path, 90, 99)
    with Ledger(path) as ledger, pytest.raises(PrivacyError, match="another at row 8"):
        ledger.verify(*known(tmp_path))


def test_a_ledger_that_was_removed_is_found(tmp_path: Path) -> None:
    countersigned(tmp_path, PEER, fill(tmp_path / "ledger.db", 0, 2))
    for file in tmp_path.glob("ledger.db*"):
        file.unlink()
    with Ledger(tmp_path / "ledger.db") as ledger, pytest.raises(PrivacyError, match="row 1 is"):
        ledger.verify(*known(tmp_path))


def test_a_ledger_that_grew_goes_through_all_that_was_signed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    for signer, stop in ((PEER, 2), (SERVER, 4)):
        countersigned(tmp_path, signer, fill(path, stop - 2, stop))
    fill(path, 4, 6)
    with Ledger(path) as ledger:
        assert ledger.verify(*known(tmp_path)).rows == 6
