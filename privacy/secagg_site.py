"""A site's side of one round of FSA1, messages 4 to 12: Advertised, Shared, Masked, ... Revealed.

One frozen type a phase, so that a wrong order does not type-check; each phase keeps only what the
next ones need. No I/O, no disk, no clock: what must survive a restart is handed to the caller,
who stores it before it sends. Sections 2, 3 and 5 of the protocol.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from hmac import compare_digest

import numpy as np
import numpy.typing as npt

from privacy import keys, mac, masking, sharing
from privacy.encoding import Integers, from_ring
from privacy.errors import ProtocolError
from privacy.keys import KEY_BYTES, AgreementKey
from privacy.roster import Kind, colluders_max
from privacy.secagg_messages import (
    COMPUTED,
    NO_RESULT,
    SHARES_BOX,
    AckSet,
    Cohort,
    Ready,
    Result,
    RoundStart,
    SurvivorAck,
    Survivors,
    Unmask,
    cohort_hash,
    result_hash,
)
from privacy.secagg_messages import Masked as MaskedMessage
from privacy.secagg_setup import Grouped, Site, agree_with, check_server, refusal
from privacy.wire import Counter, Draft, Header, Records, Signed, read, read_records, records, write


class SpoiltSumError(ProtocolError):
    """The server signed a sum that is none of honest vectors: one was spoilt, or it lies."""


@dataclass(frozen=True)
class Expected:
    """What the plan and the site's own state say of the next round; never the server's word."""

    kind: Kind
    model: bytes  # hash of model and strategy state, 32 bytes
    result: bytes = NO_RESULT  # `Sums.result_hash` of the round before


@dataclass(frozen=True)
class Attempt:
    """One attempt of one round, as the site accepted it."""

    site: Site
    run: bytes
    members: tuple[int, ...]
    counter: Counter
    kind: Kind
    model: bytes
    ctx: bytes
    kappa: bytes = field(repr=False)

    def header(self, number: int, flags: int = 0) -> Header:
        """Return the header of an own message."""
        return Header(number, self.run, self.counter, self.site.index, flags)


@dataclass(frozen=True)
class Advertised:
    """After message 4: keys and shares of this attempt are made and committed to."""

    attempt: Attempt
    inward: Mapping[int, bytes] = field(repr=False)  # box keys
    mask_key: AgreementKey
    secret: bytes = field(repr=False)  # b
    own_shares: bytes = field(repr=False)  # of b, then of the mask secret
    ready: bytes  # the signed part of the own Ready


@dataclass(frozen=True)
class Shared:
    """After message 6: the cohort is checked. Only now are records read."""

    attempt: Attempt
    cohort: tuple[int, ...]  # U1
    cohort_hash: bytes
    plus: tuple[bytes, ...] = field(repr=False)  # stream keys to add
    minus: tuple[bytes, ...] = field(repr=False)
    shares: Mapping[int, bytes] = field(repr=False)  # of each of U1: share of b, of mask secret


@dataclass(frozen=True)
class Masked:
    """After message 7 was made: the masked vector is on its way."""

    attempt: Attempt
    cohort: tuple[int, ...]
    cohort_hash: bytes
    shares: Mapping[int, bytes] = field(repr=False)


@dataclass(frozen=True)
class Acknowledged:
    """After message 8: one set of survivors is acknowledged, and no other will be."""

    attempt: Attempt
    cohort: tuple[int, ...]
    cohort_hash: bytes
    shares: Mapping[int, bytes] = field(repr=False)
    survivors: tuple[int, ...]  # U2


@dataclass(frozen=True)
class Revealed:
    """After message 10: the answer is given; of the attempt's secrets only kappa is left."""

    attempt: Attempt
    survivors: tuple[int, ...]


@dataclass(frozen=True)
class Sums:
    """The opened sums of one round, checked by the MAC."""

    values: npt.NDArray[np.int16] | npt.NDArray[np.int32]  # (d,)
    lanes: npt.NDArray[np.int64]  # (L,)
    survivors: tuple[int, ...]
    next_model: bytes  # what the server says the next model hashes to; the site computes its own
    result_hash: bytes


