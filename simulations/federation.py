"""Virtual sites, a ClientApp that answers for them, and an exchange that reaches them.

The sites are the client's, the rounds the server's; what is made here is only that they meet in
one process, on seeded randomness.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from client.app import make_app
from client.policy import Policy
from client.site import Site, training_event
from client.training import Trainer
from privacy.accounting import Event
from privacy.encoding import Encoding
from server.app import make_exchange
from server.rounds import Exchange, Summation, encoding_of
from shared_models.lanes import evaluate_lanes, train_lanes
from shared_models.sections import NoPrivacy
from shared_models.study import Study
from simulations.grid import LocalGrid
from simulations.plain import KIND, PlainAnswers, PlainSum
from simulations.pool import Pool
from simulations.seeds import seeded_integer, seeded_key


@dataclass
class Traffic:
    """Bytes of all messages, and how many answers there were."""

    bytes_up: int = 0
    bytes_down: int = 0
    answers: int = 0


@dataclass
class Federation:
    """Everything that the server's rounds need, over virtual sites.

    Attributes:
        exchange: reaches the sites.
        summation: opens a sum, masked or plain as the study says.
        cohorts: which sites are asked in a round.
        event: what one training round costs a site; None in mode none.
        close: ends worker processes.
        traffic: what has been sent so far.
    """

    exchange: Exchange
    summation: Summation
    cohorts: Callable[[int], tuple[str, ...]]
    event: Event | None
    close: Callable[[], None]
    traffic: Traffic = field(default_factory=Traffic)


def open_federation(
    study: Study, pool: Pool, trainer: Trainer, folder: Path, workers: int = 1
) -> Federation:
    """Make the virtual sites of a study and connect them to a server.

    Args:
        study: with its simulation section.
        pool: the records of all sites.
        trainer: the network that the sites of a process share.
        folder: where sites keep ledgers and control variates.
        workers: processes that train.
    """
    asked = study.aggregation.cohort or len(pool.sites)
    sites = _Sites(study, pool, trainer, folder, encoding_of(study, asked))
    if study.aggregation.masking == "none":
        plain = PlainAnswers(trainer.parameters)
        kinds: tuple[str, ...] = (KIND,)

        def answer(kind: str, node: int, message: bytes) -> bytes:
            del kind
            return plain.answer(sites.at(node - 1), message)

        summation: Summation = PlainSum(
            shapes_of(study, trainer.parameters),
            study.aggregation.min_sites,
            study.aggregation.deadline_s,
        )
    else:
        raise NotImplementedError
    grid = LocalGrid(make_app(kinds, answer), range(1, len(pool.sites) + 1), workers)
    traffic = Traffic()
    nodes = {name: index + 1 for index, name in enumerate(pool.sites)}
    return Federation(
        exchange=_counted(make_exchange(grid, nodes), traffic),
        summation=summation,
        cohorts=_cohorts(study, pool.sites),
        event=training_event(study, trainer.mechanism, Policy().dataset),
        close=grid.close,
        traffic=traffic,
    )


def shapes_of(study: Study, parameters: int) -> dict[str, tuple[int, int]]:
    """Return the number of values and lanes of each kind of round."""
    values = 2 * parameters if study.aggregation.strategy == "scaffold" else parameters
    return {"train": (values, len(train_lanes(study))), "evaluate": (0, len(evaluate_lanes(study)))}


class _Sites:
    """Makes a virtual site when it is first asked; what it remembers between rounds is on disk."""

    def __init__(
        self, study: Study, pool: Pool, trainer: Trainer, folder: Path, encoding: Encoding
    ) -> None:
        self._study, self._pool, self._trainer = study, pool, trainer
        self._folder, self._encoding = folder, encoding
        self._policy = Policy(allow_no_privacy=True)
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
            encoding=self._encoding,
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
        for site, reply in exchange(kind, outgoing, deadline_s):
            traffic.bytes_down += len(outgoing[site])
            traffic.bytes_up += len(reply)
            traffic.answers += 1
            yield site, reply

    return counting
