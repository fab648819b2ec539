"""What a site does before and after the rounds of a study; the rounds are tests/system's."""

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import client.fleet
from client import correspondence, station
from client.fleet import Fleet
from client.journal import Journal
from client.leaving import leavable, leave
from client.masked import Participant
from client.station import Ended, work
from client.training import Trainer
from privacy.errors import DataError, FedwardError, PrivacyError, ProtocolError
from privacy.keys import Identity
from privacy.keys import identity as from_secret
from shared_models.notice import Notice, Reason, write_notice
from shared_models.strategies import read_state, state_bytes, state_hash
from tests.client.desk import Desk, Hospital, asked_for, join, open_desk
from tests.client.test_consent import Steward, ask
from tests.client.test_fleet import NODE, NOTHING, TAKEN, Line, answers, message


class Refusing:
    """A steward who says no, and keeps that there was a question."""

    def __init__(self) -> None:
        self.asked = 0

    def decide(self, *_: object) -> set[str]:
        self.asked += 1
        raise PrivacyError("not approved; nothing was sent")


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path / "coordinator", asked_for()) as one:
        yield one


@pytest.fixture
def site(desk: Desk, tmp_path: Path) -> Hospital:
    """One of four that have enrolled; the roster is sealed."""
    found = join(desk, tmp_path)[0]
    desk.seal()
    desk.asked.clear()
    return found


def refused(kind: type[FedwardError], folder: Path, words: str) -> list[str]:
    """Return what was told before a refusal."""
    told: list[str] = []
    with pytest.raises(kind, match=words):
        work(folder, Refusing(), told.append)
    return told


def test_a_folder_of_nobody_is_left_as_it_is(tmp_path: Path) -> None:
    refused(DataError, tmp_path, "expected the folder of an enrolled site")
    assert list(tmp_path.iterdir()) == []


