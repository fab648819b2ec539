"""What a steward sees of `start`: one line that says what is waited for, or a bar of the rounds.

Silent when stderr is no terminal: all of it is in the site's log too. It decides nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from client.consent import Steward
from client.packet import Packet
from client.screen import say
from client.site_log import Tell
from client.station import Watch, Watched


class _Quiet:
    """A steward whose questions are not drawn over."""

    def __init__(self, steward: Steward, progress: Progress) -> None:
        self._steward, self._progress = steward, progress

    def decide(self, packet: Packet, changes: Sequence[str], peers: Sequence[str]) -> set[str]:
        """As `client.consent.Steward`."""
        self._progress.stop()
        try:
            return self._steward.decide(packet, changes, peers)
        finally:
            self._progress.start()


@contextmanager
def watching(
    console: Console,
) -> Iterator[tuple[Tell, Watch, Callable[[Steward], Steward]]]:
    """Yield who is told of waits, who is told of rounds, and what keeps questions readable."""
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        refresh_per_second=2,  # a study takes days
        disable=not console.is_terminal,
        transient=True,
    )

    def tell(words: str) -> None:
        if console.is_terminal:  # else it is in the site's log
            say(console, words)

    task, turn = None, Lock()

    def watch(now: Watched) -> None:
        nonlocal task
        waits = f"waiting until {', '.join(now.waiting)} approve" if now.waiting else "rounds"
        with turn:
            if task is None:
                task = progress.add_task(waits, total=now.rounds)
            progress.update(task, completed=now.round, description=waits)

    with progress:
        yield tell, watch, lambda steward: _Quiet(steward, progress)
