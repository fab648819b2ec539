"""fedward-server as it is typed: what it refuses and shows, and that help and status are quick."""

import io
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tomli_w
from rich.console import Console

from server import cli
from server.books import Books
from server.folder import BOOKS
from shared_models.fingerprint import fingerprint
from shared_models.invitation import read_token
from tests.server.conftest import DOCUMENT, free_port
from tests.server.members import NAMES, enrol, key

PRINTED = "sorted({'torch', 'flwr', 'opacus'} & set(sys.modules))"


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Program = Callable[..., Ended]


@pytest.fixture
def program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Program:
    """Run fedward-server in an empty folder that has the study file alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    write(DOCUMENT)

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["fedward-server", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capfd.readouterr()
        code = end.value.code
        assert code is None or isinstance(code, int)
        return Ended(code or 0, out, err)

    return run


def write(document: dict[str, Any], path: str = "study.toml") -> None:
    Path(path).write_text(tomli_w.dumps(document))


def changed(key: str, value: object) -> dict[str, Any]:
    table, name = key.split(".")
    return {**DOCUMENT, table: {**DOCUMENT.get(table, {}), name: value}}


def init(program: Program, *more: str) -> Ended:
    where = ("--dir", "study", "--host", "127.0.0.1", "--port", str(free_port()))
    return program("init", "study.toml", *where, *more)


def refused(ended: Ended, code: int) -> str:
    """Check the form of a refusal and return its one line."""
    lines = ended.err.splitlines()
    assert (ended.code, ended.out) == (code, ""), ended
    assert lines[0].startswith("fedward-server: error: "), ended.err
    assert len(lines) <= 2, ended.err
    assert all(line.startswith("hint: ") for line in lines[1:]), ended.err
    return lines[0].removeprefix("fedward-server: error: ")


def enrolled(*names: str) -> None:
    books = Books(Path("study") / BOOKS)
    enrol(books, *names)
    books.close()


# --- init --------------------------------------------------------------------------------------


def test_init_makes_a_folder_that_others_cannot_enter(program: Program, tmp_path: Path) -> None:
    ended = init(program, "--json")
    assert ended.code == 0, ended
    made = json.loads(ended.out)
    assert made["study"] == "toy"
    assert Path("study").stat().st_mode & 0o777 == 0o700
    for path in Path("study").rglob("*.key"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {"study.toml", "study"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("privacy.mode", "none"),
        ("aggregation.masking", "none"),
        ("aggregation.cohort", 3),
        ("simulation.seed", 7),
    ],
)
def test_init_refuses_what_only_a_simulation_may(program: Program, key: str, value: object) -> None:
    write(changed(key, value))
    assert key in refused(init(program), 3)
    assert not Path("study").exists()


def test_init_takes_no_folder_that_holds_something(program: Program) -> None:
    Path("study").mkdir()
    Path("study/thesis.tex").write_text("years of work")
    assert "new or empty folder" in refused(init(program), 2)
    assert [path.name for path in Path("study").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    "host", ["https://a.example", "a.example:8443", "-a", "a..b", "", "a b", "ü.example"]
)
def test_init_takes_no_host_that_is_none(program: Program, host: str) -> None:
    ended = program("init", "study.toml", "--dir", "study", f"--host={host}")
    assert "--host: expected a name or address" in refused(ended, 2)
    assert not Path("study").exists()


def test_init_wants_all_of_a_networks_certificates(program: Program) -> None:
    assert "together, or none of them" in refused(init(program, "--key", "x.pem"), 2)


def test_a_study_file_that_is_wrong_is_bad_input(program: Program) -> None:
    write(changed("training.learning_rat", 0.1))
    assert "learning_rat" in refused(init(program), 2)


# --- the commands of another shell ---------------------------------------------------------------


def test_a_token_is_all_that_invite_prints(program: Program) -> None:
    init(program)
    ended = program("invite", "bonn", "--dir", "study")
    (token,) = ended.out.splitlines()
    assert len(token) < 400
    assert read_token(token).site == "bonn"
    assert token not in ended.err
    for name in ("", "../up", "a b", "x" * 65):
        assert "nobody was invited" in refused(program("invite", name, "--dir", "study"), 2)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_sites_than_a_sum_needs_are_not_sealed(program: Program, count: int) -> None:
    init(program)
    if count:
        enrolled(*NAMES[:count])
    ended = program("seal", "--dir", "study")
    assert f"expected at least 3 sites that have enrolled, got {count}" in refused(ended, 3)
    assert json.loads(program("status", "--dir", "study", "--json").out)["state"] == "inviting"
    assert program("invite", "late", "--dir", "study").code == 0  # it stays open


def test_the_studys_own_least_counts(program: Program) -> None:
    write(changed("aggregation.min_sites", 4))
    init(program)
    enrolled(*NAMES[:3])
    assert "expected at least 4 sites" in refused(program("seal", "--dir", "study"), 3)


def test_a_roster_is_sealed_once(program: Program) -> None:
    init(program)
    enrolled()
    program("invite", "late", "--dir", "study")
    ended = program("seal", "--dir", "study")
    assert ended.code == 0
    assert len(ended.out.strip()) == 64
    assert "late had not enrolled: its invitation is withdrawn" in ended.err
    assert "found it sealed; nothing was done" in refused(program("seal", "--dir", "study"), 2)
    assert "before the roster was sealed" in refused(program("invite", "x", "--dir", "study"), 2)
    assert json.loads(program("status", "--dir", "study", "--json").out)["plan"] == (
        ended.out.strip()
    )


def test_what_a_revocation_did_is_said(program: Program) -> None:
    init(program)
    program("invite", "late", "--dir", "study")
    revoke = ("revoke", "--dir", "study")
    assert "the invitation of late is withdrawn" in program(*revoke, "late").err
    enrolled()
    assert "graz is out; invited again, it has to enrol" in program(*revoke, "graz").err
    assert "graz was out before" in program(*revoke, "graz").err
    program("seal", "--dir", "study")
    assert program(*revoke, "graz").err == "graz was out before\n"


def test_a_revocation_that_leaves_too_few_is_refused(program: Program) -> None:
    init(program)
    enrolled()
    program("seal", "--dir", "study")
    ended = program("revoke", "graz", "--dir", "study")
    assert (ended.code, ended.err) == (0, "graz is out; past rounds stay in the model\n")
    refused(program("revoke", "jena", "--dir", "study"), 3)
    standing = json.loads(program("status", "--dir", "study", "--json").out)
    assert [one["state"] for one in standing["sites"]] == ["enrolled"] * 3 + ["revoked"]
    assert "of that name" in refused(program("revoke", "mars", "--dir", "study"), 2)


def test_status_is_a_table_of_sites_with_their_words(program: Program) -> None:
    init(program)
    enrolled(*NAMES[:3])
    program("invite", "graz", "--dir", "study")
    ended = program("status", "--dir", "study")
    assert (ended.code, ended.err) == (0, "")
    lines = [line.split() for line in ended.out.splitlines()]
    words = "toy: sites enrol; `seal` closes the roster (not served: `fedward-server start`)"
    assert lines[0] == words.split()
    for name in NAMES[:3]:
        assert [name, "enrolled", *fingerprint(key(name).public).split()] in lines
    assert ["graz", "invited"] in lines
    plan = program("seal", "--dir", "study").out.strip()
    assert f"plan {plan}\n" in program("status", "--dir", "study").out


@pytest.mark.parametrize("terminal", [True, False])
def test_start_shows_the_table_to_whoever_is_at_a_terminal(
    program: Program, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    from server.coordinator import Coordinator

    init(program)
    enrolled()
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=80, color_system=None)
    monkeypatch.setattr(cli, "_console", lambda: console)
    monkeypatch.setattr(Coordinator, "run", lambda self: None)
    ended = program("start", "--dir", "study")
    assert (ended.code, ended.out) == (0, "")
    for name in NAMES:
        assert (fingerprint(key(name).public) in screen.getvalue()) == terminal
    assert screen.getvalue().endswith("next: fedward-server export --dir study\n")


def test_export_waits_for_the_end(program: Program) -> None:
    init(program)
    assert "a study that is over" in refused(program("export", "--dir", "study"), 2)


@pytest.mark.parametrize("command", ["start", "seal", "status", "export", "invite x", "revoke x"])
def test_a_folder_of_nothing_is_said_and_left_as_it_is(
    program: Program, tmp_path: Path, command: str
) -> None:
    (tmp_path / "empty").mkdir()
    line = refused(program(*command.split(), "--dir", "empty"), 2)
    assert "expected a coordinator's folder, found none" in line
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_study_that_was_changed_after_init_is_refused(program: Program) -> None:
    init(program)
    path = Path("study/study.toml")
    path.write_text(path.read_text().replace("rounds = 3", "rounds = 4"))
    for command in ("start", "seal", "status", "export"):
        assert "a changed one" in refused(program(command, "--dir", "study"), 2)


def test_a_port_that_is_taken_is_said(program: Program) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        where = ("--dir", "study", "--host", "127.0.0.1", "--port", str(port))
        program("init", "study.toml", *where)
        ended = program("start", "--dir", "study")
    assert f"expected to listen on 127.0.0.1:{port}" in ended.err
    assert ended.code == 2


# --- quick -------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["server.cli", "client.cli"])
def test_help_imports_neither_torch_nor_flwr(module: str) -> None:
    code = (
        f"import sys\nfrom {module} import main\nsys.argv = ['x', '--help']\n"
        f"try:\n    main()\nfinally:\n    print({PRINTED})"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--help" in ended.stdout
    assert ended.stdout.endswith("[]\n")


def test_status_and_a_bad_study_wait_for_no_torch(program: Program) -> None:
    init(program)
    write(changed("aggregation.masking", "none"), "bad.toml")
    for arguments in (
        ["status", "--dir", "study", "--json"],
        ["init", "bad.toml", "--dir", "other", "--host", "a.example"],
    ):
        code = (
            f"import sys\nfrom server.cli import main\nsys.argv = ['x', *{arguments}]\n"
            f"try:\n    main()\nfinally:\n    print({PRINTED})"
        )
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert ended.stdout.endswith("[]\n"), ended
