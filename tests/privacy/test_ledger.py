"""The ledger: what it stores, whom it refuses, and what an insider or a crash can do to it."""

import multiprocessing
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from privacy.accounting import Event
from privacy.chain import Adopted
from privacy.errors import DataError, PrivacyError
from privacy.heads import EMPTY, Head
from privacy.ledger import Check, Ledger

ROOT = Path(__file__).resolve().parents[2]


def event(steps: int = 1, study: str = "a1", dataset: str = "ward") -> Event:
    return Event(
        study=study,
        dataset=dataset,
        unit="record",
        sampling_rate=0.1,
        noise_multiplier=1.1,
        clipping_norm=1.0,
        steps=steps,
        denominator=16.0,
        mode="local",
        versions={"torch": "2.13.0", "opacus": "1.6.0"},
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def filled(path: Path, rows: int) -> Head:
    with Ledger(path) as ledger:
        for row in range(rows):
            ledger.debit(event(row + 1), f"round {row}")
        return ledger.head()


def alter(path: Path, *statements: str) -> None:
    """What an insider with the file and a SQL shell can do."""
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


# What it stores


def test_debits_come_back_in_order_and_by_dataset_and_study(path: Path) -> None:
    written = [event(1), event(2, study="b2"), event(3, dataset="clinic")]
    with Ledger(path) as ledger:
        for number, each in enumerate(written):
            ledger.debit(each, str(number))
    with Ledger(path) as ledger:
        assert ledger.events() == written
        assert ledger.events(dataset="ward") == written[:2]
        assert ledger.events(study="a1") == [written[0], written[2]]
        assert ledger.events(dataset="clinic", study="b2") == []
        assert [row.number for row in ledger.rows()] == [1, 2, 3]


def test_an_empty_ledger_verifies_and_has_the_empty_head(path: Path) -> None:
    with Ledger(path) as ledger:
        assert ledger.verify() == ledger.head() == EMPTY
        assert ledger.verify(EMPTY) == EMPTY


def test_the_file_is_for_its_owner_alone(path: Path) -> None:
    filled(path, 1)
    path.chmod(0o644)
    with Ledger(path) as ledger:
        ledger.debit(event(), "new")
        files = sorted(file.name for file in path.parent.iterdir())
        assert files == ["ledger.sqlite", "ledger.sqlite-shm", "ledger.sqlite-wal"]
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


def test_a_debit_is_committed_when_it_returns(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.debit(event(), "1")
        with Ledger(path) as other:
            assert other.events() == [event()]


def test_every_commit_waits_for_the_disk(path: Path) -> None:
    with Ledger(path) as ledger:
        connection = ledger._connection
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_second_opening_leaves_the_file_locked_against_other_processes(path: Path) -> None:
    """The locks are the process's: to open and close the file once more would drop them."""
    with Ledger(path), Ledger(path):
        code = (
            "import sqlite3, sys;"
            "sqlite3.connect(sys.argv[1], timeout=0).execute('PRAGMA journal_mode = DELETE')"
        )
        found = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
        )
    assert "database is locked" in found.stderr


def test_equal_histories_have_equal_heads(tmp_path: Path) -> None:
    assert filled(tmp_path / "one", 3) == filled(tmp_path / "two", 3)


# Asked again


def test_the_same_debit_asked_again_is_one_row(path: Path) -> None:
    with Ledger(path) as ledger:
        first = ledger.debit(event(), "study/1/1")
        ledger.debit(event(2), "study/2/1")
        assert ledger.debit(event(), "study/1/1") == first
        assert ledger.head().rows == 2


def test_another_event_under_a_used_key_is_refused(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.debit(event(1), "study/1/1")
        with pytest.raises(PrivacyError, match="got another; nothing was debited"):
            ledger.debit(event(2), "study/1/1")
        assert ledger.events() == [event(1)]


def test_a_key_is_wanted(path: Path) -> None:
    with Ledger(path) as ledger, pytest.raises(ValueError, match="key"):
        ledger.debit(event(), "")


# The check inside the transaction


def ceiling(steps: int) -> Check:
    def allow(history: Sequence[Event]) -> None:
        if sum(each.steps for each in history) > steps:
            raise PrivacyError("expected a budget, got none; nothing was debited")

    return allow


def test_a_check_sees_the_history_with_the_new_event_last(path: Path) -> None:
    filled(path, 2)
    seen: list[Sequence[Event]] = []
    with Ledger(path) as ledger:
        ledger.debit(event(9), "new", allow=seen.append)
    assert [[each.steps for each in history] for history in seen] == [[1, 2, 9]]


def test_a_refused_debit_leaves_nothing_and_the_ledger_lives_on(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.debit(event(3), "1", allow=ceiling(5))
        with pytest.raises(PrivacyError, match="expected a budget"):
            ledger.debit(event(3), "2", allow=ceiling(5))
        assert ledger.events() == [event(3)]
        ledger.debit(event(2), "3", allow=ceiling(5))
        assert ledger.verify().rows == 2


def test_a_row_that_exists_is_not_asked_for_again(path: Path) -> None:
    with Ledger(path) as ledger:
        first = ledger.debit(event(3), "1", allow=ceiling(3))
        assert ledger.debit(event(3), "1", allow=ceiling(0)) == first


def _spend(path: Path, name: str, count: int) -> None:
    for number in range(count):
        with Ledger(path) as ledger:
            try:
                ledger.debit(event(), f"{name}/{number}", allow=ceiling(20))
            except PrivacyError as error:
                if "expected a budget" not in str(error):
                    raise


def test_processes_that_open_one_new_ledger_share_one_budget_exactly(path: Path) -> None:
    spawn = multiprocessing.get_context("fork")
    workers = [spawn.Process(target=_spend, args=(path, str(n), 10)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    with Ledger(path) as ledger:
        assert ledger.verify().rows == 20


# What an insider does


@pytest.mark.parametrize(
    ("statement", "row"),
    [
        ("UPDATE events SET event = replace(event, '1.1', '9.9') WHERE number = 4", 4),
        ("UPDATE events SET key = 'round 77' WHERE number = 3", 3),
        ("UPDATE events SET digest = upper(digest) WHERE number = 5", 5),
        ("UPDATE events SET digest = 'zz' WHERE number = 2", 2),
        ("DELETE FROM events WHERE number = 1", 1),
        ("DELETE FROM events WHERE number = 3", 3),
        ("UPDATE events SET number = 0 WHERE number = 1", 1),
    ],
)
def test_an_edit_or_a_deletion_is_found_at_its_row(path: Path, statement: str, row: int) -> None:
    filled(path, 6)
    alter(path, statement)
    with Ledger(path) as ledger:
        for read in (ledger.verify, ledger.events):
            with pytest.raises(PrivacyError, match=f"ledger row {row}\\b"):
                read()


def test_a_row_deleted_and_the_rest_renumbered_is_found(path: Path) -> None:
    filled(path, 6)
    alter(
        path,
        "DELETE FROM events WHERE number = 3",
        "UPDATE events SET number = number - 1 WHERE number > 3",
    )
    with Ledger(path) as ledger, pytest.raises(PrivacyError, match="ledger row 3 "):
        ledger.verify()


def test_two_rows_swapped_are_found(path: Path) -> None:
    filled(path, 6)
    alter(
        path,
        "UPDATE events SET number = 99 WHERE number = 2",
        "UPDATE events SET number = 2 WHERE number = 5",
        "UPDATE events SET number = 5 WHERE number = 99",
    )
    with Ledger(path) as ledger, pytest.raises(PrivacyError, match="ledger row 2 "):
        ledger.verify()


def test_a_row_that_is_sound_in_itself_but_of_another_history_is_found(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for path, first in ((one, 1), (other, 2)):
        with Ledger(path) as ledger:
            for number, steps in enumerate((first, 5, 6)):
                ledger.debit(event(steps), f"round {number}")
    alter(
        one,
        f"ATTACH '{other}' AS other",
        "UPDATE events SET event = (SELECT event FROM other.events WHERE number = 1),"
        " digest = (SELECT digest FROM other.events WHERE number = 1) WHERE number = 1",
    )
    with Ledger(one) as ledger, pytest.raises(PrivacyError, match="ledger row 2 "):
        ledger.verify()


def test_rows_cut_from_the_end_are_found_against_a_kept_head(path: Path) -> None:
    kept = filled(path, 6)
    alter(path, "DELETE FROM events WHERE number > 4")
    with Ledger(path) as ledger:
        ledger.verify()  # the rest is a sound chain: this is why heads are kept by others
        with pytest.raises(PrivacyError, match="row 5 is gone"):
            ledger.verify(kept)


def test_a_history_written_anew_is_found_against_a_kept_head(tmp_path: Path) -> None:
    kept = filled(tmp_path / "true", 3)
    with Ledger(tmp_path / "false") as ledger:
        for number in range(4):
            ledger.debit(event(1), f"round {number}")
        with pytest.raises(PrivacyError, match="row 3"):
            ledger.verify(kept)


def test_a_chain_that_grew_goes_through_an_older_head(path: Path) -> None:
    kept = filled(path, 3)
    with Ledger(path) as ledger:
        ledger.debit(event(50), "later")
        assert ledger.verify(kept).rows == 4


def test_no_debit_follows_a_last_row_that_was_changed(path: Path) -> None:
    filled(path, 3)
    alter(path, "UPDATE events SET event = replace(event, '1.1', '9.9') WHERE number = 3")
    with Ledger(path) as ledger, pytest.raises(PrivacyError, match="ledger row 3"):
        ledger.debit(event(), "next")


def test_no_check_passes_on_a_history_that_was_changed(path: Path) -> None:
    filled(path, 3)
    alter(path, "UPDATE events SET event = replace(event, '1.1', '9.9') WHERE number = 1")
    with Ledger(path) as ledger, pytest.raises(PrivacyError, match="ledger row 1"):
        ledger.debit(event(), "next", allow=lambda _: None)


@pytest.fixture(scope="module")
def long_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten thousand rows, in one file without side files."""
    path = tmp_path_factory.mktemp("long") / "ledger.sqlite"
    with Ledger(path) as ledger:
        ledger._connection.execute("PRAGMA synchronous = OFF")  # only to fill it in a second
        for row in range(10_000):
            ledger.debit(event(row + 1, study=f"study {row // 100}"), f"round {row}")
        ledger._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


TAMPERINGS = {
    "edit the event": ["UPDATE events SET event = replace(event, '1.1', '9.9') WHERE number = {n}"],
    "edit the key": ["UPDATE events SET key = key || '.' WHERE number = {n}"],
    "edit the digest": ["UPDATE events SET digest = 'f' || substr(digest, 2) WHERE number = {n}"],
    "delete": ["DELETE FROM events WHERE number = {n}"],
    "delete and renumber": [
        "DELETE FROM events WHERE number = {n}",
        "UPDATE events SET number = -number WHERE number > {n}",
        "UPDATE events SET number = -number - 1 WHERE number < 0",
    ],
    "swap with the next": [
        "UPDATE events SET number = -1 WHERE number = {n}",
        "UPDATE events SET number = {n} WHERE number = {n} + 1",
        "UPDATE events SET number = {n} + 1 WHERE number = -1",
    ],
    "cut": ["DELETE FROM events WHERE number >= {n}"],
}


@pytest.mark.parametrize("how", list(TAMPERINGS))
@pytest.mark.parametrize("row", [1, 2, 4711, 9_999])
def test_of_ten_thousand_rows_the_first_wrong_one_is_named(
    how: str, row: int, long_ledger: Path, path: Path
) -> None:
    with Ledger(long_ledger) as ledger:
        kept = ledger.head()
    shutil.copy(long_ledger, path)
    alter(path, *(statement.format(n=row) for statement in TAMPERINGS[how]))
    if how == "edit the digest":  # a digest that began with f by itself: nothing was changed
        with Ledger(long_ledger) as ledger:
            assert not ledger.rows()[row - 1].digest.startswith("f")
    with Ledger(path) as ledger, pytest.raises(PrivacyError, match=rf"row {row}\b"):
        ledger.verify(kept)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_single_character_of_a_row_can_be_changed(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger"
        filled(path, 4)
        row = data.draw(st.integers(1, 4))
        column = data.draw(st.sampled_from(["key", "event", "digest"]))
        connection = sqlite3.connect(path)
        (text,) = connection.execute(
            f"SELECT {column} FROM events WHERE number = ?", (row,)
        ).fetchone()
        place = data.draw(st.integers(0, len(text) - 1))
        other = data.draw(st.characters(codec="utf-8").filter(lambda c: c != text[place]))
        changed = text[:place] + other + text[place + 1 :]
        try:
            connection.execute(f"UPDATE events SET {column} = ? WHERE number = ?", (changed, row))
        except sqlite3.IntegrityError:  # the key of another row
            reject()
        finally:
            connection.commit()
            connection.close()
        with Ledger(path) as ledger, pytest.raises(PrivacyError, match=f"ledger row {row}\\b"):
            ledger.verify()


# Policies in the chain


def test_a_policy_is_a_row_of_the_chain_and_no_event(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.debit(event(1), "1")
        row = ledger.adopt('{"dataset":"ward"}')
        assert row is not None
        assert row == ledger.rows()[-1]
        assert row.head == ledger.head()
        ledger.debit(event(2), "2")
        assert ledger.verify().rows == 3
        assert ledger.events() == [event(1), event(2)]


def test_the_policy_in_force_is_not_written_again(path: Path) -> None:
    with Ledger(path) as ledger:
        assert ledger.adopt("one") is not None
        ledger.debit(event(), "1")
        assert ledger.adopt("one") is None
        assert ledger.adopt("two") is not None
        assert ledger.adopt("one") is not None  # back to the first: a change too
        assert ledger.head().rows == 4


def test_a_policy_that_was_changed_in_the_chain_is_found(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.adopt('{"epsilon":1}')
        ledger.debit(event(), "1")
    alter(path, "UPDATE events SET event = replace(event, ':1', ':9') WHERE number = 1")
    with Ledger(path) as ledger, pytest.raises(PrivacyError, match="ledger row 1 "):
        ledger.verify()


def test_a_debit_under_a_policy_that_is_not_in_the_chain_is_refused(path: Path) -> None:
    with Ledger(path) as ledger:
        one = Adopted(policy="one").digest
        with pytest.raises(PrivacyError, match="a policy that the ledger has a row of"):
            ledger.debit(event(), "1", under=one)
        ledger.adopt("one")
        ledger.debit(event(), "1", under=one)
        ledger.adopt("two")
        with pytest.raises(PrivacyError, match="nothing was debited"):
            ledger.debit(event(), "2", under=one)
        assert ledger.events() == [event()]


def test_a_policy_that_is_not_allowed_changes_nothing(path: Path) -> None:
    def never(history: Sequence[Event]) -> None:
        assert history == [event()]
        raise PrivacyError("expected another policy")

    with Ledger(path) as ledger:
        ledger.debit(event(), "1")
        before = ledger.head()
        with pytest.raises(PrivacyError, match="another policy"):
            ledger.adopt("one", allow=never)
        assert ledger.head() == before


# Files that are no ledgers


def test_a_text_file_is_refused(path: Path) -> None:
    path.write_text("not a database, but long enough to have a header" * 20)
    with pytest.raises(PrivacyError, match="nothing was read"):
        Ledger(path)


def test_a_file_that_was_emptied_is_not_taken_for_a_new_ledger(path: Path) -> None:
    filled(path, 3)
    path.write_bytes(b"")
    with pytest.raises(PrivacyError, match="another kind of file"):
        Ledger(path)


def test_another_database_is_refused_and_left_alone(path: Path) -> None:
    alter(path, "CREATE TABLE patients (name TEXT)")
    with pytest.raises(PrivacyError, match="another kind of file"):
        Ledger(path)
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("patients",)]
    connection.close()


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No such file or directory.*nothing was read"):
        Ledger(tmp_path / "nowhere" / "ledger.sqlite")


# Crashes

WRITER = """
import sys
sys.path[:0] = sys.argv[2:4]
from pathlib import Path
from privacy.accounting import Event
from privacy.ledger import Ledger
event = Event(study="a1", dataset="ward", unit="record", sampling_rate=0.1, noise_multiplier=1.1,
              clipping_norm=1.0, steps=1, denominator=16.0, mode="local")
for number in range(10**6):
    with Ledger(Path(sys.argv[1])) as ledger:
        ledger.debit(event, f"{sys.argv[4]}/{number}")
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
"""


def test_writers_killed_at_any_moment_leave_every_returned_debit_in_a_sound_chain(
    path: Path,
) -> None:
    kills = 8
    told: list[Path] = []
    for kill in range(kills):
        writers = []
        for which in (0, 1):
            told.append(path.with_name(f"told-{kill}-{which}"))
            with told[-1].open("w") as file:
                command = [sys.executable, "-c", WRITER, path, ROOT, ROOT, f"{kill}/{which}"]
                writers.append(subprocess.Popen(command, stdout=file))
        while not all(file.stat().st_size for file in told):
            time.sleep(0.01)  # until both are at work, however slow the machine
        time.sleep(0.013 * kill)
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
        for writer in writers:
            writer.wait(timeout=20)
        returned = sum(file.read_text().count("\n") for file in told)
        with Ledger(path) as ledger:
            rows = ledger.verify().rows
        # a writer killed between commit and print leaves one row more than it told
        assert returned <= rows <= returned + 2 * (kill + 1)
    assert returned >= 2 * kills
