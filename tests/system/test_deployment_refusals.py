"""Four hospitals at work, as one steward's policy says no, and as too few stay to go on.

The coordinator has certificates of the hospitals' own network.
"""

import json
import random
import re
import signal
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from privacy.accounting import Event
from privacy.ledger import Ledger
from server.certificates import Certificates, issue
from tests.server.conftest import DOCUMENT
from tests.system.deployment import Deployment, Ended, Process

SITES = ("bonn", "ulm", "jena", "graz")  # t = 3
SPARE = 3
STUDY: dict[str, Any] = {
    **DOCUMENT,
    "rounds": 5000,  # it is never over here
    "aggregation": {"spare_attempts": SPARE, "deadline_s": 3.0},
    "evaluation": {"every": 5000},
    "privacy": {**DOCUMENT["privacy"], "noise_multiplier": 60.0},
}
WRONG = "0" * 64  # the digest of no plan


class Course:
    """What happens, in order; the tests look at what is left of it."""

    def __init__(self, folder: Path) -> None:
        self.deployment = Deployment(folder, STUDY, SITES)
        self.processes: dict[str, Process] = {}

    def run(self) -> None:
        deployment = self.deployment
        self.found(issue(deployment.path("network"), ["127.0.0.1"]))
        enrolled = deployment.enrol(data=self.records)
        assert not any(one.code for one in enrolled.values()), enrolled
        self.plan = deployment.server("seal").out.strip()

        own = self.policy.read_text()
        self.policy.write_text(own.replace("min_sites = 3", "min_sites = 5"))
        begun = {
            "bonn": deployment.start("bonn", self.plan, confirmed="ulm"),
            "ulm": deployment.start("ulm", WRONG),
            "graz": deployment.start("graz", self.plan),
        }
        self.refused = {site: deployment.ended(one) for site, one in begun.items()}
        self.approved = [one for one in SITES if (deployment.path(one) / "approval.json").exists()]

        now = datetime.now()
        closed = f"{now + timedelta(hours=6):%H:00}-{now + timedelta(hours=12):%H:00}"
        self.policy.write_text(f'hours = ["{closed}"]\n{own}')
        for site in SITES:
            self.start(site)
        deployment.until(lambda: bool(self.told_of("graz")), *self.processes.values())
        self.go_on("bonn", "ulm", "jena")
        self.paid_while_closed = self.paid("graz")
        self.refusal = self.warnings("graz")[0]
        self.told = self.told_of("graz")

        self.processes["graz"].send_signal(signal.SIGTERM)
        deployment.ended(self.processes["graz"])
        self.policy.write_text(own)
        self.start("graz")
        self.go_on("graz")

        for site in ("graz", "ulm"):
            self.processes.pop(site).kill()
        self.ended = {site: deployment.ended(one) for site, one in self.processes.items()}
        self.ended["ulm"] = deployment.ended(deployment.start("ulm", self.plan))  # in the minute
        self.coordinator = deployment.ended(deployment.coordinator)
        self.standing = json.loads(deployment.server("status", "--json").out)
        again = deployment.begin("fedward-server", "start", where="coordinator")
        self.ended["graz"] = deployment.ended(deployment.start("graz", self.plan))
        self.coordinator_again = deployment.ended(again)
        self.exported = deployment.server("export")

    def found(self, network: Certificates) -> None:
        deployment = self.deployment
        own = (network.authority, network.chain, network.key)
        given = [
            word
            for name, path in zip(("authority", "certificate", "key"), own, strict=True)
            for word in (f"--{name}", str(path))
        ]
        where = ("--host", "127.0.0.1", "--port", str(deployment.port))
        made = deployment.server("init", "study.toml", *where, *given)
        assert made.code == 0, made
        deployment.coordinator = deployment.serve()

    @property
    def policy(self) -> Path:
        return self.deployment.path("graz") / "policy.toml"

    def records(self, site: str) -> Path:
        draw = random.Random(site)
        rows = [f"{draw.randint(20, 90)},{draw.choice(('yes', 'no'))}" for _ in range(30)]
        path = self.deployment.path(f"{site}.csv")
        path.write_text("\n".join(["age,ill", *rows]) + "\n")
        return path

    def start(self, site: str) -> None:
        self.processes[site] = self.deployment.start(site, self.plan)

    def log(self, site: str) -> str:
        path = self.deployment.path(site) / "site.log"
        return path.read_text() if path.exists() else ""

    def warnings(self, site: str) -> list[str]:
        return re.findall(r"WARNING (.*)", self.log(site))

    def told_of(self, site: str) -> list[str]:
        """What the coordinator's log says of a site's refusals."""
        log = (self.deployment.path("coordinator") / "coordinator.log").read_text()
        return re.findall(rf"WARNING ({site} refused .*)", log)

    def go_on(self, *sites: str) -> None:
        """Wait until the sites have done two rounds more."""
        done = {site: self.log(site).count(" is done") for site in sites}
        self.deployment.until(
            lambda: all(self.log(site).count(" is done") >= done[site] + 2 for site in sites),
            self.deployment.coordinator,
            *self.processes.values(),
        )

    def paid(self, site: str) -> int:
        with Ledger(self.deployment.path(site) / "ledger.db") as ledger:
            return sum(isinstance(row.entry, Event) for row in ledger.rows())


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Course]:
    made = Course(tmp_path_factory.mktemp("refusals"))
    try:
        made.run()
        yield made
    finally:
        made.deployment.close()


