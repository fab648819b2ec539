"""A whole study of the coordinator's program, with real hospitals in threads and real TLS."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server import desk
from server.books import Books
from server.checkpoint import load
from server.coordinator import Coordinator
from server.folder import BOOKS, CHECKPOINT, Folder
from tests.server.conftest import DISTRIBUTED
from tests.server.hospital import Hospital

NAMES = ("bonn", "ulm", "jena")
WAIT_S = 60.0


class Running:
    """A coordinator at work in a thread, and what it ended with."""

    def __init__(self, folder: Folder) -> None:
        self.coordinator = Coordinator(folder)
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        end = time.monotonic() + WAIT_S
        while not self.coordinator.standing().serving:
            assert self._thread.is_alive(), self.error
            assert time.monotonic() < end
            time.sleep(0.05)

    def _run(self) -> None:
        try:
            self.coordinator.run()
        except BaseException as error:
            self.error = error
        finally:
            self.coordinator.close()

    def wait(self) -> BaseException | None:
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        return self.error


@pytest.fixture
def made(make_folder: Callable[..., Folder], tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """made(rounds=2): a folder, and hospitals that have a token."""
    ended: list[Hospital] = []

    def make(names: tuple[str, ...] = NAMES, **changes: object) -> tuple[Folder, list[str]]:
        folder = make_folder(**changes)
        books = Books(folder / BOOKS)
        tokens = [desk.invite(folder, books, name, 1)[0] for name in names]
        books.close()
        return folder, tokens

    yield make
    for hospital in ended:
        hospital.end()


def seal(folder: Folder) -> None:
    books = Books(folder / BOOKS)
    desk.seal(folder, books)
    books.close()


def enrol(tokens: list[str], tmp_path: Path) -> list[Hospital]:
    found = []
    for number, token in enumerate(tokens):
        path = tmp_path / f"site-{number}"
        path.mkdir(mode=0o700)
        found.append(Hospital(token, path))
        found[-1].enrol()
    return found


@pytest.mark.parametrize("mode", ["local", "distributed"])
def test_a_study_runs_to_its_end(made: Any, tmp_path: Path, mode: str) -> None:
    changes = {"privacy": DISTRIBUTED, "training": {"learning_rate": 0.5}}
    folder, tokens = made(**(changes if mode == "distributed" else {}))
    running = Running(folder)
    hospitals = enrol(tokens, tmp_path)
    seal(folder)
    for hospital in hospitals:
        hospital.approve([name for name in NAMES if name != hospital.name])
        hospital.work()
    assert running.wait() is None
    state = load(folder / CHECKPOINT, folder.settings.parameters)
    assert state is not None
    assert state.state.round == folder.study.rounds
    for hospital in hospitals:
        assert hospital.notice is not None
        assert hospital.notice.reason == "finished"
        assert hospital.own == hospital.state
    for hospital in hospitals:
        hospital.end()
