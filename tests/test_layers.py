"""The house keeps its layers: who may import whom, and what nobody may call."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "privacy": {"privacy"},
    "shared_models": {"privacy", "shared_models"},
    "client": {"privacy", "shared_models", "client"},
    "server": {"privacy", "shared_models", "server"},
    "simulations": {"privacy", "shared_models", "client", "server", "simulations"},
}
HOMES = {
    "flwr": {
        "server/app.py",
        "server/superlink.py",
        "client/app.py",
        "client/fleet.py",
        "simulations/grid.py",
    },
    "uvicorn": {"server/listener.py"},
    "opacus": {"privacy/persample.py"},
}
NEVER_IMPORTED = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
NEVER_CALLED = {"eval", "exec", "compile", "__import__"}


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"{package} has no sources: this test would prove nothing"
    return found


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide an arrow"
            yield node.module or ""


def violations(path: str, text: str) -> list[str]:
    """Every rule that one file breaks, as text."""
    tree = ast.parse(text)
    package = path.split("/")[0]
    broken = []
    for name in imports(tree):
        top = name.split(".")[0]
        if top in ALLOWED and top not in ALLOWED[package]:
            broken.append(f"{package} imports {top}")
        if top in HOMES and path not in HOMES[top]:
            broken.append(f"imports {top}")
        if top in NEVER_IMPORTED:
            broken.append(f"imports {top}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in NEVER_CALLED or called == "torch.load":
                broken.append(f"calls {called}")
            for keyword in node.keywords:
                refused = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg == "allow_pickle" and not refused:
                    broken.append("allows pickle")
    return broken


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_keeps_to_its_layer(package: str) -> None:
    for path in sources(package):
        name = path.relative_to(ROOT).as_posix()
        assert violations(name, path.read_text()) == [], name


@pytest.mark.parametrize(
    ("path", "text", "broken"),
    [
        ("privacy/x.py", "import shared_models.study", "privacy imports shared_models"),
        ("client/x.py", "from server.rounds import Order", "client imports server"),
        ("server/rounds.py", "import flwr", "imports flwr"),
        ("client/training.py", "from opacus import GradSampleModule", "imports opacus"),
        ("privacy/x.py", "import pickle", "imports pickle"),
        ("privacy/x.py", "import torch\ntorch.load('x')", "calls torch.load"),
        ("privacy/x.py", "eval('1')", "calls eval"),
        ("privacy/x.py", "import numpy\nnumpy.load('x', allow_pickle=True)", "allows pickle"),
    ],
)
def test_a_broken_rule_is_noticed(path: str, text: str, broken: str) -> None:
    assert violations(path, text) == [broken]


def test_every_package_is_listed_for_the_wheel() -> None:
    import tomllib

    listed = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    )
    found = {
        init.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for package in ALLOWED
        for init in (ROOT / package).rglob("__init__.py")
    }
    assert listed == found
