"""The keys, the roster and the plan of virtual sites, all from the seed.

A deployment makes its keys at the sites and has one roster; simulated cohorts are cut out of it.
"""

from collections.abc import Sequence
from functools import lru_cache

from privacy.keys import Identity, SharedAgreements, identity
from privacy.roster import Member, Roster
from privacy.secagg_server import Coordinator
from privacy.secagg_setup import Site as ProtocolSite
from shared_models.plan import make_plan
from shared_models.study import Study
from simulations.seeds import seeded_key


class Crowd:
    """All virtual sites of a study as the aggregation protocol sees them."""

    def __init__(
        self, study: Study, names: Sequence[str], parameters: int, first_model: bytes
    ) -> None:
        """Make the keys of all sites.

        Args:
            study: whose plan it is.
            names: of the sites, in order.
            parameters: of the study's network.
            first_model: hash of the first state.
        """
        self._seed = study.simulation.seed
        self._server = identity(seeded_key(self._seed, "identity", "server"))
        self._whole = Roster(
            tuple(Member(name, self._identity(name).public) for name in names),
            self._server.public,
        )
        self._numbers = {name: number for number, name in enumerate(names)}
        self._plan = make_plan(study, self._whole, parameters, first_model)
        # Both ends of a pair live in this process: agree once. The secrets themselves come from
        # the operating system even here; masks cancel, so the results do not depend on them.
        self._agree = SharedAgreements()
        self._cut = lru_cache(maxsize=4)(self._roster_of)

    def member(self, number: int, members: tuple[int, ...]) -> ProtocolSite:
        """Return the place of a site in a run of ``members``; () stands for all sites."""
        roster = self._cut(members)
        own = self._identity(self._whole.sites[number].name)
        index = members.index(number) if members else number
        return ProtocolSite(own, index, self._plan, roster, agree=self._agree)

    def coordinator(self, sites: Sequence[str]) -> Coordinator:
        """Return what the server holds for a run of these sites."""
        return Coordinator(self._server, self._plan, self._cut(self.places(sites)))

    def places(self, sites: Sequence[str]) -> tuple[int, ...]:
        """Return the places of sites in the whole roster; () when they are all of it."""
        if len(sites) == len(self._whole.sites):
            return ()
        return tuple(self._numbers[site] for site in sites)

    def _roster_of(self, members: tuple[int, ...]) -> Roster:
        if not members:
            return self._whole
        return Roster(tuple(self._whole.sites[place] for place in members), self._server.public)

    def _identity(self, name: str) -> Identity:
        return identity(seeded_key(self._seed, "identity", "site", name))
