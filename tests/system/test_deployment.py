"""Four hospitals and a coordinator, through the commands alone: one study from end to end.

On the real heart records where they are, else on made ones of the same columns.
"""

import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from privacy.ledger import Ledger
from tests.system.deployment import DATA, SITES, Deployment, Ended, Process, heart

ROUNDS = 5
# One patient more a hospital, of values that stand in no other file and are no plain numbers.
PLANTED = {"cleveland": 613.0625, "hungarian": 611.4375, "switzerland": 607.8125, "va": 605.5625}
BROKEN_AT, BROKEN = "cleveland", "977.3125,1,4,138,planted,0,1,125,1,3.6,2,1,3,4\n"
RECORDS = 150  # of each made file


class Study:
    """A study that has run to its end, and what each command said."""

    def __init__(self, folder: Path) -> None:
        self.deployment = Deployment(folder, heart(ROUNDS))
        self.files = {site: folder / f"processed.{site}.data" for site in SITES}

    def run(self) -> None:
        self.deployment.found(bend="keep=captured")
        self.enrolled = self.deployment.enrol(data=self.records)
        self.sealed = self.deployment.server("seal")
        self.plan = self.sealed.out.strip()
        with self.files[BROKEN_AT].open("a") as file:
            file.write(BROKEN)  # enrolled, the hospital has got one more record, and a bad one
        begun: dict[str, Process] = {site: self.deployment.start(site, self.plan) for site in SITES}
        self.started = {site: self.deployment.ended(one) for site, one in begun.items()}
        self.coordinator = self.deployment.ended(self.deployment.coordinator)
        self.files[BROKEN_AT].write_text(self.files[BROKEN_AT].read_text().removesuffix(BROKEN))
        self.exported = self.deployment.server("export")
        self.predicted = {
            site: self.deployment.ended(self.deployment.predict(site, self.files[site]))
            for site in SITES
        }

    def records(self, site: str) -> Path:
        """The hospital's own file, and one patient more."""
        real = DATA / f"processed.{site}.data"
        text = real.read_text() if real.is_file() else made_up(site)
        path = self.files[site]
        path.write_text(f"{text.rstrip()}\n61,1,4,138,{PLANTED[site]},0,1,125,1,3.6,2,1,3,4\n")
        return path


def made_up(site: str) -> str:
    """Records of the study's columns, in their order; a few findings were not made."""
    draw = random.Random(site)
    columns = heart(ROUNDS)["data"]["columns"]
    lines = []
    for _ in range(RECORDS):
        cells = [
            str(draw.randint(column["low"], column["high"]))
            if column["kind"] == "number"
            else draw.choice(column["values"])
            for column in columns.values()
        ]
        if draw.random() < 0.3:
            cells[list(columns).index("ca")] = "?"
        lines.append(",".join(cells))
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    made = Study(tmp_path_factory.mktemp("heart"))
    try:
        made.run()
        yield made
    finally:
        made.deployment.close()


def test_every_command_ends_well(study: Study) -> None:
    ended: list[Ended] = [
        *study.enrolled.values(),
        study.sealed,
        *study.started.values(),
        study.coordinator,
        study.exported,
        *study.predicted.values(),
    ]
    assert [one.code for one in ended] == [0] * len(ended), ended


def test_every_hospital_takes_the_same_model_home(study: Study) -> None:
    models = {
        (study.deployment.path(where) / "model.safetensors").read_bytes()
        for where in (*(f"{site}/model" for site in SITES), "coordinator/export")
    }
    assert len(models) == 1
    for site in SITES:
        said = json.loads((study.deployment.path(site) / "model" / "model.json").read_text())
        assert said["computed_here"] is True


def test_each_hospital_uses_the_model_on_its_own_records(study: Study) -> None:
    for site in SITES:
        lines = (study.deployment.path(site) / "predictions.csv").read_text().splitlines()
        assert len(lines) == 1 + len(study.files[site].read_text().splitlines())


def test_the_coordinators_folder_and_what_it_was_sent_hold_no_record(study: Study) -> None:
    captured = study.deployment.path("captured")
    files = {captured: captured.read_bytes(), **files_of(study.deployment.path("coordinator"))}
    assert {"books.db", "rounds.db", "flower.db", "coordinator.log"} <= {one.name for one in files}
    for value in PLANTED.values():
        forms = (str(value).encode(), struct.pack("<f", value), struct.pack("<d", value))
        assert not [path for path, held in files.items() if any(form in held for form in forms)]
        own = files_of(study.deployment.folder, "processed.*")
        assert any(forms[0] in held for held in own.values())
    sent = 0
    for site in SITES:  # all of it was captured: what each site says that it sent
        notes = json.loads(study.deployment.site(site, "audit", "--json").out)["notes"]
        sent += sum(note["bytes"] for note in notes if note["kind"] in ("letter", "sent"))
    assert len(files[captured]) > sent
    assert files[captured].count(b'"kind":"approve"') == len(SITES)


def test_no_round_depends_on_a_record_that_breaks_the_contract(study: Study) -> None:
    log = (study.deployment.path(BROKEN_AT) / "site.log").read_text()
    assert "records that break the contract and are left out: 1" in log
    assert "refused" not in log
    for held in files_of(study.deployment.path("coordinator")).values():
        assert b"977.3125" not in held
    with Ledger(study.deployment.path(BROKEN_AT) / "ledger.db") as ledger:
        assert len(ledger.rows()) == 1 + ROUNDS + 1  # the policy, the rounds, one evaluation


def test_a_hospitals_keys_are_nowhere_else(study: Study) -> None:
    for site in SITES:
        own = study.deployment.path(site)
        others = {
            path: held
            for path, held in files_of(study.deployment.folder).items()
            if own not in path.parents
        }
        for name in ("identity.key", "node.key", "split.key"):
            path = own / name
            assert path.stat().st_mode & 0o777 == 0o600
            secret = max(path.read_bytes().splitlines(), key=len)  # of PEM, without its frame
            assert len(secret) > 40
            assert not [other for other, held in others.items() if secret in held]


def test_the_audit_accounts_for_every_byte(study: Study) -> None:
    audit = study.deployment.site("va", "audit", "--json")
    assert audit.code == 0, audit
    found = json.loads(audit.out)
    sent = [note for note in found["notes"] if note["kind"] == "sent"]
    assert {note["approval"] for note in sent} == {study.plan}
    told = [note for note in found["notes"] if note["kind"] == "letter"]
    assert [note["letter"] for note in told] == ["look", "enrol", "approve"]
    assert found["bytes_sent"] == sum(note["bytes"] for note in (*told, *sent))
    vectors = [note for note in sent if note["message"] == "cohort"]
    assert [note["round"] for note in vectors] == [1, 2, 3, 4, 5, 5]  # the last: an evaluation
    # What was debited before: the policy, and one row an attempt.
    assert found["ledger_rows"] == 1 + len(vectors)
    # All rows but that of the receipt which ended the study.
    assert found["signed_rows"] == found["rows"] - 1


def test_a_study_that_is_over_needs_no_coordinator(study: Study) -> None:
    again = study.deployment.site("va", "start")
    assert (again.code, again.out) == (0, ""), again
    assert "failed" not in again.err  # nothing is looked for that is not there any more


def files_of(folder: Path, pattern: str = "*") -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob(pattern) if path.is_file()}
