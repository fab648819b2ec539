"""docs/new-task.md: what stands there is a task, in a copy of the house with file and entry."""

import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "new-task.md").read_text()
PACKAGES = ("privacy", "shared_models", "client", "server", "simulations")
ANCHOR = "from shared_models.label import label\n"
LAST = "        ),\n    )\n}\n"
PRIVATE = ("--set", "privacy.mode=distributed", "--set", "evaluation.release=exact")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages with the page's file and entry, and a folder with its study."""
    root = tmp_path_factory.mktemp("house")
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, root / package, ignore=ignored)
    file, entry = blocks("python")
    (root / "shared_models" / "grades.py").write_text(file)
    tasks = root / "shared_models" / "tasks.py"
    text = tasks.read_text()
    assert text.count(ANCHOR) == text.count(LAST) == 1
    text = text.replace(ANCHOR, f"from shared_models.grades import grades, grades_fit\n{ANCHOR}")
    entry = indent(entry.rstrip(), " " * 8)
    tasks.write_text(text.replace(LAST, f"        ),\n{entry},\n    )\n}}\n"))
    (root / "examples").mkdir()
    (root / "nyha.toml").write_text(*blocks("toml"))
    (root / "nyha.csv").write_text(records(700))
    return root


def records(count: int) -> str:
    draw = random.Random(3)
    lines = ["age,ejection,nyha"]
    for _ in range(count):
        age, ejection = draw.uniform(20, 95), draw.uniform(12, 75)
        severe = (age - 55) / 15 - (ejection - 45) / 10 + draw.gauss(0, 0.7)
        grade = ("I", "II", "III", "IV")[sum(severe > cut for cut in (-2.5, 0.0, 2.5))]
        lines.append(f"{age:.1f},{ejection:.1f},{grade}")
    return "\n".join(lines) + "\n"


def program(house: Path, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", f"from {name} import main; main()", *words],
        cwd=house,
        env={**os.environ, "PYTHONPATH": str(house), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def run(house: Path, *words: str) -> dict[str, Any]:
    command = re.search(r"^    fedward-sim (run .*)$", PAGE, re.MULTILINE)
    assert command is not None
    done = program(house, "simulations.cli", *command[1].split(), "--json", *words)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_file_and_entry_are_fewer_than_eighty_lines() -> None:
    assert sum(len(block.splitlines()) for block in blocks("python")) < 80


def test_the_file_keeps_the_house_s_style(house: Path) -> None:
    files = [str(house / "shared_models" / name) for name in ("grades.py", "tasks.py")]
    for check in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *check, "--config", ROOT / "pyproject.toml", *files],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_task_is_listed(house: Path) -> None:
    done = program(house, "simulations.cli", "tasks", "grades")
    assert "in grades that have an order" in done.stdout


def test_it_is_learnt_evaluated_and_reported(house: Path) -> None:
    found = run(house, "--out", "plain")
    assert found["metrics"]["accuracy"]["value"] > 0.65  # the commonest grade is a third
    assert found["metrics"]["auc"]["value"] > 0.85
    assert found["baselines"]["linear"]["accuracy"]["value"] > 0.6
    assert found["released"]["accuracy"]["n"] == found["metrics"]["accuracy"]["n"]
    assert "Confusion matrix" in (house / "plain" / "report.html").read_text()


def test_it_is_learnt_privately(house: Path) -> None:
    found = run(house, "--out", "private", *PRIVATE)
    assert 3 < found["privacy"]["epsilon"] <= 4
    assert found["metrics"]["auc"]["value"] > 0.75


def test_its_model_is_used_and_explained_at_home(house: Path) -> None:
    run(house, "--out", "home", "--set", "rounds=2")
    done = program(house, "client.cli", "predict", "home", "--data", "nyha.csv", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["predictions"]
    assert len(rows) == 700
    assert all(abs(sum(row) - 1) < 1e-12 for row in rows)
    (house / "few.csv").write_text(records(8))
    done = program(
        house, "client.cli", "explain", "home", "--data", "few.csv", "--out", "why", "--json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for one in found["records"]:
        grade = ("I", "II", "III", "IV").index(one["explained"])
        chance = max(one["prediction"])
        assert chance == one["prediction"][grade]
        assert abs(one["score"] - math.log(chance / (1 - chance))) < 1e-4


def test_a_column_without_grades_is_refused(house: Path) -> None:
    done = program(
        *(house, "simulations.cli", "run", "nyha.toml", "--data", "nyha.csv", "--out", "none"),
        *("--set", 'data.columns.nyha.values=["I", "II"]'),
    )
    assert done.returncode == 2
    assert "expected a category of three grades or more" in done.stderr


def test_its_loss_is_minus_the_log_of_the_chance_it_gives(house: Path) -> None:
    text = (
        "import torch; from shared_models.grades import Grades;"
        "t = Grades('multiclass', tuple('abcd'), 3); torch.manual_seed(0);"
        "o, y = torch.randn(50, 3) * 4, torch.arange(50) % 4;"
        "p = torch.from_numpy(t.predictions(o))[torch.arange(50), y];"
        "assert torch.allclose(t.losses(o, y).double(), -p.log(), rtol=1e-5, atol=1e-5)"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=house, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
