"""Masked vectors against known answers, and masks that cancel."""

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from privacy import masking
from privacy.encoding import from_ring
from privacy.mac import PRIME

KNOWN = json.loads((Path(__file__).parents[1] / "vectors" / "fsa1.json").read_text())
unhex = bytes.fromhex
SITES = range(KNOWN["n"])
PAIR = {
    tuple(map(int, name.split(","))): unhex(key) for name, key in KNOWN["pair_mask_key"].items()
}
SELF = [unhex(key) for key in KNOWN["self_mask_key"]]


def stream_keys(site: int) -> tuple[list[bytes], list[bytes]]:
    plus = [SELF[site]] + [PAIR[site, peer] for peer in SITES if peer > site]
    return plus, [PAIR[peer, site] for peer in SITES if peer < site]


def known_payload(bits: int, site: int, chunk: int = masking.CHUNK_BYTES) -> masking.Payload:
    known = KNOWN["vectors"][str(bits)]
    return masking.masked_payload(
        masking.Shape(7, 2, 32 if bits == 32 else 16),
        np.array(known["quantised"][site], np.int32),
        np.array(known["lane_values"][site], np.int64),
        known["tau"][site],
        *stream_keys(site),
        chunk,
    )


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("site", SITES)
def test_masked_vectors_are_the_known_ones(bits: int, site: int) -> None:
    known = KNOWN["vectors"][str(bits)]["masked"][site]
    wire = known_payload(bits, site).words.tobytes().hex()
    assert wire == known["mac"] + known["lanes"] + known["values"]


@pytest.mark.parametrize("bits", [16, 32])
def test_the_sum_without_self_masks_is_the_known_one(bits: int) -> None:
    known = KNOWN["vectors"][str(bits)]
    total = masking.zero_payload(known_payload(bits, 0).shape)
    for site in SITES:
        total.add(known_payload(bits, site))
    masking.add_streams(total, [], SELF)
    assert from_ring(total.values).tolist() == known["sum"]
    assert total.lanes.view(np.int64).tolist() == known["lane_sum"]
    assert total.tau == known["tau_sum"]


@pytest.mark.parametrize("bits", [16, 32])
def test_the_sum_without_a_dropped_site_is_the_known_one(bits: int) -> None:
    total = masking.zero_payload(known_payload(bits, 0).shape)
    alive = [site for site in SITES if site != 2]
    for site in alive:
        total.add(known_payload(bits, site))
    plus = [PAIR[2, site] for site in alive if site > 2]  # subtracted by the higher index
    minus = [PAIR[site, 2] for site in alive if site < 2]
    masking.add_streams(total, plus, minus + [SELF[site] for site in alive])
    assert from_ring(total.values).tolist() == KNOWN["vectors"][str(bits)]["sum_without_2"]


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8, 12, 28, 64])
def test_any_chunk_gives_the_same_bytes(bits: int, chunk: int) -> None:
    assert (known_payload(bits, 1, chunk).words == known_payload(bits, 1).words).all()


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("threads", [2, 3, 7, 50])
@pytest.mark.parametrize(("values", "lanes"), [(0, 2), (1, 0), (999, 3), (4000, 0), (4001, 1)])
def test_any_number_of_threads_gives_the_same_bytes(
    bits: int, threads: int, values: int, lanes: int
) -> None:
    draw = np.random.default_rng(values)
    shape = masking.Shape(values, lanes, 32 if bits == 32 else 16)
    vector = draw.integers(-(2**15), 2**15, values).astype(np.int32)
    lane = draw.integers(-(2**55), 2**55, lanes)
    plain = masking.masked_payload(shape, vector, lane, 9, SELF[:2], SELF[2:])
    chunk = 400  # bytes: several chunks a thread, and a last one that is not full
    masked, digest = masked_into_its_place(shape, vector, lane, chunk, threads)
    assert masked == plain.words.tobytes()
    assert digest == hashlib.sha256(plain.words).digest()


def masked_into_its_place(
    shape: masking.Shape,
    vector: npt.NDArray[np.int32],
    lane: npt.NDArray[np.int64],
    chunk: int,
    threads: int,
) -> tuple[bytes, bytes]:
    """Mask into bytes that are there, hashing on the way."""
    room, digest = bytearray(b"\xaa" * (shape.payload_bytes + 6)), hashlib.sha256()
    with memoryview(room)[3:-3] as out:
        masking.masked_payload(
            shape,
            vector,
            lane,
            9,
            SELF[:2],
            SELF[2:],
            chunk,
            threads=threads,
            out=out,
            digest=digest,
        )
    assert room[:3] == room[-3:] == b"\xaa" * 3
    return bytes(room[3:-3]), digest.digest()


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize(("values", "lanes"), [(0, 0), (0, 3), (1, 0), (131_073, 1), (200_001, 2)])
def test_adding_and_subtracting_streams_gives_the_vector_back(
    bits: int, values: int, lanes: int
) -> None:
    draw = np.random.default_rng(values)
    shape = masking.Shape(values, lanes, 32 if bits == 32 else 16)
    vector = draw.integers(-(2**15), 2**15, values).astype(np.int32)
    lane = draw.integers(-(2**62), 2**62, lanes)
    plus, minus = (
        [random.Random(seed).randbytes(32) for seed in seeds] for seeds in ((1, 2), (3,))
    )
    masked = masking.masked_payload(shape, vector, lane, 5, plus, minus)
    masking.add_streams(masked, minus, plus, 1 << 16)
    assert from_ring(masked.values).tolist() == vector.tolist()
    assert masked.lanes.view(np.int64).tolist() == lane.tolist()
    assert masked.tau == 5


def test_tau_wraps_in_its_field() -> None:
    shape = masking.Shape(0, 0, 32)
    total = masking.zero_payload(shape)
    total.tau = PRIME - 1
    total.add(total)
    assert total.tau == PRIME - 2


def test_another_shape_is_refused() -> None:
    shape = masking.Shape(3, 1, 32)
    with pytest.raises(ValueError, match="expected"):
        masking.masked_payload(shape, np.zeros(4, np.int32), np.zeros(1, np.int64), 0, [], [])
    with pytest.raises(ValueError, match="expected"):
        masking.masked_payload(shape, np.zeros(3, np.int32), np.zeros(2, np.int64), 0, [], [])
    with pytest.raises(ValueError, match="expected 28 bytes, got 27"):
        masking.masked_payload(
            shape,
            np.zeros(3, np.int32),
            np.zeros(1, np.int64),
            0,
            [],
            [],
            out=memoryview(bytearray(27)),
        )
    with pytest.raises(ValueError, match="expected"):
        masking.read_payload(shape, bytes(shape.payload_bytes + 1))
    with pytest.raises(ValueError, match="expected"):
        masking.zero_payload(shape).add(masking.zero_payload(masking.Shape(3, 2, 32)))


def test_a_masked_zero_vector_looks_random() -> None:
    shape = masking.Shape(50_000, 0, 32)
    masked = masking.masked_payload(
        shape, np.zeros(50_000, np.int32), np.zeros(0, np.int64), 0, [bytes(32)], []
    )
    ones = int(np.unpackbits(masked.words[8:]).sum())
    # monobit: 1.6 million fair bits, standard deviation 632; six of them is a chance of 2e-9
    assert abs(ones - 800_000) < 6 * 632