def start(
    grouped: Grouped, data: bytes, expected: Expected, last: Counter, computed: bool = True
) -> tuple[Advertised, bytes]:
    """Accept a RoundStart and commit to this attempt's secrets (messages 4 and 5).

    Args:
        grouped: the run.
        data: RoundStart from the server.
        expected: kind, model and last result as the site itself knows them.
        last: own counter as stored; ``advertised.attempt.counter`` is to be stored before sending.
        computed: whether the site computed the state itself (flag of section 6).

    Returns:
        The phase, and Ready for the server.

    Raises:
        ProtocolError: a check of section 2, message 4, fails.
    """
    site = grouped.site
    begin = read(RoundStart, data)
    check_server(site, begin, grouped.run, None)
    message, counter = begin.message, begin.message.header.counter
    # section 2, message 4: counter strictly increases
    if counter <= last:
        raise refusal(4, f"a counter above {last}", f"{counter}")
    # section 2, message 4: kind is what the plan orders for this round
    if message.kind is not expected.kind:
        raise refusal(4, f"a round to {expected.kind.name.lower()}", message.kind.name.lower())
    # section 2, message 4: own state hashes to the model hash; same for the last result
    if not compare_digest(message.model, expected.model):
        raise refusal(4, "the hash of the own model and state", "another")
    if not compare_digest(message.result, expected.result):
        raise refusal(4, "the hash of the last result", "another")
    # section 2, message 4: the bitmap is the whole run
    if message.members != grouped.members:
        raise refusal(4, f"all {len(grouped.members)} sites of the run", f"{len(message.members)}")
    ctx = hashlib.sha256(grouped.transcript + begin.head + begin.body).digest()
    kind, model, members = message.kind, message.model, grouped.members
    attempt = Attempt(site, grouped.run, members, counter, kind, model, ctx, grouped.kappa)
    return _advertise(grouped, attempt, computed)


def admit(advertised: Advertised, data: bytes) -> Shared:
    """Check every Ready of the cohort and open the shares (message 6).

    Raises:
        ProtocolError: a check of section 2, message 6, fails; no record was read.
    """
    attempt = advertised.attempt
    site = attempt.site
    cohort = read(Cohort, data)
    check_server(site, cohort, attempt.run, attempt.counter)
    readies = {ready.message.header.sender: ready for ready in cohort.message.readies}
    # section 2, message 6: size >= t
    if len(readies) < site.plan.t:
        raise refusal(6, f"at least {site.plan.t} sites", str(len(readies)))
    own = readies.get(site.index)
    if own is None or own.signed != advertised.ready:
        raise refusal(6, "own Ready unchanged", "another or none")
    tag = keys.group_tag(attempt.kappa, attempt.ctx)
    for index, ready in readies.items():
        _check_ready(attempt, index, ready, tag)
    _check_lineage(attempt, readies)
    mask_keys = {index: ready.message.mask_key for index, ready in readies.items()}
    # section 8, attack 8: repeated keys
    if len(set(mask_keys.values())) < len(mask_keys):
        raise refusal(6, "a mask key of its own for each site", "one twice")
    shares = _open_shares(advertised, readies, read_records(cohort.tail, SHARES_BOX))
    hashed = cohort_hash(mask_keys)
    plus, minus = _stream_keys(advertised, mask_keys, hashed)
    return Shared(attempt, tuple(readies), hashed, plus, minus, shares)


