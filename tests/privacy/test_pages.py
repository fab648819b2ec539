"""Asking for large pages: it reaches the system, and it changes no byte, whatever the size."""

import sys
from pathlib import Path

import pytest

from privacy.pages import ask_for_large_pages

MIB = 1 << 20


@pytest.mark.parametrize("size", [0, 1, 5 * MIB, 33 * MIB + 7])
def test_no_byte_is_changed(size: int) -> None:
    room = bytearray(b"\x07" * size)

    ask_for_large_pages(memoryview(room)[min(1, size) :])

    assert room == b"\x07" * size


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's account of memory is Linux's")
def test_the_system_is_asked() -> None:
    room = bytearray(64 * MIB)  # calloc: not yet written to
    before = _advised()

    ask_for_large_pages(memoryview(room))

    assert _advised() - before >= 60 * MIB


def _advised() -> int:
    """Return how many bytes of this process are under advice for large pages (flag hg)."""
    total = size = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.startswith("Size:"):
            size = int(line.split()[1]) * 1024
        elif line.startswith("VmFlags:") and " hg" in line:
            total += size
    return total
