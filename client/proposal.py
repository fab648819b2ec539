"""The policy that a site begins with, when its data steward has written none: to be edited.

It decides nothing: the steward does. What it proposes as a ceiling is what one study may cost.
"""

import math

from client.charge import study_charge
from privacy.errors import PrivacyError
from shared_models.plan import count_values
from shared_models.registry import count_parameters
from shared_models.sections import SITES_MIN
from shared_models.study import Study

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
epsilon = {epsilon}
delta = {delta:g}
"""


def proposed_epsilon(study: Study) -> float:
    """Return the epsilon that a study may cost a record or patient, rounded up to cents.

    It is the packet's own figure but for the number of sites, which is not known yet and moves it
    by a billionth.

    Raises:
        PrivacyError: no ceiling is enough for it.
    """
    sites = max(SITES_MIN, study.aggregation.min_sites)
    values = count_values(study, count_parameters(study))
    cost = study_charge(study, sites, values, DATASET).study
    if not math.isfinite(cost):
        raise PrivacyError(
            "expected a study that promises something, got one of infinite epsilon; nothing was "
            "sent"
        )
    return math.ceil(cost * 100 + 1e-6) / 100


def proposal(study: Study) -> str:
    """Return the text of a policy under which this study, and no other, may run.

    Errors: as `proposed_epsilon`.
    """
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
