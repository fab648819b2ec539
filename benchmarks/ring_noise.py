"""What one sample of the ring's noise costs, and what numpy's Poisson costs in the same run.

It measures the sampler alone, on one thread; whether the samples are right is the tests' business.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time

import numpy as np

from privacy.ring_noise import ring_noise
from privacy.stream import Stream, fresh_key

SIGMA = 1 << 18  # ring steps: a usual share, as of 16 deviations at a scale of 2^16 over one root
SAMPLES = 1 << 20
TURNS = 9


def rows(*, quick: bool) -> list[dict[str, object]]:
    """Return the two rows, both sides interleaved in this process; medians over the turns."""
    turns, samples = (5, SAMPLES // 4) if quick else (TURNS, SAMPLES)
    noise = ring_noise(SIGMA**2)
    stream = Stream(fresh_key())
    # A Poisson variable of the same variance; a Skellam sample would take two of them.
    generator = np.random.Generator(np.random.PCG64())
    ours, peer = [], []
    for turn in range(-1, turns):  # the first is to warm up
        began = time.perf_counter()
        noise.sample(samples, stream)
        middle = time.perf_counter()
        generator.poisson(float(SIGMA) ** 2, samples)
        ended = time.perf_counter()
        if turn >= 0:
            ours.append((middle - began) / samples * 1e9)
            peer.append((ended - middle) / samples * 1e9)
    ratios = [one / other for one, other in zip(ours, peer, strict=True)]
    low, high = np.quantile(ratios, (0.25, 0.75))
    note = f"sigma 2^18, {samples:,} samples, median of {turns}"
    return [
        _row("ring_noise_ns", statistics.median(ours), "ns", 40.0, note),
        _row(
            "ring_noise_vs_numpy_poisson",
            statistics.median(ratios),
            "ratio",
            1.0,
            f"{note}; numpy {statistics.median(peer):.1f} ns; quartiles {low:.2f} to {high:.2f}",
        ),
    ]


def _row(name: str, value: float, unit: str, target: float, note: str) -> dict[str, object]:
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "better": "lower",
        "target": target,
        "note": note,
    }


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    parser.add_argument("--quick", action="store_true", help="fewer samples")
    asked = parser.parse_args()
    measured = rows(quick=asked.quick)
    about = {
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    if asked.json:
        json.dump({"benchmark": "ring_noise", "machine": about, "rows": measured}, sys.stdout)
        print()
        return
    for row in measured:
        print(
            f"{row['name']:30}{row['value']:8.2f} {row['unit']:6} <= {row['target']}  {row['note']}"
        )


if __name__ == "__main__":
    main()
