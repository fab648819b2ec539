"""The ceilings of messages hold the largest ones, and little more."""

import os
from dataclasses import replace

import numpy as np

from privacy.keys import agreement_key, identity
from privacy.masking import Shape
from privacy.roster import SITES_MAX
from privacy.secagg_messages import SHARES_BOX, Cohort, GroupPart, Masked, Ready
from privacy.wire import Counter, Header, read, records, write
from shared_models.messages import TRAIL_MAX
from shared_models.sizes import answer_bytes, question_bytes
from shared_models.strategies import first_state, state_bytes
from shared_models.study import Study, parse_study

RUN, WHO = os.urandom(16), identity(bytes([1]) * 32)
P = 100_000


def study(strategy: str = "fedavg", ring_bits: int = 32, **aggregation: object) -> Study:
    return parse_study(
        {
            "name": "s",
            "task": "tabular",
            "rounds": 2,
            "data": {
                "target": "ill",
                "columns": {
                    "age": {"kind": "number", "low": 0, "high": 100},
                    "ill": {"kind": "category", "values": ["no", "yes"]},
                },
            },
            "model": {"name": "mlp", "hidden": []},
            "training": {"learning_rate": 0.1, "local_steps": 1},
            "privacy": {
                "mode": "local",
                "noise_multiplier": 1.0,
                "delta": 1e-5,
                "clipping_norm": 1.0,
                "sampling_rate": 1.0,
                "expected_batch": 8,
            },
            "aggregation": {"strategy": strategy, "ring_bits": ring_bits, **aggregation},
        }
    )


def header(number: int, sender: int = 0) -> Header:
    return Header(number, RUN, Counter(1, 0), sender)


def everyone(width: int) -> dict[int, bytes]:
    return {site: bytes(width) for site in range(SITES_MAX)}


def ready(sender: int) -> bytes:
    commitments = records(everyone(64), 64)
    key = agreement_key(bytes([sender + 1]) * 32).public
    made = Ready(header(5, sender), bytes(32), bytes(16), key, bytes(32), commitments)
    peers = {site: bytes(SHARES_BOX) for site in range(SITES_MAX) if site != sender}
    return write(made, WHO, records(peers, SHARES_BOX).block)


def masked(values: int, bits: int) -> int:
    payload = bytes(Shape(values, 0, bits).payload_bytes)  # type: ignore[arg-type]
    return len(write(Masked(header(7), bytes(32), len(payload), bytes(32)), WHO, payload))


def test_a_vector_fits_closely() -> None:
    for bits in (16, 32):
        assert masked(P, bits) <= answer_bytes(study(ring_bits=bits), P) < masked(P, bits) + 200


def test_scaffold_sends_two_vectors() -> None:
    assert masked(2 * P, 32) <= answer_bytes(study("scaffold"), P)


def test_a_hundred_sites_fit_into_a_small_study() -> None:
    parts = write(GroupPart(header(3), records(everyone(48), 48)), WHO)
    small = answer_bytes(study(), 1)
    assert max(len(ready(0)), len(parts)) <= small < 20_000


def test_the_cohort_of_a_hundred_sites_fits() -> None:
    readies = tuple(read(Ready, ready(site)) for site in range(SITES_MAX))
    boxes = records({site: bytes(SHARES_BOX) for site in range(1, SITES_MAX)}, SHARES_BOX)
    cohort = write(Cohort(header(6, 0xFFFF), readies), WHO, boxes.block)
    assert len(cohort) <= question_bytes(study(), 1) < 3 * len(cohort)


def test_the_largest_state_and_trail_fit() -> None:
    given = study("fedadam", average_last=0.5)
    first = first_state(given.aggregation, np.zeros(P, dtype=np.float32))
    state = state_bytes(replace(first, moments={**first.moments, "mean": first.model}))
    largest = TRAIL_MAX * masked(P, 32) + len(state)
    assert largest <= question_bytes(given, P) < 1.1 * largest
