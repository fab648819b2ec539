"""The server's side of FSA1: it relays, folds masked vectors into one sum and opens that sum alone.

It does no I/O and waits for nobody: each step is given what arrived. A site whose message is wrong
is left out and named in ``refused``; below the threshold the attempt ends. Sections 2 and 3.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hmac import compare_digest
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from privacy import keys, masking, sharing
from privacy.encoding import from_ring
from privacy.errors import ProtocolError
from privacy.keys import Identity
from privacy.masking import Payload, Shape
from privacy.roster import Kind, Plan, Roster
from privacy.secagg_messages import (
    NO_RESULT,
    PART_BOX,
    SHARES_BOX,
    AckSet,
    Cohort,
    GroupPart,
    Masked,
    Ready,
    Result,
    RoundStart,
    RunHello,
    RunRoster,
    SurvivorAck,
    Survivors,
    Unmask,
    cohort_hash,
    write_group_parts,
)
from privacy.secagg_setup import SETUP
from privacy.wire import (
    SERVER,
    Counter,
    Header,
    Message,
    Records,
    Signed,
    front_bytes,
    read,
    read_records,
    records,
    write,
)

M = TypeVar("M", bound=Message)
Replies = Iterable[tuple[int, bytes]]  # (site, message), in any order, as they arrive
Refused = Mapping[int, str]  # site to the reason why its message was left out


@dataclass(frozen=True)
class Coordinator:
    """What the server holds for a whole study; ``identity`` is the one that the roster pins."""

    identity: Identity
    plan: Plan
    roster: Roster


@dataclass(frozen=True)
class Gathered:
    """After message 1: these sites make up the run."""

    server: Coordinator
    run: bytes
    members: tuple[int, ...]
    refused: Refused


@dataclass(frozen=True)
class Run:
    """After message 3: the run is set up; any number of attempts may start from here."""

    server: Coordinator
    run: bytes
    members: tuple[int, ...]


@dataclass(frozen=True)
class Started:
    """After message 4 was made: one attempt of one round."""

    server: Coordinator
    run: bytes
    members: tuple[int, ...]
    counter: Counter
    kind: Kind

    def header(self, number: int) -> Header:
        """Return the header of an own message."""
        return Header(number, self.run, self.counter, SERVER)

    @property
    def shape(self) -> Shape:
        """What one vector of this round holds."""
        return self.server.plan.shape(self.kind)


@dataclass(frozen=True)
class Formed:
    """After message 5: the cohort U1, and what each of it is to be shown."""

    started: Started
    readies: Mapping[int, Ready]
    cohort_hash: bytes
    refused: Refused
    signed: bytes = field(repr=False)  # Cohort without its boxes
    _boxes: Mapping[int, Records] = field(repr=False)

    @property
    def cohort(self) -> tuple[int, ...]:
        """U1, ascending."""
        return tuple(self.readies)

    def message(self, site: int) -> bytes:
        """Return Cohort (message 6) for one site: the part that all see, then its boxes."""
        boxes = {peer: boxes[site] for peer, boxes in self._boxes.items() if peer != site}
        return self.signed + records(boxes, SHARES_BOX).block


class RunningSum:
    """The sum of the masked vectors that have arrived: one vector of memory, whatever the number.

    ``add`` folds each Masked (message 7) as it arrives; `close` ends that.
    """

    def __init__(self, formed: Formed, *, hashing: bool = False) -> None:
        """Start from zero for this cohort.

        Args:
            formed: the cohort.
            hashing: compare each payload with the hash that its site signed. It costs twice the
                sum, so a server does it once a sum has failed its check (section 5).
        """
        self.formed = formed
        self._hashing = hashing
        shape = formed.started.shape
        # Summed where Result will be sent from, and opened there: a copy would cost an eighth.
        front = front_bytes(Result)
        self.message = np.zeros(front + shape.payload_bytes, dtype=np.uint8)
        self.total = masking.read_payload(shape, self.message[front:].data)
        self.folded: set[int] = set()
        self.refused: dict[int, str] = {}
        self.closed = False
        self.opened = False

    def add(self, site: int, data: bytes) -> bool:
        """Fold one Masked; return whether it is in the sum.

        A late one (after `close`) and a second one of a site change nothing; a wrong one changes
        nothing and its reason stands in ``refused``.
        """
        if self.closed or site in self.folded:
            return False
        roster = self.formed.started.server.roster
        try:
            signed = _read_from(self.formed.started, Masked, site, data)
            if site not in self.formed.readies:
                raise _wrong(signed, "a site of the cohort", "another")
            if signed.message.cohort_hash != self.formed.cohort_hash:
                raise _wrong(signed, "this cohort's hash", "another")
            # section 2, message 7: length and signature
            if signed.message.length != self.total.shape.payload_bytes:
                expected = self.total.shape.payload_bytes
                raise _wrong(signed, f"{expected} bytes", str(signed.message.length))
            # section 2, message 7: the payload's hash, to name a site when the sum fails its check
            if self._hashing and (
                hashlib.sha256(signed.tail).digest() != signed.message.payload_hash
            ):
                raise _wrong(signed, f"the vector that {roster.name(site)} signed", "a spoilt one")
        except ProtocolError as error:
            self.refused[site] = str(error)
            return False
        self.total.add(masking.read_payload(self.total.shape, signed.tail))
        self.folded.add(site)
        return True


@dataclass(frozen=True)
class Closed:
    """After message 7: the survivors U2 are fixed for this attempt."""

    running: RunningSum
    survivors: tuple[int, ...]


@dataclass(frozen=True)
class Agreed:
    """After message 9: at least t sites acknowledged U2; on disk before message 10 is sent."""

    running: RunningSum
    survivors: tuple[int, ...]
    refused: Refused


@dataclass(frozen=True)
class Opened:
    """After message 11: the integer sums, and nothing else."""

    running: RunningSum
    survivors: tuple[int, ...]
    payload_hash: bytes  # SHA-256, as Result will say it
    refused: Refused  # sites that gave a wrong share, among others

    @property
    def payload(self) -> Payload:
        """The sum: tau, lanes and values."""
        return self.running.total

    @property
    def values(self) -> npt.NDArray[np.int16] | npt.NDArray[np.int32]:
        """(d,) signed sums of the values."""
        return from_ring(self.payload.values)

    @property
    def lanes(self) -> npt.NDArray[np.int64]:
        """(L,) signed sums of the lanes."""
        return self.payload.lanes.view("<i8")

    @property
    def tau(self) -> int:
        """Sum of the MACs."""
        return self.payload.tau


def gather(server: Coordinator, run: bytes, replies: Replies) -> tuple[Gathered, bytes]:
    """Collect RunHello (1) and return RunRoster for every member (2).

    Raises:
        ProtocolError: fewer than t sites.
    """
    setup = Started(server, run, tuple(range(server.plan.n)), SETUP, Kind.TRAIN)

    def check(hello: Signed[RunHello]) -> None:
        if hello.message.plan != server.plan.digest:
            raise _wrong(hello, "the approved plan", "another")

    hellos, refused = _collect(setup, RunHello, replies, check)
    members = tuple(hellos)
    _enough(server, len(members), server.plan.t, "sites for a run", refused)
    message = RunRoster(setup.header(RunRoster.NUMBER), tuple(hellos.values()))
    return Gathered(server, run, members, refused), write(message, server.identity)


def relay(gathered: Gathered, replies: Replies) -> tuple[Run, dict[int, bytes]]:
    """Collect GroupPart and return GroupParts for each member (3).

    Raises:
        ProtocolError: a member's part is missing; a new run may begin without it.
    """
    server, members = gathered.server, gathered.members
    setup = Started(server, gathered.run, members, SETUP, Kind.TRAIN)

    def check(part: Signed[GroupPart]) -> None:
        peers = tuple(index for index in members if index != part.message.header.sender)
        if part.message.boxes.sites != peers:
            raise _wrong(part, "a box for each peer", "others")

    parts, refused = _collect(setup, GroupPart, replies, check)
    missing = [server.roster.name(index) for index in members if index not in parts]
    if missing:
        raise ProtocolError(
            f"message 3: expected parts of all {len(members)} sites, got none of "
            f"{', '.join(missing)}{_reasons(refused)}; the run ends"
        )
    header = setup.header(GroupPart.NUMBER)
    messages = {}
    for site in members:
        boxes = {peer: part.message.boxes[site] for peer, part in parts.items() if peer != site}
        messages[site] = write_group_parts(header, records(boxes, PART_BOX))
    return Run(server, gathered.run, members), messages


def start_round(
    run: Run, counter: Counter, kind: Kind, model: bytes, result: bytes = NO_RESULT
) -> tuple[Started, bytes]:
    """Return RoundStart for every member (4).

    Args:
        run: the run.
        counter: above every earlier one of the study; to be stored before sending.
        kind: what the plan orders.
        model: hash of model and strategy state.
        result: hash of the last Result.
    """
    started = Started(run.server, run.run, run.members, counter, kind)
    message = RoundStart(started.header(RoundStart.NUMBER), kind, model, result, run.members)
    return started, write(message, run.server.identity)


def form_cohort(started: Started, replies: Replies) -> Formed:
    """Collect Ready (5); ``Formed.message(site)`` is Cohort (6).

    Raises:
        ProtocolError: fewer sites than a sum needs.
    """

    def check(ready: Signed[Ready]) -> None:
        index = ready.message.header.sender
        if ready.message.share_commitments.sites != started.members:
            raise _wrong(ready, "share commitments for all sites", "others")
        peers = tuple(member for member in started.members if member != index)
        if read_records(ready.tail, SHARES_BOX).sites != peers:
            raise _wrong(ready, "a box for each peer", "others")

    replied, refused = _collect(started, Ready, replies, check)
    server = started.server
    _enough(server, len(replied), server.plan.quorum, "sites in the cohort", refused)
    message = Cohort(started.header(Cohort.NUMBER), tuple(replied.values()))
    return Formed(
        started,
        {index: ready.message for index, ready in replied.items()},
        cohort_hash({index: ready.message.mask_key for index, ready in replied.items()}),
        refused,
        write(message, server.identity),
        {index: read_records(ready.tail, SHARES_BOX) for index, ready in replied.items()},
    )


def close(running: RunningSum) -> tuple[Closed, bytes]:
    """End the sum and return Survivors for each of U2 (8); the sum is to be stored first.

    Raises:
        ProtocolError: fewer vectors than may be opened.
    """
    started = running.formed.started
    running.closed = True
    survivors = tuple(sorted(running.folded))
    server = started.server
    _enough(server, len(survivors), server.plan.quorum, "masked vectors", running.refused)
    header = started.header(Survivors.NUMBER)
    message = Survivors(header, running.formed.cohort_hash, survivors)
    return Closed(running, survivors), write(message, server.identity)


def agree_survivors(closed: Closed, replies: Replies) -> tuple[Agreed, bytes]:
    """Collect SurvivorAck (9) and return AckSet for each of U2 (10).

    Raises:
        ProtocolError: fewer than t acknowledgements.
    """
    formed = closed.running.formed
    started = formed.started

    def check(ack: Signed[SurvivorAck]) -> None:
        if ack.message.header.sender not in closed.survivors:
            raise _wrong(ack, "a survivor", "another")
        if ack.message.cohort_hash != formed.cohort_hash:
            raise _wrong(ack, "this cohort's hash", "another")
        if ack.message.survivors != closed.survivors:
            raise _wrong(ack, "the set that was sent", "another")

    acks, refused = _collect(started, SurvivorAck, replies, check)
    server = started.server
    _enough(server, len(acks), server.plan.t, "acknowledgements", refused)
    some = tuple(acks.values())[: server.plan.t]  # t are enough, and each site checks each
    message = AckSet(started.header(AckSet.NUMBER), some)
    return Agreed(closed.running, closed.survivors, refused), write(message, server.identity)


def open_sum(agreed: Agreed, replies: Replies) -> Opened:
    """Collect Unmask (11), rebuild the secrets and remove the masks that are left in the sum.

    The running sum becomes the opened one in place, so this can be done once.

    Raises:
        ProtocolError: fewer than t right answers, or a dealer whose shares fit their commitments
            but not its secret; nothing was opened.
    """
    formed = agreed.running.formed
    started = formed.started
    if agreed.running.opened:
        raise ValueError("expected a sum that is not opened yet")

    def check(answer: Signed[Unmask]) -> None:
        index = answer.message.header.sender
        if index not in agreed.survivors:
            raise _wrong(answer, "a survivor", "another")
        _check_shares(agreed, index, answer)

    answers, refused = _collect(started, Unmask, replies, check)
    server = started.server
    _enough(server, len(answers), server.plan.t, "right unmasking answers", refused)
    some = dict(list(answers.items())[: server.plan.t])
    weights = sharing.interpolation(list(some))
    secrets = {}
    for index in formed.readies:
        shares = {site: answer.message.shares[index] for site, answer in some.items()}
        secrets[index] = sharing.combine(weights, shares)
    plus, minus = _corrections(agreed, secrets)
    agreed.running.opened = True
    digest = hashlib.sha256()
    masking.add_streams(agreed.running.total, plus, minus, digest=digest)
    named = {**agreed.running.refused, **agreed.refused, **refused}
    return Opened(agreed.running, agreed.survivors, digest.digest(), named)


def write_result(opened: Opened, next_model: bytes) -> memoryview:
    """Return Result for every member (12): the sums, their MAC and the next model's hash.

    It is made around the sums, so that can be done once, and neither can be changed any more.
    """
    started = opened.running.formed.started
    message = Result(
        started.header(Result.NUMBER),
        opened.survivors,
        next_model,
        started.shape.payload_bytes,
        opened.payload_hash,
    )
    front = write(message, started.server.identity)
    whole = opened.running.message
    whole[: len(front)] = np.frombuffer(front, dtype=np.uint8)
    whole.flags.writeable = opened.payload.words.flags.writeable = False
    return whole.data


def _collect(
    started: Started,
    kind: type[M],
    replies: Replies,
    check: Callable[[Signed[M]], None],
) -> tuple[dict[int, Signed[M]], dict[int, str]]:
    """Read the replies; return the right ones in index order, and why others were left out."""
    right: dict[int, Signed[M]] = {}
    refused: dict[int, str] = {}
    for site, data in replies:
        if site in right:
            continue  # the first one counts
        try:
            signed = _read_from(started, kind, site, data)
            check(signed)
            right[site] = signed
        except ProtocolError as error:
            refused[site] = str(error)
    return dict(sorted(right.items())), refused


def _read_from(started: Started, kind: type[M], site: int, data: bytes) -> Signed[M]:
    """Read a message that ``site`` signed for this attempt."""
    signed = read(kind, data)
    header, roster = signed.message.header, started.server.roster
    if header.sender != site or site not in started.members or roster.sites[site].revoked:
        raise _wrong(signed, "a member of the run that speaks for itself", f"{header.sender}")
    if (header.run, header.counter) != (started.run, started.counter):
        raise _wrong(signed, f"this run and {started.counter}", f"{header.counter}")
    if not signed.is_by(roster.sites[site].public):
        raise _wrong(signed, f"the signature of {roster.name(site)}", "another")
    return signed


def _wrong(signed: Signed[Message], expected: str, got: str) -> ProtocolError:
    number = signed.message.header.number
    return ProtocolError(f"message {number}: expected {expected}, got {got}; it was left out")


def _reasons(refused: Refused) -> str:
    return "".join(f" (site {site}: {reason})" for site, reason in sorted(refused.items()))


def _enough(server: Coordinator, got: int, needed: int, what: str, refused: Refused) -> None:
    """End the attempt below the threshold (section 2)."""
    if got < needed:
        raise ProtocolError(
            f"expected at least {needed} {what} of {server.plan.n}, got {got}"
            f"{_reasons(refused)}; nothing was opened"
        )


def _check_shares(agreed: Agreed, index: int, answer: Signed[Unmask]) -> None:
    """Check each share of an answer against its commitment (section 2, message 11)."""
    readies, roster = agreed.running.formed.readies, agreed.running.formed.started.server.roster
    shares = answer.message.shares
    if shares.sites != tuple(readies):
        raise _wrong(answer, "one share for each site of the cohort", "others")
    alive = set(agreed.survivors)
    for dealer, ready in readies.items():
        kind = 0 if dealer in alive else 1
        found = keys.share_commitment(ready.ctx, kind, index, shares[dealer])
        if not compare_digest(found, ready.commitment(kind, index)):
            raise _wrong(
                answer,
                f"the committed share of {roster.name(dealer)} from {roster.name(index)}",
                "a wrong one",
            )


def _corrections(agreed: Agreed, secrets: Mapping[int, bytes]) -> tuple[list[bytes], list[bytes]]:
    """Return the stream keys to add and to subtract, each secret checked (section 3)."""
    formed = agreed.running.formed
    roster = formed.started.server.roster
    plus: list[bytes] = []
    minus: list[bytes] = []
    for index, ready in formed.readies.items():
        secret = secrets[index]
        if index in agreed.survivors:  # its own mask goes
            if keys.self_commitment(ready.ctx, secret) != ready.self_commitment:
                raise _dealer(roster.name(index))
            minus.append(keys.self_mask_key(secret, ready.ctx, index))
            continue
        dropped = keys.agreement_key(secret)  # the masks of its pairs go
        if dropped.public != ready.mask_key:
            raise _dealer(roster.name(index))
        for site in agreed.survivors:
            shared = keys.agree(dropped, formed.readies[site].mask_key)
            low, high = min(site, index), max(site, index)
            key = keys.pair_mask_key(shared, ready.ctx, low, high, formed.cohort_hash)
            (minus if site < index else plus).append(key)  # the lower index had added it
    return plus, minus


def _dealer(name: str) -> ProtocolError:
    return ProtocolError(
        f"expected the committed secret of {name}, got another from shares that all match: "
        f"{name} dealt them wrong; nothing was opened"
    )
