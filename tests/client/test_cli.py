"""fedward-site budget: what was spent, by which study, what is left, and how it refuses."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

from client import cli
from client.journal import Journal
from client.policy import adopt, load_policy
from privacy.accounting import Event, epsilon
from privacy.heads import Head
from privacy.ledger import Ledger
from tests.client.desk import asked_for, join, open_desk, table

POLICY = """
dataset = "ward"

[ceilings.ward]
unit = "record"
epsilon = 8.0
delta = 1e-6

[ceilings."clinic"]
unit = "patient"
epsilon = 20.0
delta = 1e-5
rows_per_patient = 3
"""

LEFT = (
    "Past rounds stay in the model, and the ledger keeps what they cost: `fedward-site budget` "
    "shows it. The other hospitals go on as long as enough of them stay. "
    "left toy; the coordinator knows it, and it is in the log"
)


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Program = Callable[..., Ended]


@pytest.fixture
def program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Program:
    """Run fedward-site in a site's folder that has a policy and no ledger yet."""
    (tmp_path / "policy.toml").write_text(POLICY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["fedward-site", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capfd.readouterr()
        code = end.value.code
        assert code is None or isinstance(code, int)
        return Ended(code or 0, out, err)

    return run


def refused(ended: Ended, code: int) -> str:
    """Check the form of a refusal and return its one line."""
    lines = ended.err.splitlines()
    assert (ended.code, ended.out) == (code, ""), ended
    assert lines[0].startswith("fedward-site: error: "), ended.err
    assert len(lines) <= 2, ended.err
    assert all(line.startswith("hint: ") for line in lines[1:]), ended.err
    return lines[0].removeprefix("fedward-site: error: ")


def event(study: str, **changes: object) -> Event:
    return Event.model_validate(
        {
            "study": study * 64,
            "dataset": "ward",
            "unit": "record",
            "sampling_rate": 1.0,
            "noise_multiplier": 20.0,
            "clipping_norm": 1.0,
            "steps": 2,
            "denominator": 16.0,
            "mode": "local",
            **changes,
        }
    )


def fill(folder: Path, *debits: tuple[Event, int]) -> Head:
    with Ledger(folder / "ledger.db") as ledger:
        adopt(load_policy(folder / "policy.toml"), ledger)
        for number, (one, times) in enumerate(debits):
            for again in range(times):
                ledger.debit(one, f"{number}/{again}")
        return ledger.head()


def test_what_was_spent_by_which_study_and_what_is_left(program: Program, tmp_path: Path) -> None:
    a, b = event("a"), event("b", sampling_rate=0.5, noise_multiplier=3.0)
    head = fill(tmp_path, (a, 30), (b, 4))
    ended = program("budget", "--json")
    assert (ended.code, ended.err) == (0, "")
    found = json.loads(ended.out)
    whole = epsilon([a] * 30 + [b] * 4, 1e-6)
    assert found["ledger"] == {"rows": 35, "head": head.digest}
    assert found["policy_adopted"] is True
    ward, clinic = found["datasets"]
    assert (ward["dataset"], ward["unit"], ward["delta"]) == ("ward", "record", 1e-6)
    assert (ward["adjacency"], ward["ceiling"]) == ("add-or-remove-one", 8.0)
    assert (ward["spent"], ward["rdp_epsilon"]) == (whole.epsilon, whole.rdp_epsilon)
    assert ward["left"] == 8.0 - whole.epsilon
    assert [(s["study"], s["debits"], s["steps"]) for s in ward["studies"]] == [
        ("a" * 64, 30, 60),
        ("b" * 64, 4, 8),
    ]
    alone = [s["epsilon"] for s in ward["studies"]]
    assert alone == [epsilon([a] * 30, 1e-6).epsilon, epsilon([b] * 4, 1e-6).epsilon]
    assert (clinic["spent"], clinic["studies"]) == (0.0, [])


def test_the_table_is_on_stdout_and_rounds_against_the_site(
    program: Program, tmp_path: Path
) -> None:
    a = event("a")
    fill(tmp_path, (a, 30))
    ended = program("budget")
    assert (ended.code, ended.err) == (0, "")
    whole = epsilon([a] * 30, 1e-6).epsilon
    assert "ward: epsilon for each record at delta 1e-06\n" in ended.out
    line = re.search(r"a{12}\s+30\s+60\s+(\S+)", ended.out)
    assert line is not None
    assert whole <= float(line[1]) < whole + 0.01
    bar = re.search(r"(█*)(░*) (\S+) of 8 spent, (\S+) left\n\(add-or-remove-one; PLD", ended.out)
    assert bar is not None
    assert len(bar[1] + bar[2]) == 40
    assert len(bar[1]) == pytest.approx(40 * whole / 8, abs=1)
    assert whole <= float(bar[3]) < whole + 0.01
    assert 8 - whole - 0.01 < float(bar[4]) <= 8 - whole
    assert "clinic: epsilon for each patient at delta 1e-05, records charged as 3 a patient\n" in (
        ended.out
    )


def test_a_study_of_records_is_charged_for_patients(program: Program, tmp_path: Path) -> None:
    records = event("c", dataset="clinic")
    fill(tmp_path, (records, 5))
    clinic = json.loads(program("budget", "--json").out)["datasets"][1]
    assert clinic["unit"] == "patient"
    assert clinic["spent"] == epsilon([records] * 5, 1e-5, rows=3).epsilon


def test_a_folder_may_be_named(program: Program, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "policy.toml").rename(tmp_path / "site" / "policy.toml")
    assert program("budget", "--dir", "site", "--json").code == 0
    assert "policy.toml: cannot be read" in refused(program("budget"), 2)


def test_before_anything_was_debited_no_file_is_made(program: Program, tmp_path: Path) -> None:
    ended = program("budget")
    assert ended.code == 0
    assert "0.00 of 8 spent, 8.00 left" in ended.out
    assert [path.name for path in tmp_path.iterdir()] == ["policy.toml"]


def test_a_ceiling_that_was_lowered_leaves_nothing(program: Program, tmp_path: Path) -> None:
    fill(tmp_path, (event("a"), 30))
    (tmp_path / "policy.toml").write_text(POLICY.replace("8.0", "0.5"))
    ended = program("budget")
    assert "of 0.5 spent, 0.00 left" in ended.out
    assert "policy.toml is not the policy that the ledger has last" in ended.err
    assert json.loads(program("budget", "--json").out)["policy_adopted"] is False


def test_a_policy_that_cannot_be_used_is_bad_input(program: Program, tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(POLICY.replace("epsilon = 8.0", "epsilon = -8.0"))
    assert "ceilings.ward.epsilon" in refused(program("budget"), 2)


def test_a_dataset_without_its_ceiling_is_refused(program: Program, tmp_path: Path) -> None:
    fill(tmp_path, (event("a"), 1))
    (tmp_path / "policy.toml").write_text(POLICY.replace("ward", "ward-2"))
    assert "ceilings.ward: expected a ceiling" in refused(program("budget"), 3)


def named(folder: Path, head: Head) -> None:
    """As a site's log names the ledger's end with every message."""
    with Journal(folder / "journal.db") as journal:
        journal.note("sent", message="cohort", ledger=f"{head.rows}/{head.digest}")


def test_a_ledger_that_was_cut_is_refused_by_its_row(program: Program, tmp_path: Path) -> None:
    named(tmp_path, fill(tmp_path, (event("a"), 3)))
    assert program("budget").code == 0
    import sqlite3

    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        connection.execute("DELETE FROM events WHERE number > 2")
    connection.close()
    assert "row 3 is gone" in refused(program("budget"), 3)


def test_a_ledger_that_was_removed_is_refused(program: Program, tmp_path: Path) -> None:
    named(tmp_path, fill(tmp_path, (event("a"), 3)))
    for file in tmp_path.glob("ledger.db*"):
        file.unlink()
    assert "the ledger that the site's log names" in refused(program("budget"), 3)


def test_a_wrong_option_is_a_usage_error_in_two_lines(program: Program) -> None:
    ended = program("budget", "--jsonn")
    assert "--jsonn" in refused(ended, 2)
    assert "`fedward-site budget --help` shows how it is used" in ended.err


def test_a_bug_is_one_line_and_its_details_are_in_a_file(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import client.budget

    def fails(folder: Path) -> Any:
        raise ZeroDivisionError(f"{folder} 31337")

    monkeypatch.setattr(client.budget, "read_budget", fails)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    ended = program("budget")
    assert "a bug: ZeroDivisionError" in refused(ended, 1)
    assert "31337" not in ended.err


@pytest.mark.parametrize("command", ["start", "inspect", "leave", "audit"])
def test_a_folder_of_nobody_is_said_and_left_as_it_is(
    program: Program, tmp_path: Path, command: str
) -> None:
    before = list(tmp_path.iterdir())
    assert "expected the folder of a" in refused(program(command), 2)
    assert list(tmp_path.iterdir()) == before


def test_the_plan_and_the_peers_are_typed_together(program: Program) -> None:
    assert "--approve and --confirmed together" in refused(program("start", "--approve", "ab"), 2)
    assert "--approve and --confirmed together" in refused(program("start", "--confirmed", "a"), 2)


def test_a_token_that_is_none_is_bad_input(program: Program, tmp_path: Path) -> None:
    ended = program("enrol", "fedward1.abc", "--data", str(tmp_path))
    assert "expected a token" in refused(ended, 2)
    assert "fedward1.abc" not in ended.err


def test_ctrl_c_at_a_question_is_no_bug(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def at_a_question(*_: object) -> Any:
        raise click.exceptions.Abort

    monkeypatch.setattr("client.inspection.look", at_a_question)
    assert "interrupted" in refused(program("inspect"), 130)


def test_a_hospital_is_led_from_its_token_to_its_leave(program: Program, tmp_path: Path) -> None:
    with open_desk(tmp_path / "coordinator", asked_for()) as desk:
        for peer in ("ulm", "jena", "graz"):
            join(desk, tmp_path, peer)
        data, token = table(tmp_path / "records.csv", 50), desk.invite("bonn")
        tmp_path.chmod(0o700)
        (tmp_path / "policy.toml").unlink()

        enrolled = program("enrol", token, "--data", str(data))
        assert (enrolled.code, enrolled.out) == (0, "")
        assert "enrolled in toy as bonn" in enrolled.err
        assert "50 records keep the contract" in enrolled.err
        assert "next: fedward-site start" in enrolled.err

        assert "has not sealed the roster yet" in refused(program("inspect"), 5)
        plan = desk.seal().plan

        shown = program("inspect", "--json")
        assert (shown.code, shown.err) == (0, "")
        packet = json.loads(shown.out)
        assert (packet["digest"], packet["approval"]) == (plan, None)
        words = next(one["words"] for one in packet["hospitals"] if one["own"])
        assert f"this site's fingerprint: {words}" in enrolled.err

        ended = program("start", "--approve", "ab" * 32, "--confirmed", "all")
        assert "--approve: expected the plan" in refused(ended, 3)
        ended = program("start", "--approve", str(plan), "--confirmed", "ulm")
        assert "at most 1 of 3 other hospitals" in refused(ended, 3)
        assert desk.state("bonn") == "enrolled"

        assert "expected --yes" in program("leave").err
        assert desk.state("bonn") == "enrolled"
        left = program("leave", "--yes")
        assert left.code == 0
        assert " ".join(left.err.split()) == LEFT
        assert desk.state("bonn") == "left"
        assert "this site has left toy" in refused(program("start"), 3)

    audited = program("audit", "--json")
    assert audited.code == 0
    notes = json.loads(audited.out)["notes"]
    done = [note.get("letter", note["kind"]) for note in notes]
    assert done == ["look", "enrol", "enrol", "roster", "leave", "leave"]
    assert "sent: letter: farewell" in program("audit").out


def test_neither_torch_nor_flwr_is_imported_for_help_or_budget(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(POLICY)
    code = (
        "import sys\n"
        "from client import cli\n"
        "sys.argv = ['fedward-site', 'budget', '--json', '--dir', sys.argv[1]]\n"
        "try:\n    cli.main()\n"
        "finally:\n    print(sorted({'torch', 'flwr', 'opacus'} & set(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True
    )
    assert ended.stdout.endswith("[]\n")