def last_error(ended: Ended) -> str:
    """The one line of what went wrong last, which has one hint after it at most."""
    lines = ended.err.splitlines()
    place = max(n for n, line in enumerate(lines) if line.startswith("fedward-site: error: "))
    assert all(line.startswith("hint: ") for line in lines[place + 1 :])
    assert len(lines) <= place + 2
    assert "Traceback" not in ended.err
    return lines[place]


# --- before anything was approved ----------------------------------------------------------------


def test_too_many_hospitals_that_nobody_called_are_refused(course: Course) -> None:
    """Two of three; one may be left."""
    ended = course.refused["bonn"]
    assert ended.code == 3, ended
    assert "expected at most 1 of 3 other hospitals" in last_error(ended)
    assert "got 2: " in last_error(ended)


def test_a_digest_that_is_not_the_plans_is_refused(course: Course) -> None:
    ended = course.refused["ulm"]
    assert ended.code == 3, ended
    assert f"expected the plan {course.plan}, got another" in last_error(ended)


def test_a_study_below_the_policys_floor_is_refused_in_one_line(course: Course) -> None:
    ended = course.refused["graz"]
    assert ended.code == 3, ended
    assert "min_sites: expected >= 5 by this site's policy, got 3" in last_error(ended)


def test_nothing_was_approved_by_who_refused(course: Course) -> None:
    assert course.approved == []


# --- hours of work -------------------------------------------------------------------------------


def test_outside_of_its_hours_a_site_reads_and_spends_nothing(course: Course) -> None:
    assert course.paid_while_closed == 0
    assert course.paid("graz") > 0  # then it joined


def test_a_refusal_is_one_line_at_both_ends_and_its_reason_at_the_site_alone(
    course: Course,
) -> None:
    assert re.match(r"\w+ was refused: .*hours", course.refusal), course.refusal
    for line in course.told:
        assert re.fullmatch(
            r"graz refused \w+ by a privacy rule or its policy \(hint: its steward sees the reason "
            r"in its log; `fedward-site budget` shows what is left\)",
            line,
        ), line


# --- too few -------------------------------------------------------------------------------------


def test_a_study_in_which_too_few_answer_stops_with_a_reason(course: Course) -> None:
    assert course.coordinator.code == 4, course.coordinator
    assert "Traceback" not in course.coordinator.err
    assert course.standing["state"] == "stopped"
    assert course.standing["attempts"] == {"spent": SPARE + 1, "spare": SPARE}
    assert course.standing["why"]
    log = (course.deployment.path("coordinator") / "coordinator.log").read_text()
    assert course.standing["why"] in log


def test_every_site_is_told_that_it_stopped_also_who_was_away(course: Course) -> None:
    log = (course.deployment.path("coordinator") / "coordinator.log").read_text()
    assert re.findall(r"WARNING (\w+) was not there to be told", log) == ["graz"]
    for site, ended in course.ended.items():
        assert ended.code == 4, (site, ended)
        assert "the study has stopped" in last_error(ended)
        assert (course.deployment.path(site) / "model" / "model.safetensors").exists()
    assert course.coordinator_again.code == 4, course.coordinator_again


def test_the_model_of_the_last_round_is_taken_home(course: Course) -> None:
    assert course.exported.code == 0, course.exported
    card = (course.deployment.path("coordinator") / "export" / "card.md").read_text()
    done = course.standing["rounds"]["done"]
    assert done > 3
    assert f"{done} of 5000" in card
