"""How long a site's books take: long histories added up, long ledgers verified, noise calibrated.

It judges no figure: the tests do. Every history is added up from nothing, in emptied caches.
"""

import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rows import Row, machine, measure, options, show

from privacy import accounting, losses
from privacy.accounting import Event, epsilon, noise_multiplier
from privacy.ledger import Ledger

REPEATS_MIN = 5
DELTA = 1e-5
ROWS = 10_000
RATES = (0.001, 0.01, 0.05, 0.1, 0.5)
NOISES = (0.9, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)


def event(study: str, phase: str, rate: float, noise: float, steps: int) -> Event:
    return Event.model_validate(
        {
            "study": study,
            "dataset": "ward",
            "unit": "record",
            "sampling_rate": rate,
            "noise_multiplier": noise,
            "clipping_norm": 1.0,
            "steps": steps,
            "denominator": 16.0,
            "mode": "local",
            "phase": phase,
        }
    )


def trained() -> list[Event]:
    """Five hundred training events of forty kinds, in fifty studies."""
    draw = random.Random(5)
    kinds = [(rate, noise) for rate in RATES for noise in NOISES]
    return [
        event(f"study {n // 10}", "train", *draw.choice(kinds), draw.randint(1, 20))
        for n in range(500)
    ]


def evaluated() -> list[Event]:
    """Five hundred events of forty kinds in twenty studies that each train and evaluate."""
    draw = random.Random(6)
    events = []
    for study in range(20):
        rate, noise = draw.choice(RATES[:4]), draw.uniform(0.9, 4)
        cells = draw.uniform(10, 40)
        for n in range(25):
            phase = "evaluate" if n % 5 == 0 else "train"
            kind = (1.0, cells) if phase == "evaluate" else (rate, noise)
            events.append(event(f"study {study}", phase, *kind, draw.randint(1, 20)))
    return events


def forget() -> None:
    """Empty every cache, so that a history is added up as in a new process."""
    for cached in (losses._step, losses._rdp_step, losses._rdp_group, accounting._cost):
        cached.cache_clear()
    accounting._calibrate.cache_clear()


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the median wall time of ``work``, from emptied caches."""
    taken = []
    for _ in range(repeats):
        forget()
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def history_500_row(*, quick: bool) -> Row:
    """Add up five hundred events of forty kinds."""
    return _history("history_500_s", trained(), quick=quick)


def history_500_evaluated_row(*, quick: bool) -> Row:
    """Add up five hundred events of studies in which a record pays for one of two sides."""
    return _history("history_500_evaluated_s", evaluated(), quick=quick)


def _history(name: str, events: list[Event], *, quick: bool) -> Row:
    repeats = 1 if quick else REPEATS_MIN
    spent = epsilon(events, DELTA)  # dp-accounting is imported here, not while it is timed
    value = seconds(lambda: epsilon(events, DELTA), repeats)
    note = f"epsilon {spent.epsilon:.3f}, RDP {spent.rdp_epsilon:.3f}; median of {repeats}"
    return Row(name, value, "s", "lower", 10.0, note)


def calibrate_row(*, quick: bool) -> Row:
    """Find the noise of a study by bisection."""
    repeats = 1 if quick else REPEATS_MIN
    found = noise_multiplier(2.0, DELTA, 0.05, 440)
    value = seconds(lambda: noise_multiplier(2.0, DELTA, 0.05, 440), repeats)
    note = f"epsilon 2, q .05, 440 steps: {found:.4f}; median of {repeats}"
    return Row("calibrate_s", value, "s", "lower", None, note)


def verify_row(*, quick: bool) -> Row:
    """Verify ten thousand rows against an end that others have signed."""
    repeats = REPEATS_MIN if quick else 2 * REPEATS_MIN
    one = event("study", "train", 0.05, 1.2, 10)
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "ledger.db") as ledger:
        _hasten(ledger._connection)
        for number in range(ROWS):
            ledger.debit(one, f"round {number}")
        head = ledger.head()
        value = seconds(lambda: ledger.verify(head), repeats)
    note = f"{ROWS:,} rows, median of {repeats}"
    return Row("ledger_verify_10000_s", value, "s", "lower", 1.0, note)


def append_row(*, quick: bool) -> Row:
    """Debit once, durably, in a ledger that is opened for it."""
    count = 200 if quick else 1000
    one = event("study", "train", 0.05, 1.2, 10)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        taken = []
        for number in range(count):
            began = time.perf_counter()
            with Ledger(path) as ledger:
                ledger.debit(one, f"round {number}")
            taken.append(time.perf_counter() - began)
    value = 1000 * statistics.median(taken)
    note = f"opened, written, synced, closed; median of {count}"
    return Row("ledger_debit_ms", value, "ms", "lower", None, note)


def _hasten(connection: sqlite3.Connection) -> None:
    """Fill a ledger of a benchmark without waiting for the disk."""
    connection.execute("PRAGMA synchronous = OFF")


MEASURES = {
    "history_500_s": history_500_row,
    "history_500_evaluated_s": history_500_evaluated_row,
    "calibrate_s": calibrate_row,
    "ledger_verify_10000_s": verify_row,
    "ledger_debit_ms": append_row,
}


def main() -> None:
    """Measure the rows one after the other."""
    parser = options(__doc__)
    parser.add_argument("--only", choices=tuple(MEASURES), help="measure one row")
    asked = parser.parse_args()
    chosen = [row for name, row in MEASURES.items() if asked.only in {None, name}]
    rows = measure(chosen, quick=asked.quick)
    show("accounting", rows, {**machine(), "sqlite": sqlite3.sqlite_version}, as_json=asked.json)


if __name__ == "__main__":
    main()
