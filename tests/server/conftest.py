"""A small study for the coordinator's program, and its folder; it asserts nothing."""

import copy
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.folder import Folder
from server.founding import found
from shared_models.study import Study, parse_study

DOCUMENT: dict[str, Any] = {
    "name": "toy",
    "task": "tabular",
    "rounds": 3,
    "data": {
        "target": "ill",
        "columns": {
            "age": {"kind": "number", "low": 0, "high": 100},
            "ill": {"kind": "category", "values": ["no", "yes"]},
        },
    },
    "model": {"name": "mlp", "hidden": []},
    "training": {"learning_rate": 0.5, "local_steps": 2},
    "privacy": {
        "mode": "local",
        "noise_multiplier": 1.0,
        "delta": 1e-5,
        "clipping_norm": 1.0,
        "sampling_rate": 1.0,
        "expected_batch": 16,
    },
    "aggregation": {"spare_attempts": 2, "deadline_s": 20.0},
    "evaluation": {"every": 2, "release": "exact"},
}
DISTRIBUTED = {
    "mode": "distributed",
    "noise_multiplier": 4.0,
    "delta": 1e-5,
    "clipping_norm": 1.0,
    "expected_batch": 16,
    "records_max": 100,
}


def study_of(**changes: object) -> Study:
    """study_of(aggregation__deadline_s=5): the study with changes."""
    document = copy.deepcopy(DOCUMENT)
    for key, value in changes.items():
        table: Any = document
        *parts, last = key.split("__")
        for part in parts:
            table = table.setdefault(part, {})
        table[last] = value
    return parse_study(document)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Folder]:
    """make_folder(rounds=2): a coordinator's folder, as init leaves it."""

    def make(**changes: object) -> Folder:
        study = study_of(**changes)
        return found(study, tmp_path / "coordinator", "127.0.0.1", free_port())[0]

    return make
