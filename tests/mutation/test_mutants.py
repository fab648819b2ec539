"""Mutants are found by themselves, and the list of spared ones speaks of checks that exist.

Running them all takes minutes: `make mutants`.
"""

import ast
import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found
    spec.loader.exec_module(found)
    return found


rules = module("rules")
mutants = module("mutants")


def without(one: Any) -> str:
    return ast.unparse(one.tree())


def found(body: str, returns: str = "None") -> dict[str, str]:
    """What becomes of each check of a function: change -> the function's lines."""
    source = f"def f(a, b, c) -> {returns}:\n" + "".join(f"    {one}\n" for one in body.split("\n"))
    return {
        one.name.rpartition(": ")[2]: without(one).partition("\n")[2]
        for one in mutants.mutants("x.py", source)
    }


def test_a_guard_is_removed() -> None:
    assert found("if a == b:\n    raise ValueError(c)") == {
        "never": "    if False:\n        raise ValueError(c)"
    }


def test_a_branch_is_never_and_always_taken() -> None:
    assert set(found("if a:\n    b = c")) == {"never", "always"}
    assert found("b = 1 if a else 2")["always"] == "    b = 1 if True else 2"


def test_each_operand_of_a_condition_is_dropped() -> None:
    changes = found("if a or b.c or not c:\n    raise ValueError")
    assert changes["without b.c"].startswith("    if a or not c:")
    assert set(changes) == {"never", "without a", "without b.c", "without not c"}


def test_each_of_two_bounds_is_dropped_and_moved() -> None:
    changes = found("if not 1 <= a <= 9:\n    raise ValueError")
    assert changes["without 1"].startswith("    if not a <= 9:")
    assert changes["without 9"].startswith("    if not 1 <= a:")
    assert changes["9 +1"].startswith("    if not 1 <= a <= _shifted_by_the_mutant(9, 1):")
    assert set(changes) == {"never", "without 1", "without 9", "a -1", "a +1", "9 -1", "9 +1"}


@pytest.mark.parametrize(
    ("compared", "left"),
    [("(a, b) != (b, c)", "(b,) != (c,)"), ("a != (b, c)", "a != (a[0], c)")],
)
def test_each_of_several_values_that_are_compared_together_is_dropped(
    compared: str, left: str
) -> None:
    change = found(f"if {compared}:\n    raise ValueError")
    dropped = "without a" if compared.startswith("(") else "without b"
    assert change[dropped].startswith(f"    if {left}:")


@pytest.mark.parametrize("body", ["b = 1 if a < 2 else 3", "if a < 2:\n    b = 1"])
def test_a_bound_that_decides_nothing_stays(body: str) -> None:
    assert set(found(body)) == {"never", "always"}


def test_a_call_for_its_effect_and_a_flag_are_removed() -> None:
    assert found("a.check(b)\nreturn a") == {"removed": "    pass\n    return a"}
    assert found("a.closed = True\nreturn a") == {"removed": "    pass\n    return a"}


def test_a_refusal_in_a_handler_is_removed_and_so_is_the_handler() -> None:
    changes = found(
        "try:\n    a()\nexcept (KeyError, OSError) as error:\n    raise ValueError from error"
    )
    assert "except (OSError,) as error:" in changes["without KeyError"]
    assert "        pass" in changes["removed"]


def test_each_row_of_a_table_of_checks_is_dropped() -> None:
    changes = found("for one in (a, b):\n    if one:\n        raise ValueError")
    assert changes["without a"].startswith("    for one in (b,):")


def test_each_argument_of_the_largest_and_smallest_is_dropped() -> None:
    assert found("return max(a, b, c)")["without b"] == "    return max(a, c)"


def test_each_piece_of_what_is_hashed_is_dropped() -> None:
    changes = found("return b'label' + a + b")
    assert changes["without b'label'"] == "    return a + b"
    assert changes["without b"] == "    return b'label' + a"
    assert found("return a + b * 2") == {}


def test_what_a_yes_or_no_says_is_always_both() -> None:
    assert set(found("return a == b", "bool")) == {"always False", "always True"}


def test_a_ceiling_is_moved_by_one() -> None:
    rows = mutants.mutants("x.py", "SITES_MIN, SITES_MAX = 3, 100\nSIZE_MAX = 1 << 4\nCHUNK = 4\n")
    assert [one.name.removeprefix("module: ") for one in rows] == [
        *("SITES_MIN = 3: -1", "SITES_MIN = 3: +1", "SITES_MAX = 100: -1", "SITES_MAX = 100: +1"),
        *("SIZE_MAX = 1 << 4: -1", "SIZE_MAX = 1 << 4: +1"),
    ]
    assert without(rows[-1]).startswith(
        "SITES_MIN, SITES_MAX = (3, 100)\nSIZE_MAX = (1 << 4) + 1\n"
    )


