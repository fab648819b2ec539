"""An approval: how many fingerprints must be compared, its signed record, and what asks again."""

import hashlib
import json
import stat
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

import client.approval
from client.approval import (
    Approval,
    changes,
    check_confirmed,
    holds,
    keep,
    load,
    peers_of,
    sign,
    unconfirmed_most,
)
from client.policy import Policy
from privacy import keys
from privacy.errors import DataError, PrivacyError
from privacy.roster import Member, Plan
from shared_models.plan import code_digest, make_plan, plan_document, roster_digest
from shared_models.roster_file import RosterFile, sign_roster
from shared_models.study import Study, parse_study

SERVER = keys.identity(bytes([99]) * 32)
NAMES = ("ash", "bonn", "cork", "delft", "essen")
NOW = datetime(2026, 3, 2, 13, 30, tzinfo=timezone(timedelta(hours=2)))


def site_key(name: str) -> keys.Identity:
    return keys.identity(name.encode().ljust(32, b"-"))


def study(**privacy: object) -> Study:
    return parse_study(
        {
            "name": "s",
            "task": "tabular",
            "rounds": 3,
            "data": {
                "target": "ill",
                "columns": {
                    "ill": {"kind": "category", "values": ["no", "yes"]},
                    "age": {"kind": "number", "low": 0, "high": 1},
                },
            },
            "model": {"name": "mlp", "hidden": []},
            "training": {"learning_rate": 0.1},
            "privacy": {
                "mode": "distributed",
                "epsilon": 4.0,
                "delta": 1e-5,
                "clipping_norm": 1.0,
                "expected_batch": 100,
                "records_max": 500,
                **privacy,
            },
        }
    )


def roster(
    names: Sequence[str] = NAMES, revoked: Sequence[str] = (), version: int = 1
) -> RosterFile:
    members = [Member(name, site_key(name).public, name in revoked) for name in names]
    return sign_roster("s", version, members, SERVER)


def plan(given: Study | None = None, who: RosterFile | None = None) -> Plan:
    return make_plan(given or study(), (who or roster()).roster(), 2, bytes(32))


def numbers(n: int, colluders: int | None = None) -> Plan:
    return Plan(bytes(32), n, 2, colluders=colluders)


# Which fingerprints must be compared


@pytest.mark.parametrize(
    ("n", "colluders", "distributed", "wanted", "most"),
    [
        (3, None, False, None, 0),
        (3, None, True, None, 0),
        (4, None, False, None, 1),
        (4, 0, False, None, 1),  # in mode local no noise hangs on others
        (4, 0, True, None, 0),
        (7, 1, True, None, 1),
        (7, 1, False, None, 2),
        (10, None, True, None, 3),
        (10, None, True, 1, 1),
        (10, None, True, 9, 3),  # a policy never asks for fewer
        (10, 2, True, 3, 2),
    ],
)
def test_how_many_may_be_left(
    n: int, colluders: int | None, distributed: bool, wanted: int | None, most: int
) -> None:
    policy = Policy(unconfirmed_max=wanted)
    assert unconfirmed_most(numbers(n, colluders), distributed, policy) == most
    peers = [f"site-{k}" for k in range(n - 1)]
    check_confirmed(numbers(n, colluders), distributed, peers, peers[most:], policy)
    with pytest.raises(PrivacyError, match=f"at most {most} of {n - 1} .*, got {most + 1}: site-0"):
        check_confirmed(numbers(n, colluders), distributed, peers, peers[most + 1 :], policy)


def test_with_three_sites_every_peer_must_be_confirmed() -> None:
    check_confirmed(numbers(3), False, ["bonn", "cork"], ["cork", "bonn"], Policy())
    with pytest.raises(PrivacyError, match=r"got 1: cork; nothing was approved") as refused:
        check_confirmed(numbers(3), False, ["bonn", "cork"], ["bonn"], Policy())
    assert refused.value.exit_code == 3
    assert "six words" in refused.value.hint


def test_a_name_that_is_no_peers_confirms_nothing() -> None:
    with pytest.raises(DataError, match=r"expected names of the other hospitals, got 'b\\xf6nn'"):
        check_confirmed(numbers(4), False, ["bonn", "cork", "delft"], ["bönn"], Policy())


def test_the_peers_are_the_others_that_are_not_revoked() -> None:
    assert peers_of(roster(revoked=["cork"], version=2), "bonn") == ("ash", "delft", "essen")


# The record


def signed(who: RosterFile | None = None, given: Study | None = None) -> Approval:
    who, given = who or roster(), given or study()
    return sign(site_key("ash"), given, plan(given, who), who, {"essen", "bonn", "cork"}, NOW)


def test_the_record_says_what_was_approved_and_when() -> None:
    approval = signed()
    assert approval.plan == plan().digest.hex()
    assert approval.study == study().digest()
    assert approval.roster == roster_digest(roster().roster())
    assert approval.code == code_digest()
    assert (approval.version, approval.revoked) == (1, ())
    assert approval.confirmed == ("bonn", "cork", "essen")
    assert approval.time == "2026-03-02T11:30:00Z"
    text = plan_document(study(), roster().roster(), 2, bytes(32))
    covered = json.loads(text)
    assert (covered["study"], covered["roster"], covered["code"]) == (
        approval.study, approval.roster, approval.code
    )  # fmt: skip


