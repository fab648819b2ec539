"""Enrolment against a real desk: what a site checks before it tells anything, and what it keeps."""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.charge import balance, study_charge
from client.enrolment import enrol
from client.journal import Journal
from client.membership import load
from client.policy import check, load_policy
from client.proposal import proposal
from privacy.errors import AbsentError, DataError, FedwardError, PrivacyError, StudyError
from privacy.keys import SIGNATURE_BYTES
from server.office import AUTHORITY_PATH
from shared_models.invitation import write_token
from shared_models.letters import PATH
from tests.client.desk import Desk, asked_for, join, open_desk, table
from tests.server.conftest import DISTRIBUTED, free_port


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with open_desk(tmp_path_factory.mktemp("desk") / "coordinator", asked_for()) as one:
        yield one


@pytest.fixture
def desk(opened: Desk) -> Desk:
    """The module's one desk, for a site that it has not heard of."""
    opened.asked.clear()
    opened.name = f"site-{len(opened.books.page().news())}"
    return opened


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return table(tmp_path / "records.csv")


def silent(_: str) -> None:
    """Nobody listens."""


def refused(kind: type[FedwardError], token: str, data: Path, folder: Path, words: str) -> str:
    """Return the one line of a refusal, after which nobody is enrolled."""
    with pytest.raises(kind, match=words) as found:
        enrol(token, data, folder, silent)
    assert not (folder / "site.json").exists()
    text = str(found.value)
    assert "\n" not in text
    return text


def test_a_site_enrols_under_keys_that_it_made(desk: Desk, data: Path, tmp_path: Path) -> None:
    found = enrol(desk.invite(), data, tmp_path / "bonn", silent)
    member = load(tmp_path / "bonn")
    assert member.membership == found.member.membership
    assert desk.state() == "enrolled"
    one = desk.books.page().sites[-1]
    assert (one.site, one.node) == (desk.name, member.membership.node)
    assert (tmp_path / "bonn").stat().st_mode & 0o777 == 0o700
    for name in ("identity.key", "node.key", "split.key"):
        path = tmp_path / "bonn" / name
        assert path.stat().st_mode & 0o777 == 0o600
        assert max(path.read_bytes().splitlines(), key=len) not in desk.sent


def test_what_the_records_are_stays_here(desk: Desk, tmp_path: Path) -> None:
    data = table(tmp_path / "records.csv", 37, first="50.4375,yes")
    found = enrol(desk.invite(), data, tmp_path / "bonn", silent)
    assert (found.counts.records, found.counts.train + found.counts.held) == (37, 37)
    assert b"50.4375" not in desk.sent
    told = [json.loads(body[SIGNATURE_BYTES:]) for path, body in desk.asked if path == PATH]
    assert [letter["look"] for letter in told] == [True, False]
    for letter in told:  # keys and names: nothing that could tell how many there are
        assert set(letter) == {
            "kind", "study", "site", "nonce", "secret", "public", "node", "look",
        }  # fmt: skip


def test_asked_again_with_the_same_token_nothing_changes(
    desk: Desk, data: Path, tmp_path: Path
) -> None:
    token = desk.invite()
    first = enrol(token, data, tmp_path / "bonn", silent)
    keys = {path: path.read_bytes() for path in (tmp_path / "bonn").glob("*.key")}
    again = enrol(token, data, tmp_path / "bonn", silent)
    assert again.member.membership == first.member.membership
    assert keys == {path: path.read_bytes() for path in (tmp_path / "bonn").glob("*.key")}
    assert again.fingerprint == first.fingerprint


def test_a_token_is_good_for_one_site_only(desk: Desk, data: Path, tmp_path: Path) -> None:
    token = desk.invite()
    enrol(token, data, tmp_path / "bonn", silent)
    before = desk.books.page().sites
    refused(DataError, token, data, tmp_path / "thief", "refused by the coordinator: the token")
    assert desk.books.page().sites == before


@pytest.mark.parametrize("changed", ["secret", "site"])
def test_another_secret_or_name_is_refused(
    desk: Desk, data: Path, tmp_path: Path, changed: str
) -> None:
    value = bytes(16) if changed == "secret" else "stranger"
    token = write_token(desk.invitation(**{changed: value}))
    refused(DataError, token, data, tmp_path / "bonn", "refused by the coordinator: the token")
    assert desk.state() == "invited"


def test_a_token_that_has_expired_is_not_sent(desk: Desk, data: Path, tmp_path: Path) -> None:
    token = write_token(desk.invitation(expires=int(time.time()) - 1))
    refused(DataError, token, data, tmp_path / "bonn", "still good")
    assert desk.asked == []


def test_a_server_of_another_authority_learns_nothing(
    desk: Desk, data: Path, tmp_path: Path
) -> None:
    token = write_token(desk.invitation(authority=bytes(32)))
    refused(DataError, token, data, tmp_path / "bonn", "authority that the token names")
    assert {path for path, _ in desk.asked} == {AUTHORITY_PATH}
    assert desk.sent.strip() == b""


