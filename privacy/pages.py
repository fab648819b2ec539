"""Large pages for a vector that Python allocates: its first writes to small ones take long.

It allocates nothing and changes no byte. numpy asks the same for its own large arrays.
"""

import ctypes
import mmap

_LARGE = 1 << 21  # bytes of a large page of x86-64 and of ARM with small pages of 4 KiB
_ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux alone has it


def ask_for_large_pages(room: memoryview) -> None:
    """Ask the system to back ``room`` (writable, not yet written to) with large pages.

    A system that has none, or does not want to, changes nothing.
    """
    if _ADVICE is None or len(room) < 2 * _LARGE:
        return
    start = ctypes.addressof(ctypes.c_char.from_buffer(room))
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE  # advice is for whole pages, none of others'
    size = (start + len(room) - first) // mmap.PAGESIZE * mmap.PAGESIZE
    advise = ctypes.CDLL(None).madvise
    advise(ctypes.c_void_p(first), ctypes.c_size_t(size), ctypes.c_int(_ADVICE))
