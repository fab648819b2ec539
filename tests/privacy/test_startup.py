"""The start-up check: all packages from one folder, or nothing starts."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from privacy.errors import StudyError
from privacy.startup import PACKAGES, check_packages

ROOT = Path(__file__).resolve().parents[2]


def strange(folder: Path, name: str, *, namespace: bool = False) -> Path:
    """A package of another distribution that owns one of our names."""
    package = folder / name
    package.mkdir(parents=True)
    if not namespace:
        (package / "__init__.py").write_text("raise SystemExit('a stranger was imported')")
    return folder


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    # A package that is imported already is found where it was imported from.
    for name in PACKAGES:
        if name != "privacy":
            monkeypatch.delitem(sys.modules, name, raising=False)


def test_the_packages_of_one_folder_are_accepted() -> None:
    assert check_packages() == ROOT


@pytest.mark.parametrize("name", [name for name in PACKAGES if name != "privacy"])
def test_a_strange_package_of_our_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.syspath_prepend(str(strange(tmp_path, name)))
    with pytest.raises(
        StudyError, match=f"package {name}: expected in .*; nothing was started"
    ) as e:
        check_packages()
    assert str(tmp_path) in str(e.value)
    assert "installed distribution" in e.value.hint
    assert e.value.exit_code == 2


def test_a_strange_package_behind_ours_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path, str(strange(tmp_path, "client"))])
    assert check_packages() == ROOT


def test_a_package_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privacy.startup.PACKAGES", (*PACKAGES, "no_such_package"))
    with pytest.raises(
        StudyError, match="package no_such_package: expected in one folder, found in 0"
    ):
        check_packages()


def test_a_module_of_our_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "client.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(StudyError, match="package client: expected in one folder, found in 0"):
        check_packages()


def test_a_package_spread_over_folders_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for side in ("a", "b"):
        monkeypatch.syspath_prepend(str(strange(tmp_path / side, "spread", namespace=True)))
    monkeypatch.setattr("privacy.startup.PACKAGES", (*PACKAGES, "spread"))
    with pytest.raises(StudyError, match="package spread: expected in one folder, found in 2"):
        check_packages()


def test_the_check_imports_none_of_the_packages() -> None:
    code = (
        "import sys; from privacy.startup import PACKAGES, check_packages; check_packages();"
        "print([n for n in (*PACKAGES, 'torch', 'flwr') if n in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert found.stdout.strip() == "['privacy']"


def test_every_top_level_package_of_the_wheel_is_checked() -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = document["tool"]["setuptools"]["packages"]
    assert {name.split(".")[0] for name in listed} == set(PACKAGES)