@pytest.mark.parametrize(
    ("above", "section"),
    [
        ('"""Check it (message 6)."""', "2, message 6"),
        ('"""Check it (sections 1 and 2)."""', "1 and 2"),
        ("# section 2, message 10: t of them", "2, message 10"),
    ],
)
def test_the_section_stands_beside_the_check(above: str, section: str) -> None:
    (one,) = mutants.mutants(
        "x.py", f"def f(a):\n    {above}\n    if a:\n        raise ValueError\n"
    )
    assert one.section == section


def test_of_arithmetic_refusals_alone_are_taken() -> None:
    source = "def f(a):\n    if not a:\n        raise ValueError\n    if a > 2:\n        a = g(a)\n"
    assert [one.name.rpartition(": ")[2] for one in mutants.mutants("x.py", source, True)] == [
        "never"
    ]


def test_the_function_of_a_check_is_the_outermost_and_begins_with_its_decorators() -> None:
    source = "class C:\n    @d\n    def f(self):\n        def g(a):\n            a.go()\n"
    (one,) = mutants.mutants("x.py", source)
    assert (one.name, one.line) == ("C.f.g: a.go(): removed", 5)
    assert one.function == ("C.f", 2)


def test_two_checks_of_one_text_have_two_names() -> None:
    names = [one.name for one in mutants.mutants("x.py", "def f(a):\n    a.go()\n    a.go()\n")]
    assert names == ["f: a.go(): removed", "f: a.go(): removed (2)"]


def test_every_spared_mutant_exists_and_is_spared_for_a_reason() -> None:
    spared = tomllib.loads((HERE / "spared.toml").read_text())
    assert spared
    for file, reasons in spared.items():
        names = {one.name for one in mutants.mutants(file, (ROOT / file).read_text())}
        assert set(reasons) <= names
        assert all(len(reason) > 20 for reason in reasons.values())


GUARDED = """
A_MAX = 4
B_MAX = 2 * A_MAX + 1


def take(a, b):
    if not 0 <= a <= B_MAX:
        raise ValueError("a")
    if b < 0:
        raise ValueError("b")
    return b
"""
ITS_TEST = """
import pytest
from guarded import take


def test_the_edges_are_taken():
    assert take(0, 5) == take(9, 5) == 5


@pytest.mark.parametrize("a", [-1, 10])
def test_a_is_within_bounds(a):
    with pytest.raises(ValueError):
        take(a, 5)
"""
TRIAL = f"""
import sys
sys.path[:0] = [{str(HERE)!r}, "."]
from pathlib import Path
from mutants import mutants
from trial import run

root = Path.cwd()
found = mutants("guarded.py", (root / "guarded.py").read_text())
tell = lambda one, test, seconds: print(one.name, "->", test)
reason = run(root, lambda _: ["test_guarded.py"], found, tell)
assert not reason, reason
"""


def test_a_trial_names_the_test_that_notices_and_says_when_none_does(tmp_path: Path) -> None:
    (tmp_path / "guarded.py").write_text(GUARDED)
    (tmp_path / "test_guarded.py").write_text(ITS_TEST)
    ran = subprocess.run(
        [sys.executable, "-c", TRIAL], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    told = dict(line.split(" -> ") for line in ran.stdout.splitlines())
    low, high = (f"test_guarded.py::test_a_is_within_bounds[{a}]" for a in (-1, 10))
    edges = "test_guarded.py::test_the_edges_are_taken"
    assert told == {
        "module: A_MAX = 4: -1": edges,  # and with it what is computed from it
        "module: A_MAX = 4: +1": high,
        "module: B_MAX = 2 * A_MAX + 1: -1": edges,
        "module: B_MAX = 2 * A_MAX + 1: +1": high,
        "take: if not 0 <= a <= B_MAX: raise ValueError: never": low,
        "take: 0 <= a <= B_MAX: without 0": low,
        "take: 0 <= a <= B_MAX: without B_MAX": high,
        "take: 0 <= a <= B_MAX: a -1": edges,
        "take: 0 <= a <= B_MAX: a +1": edges,
        "take: 0 <= a <= B_MAX: B_MAX -1": edges,
        "take: 0 <= a <= B_MAX: B_MAX +1": high,
        "take: if b < 0: raise ValueError: never": "",
        "take: b < 0: 0 -1": "",
        "take: b < 0: 0 +1": "",
    }
    assert (tmp_path / "guarded.py").read_text() == GUARDED
    assert not list(tmp_path.parent.glob("mutant-*"))
