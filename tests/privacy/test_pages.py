"""Asking for large pages: it reaches the system, and it changes no byte, whatever the size."""

import subprocess
import sys

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
    """In a process of its own, where no other vector's advice hangs on to the memory."""
    script = """
import ctypes, re
from privacy.pages import ask_for_large_pages

def advised(room):
    middle = ctypes.addressof(ctypes.c_char.from_buffer(room, len(room) // 2))
    for lines in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", open("/proc/self/smaps").read())[1:]:
        first, last = (int(one, 16) for one in lines.split()[0].split("-"))
        if first <= middle < last:
            return " hg" in lines[lines.index("VmFlags:"):]

room = bytearray(64 << 20)
before = advised(room)
ask_for_large_pages(memoryview(room))
print(before, advised(room))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.stdout == "False True\n", ended
