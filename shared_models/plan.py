"""The plan of a study: everything that the aggregation needs and that no server may choose later.

Its digest is what a data steward approves. Source: section 1 of the protocol.
"""

import hashlib
import json
from functools import cache
from pathlib import Path

from privacy.roster import Plan, Roster, colluders_max, threshold
from shared_models.lanes import evaluate_lanes, train_lanes
from shared_models.sections import DistributedPrivacy
from shared_models.study import Study

PACKAGES = ("privacy", "shared_models", "client", "server", "simulations")


def make_plan(study: Study, roster: Roster, parameters: int, first_model: bytes) -> Plan:
    """Return the plan of a study with this roster.

    Args:
        study: what was agreed.
        roster: all sites of the study with their pinned keys, and the server's.
        parameters: P of the study's network.
        first_model: SHA-256 of the first state.

    Raises:
        StudyError: the number of sites does not allow the study's thresholds.
    """
    n = study.aggregation.cohort or len(roster.sites)
    privacy = study.privacy
    distributed = isinstance(privacy, DistributedPrivacy)
    answers = (privacy.noise_answers or 0) if isinstance(privacy, DistributedPrivacy) else 0
    colluders = privacy.colluders if isinstance(privacy, DistributedPrivacy) else None
    values = count_values(study, parameters)
    document = {
        "study": study.digest(),
        "roster": roster_digest(roster),
        "n": n,
        "t": threshold(n),
        "t_n": answers or threshold(n),
        "n_c": colluders_max(n) if colluders is None else colluders,
        "d": values,
        "ring_bits": study.aggregation.ring_bits,
        "scale": None if distributed else study.aggregation.value_bound,
        "lanes": {"train": train_lanes(study), "evaluate": evaluate_lanes(study)},
        "first_model": first_model.hex(),
        "code": code_digest(),
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return Plan(
        digest=hashlib.sha256(text.encode()).digest(),
        n=n,
        values=values,
        ring_bits=study.aggregation.ring_bits,
        train_lanes=len(train_lanes(study)),
        evaluate_lanes=len(evaluate_lanes(study)),
        min_sites=study.aggregation.min_sites,
        answers_min=answers,
    )


def count_values(study: Study, parameters: int) -> int:
    """Return d, the values of a training vector; SCAFFOLD sends a control variate too."""
    return 2 * parameters if study.aggregation.strategy == "scaffold" else parameters


def roster_digest(roster: Roster) -> str:
    """Return the SHA-256 of the roster's canonical JSON, in hexadecimal."""
    document = {
        "sites": [[member.name, member.public.hex(), member.revoked] for member in roster.sites],
        "server": roster.server.hex(),
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def code_digest() -> str:
    """Return the SHA-256 over the sorted (path, SHA-256) of the five packages' .py files."""
    root = Path(__file__).resolve().parent.parent
    total = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            total.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()