def test_an_answer_under_another_key_is_not_believed(
    desk: Desk, data: Path, tmp_path: Path
) -> None:
    token = write_token(desk.invitation(server=bytes(31) + b"\1"))
    refused(FedwardError, token, data, tmp_path / "bonn", "under the pinned key")
    assert desk.state() == "invited"


def test_a_token_of_another_study_is_refused(desk: Desk, data: Path, tmp_path: Path) -> None:
    token = write_token(desk.invitation(study=bytes(32)))
    refused(FedwardError, token, data, tmp_path / "bonn", "another study")
    assert desk.state() == "invited"


def test_a_coordinator_that_is_away_is_said_at_once(desk: Desk, data: Path, tmp_path: Path) -> None:
    token = write_token(desk.invitation(port=free_port()))
    refused(AbsentError, token, data, tmp_path / "bonn", "cannot be reached")


def test_records_that_are_not_there_ask_nobody(desk: Desk, tmp_path: Path) -> None:
    refused(DataError, desk.invite(), tmp_path / "no.csv", tmp_path / "bonn", "no.csv")
    assert desk.asked == []
    assert not (tmp_path / "bonn").exists()


def test_a_record_that_breaks_the_contract_is_counted_and_left_out(
    desk: Desk, tmp_path: Path
) -> None:
    data = table(tmp_path / "records.csv", 40, first="431.75,yes")
    found = enrol(desk.invite(), data, tmp_path / "bonn", silent)
    assert (found.counts.records, found.left_out.count) == (39, 1)
    assert b"431.75" not in desk.sent


def test_records_of_which_none_keeps_the_contract_are_no_member(desk: Desk, tmp_path: Path) -> None:
    data = table(tmp_path / "records.csv", 1, first="431.75,yes")
    text = refused(DataError, desk.invite(), data, tmp_path / "bonn", "found none")
    assert "431.75" not in text
    assert desk.state() == "invited"


def test_a_delta_that_promises_nothing_is_refused_on_this_screen(tmp_path: Path) -> None:
    with open_desk(tmp_path / "coordinator", asked_for(privacy__delta=0.02)) as desk:
        data = table(tmp_path / "records.csv", 50)
        refused(PrivacyError, desk.invite(), data, tmp_path / "bonn", "50 records of this site")
        assert desk.state() == "invited"
        fewer = table(tmp_path / "records.csv", 49)
        enrol(desk.invite(), fewer, tmp_path / "bonn", silent)


