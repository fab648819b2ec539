"""Attacks 13, 15, 16 and 17: keys that could be searched, masks that could be seen through, and
values or secrets that are left where somebody finds them."""

import gc
import hashlib
import logging
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy import stats

from privacy import keys, masking
from privacy.masking import Shape
from privacy.secagg_messages import AckSet, Cohort, RoundStart, RunRoster, Survivors, Unmask
from privacy.secagg_site import Advertised, Shared
from privacy.wire import Counter, read

RUN, FIRST, ALL = bytes(range(16)), Counter(1, 0), (0, 1, 2, 3, 4)
BITS = range(256)


@pytest.fixture
def five(federation: Any) -> Any:
    return federation(5)


def masks_of(play: Any) -> list[Shared]:
    """Filled with every Shared phase of the plays to come: it has the keys of a site's masks."""
    seen: list[Shared] = []
    play.watch(lambda phase: seen.append(phase) if isinstance(phase, Shared) else None)
    return seen


# --- 13: seeds that can be searched, masks that repeat ------------------------------------------


def flipped(key: bytes, bit: int) -> bytes:
    return (int.from_bytes(key, "little") ^ 1 << bit).to_bytes(32, "little")


def test_attack_13_each_of_the_256_bits_of_a_mask_key_changes_the_stream() -> None:
    def stream(key: bytes) -> bytes:
        payload = masking.zero_payload(Shape(8, 1, 32))
        masking.add_streams(payload, [key], [])
        return payload.words[masking.MAC_BYTES :].tobytes()

    key = hashlib.sha256(b"a pair").digest()
    assert len({stream(key), *(stream(flipped(key, bit)) for bit in BITS)}) == 257


@pytest.mark.parametrize("derive", ["pair", "self", "channel", "group", "mac", "ctx"])
def test_attack_13_each_of_the_256_bits_of_a_secret_changes_the_derived_key(derive: str) -> None:
    secret, ctx, cohort = (hashlib.sha256(bytes([part])).digest() for part in range(3))

    def derived(bits: bytes) -> Any:
        return {
            "pair": lambda: keys.pair_mask_key(bits, ctx, 0, 1, cohort),
            "self": lambda: keys.self_mask_key(bits, ctx, 0),
            "channel": lambda: keys.channel_keys(bits, ctx, 0, 1),
            "group": lambda: keys.group_key([ctx, bits], ctx),
            "mac": lambda: keys.mac_key(bits, ctx),
            "ctx": lambda: keys.pair_mask_key(secret, bits, 0, 1, cohort),
        }[derive]()

    assert len({derived(secret), *(derived(flipped(secret, bit)) for bit in BITS)}) == 257


def test_attack_13_every_secret_is_drawn_from_32_bytes_of_entropy(five: Any) -> None:
    drawn: list[int] = []
    for hospital in five.hospitals:
        draw = hospital.site.entropy

        def count(size: int, draw: Any = draw) -> bytes:
            drawn.append(size)
            return draw(size)

        object.__setattr__(hospital.site, "entropy", count)
    five.play()
    assert set(drawn) == {32}
    t = five.plan.t
    # channel key, part, nonce; mask secret, b, and t - 1 coefficients of each
    assert len(drawn) == 5 * (3 + 2 + 2 * (t - 1))


def test_attack_13_masks_of_two_runs_rounds_attempts_or_pairs_never_agree(five: Any) -> None:
    seen = masks_of(five)
    five.play(RUN, FIRST)
    five.attempt(Counter(1, 1))
    five.attempt(Counter(2, 0))
    five.play(bytes(16), Counter(3, 0))
    assert len(seen) == 4 * 5
    used: dict[bytes, list[int]] = {}
    for shared in seen:
        for key in (*shared.plus, *shared.minus):
            used.setdefault(key, []).append(shared.attempt.site.index)
    assert len(used) == 4 * (5 + 10)  # own masks and pairs
    assert sorted(map(len, used.values())) == [1] * (4 * 5) + [2] * (4 * 10)  # both ends of a pair


