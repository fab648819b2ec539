"""Hours of work: which windows a text names, what lies in them, and when the next one begins."""

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.hours import DAY_MINUTES, DAYS, Window, is_open, opening, read_window

MONDAY = datetime(2026, 3, 2)


def at(day: str, clock: str) -> datetime:
    hour, minute = clock.split(":")
    return MONDAY + timedelta(days=DAYS.index(day), hours=int(hour), minutes=int(minute))


@pytest.mark.parametrize(
    ("text", "days", "begin", "end"),
    [
        ("20:00-06:00", "mon tue wed thu fri sat sun", 1200, 1800),
        ("08:30-17:15", "mon tue wed thu fri sat sun", 510, 1035),
        ("mon-fri 20:00-24:00", "mon tue wed thu fri", 1200, 1440),
        ("fri-mon 00:00-24:00", "fri sat sun mon", 0, 1440),
        ("sat,sun 23:00-01:00", "sat sun", 1380, 1500),
        ("mon,wed-thu 12:00-00:00", "mon wed thu", 720, 1440),
        ("wed-wed 01:00-02:00", "wed", 60, 120),
    ],
)
def test_a_text_names_a_window(text: str, days: str, begin: int, end: int) -> None:
    assert read_window(text) == Window(
        frozenset(DAYS.index(day) for day in days.split()), begin, end
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "20-06",
        "20:00-20:00",
        "24:00-06:00",
        "20:00-24:01",
        "20:60-22:00",
        "20:00 - 22:00",
        "8:00-17:00",
        "Mon 20:00-06:00",
        "mo 20:00-06:00",
        "mon- 20:00-06:00",
        "mon,,tue 20:00-06:00",
        "mon  20:00-06:00",
        "20:00-06:00 mon",
        "20:00-06:00\n",
        "٢٠:00-06:00x",
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        read_window(text)


@pytest.mark.parametrize(
    ("day", "clock", "works"),
    [
        ("mon", "19:59", False),
        ("mon", "20:00", True),
        ("tue", "05:59", True),
        ("tue", "06:00", False),
        ("fri", "23:59", True),
        ("sat", "05:59", True),  # of the window that began on Friday
        ("sat", "20:00", False),
        ("mon", "05:59", False),  # the window of Sunday is none
    ],
)
def test_a_window_over_midnight_belongs_to_the_day_it_begins(
    day: str, clock: str, works: bool
) -> None:
    assert is_open([read_window("mon-fri 20:00-06:00")], at(day, clock)) is works


def test_without_windows_it_is_always_open() -> None:
    assert is_open([], MONDAY)
    assert opening([], MONDAY) == MONDAY


@pytest.mark.parametrize(
    ("now", "then"),
    [
        (at("mon", "12:34"), at("mon", "20:00")),
        (at("mon", "20:00"), at("mon", "20:00")),
        (at("sat", "06:00"), at("mon", "20:00") + timedelta(days=7)),
        (at("fri", "06:01"), at("fri", "20:00")),
    ],
)
def test_the_next_opening_is_told(now: datetime, then: datetime) -> None:
    assert opening([read_window("mon-fri 20:00-06:00")], now) == then


def test_the_nearest_of_several_windows_opens() -> None:
    windows = [read_window("sun 01:00-02:00"), read_window("tue,sat 03:00-04:00")]
    assert opening(windows, at("wed", "00:00")) == at("sat", "03:00")
    assert opening(windows, at("sat", "04:00")) == at("sun", "01:00")


minutes = st.integers(0, DAY_MINUTES - 1)
windows = st.builds(
    lambda days, begin, length: Window(frozenset(days), begin, begin + length),
    st.sets(st.integers(0, 6), min_size=1),
    minutes,
    st.integers(1, DAY_MINUTES),
)


@given(st.lists(windows, min_size=1, max_size=3), st.integers(0, 7 * DAY_MINUTES - 1))
def test_it_opens_when_it_says_and_not_before(found: list[Window], minute: int) -> None:
    """Against a walk through the minutes."""
    now = MONDAY + timedelta(minutes=minute)
    then = opening(found, now)
    assert is_open(found, then)
    step = now
    while step < then:
        assert not is_open(found, step)
        step += timedelta(minutes=1)
