"""fedward-site policy: what is in force, its digest, and where the file differs from it."""

import json
import sqlite3
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from client.policy import Policy, adopt, load_policy
from privacy.ledger import Ledger
from tests.client.steward import POLICY, Program, refused, site_program


@pytest.fixture
def program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Program:
    """Run fedward-site in a site's folder that has a policy and no ledger yet."""
    (tmp_path / "policy.toml").write_text(POLICY)
    monkeypatch.chdir(tmp_path)
    return site_program(monkeypatch, capfd)


def written(folder: Path) -> Policy:
    policy = load_policy(folder / "policy.toml")
    with Ledger(folder / "ledger.db") as ledger:
        adopt(policy, ledger)
    return policy


def policy_of(document: object) -> Policy:
    return Policy.model_validate_json(json.dumps(document))


def test_before_it_is_written_down_the_file_is_shown_and_said_to_be_none_yet(
    program: Program, tmp_path: Path
) -> None:
    ended = program("policy")
    assert ended.code == 0
    assert "not written down yet" in ended.out.splitlines()[0]
    assert policy_of(tomllib.loads(ended.out)) == load_policy(tmp_path / "policy.toml")
    assert "`fedward-site start` writes this one down" in ended.err
    found = json.loads(program("policy", "--json").out)
    assert (found["ledger_row"], found["file_differs"]) == (None, False)
    assert [path.name for path in tmp_path.iterdir()] == ["policy.toml"]


def test_what_is_in_force_is_what_the_ledger_has(program: Program, tmp_path: Path) -> None:
    policy = written(tmp_path)
    ended = program("policy")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"# in force since row 1; digest {policy.digest()}\n")
    assert policy_of(tomllib.loads(ended.out)) == policy
    found = json.loads(program("policy", "--json").out)
    assert policy_of(found["policy"]) == policy
    assert found["digest"] == found["file_digest"] == policy.digest()
    assert (found["ledger_row"], found["file_differs"], found["changes"]) == (1, False, {})


def test_a_remark_in_the_file_is_no_other_policy(program: Program, tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "policy.toml").write_text("# a remark\n" + POLICY)
    assert program("policy").err == ""


def test_a_file_that_was_edited_is_not_in_force_and_each_change_is_named(
    program: Program, tmp_path: Path
) -> None:
    policy = written(tmp_path)
    edited = POLICY.replace("epsilon = 8.0", "epsilon = 9.5").replace("min_sites = 3", "")
    (tmp_path / "policy.toml").write_text('tasks = ["image"]\nmin_sites = 5\n' + edited)
    ended = program("policy")
    assert ended.code == 0
    assert policy_of(tomllib.loads(ended.out)) == policy
    lines = ended.err.splitlines()
    assert "policy.toml differs from what is in force:" in lines
    assert "  ceilings.ward.epsilon: 8.0 in force, 9.5 in the file" in lines
    assert "  min_sites: 3 in force, 5 in the file" in lines
    assert '  tasks: nothing in force, ["image"] in the file' in lines
    assert "No debit is made until `fedward-site start` has written the file down." in lines
    found = json.loads(program("policy", "--json").out)
    assert found["file_differs"]
    assert found["digest"] == policy.digest()
    assert found["file_digest"] == load_policy(tmp_path / "policy.toml").digest()
    assert found["changes"]["min_sites"] == {"in_force": 3, "file": 5}
    assert set(found["changes"]) == {"ceilings.ward.epsilon", "min_sites", "tasks"}


def test_a_ceiling_that_was_taken_out_is_named(program: Program, tmp_path: Path) -> None:
    clinic = '[ceilings.clinic]\nunit = "record"\nepsilon = 8.0\ndelta = 1e-6\n'
    (tmp_path / "policy.toml").write_text(POLICY + clinic)
    written(tmp_path)
    (tmp_path / "policy.toml").write_text(POLICY)
    assert "  ceilings.clinic.epsilon: 8.0 in force, nothing in the file" in program("policy").err


def test_the_latest_policy_of_the_ledger_counts(program: Program, tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "policy.toml").write_text(POLICY.replace("8.0", "9.0"))
    latest = written(tmp_path)
    found = json.loads(program("policy", "--json").out)
    assert (found["ledger_row"], found["digest"]) == (2, latest.digest())


def test_a_file_that_was_lost_can_be_written_again_from_the_ledger(
    program: Program, tmp_path: Path
) -> None:
    policy = written(tmp_path)
    (tmp_path / "policy.toml").unlink()
    ended = program("policy")
    assert ended.code == 0
    assert "policy.toml is missing" in ended.err
    assert json.loads(program("policy", "--json").out)["file_digest"] is None
    (tmp_path / "policy.toml").write_text(ended.out)
    assert load_policy(tmp_path / "policy.toml") == policy
    assert program("policy").err == ""


def test_without_a_file_and_a_ledger_there_is_no_policy(program: Program, tmp_path: Path) -> None:
    (tmp_path / "policy.toml").unlink()
    assert "policy.toml: cannot be read" in refused(program("policy"), 2)


def test_a_ledger_that_was_changed_is_refused(program: Program, tmp_path: Path) -> None:
    written(tmp_path)
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        connection.execute("UPDATE events SET event = replace(event, '8.0', '9.0')")
    connection.close()
    assert "expected the digest of ledger row 1 to hold" in refused(program("policy"), 3)


def test_a_file_that_is_no_policy_is_bad_input(program: Program, tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(POLICY.replace("min_sites", "minsites"))
    assert "minsites" in refused(program("policy"), 2)


def test_neither_torch_nor_flwr_is_imported_for_it(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(POLICY)
    code = (
        "import sys\n"
        "from client import cli\n"
        "sys.argv = ['fedward-site', 'policy', '--json', '--dir', sys.argv[1]]\n"
        "try:\n    cli.main()\n"
        "finally:\n    print(sorted({'torch', 'flwr', 'opacus'} & set(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True
    )
    assert ended.stdout.endswith("[]\n")
