"""A model's file says what the run said, in a process that has numpy, torch and shared_models."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared_models.study import Study, load_study
from simulations.outcome import write_outcome
from simulations.pool import gather, pool
from simulations.run import simulate
from tests.simulations.test_examples import ROOT, made_records

# The safetensors format, read by hand: a length, a header in JSON, the numbers.
ELSEWHERE = """
import json, sys
from pathlib import Path
import numpy as np
import torch
from shared_models.registry import build_network
from shared_models.study import parse_study
from shared_models.tasks import target_of

folder = Path(sys.argv[1])
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
ours = {"client", "server", "simulations", "flwr", "opacus", "sklearn", "pandas", "safetensors"}
print(json.dumps(sorted(ours & set(sys.modules))))
"""
CHANGES = ["rounds=1", "training.local_epochs=1", "evaluation.every=1"]


@pytest.mark.parametrize("example", ["glucose", "vitals", "fusion"])
def test_a_model_says_elsewhere_what_it_said_in_the_run(example: str, tmp_path: Path) -> None:
    study: Study = load_study(ROOT / example / "study.toml", CHANGES)
    records, out = tmp_path / "records", tmp_path / "out"
    records.mkdir()
    data: Any = made_records(study.data, records)
    outcome = simulate(study, data, out)
    write_outcome(outcome, out)
    np.save(out / "inputs.npy", pool(study, gather(study, data)).held().inputs.numpy())
    ended = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(out)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == []  # none of them was needed
    np.testing.assert_allclose(np.load(out / "told.npy"), outcome.predictions, rtol=0, atol=1e-6)
