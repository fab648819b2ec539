"""One round of the aggregation protocol in memory, cut into the pieces that are timed.

It compares nothing: `secagg.py` does. Vectors are made up, nobody trains, nothing is sent.
"""

import time
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from privacy import keys, masking, secagg_server, secagg_setup, secagg_site
from privacy.encoding import Encoding, RingBits
from privacy.roster import Kind, Member, Plan, Roster
from privacy.secagg_messages import Survivors
from privacy.secagg_server import Closed, Coordinator, RunningSum
from privacy.secagg_setup import Grouped, Site
from privacy.stream import Stream, fresh_key
from privacy.wire import Counter, write

VALUE_BOUND = 1.0
LANES = np.arange(3, dtype=np.int64)
MODEL = bytes([7]) * 32
RUN = bytes(range(16))
FIRST, START = Counter(1, 0), Counter(0, 0)
EXPECTED = secagg_site.Expected(Kind.TRAIN, MODEL)

Sent = list[tuple[int, bytes]]  # site, message


class Closing(NamedTuple):
    """The end of a round for one set of survivors, messages 8 to 11; and one who checks 12."""

    told: bytes
    acks: Sent
    ack_set: bytes
    answers: Sent
    revealed: secagg_site.Revealed


def made_up(count: int, seed: int) -> npt.NDArray[np.float32]:
    """Return (count,) an update like a trained one: normal, a tenth of the bound wide."""
    return np.random.default_rng(seed).standard_normal(count, dtype=np.float32) * np.float32(0.1)


