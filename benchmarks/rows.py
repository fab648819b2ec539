"""What benchmarks share: rows, turns of two sides, the machine, and how all of it is shown.

It measures nothing by itself. The scripts beside it import it from their own folder.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

PAIRS_MIN = 5
TOLERANCE = 0.05  # a target is met within 5 %


@dataclass(frozen=True)
class Row:
    """One line of the result; ``value`` is None when it was not measured, and the note says why."""

    name: str
    value: float | None
    unit: str
    better: Literal["higher", "lower"]
    target: float | None
    note: str

    def missed(self) -> bool:
        """Whether there is a target and the value is not within 5 % of it."""
        if self.value is None or self.target is None:
            return False
        if self.better == "higher":
            return not self.value >= self.target * (1 - TOLERANCE)
        return not self.value <= self.target * (1 + TOLERANCE)


@dataclass(frozen=True)
class Pairs:
    """Seconds of one round of each side, one pair after the other."""

    ours: Sequence[float]
    peer: Sequence[float]

    def ratio(self) -> float:
        """Median over the pairs of how many times faster ours is, at equal work."""
        return statistics.median(self._ratios())

    def quartiles(self) -> str:
        """The middle half of the ratios."""
        low, _, high = statistics.quantiles(self._ratios(), n=4)
        return f"{len(self.ours)} pairs, middle half {low:.2f} to {high:.2f}"

    def times(self) -> str:
        """The median time of each side."""
        ours, peer = (1000 * statistics.median(side) for side in (self.ours, self.peer))
        return f"{ours:.1f} ms and {peer:.1f} ms"

    def _ratios(self) -> list[float]:
        return [peer / ours for ours, peer in zip(self.ours, self.peer, strict=True)]


def interleave(
    ours: Callable[[], float], peer: Callable[[], float], pairs: int, warm: int = 2
) -> Pairs:
    """Run both sides in turn, the first of a pair changing, after ``warm`` rounds of each.

    Args:
        ours: runs one round and returns its seconds.
        peer: the same of the other side.
        pairs: at least ``PAIRS_MIN`` are run.
        warm: rounds of each that do not count.
    """
    for _ in range(warm):
        ours()
        peer()
    left, right = [], []
    for index in range(max(pairs, PAIRS_MIN)):
        if index % 2:
            right.append(peer())
            left.append(ours())
        else:
            left.append(ours())
            right.append(peer())
    return Pairs(left, right)


def peak_bytes() -> int:
    """Return the most memory that this process has had."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent's memory at the fork too
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 2**10
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def load() -> str:
    """Say how busy the machine is."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def machine() -> dict[str, object]:
    """Say what the figures were measured on."""
    model = platform.processor() or platform.machine()
    cpus = Path("/proc/cpuinfo")
    if cpus.exists():
        found = [line for line in cpus.read_text().splitlines() if line.startswith("model name")]
        model = found[0].split(":", 1)[1].strip() if found else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def options(about: str | None) -> argparse.ArgumentParser:
    """Return the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: under 50 s")
    return parser


def measure(rows: Sequence[Callable[..., Row]], *, quick: bool) -> list[Row]:
    """Measure the rows one after the other, and say which one on stderr.

    Args:
        rows: functions of the one keyword ``quick``; their names end in ``_row``.
        quick: fewer or smaller rounds.
    """
    measured = []
    for index, row in enumerate(rows, 1):
        name = row.__name__.removesuffix("_row")
        print(f"[{index}/{len(rows)}] {name} ...", file=sys.stderr, flush=True)
        done = row(quick=quick)
        mark = "target missed; " if done.missed() else ""
        measured.append(replace(done, note=mark + done.note))
    return measured


def show(benchmark: str, rows: Sequence[Row], about: dict[str, object], *, as_json: bool) -> None:
    """Print one JSON document, or a table for people."""
    if as_json:
        listed = [asdict(row) for row in rows]
        print(json.dumps({"benchmark": benchmark, "machine": about, "rows": listed}, indent=1))
        return
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    for row in rows:
        sign = ">=" if row.better == "higher" else "<="
        target = "" if row.target is None else f"{sign} {row.target:g}"
        mark = "MISSED" if row.missed() else ""
        print(f"{row.name:30}{_figure(row.value):>10} {row.unit:8}{target:9}{mark:7} {row.note}")


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    if abs(value) >= 1:
        return f"{value:,.2f}"
    return f"{value:.4f}" if abs(value) >= 0.001 else f"{value:.1e}"  # 9.3e-10 is no zero
