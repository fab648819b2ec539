"""What a study has cost its sites so far, at most: counted by the coordinator, from the plan.

Every attempt in which records may have been read counts, whether a sum was opened or not; no site
debits more than the plan's attempts. A site's own figure is in its ledger, which stays there.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from privacy.accounting import Spent
from privacy.ring import Ring
from shared_models.debits import Phase, planned_mechanism, study_events
from shared_models.guarantee import guarantee, planned_cost, unknown_noise
from shared_models.plan import count_values
from shared_models.release import planned_evaluations
from shared_models.ring import planned_attempts
from shared_models.steps import site_encoding
from shared_models.study import Study


@dataclass(frozen=True)
class Costs:
    """Turns attempts into what they cost.

    Attributes:
        study: whose plan it is.
        sites: n of the plan.
        parameters: P of the study's network.
    """

    study: Study
    sites: int
    parameters: int

    def times(self, begun: Mapping[Phase, int]) -> dict[Phase, int]:
        """Return the most debits that a site has made: no site goes past the plan's."""
        most: dict[Phase, int] = {
            "train": planned_attempts(self.study),
            "evaluate": planned_evaluations(self.study),
        }
        return {phase: min(begun.get(phase, 0), most[phase]) for phase in most}

    def epsilon(self, begun: Mapping[Phase, int]) -> float:
        """Return what these attempts cost a record or patient, against every reader."""
        spent = self._spent(begun, 1.0)
        return 0.0 if spent is None else spent.epsilon

    def promise(self, begun: Mapping[Phase, int]) -> dict[str, object]:
        """Return the guarantee, as `shared_models.guarantee` writes it."""
        ring = self._ring()
        peers = None if ring is None else self._spent(begun, unknown_noise(ring))
        return guarantee(self.study, self.sites, self._spent(begun, 1.0), peers, ring)

    def _spent(self, begun: Mapping[Phase, int], noise: float) -> Spent | None:
        encoding = site_encoding(self.study, self.sites, count_values(self.study, self.parameters))
        events = study_events(self.study, planned_mechanism(self.study), "records", encoding)
        return planned_cost(self.study, events, self.times(begun), noise)

    def _ring(self) -> Ring | None:
        values = count_values(self.study, self.parameters)
        encoding = site_encoding(self.study, self.sites, values)
        return encoding if isinstance(encoding, Ring) else None
