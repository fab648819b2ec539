"""The console script as a process of its own, and a small study for it; it asserts nothing."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROGRAM = Path(sys.executable).parent / "fedward-sim"

STUDY = """
name = "toy"
task = "tabular"
rounds = 40

[data]
target = "ill"

[data.columns]
age = { kind = "number", low = 0, high = 100 }
marker = { kind = "number", low = -5, high = 5 }
ill = { kind = "category", values = ["no", "yes"] }

[model]
name = "mlp"
hidden = [4]

[training]
learning_rate = 0.5
local_steps = 2

[privacy]
mode = "local"
epsilon = 2.0
delta = 1e-5
clipping_norm = 1.0
sampling_rate = 1.0
expected_batch = 32

[aggregation]
masking = "none"

[simulation]
sites = 3
"""


def table(records: int) -> str:
    draw = random.Random(1)
    lines = ["age,marker,ill"]
    for _ in range(records):
        age, marker = draw.randint(20, 90), draw.uniform(-4, 4)
        lines.append(f"{age},{marker:.3f},{'yes' if marker + (age - 55) / 20 > 0 else 'no'}")
    return "\n".join(lines) + "\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """study.toml and toy.csv in a folder that is otherwise empty."""
    (tmp_path / "study.toml").write_text(STUDY)
    (tmp_path / "toy.csv").write_text(table(90))
    return tmp_path


@pytest.fixture
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """As the user's, but with a temporary folder of its own: there the details of a bug are put."""
    temporary = tmp_path_factory.mktemp("temporary")
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "TMPDIR": str(temporary)}


@pytest.fixture
def start(
    folder: Path, environment: dict[str, str]
) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start the console script in ``folder``, in a process group of its own."""
    started: list[subprocess.Popen[str]] = []

    def launch(*arguments: str) -> "subprocess.Popen[str]":
        if not PROGRAM.is_file():
            pytest.skip(f"{PROGRAM} is not installed: `make test` installs it")
        process = subprocess.Popen(
            [PROGRAM, *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield launch
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def fedward_sim(
    start: Callable[..., "subprocess.Popen[str]"],
) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run the console script in ``folder`` to its end."""

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        process = start(*arguments)
        out, err = process.communicate(timeout=180)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    return run
