"""A coordinator that is killed beside any step that it has on disk: the model stays as it was.

The sites are real and stay where they are, as hospitals do. The reference is the same study in one
process, which nothing disturbs.
"""

import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from privacy.accounting import Event
from privacy.errors import AbsentError
from privacy.ledger import Ledger
from server.checkpoint import Checkpoint, load
from shared_models.model_file import model_bytes
from shared_models.registry import count_parameters
from shared_models.steps import evaluation_due
from shared_models.study import Study, parse_study
from simulations import deployed
from simulations.folder import COORDINATOR, SITES
from simulations.pool import gather
from simulations.run import simulate
from tests.server.conftest import DOCUMENT
from tests.system.killed_part import POINTS

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 120.0  # for a coordinator to get as far as its kill, on a busy machine
SAMPLE = ("train keep_attempt 1 before", "train keep_attempt 2 before", "evaluate save 1 after")


def study_for(kills: int) -> Study:
    """A study of mode distributed, where each attempt is a draw and a debit of its own."""
    return parse_study(
        {
            **DOCUMENT,
            "rounds": 2 * kills + 2,
            "training": {"learning_rate": 0.5},
            "privacy": {
                "mode": "distributed",
                "noise_multiplier": 8.0,
                "delta": 1e-5,
                "clipping_norm": 1.0,
                "expected_batch": 16,
                "records_max": 60,
            },
            "aggregation": {"spare_attempts": 2},  # no kill may cost one
            "evaluation": {"every": 2},
            "simulation": {"sites": 3},
        }
    )


def table(path: Path) -> Path:
    rows = [f"{20 + number % 60},{'yes' if number % 60 > 30 else 'no'}" for number in range(120)]
    path.write_text("\n".join(["age,ill", *rows]) + "\n")
    return path


class Course:
    """One study, killed once at each of some points."""

    def __init__(
        self, folder: Path, points: Sequence[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.study, self.folder, self.points = study_for(len(points)), folder, points
        self.records = table(folder / "records.csv")
        self.killed = folder / "killed"
        self.patch = monkeypatch
        monkeypatch.setattr(deployed, "MODULE", "tests.system.killed_part")
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.setenv("KILLED", str(self.killed))
        self.sites = [name for name, _ in gather(self.study, self.records).sites]
        self.costs: dict[str, str] = {}

    def run(self) -> None:
        at = (self.study, self.records, self.folder / "deploy", self.sites)
        with deployed.Deployment(*at) as deployment:
            for number, point in enumerate(self.points):
                self.patch.setenv("KILL_AT", point)
                self.killed.unlink(missing_ok=True)
                before = self.debits(), time.monotonic()
                with suppress(AbsentError):  # it may be killed before anybody looks
                    deployment.serve()
                if not number:
                    for site in self.sites:
                        deployment.start(site)
                    deployment.seal()
                process = deployment.processes[COORDINATOR]
                assert process.wait(WAIT_S) == -signal.SIGKILL, point
                assert self.killed.read_text() == point
                self.costs[point] = f"{time.monotonic() - before[1]:.1f} s"
            self.patch.delenv("KILL_AT")
            deployment.serve()
            deployment.finish(lambda: None)

    def debits(self) -> dict[str, Counter[tuple[str, int]]]:
        """What each site has debited: how often each round, to train and to evaluate."""
        found = {}
        for site in self.sites:
            path = self.folder / "deploy" / SITES / site / "ledger.db"
            keys: list[str] = []
            if path.exists():
                with Ledger(path) as ledger:
                    keys = [row.key for row in ledger.rows() if isinstance(row.entry, Event)]
            parts = [key.split("/") for key in keys]
            found[site] = Counter((part[1], int(part[2])) for part in parts)
        return found

    def final(self) -> Checkpoint:
        folder = self.folder / "deploy" / COORDINATOR / "checkpoint"
        found = load(folder, count_parameters(self.study))
        assert found is not None
        return found


def kill_and_compare(folder: Path, points: Sequence[str], patch: pytest.MonkeyPatch) -> None:
    course = Course(folder, points, patch)
    course.run()
    whole = simulate(course.study, course.records, folder / "whole")
    final = course.final()
    assert model_bytes(course.study, final.state) == whole.model
    assert final.spent_attempts == 0
    rounds = range(1, course.study.rounds + 1)
    due = {("train", number) for number in rounds}
    due |= {("evaluate", number) for number in rounds if evaluation_due(course.study, number)}
    again = set[tuple[str, int]]()
    for site, debits in course.debits().items():
        assert set(debits) == due, site  # nothing was read without a debit
        assert max(debits.values()) <= 2, site  # no kill costs more than the attempt it fell into
        again |= {one for one, times in debits.items() if times > 1}
    assert len(again) <= len(points)
    for point, cost in course.costs.items():
        sys.stdout.write(f"{point}: killed after {cost}\n")
    sys.stdout.write(f"{len(points)} kills, {len(again)} sums debited twice: {sorted(again)}\n")


def test_a_coordinator_killed_beside_a_step_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_and_compare(tmp_path, SAMPLE, monkeypatch)


@pytest.mark.soak
def test_a_coordinator_killed_beside_every_step_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_and_compare(tmp_path, POINTS, monkeypatch)
