"""How fast virtual sites train, against a bare PyTorch loop and Apple's pfl, in one run.

It measures the engine only: records are made up, nothing is evaluated, no checkpoint is written.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
import torch
from rows import (
    PAIRS_MIN,
    Row,
    interleave,
    load,
    machine,
    measure,
    options,
    peak_bytes,
    show,
)
from torch import nn

from client.app import make_app
from client.training import Trainer
from server.app import make_exchange
from server.checkpoint import Checkpoint
from server.rounds import run_rounds
from shared_models.registry import build_network
from shared_models.strategies import first_state
from shared_models.study import Study, parse_study
from shared_models.weights import vector_of
from simulations.federation import open_federation
from simulations.grid import LocalGrid
from simulations.pool import Pool

ROOT = Path(__file__).resolve().parent.parent
Network = Literal["mlp", "cnn"]
Masking = Literal["none", "fsa1"]

RECORDS = 64  # of each site
BATCH = 32
RATE = 0.05
WIDTHS = (30, 64, 32, 2)  # of the MLP
PARAMETERS = {"mlp": 4_130, "cnn": 421_642}
COHORT = 50  # under masks
ROUNDS_MAX = 100_000  # more than are ever run: nothing is evaluated before the last
PEER = ROOT / ".venv-peers" / "bin" / "python"


# ---- what is measured: each has round(), which runs one round and returns its wall seconds


def made_up_study(network: Network, sites: int, masking: Masking, cohort: int) -> Study:
    """Return a study of one local epoch in mode none, for made-up records."""
    if network == "mlp":
        columns: dict[str, object] = {
            f"x{i}": {"kind": "number", "low": -1, "high": 1} for i in range(WIDTHS[0])
        }
        model: dict[str, object] = {"name": "mlp", "hidden": list(WIDTHS[1:-1]), "outputs": 2}
        classes = 2
    else:
        columns = {"x": {"kind": "image", "height": 28, "width": 28}}
        model = {"name": "cnn"}
        classes = 10
    columns["y"] = {"kind": "category", "values": [str(index) for index in range(classes)]}
    return parse_study(
        {
            "name": "benchmark",
            "task": "tabular" if network == "mlp" else "image",
            "rounds": ROUNDS_MAX,
            "data": {"target": "y", "columns": columns},
            "model": model,
            "training": {"learning_rate": RATE, "local_epochs": 1, "batch_size": BATCH},
            "privacy": {"mode": "none"},
            "aggregation": {"masking": masking, "cohort": cohort},
            "evaluation": {"every": ROUNDS_MAX},
            "simulation": {"sites": sites},
        }
    )


def made_up_pool(network: Network, sites: int) -> Pool:
    """Return ``RECORDS`` random training records a site and none held out."""
    generator = torch.Generator().manual_seed(1)
    count = sites * RECORDS
    shape = (count, WIDTHS[0]) if network == "mlp" else (count, 1, 28, 28)
    classes = 2 if network == "mlp" else 10
    starts = np.arange(sites) * RECORDS
    return Pool(
        sites=tuple(f"site-{index:05d}" for index in range(sites)),
        inputs=torch.rand(shape, generator=generator),
        targets=torch.randint(classes, (count,), generator=generator),
        patients=None,
        starts=starts,
        splits=starts + RECORDS,
        ends=starts + RECORDS,
    )


class Ours:
    """The server's rounds over the local grid, the client's sites at its other end."""

    def __init__(
        self,
        network: Network,
        sites: int,
        *,
        workers: int = 1,
        masking: Masking = "none",
        cohort: int = 0,
    ) -> None:
        self.asked = cohort or sites
        study = made_up_study(network, sites, masking, cohort)
        trainer = Trainer(study, None)
        if trainer.parameters != PARAMETERS[network]:
            raise ValueError(f"expected {PARAMETERS[network]} parameters: {trainer.parameters}")
        self._folder = tempfile.TemporaryDirectory(prefix="fedward-benchmark-")
        first = first_state(study.aggregation, vector_of(build_network(study)))
        folder = Path(self._folder.name)
        records = made_up_pool(network, sites)
        self._federation = open_federation(study, records, trainer, folder, first, workers)
        start = Checkpoint(study.digest(), first, ())
        self._rounds: Iterator[Checkpoint] = run_rounds(
            study,
            start,
            self._federation.exchange,
            self._federation.summation,
            self._federation.cohorts,
            sites,
            keep=lambda _: None,
        )

    def round(self) -> float:
        """Run one round."""
        began = time.perf_counter()
        now = next(self._rounds)
        seconds = time.perf_counter() - began
        if now.history[-1]["sites"] != self.asked:
            raise RuntimeError(f"expected {self.asked} sites, got {now.history[-1]['sites']}")
        return seconds

    def __enter__(self) -> Self:
        """Return itself: rounds are run while it is open."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the workers and remove the folder."""
        self._federation.close()
        self._folder.cleanup()


