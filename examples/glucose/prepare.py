"""Writes one NPZ of the diabetes logs: a record is a glucose reading and the visits before it.

python examples/glucose/prepare.py FOLDER OUT.npz

FOLDER holds data-01 to data-70: date, time, code and value of each event. What was written down at
one time is one step: a reading, and doses of regular, NPH and ultralente insulin. A dose at the
time of a reading answers it, and so is no input of that reading. A reading is no record when its
patient has none before it. Lines that are no event (a date that does not exist, a value that is no
number) and readings outside 20 to 600 mg/dl are left out and counted.
"""

import sys
from datetime import datetime
from pathlib import Path

import numpy as np

STEPS = 32
VARIABLES = ("glucose", "regular", "NPH", "ultralente", "hours before", "clock apart")
DOSES = {33: 1, 34: 2, 35: 3}  # code -> variable
SLOTS = {58: 0, 59: 1, 60: 2, 61: 3, 62: 4, 63: 5, 64: 6, 48: 7, 57: 7}  # code -> slot of a reading
NAMES = (
    "before breakfast", "after breakfast", "before lunch", "after lunch", "before supper",
    "after supper", "before a snack", "unspecified",
)  # fmt: skip
HOUR = 3600.0


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    folder, out = map(Path, sys.argv[1:])
    logs = sorted(folder.glob("data-[0-9][0-9]"))
    if not logs:
        print(f"{folder}: expected data-01 and more, found none", file=sys.stderr)
        return 2
    records, left_out = [], 0
    try:
        for log in logs:
            events, bad = read(log)
            left_out += bad
            records += [(log.name, *one) for one in windows(visits(events))]
        patients, series, slots, hours, readings = zip(*records, strict=True)
        arrays = {
            "visits": np.stack(series).astype(np.float32),  # (N, 32, 6)
            "slot": np.array([NAMES[slot] for slot in slots]),
            "hour": np.array(hours, dtype=np.float32),
            "next": np.array(readings, dtype=np.float32),
            "patient": np.array(patients),
        }
        np.savez_compressed(out, **arrays)
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    print(
        f"{out}: {len(records)} readings of {len(logs)} patients; {left_out} lines left out",
        file=sys.stderr,
    )
    return 0


Event = tuple[float, int, float]  # seconds, code, value
Visit = tuple[float, int, np.ndarray]  # seconds, slot of its reading or -1, (4,) reading and doses


def read(log: Path) -> tuple[list[Event], int]:
    """Return the events in order, and how many lines were none."""
    events, bad = [], 0
    for line in log.read_text(encoding="latin-1").splitlines():
        try:
            date, clock, code, value = line.split("\t")
            when = datetime.strptime(f"{date} {clock}", "%m-%d-%Y %H:%M")
            event = ((when - datetime(1970, 1, 1)).total_seconds(), int(code), float(value))
        except ValueError:
            bad += 1
            continue
        if event[1] in SLOTS and not 20 <= event[2] <= 600:
            bad += 1
        elif event[1] in SLOTS or event[1] in DOSES:
            events.append(event)
    return sorted(events, key=lambda event: event[0]), bad


def visits(events: list[Event]) -> list[Visit]:
    """Return what was written down at each time; of two readings at one time, the last."""
    found: dict[float, tuple[int, np.ndarray]] = {}
    for when, code, value in events:
        slot, values = found.get(when, (-1, np.array([np.nan, 0.0, 0.0, 0.0])))
        if code in SLOTS:
            slot, values[0] = SLOTS[code], value
        else:
            values[DOSES[code]] += value
        found[when] = (slot, values)
    return [(when, *one) for when, one in found.items()]


def windows(visits: list[Visit]) -> list[tuple[np.ndarray, int, float, float]]:
    """Return (32, 6) visits before a reading, its slot, hour and value; NaN before the first."""
    found = []
    for place, (when, slot, values) in enumerate(visits):
        before = visits[max(0, place - STEPS) : place]
        if slot < 0 or not any(one >= 0 for _, one, _ in before):
            continue
        series = np.full((STEPS, len(VARIABLES)), np.nan)
        for row, (earlier, _, own) in enumerate(before, start=STEPS - len(before)):
            gap = (when - earlier) / HOUR
            series[row] = (*own, gap, abs((gap + 12) % 24 - 12))
        found.append((series, slot, when / HOUR % 24, values[0]))
    return found


if __name__ == "__main__":
    sys.exit(main())
