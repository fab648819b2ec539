"""Sites killed with SIGKILL in the midst of debit, training or sending, two at a time.

Both take part in studies of their own and debit one ledger, under one ceiling.
"""

import os
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from client.policy import adopt, load_policy
from privacy.accounting import Event
from privacy.ledger import Ledger

SCRIPT = Path(__file__).with_name("endless_site.py")
PHASES = (1, 2, 3)  # debit, train, send
WAIT_S = 120.0  # for a process to get as far as its kill, on a busy machine
POLICY = """
dataset = "ward"
[ceilings.ward]
unit = "record"
epsilon = 2.0
delta = 1e-5
"""


class Ward:
    """A site's folder, and one warm process that forks the sites which are killed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.started = folder, 0
        (folder / "policy.toml").write_text(POLICY)
        (folder / "sent").touch()
        with Ledger(folder / "ledger.db") as ledger:
            adopt(load_policy(folder / "policy.toml"), ledger)
        self.warm = subprocess.Popen(
            [sys.executable, SCRIPT, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def start(self, study: str) -> tuple[int, Path]:
        """Return the id of a new site's process, and the file in which it says where it is."""
        self.started += 1
        progress = self.folder / f"progress-{self.started}"
        progress.write_bytes(bytes(8))
        assert self.warm.stdin is not None
        assert self.warm.stdout is not None
        self.warm.stdin.write(f"{study} {self.started}\n")
        self.warm.stdin.flush()
        return int(self.warm.stdout.readline()), progress

    def failed(self) -> str:
        file = self.folder / "failed"
        return file.read_text() if file.exists() else ""

    def kill_two(self, draw: random.Random) -> None:
        """Start two sites and kill each at a drawn moment of a drawn phase."""
        aims = {
            self.start(study): (draw.randint(0, 2), draw.choice(PHASES), draw.uniform(0, 0.004))
            for study in ("ash", "elm")
        }
        end = time.monotonic() + WAIT_S
        while aims:
            assert time.monotonic() < end, "a site did not get as far as its kill"
            assert not self.failed(), self.failed()
            for (process, progress), (cycle, phase, delay) in list(aims.items()):
                if struct.unpack("<ii", progress.read_bytes()) >= (cycle, phase):
                    time.sleep(delay)
                    os.kill(process, signal.SIGKILL)
                    wait_until_gone(process)
                    del aims[process, progress]

    def stop(self) -> None:
        assert self.warm.stdin is not None
        self.warm.stdin.close()
        self.warm.wait(20)


def wait_until_gone(process: int) -> None:
    """Return when a killed process writes no more; whoever forked it reaps it at once."""
    end = time.monotonic() + WAIT_S
    while Path(f"/proc/{process}").exists():
        assert time.monotonic() < end
        time.sleep(0.001)


def kill_sites(folder: Path, pairs: int, seed: int) -> None:
    draw, ward, heads = random.Random(seed), Ward(folder), []
    try:
        for pair in range(1, pairs + 1):
            ward.kill_two(draw)
            with Ledger(folder / "ledger.db") as ledger:
                heads.append(ledger.verify(*heads))  # sound, and through every end there ever was
                debits = [row.key for row in ledger.rows() if isinstance(row.entry, Event)]
            sent = [line.split()[0] for line in (folder / "sent").read_text().splitlines()]
            assert len(sent) == len(set(sent)), "one debit paid for two releases"
            assert set(sent) <= set(debits), "something was released without its debit"
            assert len(debits) - len(sent) <= 2 * pair, "a kill cost more than one debit"
        assert len(sent) >= pairs  # they were at work
    finally:
        ward.stop()


def test_sites_killed_at_any_moment_release_nothing_without_its_debit(tmp_path: Path) -> None:
    kill_sites(tmp_path, pairs=4, seed=1)


@pytest.mark.soak
def test_two_hundred_killed_sites_release_nothing_without_its_debit(tmp_path: Path) -> None:
    kill_sites(tmp_path, pairs=100, seed=2)