def mask(shared: Shared, values: Integers, lanes: npt.NDArray[np.int64]) -> tuple[Masked, bytes]:
    """Put the site's integers under MAC and masks (message 7; sections 3 and 5).

    Args:
        shared: the phase before.
        values: (d,) signed integers of the encoding.
        lanes: (L,) signed 64-bit integers, each within +-`mac.lane_bound` of the plan's n.

    Returns:
        The phase, and Masked for the server.

    Raises:
        ValueError: a shape is not the plan's for this kind of round.
        ProtocolError: a lane is too large for the MAC to tell it from another.
    """
    attempt = shared.attempt
    # section 5: where no two lanes of a sum differ by p61
    if not mac.lanes_within(lanes, bound := mac.lane_bound(attempt.site.plan.n)):
        raise refusal(7, f"lanes within +-{bound}", "a larger one")
    shape = attempt.site.plan.shape(attempt.kind)
    tau = mac.tau(keys.mac_key(attempt.kappa, attempt.ctx), values, lanes)
    draft, digest = Draft(MaskedMessage, shape.payload_bytes), hashlib.sha256()
    masking.masked_payload(
        shape,
        values,
        lanes,
        tau,
        shared.plus,
        shared.minus,
        threads=attempt.site.threads,
        out=draft.tail,
        digest=digest,
    )
    header = attempt.header(MaskedMessage.NUMBER)
    message = MaskedMessage(header, shared.cohort_hash, shape.payload_bytes, digest.digest())
    data = draft.sign(message, attempt.site.identity)
    return Masked(attempt, shared.cohort, shared.cohort_hash, shared.shares), data


def acknowledge(masked: Masked, data: bytes) -> tuple[Acknowledged, bytes]:
    """Accept the set of survivors, once (messages 8 and 9).

    Returns:
        The phase, whose set is to be stored first, and SurvivorAck for the server.

    Raises:
        ProtocolError: a check of section 2, message 8, fails.
    """
    attempt, plan = masked.attempt, masked.attempt.site.plan
    told = read(Survivors, data)
    check_server(attempt.site, told, attempt.run, attempt.counter)
    survivors = told.message.survivors
    if told.message.cohort_hash != masked.cohort_hash:
        raise refusal(8, "the cohort hash of this attempt", "another")
    # section 2, message 8: U2 within U1, self in U2
    if not set(survivors) <= set(masked.cohort):
        raise refusal(8, "survivors of the cohort", "others")
    if attempt.site.index not in survivors:
        raise refusal(8, "this site among the survivors", "a set without it")
    # section 2, message 8: size >= max(t, min_sites, t_n)
    if len(survivors) < plan.quorum:
        raise refusal(8, f"at least {plan.quorum} survivors", str(len(survivors)))
    ack = SurvivorAck(attempt.header(SurvivorAck.NUMBER), masked.cohort_hash, survivors)
    phase = Acknowledged(attempt, masked.cohort, masked.cohort_hash, masked.shares, survivors)
    return phase, write(ack, attempt.site.identity)


def reveal(acknowledged: Acknowledged, data: bytes) -> tuple[Revealed, bytes]:
    """Give the one share of each cohort member that the agreed set calls for (10 and 11).

    Returns:
        The phase, and Unmask for the server: to be stored first and resent byte for byte.

    Raises:
        ProtocolError: a check of section 2, message 10, fails.
    """
    attempt = acknowledged.attempt
    site, agreed = attempt.site, read(AckSet, data)
    check_server(site, agreed, attempt.run, attempt.counter)
    acks = agreed.message.acks  # ascending senders: distinct
    # section 2, message 10: t signatures ...
    if len(acks) < site.plan.t:
        raise refusal(10, f"at least {site.plan.t} acknowledgements", str(len(acks)))
    for ack in acks:
        _check_ack(acknowledged, ack)
    answers = {}
    for index in acknowledged.cohort:
        # section 2, message 11: of b when alive, of the mask secret when not; never both
        kind = 0 if index in acknowledged.survivors else 1
        answers[index] = acknowledged.shares[index][kind * KEY_BYTES :][:KEY_BYTES]
    message = Unmask(attempt.header(Unmask.NUMBER), records(answers, KEY_BYTES))
    return Revealed(attempt, acknowledged.survivors), write(message, site.identity)