class Ours:
    """n sites and a server, all keys made, at the point where vectors are masked."""

    def __init__(
        self,
        n: int,
        values: int,
        ring_bits: RingBits = 32,
        threads: int = 1,
        clock: Callable[[], float] = time.process_time,
    ) -> None:
        """Set up a run and a cohort of all n sites; the vector of site i is `made_up` from i."""
        self._clock = clock
        self._server, sites = people(n, values, ring_bits, threads)
        self._encoding = Encoding(ring_bits, n, VALUE_BOUND)
        self._grouped, run = _set_up(self._server, sites)
        self._started, self._begin = secagg_server.start_round(run, FIRST, Kind.TRAIN, MODEL)
        self._advertised: dict[int, secagg_site.Advertised] = {}
        self._readies: Sent = []
        for index, grouped in self._grouped.items():
            phase, ready = secagg_site.start(grouped, self._begin, EXPECTED, START)
            self._advertised[index] = phase
            self._readies.append((index, ready))
        self._formed = secagg_server.form_cohort(self._started, self._readies)
        self._shared = {
            index: secagg_site.admit(phase, self._formed.message(index))
            for index, phase in self._advertised.items()
        }
        self._closings: dict[int, Closing] = {}
        self._vector = made_up(values, 0)
        self._integers = self._quantised(self._vector)
        self._room = np.zeros(self._started.shape.payload_bytes, dtype=np.uint8)

    # ---- a site

    def masks(self) -> float:
        """Time the mask loop alone: integers in, masked integers out, no memory asked for."""
        shared, out = self._shared[0], self._room.data
        site = shared.attempt.site
        shape, threads = site.plan.shape(Kind.TRAIN), site.threads
        plus, minus = shared.plus, shared.minus
        began = self._clock()
        masking.masked_payload(
            shape, self._integers, LANES, 0, plus, minus, threads=threads, out=out
        )
        return self._clock() - began

    def masked(self) -> float:
        """Time `secagg_site.mask`: MAC, masks, hash, signature, codec."""
        began = self._clock()
        secagg_site.mask(self._shared[0], self._integers, LANES)
        return self._clock() - began

    def site(self) -> float:
        """Time all that a site does from RoundStart to Unmask, but for training."""
        end = self.closing(0)
        _forget_verdicts()
        began = self._clock()
        secagg_site.start(self._grouped[0], self._begin, EXPECTED, START)
        # The cohort holds the Ready that was made before, so it is that phase which goes on.
        shared = secagg_site.admit(self._advertised[0], self._formed.message(0))
        masked, _ = secagg_site.mask(shared, self._quantised(self._vector), LANES)
        acknowledged, _ = secagg_site.acknowledge(masked, end.told)
        secagg_site.reveal(acknowledged, end.ack_set)
        return self._clock() - began

    @property
    def upload_bytes(self) -> int:
        """Bytes of the message with the vector."""
        return len(secagg_site.mask(self._shared[0], self._integers, LANES)[1])

    # ---- the server

    def server(self, dropped: int = 0, *, mean: bool = False) -> float:
        """Time the server from Ready to Result; a site checks that afterwards.

        Args:
            dropped: sites whose vector never arrives.
            mean: also turn the sum into model units.
        """
        arrived, end = self.messages[dropped:], self.closing(dropped)
        _forget_verdicts()
        began = self._clock()
        formed = secagg_server.form_cohort(self._started, self._readies)
        for index in formed.cohort:
            formed.message(index)
        running = RunningSum(formed)
        for index, message in arrived:
            running.add(index, message)
        closed, _ = secagg_server.close(running)
        agreed, _ = secagg_server.agree_survivors(closed, end.acks)
        opened = secagg_server.open_sum(agreed, end.answers)
        result = secagg_server.write_result(opened, MODEL)
        if mean:
            self._encoding.dequantise(opened.values)
        seconds = self._clock() - began
        began = self._clock()
        secagg_site.check(end.revealed, result)  # raises when the MAC does not confirm the sum
        self.check_seconds = self._clock() - began
        return seconds

    @cached_property
    def messages(self) -> Sent:
        """Masked of every site, each with a vector of its own."""
        size, sent = self._vector.size, []
        for index, shared in self._shared.items():
            integers = self._quantised(made_up(size, index))
            sent.append((index, secagg_site.mask(shared, integers, LANES)[1]))
        return sent

    def closing(self, dropped: int) -> Closing:
        """Return the end of a round that lacks the vectors of the first ``dropped`` sites."""
        if dropped not in self._closings:
            self._closings[dropped] = self._closed(self._formed.cohort[dropped:])
        return self._closings[dropped]

    def _closed(self, survivors: tuple[int, ...]) -> Closing:
        header = self._started.header(Survivors.NUMBER)
        message = Survivors(header, self._formed.cohort_hash, survivors)
        told = write(message, self._server.identity)
        acknowledged, acks = {}, []
        for index in survivors:
            one = self._shared[index]
            masked = secagg_site.Masked(one.attempt, one.cohort, one.cohort_hash, one.shares)
            acknowledged[index], ack = secagg_site.acknowledge(masked, told)
            acks.append((index, ack))
        closed = Closed(RunningSum(self._formed), survivors)
        ack_set = secagg_server.agree_survivors(closed, acks)[1]
        revealed = {index: secagg_site.reveal(one, ack_set) for index, one in acknowledged.items()}
        answers = [(index, answer) for index, (_, answer) in revealed.items()]
        return Closing(told, acks, ack_set, answers, revealed[survivors[-1]][0])

    def _quantised(self, vector: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
        return self._encoding.quantise(vector, Stream(fresh_key()))[0]


def people(
    n: int, values: int, ring_bits: RingBits = 32, threads: int = 1
) -> tuple[Coordinator, list[Site]]:
    """Return a server and n sites with one plan; identities are the same in every process."""
    identities = [keys.identity(bytes([index]) * keys.KEY_BYTES) for index in range(n)]
    boss = keys.identity(bytes([255]) * keys.KEY_BYTES)
    members = tuple(Member(f"site-{index}", one.public) for index, one in enumerate(identities))
    roster = Roster(members, boss.public)
    plan = Plan(bytes(32), n, values, ring_bits, train_lanes=LANES.size)
    sites = [
        Site(one, index, plan, roster, threads=threads) for index, one in enumerate(identities)
    ]
    return Coordinator(boss, plan, roster), sites


def _set_up(server: Coordinator, sites: list[Site]) -> tuple[dict[int, Grouped], secagg_server.Run]:
    """Walk through messages 1 to 3."""
    greeted = {site.index: secagg_setup.hello(site, RUN, START) for site in sites}
    hellos = [(index, data) for index, (_, data) in greeted.items()]
    gathered, run_roster = secagg_server.gather(server, RUN, hellos)
    joined = {index: secagg_setup.join(phase, run_roster) for index, (phase, _) in greeted.items()}
    parts = [(index, data) for index, (_, data) in joined.items()]
    run, messages = secagg_server.relay(gathered, parts)
    grouped = {
        index: secagg_setup.group(phase, messages[index]) for index, (phase, _) in joined.items()
    }
    return grouped, run


def _forget_verdicts() -> None:
    """Let every signature be checked again: a process remembers those of equal bytes."""
    keys._verdict.cache_clear()
