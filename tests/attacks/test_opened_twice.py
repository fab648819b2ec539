"""Attack 19 under privacy: one model opened again with other survivors, or evaluated again exactly.

Whole sites with stores on disk, the project's own server; records are drawn, not read.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.lineage import Lineage
from client.masked import Participant
from client.site import Contribution
from privacy import keys, secagg_setup
from privacy.errors import AbsentError, ProtocolError
from privacy.roster import Member, Roster
from privacy.secagg_server import Coordinator
from privacy.secagg_store import SiteStore
from server.masked import MaskedSum
from server.rounds import Opened, Order
from shared_models.messages import directions
from shared_models.plan import make_plan
from shared_models.steps import after_sum
from shared_models.strategies import State, first_state, state_bytes, state_hash
from shared_models.study import Study, parse_study

N, P = 5, 3  # t = 4: one site may be missing
NAMES = tuple(f"site-{index}" for index in range(N))
IDENTITIES = [keys.identity(bytes([1 + site]) * 32) for site in range(N)]
BOSS = keys.identity(bytes([255]) * 32)
MEMBERS = tuple(Member(name, one.public) for name, one in zip(NAMES, IDENTITIES, strict=True))
ROSTER = Roster(MEMBERS, BOSS.public)
LOCAL: dict[str, object] = {"mode": "local", "sampling_rate": 0.5}
DISTRIBUTED: dict[str, object] = {"mode": "distributed", "records_max": 1000}


def study_of(privacy: dict[str, object], release: str) -> Study:
    bounds = {"epsilon": 4.0, "delta": 1e-6, "clipping_norm": 1.0, "expected_batch": 64}
    steps = {"local_steps": 1} if privacy["mode"] == "local" else {}
    return parse_study(
        {
            "name": "s",
            "task": "tabular",
            "rounds": 4,
            "data": {
                "target": "ill",
                "columns": {
                    "ill": {"kind": "category", "values": ["no", "yes"]},
                    "age": {"kind": "number", "low": 0, "high": 1},
                },
            },
            "model": {"name": "mlp", "hidden": []},
            "training": {"learning_rate": 0.1, **steps},
            "privacy": {**bounds, **privacy},
            "evaluation": {"every": 1, "release": release},
            "simulation": {"sites": N},
        }
    )


class Work:
    """Stands for records: fresh draws at each call, which are counted."""

    def __init__(self, index: int, plan: Any) -> None:
        self.draw, self.plan = np.random.default_rng(index), plan
        self.done: list[tuple[str, int, int]] = []

    def ledger_head(self) -> bytes:
        return bytes(32)

    def contribute(self, kind: str, state: State, number: int, attempt: int) -> Contribution:
        self.done.append((kind, number, attempt))
        values = self.draw.integers(-999, 999, self.plan.values if kind == "train" else 0)
        lanes = self.draw.integers(0, 99, self.plan.evaluate_lanes if kind == "evaluate" else 0)
        return Contribution(values.astype(np.int32), lanes)


class World:
    """Five sites, a server that may be made to forget, and answers that may be lost."""

    def __init__(self, study: Study, folder: Path) -> None:
        self.study, self.folder = study, folder
        self.state = first_state(study.aggregation, np.zeros(P, dtype=np.float32))
        self.first_model = state_hash(state_bytes(self.state))
        self.plan = make_plan(study, ROSTER, P, self.first_model)
        self.work = [Work(index, self.plan) for index in range(N)]
        self.stores: dict[int, SiteStore] = {}
        self.sites = [self.site(index) for index in range(N)]
        self.server = MaskedSum(lambda _: Coordinator(BOSS, self.plan, ROSTER), lambda _: (), 1.0)
        self.lost: set[tuple[str, int]] = set()  # answers
        self.refusals: dict[int, str] = {}
        self.attempt = 0

    def site(self, index: int) -> Participant:
        """A site after a start of its computer."""
        if index in self.stores:
            self.stores[index].close()
        self.stores[index] = SiteStore(self.folder / f"{index}.db")
        draw = random.Random(index).randbytes
        place = secagg_setup.Site(IDENTITIES[index], index, self.plan, ROSTER, draw)
        lineage = Lineage(self.study, P, self.first_model)
        return Participant(self.work[index], lambda _: place, lineage, self.stores[index])  # type: ignore[arg-type]

    def exchange(
        self, kind: str, messages: Mapping[str, bytes], deadline_s: float
    ) -> Iterator[tuple[str, bytes]]:
        for name, message in messages.items():
            index = NAMES.index(name)
            try:
                reply = self.sites[index].answer(kind, message)
            except ProtocolError as error:
                self.refusals[index] = f"{kind}: {error}"
                continue
            if (kind, index) not in self.lost:
                yield name, reply

    def open(self, kind: Any) -> Opened:
        self.refusals, self.attempt = {}, self.attempt + 1
        number = self.state.round + (kind == "train")
        order = Order(kind, number, self.attempt, NAMES, state_bytes(self.state))
        opened = self.server(self.exchange, order)
        if kind == "train":
            state, names = self.state, opened.sites
            self.state = after_sum(self.study, state, opened.values, opened.lanes, names, N, N)
        return opened

    def fails(self, kind: str) -> None:
        with pytest.raises((ProtocolError, AbsentError)):
            self.open(kind)

    def assert_all_refused(self, text: str) -> None:
        assert set(self.refusals) == set(range(N))
        assert all(one.startswith(text) for one in self.refusals.values())

    def evaluations(self) -> list[int]:
        return [sum(kind == "evaluate" for kind, *_ in one.done) for one in self.work]


@pytest.fixture
def exact(tmp_path: Path) -> World:
    return World(study_of(LOCAL, "exact"), tmp_path)


@pytest.fixture(params=[False, True], ids=["", "sites restarted"])
def again(request: pytest.FixtureRequest) -> Callable[[World], None]:
    """again(world): perhaps all sites start anew on what their stores hold."""

    def restart(world: World) -> None:
        if request.param:
            world.sites = [world.site(index) for index in range(N)]
            world.server._run = None  # whose keys are gone with the sites' memory

    return restart


def test_attack_19_a_second_exact_evaluation_of_a_model(
    exact: World, again: Callable[[World], None]
) -> None:
    exact.open("train")
    exact.open("evaluate")
    again(exact)
    exact.fails("evaluate")
    exact.assert_all_refused("cohort: message 6: expected a model that was not evaluated exactly")
    assert exact.evaluations() == [1] * N  # no record was read for it


def test_attack_19_a_second_exact_evaluation_without_one_site(exact: World) -> None:
    exact.open("train")
    exact.open("evaluate")
    exact.open("train")
    exact.lost = {("cohort", 4)}  # the victim: what is asked for differs in its cells
    exact.fails("evaluate")
    for index in range(4):
        text = "survivors: message 8: expected the set of survivors of the first exact evaluation"
        assert exact.refusals[index].startswith(text)
    exact.lost = set()
    assert exact.open("evaluate").sites == NAMES


@pytest.mark.parametrize("step", ["cohort", "survivors", "unmask"])
def test_attack_19_a_sum_told_in_the_midst_of_an_exact_evaluation(exact: World, step: str) -> None:
    """The site follows it to the next model, and still must note which one it has evaluated."""
    exact.open("train")
    model, server, honest = exact.state, exact.server, exact.exchange
    exact.open("train")
    place = server._result
    server._extend_trail(state_hash(state_bytes(exact.state)))
    told = directions(b"", server._trail, b"")
    server._result, server._trail, exact.state = place, [], model

    def interrupted(kind: str, messages: Mapping[str, bytes], deadline_s: float) -> Any:
        if kind == step:
            assert [site.answer("result", told) for site in exact.sites] == [b""] * N
        return honest(kind, messages, deadline_s)

    exact.exchange = interrupted  # type: ignore[method-assign]
    exact.open("evaluate")
    exact.exchange = honest  # type: ignore[method-assign]
    exact.fails("evaluate")
    exact.assert_all_refused("cohort: message 6: expected a model that was not evaluated exactly")
    assert exact.evaluations() == [1] * N


def test_attack_19_an_exact_evaluation_that_nobody_answered_is_tried_again(exact: World) -> None:
    exact.open("train")
    exact.lost = {("survivors", index) for index in range(N)}
    exact.fails("evaluate")
    exact.lost = {("cohort", 4)}  # also without one site: nothing was opened yet
    assert exact.open("evaluate").sites == NAMES[:4]
    exact.open("train")
    exact.lost = set()
    exact.fails("evaluate")  # with all: the first set stands
    assert set(exact.refusals) == set(range(4))


def test_attack_19_a_training_without_one_site_is_not_held_to_the_first_evaluation(
    exact: World,
) -> None:
    exact.open("train")
    exact.open("evaluate")
    exact.lost = {("cohort", 4)}
    assert exact.open("train").sites == NAMES[:4]


def test_attack_19_noised_evaluations_may_have_other_survivors(tmp_path: Path) -> None:
    noised = World(study_of(LOCAL, "noised"), tmp_path)
    noised.open("train")
    noised.open("evaluate")
    noised.open("train")
    noised.lost = {("cohort", 4)}
    assert noised.open("evaluate").sites == NAMES[:4]


@pytest.mark.parametrize(("privacy", "draws"), [(LOCAL, 1), (DISTRIBUTED, 2)])
def test_attack_19_in_mode_distributed_every_attempt_is_a_fresh_draw(
    tmp_path: Path, again: Callable[[World], None], privacy: dict[str, object], draws: int
) -> None:
    world = World(study_of(privacy, "noised"), tmp_path)
    world.lost = {("survivors", index) for index in range(N)}
    world.fails("train")
    again(world)
    world.lost = set()
    world.open("train")
    assert [len(one.done) for one in world.work] == [draws] * N
    assert len({done for one in world.work for done in one.done}) == draws  # of other attempts