def check(revealed: Revealed, data: bytes | memoryview) -> Sums:
    """Check the opened sum by its MAC (message 12; section 5).

    Raises:
        ProtocolError: the sum is not that of the survivors' vectors, or not of this attempt.
    """
    attempt = revealed.attempt
    result = read(Result, data)
    check_server(attempt.site, result, attempt.run, attempt.counter)
    if result.message.survivors != revealed.survivors:
        raise refusal(12, "the sum of the agreed survivors", "one of others")
    shape = attempt.site.plan.shape(attempt.kind)
    if result.message.length != shape.payload_bytes:
        raise refusal(12, f"{shape.payload_bytes} bytes of sums", str(result.message.length))
    if hashlib.sha256(result.tail).digest() != result.message.payload_hash:
        raise refusal(12, "the signed sums", "others")
    payload = masking.read_payload(shape, result.tail)
    values, lanes = from_ring(payload.values), payload.lanes.view("<i8")
    # section 5: a lane moved by p61 has the same tau, and only one of the two is in range
    if not mac.lanes_within(lanes, mac.SUM_LANE_BOUND):
        raise SpoiltSumError(
            f"message 12: expected sums of lanes within +-{mac.SUM_LANE_BOUND}, got a larger one; "
            "nothing was sent"
        )
    # section 5: sum_k S_k rho_k = tau mod p61
    if mac.tau(keys.mac_key(attempt.kappa, attempt.ctx), values, lanes) != payload.tau:
        raise SpoiltSumError(
            "message 12: expected a sum that its MAC confirms, got another; nothing was sent"
        )
    return Sums(values, lanes, revealed.survivors, result.message.next_model, result_hash(result))


def _advertise(grouped: Grouped, attempt: Attempt, computed: bool) -> tuple[Advertised, bytes]:
    """Draw the attempt's secrets, share both, commit to the shares and box them (message 5)."""
    site, ctx = attempt.site, attempt.ctx
    mask_key = keys.agreement_key(sharing.draw(site.entropy))
    secret = sharing.draw(site.entropy)
    of_secret, of_mask = (
        sharing.split(one, site.plan.t, attempt.members, site.entropy)
        for one in (secret, mask_key.secret)
    )
    commitments = {
        index: keys.share_commitment(ctx, 0, index, of_secret[index])
        + keys.share_commitment(ctx, 1, index, of_mask[index])
        for index in attempt.members
    }
    message = Ready(
        attempt.header(Ready.NUMBER, COMPUTED if computed else 0),
        ctx,
        keys.group_tag(attempt.kappa, ctx),
        mask_key.public,
        keys.self_commitment(ctx, secret),
        records(commitments, 2 * KEY_BYTES),
    )
    nonce = keys.box_nonce(*attempt.counter, Ready.NUMBER)
    bound = _shares_bound(message)
    boxes = {
        peer: keys.seal(
            channel.outward, nonce, of_secret[peer] + of_mask[peer], bound + keys.u16(peer)
        )
        for peer, channel in grouped.channels.items()
    }
    signed = write(message, site.identity)
    own_shares = of_secret[site.index] + of_mask[site.index]
    inward = {peer: channel.inward for peer, channel in grouped.channels.items()}
    advertised = Advertised(attempt, inward, mask_key, secret, own_shares, signed)
    return advertised, signed + records(boxes, SHARES_BOX).block


def _shares_bound(ready: Ready) -> bytes:
    """Return what boxes of message 5 are bound to, less the destination."""
    return ready.header.encode() + ready.ctx + ready.mask_key + ready.self_commitment


def _check_ready(attempt: Attempt, index: int, ready: Signed[Ready], tag: bytes) -> None:
    """Check one Ready of the cohort (section 2, message 6)."""
    name, message = attempt.site.roster.name(index), ready.message
    if index not in attempt.members:
        raise refusal(6, "sites of the run", name)
    if (message.header.run, message.header.counter) != (attempt.run, attempt.counter):
        raise refusal(6, f"the Ready of this attempt from {name}", "one of another")
    if not ready.is_by(attempt.site.roster.sites[index].public):
        raise refusal(6, f"the signature of {name}", "another")
    # every ctx and group tag equals mine: same model, plan, lineage
    if not compare_digest(message.ctx, attempt.ctx):
        raise refusal(6, f"the own ctx from {name}", "another: it was told another round")
    if not compare_digest(message.group_tag, tag):
        raise refusal(6, f"the own group tag from {name}", "another")
    if message.share_commitments.sites != attempt.members:
        raise refusal(6, f"share commitments of {name} for all sites", "others")