def test_attack_13_masks_never_agree_though_a_site_draws_the_same_secrets_again(five: Any) -> None:
    """A machine that was copied with its generator: ctx is in every key, so nothing repeats."""
    for hospital in five.hospitals:
        object.__setattr__(
            hospital.site, "entropy", lambda size, index=hospital.site.index: bytes([index]) * size
        )
    seen = masks_of(five)
    five.play(RUN, FIRST)
    five.attempt(Counter(1, 1))
    used = [(shared.attempt.counter, key) for shared in seen for key in shared.plus + shared.minus]
    assert len({key for _, key in used}) == len(set(used)) == 2 * (5 + 10)


# --- 15: statistics on masked vectors -----------------------------------------------------------

WORDS = 50_000
ALPHA = 1e-6  # chance of a false alarm in each test; the seeds are fixed
WHOLE = Shape(WORDS, 0, 32)


def assert_random(vector: Any) -> None:
    """Monobit and chi-square over bytes of (d,) u32 words."""
    data = vector.view(np.uint8)
    ones = int(np.unpackbits(data).sum())
    assert stats.binomtest(ones, 8 * data.size).pvalue > ALPHA
    assert stats.chisquare(np.bincount(data, minlength=256)).pvalue > ALPHA


def assert_unrelated(vectors: list[Any]) -> None:
    """Pairwise correlation of the words."""
    for left, right in combinations(vectors, 2):
        assert stats.pearsonr(left.astype(float), right.astype(float)).pvalue > ALPHA


def zero_vectors(federation: Any) -> tuple[Any, list[Any], Any]:
    """A play of all-zero updates: the play, (d,) masked words of each site, its Shared phases."""
    five = federation(5, values=WORDS, lanes=0)
    for hospital in five.hospitals:
        hospital.values[:] = 0
    shared = masks_of(five)
    five.play()
    assert not five.outcome.opened.values.any()
    return five, [payload(five.said(site, "cohort")).values for site in ALL], shared


def payload(masked: bytes) -> masking.Payload:
    return masking.read_payload(WHOLE, masked[-WHOLE.payload_bytes :])


def test_attack_15_all_zero_updates_look_random(federation: Any) -> None:
    _, vectors, _ = zero_vectors(federation)
    for vector in vectors:
        assert_random(vector)
    assert_unrelated(vectors)


@pytest.mark.parametrize("opened", [False, True], ids=["before Unmask", "with self masks opened"])
def test_attack_15_all_zero_updates_look_random_to_n_minus_2_colluders(
    federation: Any, opened: bool
) -> None:
    five, _, shared = zero_vectors(federation)
    known = {key for site in (2, 3, 4) for key in shared[site].plus + shared[site].minus}
    if opened:  # what the server learns of sites that are alive
        known |= {shared[site].plus[0] for site in (0, 1)}
    left = []
    for site in (0, 1):
        rest = masking.zero_payload(WHOLE)
        rest.add(payload(five.said(site, "cohort")))
        plus, minus = shared[site].plus, shared[site].minus
        masking.add_streams(rest, [k for k in minus if k in known], [k for k in plus if k in known])
        left.append(rest.values)
        assert_random(rest.values)
    total = left[0] + left[1]  # the pair's own mask cancels: this is what the sum tells
    if opened:
        assert not total.any()
    else:
        assert_random(total)
        assert_unrelated(left)


# --- 16: a planted value ------------------------------------------------------------------------

PLANTED, LANE = 0x00C0FFEE, 0x000BADC0FFEE0DD


def traces(value: int, size: int) -> list[bytes]:
    """How a value would look: binary, hexadecimal, decimal."""
    text = [f"{value}", f"{value:x}", f"{value:X}", f"{value:,}"]
    return [value.to_bytes(size, order) for order in ("little", "big")] + [
        one.encode() for one in text
    ]


def lies(play: Any) -> Iterator[tuple[str, Any]]:
    """One refused message for each step."""
    yield "roster", play.edit(RunRoster, 1)
    yield "group", lambda data: data[:-1]
    yield "start", play.edit(RoundStart, model=bytes(32))
    yield "cohort", play.edit(Cohort, readies=())
    yield "survivors", play.edit(Survivors, survivors=(1, 2, 3, 4))
    yield "unmask", play.edit(AckSet, 1)
    yield "result", lambda data: data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("lie", [None, *range(7)])
