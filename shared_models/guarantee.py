"""What a study promises, as one document: results.json, model.json and the privacy report have it.

It computes from debits that somebody else has counted: a simulation from its sites' ledgers, the
coordinator from the plan. It reads no ledger and writes no sentence but who must be honest.
"""

from collections.abc import Iterable, Mapping

from privacy.accounting import Event, Spent, epsilon
from privacy.ring import MARGIN, Ring, Shares
from shared_models.debits import Phase
from shared_models.release import cell_noise
from shared_models.sections import NoPrivacy
from shared_models.study import Study

Document = dict[str, object]

TRUST = {
    "local": "nobody outside a site: each site's update is private by itself, against the server, "
    "the other sites and every reader of the model",
    "none": "every reader of the model: without differential privacy it may reveal records",
}


def planned_cost(
    study: Study, events: Mapping[Phase, Event], times: Mapping[Phase, int], noise: float = 1.0
) -> Spent | None:
    """Return what so many debits of each event cost; None in mode none.

    Args:
        study: with the delta.
        events: what one debit of each phase is (`shared_models.debits.study_events`).
        times: how many debits.
        noise: the part of the noise's deviation that counts, for whoever knows the rest of it.
    """
    if isinstance(study.privacy, NoPrivacy) or not events:
        return None
    return cost(
        (event for phase, event in events.items() for _ in range(times[phase])), study, noise
    )


def cost(events: Iterable[Event], study: Study, noise: float = 1.0) -> Spent:
    """Return what these debits cost at the study's delta, as `planned_cost`."""
    if isinstance(study.privacy, NoPrivacy):
        raise ValueError("expected a private study")
    return epsilon((_with_noise(event, noise) for event in events), study.privacy.delta)


def unknown_noise(ring: Ring) -> float:
    """Return the part of the noise that counts against sites which put theirs together."""
    known = ring.shares.answers - knowing_sites(ring.shares)
    return ring.multiplier(known) / ring.noise_multiplier


def knowing_sites(shares: Shares) -> int:
    """Return how many sites may put together what they know of the noise: never none."""
    return max(shares.colluders, 1)


def guarantee(
    study: Study, sites: int, spent: Spent | None, peers: Spent | None, ring: Ring | None
) -> Document:
    """Return the document.

    Args:
        study: as run.
        sites: how many a sum may have.
        spent: what was debited, against the server and every reader; None in mode none.
        peers: the same against sites that know their own noise; mode distributed only.
        ring: of mode distributed, else None.
    """
    mode, unit = study.privacy.mode, getattr(study.privacy, "unit", None)
    return {
        "mode": mode,
        "unit": unit,  # not that of the debits: there may be none
        "adjacency": spent.adjacency if spent else None,
        "epsilon": spent.epsilon if spent else None,
        "delta": spent.delta if spent else None,
        "rdp_epsilon": spent.rdp_epsilon if spent else None,
        "accountant": spent.accountant if spent else None,
        "trusted": TRUST[mode] if ring is None else _trusted(study, ring.shares),
        **_noise(ring, peers),
        "evaluation": _evaluation(study, sites),
    }


def _evaluation(study: Study, sites: int) -> Document:
    """Return how evaluations are released, and what protects the held-out records."""
    noise = cell_noise(study, sites)
    if noise is None:
        return {"release": "exact", "epsilon": None, "cells": None, "deviation": None}
    return {
        "release": "noised",
        "epsilon": study.evaluation.epsilon,
        "cells": noise.cells,
        "deviation": noise.deviation(noise.sites),  # of a cell's sum over all sites, in counts
    }


def _trusted(study: Study, shares: Shares) -> str:
    if study.aggregation.masking == "none":
        return "the server, which is sent every site's vector with a share of the noise only"
    return (
        f"of the {shares.answers} or more sites in a sum, all but {shares.colluders} to add "
        "their share of the noise and keep it to themselves; not the server, as long as it "
        "follows the protocol, and no reader of the model"
    )


def _noise(ring: Ring | None, peers: Spent | None) -> Document:
    """Return what mode distributed adds: who carries the noise, and what peers could learn."""
    if ring is None or peers is None:
        return {}
    return {
        "noise": {
            "sites": ring.shares.sites,
            "answers": ring.shares.answers,
            "colluders": ring.shares.colluders,
            "sampling_rate": ring.sums.sampling_rate,
            "margin": MARGIN,
        },
        "against_sites": {
            "sites": knowing_sites(ring.shares),
            "epsilon": peers.epsilon,
            "delta": peers.delta,
            "rdp_epsilon": peers.rdp_epsilon,
        },
    }


def _with_noise(event: Event, part: float) -> Event:
    # The slack of less noise is larger: with 1 / mu^2 at most (privacy.ring.Ring.slack).
    noise, slack = event.noise_multiplier * part, event.slack / part**4
    return event.model_copy(update={"noise_multiplier": noise, "slack": slack})
