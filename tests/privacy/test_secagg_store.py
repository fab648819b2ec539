"""The site's store: what it remembers over a restart, and what it refuses."""

import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privacy.errors import ProtocolError
from privacy.roster import Kind
from privacy.secagg_store import SiteStore
from privacy.wire import Counter

RUN, OTHER_RUN = bytes(range(16)), bytes(range(1, 17))
MODEL, OTHER_MODEL = bytes([7]) * 32, bytes([8]) * 32
COHORT = bytes([9]) * 32
AT = Counter(3, 2)
VALUES = np.array([-(2**31), -1, 0, 2**31 - 1], dtype=np.int32)
LANES = np.array([-(2**63), 5, 2**63 - 1], dtype=np.int64)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "site.db"


@pytest.fixture
def again(path: Path) -> Callable[[], SiteStore]:
    """again(): the store as a new process finds it."""
    opened: list[SiteStore] = []

    def reopen() -> SiteStore:
        if opened:
            opened.pop().close()
        opened.append(SiteStore(path))
        return opened[-1]

    return reopen


Again = Callable[[], SiteStore]


# Runs


def test_a_run_is_begun_once(again: Again) -> None:
    again().begin_run(RUN)
    with pytest.raises(ProtocolError, match="expected a new run, got a repeated id"):
        again().begin_run(RUN)


def test_an_older_run_is_refused_after_many_others(again: Again) -> None:
    for number in range(50):
        again().begin_run(bytes([number]) * 16)
    with pytest.raises(ProtocolError, match="repeated id"):
        again().begin_run(bytes(16))


# Counters


def test_a_new_store_has_seen_nobody(again: Again) -> None:
    assert again().counters() == {}


def test_the_own_counter_is_there_after_a_restart(again: Again) -> None:
    again().advance(1, AT)
    assert again().counters() == {1: AT}


@pytest.mark.parametrize("other", [AT, Counter(3, 1), Counter(2, 9), Counter(0, 0)])
def test_a_counter_that_does_not_grow_is_refused(again: Again, other: Counter) -> None:
    again().advance(1, AT)
    with pytest.raises(ProtocolError, match=r"message 4: expected a counter above .*2\)"):
        again().advance(1, other)
    assert again().counters() == {1: AT}


@pytest.mark.parametrize("other", [Counter(3, 3), Counter(4, 0)])
def test_a_counter_that_grows_is_taken(again: Again, other: Counter) -> None:
    again().advance(1, AT)
    again().advance(1, other)
    assert again().counters() == {1: other}


def test_the_first_counter_is_above_zero(again: Again) -> None:
    with pytest.raises(ProtocolError, match="expected a counter above"):
        again().advance(1, Counter(0, 0))


def test_of_a_peer_the_highest_counter_stays(again: Again) -> None:
    again().raise_counters({0: AT, 2: AT, 5: AT})
    again().raise_counters({0: Counter(3, 1), 2: Counter(4, 0), 7: Counter(1, 0)})
    assert again().counters() == {0: AT, 2: Counter(4, 0), 5: AT, 7: Counter(1, 0)}


def test_of_a_peer_the_very_next_attempt_is_kept(again: Again) -> None:
    again().raise_counters({2: AT})
    again().raise_counters({2: Counter(3, 3)})
    assert again().counters() == {2: Counter(3, 3)}


def test_seen_counters_never_lower_the_own_one(again: Again) -> None:
    again().advance(1, AT)
    again().raise_counters({1: Counter(1, 0)})
    with pytest.raises(ProtocolError, match="expected a counter above"):
        again().advance(1, AT)


# Survivor sets


def test_the_same_set_is_acknowledged_again(again: Again) -> None:
    again().acknowledge(RUN, AT, COHORT, (0, 1, 2))
    again().acknowledge(RUN, AT, COHORT, (0, 1, 2))


@pytest.mark.parametrize(
    ("cohort", "survivors"), [(COHORT, (0, 1)), (COHORT, (0, 1, 2, 3)), (MODEL, (0, 1, 2))]
)
def test_another_set_of_the_same_attempt_is_refused(
    again: Again, cohort: bytes, survivors: tuple[int, ...]
) -> None:
    again().acknowledge(RUN, AT, COHORT, (0, 1, 2))
    with pytest.raises(ProtocolError, match="message 8: expected the set of survivors that was"):
        again().acknowledge(RUN, AT, cohort, survivors)


@pytest.mark.parametrize(("run", "at"), [(OTHER_RUN, AT), (RUN, Counter(3, 3))])
def test_another_attempt_has_a_set_of_its_own(again: Again, run: bytes, at: Counter) -> None:
    again().acknowledge(RUN, AT, COHORT, (0, 1, 2))
    again().acknowledge(run, at, COHORT, (0, 1))