def test_attack_16_a_planted_value_is_nowhere(
    federation: Any, lie: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    five = federation(5, values=50, lanes=4)
    five.hospitals[0].values[:] = PLANTED
    five.hospitals[0].lanes[:] = LANE
    if lie is not None:
        step, bend = list(lies(five))[lie]
        five.lies[step, None] = bend
    phases: list[str] = []
    five.watch(lambda phase: phases.append(repr(phase)))
    out = five.play()
    assert bool(out.refusals) == (lie is not None)
    wire = [data for *_, data in out.wire] + [
        data for said in out.said.values() for _, data in said
    ]
    told = [repr(error) + str(error.__cause__) for error in out.refusals.values()]
    told += [out.ended, repr(out.opened and out.opened.refused), caplog.text, *phases]
    for trace in traces(PLANTED, 4) + traces(LANE, 8):
        assert not any(trace in data for data in wire)
        assert not any(trace.decode("latin-1") in text for text in told)


def test_attack_16_a_lane_that_is_refused_is_not_told(five: Any) -> None:
    five.hospitals[0].lanes[:] = 2**60 + LANE
    five.play()
    five.assert_refused(0, "cohort", "message 7: expected lanes within")
    assert str(2**60 + LANE) not in repr(five.outcome.refusals[0])


def test_attack_16_a_vector_of_another_length_is_not_told(five: Any) -> None:
    five.hospitals[0].values = np.full(6, PLANTED, np.int32)
    with pytest.raises(ValueError, match="values") as caught:
        five.play()
    assert not any(one.decode("latin-1") in str(caught.value) for one in traces(PLANTED, 4))


# --- 17: round secrets after Unmask -------------------------------------------------------------


def bytes_in_memory() -> Iterator[bytes]:
    """Every bytes object that the collector reaches, through what it does not track, too."""
    gc.collect()
    stack, seen = gc.get_objects(), set()
    while stack:
        for one in gc.get_referents(stack.pop()):
            if type(one) in (bytes, bytearray):
                if len(one) in (32, 64):  # a key or a share, or both shares of a site
                    yield bytes(one)
            elif not gc.is_tracked(one) and id(one) not in seen:
                seen.add(id(one))
                stack.append(one)


def digests_of(data: bytes) -> set[bytes]:
    """Return the SHA-256 of each 32 bytes."""
    return {hashlib.sha256(data[at : at + 32]).digest() for at in range(0, len(data), 32)}


def secrets_of(phase: Any) -> Iterator[bytes]:
    if isinstance(phase, Advertised):
        yield from (phase.secret, phase.mask_key.secret, phase.own_shares)
    if isinstance(phase, Shared):
        yield from (*phase.plus, *phase.minus, *phase.shares.values())


def test_attack_17_round_secrets_are_gone_after_unmask(five: Any) -> None:
    secrets: set[bytes] = set()  # their digests: the test must not be what keeps them
    five.watch(lambda phase: secrets.update(*map(digests_of, secrets_of(phase))))
    five.play()
    secrets.difference_update(*(sent_shares(five, site) for site in ALL))
    assert len(secrets) == 5 + 5 + 25 + 15  # b, mask secrets, shares of those, keys of masks
    assert not secrets & {one for data in bytes_in_memory() for one in digests_of(data)}


def test_attack_17_the_search_finds_round_secrets_before_unmask(five: Any) -> None:
    secrets: set[bytes] = set()
    five.watch(lambda phase: secrets.update(*map(digests_of, secrets_of(phase))))
    five.lies["unmask", None] = lambda _: None
    five.play()
    found = secrets & {one for data in bytes_in_memory() for one in digests_of(data)}
    assert len(found) == 25 * 2  # every share; who dealt it and what it masked are forgotten


def sent_shares(play: Any, site: int) -> set[bytes]:
    shares = read(Unmask, play.said(site, "unmask")).message.shares
    return {one for dealer in shares.sites for one in digests_of(shares[dealer])}
