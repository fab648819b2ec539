"""Asking for large pages: it reaches the system, and it changes no byte, whatever the size."""

import ctypes
import re
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
    room = bytearray(64 * MIB)  # not yet written to
    assert not _advised(room)

    ask_for_large_pages(memoryview(room))

    assert _advised(room)


def _advised(room: bytearray) -> bool:
    """Say whether the middle of ``room`` is under advice for large pages (flag hg)."""
    middle = ctypes.addressof(ctypes.c_char.from_buffer(room, len(room) // 2))
    here = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            here = int(found[1], 16) <= middle < int(found[2], 16)
        elif here and line.startswith("VmFlags:"):
            return "hg" in line.split()
    raise AssertionError("the room lies in no mapping")
