"""A site's own limits on what any study may ask of it; they can only tighten a study.

It reads no file and knows no ledger: the budget over several studies is the ledger's.
"""

from privacy.errors import PrivacyError
from shared_models.contract import Section
from shared_models.sections import NoPrivacy
from shared_models.study import Study


class Policy(Section):
    """What the data steward allows.

    Attributes:
        dataset: the steward's name of the patient population; ledger entries carry it.
        min_sites: fewest hospitals in a sum that this site takes part in.
        epsilon_per_study: largest epsilon of one study; None leaves it to the study.
        allow_no_privacy: whether a study without differential privacy may run: simulation only.
    """

    dataset: str = "records"
    min_sites: int = 3
    epsilon_per_study: float | None = None
    allow_no_privacy: bool = False


def check(policy: Policy, study: Study) -> None:
    """Refuse a study that the policy does not allow.

    Raises:
        PrivacyError: says which limit, what the study asks and what is allowed.
    """
    privacy = study.privacy
    if study.aggregation.min_sites < policy.min_sites:
        raise PrivacyError(
            f"aggregation.min_sites: expected >= {policy.min_sites} by this site's policy, "
            f"got {study.aggregation.min_sites}; no record was read"
        )
    if isinstance(privacy, NoPrivacy):
        if not policy.allow_no_privacy:
            raise PrivacyError(
                "privacy.mode: expected local or distributed, got none; no record was read"
            )
        return
    limit = policy.epsilon_per_study
    if limit is not None and not (privacy.epsilon is not None and privacy.epsilon <= limit):
        raise PrivacyError(
            f"privacy.epsilon: expected <= {limit} by this site's policy, "
            f"got {privacy.epsilon}; no record was read"
        )
