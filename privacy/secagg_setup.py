"""A site's side of the run setup of FSA1, messages 1 to 3: Greeted, Joined, Grouped.

It does no I/O and keeps nothing on disk: counters come in as arguments and go out as values, for
the caller to store before it sends. Randomness is injected. Sections 1 and 2 of the protocol.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from hmac import compare_digest

from privacy import keys
from privacy.errors import ProtocolError
from privacy.heads import EMPTY, Head, follows, head_of
from privacy.keys import KEY_BYTES, Agreement, AgreementKey, Entropy, Identity
from privacy.roster import Plan, Roster
from privacy.secagg_messages import (
    GroupPart,
    RunHello,
    RunRoster,
    read_group_parts,
)
from privacy.wire import SERVER, Counter, Header, Message, Signed, read, records, write

RUN_BYTES = 16
SETUP = Counter(0, 0)  # the counter in the headers of messages 1 to 3


@dataclass(frozen=True)
class Site:
    """What one site holds for a whole study.

    Args:
        identity: its key; its public half stands in the roster at ``index``.
        index: its place in the roster.
        plan: the plan that its steward approved.
        roster: the roster that its steward approved.
        entropy: source of secrets; os.urandom in every real run.
        agree: key agreement; a simulation may compute each pair once (`keys.SharedAgreements`).
        threads: how many mask its vector. One is the default because a site that waits for others
            is in no hurry, two on a busy machine are slower than one, and the virtual sites of a
            simulation have a process for each core already.
    """

    identity: Identity
    index: int
    plan: Plan
    roster: Roster
    entropy: Entropy = field(default=os.urandom, repr=False)
    agree: Agreement = field(default=keys.agree, repr=False)
    threads: int = 1

    def __post_init__(self) -> None:
        if len(self.roster.sites) != self.plan.n:
            raise ValueError(
                f"expected a roster of {self.plan.n} sites, got {len(self.roster.sites)}"
            )
        if self.roster.sites[self.index].public != self.identity.public:
            raise ValueError(f"expected the roster's key of site {self.index}, got another")
        if self.threads < 1:
            raise ValueError(f"expected at least one thread, got {self.threads}")


@dataclass(frozen=True)
class Channel:
    """The box keys of one run with one peer."""

    outward: bytes = field(repr=False)
    inward: bytes = field(repr=False)


@dataclass(frozen=True)
class Greeted:
    """After message 1: the site has offered its keys for one run."""

    site: Site
    run: bytes
    channel: AgreementKey
    part: bytes = field(repr=False)
    hello: bytes


@dataclass(frozen=True)
class Joined:
    """After message 2: every key is checked; ``highest`` is to be stored before message 3 goes."""

    site: Site
    run: bytes
    transcript: bytes  # T
    members: tuple[int, ...]
    channels: Mapping[int, Channel] = field(repr=False)
    part: bytes = field(repr=False)
    part_commitments: Mapping[int, bytes]
    highest: Mapping[int, Counter]
    heads: Mapping[int, Head]  # of all ledgers, as their sites tell them: to be kept likewise


@dataclass(frozen=True)
class Grouped:
    """After message 3: the sites share kappa; any number of attempts may start from here."""

    site: Site
    run: bytes
    transcript: bytes
    members: tuple[int, ...]
    channels: Mapping[int, Channel] = field(repr=False)
    kappa: bytes = field(repr=False)


def hello(
    site: Site, run: bytes, last: Counter, ledger_head: bytes = bytes(32)
) -> tuple[Greeted, bytes]:
    """Offer fresh keys for one run (message 1).

    Args:
        site: who we are.
        run: id of the run, 16 bytes; the caller refuses one that it has seen before.
        last: own last counter of this study, as stored.
        ledger_head: head of the site's ledger chain, 32 bytes, as `privacy.heads` writes it.

    Returns:
        The phase, and RunHello for the server.
    """
    if len(run) != RUN_BYTES or len(ledger_head) != KEY_BYTES:
        raise ValueError(f"expected a run id of {RUN_BYTES} bytes and a ledger head of 32")
    channel = keys.agreement_key(site.entropy(KEY_BYTES))
    part = site.entropy(KEY_BYTES)
    message = RunHello(
        Header(RunHello.NUMBER, run, SETUP, site.index),
        channel.public,
        site.plan.digest,
        keys.part_commitment(part),
        last,
        ledger_head,
        site.entropy(KEY_BYTES),
    )
    data = write(message, site.identity)
    return Greeted(site, run, channel, part, data), data


def join(
    greeted: Greeted,
    data: bytes,
    highest: Mapping[int, Counter] | None = None,
    heads: Mapping[int, Head] | None = None,
) -> tuple[Joined, bytes]:
    """Check the run's roster and send the own part of the group key (messages 2 and 3).

    Args:
        greeted: the phase before.
        data: RunRoster from the server.
        highest: highest counter ever seen of each peer, as stored.
        heads: latest head seen of each peer's ledger, as stored (`privacy.heads`).

    Returns:
        The phase, whose ``highest`` is to be stored first, and GroupPart for the server.

    Raises:
        ProtocolError: a check of section 2, message 2, fails.
    """
    site, seen, ledgers = greeted.site, highest or {}, heads or {}
    roster = read(RunRoster, data)
    check_server(site, roster, greeted.run, SETUP)
    hellos = {hello.message.header.sender: hello for hello in roster.message.hellos}
    for index, one in hellos.items():
        _check_hello(greeted, index, one, seen.get(index, SETUP), ledgers.get(index, EMPTY))
    # section 2, message 2: own entry unchanged (also when it is a later one of a copy of us)
    own = hellos.get(site.index)
    if own is None or own.signed != greeted.hello:
        raise refusal(2, "own RunHello unchanged", "another or none")
    # section 2, message 2: at least t sites
    if len(hellos) < site.plan.t:
        raise refusal(2, f"at least {site.plan.t} sites", str(len(hellos)))
    # section 2, message 2: no repeated key
    if len({hello.message.channel_key for hello in hellos.values()}) < len(hellos):
        raise refusal(2, "a channel key of its own for each site", "one twice")
    transcript = hashlib.sha256(b"".join(hello.signed for hello in hellos.values())).digest()
    channels = {
        index: _channel(greeted, transcript, index, hello.message.channel_key)
        for index, hello in hellos.items()
        if index != site.index
    }
    joined = Joined(
        site,
        greeted.run,
        transcript,
        tuple(hellos),
        channels,
        greeted.part,
        {index: hello.message.part_commitment for index, hello in hellos.items()},
        {**seen, **{index: hello.message.last for index, hello in hellos.items()}},
        {index: head_of(hello.message.ledger_head) for index, hello in hellos.items()},
    )
    return joined, _group_part(joined)


def group(joined: Joined, data: bytes) -> Grouped:
    """Open the peers' parts and derive kappa (message 3).

    Raises:
        ProtocolError: a part is missing, does not open or breaks its commitment.
    """
    site = joined.site
    header, boxes = read_group_parts(data)
    if (header.run, header.counter, header.sender) != (joined.run, SETUP, SERVER):
        raise refusal(3, "the server's GroupParts of this run", "another message")
    # section 2, message 3: all of them
    if boxes.sites != tuple(joined.channels):
        raise refusal(3, f"parts of {len(joined.channels)} peers", str(len(boxes.sites)))
    parts = {site.index: joined.part}
    nonce = keys.box_nonce(*SETUP, GroupPart.NUMBER)
    for peer, channel in joined.channels.items():
        sender = Header(GroupPart.NUMBER, joined.run, SETUP, peer)
        part = keys.unseal(channel.inward, nonce, boxes[peer], _part_bound(sender, site.index))
        # section 2, message 3: all open
        if part is None:
            raise refusal(3, f"a box of {site.roster.name(peer)} that opens", "a broken one")
        # section 2, message 3: every part matches its commitment
        if not compare_digest(keys.part_commitment(part), joined.part_commitments[peer]):
            raise refusal(3, f"the committed part of {site.roster.name(peer)}", "another")
        parts[peer] = part
    kappa = keys.group_key((parts[index] for index in joined.members), joined.transcript)
    return Grouped(site, joined.run, joined.transcript, joined.members, joined.channels, kappa)


def check_server(site: Site, signed: Signed[Message], run: bytes, counter: Counter | None) -> None:
    """Check that the pinned server signed a message of this run and, when given, this attempt.

    Raises:
        ProtocolError: it did not.
    """
    header = signed.message.header
    if header.sender != SERVER or header.run != run:
        raise refusal(header.number, "the server's message of this run", "another's")
    if counter is not None and header.counter != counter:
        raise refusal(header.number, f"{counter}", f"{header.counter}")
    if not signed.is_by(site.roster.server):
        raise refusal(header.number, "the pinned server's signature", "another")


def agree_with(site: Site, number: int, own: AgreementKey, peer: int, peer_key: bytes) -> bytes:
    """Agree with a peer's key, naming the peer when the key is of low order (section 8, 8)."""
    try:
        return site.agree(own, peer_key)
    except ProtocolError as error:
        name = site.roster.name(peer)
        raise refusal(number, f"a key of full order from {name}", "a low-order one") from error