def test_two_never_work_in_one_folder(desk: Desk, site: Hospital) -> None:
    lock = os.open(site.folder / "lock", os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(DataError, site.folder, "another fedward-site is at work")
    finally:
        os.close(lock)
    assert desk.asked == []


def test_a_site_that_has_left_asks_nobody(desk: Desk, site: Hospital) -> None:
    (site.folder / "left.json").write_text("{}")
    refused(PrivacyError, site.folder, "this site has left toy")
    assert desk.asked == []


def test_a_refusal_is_in_the_log_and_is_not_told_twice(desk: Desk, site: Hospital) -> None:
    told = refused(PrivacyError, site.folder, "not approved")
    assert told == []
    path = site.folder / "site.log"
    assert path.stat().st_mode & 0o777 == 0o600
    assert (
        path.read_text().splitlines()[-1].endswith("Z ERROR ended: not approved; nothing was sent")
    )
    assert desk.state("bonn") == "enrolled"


def test_a_policy_that_refuses_the_study_comes_before_the_steward(
    desk: Desk, site: Hospital
) -> None:
    path = site.folder / "policy.toml"
    path.write_text(path.read_text().replace("min_sites = 3", "min_sites = 5"))
    refused(PrivacyError, site.folder, "min_sites: expected >= 5 by this site's policy")
    assert desk.asked == []


def test_a_changed_policy_is_written_down_before_anything_is_done_under_it(
    site: Hospital,
) -> None:
    path = site.folder / "policy.toml"
    path.write_text(path.read_text() + "\n")
    refused(PrivacyError, site.folder, "not approved")
    assert noted(site, "policy") == []  # the same policy, in another form
    path.write_text(path.read_text().replace("epsilon = 4.0", "epsilon = 5.0"))
    refused(PrivacyError, site.folder, "not approved")
    assert len(noted(site, "policy")) == 1


def test_a_ceiling_that_is_too_low_leaves_nothing_to_approve(site: Hospital) -> None:
    path = site.folder / "policy.toml"
    path.write_text(path.read_text().replace("epsilon = 4.0", "epsilon = 3.9"))
    refused(PrivacyError, site.folder, "there is nothing to approve")


def test_a_log_that_was_cut_ends_it_before_anybody_is_asked(desk: Desk, site: Hospital) -> None:
    (site.folder / "journal.db").write_bytes(b"")
    refused(PrivacyError, site.folder, "journal")
    assert desk.asked == []


def test_a_ledger_that_is_shorter_than_the_log_says_ends_it_too(desk: Desk, site: Hospital) -> None:
    with Journal(site.folder / "journal.db") as journal:
        journal.note("sent", message="cohort", bytes=1, ledger=f"2/{'ab' * 32}")
    refused(PrivacyError, site.folder, "row")
    assert desk.asked == []


@pytest.mark.parametrize(("line", "threads"), [("", 1), ("cpu_threads = 3\n", 3)])
def test_a_site_trains_with_as_many_threads_as_its_policy_says(
    site: Hospital, monkeypatch: pytest.MonkeyPatch, line: str, threads: int
) -> None:
    path, before = site.folder / "policy.toml", torch.get_num_threads()
    path.write_text(line + path.read_text())
    seen: list[int] = []

    def made(*_: object) -> Trainer:
        seen.append(torch.get_num_threads())
        raise PrivacyError("seen")

    monkeypatch.setattr(station, "Trainer", made)
    torch.set_num_threads(4)
    try:
        with pytest.raises(PrivacyError, match="seen"):
            work(site.folder, Steward(), lambda _: None)
    finally:
        torch.set_num_threads(before)
    assert seen == [threads]


def test_who_leaves_while_it_trains_sends_no_vector(
    desk: Desk, site: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited = site.member.membership.model_copy(update={"node": NODE})
    (site.folder / "site.json").write_text(edited.model_dump_json())
    line = Line(threading.Event(), [message("query.cohort"), *[NOTHING] * 20], [TAKEN])

    class OnLine(Fleet):
        def serve(self, *given: Any, **more: Any) -> None:
            line.stop = given[2]
            self._channel = self._pulse = line
            super().serve(*given, **more)

    def trains(*_: object) -> bytes:
        leave(leavable(site.folder))
        return b"a vector"

    monkeypatch.setattr(station, "Fleet", OnLine)
    monkeypatch.setattr(client.fleet, "Channel", lambda *_: line)
    monkeypatch.setattr(Participant, "answer", trains)
    monkeypatch.setattr(correspondence, "TICK_S", 0.1)
    with pytest.raises(PrivacyError, match="this site has left toy"):
        work(site.folder, Steward(), lambda _: None)
    assert answers(line) == [PrivacyError.exit_code]
    assert noted(site, "sent") == []
    assert len(noted(site, "refused")) == 1


def notice(
    desk: Desk, site: Hospital, reason: Reason, own: bool = True, signer: Identity | None = None
) -> None:
    """Let the study end, with the plan's first model or with another that the site never had."""
    plan = ask(site, Steward()).plan.digest.hex()
    state = desk.folder.first()
    if not own:
        found = read_state(state, desk.folder.settings.parameters)
        found.model[0] += 1.0
        state = state_bytes(found)
    end = Notice.model_validate(
        {"plan": plan, "reason": reason, "model": state_hash(state).hex(), "released": {}}
    )
    message = write_notice(signer or desk.folder.identity(), end, state)
    (site.folder / "notice.bin").write_bytes(message)
    desk.asked.clear()


@pytest.mark.parametrize("own", [True, False])
def test_a_study_that_is_over_gives_the_model_without_asking_anybody(
    desk: Desk, site: Hospital, own: bool
) -> None:
    notice(desk, site, "finished", own)
    steward = Refusing()
    ended = work(site.folder, steward, lambda _: None)
    assert isinstance(ended, Ended)
    assert (steward.asked, desk.asked) == (0, [])
    assert sorted(path.name for path in ended.model.iterdir()) == [
        "card.md",
        "model.json",
        "model.safetensors",
    ]
    assert json.loads((ended.model / "model.json").read_text())["computed_here"] is own
    before = {path: path.read_bytes() for path in ended.model.iterdir()}
    work(site.folder, steward, lambda _: None)
    assert before == {path: path.read_bytes() for path in ended.model.iterdir()}


def test_a_study_that_stopped_is_an_error_and_leaves_its_model(desk: Desk, site: Hospital) -> None:
    notice(desk, site, "stopped")
    refused(ProtocolError, site.folder, "could not go on")
    assert (site.folder / "model" / "model.safetensors").exists()


def test_an_end_under_another_key_is_none(desk: Desk, site: Hospital) -> None:
    notice(desk, site, "finished", signer=from_secret(b"e" * 32))
    refused(ProtocolError, site.folder, "under the pinned key")
    assert not (site.folder / "model").exists()


def noted(site: Hospital, kind: str) -> list[str]:
    with Journal(site.folder / "journal.db") as journal:
        return [note.kind for note in journal.rows() if note.kind == kind]