class PlainLoop:
    """Federated averaging as one writes it by hand: one model, torch.optim.SGD, nothing else."""

    def __init__(self, network: Network, sites: int) -> None:
        pool = made_up_pool(network, sites)
        self._model = build_network(made_up_study(network, sites, "none", 0))
        self._global = [parameter.detach().clone() for parameter in self._model.parameters()]
        self._sum = [torch.zeros_like(parameter) for parameter in self._global]
        self._data = [
            (pool.inputs[start : start + RECORDS], pool.targets[start : start + RECORDS])
            for start in pool.starts.tolist()
        ]
        self._loss = nn.CrossEntropyLoss()
        self._generator = torch.Generator().manual_seed(2)

    def round(self) -> float:
        """Train every site for one epoch and average."""
        began = time.perf_counter()
        for total in self._sum:
            total.zero_()
        for inputs, targets in self._data:
            self._train(inputs, targets)
            with torch.no_grad():
                torch._foreach_add_(self._sum, list(self._model.parameters()))
        for kept, total in zip(self._global, self._sum, strict=True):
            torch.div(total, len(self._data), out=kept)
        return time.perf_counter() - began

    def _train(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        with torch.no_grad():
            for parameter, kept in zip(self._model.parameters(), self._global, strict=True):
                parameter.copy_(kept)
        optimizer = torch.optim.SGD(self._model.parameters(), lr=RATE)
        order = torch.randperm(RECORDS, generator=self._generator)
        for rows in torch.split(order, BATCH):
            optimizer.zero_grad()
            self._loss(self._model(inputs[rows]), targets[rows]).backward()
            optimizer.step()


class Pfl:
    """Apple's pfl in a process of its own, which runs a round when it is sent a line."""

    def __init__(self, sites: int) -> None:
        options: list[str | float] = ["--sites", sites, "--records", RECORDS, "--batch-size", BATCH]
        options += ["--learning-rate", RATE, "--widths", *WIDTHS]
        self._process = subprocess.Popen(
            [str(PEER), str(Path(__file__).with_name("pfl_peer.py")), *map(str, options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PFL_PYTORCH_DEVICE": "cpu"},
        )
        self._reported()  # its first round, which also evaluates, comes unasked

    def round(self) -> float:
        """Run one round; the seconds are those of the process itself."""
        if self._process.stdin is None:
            raise RuntimeError("expected a pipe to pfl")
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._reported()

    def _reported(self) -> float:
        line = "" if self._process.stdout is None else self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"pfl ended with exit code {self._process.wait()}")
        return float(line)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()  # closes stdin, at which it ends


# ---- the rows


def rate(sites: int, seconds: Sequence[float]) -> str:
    """Return the median speed, in site-rounds a second."""
    return f"{sites / statistics.median(seconds):,.0f}"


def cnn_row(*, quick: bool) -> Row:
    """Compare the CNN with the plain loop."""
    row = Row("cnn_local_vs_plain_loop", None, "ratio", "higher", 0.9, "")
    sites = 10 if quick else 100
    note = f"; {sites} sites"
    return _against_plain(row, "cnn", sites, 5 if quick else 7, note)


def mlp_row(*, quick: bool) -> Row:
    """Compare the MLP with the plain loop."""
    row = Row("mlp_local_vs_plain_loop", None, "ratio", "higher", 1.0, "")
    return _against_plain(row, "mlp", 100, 11 if quick else 61)


def _against_plain(row: Row, network: Network, sites: int, pairs: int, note: str = "") -> Row:
    plain = PlainLoop(network, sites)
    with Ours(network, sites) as ours:
        measured = interleave(ours.round, plain.round, pairs, 2 if network == "mlp" else 1)
    speeds = f"{rate(sites, measured.ours)} site-rounds/s, plain {rate(sites, measured.peer)}"
    return replace(row, value=measured.ratio(), note=f"{speeds}; {measured.quartiles()}{note}")


def pfl_row(*, quick: bool) -> Row:
    """Compare the MLP with pfl."""
    row = Row("mlp_local_vs_pfl", None, "ratio", "higher", 1.5, "")
    if not PEER.exists():
        return replace(row, note="peer absent: `make peers`")
    pfl = Pfl(100)
    try:
        with Ours("mlp", 100) as ours:
            measured = interleave(ours.round, pfl.round, 9 if quick else 61)
    finally:
        pfl.close()
    speeds = f"{rate(100, measured.ours)} site-rounds/s, pfl {rate(100, measured.peer)}"
    return replace(row, value=measured.ratio(), note=f"{speeds}; {measured.quartiles()}")


def workers_row(*, quick: bool) -> Row:
    """Compare two worker processes with none, one thread each."""
    row = Row("workers2_vs_1", None, "ratio", "higher", 1.15, "")
    # Workers are forked first, from a process that has not computed yet.
    with Ours("mlp", 100, workers=2) as two, Ours("mlp", 100) as one:
        measured = interleave(two.round, one.round, 11 if quick else 61)
    speeds = f"{rate(100, measured.ours)} site-rounds/s, one {rate(100, measured.peer)}"
    note = f"{speeds}; {measured.quartiles()}; {load()}"
    return replace(row, value=measured.ratio(), note=note)


def mlp_masked_row(*, quick: bool) -> Row:
    """Time a masked round of small sites, and what the masks add to it."""
    row = Row("mlp_masked_ms_per_site", None, "ms", "lower", 15.0, "")
    rounds = PAIRS_MIN if quick else 21
    with Ours("mlp", COHORT, masking="fsa1") as masked, Ours("mlp", COHORT) as bare:
        same = interleave(masked.round, bare.round, rounds)
    note = f"the same {COHORT} sites, whole round; {_ms(same.peer):.2f} ms without masks"
    if not quick:
        with Ours("mlp", 2 * COHORT, masking="fsa1", cohort=COHORT) as drawn:
            seconds = [drawn.round() for _ in range(PAIRS_MIN + 1)][1:]
        note += f", {_ms(seconds):.2f} ms when each round draws a cohort, which then agrees on keys"
    return replace(row, value=_ms(same.ours), note=note)


def _ms(seconds: Sequence[float]) -> float:
    return 1000 * statistics.median(seconds) / COHORT


def cnn_masked_row(*, quick: bool) -> Row:
    """Compare a masked round of the CNN with the plain loop."""
    row = Row("cnn_masked_vs_plain_loop", None, "ratio", "higher", 0.4, "")
    if quick:
        return replace(row, note="not measured by --quick")
    plain = PlainLoop("cnn", COHORT)
    with Ours("cnn", COHORT, masking="fsa1") as masked:
        measured = interleave(masked.round, plain.round, PAIRS_MIN, warm=1)
    speeds = f"{rate(COHORT, measured.ours)} site-rounds/s, plain {rate(COHORT, measured.peer)}"
    note = f"the same {COHORT} sites; {speeds}; {measured.quartiles()}"
    return replace(row, value=measured.ratio(), note=note)


def noop_row(*, quick: bool) -> Row:
    """Time messages and dispatch alone: a ClientApp that answers at once."""
    sites = 2_000 if quick else 10_000
    names = {f"site-{index:05d}": index + 1 for index in range(sites)}
    grid = LocalGrid(make_app(("noop",), lambda *_: b"done"), names.values())
    exchange = make_exchange(grid, names)
    outgoing = dict.fromkeys(names, b"order")
    seconds = []
    for _ in range(PAIRS_MIN + 2):
        began = time.perf_counter()
        answered = sum(1 for _ in exchange("noop", outgoing, 600.0))
        seconds.append(time.perf_counter() - began)
        if answered != sites:
            raise RuntimeError(f"expected {sites} answers, got {answered}")
    speed = sites / statistics.median(seconds[2:])
    note = f"{sites:,} sites, {1e6 / speed:.0f} us each, median of {PAIRS_MIN}"
    return Row("noop_sites_per_s", speed, "sites/s", "higher", None, note)


def memory_row(*, quick: bool) -> Row:
    """Compare the peak memory of 1,000 virtual sites with that of 100, a fresh process each."""
    row = Row("rss_1000_vs_100_sites", None, "ratio", "lower", 1.2, "")
    kinds: tuple[Masking, ...] = ("none",) if quick else ("none", "fsa1")
    ratios, notes = [], []
    for masking in kinds:
        few, many = _peak_mib(100, masking), _peak_mib(1_000, masking)
        name = "plain" if masking == "none" else f"masked, cohorts of {COHORT}"
        ratios.append(many / few)
        notes.append(f"{name}: {many:.0f} to {few:.0f} MiB = {many / few:.2f}")
    if quick:
        notes.append("masked: not measured by --quick")
    return replace(row, value=max(ratios), note="; ".join(notes))


def _peak_mib(sites: int, masking: Masking) -> float:
    """Run this file once more, as the process that is weighed."""
    command = [sys.executable, __file__, "--weigh", str(sites), "--masking", masking]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def weigh(sites: int, masking: Masking) -> float:
    """Run three rounds of small sites and return this process's peak memory in MiB."""
    with Ours("mlp", sites, masking=masking, cohort=COHORT if masking == "fsa1" else 0) as ours:
        for _ in range(3):
            ours.round()
    return peak_bytes() / 2**20


ROWS: tuple[Callable[..., Row], ...] = (
    cnn_row,
    mlp_row,
    pfl_row,
    workers_row,
    mlp_masked_row,
    cnn_masked_row,
    noop_row,
    memory_row,
)


def main() -> None:
    """Measure the rows one after the other."""
    parser = options(__doc__)
    parser.add_argument("--weigh", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--masking", choices=("none", "fsa1"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.weigh:
        print(weigh(asked.weigh, asked.masking))
        return
    rows = measure(ROWS, quick=asked.quick)
    about = {**machine(), "torch": torch.__version__}
    show("simulation", rows, about, as_json=asked.json)


if __name__ == "__main__":
    main()
