"""A model's file says what the run said, in a process that has numpy, torch and shared_models."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared_models.study import Study, load_study
from shared_models.tasks import TASKS
from simulations.outcome import write_outcome
from simulations.pool import gather, pool
from simulations.run import simulate
from tests.shared_models.studies import task_study
from tests.simulations.test_every_network import written
from tests.simulations.test_examples import ROOT, made_records

# What shared_models needs beside numpy and torch: documents are pydantic's, streams cryptography's.
ALLOWED = [
    *("numpy", "torch", "torchgen", "shared_models", "privacy"),
    *("pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"),
    *("cryptography", "_cffi_backend"),
]
# The safetensors format, read by hand: a length, a header in JSON, the numbers.
ELSEWHERE = """
import importlib.abc, json, sys
from pathlib import Path

allowed = {*json.loads(sys.argv[1]), *sys.stdlib_module_names}

class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top in allowed or top.startswith("_sysconfigdata"):
            return None
        raise ModuleNotFoundError(f"{name} is not needed here", name=name)

sys.meta_path.insert(0, Nothing())

import numpy as np
import torch
from shared_models.registry import build_network
from shared_models.study import parse_study
from shared_models.tasks import target_of

for folder in map(Path, sys.argv[2:]):
    study = parse_study(json.loads((folder / "model.json").read_text())["study"])
    raw = (folder / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    network = build_network(study).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            first, last = (start + place for place in header[name]["data_offsets"])
            values = np.frombuffer(raw[first:last], "<f4").reshape(header[name]["shape"])
            parameter.copy_(torch.from_numpy(values.copy()))
        outputs = network(torch.from_numpy(np.load(folder / "inputs.npy")))
    np.save(folder / "told.npy", target_of(study).predictions(outputs))
try:
    import client
except ModuleNotFoundError:
    print("alone")
"""
CHANGES = ["rounds=1", "training.local_epochs=1", "evaluation.every=1"]


def example(name: str, folder: Path) -> tuple[Study, Any]:
    study, records = load_study(ROOT / name / "study.toml", CHANGES), folder / "records"
    records.mkdir()
    return study, made_records(study.data, records)


def small(task: str, folder: Path) -> tuple[Study, Any]:
    own = task_study(task).document()["data"]
    study = task_study(
        task,
        data={**own, "format": "csv" if task in {"sequence", "molecule"} else "npz"},
        rounds=1,
        aggregation={"masking": "none"},
        simulation={"partition": "files"},
    )
    return study, written(study, folder / "records")


MAKERS = {
    **dict.fromkeys(("glucose", "vitals", "fusion"), example),
    **dict.fromkeys((f"a {task}" for task in TASKS), small),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """What each run said, and what the model's file says where nothing else can be imported."""
    whole, said = tmp_path_factory.mktemp("models"), {}
    for name, make in MAKERS.items():
        out = whole / name
        out.mkdir()
        study, data = make(name.removeprefix("a "), out)
        outcome = simulate(study, data, out)
        write_outcome(outcome, out)
        np.save(out / "inputs.npy", pool(study, gather(study, data)).held().inputs.numpy())
        said[name] = outcome.predictions
    folders = [str(whole / name) for name in said]
    ended = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, json.dumps(ALLOWED), *folders],
        capture_output=True,
        text=True,
        check=False,
        cwd=whole,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "alone\n"  # what is not in the list cannot be had there
    return {name: (np.load(whole / name / "told.npy"), one) for name, one in said.items()}


@pytest.mark.parametrize("name", MAKERS)
def test_a_model_says_elsewhere_what_it_said_in_the_run(
    name: str, models: dict[str, tuple[Any, Any]]
) -> None:
    told, said = models[name]
    assert len(said) > 0
    np.testing.assert_allclose(told, said, rtol=0, atol=1e-6)
