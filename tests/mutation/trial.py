"""Run the tests against one changed function after another, each in a child of its own.

The tests are collected once. A child puts the code without the check into the function with it,
wherever that was imported to, and runs the tests that come near until one fails. No file changes.
"""

import ast
import contextlib
import gc
import io
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import hypothesis
import pytest
from mutants import Mutant
from rules import SHIFT

LIMIT_S = 120  # of the processor; all tests take 40, so a mutant that needs more was noticed
HANG_S = 1800  # of the clock
MEMORY = 8 << 30  # a ceiling that is gone must not take the machine with it
PROCESSES = 2
FLAGS = ["-s", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-seed=0"]

Suite = Callable[[str], Sequence[str]]  # of a file of the code: files of tests, likely ones first
# A mutant, the test that noticed it or "", and seconds of the processor.
Tell = Callable[[Mutant, str, float], None]


def run(root: Path, suite: Suite, mutants: Sequence[Mutant], tell: Tell) -> str:
    """Try all mutants; return why that was not possible, or nothing.

    Args:
        root: of the working tree.
        suite: which tests may notice a mutant.
        mutants: in the order in which they are told.
        tell: called for each mutant.
    """
    # Found is enough: hypothesis would look for the smallest example, for minutes.
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("mutants", database=None, phases=phases)
    hypothesis.settings.load_profile("mutants")
    said, out = io.StringIO(), sys.stdout

    def aloud(*verdict: Any) -> None:
        with contextlib.redirect_stdout(out):  # pytest's own words are for a failure alone
            tell(*verdict)

    trial = _Trial(root, suite, mutants, aloud)
    files = dict.fromkeys(str(root / file) for one in mutants for file in suite(one.file))
    with contextlib.redirect_stdout(said):
        code = pytest.main([*FLAGS, *files], plugins=[trial]) if files else 0
    return "" if code == 0 else trial.reason or said.getvalue()


@dataclass
class _Child:
    """A process that runs tests and says what came of it."""

    number: int
    reader: int
    folder: str

    def result(self) -> tuple[Any, float]:
        """Wait for what it says (None when it was ended), and for what it took."""
        with os.fdopen(self.reader) as file:
            told = file.read()
        _, _, used = os.wait4(self.number, 0)
        shutil.rmtree(self.folder, ignore_errors=True)
        result = json.loads(told) if told else {"value": None}
        if "error" in result:
            raise RuntimeError(result["error"])
        return result["value"], used.ru_utime + used.ru_stime


def _fork(work: Callable[[], object]) -> _Child:
    """Do work in a child, which says nothing, writes into its own folder and ends by itself."""
    reader, writer = os.pipe()
    folder = tempfile.mkdtemp(prefix="mutant-")
    if child := os.fork():
        os.close(writer)
        return _Child(child, reader, folder)
    told: dict[str, object] = {}
    try:
        silence = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silence, stream)
        os.environ["PYTEST_DEBUG_TEMPROOT"] = folder
        signal.alarm(HANG_S)
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        told["value"] = work()
    except BaseException:
        told["error"] = traceback.format_exc()
    finally:  # whatever happens, it goes no further
        with os.fdopen(writer, "w") as file:
            json.dump(told, file)
        os._exit(0)


