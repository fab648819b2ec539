"""A site that trains one round after another until it is killed; run as a script, with a folder.

For every line "STUDY NUMBER" on stdin it forks a process, warm with torch, and prints its id. That
process asks again for the attempt that the one before it was at, as a server would, then goes on.
What it sends is a line in the folder's file `sent`, which holds as little back as a network does.
"""

import mmap
import os
import signal
import struct
import sys
import time
from pathlib import Path

import torch

from client.policy import load_policy
from client.site import Site, Split
from client.training import Tensors, Trainer
from privacy.encoding import Encoding
from privacy.errors import PrivacyError
from shared_models.debits import planned_mechanism
from shared_models.registry import build_network
from shared_models.strategies import first_state
from shared_models.study import parse_study
from shared_models.weights import vector_of

DEBIT, TRAIN, SEND = 1, 2, 3
STUDY = {
    "task": "tabular",
    "rounds": 3000,
    "data": {
        "target": "ill",
        "columns": {
            "age": {"kind": "number", "low": 0, "high": 9},
            "ill": {"kind": "category", "values": ["no", "yes"]},
        },
    },
    "model": {"name": "mlp", "hidden": [3]},
    "training": {"learning_rate": 0.1, "local_steps": 2},
    "privacy": {
        "mode": "local",
        "noise_multiplier": 1000.0,
        "delta": 1e-5,
        "clipping_norm": 1.0,
        "sampling_rate": 1.0,
        "expected_batch": 8,
    },
}


def train_for_ever(folder: Path, name: str, progress: mmap.mmap) -> None:
    study = parse_study({"name": name, **STUDY})
    cycle = 0

    def at(phase: int) -> None:
        progress[:8] = struct.pack("<ii", cycle, phase)

    def records() -> Split:
        at(TRAIN)
        inputs = torch.rand((16, 1))
        return Split(Tensors(inputs, torch.zeros(16, dtype=torch.int64)), Tensors(inputs, inputs))

    trainer = Trainer(study, planned_mechanism(study))
    policy = load_policy(folder / "policy.toml")
    site = Site(name, study, Encoding(32, 3, 1.0), trainer, records, folder, policy)
    state = first_state(study.aggregation, vector_of(build_network(study, 4)))
    asked, sent = folder / f"asked-{name}", os.open(folder / "sent", os.O_APPEND | os.O_WRONLY)
    attempt = int(asked.read_text() or 0) if asked.exists() else 0
    while True:
        whole = asked.with_suffix(".new")
        whole.write_text(str(attempt))
        whole.rename(asked)
        at(DEBIT)
        try:
            work = site.contribute("train", state, 1, attempt)
        except PrivacyError as error:
            if "not debited before" not in str(error):
                raise
        else:
            at(SEND)
            os.write(sent, f"{study.digest()}/train/1/{attempt} {work.values.sum()}\n".encode())
            time.sleep(0.003)  # until the next order arrives
            cycle += 1
        attempt += 1


def main() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the killed
    folder = Path(sys.argv[1])
    warm = parse_study({"name": "warm", **STUDY})
    Trainer(warm, planned_mechanism(warm))  # opacus takes seconds to import
    for line in sys.stdin:
        name, number = line.split()
        with (folder / f"progress-{number}").open("r+b") as file:
            progress = mmap.mmap(file.fileno(), 8)
        child = os.fork()
        if child == 0:
            try:
                train_for_ever(folder, name, progress)
            except BaseException as error:
                (folder / "failed").write_text(repr(error))
            os._exit(1)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()


main()
