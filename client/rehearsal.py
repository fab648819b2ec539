"""A masked sum in memory with two made peers: the protocol as it is installed, on made vectors.

No key of the site, no record and no network is used.
"""

import os

import numpy as np
import numpy.typing as npt

from privacy import keys, secagg_server, secagg_setup, secagg_site
from privacy.encoding import RingBits
from privacy.errors import ProtocolError
from privacy.roster import Kind, Member, Plan, Roster
from privacy.secagg_server import Coordinator, RunningSum
from privacy.secagg_site import Expected
from privacy.wire import Counter

SITES = 3
VALUES, LANES = 1000, 10
_START, _FIRST = Counter(0, 0), Counter(1, 0)


def rehearse(ring_bits: RingBits) -> None:
    """Sum three made vectors under masks, as sites and server do, and compare with the plain sum.

    Args:
        ring_bits: of the study.

    Raises:
        ProtocolError: a check of the protocol failed, or the sum is another.
    """
    identities = [keys.fresh_identity() for _ in range(SITES)]
    server = keys.fresh_identity()
    plan = Plan(os.urandom(32), SITES, VALUES, ring_bits, train_lanes=LANES)
    members = (Member(f"site-{index}", one.public) for index, one in enumerate(identities))
    roster = Roster(tuple(members), server.public)
    sites = [secagg_setup.Site(one, index, plan, roster) for index, one in enumerate(identities)]
    coordinator = Coordinator(server, plan, roster)

    run, model = os.urandom(secagg_setup.RUN_BYTES), os.urandom(32)
    hellos = [secagg_setup.hello(site, run, _START) for site in sites]
    gathered, told = secagg_server.gather(coordinator, run, enumerate(h for _, h in hellos))
    joined = [secagg_setup.join(greeted, told) for greeted, _ in hellos]
    running, parts = secagg_server.relay(gathered, enumerate(part for _, part in joined))
    grouped = [secagg_setup.group(one, parts[index]) for index, (one, _) in enumerate(joined)]

    begun, order = secagg_server.start_round(running, _FIRST, Kind.TRAIN, model)
    expected = Expected(Kind.TRAIN, model)
    ready = [secagg_site.start(one, order, expected, _START) for one in grouped]
    formed = secagg_server.form_cohort(begun, enumerate(data for _, data in ready))
    total = RunningSum(formed)
    values, lanes = _vectors(ring_bits)
    masked = []
    for index, (advertised, _) in enumerate(ready):
        shared = secagg_site.admit(advertised, formed.message(index))
        phase, data = secagg_site.mask(shared, values[index], lanes[index])
        total.add(index, data)
        masked.append(phase)
    closed, survivors = secagg_server.close(total)
    agreed = [secagg_site.acknowledge(phase, survivors) for phase in masked]
    settled, asked = secagg_server.agree_survivors(closed, enumerate(data for _, data in agreed))
    revealed = [secagg_site.reveal(phase, asked) for phase, _ in agreed]
    opened = secagg_server.open_sum(settled, enumerate(data for _, data in revealed))
    result = secagg_server.write_result(opened, model)
    for last, _ in revealed:
        sums = secagg_site.check(last, result)
        plain = values.sum(axis=0), lanes.sum(axis=0)
        if not (np.array_equal(sums.values, plain[0]) and np.array_equal(sums.lanes, plain[1])):
            raise ProtocolError(
                "expected the sum of three made vectors, got another",
                "the program or a package is damaged: install it anew, with constraints.txt",
            )


def _vectors(ring_bits: RingBits) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Return (3, d) values and (3, L) lanes whose sums stay in the ring."""
    draw = np.random.default_rng(int.from_bytes(os.urandom(16), "little"))
    bound = ((1 << (ring_bits - 1)) - 1) // SITES
    values = draw.integers(-bound, bound, (SITES, VALUES), endpoint=True).astype(np.int32)
    return values, draw.integers(-(1 << 40), 1 << 40, (SITES, LANES))
