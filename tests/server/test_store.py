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


PIECE = 1 << 18
SUM, OTHER = memoryview(b"masked sum"), memoryview(b"another one")
# Several pieces, the last of which is not full; each byte says where it is from.
LONG = memoryview(b"".join(bytes([number]) * PIECE for number in range(3)) + b"end")


def found(store: ServerStore) -> tuple[bytes, bytes] | None:
    last = store.last_attempt()
    return None if last is None else (last[0], b"".join(last[1]))


@pytest.mark.parametrize("forget", [False, True])
def test_a_sum_that_is_taken_back_is_forgotten_with_its_order(path: Path, forget: bool) -> None:
    store = ServerStore(path)
    store.keep_attempt(b"attempt", SUM)
    store.keep_orders({FIRST: b"result"}, forget_sum=forget)
    store = again(store, path)
    assert found(store) == (None if forget else (b"attempt", bytes(SUM)))
    assert store.orders() == {FIRST: b"result"}


def test_nothing_of_a_forgotten_sum_comes_back_with_the_next(path: Path) -> None:
    store = ServerStore(path)
    store.keep_attempt(b"attempt", LONG)
    store.keep_orders({FIRST: b"result"}, forget_sum=True)
    assert list(store._words()) == []


def test_a_new_store_has_no_attempt(path: Path) -> None:
    assert ServerStore(path).last_attempt() is None


@pytest.mark.parametrize("words", [SUM, LONG[:PIECE], LONG[: 2 * PIECE], LONG])
def test_an_attempt_comes_back_with_its_sum(path: Path, words: memoryview) -> None:
    store = ServerStore(path)
    store.keep_attempt(b"attempt", words)
    assert found(again(store, path)) == (b"attempt", bytes(words))


@pytest.mark.parametrize("before", [OTHER, LONG[: 2 * PIECE], LONG])
@pytest.mark.parametrize("after", [SUM, LONG[: PIECE + 7], LONG])
def test_the_next_sum_takes_the_place_of_the_one_before(
    path: Path, before: memoryview, after: memoryview
) -> None:
    store = ServerStore(path)
    store.keep_attempt(b"first", before)
    store.keep_attempt(b"second", after)
    assert found(again(store, path)) == (b"second", bytes(after))


PROC = Path("/proc/self/status")
WEIGHED = """
import sys
from pathlib import Path
from server.store import ServerStore

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))

store, words = ServerStore(Path(sys.argv[1])), memoryview(b"word" * (1 << 24))
before = peak()
for head in (b"attempt", b"opened"):
    store.keep_attempt(head, words)
assert sum(len(piece) for piece in store.last_attempt()[1]) == len(words)
print(peak() - before)
"""


@pytest.mark.skipif(not PROC.exists(), reason="only Linux tells how much a process has had")
def test_a_sum_is_neither_written_nor_read_at_once(path: Path) -> None:
    command = [sys.executable, "-c", WEIGHED, str(path)]
    grown = int(subprocess.run(command, check=True, capture_output=True).stdout)
    # of 64 MiB: SQLite's cache of 2 MB, and a few pieces
    assert grown < 1 << 23


KILLED = """
import os, signal, sys
from pathlib import Path
from privacy.wire import Counter
from server.store import ServerStore

class Words:  # cutting the third piece off it ends the process
    def __len__(self): return 100 << 18
    def __getitem__(self, part):
        if part.start == 2 << 18: os.kill(os.getpid(), signal.SIGKILL)
        return b"new " * (1 << 16)

store = ServerStore(Path(sys.argv[1]))
store.keep_attempt(b"attempt", memoryview(b"old " * (1 << 20)))
store.keep_counter(Counter(2, 7))
if sys.argv[2] == "within":
    store.keep_attempt(b"next", Words())
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["after", "within"])
def test_a_killed_process_leaves_the_last_sum_whole(path: Path, when: str) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, str(path), when], check=False)
    assert ended.returncode == -9
    store = ServerStore(path)
    assert found(store) == (b"attempt", b"old " * (1 << 20))
    assert store.counter() == Counter(2, 7)


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
    store.keep_attempt(b"attempt", SUM)
    assert found(store) == (b"attempt", bytes(SUM))
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_changes_nothing_and_the_store_goes_on(path: Path) -> None:
    store = ServerStore(path)
    store.keep_attempt(b"attempt", SUM)
    with pytest.raises(DataError, match="the store failed"):
        store.keep_attempt(None, OTHER)  # type: ignore[arg-type]
    assert found(store) == (b"attempt", bytes(SUM))
    store.keep_attempt(b"opened", OTHER)
    assert found(again(store, path)) == (b"opened", bytes(OTHER))


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
        *(lambda: store.keep_counter(Counter(1, 0)), lambda: store.keep_attempt(b"attempt", SUM)),
        *(store.counter, store.orders, store.last_attempt, lambda: list(store._words())),
    ):
        with pytest.raises(DataError, match="the store failed"):
            use()
