"""simulations.part, whose coordinator kills itself beside a step that it has on disk.

    KILL_AT='KIND STEP COUNT SIDE' KILLED=FILE python -m tests.system.killed_part ...

KIND of sum (train, evaluate), the COUNT-th STEP of that name in it, SIDE before or after. The
first sum of a process is spared, but for steps of the study's end: so that each kill has its own.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import server.coordinator
from privacy.roster import Kind
from server.books import Books
from server.metrics import MetricsFile
from server.store import ServerStore
from simulations.part import main

WORDS = {Kind.TRAIN: "train", Kind.EVALUATE: "evaluate"}
# Every write that the coordinator's place in the protocol or in the study hangs on, in order; and
# of those that are made for evaluations alone, and once a study.
A_SUM = (
    ("keep_orders", 1),
    ("keep_counter", 1),
    ("begin_attempt", 1),
    ("keep_attempt", 1),  # what the survivors acknowledged
    ("keep_attempt", 2),  # the sum
    ("save", 1),
)
A_ROUND = (("keep_epsilon", 1), ("add", 1))
THE_END = (("end", 1), ("confirm_end", 1))
SIDES = ("before", "after")
POINTS = [
    *(
        f"{kind} {step} {n} {side}"
        for kind in WORDS.values()
        for step, n in A_SUM
        for side in SIDES
    ),
    *(f"evaluate {step} {n} {side}" for step, n in A_ROUND for side in SIDES),
    *(f"evaluate {step} {n} {side}" for step, n in THE_END for side in SIDES),
]


class Steps:
    """Counts the steps of each sum, and kills at one of them."""

    def __init__(self, point: str, killed: Path) -> None:
        self.point, self.killed = point, killed
        self.kind, self.sums, self.counts = "", 0, dict[str, int]()

    def wrap(self, where: Any, name: str) -> None:
        step = getattr(where, name)

        def stepping(*arguments: Any, **named: Any) -> Any:
            if name == "keep_orders":
                self.begin(WORDS[list(arguments[1])[-1][1]])
            self.counts[name] = self.counts.get(name, 0) + 1
            self.at(name, "before")
            result = step(*arguments, **named)
            self.at(name, "after")
            return result

        setattr(where, name, stepping)

    def begin(self, kind: str) -> None:
        self.kind, self.counts = kind, {}
        self.sums += 1

    def at(self, name: str, side: str) -> None:
        ends = name in dict(THE_END)
        point = f"{'evaluate' if ends else self.kind} {name} {self.counts[name]} {side}"
        if point == self.point and (ends or self.sums > 1):
            self.killed.write_text(point)
            os.kill(os.getpid(), signal.SIGKILL)


def run(step: Callable[[list[str]], int] = main) -> int:
    arguments = sys.argv[1:]
    if arguments[0] == "coordinator" and os.environ.get("KILL_AT"):
        steps = Steps(os.environ["KILL_AT"], Path(os.environ["KILLED"]))
        for name in ("keep_orders", "keep_counter", "keep_attempt"):
            steps.wrap(ServerStore, name)
        for name in ("begin_attempt", "keep_epsilon", "end", "confirm_end"):
            steps.wrap(Books, name)
        steps.wrap(MetricsFile, "add")
        steps.wrap(server.coordinator, "save")
    return step(arguments)


if __name__ == "__main__":
    sys.exit(run())