# Answers


def test_an_attempt_without_an_answer_has_none(again: Again) -> None:
    assert again().answer(RUN, AT, b"asked") is None


def test_the_answer_comes_back_byte_for_byte(again: Again) -> None:
    answer = bytes(range(256))
    again().keep_answer(RUN, AT, b"asked", answer)
    assert again().answer(RUN, AT, b"asked") == answer


def test_another_question_gets_no_answer(again: Again) -> None:
    again().keep_answer(RUN, AT, b"asked", b"answer")
    with pytest.raises(ProtocolError, match="message 10: expected the set that was answered"):
        again().answer(RUN, AT, b"asked otherwise")


def test_an_answer_is_given_once(again: Again) -> None:
    again().keep_answer(RUN, AT, b"asked", b"answer")
    with pytest.raises(ProtocolError, match="message 11: expected no answer before"):
        again().keep_answer(RUN, AT, b"asked", b"another")
    assert again().answer(RUN, AT, b"asked") == b"answer"


def test_answers_of_other_attempts_are_apart(again: Again) -> None:
    again().keep_answer(RUN, AT, b"asked", b"answer")
    assert again().answer(OTHER_RUN, AT, b"asked") is None
    assert again().answer(RUN, Counter(3, 3), b"asked") is None


# The work of an open round


def work(store: SiteStore, kind: Kind = Kind.TRAIN, model: bytes = MODEL) -> Any:
    found = store.work(kind, model)
    return None if found is None else (found[0].tolist(), found[1].tolist())


def test_the_integers_of_an_open_round_come_back(again: Again) -> None:
    again().keep_work(Kind.TRAIN, MODEL, VALUES, LANES)
    assert work(again()) == (VALUES.tolist(), LANES.tolist())


def test_no_values_and_no_lanes_come_back_too(again: Again) -> None:
    again().keep_work(Kind.TRAIN, MODEL, VALUES[:0], LANES[:0])
    assert work(again()) == ([], [])


@pytest.mark.parametrize(("kind", "model"), [(Kind.EVALUATE, MODEL), (Kind.TRAIN, OTHER_MODEL)])
def test_work_is_of_one_kind_and_model(again: Again, kind: Kind, model: bytes) -> None:
    again().keep_work(Kind.TRAIN, MODEL, VALUES, LANES)
    assert work(again(), kind, model) is None


def test_only_the_work_of_the_last_round_is_kept(again: Again) -> None:
    again().keep_work(Kind.TRAIN, MODEL, VALUES, LANES)
    again().keep_work(Kind.EVALUATE, MODEL, VALUES[:0], LANES)
    assert work(again()) is None


def test_an_answer_forgets_the_work(again: Again) -> None:
    again().keep_work(Kind.TRAIN, MODEL, VALUES, LANES)
    again().keep_answer(RUN, AT, b"asked", b"answer")
    assert work(again()) is None


def test_a_refused_answer_forgets_nothing(again: Again) -> None:
    again().keep_answer(RUN, AT, b"asked", b"answer")
    again().keep_work(Kind.TRAIN, MODEL, VALUES, LANES)
    with pytest.raises(ProtocolError):
        again().keep_answer(RUN, AT, b"asked", b"another")
    assert work(again()) == (VALUES.tolist(), LANES.tolist())


# The state


def test_a_new_store_has_no_state(again: Again) -> None:
    assert again().states() == []


def test_the_last_state_comes_back_with_its_result(again: Again) -> None:
    again().keep_state(b"first", MODEL)
    again().keep_state(b"second", OTHER_MODEL)
    assert again().states() == [(b"second", OTHER_MODEL), (b"first", MODEL)]


def test_the_state_before_the_last_one_is_kept_and_none_before_it(again: Again) -> None:
    for number in range(4):
        again().keep_state(bytes([number]), bytes([number]) * 32)
    assert again().states() == [(b"\3", bytes([3]) * 32), (b"\2", bytes([2]) * 32)]
    rows = again()._connection.execute("SELECT COUNT(*) FROM states").fetchone()
    assert rows == (2,)  # the others are not there for a thief either


@pytest.mark.parametrize(
    ("result", "left"),
    [
        (MODEL, [(b"first", MODEL)]),
        (OTHER_MODEL, [(b"second", OTHER_MODEL), (b"first", MODEL)]),
        (bytes(32), []),
    ],
    ids=["the one before", "the last", "none of them"],
)
def test_a_sum_that_is_taken_back_takes_its_state_with_it(
    again: Again, result: bytes, left: list[tuple[bytes, bytes]]
) -> None:
    again().keep_state(b"first", MODEL)
    again().keep_state(b"second", OTHER_MODEL)
    again().take_back(result)
    assert again().states() == left


