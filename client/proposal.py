"""The policy that a site begins with, when its data steward has written none: to be edited.

It decides nothing: the steward does. What it proposes as a ceiling is what one study may cost.
"""

import math

from privacy.accounting import Event, epsilon
from shared_models.debits import planned_mechanism
from shared_models.ring import planned_attempts
from shared_models.study import Study, is_exact

DATASET = "records"

_TEXT = """\
# Written by `fedward-site enrol` for the study {name}; docs/policy.md says what each key means.
# The data steward edits it; `fedward-site start` writes a change down before it counts.

dataset = "{dataset}"      # the patients that the records are of: the name stays, whatever the file
min_sites = {min_sites}            # fewest hospitals in a sum
allow_exact_release = false

# What the records may cost each {unit} over all studies and years. Proposed: what this study alone
# may cost. Another study needs a decision.
[ceilings.{dataset}]
unit = "{unit}"
epsilon = {epsilon:g}
delta = {delta:g}
"""


def proposed_epsilon(study: Study) -> float:
    """Return the epsilon that a study may cost a record or patient, rounded up to cents.

    A record is trained on or held out, so that the larger of the two costs counts.
    """
    privacy = study.privacy
    if privacy.mode == "none":
        raise ValueError("expected a private study")
    training = privacy.epsilon
    if training is None:
        training = _cost(study)
    held = 0.0 if is_exact(study) else study.evaluation.epsilon
    return math.ceil(max(training, held) * 100 - 1e-9) / 100


def proposal(study: Study) -> str:
    """Return the text of a policy under which this study, and no other, may run."""
    privacy = study.privacy
    if privacy.mode == "none":
        raise ValueError("expected a private study")
    return _TEXT.format(
        name=study.name,
        dataset=DATASET,
        min_sites=study.aggregation.min_sites,
        unit=privacy.unit,
        epsilon=proposed_epsilon(study),
        delta=privacy.delta,
    )


def _cost(study: Study) -> float:
    """Return what the planned attempts cost at the study's own noise."""
    mechanism, privacy = planned_mechanism(study), study.privacy
    if mechanism is None or privacy.mode == "none":
        raise ValueError("expected a private study")
    event = Event(
        study=study.digest(),
        dataset=DATASET,
        unit=privacy.unit,
        sampling_rate=mechanism.sampling_rate,
        noise_multiplier=mechanism.noise_multiplier,
        clipping_norm=mechanism.clipping_norm,
        steps=study.training.local_steps or 1,
        denominator=float(mechanism.expected_batch),
        mode="local",
    )
    return epsilon([event] * planned_attempts(study), privacy.delta).epsilon
