"""What `--help` of the three programs says, and how soon."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

import client.cli
import server.cli
import simulations.cli

BIN = Path(sys.executable).parent
PROGRAMS = {
    "fedward-server": server.cli.app,
    "fedward-sim": simulations.cli.app,
    "fedward-site": client.cli.app,
}
HALF_S = 0.5


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_argument_and_option_is_explained(program: str) -> None:
    commands = typer.main.get_command(PROGRAMS[program]).commands  # type: ignore[attr-defined]
    assert len(commands) > 2
    for name, command in commands.items():
        assert command.help, name
        for one in command.params:
            assert one.help, f"{program} {name} {one.name}"


@pytest.mark.parametrize("program", ["fedward-server", "fedward-site"])
def test_help_is_there_in_half_a_second(program: str) -> None:
    """Of the processor's time, the best of three: others may be at work on this machine."""
    took = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ended = subprocess.run([BIN / program, "--help"], capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert ended.returncode == 0, ended
        assert "Usage" in ended.stdout
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(took) < HALF_S, took
