"""The audit of a site's folder: what it adds up, and the changes of the past that it finds."""

import shutil
import sqlite3
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from client.audit import read_audit, show_audit
from client.journal import Journal
from privacy import identity as identities
from privacy.accounting import Event
from privacy.errors import DataError, PrivacyError
from privacy.heads import Head, Heads, countersign
from privacy.keys import Identity
from privacy.keys import identity as from_secret
from privacy.ledger import Ledger
from shared_models.fingerprint import fingerprint

SERVER, PEER = from_secret(b"s" * 32), from_secret(b"p" * 32)
PLAN = "5c" * 32


class Folder:
    """A site's folder with a log of two messages, each after a debit, and its signed end."""

    def __init__(self, path: Path) -> None:
        path.mkdir(mode=0o700)
        self.path = path
        self.identity: Identity = identities.create(path / "identity.key")
        self.note("enrol", site="bonn")
        self.note("approve", plan=PLAN, confirmed=["ulm", "jena"])
        for number, size in ((1, 1000), (2, 234)):
            with Ledger(path / "ledger.db") as ledger:
                ledger.debit(EVENT, f"toy/train/{number}/0")
                head = ledger.head()
            self.note(
                "sent",
                message="cohort",
                round=number,
                bytes=size,
                approval=PLAN,
                ledger=f"{head.rows}/{head.digest}",
            )
        self.end = self.note("refused", message="start", code=4)
        self.keep(self.end, SERVER)

    def note(self, kind: str, **facts: str | int | list[str]) -> Head:
        with Journal(self.path / "journal.db") as journal:
            return journal.note(kind, **facts).head

    def keep(self, head: Head, signer: Identity, owner: bytes = b"") -> None:
        with Heads(self.path / "logs.db") as heads:
            record = countersign(signer, owner or self.identity.public, head)
            heads.keep(record, {signer.public})

    def change(self, file: str, statement: str) -> None:
        connection = sqlite3.connect(self.path / file)
        connection.execute(statement)
        connection.commit()
        connection.close()


EVENT = Event(
    study="ab" * 32,
    dataset="records",
    unit="record",
    sampling_rate=1.0,
    noise_multiplier=20.0,
    clipping_norm=1.0,
    steps=2,
    denominator=16.0,
    mode="local",
)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "bonn")


def test_it_adds_up_what_left_and_under_which_approval(folder: Folder) -> None:
    folder.keep(Head(7, "cd" * 28), PEER, owner=PEER.public)
    found = read_audit(folder.path).document()
    assert (found["rows"], found["signed_rows"], found["ledger_rows"]) == (5, 5, 2)
    assert found["bytes_sent"] == 1234
    notes = found["notes"]
    assert isinstance(notes, list)
    assert [(one["round"], one["approval"]) for one in notes if one["kind"] == "sent"] == [
        (1, PLAN),
        (2, PLAN),
    ]
    assert found["peers"] == {fingerprint(PEER.public): {"rows": 7, "head": "cd" * 28}}
    assert found["warning"] is None


def test_a_log_that_was_cut_where_no_signed_end_is_left_is_warned_of(folder: Folder) -> None:
    folder.change("journal.db", "DELETE FROM events WHERE number = 5")
    for file in folder.path.glob("logs.db*"):
        file.unlink()
    found, words = read_audit(folder.path), StringIO()
    assert "rows were cut from its end would not show" in str(found.document()["warning"])
    show_audit(found, Console(file=StringIO()), Console(file=words, width=80))
    assert "Warning: no end of this log that the coordinator has signed" in words.getvalue()


def test_a_log_that_was_cut_before_the_approval_is_warned_of_by_the_approval(
    folder: Folder,
) -> None:
    folder.change("journal.db", "DELETE FROM events WHERE number > 1")
    for file in folder.path.glob("logs.db*"):
        file.unlink()
    (folder.path / "approval.json").write_text("{}")
    assert read_audit(folder.path).warning


def test_before_an_approval_nobody_has_signed_and_nothing_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "ulm").mkdir(mode=0o700)
    identities.create(tmp_path / "ulm" / "identity.key")
    with Journal(tmp_path / "ulm" / "journal.db") as journal:
        journal.note("enrol", site="ulm")
    found, words = read_audit(tmp_path / "ulm"), StringIO()
    assert found.document()["warning"] is None
    show_audit(found, Console(file=StringIO()), Console(file=words, width=80))
    assert "Nobody has signed an end of this log yet: nothing was approved." in words.getvalue()


def test_the_ends_of_other_hospitals_logs_are_shown(folder: Folder) -> None:
    folder.keep(Head(7, "cd" * 28), PEER, owner=PEER.public)
    folder.keep(Head(9, "ab" * 28), SERVER, owner=PEER.public)  # not the peer's own word
    words = StringIO()
    show_audit(read_audit(folder.path), Console(file=StringIO()), Console(file=words, width=80))
    line = f"Seen of the log of {fingerprint(PEER.public)}: 7 rows, end {'cd' * 6}."
    assert words.getvalue().splitlines()[-1] == line


def test_it_is_readable_at_eighty_columns(folder: Folder) -> None:
    out, words = StringIO(), StringIO()
    show_audit(read_audit(folder.path), Console(file=out, width=80), Console(file=words, width=80))
    lines = out.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    vector = next(line for line in lines if "1,000" in line)
    assert vector.split()[3:] == ["1", "sent:", "masked", "vector", "1,000", PLAN[:12]]
    assert "2 messages left, 1,234 bytes in all" in words.getvalue()
    assert "The coordinator has signed it up to row 5." in words.getvalue()


@pytest.mark.parametrize(
    ("file", "statement", "words"),
    [
        ("journal.db", "UPDATE events SET event = replace(event, '1000', '10')", "journal row 3"),
        ("journal.db", "DELETE FROM events WHERE number = 2", "journal row"),
        ("journal.db", "DELETE FROM events WHERE number = 5", "5 rows"),
        ("ledger.db", "DELETE FROM events WHERE number = 2", "rows"),
        ("ledger.db", "UPDATE events SET key = 'other' WHERE number = 1", "row 1"),
    ],
)
def test_a_past_that_was_changed_is_found(
    folder: Folder, file: str, statement: str, words: str
) -> None:
    read_audit(folder.path)
    folder.change(file, statement)
    with pytest.raises(PrivacyError, match=words):
        read_audit(folder.path)


def test_an_older_copy_is_found_by_the_coordinators_signature(
    folder: Folder, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder.path, copy)
    folder.keep(folder.note("refused", message="start", code=4), SERVER)
    shutil.copy(folder.path / "logs.db", copy / "logs.db")
    with pytest.raises(PrivacyError, match="6 rows"):
        read_audit(copy)


def test_a_ledger_that_is_gone_is_missed(folder: Folder) -> None:
    (folder.path / "ledger.db").unlink()
    with pytest.raises(PrivacyError, match="expected the ledger that the log names"):
        read_audit(folder.path)


def test_a_folder_without_a_log_is_nobodys(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found no log"):
        read_audit(tmp_path)
    assert list(tmp_path.iterdir()) == []