def test_it_is_read_back_as_it_was_kept(tmp_path: Path) -> None:
    path = tmp_path / "approval.json"
    (tmp_path / "approval.json.new").write_text("of a process that was killed")
    keep(signed(), path)
    assert load(path, site_key("ash").public) == signed()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["approval.json"]


def test_without_a_file_there_is_none(tmp_path: Path) -> None:
    assert load(tmp_path / "approval.json", site_key("ash").public) is None


def test_another_sites_approval_is_refused(tmp_path: Path) -> None:
    keep(signed(), tmp_path / "a")
    with pytest.raises(PrivacyError, match="that this site signed, found another"):
        load(tmp_path / "a", site_key("bonn").public)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("plan", "0" * 64),
        ("study", "0" * 64),
        ("roster", "0" * 64),
        ("code", "0" * 64),
        ("version", 2),
        ("revoked", ["cork"]),
        ("confirmed", ["bonn", "cork", "delft", "essen"]),
        ("time", "2026-03-02T11:30:01Z"),
    ],
)
def test_a_record_that_was_edited_is_refused(tmp_path: Path, key: str, value: object) -> None:
    document = json.loads(signed().model_dump_json())
    assert document[key] != value
    (tmp_path / "a").write_text(json.dumps({**document, key: value}))
    with pytest.raises(PrivacyError, match="that this site signed, found another") as refused:
        load(tmp_path / "a", site_key("ash").public)
    assert refused.value.hint


@pytest.mark.parametrize("text", ["", "{}", "[" * 100_000, "\ud800", "x" * 100_000])
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a").write_text(text, errors="surrogatepass")
    with pytest.raises(DataError, match="expected an approval"):
        load(tmp_path / "a", site_key("ash").public)


def test_a_record_that_cannot_be_written_leaves_the_older_one(tmp_path: Path) -> None:
    path = tmp_path / "approval.json"
    keep(signed(), path)
    (tmp_path / "approval.json.new").mkdir()
    with pytest.raises(DataError, match=r"cannot be written .*; the approval was not kept"):
        keep(signed(roster(revoked=["cork"], version=2)), path)
    assert load(path, site_key("ash").public) == signed()


# What asks again


def test_it_holds_for_what_was_approved() -> None:
    assert holds(signed(), plan().digest.hex(), roster())


def test_a_newer_roster_that_only_removes_sites_needs_no_new_approval() -> None:
    assert holds(signed(), plan().digest.hex(), roster(revoked=["cork"], version=2))


def test_a_roster_that_leaves_fewer_than_t_does() -> None:
    two = roster(revoked=["cork", "delft"], version=3)
    assert not holds(signed(), plan(who=two).digest.hex(), two)


def test_an_older_roster_or_a_site_that_came_back_does() -> None:
    second = roster(revoked=["cork"], version=2)
    approval = signed(second)
    assert holds(approval, plan().digest.hex(), second)
    assert not holds(approval, plan().digest.hex(), roster())
    assert not holds(approval, plan().digest.hex(), roster(version=3))
    assert not holds(approval, plan().digest.hex(), roster(revoked=["essen"], version=3))


def test_a_changed_study_does() -> None:
    other = study(epsilon=4.5)
    assert not holds(signed(), plan(other).digest.hex(), roster())
    assert changes(signed(), other, roster()) == ("the study",)


@pytest.mark.parametrize(
    "names",
    [
        ("bonn", "ash", "cork", "delft", "essen"),
        ("ash", "bonn", "cork", "delft", "eupen"),
        (*NAMES, "eupen"),
    ],
)
def test_other_hospitals_do(names: tuple[str, ...]) -> None:
    who = roster(names, version=2)
    assert not holds(signed(), plan(who=who).digest.hex(), who)
    assert not holds(signed(), plan().digest.hex(), who)
    assert changes(signed(), study(), who) == ("the hospitals or their keys",)


def test_a_changed_threshold_does() -> None:
    text = plan_document(study(), roster().roster(), 2, bytes(32))
    assert hashlib.sha256(text.encode()).digest() == plan().digest
    lower = text.replace('"t":4', '"t":3')
    assert lower != text
    assert not holds(signed(), hashlib.sha256(lower.encode()).hexdigest(), roster())
    assert changes(signed(), study(), roster()) == (
        "the plan's thresholds, its first model, or a revocation",
    )


def test_changed_code_does(monkeypatch: pytest.MonkeyPatch) -> None:
    approval = signed()
    monkeypatch.setattr("shared_models.plan.code_digest", lambda: "ab" * 32)
    monkeypatch.setattr(client.approval, "code_digest", lambda: "ab" * 32)
    assert not holds(approval, plan().digest.hex(), roster())
    assert changes(approval, study(), roster()) == ("the code",)


def test_the_time_is_that_of_utc() -> None:
    noon = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)
    approval = sign(site_key("ash"), study(), plan(), roster(), (), noon)
    assert approval.time == "2026-07-01T12:00:00Z"
