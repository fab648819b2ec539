"""What a whole study costs a site: epsilon of training and evaluation, and what its ceiling leaves.

Every round and every spare attempt is counted, as the ledger's own check counts them. It debits
nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from client.policy import Policy
from privacy.accounting import Event, Unit
from privacy.budget import spent
from privacy.ring import Ring
from shared_models.debits import Phase, planned_mechanism, study_events
from shared_models.guarantee import cost, knowing_sites, unknown_noise
from shared_models.release import planned_evaluations
from shared_models.ring import planned_attempts
from shared_models.sections import NoPrivacy
from shared_models.steps import site_encoding
from shared_models.study import Study


@dataclass(frozen=True)
class Charge:
    """What the study promises one unit, whoever looks, and what peers could make of it.

    Attributes:
        unit: record or patient.
        delta: of every figure here.
        training: epsilon of all attempts to train.
        evaluation: epsilon of all evaluations; None when they are released without noise.
        study: epsilon of both, of which a unit pays the larger.
        peers: in mode distributed, how many hospitals that put together what they know of the noise
            `against_peers` is about: those that the noise allows for, and at least one.
        against_peers: epsilon of the study against so many of them; None in mode local, where no
            noise of others protects this site's records.
        events: every planned debit.
    """

    unit: Unit
    delta: float
    training: float
    evaluation: float | None
    study: float
    peers: int | None
    against_peers: float | None
    events: tuple[Event, ...]


@dataclass(frozen=True)
class Balance:
    """A dataset's ceiling beside what was spent: by all other studies, and with all of this one."""

    dataset: str
    unit: Unit
    delta: float
    ceiling: float
    before: float
    after: float

    @property
    def left_before(self) -> float:
        """Epsilon below the ceiling, this study left out."""
        return max(0.0, self.ceiling - self.before)

    @property
    def left_after(self) -> float:
        """Epsilon below the ceiling with the whole of this study; negative: it does not fit."""
        return self.ceiling - self.after


def study_charge(study: Study, sites: int, values: int, dataset: str) -> Charge:
    """Return what a study costs when every attempt that it may make is made.

    Args:
        study: private.
        sites: n.
        values: d of a training vector.
        dataset: the steward's name of the records.

    Raises:
        ValueError: the study has no privacy.
        StudyError, PrivacyError: its noise does not fit, or is never enough.
    """
    privacy = study.privacy
    if isinstance(privacy, NoPrivacy):
        raise ValueError("expected a private study")
    encoding = site_encoding(study, sites, values)
    one = study_events(study, planned_mechanism(study), dataset, encoding)
    times: dict[Phase, int] = {
        "train": planned_attempts(study),
        "evaluate": planned_evaluations(study),
    }
    sides = {phase: [event] * times[phase] for phase, event in one.items()}
    events = [event for side in sides.values() for event in side]
    ring = encoding if isinstance(encoding, Ring) else None
    return Charge(
        unit=privacy.unit,
        delta=privacy.delta,
        training=cost(sides["train"], study).epsilon,
        evaluation=cost(sides["evaluate"], study).epsilon if "evaluate" in sides else None,
        study=cost(events, study).epsilon,
        peers=knowing_sites(ring.shares) if ring else None,
        against_peers=cost(events, study, unknown_noise(ring)).epsilon if ring else None,
        events=tuple(events),
    )


def balance(policy: Policy, charge: Charge, history: Sequence[Event]) -> Balance | None:
    """Return what is left of the dataset's ceiling; None where the policy has none.

    Args:
        policy: names the dataset.
        charge: of the study.
        history: all events of the site's ledger.

    Raises:
        PrivacyError: an event counts a unit that the ceiling cannot be charged with.
    """
    ceiling = policy.ceiling
    if ceiling is None:
        return None
    own = charge.events[0].study
    others = [e for e in history if e.dataset == policy.dataset and e.study != own]
    return Balance(
        dataset=policy.dataset,
        unit=ceiling.unit,
        delta=ceiling.delta,
        ceiling=ceiling.epsilon,
        before=spent(others, ceiling).epsilon,
        after=spent([*others, *charge.events], ceiling).epsilon,
    )
