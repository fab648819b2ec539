"""The server's store: what it remembers over a restart, and that it is on disk when it says so."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from privacy.errors import DataError
from privacy.roster import Kind
from privacy.wire import Counter
from server.store import ServerStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "server.db"


def again(store: ServerStore, path: Path) -> ServerStore:
    """The store as a new process finds it."""
    store.close()
    return ServerStore(path)


def test_a_new_store_has_used_no_counter_and_given_no_order(path: Path) -> None:
    store = ServerStore(path)
    assert (store.counter(), store.orders()) == (Counter(0, 0), {})


def test_the_last_counter_comes_back(path: Path) -> None:
    store = ServerStore(path)
    store.keep_counter(Counter(3, 4))
    store.keep_counter(Counter(3, 5))
    assert again(store, path).counter() == Counter(3, 5)


FIRST, SECOND = (bytes([1]) * 32, Kind.TRAIN), (bytes([2]) * 32, Kind.EVALUATE)


def test_the_last_orders_come_back_in_their_order_and_no_other(path: Path) -> None:
    store = ServerStore(path)
    store.keep_orders({(bytes(32), Kind.TRAIN): b"gone"})
    store.keep_orders({SECOND: b"result", FIRST: b"another"})
    assert list(again(store, path).orders().items()) == [(SECOND, b"result"), (FIRST, b"another")]


@pytest.mark.parametrize("forget", [False, True])
def test_a_sum_that_is_taken_back_is_forgotten_with_its_order(path: Path, forget: bool) -> None:
    store = ServerStore(path)
    store.keep_attempt(b"attempt")
    store.keep_orders({FIRST: b"result"}, forget_sum=forget)
    store = again(store, path)
    assert store.last_sum() == (None if forget else (b"attempt", None))
    assert store.orders() == {FIRST: b"result"}


def test_a_new_store_has_no_sum(path: Path) -> None:
    assert ServerStore(path).last_sum() is None


def test_an_attempt_comes_back_without_its_sum_and_then_with_it(path: Path) -> None:
    store = ServerStore(path)
    store.keep_attempt(b"attempt")
    store = again(store, path)
    assert store.last_sum() == (b"attempt", None)
    store.keep_opened(b"opened")
    assert again(store, path).last_sum() == (b"attempt", b"opened")


def test_the_next_attempt_has_no_sum_and_the_one_before_is_gone(path: Path) -> None:
    store = ServerStore(path)
    store.keep_attempt(b"first")
    store.keep_opened(b"opened")
    store.keep_attempt(b"second")
    assert again(store, path).last_sum() == (b"second", None)


def test_what_a_killed_process_kept_is_there(path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from server.store import ServerStore;"
        "store = ServerStore(Path(sys.argv[1])); store.keep_attempt(b'attempt');"
        "from privacy.wire import Counter; store.keep_counter(Counter(2, 7));"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    assert ServerStore(path).last_sum() == (b"attempt", None)
    assert ServerStore(path).counter() == Counter(2, 7)


def test_only_the_owner_may_read_the_file(path: Path) -> None:
    ServerStore(path).keep_counter(Counter(1, 0))
    for file in path.parent.iterdir():  # with the journal beside it
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


def test_a_write_is_synced_before_it_returns(path: Path) -> None:
    store = ServerStore(path)
    pragmas = [
        store._connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous")
    ]
    assert pragmas == ["wal", 2]  # 2 is FULL


def test_a_second_opening_leaves_the_file_locked_against_other_processes(path: Path) -> None:
    """The locks are the process's: to open and close the file once more would drop them."""
    both = ServerStore(path), ServerStore(path)
    code = (
        "import sqlite3, sys;"
        "sqlite3.connect(sys.argv[1], timeout=0).execute('PRAGMA journal_mode = DELETE')"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert "database is locked" in found.stderr
    assert [store.counter() for store in both] == [Counter(0, 0)] * 2


def test_a_store_in_memory_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = ServerStore(None)
    store.keep_attempt(b"attempt")
    assert store.last_sum() == (b"attempt", None)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_changes_nothing_and_the_store_goes_on(path: Path) -> None:
    store = ServerStore(path)
    store.keep_attempt(b"attempt")
    with pytest.raises(DataError, match="the store failed"):
        store.keep_attempt(None)  # type: ignore[arg-type]
    assert store.last_sum() == (b"attempt", None)
    store.keep_opened(b"opened")
    assert again(store, path).last_sum() == (b"attempt", b"opened")


def test_an_error_in_a_write_is_not_swallowed_and_nothing_of_it_is_kept(path: Path) -> None:
    store = ServerStore(path)
    store.keep_orders({FIRST: b"result"})
    with pytest.raises(OverflowError):  # once the old orders are deleted
        store.keep_orders({SECOND: 2**70})  # type: ignore[dict-item]
    assert store.orders() == {FIRST: b"result"}
    store.keep_orders({SECOND: b"another"})
    assert again(store, path).orders() == {SECOND: b"another"}


@pytest.mark.parametrize(
    "content", [b"no database at all " * 100, b"SQLite format 3\0" + b"x" * 99]
)
def test_another_file_is_refused_by_name(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"server\.db: the store failed"):
        ServerStore(path)
    assert path.read_bytes() == content


def test_a_closed_store_fails_by_name(path: Path) -> None:
    store = ServerStore(path)
    store.close()
    for use in (
        *(lambda: store.keep_counter(Counter(1, 0)), lambda: store.keep_opened(b"opened")),
        *(store.counter, store.orders, store.last_sum),
    ):
        with pytest.raises(DataError, match="the store failed"):
            use()
