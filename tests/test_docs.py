"""What the documents tell people to type exists, and the figure and the units can be read."""

import re
import shlex
from configparser import ConfigParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer.main

import client.cli
import server.cli
import simulations.cli

ROOT = Path(__file__).parents[1]
DOCS = (
    "README.md",
    *(f"docs/{name}.md" for name in ["coordinator", "hospital", "operations", "policy"]),
)
UNITS = sorted((ROOT / "docs" / "systemd").iterdir())
COMMANDS = {
    program: typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for program, app in (
        ("fedward-server", server.cli.app),
        ("fedward-sim", simulations.cli.app),
        ("fedward-site", client.cli.app),
    )
}
PROGRAM = r"fedward-(?:server|sim|site)\b"


def words_of(typed: str) -> list[str]:
    """The words of one command, without what is a shell's; brackets are what may be left out."""
    words = shlex.split(re.sub(r"\$\w+", "1", typed), comments=True)
    ends = [place for place, word in enumerate(words) if re.match(r"\d?[|>]", word)]
    return [word.strip("[]") for word in words[: min(ends, default=None)]]


def typed_in(text: str) -> list[list[str]]:
    """Every command on a line of its own, as a shell takes it."""
    lines = re.findall(rf"^ {{4,}}(?:\$ )?({PROGRAM} .*)$", text, re.MULTILINE)
    return [words_of(line) for line in lines]


def spoken_of(text: str) -> list[list[str]]:
    """Every command within a sentence, which may leave out what it needs."""
    return [words_of(" ".join(span.split())) for span in re.findall(rf"`({PROGRAM} [^`]+)`", text)]


@pytest.mark.parametrize("path", DOCS)
def test_every_command_of_a_document_can_be_typed(path: str) -> None:
    text = (ROOT / path).read_text()
    for program, name, *arguments in typed_in(text):
        command = COMMANDS[program][name]
        command.make_context(name, list(arguments))  # says what is unknown, or missing
    for program, name, *arguments in spoken_of(text):
        options = {option for one in COMMANDS[program][name].params for option in one.opts}
        assert {word for word in arguments if word.startswith("--")} <= options, (name, arguments)


def test_the_documents_are_searched_for_commands() -> None:
    """Else the test above would pass without reading any."""
    found = {path: len(typed_in((ROOT / path).read_text())) for path in DOCS}
    assert found["README.md"] >= 15
    assert found["docs/coordinator.md"] >= 7
    assert found["docs/hospital.md"] >= 9
    assert found["docs/policy.md"] >= 2
    assert len(spoken_of((ROOT / "docs/operations.md").read_text())) >= 5


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_starts_what_exists(path: Path) -> None:
    unit = ConfigParser(strict=False, interpolation=None)  # a key may stand twice; %i is the unit's
    unit.read_string(path.read_text())
    program, name, *arguments = unit["Service"]["ExecStart"].split()
    COMMANDS[Path(program).name][name].make_context(name, list(arguments))
    assert unit["Install"]["WantedBy"] == "multi-user.target"
    for folder in unit["Service"].get("ReadOnlyPaths", "").split():
        assert folder.startswith("-"), "a folder that is not there would keep it from starting"


def test_the_figure_names_the_port_and_the_programs() -> None:
    figure = ElementTree.parse(ROOT / "docs" / "processes.svg")
    said = "\n".join(one.text or "" for one in figure.iter())
    assert str(server.cli.PORT) in said
    for typed in re.findall(rf"{PROGRAM} [a-z]+", said):
        program, name = typed.split()
        assert name in COMMANDS[program]
