"""Four hospitals and a coordinator at work, as networks, disks, clocks and certificates fail.

After each fault the rounds go on: where something must be started again, that is the coordinator.
"""

import json
import random
import re
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from privacy.accounting import Event
from privacy.ledger import Ledger
from tests.server.conftest import DOCUMENT
from tests.system.cable import Cable
from tests.system.deployment import Deployment, Process

SITES = ("bonn", "ulm", "jena", "graz")
STUDY: dict[str, Any] = {
    **DOCUMENT,
    "rounds": 5000,  # it is never over here
    "aggregation": {"spare_attempts": 500, "deadline_s": 4.0},
    "evaluation": {"every": 5000},
    "privacy": {**DOCUMENT["privacy"], "noise_multiplier": 60.0},
}
FULL_BYTES = 8192  # no file grows beyond: less than what a database has to write


class System:
    """The deployment; the sites reach the coordinator through a cable, and know no other way."""

    def __init__(self, folder: Path) -> None:
        self.deployment = deployment = Deployment(folder, STUDY, SITES)
        self.path = folder
        deployment.found()
        enrolled = deployment.enrol(data=self.records)
        assert not any(one.code for one in enrolled.values()), enrolled
        self.plan = deployment.server("seal").out.strip()
        self.cable = Cable(deployment.port)
        self.processes: dict[str, Process] = {}
        for site in SITES:
            path = folder / site / "site.json"
            member = json.loads(path.read_text())
            path.write_text(json.dumps({**member, "port": self.cable.port}))
            bend = "clock=600" if site == "ulm" else ""
            self.processes[site] = deployment.start(site, self.plan, bend=bend)
        self.go_on()

    def close(self) -> None:
        self.cable.close()
        self.deployment.close()

    def records(self, site: str) -> Path:
        draw = random.Random(site)
        rows = [f"{draw.randint(20, 90)},{draw.choice(('yes', 'no'))}" for _ in range(30)]
        path = self.path / f"{site}.csv"
        path.write_text("\n".join(["age,ill", *rows]) + "\n")
        return path

    def log(self, site: str) -> str:
        path = self.path / site / "site.log"
        return path.read_text() if path.exists() else ""

    def rounds(self, site: str) -> list[int]:
        return [int(one) for one in re.findall(r"round (\d+) of", self.log(site))]

    def go_on(self, *sites: str) -> None:
        """Wait until the sites, or all, have done two rounds more."""
        there = sites or SITES
        before = {site: len(self.rounds(site)) for site in there}
        self.deployment.until(
            lambda: all(len(self.rounds(site)) >= before[site] + 2 for site in there),
            self.deployment.coordinator,
            *self.processes.values(),
        )

    def warnings(self, site: str) -> list[str]:
        return re.findall(r"WARNING (.*)", self.log(site))

    def standing(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.deployment.server("status", "--json").out)
        return found

    def vectors(self, site: str) -> set[int]:
        """The rounds of which a site sent its vector."""
        audit = self.deployment.site(site, "audit", "--json")
        assert audit.code == 0, audit
        notes = json.loads(audit.out)["notes"]
        return {
            one["round"]
            for one in notes
            if one.get("message") == "cohort" and one["kind"] == "sent"
        }

    def paid(self, site: str) -> set[int]:
        """The rounds of which a site has debited an attempt."""
        with Ledger(self.path / site / "ledger.db") as ledger:
            keys = [row.key for row in ledger.rows() if isinstance(row.entry, Event)]
        return {int(key.split("/")[2]) for key in keys}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    made = System(tmp_path_factory.mktemp("outages"))
    yield made
    made.close()


