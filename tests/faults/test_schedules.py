"""Seeded schedules of faults: after each one, what must always hold was checked at every step.

One that fails is replayed alone with the command that the failure shows.
"""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ONE = os.environ.get("FEDWARD_FAULT_SEED")
IN_TEST = [range(start, start + 100) for start in range(0, 1_000, 100)]
IN_SOAK = [range(start, start + 250) for start in range(1_000, 51_000, 250)]
if ONE is not None:
    IN_TEST, IN_SOAK = [range(int(ONE), int(ONE) + 1)], []

Play = Callable[[int, Path], Any]


class Played(NamedTuple):
    aborted: Counter[str]  # attempts, by reason
    ends: Counter[str]  # of studies; "" is a finished one
    opened: list[int]  # sums of each schedule


def outcome(play: Play, seeds: range, folder: Path) -> Played:
    aborted: Counter[str] = Counter()
    opened, ends = [], Counter[str]()
    for seed in seeds:
        try:
            report = play(seed, folder)
        except Exception as error:
            raise AssertionError(
                f"schedule {seed}: {type(error).__name__}: {error}; again alone: "
                f"FEDWARD_FAULT_SEED={seed} .venv/bin/python -m pytest tests/faults"
            ) from error
        aborted += report.aborted
        ends[report.end] += 1
        opened.append(len(report.opened))
    return Played(aborted, ends, opened)


def assert_telling(played: Played) -> None:
    """The faults were neither so rare nor so common that the schedules prove little."""
    aborted, ends, opened = played
    if len(opened) == 1:
        return
    several = sum(count >= 3 for count in opened) / len(opened)
    assert several > 0.9, f"{several:.0%} of the schedules opened three sums"
    assert len(aborted) >= 5, f"attempts were aborted for {sorted(aborted)} alone"
    assert ends[""] > 0.8 * len(opened), f"studies ended with {ends}"


@pytest.mark.parametrize("seeds", IN_TEST, ids=str)
def test_a_schedule_of_faults_opens_only_true_sums(
    seeds: range, play: Play, tmp_path: Path
) -> None:
    assert_telling(outcome(play, seeds, tmp_path))


@pytest.mark.soak
@pytest.mark.parametrize("seeds", IN_SOAK, ids=str)
def test_many_schedules_of_faults_open_only_true_sums(
    seeds: range, play: Play, tmp_path: Path
) -> None:
    assert_telling(outcome(play, seeds, tmp_path))