def _check_lineage(attempt: Attempt, readies: Mapping[int, Signed[Ready]]) -> None:
    """A site that took the state from the server wants enough others who computed it (6)."""
    if readies[attempt.site.index].message.header.flags & COMPUTED:
        return
    computed = sum(ready.message.header.flags & COMPUTED for ready in readies.values())
    needed = colluders_max(attempt.site.plan.n) + 1
    if computed < needed:
        raise refusal(6, f"{needed} sites that computed this state", str(computed))


def _open_shares(
    advertised: Advertised, readies: Mapping[int, Signed[Ready]], boxes: Records
) -> dict[int, bytes]:
    """Open the peers' boxes and check the shares against their commitments (message 6)."""
    attempt, own = advertised.attempt, advertised.attempt.site.index
    if boxes.sites != tuple(index for index in readies if index != own):
        raise refusal(6, "one box from each site of the cohort", "others")
    nonce = keys.box_nonce(*attempt.counter, Ready.NUMBER)
    shares = {own: advertised.own_shares}
    for peer in boxes.sites:
        ready, name = readies[peer].message, attempt.site.roster.name(peer)
        bound = _shares_bound(ready) + keys.u16(own)
        both = keys.unseal(advertised.inward[peer], nonce, boxes[peer], bound)
        # section 2, message 6: boxes open
        if both is None:
            raise refusal(6, f"a box of {name} that opens", "a broken one")
        # section 2, message 6: shares match their commitments
        for kind in (0, 1):
            share = both[kind * KEY_BYTES :][:KEY_BYTES]
            found = keys.share_commitment(attempt.ctx, kind, own, share)
            if not compare_digest(found, ready.commitment(kind, own)):
                raise refusal(6, f"the committed shares of {name}", "others")
        shares[peer] = both
    return shares


def _stream_keys(
    advertised: Advertised, mask_keys: Mapping[int, bytes], hashed: bytes
) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """Return the keys of the streams to add and to subtract: the lower index adds (section 3)."""
    attempt, own = advertised.attempt, advertised.attempt.site.index
    plus = [keys.self_mask_key(advertised.secret, attempt.ctx, own)]
    minus: list[bytes] = []
    for peer, peer_key in mask_keys.items():
        if peer == own:
            continue
        shared = agree_with(attempt.site, 6, advertised.mask_key, peer, peer_key)
        low, high = min(own, peer), max(own, peer)
        key = keys.pair_mask_key(shared, attempt.ctx, low, high, hashed)
        (plus if own < peer else minus).append(key)
    return tuple(plus), tuple(minus)


def _check_ack(acknowledged: Acknowledged, ack: Signed[SurvivorAck]) -> None:
    """Check one SurvivorAck: a survivor's, and identical to mine (section 2, message 10)."""
    attempt, message = acknowledged.attempt, ack.message
    index, site = message.header.sender, attempt.site
    name = site.roster.name(index)
    if index not in acknowledged.survivors:
        raise refusal(10, "acknowledgements of survivors", f"one of {name}")
    if (message.header.run, message.header.counter) != (attempt.run, attempt.counter):
        raise refusal(10, f"{name} to acknowledge this attempt", "another")
    if message.cohort_hash != acknowledged.cohort_hash:
        raise refusal(10, f"the own cohort hash from {name}", "another")
    if message.survivors != acknowledged.survivors:
        raise refusal(10, f"the own set of survivors from {name}", "another")
    if not ack.is_by(site.roster.sites[index].public):
        raise refusal(10, f"the signature of {name}", "another")
