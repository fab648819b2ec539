"""The ring of a study in mode distributed: how its sums are scaled and who adds how much noise.

Both sides compute it from the study, the number of sites and the size of the network; it reads no
record and asks no server. Source: sections 4 and 7 of the protocol.
"""

from privacy.accounting import noise_multiplier
from privacy.errors import StudyError
from privacy.ring import Ring, Shares, Sums, fit_ring
from privacy.ring_accounting import RESERVED, covers, renyi_epsilon
from privacy.roster import colluders_max, threshold
from shared_models.sections import DistributedPrivacy, NoPrivacy
from shared_models.study import Study


def planned_noise(study: Study) -> float:
    """Return the noise multiplier of every step: the study's own, or what its epsilon needs.

    It covers every round and every spare attempt.

    Raises:
        PrivacyError: no noise is enough for the study's epsilon.
        ValueError: the study has no privacy.
    """
    privacy = study.privacy
    if isinstance(privacy, NoPrivacy):
        raise ValueError("expected a private study")
    if privacy.noise_multiplier is not None:
        return privacy.noise_multiplier
    # A part of delta is put aside for the small terms of ring noise, which the local mode lacks.
    ring = isinstance(privacy, DistributedPrivacy)
    delta = privacy.delta * (1 - RESERVED) if ring else privacy.delta
    steps = planned_attempts(study) * (study.training.local_steps or 1)
    return noise_multiplier(privacy.epsilon or 0.0, delta, privacy.sampling_rate, steps)


def planned_attempts(study: Study) -> int:
    """Return how many sums of a study may be debited: one a round, and the spare ones."""
    return study.rounds + study.spare_attempts


def shares_of(study: Study, sites: int) -> Shares:
    """Return who adds noise when ``sites`` are asked.

    Raises:
        StudyError: noise_answers or colluders do not fit that number of sites.
    """
    privacy = study.privacy
    if not isinstance(privacy, DistributedPrivacy):
        raise ValueError("expected a study in mode distributed")
    least, most = threshold(sites), colluders_max(sites)
    answers = least if privacy.noise_answers is None else privacy.noise_answers
    colluders = most if privacy.colluders is None else privacy.colluders
    for key, low, got, high in (
        ("noise_answers", least, answers, sites),
        ("colluders", 0, colluders, most),
    ):
        if not low <= got <= high:
            raise StudyError(
                f"privacy.{key}: expected {low} to {high} with {sites} sites, got {got}; "
                "nothing was sent"
            )
    # No sum of fewer sites is ever opened, whichever of the three asks for the most.
    return Shares(sites, max(answers, study.aggregation.min_sites), colluders)


def ring_of(study: Study, sites: int, values: int) -> Ring:
    """Return the ring of a study's sums.

    Args:
        study: in mode distributed.
        sites: n, so many vectors are summed at most.
        values: d, the coordinates of a vector.

    Raises:
        StudyError: values and noise have no room, a share of the noise would be too small, the
            study's thresholds do not fit, or it has too little noise for any promise.
    """
    privacy = study.privacy
    if not isinstance(privacy, DistributedPrivacy):
        raise ValueError("expected a study in mode distributed")
    attempts, noise = planned_attempts(study), planned_noise(study)
    shares = shares_of(study, sites)
    sums = Sums(
        values=values,
        count=attempts,
        clipping_norm=privacy.clipping_norm,
        noise_multiplier=noise,
        sampling_rate=privacy.sampling_rate,
        records_max=privacy.records_max,
    )
    ring = fit_ring(sums, shares, study.aggregation.ring_bits)
    reserve, epsilon = privacy.delta * RESERVED, privacy.epsilon
    if epsilon is None:
        reserve = privacy.delta / 2
        epsilon = renyi_epsilon(((privacy.sampling_rate, noise, attempts),), reserve)
    if not covers(epsilon, reserve, attempts * ring.slack):
        raise StudyError(
            f"privacy: expected noise for an epsilon that still promises something, got "
            f"{epsilon:.3g}; the study is refused",
            hint="ask for a smaller epsilon or a larger noise_multiplier",
        )
    return ring
