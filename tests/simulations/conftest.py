"""A small study of made-up records, shared by the tests of the simulation; it asserts nothing."""

import copy
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared_models.study import Study, parse_study

HANG_S = 120  # a test that takes longer has hung: the slowest needs some seconds

DOCUMENT: dict[str, Any] = {
    "name": "toy",
    "task": "tabular",
    "rounds": 4,
    "data": {
        "target": "ill",
        "columns": {
            "age": {"kind": "number", "low": 0, "high": 100},
            "marker": {"kind": "number", "low": -5, "high": 5},
            "ward": {"kind": "category", "values": ["a", "b", "c", "d"]},
            "ill": {"kind": "category", "values": ["no", "yes"]},
        },
    },
    "model": {"name": "mlp", "hidden": [4]},
    "training": {"learning_rate": 0.5, "local_steps": 2},
    "privacy": {"mode": "none"},
    "aggregation": {"masking": "none"},
    "evaluation": {"every": 2},
    "simulation": {"sites": 3},
}
PRIVATE = {
    "mode": "local",
    "epsilon": 2.0,
    "delta": 1e-5,
    "clipping_norm": 1.0,
    "sampling_rate": 0.5,
    "expected_batch": 16,
}


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"the test took more than {HANG_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANG_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def table(records: int, seed: int = 1) -> str:
    """Records whose illness follows from age and marker, with some noise."""
    draw = random.Random(seed)
    lines = ["age,marker,ward,ill"]
    for _ in range(records):
        age, marker = draw.randint(20, 90), draw.uniform(-4, 4)
        ill = "yes" if marker + (age - 55) / 20 + draw.gauss(0, 0.5) > 0 else "no"
        lines.append(f"{age},{marker:.3f},{draw.choice('abcd')},{ill}")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="session")
def records_text() -> Callable[[int], str]:
    return table


@pytest.fixture(scope="session")
def toy_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("records") / "toy.csv"
    path.write_text(table(120))
    return path


@pytest.fixture(scope="session")
def toy_document() -> Callable[..., dict[str, Any]]:
    """document(**{"privacy.epsilon": 2}): the study with changes; private=True: mode local."""

    def make(private: bool = False, **changes: object) -> dict[str, Any]:
        document = copy.deepcopy(DOCUMENT)
        if private:
            document["privacy"] = dict(PRIVATE)
        for key, value in changes.items():
            table: Any = document
            *parts, last = key.split(".")
            for part in parts:
                table = table.setdefault(part, {})
            table[last] = value
        return document

    return make


@pytest.fixture(scope="session")
def toy_study(toy_document: Callable[..., dict[str, Any]]) -> Callable[..., Study]:
    def make(private: bool = False, **changes: object) -> Study:
        return parse_study(toy_document(private, **changes))

    return make
