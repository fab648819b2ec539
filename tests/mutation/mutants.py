"""Every single check in a file, and the file without it. It runs nothing.

Checks are found by their shape (rules.py), so that a new one is found by itself.
"""

import ast
import re
from collections import Counter
from dataclasses import dataclass
from itertools import islice

from rules import Spot, edits, refuses, short, spots

_NUMBERS = r"\d+(?:(?:, | and | to )\d+)*"
_SECTION = re.compile(rf"\bsections? ({_NUMBERS}(?:, (?:message|attack) \d+)?)", re.IGNORECASE)
_MESSAGE = re.compile(rf"\bmessages? ({_NUMBERS})|\(({_NUMBERS})\)")


@dataclass(frozen=True)
class Mutant:
    """One check of a file.

    Attributes:
        file: whose.
        line: of the check.
        section: of the protocol, as the code says it beside the check.
        name: function, check, what became of it; lines may move, names stay.
        function: the outermost function or method that holds the check, and its first line, as its
            code object says them; ("", 0) for a ceiling of the module.
        source: the file with the check.
        at: which node, and which of the edits of that node.
    """

    file: str
    line: int
    section: str
    name: str
    function: tuple[str, int]
    source: str
    at: tuple[int, int]

    def tree(self) -> ast.Module:
        """Return the file without the check, its lines where they were."""
        tree = ast.parse(self.source)
        spot = next(islice(spots(tree), self.at[0], None))
        _, _, edit = next(islice(edits(spot), self.at[1], None))
        edit()
        return ast.fix_missing_locations(tree)


def mutants(file: str, source: str, refusals_only: bool = False) -> list[Mutant]:
    """Return every mutant of a file, from top to bottom.

    Args:
        file: its name.
        source: its text.
        refusals_only: leave out what does not end in an error or in a yes or no: arithmetic,
            where known answers are the proof.
    """
    found: list[Mutant] = []
    names: Counter[str] = Counter()
    lines = source.splitlines()
    for place, spot in enumerate(spots(ast.parse(source))):
        if refusals_only and not refuses(spot):
            continue
        for number, (text, change, _) in enumerate(edits(spot)):
            names[name := f"{_place(spot)}: {text}: {change}"] += 1
            name += f" ({names[name]})" if names[name] > 1 else ""
            section, function = _section(spot, lines), _function(spot)
            at = (place, number)
            found.append(Mutant(file, spot.line, section, name, function, source, at))
    return sorted(found, key=lambda one: one.line)


def _function(spot: Spot) -> tuple[str, int]:
    """Return the name and the first line of the outermost function, as its code object has them."""
    inside = [one for one in spot.parents if isinstance(one, ast.FunctionDef | ast.ClassDef)]
    for at, one in enumerate(inside):
        if isinstance(one, ast.FunctionDef):
            first = min(one.lineno, *(mark.lineno for mark in one.decorator_list), one.lineno)
            return ".".join(outer.name for outer in inside[: at + 1]), first
    return "", 0


def _place(spot: Spot) -> str:
    named = (one for one in spot.parents if isinstance(one, ast.FunctionDef | ast.ClassDef))
    return ".".join(one.name for one in named) or "module"


def _section(spot: Spot, lines: list[str]) -> str:
    """The section beside the check: the message that it refuses, a comment, a docstring."""
    for node in ast.walk(spot.node):
        refused = isinstance(node, ast.Call) and short(node.func) == "refusal"
        if refused and isinstance(number := node.args[0], ast.Constant):  # type: ignore[attr-defined]
            return f"2, message {number.value!r}"
    beside, at = list[str](), spot.line - 2
    while at >= 0 and lines[at].lstrip().startswith("#"):
        beside.append(lines[at])
        at -= 1
    documented = (ast.FunctionDef, ast.ClassDef, ast.Module)
    outward = [one for one in reversed(spot.parents) if isinstance(one, documented)]
    beside.extend(" ".join((ast.get_docstring(one) or "").split()) for one in outward)
    for text in beside:
        if match := _SECTION.search(text):
            return match.group(1)
        if match := _MESSAGE.search(text):
            return f"2, message {match.group(1) or match.group(2)}"
    return ""
