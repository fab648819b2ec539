"""What a steward sees of `start` while it works: the program as typed, and work that is played."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from client import cli, station
from client.consent import Steward
from client.station import Watched
from client.steward import Asked
from tests.client.steward import site_program

HIDDEN, BACK = "\x1b[?25l", "\x1b[?25h"  # the cursor, while something is drawn that moves
Tell = Callable[[str], None]
Watch = Callable[[Watched], None]
Play = Callable[..., str]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Play:
    """play(work, terminal=True): what stands on the screen after work(steward, tell, watch)."""

    def played(work: Callable[..., None], terminal: bool = True) -> str:
        screen = io.StringIO()
        console = Console(file=screen, force_terminal=terminal, width=80, color_system=None)

        def at_work(
            folder: Path, steward: Steward, tell: Tell, watch: Watch, meant: str | None
        ) -> SimpleNamespace:
            work(screen, steward, tell, watch)
            return SimpleNamespace(words="the study has ended", model="model")

        monkeypatch.setattr(cli, "_console", lambda: console)
        monkeypatch.setattr(cli, "_ready", lambda *_: None)
        monkeypatch.setattr(station, "work", at_work)
        ended = site_program(monkeypatch, capfd)("start")
        assert (ended.code, ended.out) == (0, ""), ended
        return screen.getvalue()

    return played


def asking(monkeypatch: pytest.MonkeyPatch, screen: io.StringIO) -> list[str]:
    """What the screen shows when the steward is asked, and when she has answered."""
    seen: list[str] = []

    def decide(self: Asked, packet: object, changes: Sequence[str], peers: object) -> set[str]:
        seen.append(screen.getvalue())
        return {"ulm"}

    monkeypatch.setattr(Asked, "decide", decide)
    return seen


def test_what_is_waited_for_and_the_rounds_stand_on_a_terminal(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(screen: io.StringIO, steward: Steward, tell: Tell, watch: Watch) -> None:
        tell("waiting until the coordinator seals the roster")
        watch(Watched(0, 5, ("graz", "ulm")))
        seen = asking(monkeypatch, screen)
        assert steward.decide(None, (), ()) == {"ulm"}  # type: ignore[arg-type]
        assert "waiting until the coordinator seals the roster\n" in seen[0]
        assert "waiting until graz, ulm approve" in seen[0]
        assert 0 < seen[0].count(HIDDEN) == seen[0].count(BACK)  # nothing is drawn over a question
        watch(Watched(3, 5, ()))

    shown = play(work)
    assert shown.index("graz, ulm approve") < shown.index("rounds ")
    assert "3/5" in shown
    assert "the study has ended\nthe model, its card and what it cost are in model\n" in shown


def test_a_log_file_has_the_end_alone(play: Play) -> None:
    def work(screen: io.StringIO, steward: Steward, tell: Tell, watch: Watch) -> None:
        tell("waiting until the coordinator seals the roster")
        watch(Watched(3, 5, ()))

    assert play(work, terminal=False) == (
        "the study has ended\nthe model, its card and what it cost are in model\n"
    )
