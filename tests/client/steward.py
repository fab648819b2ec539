"""fedward-site run in this process, and a policy to run it under; it asserts no fact."""

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from client import cli

POLICY = """
dataset = "ward"
min_sites = 3
hours = ["mon-sun 00:00-24:00"]

[ceilings.ward]
unit = "record"
epsilon = 8.0
delta = 1e-6
"""


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Program = Callable[..., Ended]


def site_program(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Program:
    """Return a function that runs fedward-site with its arguments."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["fedward-site", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "80")
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