# Exact evaluations under privacy


ALL = (0, 1, 2, 3)


def test_a_model_is_opened_exactly_once(again: Again) -> None:
    again().open_exact(MODEL, ALL)
    for survivors in (None, ALL):
        with pytest.raises(ProtocolError, match="message 6: expected a model that was not eval"):
            again().check_exact(MODEL, survivors)
    with pytest.raises(ProtocolError, match="message 6: expected a model that was not eval"):
        again().open_exact(MODEL, ALL)


def test_the_first_set_is_the_only_one_for_every_model(again: Again) -> None:
    again().open_exact(MODEL, ALL)
    again().check_exact(OTHER_MODEL, None)
    for use in ("check_exact", "open_exact"):
        with pytest.raises(ProtocolError, match="message 8: expected the set of survivors of the"):
            getattr(again(), use)(OTHER_MODEL, (0, 1, 2))
    again().check_exact(OTHER_MODEL, ALL)
    again().open_exact(OTHER_MODEL, ALL)
    with pytest.raises(ProtocolError, match="message 8"):
        again().check_exact(bytes(32), (0, 1, 2))


def test_to_check_is_not_to_open(again: Again) -> None:
    again().check_exact(MODEL, (0, 1, 2))
    again().check_exact(MODEL, ALL)
    again().open_exact(MODEL, ALL)


# The file


def test_only_the_owner_may_read_the_file(path: Path) -> None:
    SiteStore(path).begin_run(RUN)
    for file in path.parent.iterdir():  # with the journal beside it
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


def test_a_write_is_synced_before_it_returns(path: Path) -> None:
    store = SiteStore(path)
    pragmas = [
        store._connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous")
    ]
    assert pragmas == ["wal", 2]  # 2 is FULL


def test_another_process_sees_what_was_kept(path: Path) -> None:
    with SiteStore(path) as store:
        store.begin_run(RUN)
        code = (
            "import sys; from pathlib import Path; from privacy.secagg_store import SiteStore;"
            "from privacy.errors import ProtocolError;\n"
            "try: SiteStore(Path(sys.argv[1])).begin_run(bytes(range(16)))\n"
            "except ProtocolError: print('refused')"
        )
        found = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
        )
    assert found.stdout == "refused\n"


def test_a_second_opening_leaves_the_file_locked_against_other_processes(path: Path) -> None:
    """The locks are the process's: to open and close the file once more would drop them."""
    with SiteStore(path), SiteStore(path):
        code = (
            "import sqlite3, sys;"
            "sqlite3.connect(sys.argv[1], timeout=0).execute('PRAGMA journal_mode = DELETE')"
        )
        found = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
        )
    assert "database is locked" in found.stderr


def test_what_a_killed_process_kept_is_there(path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path;"
        "from privacy.secagg_store import SiteStore; from privacy.wire import Counter;"
        "SiteStore(Path(sys.argv[1])).advance(1, Counter(3, 2));"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert killed.returncode == -9
    assert SiteStore(path).counters() == {1: AT}


def test_a_store_in_memory_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    SiteStore(None).begin_run(RUN)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", [b"no database at all " * 100, b"SQLite format 3\0" + b"x" * 99]
)
def test_another_file_is_refused_by_name(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ProtocolError, match="the protocol's store failed"):
        SiteStore(path)
    assert path.read_bytes() == content


def test_a_failing_store_ends_in_a_refusal(path: Path) -> None:
    store = SiteStore(path)
    store.close()
    with pytest.raises(ProtocolError, match=r"store failed .*nothing was sent") as caught:
        store.begin_run(RUN)
    assert isinstance(caught.value.__cause__, sqlite3.Error)


def test_leaving_the_context_closes_the_file(path: Path) -> None:
    with SiteStore(path) as store:
        store.begin_run(RUN)
    with pytest.raises(ProtocolError, match="store failed"):
        store.counters()


def test_an_error_in_a_write_is_not_swallowed_and_nothing_of_it_is_kept(path: Path) -> None:
    store = SiteStore(path)
    with pytest.raises(OverflowError):  # at the second row
        store.raise_counters({1: AT, 2: Counter(2**64, 0)})
    assert store.counters() == {}
    store.raise_counters({1: AT})
    store.close()
    assert SiteStore(path).counters() == {1: AT}
