"""How a site that missed a round of its run convinces itself of that round's sum.

It was not asked to reveal anything, so it checks what the others agreed on: the order, t signed
acknowledgements of one set of survivors, and the sum's MAC under the run's key. Section 6.
"""

import hashlib
from hmac import compare_digest

from privacy.secagg_messages import AckSet, RoundStart
from privacy.secagg_setup import Grouped, check_server, refusal
from privacy.secagg_site import Attempt, Expected, Revealed, Sums, check
from privacy.wire import read


def replay(
    grouped: Grouped, start: bytes, acks: bytes, result: bytes | memoryview, expected: Expected
) -> Sums:
    """Return the sum of a round of this run that the site took no part in.

    Args:
        grouped: the run, whose group key the MAC is under.
        start: RoundStart of that round.
        acks: its AckSet.
        result: its Result.
        expected: kind, model and last result as they follow from the site's own state.

    Raises:
        ProtocolError: a signature, the order, the agreement or the MAC does not hold.
    """
    site, plan = grouped.site, grouped.site.plan
    begin = read(RoundStart, start)
    check_server(site, begin, grouped.run, None)
    message, counter = begin.message, begin.message.header.counter
    if message.kind is not expected.kind:
        raise refusal(4, f"a round to {expected.kind.name.lower()}", message.kind.name.lower())
    if not compare_digest(message.model, expected.model):
        raise refusal(4, "a missed round that starts from the own state", "another")
    if not compare_digest(message.result, expected.result):
        raise refusal(4, "the hash of the last result", "another")
    if message.members != grouped.members:
        raise refusal(4, f"all {len(grouped.members)} sites of the run", f"{len(message.members)}")
    agreed = read(AckSet, acks)
    check_server(site, agreed, grouped.run, counter)
    told = agreed.message.acks
    if len(told) < plan.t:
        raise refusal(10, f"at least {plan.t} acknowledgements", str(len(told)))
    survivors, cohort = told[0].message.survivors, told[0].message.cohort_hash
    if len(survivors) < plan.quorum or not set(survivors) <= set(grouped.members):
        raise refusal(8, f"at least {plan.quorum} survivors of the run", str(len(survivors)))
    for ack in told:
        index, name = ack.message.header.sender, site.roster.name(ack.message.header.sender)
        if index not in survivors:
            raise refusal(10, "acknowledgements of survivors", f"one of {name}")
        if (ack.message.header.run, ack.message.header.counter) != (grouped.run, counter):
            raise refusal(10, f"{name} to acknowledge that attempt", "another")
        if (ack.message.survivors, ack.message.cohort_hash) != (survivors, cohort):
            raise refusal(10, "one set of survivors from all", f"another from {name}")
        if not ack.is_by(site.roster.sites[index].public):
            raise refusal(10, f"the signature of {name}", "another")
    ctx = hashlib.sha256(grouped.transcript + begin.head + begin.body).digest()
    kind, model, members = message.kind, message.model, grouped.members
    attempt = Attempt(site, grouped.run, members, counter, kind, model, ctx, grouped.kappa)
    return check(Revealed(attempt, survivors), result)
