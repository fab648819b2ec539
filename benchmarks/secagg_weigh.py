"""How much memory the server of one masked round takes: it runs in a process of its own.

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
from privacy.encoding import Encoding
from privacy.roster import Kind
from privacy.stream import Stream, fresh_key
from server.masked import MaskedSum
from server.rounds import Order
from server.store import ServerStore
from shared_models.messages import greeting, read_call, read_directions
from shared_models.strategies import state_hash

STATE = b"a model"
EXPECTED = secagg_site.Expected(Kind.TRAIN, state_hash(STATE))


def weigh(n: int, values: int, *, keep: bool) -> int:
    """Return the bytes that a server's process grows by in a round of n sites.

    Args:
        n: sites, none of which drops out.
        values: of each vector.
        keep: whether the server keeps the attempt on disk, as it will between hospitals.
    """
    sites = _Sites(n, values)
    command = [sys.executable, __file__, str(n), str(values), "kept" if keep else "bare"]
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
    """Honest sites, each at its phase."""

    def __init__(self, n: int, values: int) -> None:
        self._phases: dict[int, Any] = dict(enumerate(people(n, values)[1]))
        self._values, self._encoding = values, Encoding(32, n, VALUE_BOUND)

    def answer(self, kind: str, index: int, message: bytes) -> bytes:
        steps: dict[str, Callable[[Any, bytes], tuple[Any, bytes]]] = {
            "hello": _greet,
            "roster": secagg_setup.join,
            "group": lambda joined, parts: (secagg_setup.group(joined, parts), b""),
            "start": lambda grouped, told: secagg_site.start(
                grouped, read_directions(told).order, EXPECTED, START
            ),
            "cohort": lambda phase, cohort: self._mask(secagg_site.admit(phase, cohort), index),
            "survivors": secagg_site.acknowledge,
            "unmask": secagg_site.reveal,
        }
        self._phases[index], reply = steps[kind](self._phases[index], message)
        return reply

    def _mask(self, shared: secagg_site.Shared, index: int) -> tuple[secagg_site.Masked, bytes]:
        vector = made_up(self._values, index)
        integers, _ = self._encoding.quantise(vector, Stream(fresh_key()))
        return secagg_site.mask(shared, integers, LANES)


def _greet(site: secagg_setup.Site, call: bytes) -> tuple[secagg_setup.Greeted, bytes]:
    greeted, hello = secagg_setup.hello(site, read_call(call)[0], START)
    return greeted, greeting(hello, ())


# ---- the process that is weighed


def serve(n: int, values: int, *, keep: bool) -> None:
    """Be the server of one round over stdin and stdout; end with what the process grew by."""
    coordinator, _ = people(n, values)
    names = tuple(f"site-{index}" for index in range(n))
    with tempfile.TemporaryDirectory(prefix="fedward-benchmark-") as folder:
        store = ServerStore(Path(folder) / "server.db") if keep else None
        # once: nobody here has a history that the server could ask for
        summation = MaskedSum(lambda _: coordinator, lambda _: (), 600.0, once=True, store=store)
        before = peak_bytes()
        opened = summation(_exchange, Order("train", 1, 0, names, STATE))
        grown = peak_bytes() - before
        if len(opened.sites) != n:
            raise RuntimeError(f"expected the sum of {n} sites, got {len(opened.sites)}")
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
    serve(int(sys.argv[1]), int(sys.argv[2]), keep=sys.argv[3] == "kept")