class _Trial:
    """A plugin that takes the place of pytest's loop over the tests."""

    def __init__(self, root: Path, suite: Suite, mutants: Sequence[Mutant], tell: Tell) -> None:
        self._root, self._suite, self._mutants, self._tell = root, suite, mutants, tell
        self._failed = ""
        self._seconds: dict[str, float] = {}
        self.reason = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] = self._seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed and not self._failed:
            where = "" if report.when == "call" else f" ({report.when})"
            self._failed = report.nodeid + where

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self._functions = _loaded(self._root)
        gc.freeze()  # what is there now is shared with every child
        heard, _ = _fork(lambda: self._listen(session.items)).result()
        failed, self._callers, self._seconds = heard
        if failed or session.testsfailed:
            self.reason = f"{failed or 'a file of tests'} fails without any mutant"
            raise session.Failed(self.reason)
        waiting = list(self._mutants)
        running: dict[int, tuple[Mutant, _Child]] = {}
        done: dict[Mutant, tuple[str, float]] = {}
        for told in self._mutants:
            while told not in done:
                while waiting and len(running) < PROCESSES:
                    child = _fork(partial(self._attempt, waiting[0], session.items))
                    running[child.reader] = waiting.pop(0), child
                for reader in select.select(list(running), [], [])[0]:
                    one, child = running.pop(reader)
                    failed, seconds = child.result()
                    done[one] = "(the tests do not end)" if failed is None else failed, seconds
            self._tell(told, *done[told])
        return True

    def _first_failure(self, items: Iterable[pytest.Item]) -> str:
        for item, after in pairwise([*items, None]):
            if not self._failed and item is not None:
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
        return self._failed

    def _attempt(self, mutant: Mutant, items: list[pytest.Item]) -> str:
        """Return which test fails first without the check, or nothing."""
        _exchange(self._root, mutant, self._functions.get(_key(mutant), []))
        return self._first_failure(self._near(mutant, items))

    def _near(self, mutant: Mutant, items: list[pytest.Item]) -> Iterator[pytest.Item]:
        """Yield the tests of the files that come to the function: callers first, quick ones first.

        Tests of one file stay together, since they may share what is made for them.
        """
        files: dict[str, list[pytest.Item]] = {file: [] for file in self._suite(mutant.file)}
        for item in items:
            file = item.path.relative_to(self._root).as_posix()
            if file in files:
                files[file].append(item)
        callers = set(self._callers.get(_key(mutant), ()))
        for tests in files.values():
            if not mutant.function[0] or any(one.nodeid in callers for one in tests):
                yield from sorted(
                    tests,
                    key=lambda one: (
                        one.nodeid not in callers,
                        round(self._seconds.get(one.nodeid, 0.0), 1),
                    ),
                )

    def _listen(self, items: list[pytest.Item]) -> tuple[str, dict[str, list[str]], Any]:
        """Run everything; return the first failure, who calls which function, and durations."""
        names = {id(one.__code__): key for key, found in self._functions.items() for one in found}
        callers: dict[str, list[str]] = {}
        for item, after in pairwise([*items, None]):
            assert item is not None
            seen: set[int] = set()

            def note(frame: FrameType, event: str, _: object, seen: set[int] = seen) -> None:
                if event == "call":
                    seen.add(id(frame.f_code))

            sys.setprofile(note)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            sys.setprofile(None)
            for code in seen & names.keys():
                callers.setdefault(names[code], []).append(item.nodeid)
            if self._failed:
                break
        return self._failed, callers, self._seconds


def _loaded(root: Path) -> dict[str, list[FunctionType]]:
    """Return every function of the working tree, decorated ones and methods too, by `_key`."""
    found: dict[str, list[FunctionType]] = {}
    for one in gc.get_objects():
        if type(one) is FunctionType:  # not isinstance: some libraries answer it with a warning
            code = one.__code__
            path = Path(code.co_filename)
            if path.is_relative_to(root):
                key = f"{path.relative_to(root).as_posix()}:{code.co_qualname}:"
                found.setdefault(key + str(code.co_firstlineno), []).append(one)
    return found


def _key(mutant: Mutant) -> str:
    return "{}:{}:{}".format(mutant.file, *mutant.function)


def _exchange(root: Path, mutant: Mutant, functions: list[FunctionType]) -> None:
    """Put the changed code, or the changed ceiling, into what is loaded."""
    tree = mutant.tree()
    if not mutant.function[0]:
        _move_ceilings(tree, mutant, root)
        return
    whole = compile(tree, str(root / mutant.file), "exec")
    found = [
        one for one in _codes(whole) if (one.co_qualname, one.co_firstlineno) == mutant.function
    ]
    if len(found) != 1 or not functions:
        raise ValueError(f"expected one function {mutant.function}, found {len(found)}")
    for one in functions:
        one.__code__ = found[0]
        one.__globals__[SHIFT] = _shifted


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield a code object and all those inside it."""
    yield code
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _codes(one)


def _shifted(bound: Any, by: int) -> Any:
    """Return a bound that is off by one: of a counter, the attempt after or before."""
    return (*bound[:-1], bound[-1] + by) if isinstance(bound, tuple) else bound + by


def _move_ceilings(tree: ast.Module, mutant: Mutant, root: Path) -> None:
    """Give every module that has them the values of one changed assignment.

    What its file computes from it moves too, as it would if the file were edited and loaded.
    """
    modules = [
        one
        for one in list(sys.modules.values())
        if (getattr(one, "__file__", None) or "").startswith(str(root))
    ]
    own = next(one for one in modules if one.__file__ == str(root / mutant.file))
    values, moved = dict(vars(own)), set[str]()
    for one in tree.body:
        names = {node.id for node in ast.walk(one) if isinstance(node, ast.Name)}
        if isinstance(one, ast.Assign) and (one.lineno == mutant.line or names & moved):
            exec(compile(ast.Module([one], []), mutant.file, "exec"), values)
            targets = (node for target in one.targets for node in ast.walk(target))
            moved |= {node.id for node in targets if isinstance(node, ast.Name)}
    for module in modules:
        for name in moved & vars(module).keys():
            setattr(module, name, values[name])
