"""How much memory the server of masked rounds takes: it runs in a process of its own.

`weigh` plays the sites and starts that process, which is this file once more. It times nothing.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rows import peak_bytes
from secagg_ours import LANES, START, VALUE_BOUND, made_up, people

from privacy import secagg_setup, secagg_site
from privacy.encoding import Encoding, RingBits
from privacy.roster import Kind
from privacy.secagg_messages import NO_RESULT
from privacy.stream import Stream, fresh_key
from server.masked import MaskedSum
from server.rounds import Order
from server.store import ServerStore
from shared_models.messages import greeting, place, read_call, read_directions
from shared_models.strategies import state_hash

ROUNDS = 2  # with the second, the order brings the sum before it
STATES = tuple(b"a model after %d rounds" % number for number in range(ROUNDS))


def weigh(n: int, values: int, ring_bits: RingBits = 32, *, keep: bool) -> int:
    """Return the bytes that a server's process grows by in rounds of n sites.

    Args:
        n: sites, none of which drops out.
        values: of each vector.
        ring_bits: 16 or 32.
        keep: whether the server keeps the attempt on disk, as it will between hospitals.
    """
    sites = _Sites(n, values, ring_bits)
    kept = "kept" if keep else "bare"
    command = [sys.executable, __file__, str(n), str(values), str(ring_bits), kept]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        if server.stdin is None or server.stdout is None:
            raise RuntimeError("expected pipes to the server")
        while line := server.stdout.readline():
            asked = json.loads(line)
            if "grown" in asked:
                return int(asked["grown"])
            message = server.stdout.read(asked["bytes"])
            answer = sites.answer(asked["kind"], asked["site"], message)
            server.stdin.write(b"%d\n" % len(answer))
            server.stdin.write(answer)
            server.stdin.flush()
        raise RuntimeError(f"expected a server, it ended with exit code {server.wait()}")


class _Sites:
    """Honest sites, each at its phase, with what it is to be asked next."""

    def __init__(self, n: int, values: int, ring_bits: RingBits) -> None:
        self._phases: dict[int, Any] = dict(enumerate(people(n, values, ring_bits)[1]))
        self._grouped: dict[int, secagg_setup.Grouped] = {}
        self._results = dict.fromkeys(range(n), (0, NO_RESULT))  # rounds done, the last Result
        self._values, self._encoding = values, Encoding(ring_bits, n, VALUE_BOUND)

    def answer(self, kind: str, index: int, message: bytes) -> bytes:
        if kind == "group":
            self._grouped[index] = secagg_setup.group(self._phases[index], message)
            return b""
        steps: dict[str, Callable[[Any, bytes], tuple[Any, bytes]]] = {
            "hello": _greet,
            "roster": secagg_setup.join,
            "start": lambda phase, told: self._start(phase, told, index),
            "cohort": lambda phase, cohort: self._mask(secagg_site.admit(phase, cohort), index),
            "survivors": secagg_site.acknowledge,
            "unmask": secagg_site.reveal,
        }
        self._phases[index], reply = steps[kind](self._phases[index], message)
        return reply

    def _start(self, phase: Any, told: bytes, index: int) -> tuple[secagg_site.Advertised, bytes]:
        """Check the sum before, and begin the round that follows it."""
        order, trail, _ = read_directions(told)
        done, result = self._results[index]
        for opening in trail:
            done, result = done + 1, secagg_site.check(phase, opening.result).result_hash
        self._results[index] = done, result
        expected = secagg_site.Expected(Kind.TRAIN, state_hash(STATES[done]), result)
        return secagg_site.start(self._grouped[index], order, expected, START)

    def _mask(self, shared: secagg_site.Shared, index: int) -> tuple[secagg_site.Masked, bytes]:
        vector = made_up(self._values, index)
        integers, _ = self._encoding.quantise(vector, Stream(fresh_key()))
        return secagg_site.mask(shared, integers, LANES)


def _greet(site: secagg_setup.Site, call: bytes) -> tuple[secagg_setup.Greeted, bytes]:
    greeted, hello = secagg_setup.hello(site, read_call(call)[0], START)
    return greeted, greeting(hello, [place(state_hash(STATES[0]), NO_RESULT)])


# ---- the process that is weighed


def serve(n: int, values: int, ring_bits: RingBits, *, keep: bool) -> None:
    """Be the server of some rounds over stdin and stdout; end with what the process grew by."""
    coordinator, _ = people(n, values, ring_bits)
    names = tuple(f"site-{index}" for index in range(n))
    with tempfile.TemporaryDirectory(prefix="fedward-benchmark-") as folder:
        store = ServerStore(Path(folder) / "server.db") if keep else None
        summation = MaskedSum(lambda _: coordinator, lambda _: (), 600.0, store=store)
        before = peak_bytes()
        for number, state in enumerate(STATES, 1):
            opened = summation(_exchange, Order("train", number, 0, names, state))
            if len(opened.sites) != n:
                raise RuntimeError(f"expected the sum of {n} sites, got {len(opened.sites)}")
            del opened  # as server.rounds does after its step
        grown = peak_bytes() - before
        if store is not None:
            store.close()
    sys.stdout.write(json.dumps({"grown": grown}) + "\n")


def _exchange(
    kind: str, outgoing: Mapping[str, bytes], deadline_s: float
) -> Iterator[tuple[str, bytes]]:
    """Ask the sites one after the other: one answer is here at a time."""
    del deadline_s
    for name in outgoing:
        message = outgoing[name]
        asked = {"kind": kind, "site": int(name.removeprefix("site-")), "bytes": len(message)}
        sys.stdout.buffer.write(json.dumps(asked).encode() + b"\n")
        sys.stdout.buffer.write(message)
        sys.stdout.buffer.flush()
        yield name, sys.stdin.buffer.read(int(sys.stdin.buffer.readline()))


if __name__ == "__main__":
    bits: RingBits = 16 if sys.argv[3] == "16" else 32
    serve(int(sys.argv[1]), int(sys.argv[2]), bits, keep=sys.argv[4] == "kept")
