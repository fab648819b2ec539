"""Which studies may run between hospitals: those that no setting has made a simulation.

Both programs of a deployment ask it before anything else; it reads no record and no policy.
"""

from collections.abc import Mapping

from privacy.errors import PrivacyError
from shared_models.sections import NoPrivacy
from shared_models.study import Study

_HINT = "`fedward-sim run` runs such a study, on one machine"


def check_deployable(study: Study, document: Mapping[str, object] | None = None) -> None:
    """Refuse a study without protection, or with randomness that somebody could know.

    Args:
        study: as agreed.
        document: the study as its author wrote it, to see whether there is a seed in it: a study
            that travelled has every key. What else stands in [simulation] is not read here.

    Raises:
        PrivacyError: mode none, masking none, a cohort drawn from a seed, or a seed.
    """
    if isinstance(study.privacy, NoPrivacy):
        raise PrivacyError(
            "privacy.mode: expected local or distributed between hospitals, got none; "
            "nothing was started",
            _HINT,
        )
    if study.aggregation.masking == "none":
        raise PrivacyError(
            "aggregation.masking: expected fsa1 between hospitals, got none; nothing was started",
            _HINT,
        )
    if study.aggregation.cohort > 0:
        raise PrivacyError(
            f"aggregation.cohort: expected 0 between hospitals, got {study.aggregation.cohort}: "
            "a server that chose cohorts could surround a site; nothing was started",
            _HINT,
        )
    simulation = (document or {}).get("simulation")
    if isinstance(simulation, Mapping) and "seed" in simulation:
        raise PrivacyError(
            "simulation.seed: expected none between hospitals, where masks and noise come from the "
            "operating system; nothing was started",
            "delete the line `seed = ...` under [simulation]; `fedward-sim run --seed` takes one",
        )
