"""The plan of a study: everything that the aggregation needs and that no server may choose later.

Its digest is what a data steward approves. It reads no roster file and asks nobody. Source:
section 1 of the protocol.
"""

import hashlib
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

from privacy.errors import StudyError
from privacy.roster import KEY_BYTES, Plan, Roster
from shared_models.lanes import evaluate_lanes, train_lanes
from shared_models.sections import DistributedPrivacy
from shared_models.steps import site_encoding
from shared_models.study import Study

PACKAGES = ("privacy", "shared_models", "client", "server", "simulations")
ROOT = Path(__file__).resolve().parent.parent


def make_plan(study: Study, roster: Roster, parameters: int, first_model: bytes) -> Plan:
    """Return the plan of a study with this roster.

    Args:
        study: what was agreed.
        roster: all sites of the study with their pinned keys, and the server's.
        parameters: P of the study's network.
        first_model: SHA-256 of the first state.

    Raises:
        StudyError: the number of sites does not allow the study's thresholds, or its values do not
            fit into the ring.
    """
    text = plan_document(study, roster, parameters, first_model)
    digest = hashlib.sha256(text.encode()).digest()
    return replace(_numbers(study, roster, parameters), digest=digest)


def plan_document(study: Study, roster: Roster, parameters: int, first_model: bytes) -> str:
    """Return the plan's canonical JSON, whose SHA-256 is the digest that is approved.

    Args and errors are those of `make_plan`. Two parties that hold the same study, keys, code and
    first state write the same text, whatever revocations they know of.
    """
    if len(first_model) != KEY_BYTES:
        raise ValueError(f"expected a hash of {KEY_BYTES} bytes, got {len(first_model)}")
    numbers = _numbers(study, roster, parameters)
    document = {
        "study": study.digest(),
        "roster": roster_digest(roster),
        "n": numbers.n,
        "t": numbers.t,
        "t_n": numbers.t_n,
        "n_c": numbers.n_c,
        "min_sites": numbers.min_sites,
        "d": numbers.values,
        "ring_bits": numbers.ring_bits,
        "scale": scale(study, numbers.n, numbers.values),
        "lanes": {"train": train_lanes(study), "evaluate": evaluate_lanes(study)},
        "first_model": first_model.hex(),
        "code": code_digest(),
    }
    return _canonical(document)


def scale(study: Study, sites: int, values: int) -> float:
    """Return the steps of the ring per model unit.

    Args:
        study: whose values are encoded.
        sites: n, so many vectors are summed at most.
        values: d, the coordinates of a vector.

    Raises:
        StudyError: the values do not fit into the ring.
    """
    steps = site_encoding(study, sites, values).scale
    if not steps < float("inf"):
        raise StudyError(
            "expected a value_bound or a clipping_norm with a finite scale, got too small a one; "
            "nothing was sent"
        )
    return steps


def count_values(study: Study, parameters: int) -> int:
    """Return d, the values of a training vector; SCAFFOLD sends a control variate too."""
    return 2 * parameters if study.aggregation.strategy == "scaffold" else parameters


def roster_digest(roster: Roster) -> str:
    """Return the SHA-256, in hexadecimal, of who takes part: index, name and key, and the server's.

    It does not cover who was revoked: the plan keeps its n and t, a revoked site can only be left
    out, and so a revocation needs no second approval (section 1).
    """
    document = {
        "sites": [
            [index, member.name, member.public.hex()] for index, member in enumerate(roster.sites)
        ],
        "server": roster.server.hex(),
    }
    return hashlib.sha256(_canonical(document).encode()).hexdigest()


@cache
def code_digest(root: Path = ROOT) -> str:
    """Return the SHA-256, in hexadecimal, over (path, SHA-256) of the five packages' .py files.

    One line ``PATH NUL HEX LF`` a file, sorted by path over all packages; a path is relative to
    ``root``, with slashes. It is computed once a process: code does not change under a running one.
    """
    files = {
        path.relative_to(root).as_posix(): path
        for package in PACKAGES
        for path in (root / package).rglob("*.py")
    }
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(f"{name}\0{hashlib.sha256(files[name].read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def _numbers(study: Study, roster: Roster, parameters: int) -> Plan:
    """Return the plan without its digest; what is outside its range is refused here."""
    privacy = study.privacy
    distributed = privacy if isinstance(privacy, DistributedPrivacy) else None
    return Plan(
        digest=bytes(KEY_BYTES),
        n=study.aggregation.cohort or len(roster.sites),
        values=count_values(study, parameters),
        ring_bits=study.aggregation.ring_bits,
        train_lanes=len(train_lanes(study)),
        evaluate_lanes=len(evaluate_lanes(study)),
        min_sites=study.aggregation.min_sites,
        answers_min=distributed.noise_answers if distributed else None,
        colluders=distributed.colluders if distributed else None,
    )


def _canonical(document: object) -> str:
    return json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
