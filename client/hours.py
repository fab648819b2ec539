"""Hours of work: the windows of the week in which a site's policy lets it work, by its own clock.

It reads no clock and waits for nothing: callers say what time it is, as the wall of the hospital
shows it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")  # as datetime.weekday counts them
DAY_MINUTES = 24 * 60
_WINDOW = re.compile(r"(?:([a-z,-]+) )?(\d\d):(\d\d)-(\d\d):(\d\d)")
_WANTED = "expected hours as '20:00-06:00' or 'mon-fri 20:00-06:00'"


@dataclass(frozen=True)
class Window:
    """A part of some days; it belongs to the day on which it begins.

    Attributes:
        days: on which it begins, 0 for Monday.
        begin: minutes after midnight.
        end: minutes after the same midnight, not included; above 1440 on the day after.
    """

    days: frozenset[int]
    begin: int
    end: int

    def holds(self, now: datetime) -> bool:
        """Say whether ``now``, by the wall clock, lies in it."""
        minute, day = now.hour * 60 + now.minute, now.weekday()
        return any(
            (day - late) % 7 in self.days and self.begin <= minute + late * DAY_MINUTES < self.end
            for late in (0, 1)
        )


def read_window(text: str) -> Window:
    """Return the window that a text names: perhaps days, then from when to when.

    Days are mon to sun, ranges of them (fri-mon) and lists (sat,sun); none are all. An end that is
    not after the beginning is on the next day; 24:00 is midnight.

    Raises:
        ValueError: it is no such text.
    """
    found = _WINDOW.fullmatch(text)
    if found is None:
        raise ValueError(f"{_WANTED}, found {text!r}")
    names, *digits = found.groups()
    hour, minute, end_hour, end_minute = map(int, digits)
    begin, end = hour * 60 + minute, end_hour * 60 + end_minute
    if max(minute, end_minute) > 59 or begin >= DAY_MINUTES or end > DAY_MINUTES or begin == end:
        raise ValueError(f"{_WANTED}, found {text!r}")
    days = frozenset(range(7)) if names is None else _days(names, text)
    return Window(days, begin, end if end > begin else end + DAY_MINUTES)


def is_open(windows: Sequence[Window], now: datetime) -> bool:
    """Say whether work may begin at ``now``: in one of the windows, or at any time without any."""
    return not windows or any(window.holds(now) for window in windows)


def opening(windows: Sequence[Window], now: datetime) -> datetime:
    """Return when work may begin: ``now``, or the next beginning of a window."""
    if is_open(windows, now):
        return now
    midnights = [datetime.combine(now + timedelta(days), time()) for days in range(8)]
    return min(
        begins
        for window in windows
        for midnight in midnights
        if midnight.weekday() in window.days
        and (begins := midnight + timedelta(minutes=window.begin)) > now
    )


def _days(names: str, text: str) -> frozenset[int]:
    days: set[int] = set()
    for part in names.split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise ValueError(f"expected days of {', '.join(DAYS)}, found {text!r}")
        start = DAYS.index(first)
        length = (DAYS.index(last) - start) % 7 if dash else 0
        days.update((start + step) % 7 for step in range(length + 1))
    return frozenset(days)
