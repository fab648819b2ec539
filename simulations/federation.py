"""Virtual sites, a ClientApp that answers for them, and an exchange that reaches them.

The sites are the client's, the rounds the server's; what is made here is only that they meet in
one process, on seeded randomness.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from client.app import Answer, make_app
from client.lineage import Lineage
from client.masked import KINDS, Participant
from client.policy import Policy
from client.site import Site
from client.training import Trainer
from privacy.accounting import Event
from privacy.encoding import Encoding
from privacy.ring import Ring
from server.app import make_exchange
from server.masked import MaskedSum
from server.rounds import Exchange, Summation
from shared_models.debits import Phase, study_events
from shared_models.lanes import evaluate_lanes, train_lanes
from shared_models.plan import count_values
from shared_models.sections import NoPrivacy
from shared_models.steps import site_encoding
from shared_models.strategies import State, state_bytes, state_hash
from shared_models.study import Study
from simulations.crowd import Crowd
from simulations.grid import LocalGrid
from simulations.memory import VolatileStore
from simulations.plain import KIND as PLAIN
from simulations.plain import PlainAnswers, PlainSum
from simulations.pool import Pool
from simulations.seeds import seeded_integer, seeded_key

Kinds = tuple[str, ...]


@dataclass
class Traffic:
    """Bytes of all messages, how many answers there were, and how many updates were summed."""

    bytes_up: int = 0
    bytes_down: int = 0
    answers: int = 0
    site_rounds: int = 0


@dataclass
class Federation:
    """Everything that the server's rounds need, over virtual sites.

    Attributes:
        exchange: reaches the sites.
        summation: opens a sum, masked or plain as the study says.
        cohorts: which sites are asked in a round.
        events: what one round to train, and one to evaluate, costs a site; none in mode none.
        close: ends worker processes.
        traffic: what has been sent so far.
    """

    exchange: Exchange
    summation: Summation
    cohorts: Callable[[int], tuple[str, ...]]
    events: Mapping[Phase, Event]
    close: Callable[[], None]
    traffic: Traffic = field(default_factory=Traffic)


def open_federation(
    study: Study,
    pool: Pool,
    trainer: Trainer,
    folder: Path,
    first: State,
    workers: int = 1,
    start: State | None = None,
) -> Federation:
    """Make the virtual sites of a study and connect them to a server.

    Args:
        study: with its simulation section.
        pool: the records of all sites.
        trainer: the network that the sites of a process share.
        folder: where sites keep ledgers and control variates.
        first: the state before the first round; the plan names it.
        workers: processes that train.
        start: the state to go on from, when a run is resumed: sites and server were cut together,
            so it is the state that the sites had.
    """
    asked = study.aggregation.cohort or len(pool.sites)
    encoding = site_encoding(study, asked, count_values(study, trainer.parameters))
    sites = _Sites(study, pool, trainer, folder, encoding)
    if study.aggregation.masking == "none":
        kinds, answer, summation = _plain(study, trainer, sites)
    else:
        kinds, answer, summation = _masked(study, pool, trainer, sites, first, start or first)
    grid = LocalGrid(make_app(kinds, answer), range(1, len(pool.sites) + 1), workers)
    traffic = Traffic()
    nodes = {name: index + 1 for index, name in enumerate(pool.sites)}
    return Federation(
        exchange=_counted(make_exchange(grid, nodes), traffic),
        summation=summation,
        cohorts=_cohorts(study, pool.sites),
        events=study_events(study, trainer.mechanism, Policy().dataset, encoding),
        close=grid.close,
        traffic=traffic,
    )


def _plain(study: Study, trainer: Trainer, sites: "_Sites") -> tuple[Kinds, Answer, Summation]:
    """Return both ends of the sum in clear."""
    answers = PlainAnswers(trainer.parameters)
    aggregation = study.aggregation
    shapes = shapes_of(study, trainer.parameters)
    # A sum of fewer sites lacks noise, or could wrap: refused in clear as under masks.
    ring = sites.encoding if isinstance(sites.encoding, Ring) else None
    least = ring.shares.answers if ring else aggregation.min_sites
    summation = PlainSum(shapes, least, aggregation.deadline_s, aggregation.ring_bits)

    def answer(kind: str, node: int, message: bytes) -> bytes:
        del kind
        return answers.answer(sites.at(node - 1), message)

    return (PLAIN,), answer, summation


def _masked(
    study: Study, pool: Pool, trainer: Trainer, sites: "_Sites", first: State, start: State
) -> tuple[Kinds, Answer, Summation]:
    """Return both ends of the masked sum: each virtual site with its own keys and phase."""
    first_model = state_hash(state_bytes(first))
    crowd = Crowd(study, pool.sites, trainer.parameters, first_model)
    lineage = Lineage(study, trainer.parameters, state_hash(state_bytes(start)))
    once = study.aggregation.cohort > 0
    participants: dict[int, Participant] = {}

    def answer(kind: str, node: int, message: bytes) -> bytes:
        index = node - 1
        if index not in participants:
            member = partial(crowd.member, index)
            participants[index] = Participant(
                sites.at(index), member, lineage, VolatileStore(), once
            )
        return participants[index].answer(kind, message)

    deadline_s = study.aggregation.deadline_s
    summation = MaskedSum(crowd.coordinator, crowd.places, deadline_s, once)
    return KINDS, answer, summation


def shapes_of(study: Study, parameters: int) -> dict[str, tuple[int, int]]:
    """Return the number of values and lanes of each kind of round."""
    train = (count_values(study, parameters), len(train_lanes(study)))
    return {"train": train, "evaluate": (0, len(evaluate_lanes(study)))}


class _Sites:
    """Makes a virtual site when it is first asked; what it remembers between rounds is on disk."""

    def __init__(
        self, study: Study, pool: Pool, trainer: Trainer, folder: Path, encoding: Encoding | Ring
    ) -> None:
        self._study, self._pool, self._trainer = study, pool, trainer
        self._folder, self.encoding = folder, encoding
        self._policy = Policy(allow_no_privacy=True, allow_exact_release=True)
        self._made: dict[int, Site] = {}

    def at(self, index: int) -> Site:
        if index not in self._made:
            self._made[index] = self._make(index)
        return self._made[index]

    def _make(self, index: int) -> Site:
        name, seed = self._pool.sites[index], self._study.simulation.seed
        keeps = (
            not isinstance(self._study.privacy, NoPrivacy)
            or self._study.aggregation.strategy == "scaffold"
        )
        return Site(
            name=name,
            study=self._study,
            encoding=self.encoding,
            trainer=self._trainer,
            records=lambda: self._pool.split(index),
            folder=self._folder / name if keeps else None,
            policy=self._policy,
            entropy=lambda purpose, number, step: seeded_key(seed, name, purpose, number, step),
        )


def _cohorts(study: Study, sites: tuple[str, ...]) -> Callable[[int], tuple[str, ...]]:
    """Draw who is asked: everyone, or ``cohort`` sites from the seed and the round."""
    size = study.aggregation.cohort

    def drawn(number: int) -> tuple[str, ...]:
        if size == 0:
            return sites
        seed = seeded_integer(study.simulation.seed, "cohort", number)
        chosen = np.random.Generator(np.random.PCG64(seed)).choice(len(sites), size, replace=False)
        return tuple(sites[index] for index in np.sort(chosen))

    return drawn


def _counted(exchange: Exchange, traffic: Traffic) -> Exchange:
    def counting(
        kind: str, outgoing: Mapping[str, bytes], deadline_s: float
    ) -> Iterator[tuple[str, bytes]]:
        for site, reply in exchange(kind, _Counted(outgoing, traffic), deadline_s):
            traffic.bytes_up += len(reply)
            traffic.answers += 1
            yield site, reply

    return counting


class _Counted(Mapping[str, bytes]):
    """Messages that are counted when they are sent."""

    def __init__(self, outgoing: Mapping[str, bytes], traffic: Traffic) -> None:
        self._outgoing, self._traffic = outgoing, traffic

    def __getitem__(self, site: str) -> bytes:
        message = self._outgoing[site]
        self._traffic.bytes_down += len(message)
        return message

    def __contains__(self, site: object) -> bool:
        return site in self._outgoing

    def __iter__(self) -> Iterator[str]:
        return iter(self._outgoing)

    def __len__(self) -> int:
        return len(self._outgoing)