def test_the_sites_policy_comes_first(desk: Desk, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bonn"
    folder.mkdir(mode=0o700)
    (folder / "policy.toml").write_text(
        'min_sites = 5\n[ceilings.records]\nunit = "record"\nepsilon = 9.0\ndelta = 1e-5\n'
    )
    token = desk.invite()
    refused(PrivacyError, token, data, folder, "min_sites: expected >= 5")
    assert desk.state() == "invited"
    kept = (folder / "policy.toml").read_text().replace("5\n[", "3\n[")
    (folder / "policy.toml").write_text(kept)
    assert enrol(token, data, folder, silent).proposed is None  # it is the steward's
    assert (folder / "policy.toml").read_text() == kept


def test_a_policy_that_the_ledger_knows_is_not_made_up_anew(
    desk: Desk, data: Path, tmp_path: Path
) -> None:
    enrol(desk.invite(), data, tmp_path / "bonn", silent)
    (tmp_path / "bonn" / "policy.toml").unlink()
    with pytest.raises(PrivacyError, match=r"policy\.toml"):
        enrol(desk.invite("ulm"), data, tmp_path / "bonn", silent)
    assert desk.state("ulm") == "invited"


NOISE: dict[str, object] = {"privacy__epsilon": None, "rounds": 120}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {**NOISE, "privacy__noise_multiplier": 4.0},  # the evaluations' slack moves it by half
        {**NOISE, "privacy__noise_multiplier": 50.0},  # less than the evaluations
        {"privacy": DISTRIBUTED, "training": {"learning_rate": 0.5}},
    ],
)
def test_the_policy_that_is_proposed_allows_this_study_and_hardly_more(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    study = asked_for(**changes)
    (tmp_path / "policy.toml").write_text(proposal(study))
    policy = load_policy(tmp_path / "policy.toml")
    check(policy, study)
    for sites in (4, 30):
        left = balance(policy, study_charge(study, sites, 2, policy.dataset), [])
        assert left is not None
        assert 0 <= left.left_after < 0.0101


def test_a_study_for_which_no_ceiling_is_enough_is_refused(data: Path, tmp_path: Path) -> None:
    study = asked_for(**NOISE, privacy__noise_multiplier=1.0)
    with open_desk(tmp_path / "coordinator", study) as desk:
        refused(PrivacyError, desk.invite(), data, tmp_path / "bonn", "infinite epsilon")
        assert desk.state() == "invited"


@pytest.mark.parametrize("changes", [{"aggregation__cohort": 3}, {"aggregation__masking": "none"}])
def test_a_study_that_is_a_simulation_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    monkeypatch.setattr("server.founding.check_deployable", lambda *_: None)  # another's program
    with open_desk(tmp_path / "coordinator", asked_for(**changes)) as desk:
        refused(PrivacyError, desk.invite(), data, tmp_path / "bonn", "between hospitals")
        assert desk.state() == "invited"


def test_a_roster_that_is_sealed_takes_nobody_more(data: Path, tmp_path: Path) -> None:
    with open_desk(tmp_path / "coordinator", asked_for()) as desk:
        token = desk.invite("late")
        join(desk, tmp_path)
        desk.seal()
        refused(DataError, token, data, tmp_path / "late", "refused by the coordinator")


def test_a_folder_that_takes_part_is_not_enrolled_elsewhere(
    desk: Desk, data: Path, tmp_path: Path
) -> None:
    enrol(desk.invite(), data, tmp_path / "bonn", silent)
    (tmp_path / "bonn" / "approval.json").write_text("{}")
    with pytest.raises(DataError, match="takes part in toy"):
        enrol(desk.invite("other"), data, tmp_path / "bonn", silent)
    assert load(tmp_path / "bonn").membership.site == desk.name


def test_a_token_that_is_refused_leaves_the_membership_that_there_was(
    desk: Desk, data: Path, tmp_path: Path
) -> None:
    """As when two hospitals' tokens are tried in one folder: it has the first one's keys."""
    folder = tmp_path / "bonn"
    enrol(desk.invite(), data, folder, silent)
    before = {path: path.read_bytes() for path in folder.glob("*.*") if path.suffix != ".db"}
    with pytest.raises(DataError, match="refused by the coordinator"):
        enrol(desk.invite("other"), data, folder, silent)
    assert before == {path: path.read_bytes() for path in before}
    assert load(folder).membership.site == desk.name
    assert not (folder / "studies").exists()


def test_a_study_that_is_over_is_put_aside_and_the_ledger_stays(
    desk: Desk, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bonn"
    enrol(desk.invite(), data, folder, silent)
    identity = (folder / "identity.key").read_bytes()
    (folder / "left.json").write_text("{}")
    with open_desk(tmp_path / "second", asked_for(rounds=2)) as second:
        enrol(second.invite(), data, folder, silent)
    assert load(folder).study.rounds == 2
    (aside,) = (folder / "studies").iterdir()
    assert load(aside).study.rounds == 3
    assert aside.name.endswith(f"-{desk.name}")
    assert (aside / "split.key").read_bytes() != (folder / "split.key").read_bytes()
    assert not (folder / "left.json").exists()
    assert (folder / "identity.key").read_bytes() == identity
    with Journal(folder / "journal.db") as journal:
        assert [note.kind for note in journal.rows()] == ["letter", "enrol", "letter"] * 2


def test_a_crash_while_the_study_before_is_put_aside_costs_the_token_nothing(
    desk: Desk, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, move = tmp_path / "bonn", Path.replace
    enrol(desk.invite(), data, folder, silent)
    (folder / "left.json").write_text("{}")
    moved, done = list[str](), False

    def crashing(self: Path, target: Path) -> Path:
        if self.parent == folder and target.parent != folder:
            if moved:
                raise KeyboardInterrupt
            moved.append(self.name)
        return move(self, target)

    with open_desk(tmp_path / "second", asked_for(rounds=2)) as second:
        token, tries = second.invite(), 0
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", crashing)
            while not done:  # one file further each time
                moved.clear()
                tries += 1
                with contextlib.suppress(KeyboardInterrupt):
                    enrol(token, data, folder, silent)
                    done = True
    assert tries >= 4
    assert load(folder).study.rounds == 2
    (aside,) = (folder / "studies").iterdir()
    assert load(aside).study.rounds == 3


def test_a_folder_in_which_another_works_is_left_alone(
    desk: Desk, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bonn"
    folder.mkdir(mode=0o700)
    lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(DataError, desk.invite(), data, folder, "another fedward-site is at work")
    finally:
        os.close(lock)
    assert desk.asked == []


def test_a_folder_that_others_may_enter_gets_no_key(desk: Desk, data: Path, tmp_path: Path) -> None:
    (tmp_path / "bonn").mkdir()
    (tmp_path / "bonn").chmod(0o755)
    refused(DataError, desk.invite(), data, tmp_path / "bonn", "0700")
    assert not list((tmp_path / "bonn").glob("*.key"))


def test_another_study_than_the_tokens_is_refused(
    desk: Desk, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk.office, "_text", asked_for(rounds=9).canonical())
    refused(StudyError, desk.invite(), data, tmp_path / "bonn", "the study that the token names")
    assert desk.state() == "invited"