def refusal(number: int, expected: str, got: str) -> ProtocolError:
    """Return the error of a check that failed at a site."""
    return ProtocolError(f"message {number}: expected {expected}, got {got}; nothing was sent")


def _check_hello(
    greeted: Greeted, index: int, hello: Signed[RunHello], seen: Counter, ledger: Head
) -> None:
    """Check one RunHello against the pinned roster (section 2, message 2)."""
    site = greeted.site
    name = site.roster.name(index)
    if index >= site.plan.n or site.roster.sites[index].revoked:
        raise refusal(2, "sites of the roster that are not revoked", name)
    message = hello.message
    if (message.header.run, message.header.counter) != (greeted.run, SETUP):
        raise refusal(2, f"a RunHello of this run from {name}", "one of another")
    if not hello.is_by(site.roster.sites[index].public):
        raise refusal(2, f"the signature of {name}", "another")
    if message.plan != site.plan.digest:
        raise refusal(2, f"the approved plan at {name}", "another plan")
    if message.last < seen:
        raise refusal(2, f"{name} at {seen} or later", f"{message.last}: it was rolled back")
    now = head_of(message.ledger_head)
    if not follows(ledger, now):
        raise refusal(
            2, f"the ledger of {name} to go on from row {ledger.rows}", f"another at row {now.rows}"
        )


def _channel(greeted: Greeted, transcript: bytes, peer: int, peer_key: bytes) -> Channel:
    """Agree on the box keys with a peer; a low-order key is refused (section 2, message 2)."""
    own = greeted.site.index
    shared = agree_with(greeted.site, 2, greeted.channel, peer, peer_key)
    upward, downward = keys.channel_keys(shared, transcript, min(own, peer), max(own, peer))
    return Channel(upward, downward) if own < peer else Channel(downward, upward)


def _group_part(joined: Joined) -> bytes:
    """Return message 3: the own part of the group key, boxed for each peer."""
    header = Header(GroupPart.NUMBER, joined.run, SETUP, joined.site.index)
    nonce = keys.box_nonce(*SETUP, GroupPart.NUMBER)
    boxes = {
        peer: keys.seal(channel.outward, nonce, joined.part, _part_bound(header, peer))
        for peer, channel in joined.channels.items()
    }
    message = GroupPart(header, records(boxes, KEY_BYTES + keys.BOX_OVERHEAD))
    return write(message, joined.site.identity)


def _part_bound(sender: Header, destination: int) -> bytes:
    """Return what a box of message 3 is bound to, as boxes of message 5 are: header and dst."""
    return sender.encode() + keys.u16(destination)