def fill(process: Process, limit: int = FULL_BYTES) -> None:
    """Let the system refuse to let any file of a process grow, as a full disk does."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def free(process: Process) -> None:
    fill(process, resource.RLIM_INFINITY)


def told(system: System, site: str, words: str) -> list[str]:
    return [line for line in system.warnings(site) if words in line]


# --- the network ---------------------------------------------------------------------------------


def cut_and_mend(running: System, at_least_s: float) -> None:
    before = {site: len(told(running, site, "trying again")) for site in SITES}
    spent = running.standing()["attempts"]["spent"]
    running.cable.cut()
    running.deployment.until(
        lambda: all(len(told(running, site, "trying again")) > before[site] for site in SITES)
    )
    until = time.monotonic() + at_least_s
    running.deployment.until(
        lambda: time.monotonic() > until and running.standing()["attempts"]["spent"] > spent + 1
    )
    running.cable.mend()
    running.go_on()
    for site in SITES:
        lines = told(running, site, "trying again")[before[site] :]
        assert len(set(lines)) == len(lines) <= 2, lines  # reset, and then refused
        assert all(f"127.0.0.1:{running.cable.port}: cannot be reached" in one for one in lines)


def test_a_network_that_is_cut_ends_nothing(running: System) -> None:
    """Longer than a round may take: attempts fail meanwhile. Each site says it once."""
    cut_and_mend(running, 0.0)


@pytest.mark.soak
def test_a_network_that_is_cut_for_a_minute_ends_nothing(running: System) -> None:
    cut_and_mend(running, 60.0)


# --- clocks --------------------------------------------------------------------------------------


def test_a_clock_that_goes_wrong_shuts_one_site_out_until_it_is_set(running: System) -> None:
    """Ten minutes ahead, while it works; the others go on without it."""
    ulm = running.processes["ulm"]
    ulm.send_signal(signal.SIGUSR1)
    running.deployment.until(lambda: bool(told(running, "ulm", "this machine's clock is")))
    there = len(running.rounds("ulm"))
    running.go_on("bonn", "jena", "graz")
    assert len(running.rounds("ulm")) == there
    (line,) = told(running, "ulm", "this machine's clock is")
    ahead = re.search(r"clock is (\d+) s fast; the server refuses its requests \(hint: set", line)
    assert ahead is not None
    assert abs(int(ahead[1]) - 600) <= 5  # the Date header is made once a second
    ulm.send_signal(signal.SIGUSR2)
    running.go_on()


# --- certificates --------------------------------------------------------------------------------


def test_a_certificate_that_expired_is_renewed_by_a_restart(running: System) -> None:
    running.deployment.coordinator.kill()
    running.deployment.coordinator.wait()
    running.deployment.coordinator = running.deployment.serve("expired")
    expired = "the server's certificate has expired (hint: look at this machine's clock; the"
    running.deployment.until(
        lambda: all(told(running, site, expired) for site in SITES), *running.processes.values()
    )
    ended = running.deployment.site("jena", "doctor")
    assert ended.code == 2  # what answers there is not to be waited for
    assert "the server's certificate has expired" in " ".join(ended.out.split())
    running.deployment.coordinator.kill()
    running.deployment.coordinator.wait()
    running.deployment.coordinator = running.deployment.serve()
    running.go_on()
    for site in SITES:
        assert len(told(running, site, expired)) == 1


# --- disks ---------------------------------------------------------------------------------------


def test_a_full_disk_at_a_hospital_ends_its_part_and_no_round(running: System) -> None:
    graz = running.processes["graz"]
    fill(graz)
    ended = running.deployment.ended(graz)
    assert ended.code == 2, ended
    *_, line, hint = ended.err.splitlines()
    assert re.fullmatch(
        r"fedward-site: error: graz/\w+\.db: cannot be read or written \(.*\); nothing was \w+",
        line,
    )
    assert hint.startswith("hint: make room on the disk")
    assert "Traceback" not in ended.err
    del running.processes["graz"]
    running.go_on("bonn", "ulm", "jena")
    running.processes["graz"] = running.deployment.start("graz", running.plan)  # room was made
    running.go_on()


def test_a_full_disk_at_the_coordinator_ends_it_and_no_hospital_has_to_do_anything(
    running: System,
) -> None:
    coordinator = running.deployment.coordinator
    fill(coordinator)
    ended = running.deployment.ended(coordinator)
    assert ended.code == 2, ended
    errors = [line for line in ended.err.splitlines() if "ERROR" in line or "error" in line]
    assert len(errors) == 1, ended.err
    assert re.match(
        r"fedward-server: error: coordinator/\S+: cannot be (read or )?written", errors[0]
    )
    assert "Traceback" not in ended.err
    running.deployment.coordinator = running.deployment.serve()  # room was made
    running.go_on()


# --- what is left of it --------------------------------------------------------------------------


def test_after_everything_logs_hold_and_every_vector_was_paid_for(running: System) -> None:
    standing = running.standing()
    for site in SITES:
        assert running.vectors(site) <= running.paid(site)
    assert standing["state"] == "running"
    done = running.rounds("bonn")
    assert len(set(done)) == len(done) >= 12  # none was done twice
    assert standing["attempts"]["spent"] < 200
    for site, process in running.processes.items():
        process.send_signal(signal.SIGTERM)
        ended = running.deployment.ended(process)
        assert ended.code == 130, (site, ended)
        assert "Traceback" not in ended.err
