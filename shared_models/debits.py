"""What one attempt of a round costs a site: the events of its ledger, as the study fixes them.

The site debits them and the coordinator adds them up; both compute them from the study alone. It
keeps no ledger and reads no record.
"""

from importlib.metadata import version
from typing import Literal

from privacy.accounting import Event
from privacy.dpsgd import Mechanism
from privacy.encoding import Encoding
from privacy.ring import Ring
from shared_models.release import cell_noise
from shared_models.ring import planned_noise
from shared_models.sections import NoPrivacy
from shared_models.study import Study

Phase = Literal["train", "evaluate"]


def planned_mechanism(study: Study) -> Mechanism | None:
    """Return the private step's parameters, all public; None in mode none.

    The noise multiplier covers every round and every spare attempt of the study; in mode
    distributed it is that of the whole sum, and no site adds it alone.
    """
    privacy = study.privacy
    if isinstance(privacy, NoPrivacy):
        return None
    return Mechanism(
        clipping_norm=privacy.clipping_norm,
        noise_multiplier=planned_noise(study),
        sampling_rate=privacy.sampling_rate,
        expected_batch=privacy.expected_batch,
        unit=privacy.unit,
        clipping=privacy.clipping,
    )


def study_events(
    study: Study, mechanism: Mechanism | None, dataset: str, encoding: Encoding | Ring
) -> dict[Phase, Event]:
    """Return what one round to train, and one to evaluate, costs a site; neither in mode none.

    Args:
        study: as approved.
        mechanism: of a private step; None in mode none.
        dataset: the steward's name of the records.
        encoding: says how many sites may be summed, and how much noise they add together.
    """
    privacy = study.privacy
    if mechanism is None or isinstance(privacy, NoPrivacy):
        return {}
    ring = encoding if isinstance(encoding, Ring) else None
    train = Event(
        study=study.digest(),
        dataset=dataset,
        unit=privacy.unit,
        sampling_rate=mechanism.sampling_rate,
        noise_multiplier=ring.noise_multiplier if ring else mechanism.noise_multiplier,
        clipping_norm=mechanism.clipping_norm,
        steps=study.training.local_steps or 1,
        denominator=float(mechanism.expected_batch),
        mode=privacy.mode,
        slack=ring.slack if ring else 0.0,
        versions={name: version(name) for name in ("fedward", "torch", "opacus")},
    )
    cells = cell_noise(study, sites_of(encoding))
    if cells is None:
        return {"train": train}
    evaluate = train.model_copy(
        update={
            "phase": "evaluate",
            "sampling_rate": 1.0,  # every held-out unit is looked at, every time
            "noise_multiplier": cells.noise_multiplier,
            "clipping_norm": cells.sensitivity,
            "steps": 1,
            "denominator": 1.0,
            "slack": cells.slack,
        }
    )
    return {"train": train, "evaluate": evaluate}


def sites_of(encoding: Encoding | Ring) -> int:
    """Return how many sites a sum may have."""
    return encoding.shares.sites if isinstance(encoding, Ring) else encoding.count_sites
