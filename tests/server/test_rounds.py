"""The round loop over sites in memory: the sums, the attempts, the evaluations, the end."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from privacy.encoding import Encoding
from privacy.errors import AbsentError, FedwardError, ProtocolError
from privacy.stream import Stream
from server.checkpoint import Checkpoint
from server.rounds import Exchange, Opened, Order, run_rounds
from shared_models.cells import count_cells
from shared_models.lanes import count_training, evaluate_lanes
from shared_models.noised_cells import count_noised_cells
from shared_models.release import cell_noise
from shared_models.steps import encoding_of
from shared_models.strategies import first_state, read_state, state_bytes
from shared_models.study import Study, parse_study

SITES = ("ash", "elm", "fir", "oak")
P = 3
START = np.array([0.5, -0.25, 0.125], dtype=np.float32)
PRIVATE = {
    "mode": "local",
    "noise_multiplier": 1.0,
    "delta": 1e-5,
    "clipping_norm": 1.0,
    "sampling_rate": 0.1,
    "expected_batch": 8,
}


def study(
    rounds: int = 4,
    private: bool = False,
    aggregation: Mapping[str, object] | None = None,
    evaluation: Mapping[str, object] | None = None,
) -> Study:
    return parse_study(
        {
            "name": "s",
            "task": "tabular",
            "rounds": rounds,
            "data": {
                "target": "ill",
                "columns": {
                    "ill": {"kind": "category", "values": ["no", "yes"]},
                    "age": {"kind": "number", "low": 0, "high": 1},
                },
            },
            "model": {"name": "mlp", "hidden": []},
            "training": {"learning_rate": 0.1, "local_steps": 1},
            "privacy": PRIVATE if private else {"mode": "none"},
            "aggregation": {"masking": "none", **(aggregation or {})},
            "evaluation": {"every": 1000, **(evaluation or {})},
        }
    )


def cells(probability: float) -> npt.NDArray[np.int64]:
    """The cells of two records whose true class gets ``probability``: loss = -log of it."""
    scores = np.array([[probability, 1 - probability], [1 - probability, probability]])
    return count_cells("binary", ("no", "yes"), np.array([0, 1]), scores)


class InMemory:
    """A summation as the rounds want it; nothing is told at the end."""

    def __init__(self, call: Callable[[Exchange, Order], Opened]) -> None:
        self.call, self.finished = call, 0

    def __call__(self, exchange: Exchange, order: Order) -> Opened:
        return self.call(exchange, order)

    def finish(self, exchange: Exchange, sites: tuple[str, ...], state: bytes) -> None:
        self.finished += 1


@dataclass
class Sites:
    """Sites in memory: each answers with integers, and the summation adds them.

    Attributes:
        study: for the encoding.
        absent: who does not answer, by round.
        failures: attempts that fail, each once: (kind, round) to how often, or with which error.
        confidence: of the true class at each evaluation, in turn.
        lanes: of a training round, by site; none under privacy.
    """

    study: Study
    absent: Mapping[int, Sequence[str]] = field(default_factory=dict)
    failures: dict[tuple[str, int], list[FedwardError]] = field(default_factory=dict)
    confidence: Callable[[int], float] = lambda number: 0.5 + number / 100
    records: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(SITES, 10))
    weights: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(SITES, 1.0))
    orders: list[Order] = field(default_factory=list)

    @property
    def encoding(self) -> Encoding:
        return Encoding(self.study.aggregation.ring_bits, len(SITES), 1.0)

    def integers(self, site: str, number: int, size: int) -> npt.NDArray[np.int32]:
        generator = np.random.Generator(np.random.PCG64([SITES.index(site), number]))
        vector = generator.uniform(-0.5, 0.5, size) * self.weights[site]
        return self.encoding.quantise(vector, Stream(bytes([SITES.index(site)]) * 32))[0]

    def exchange(
        self, kind: str, outgoing: Mapping[str, bytes], deadline_s: float
    ) -> Iterator[tuple[str, bytes]]:
        number = self.orders[-1].round
        for site in sorted(outgoing, reverse=True):
            if site not in self.absent.get(number, ()):
                yield site, self.integers(site, number, self.size).tobytes()

    def cells(self, probability: float) -> npt.NDArray[np.int64]:
        noise = cell_noise(self.study, len(SITES))
        if noise is None:
            return cells(probability)
        count = 10_000  # so many records that the noise is not felt
        scores = np.array([[probability, 1 - probability], [1 - probability, probability]])
        truth = np.arange(2 * count) % 2
        return count_noised_cells("binary", ("no", "yes"), truth, scores[truth], None, noise.step)

    @property
    def size(self) -> int:
        return 2 * P if self.study.aggregation.strategy == "scaffold" else P

    def summation(self, exchange: Exchange, order: Order) -> Opened:
        self.orders.append(order)
        failing = self.failures.get((order.kind, order.round), [])
        if failing:
            raise failing.pop(0)
        if order.kind == "evaluate":
            lanes = self.cells(self.confidence(order.round))
            return Opened(np.zeros(0, dtype=np.int64), lanes, order.sites)
        total = np.zeros(self.size, dtype=np.int64)
        answered = []
        for site, reply in exchange("train", dict.fromkeys(order.sites, order.state), 1.0):
            total += np.frombuffer(reply, dtype=np.int32)
            answered.append(site)
        if self.study.privacy.mode != "none":
            return Opened(total, np.empty(0, dtype=np.int64), tuple(sorted(answered)))
        lanes = sum(
            (count_training(self.weights[s], self.records[s], 2.0) for s in answered),
            np.zeros(3, dtype=np.int64),
        )
        return Opened(total, lanes, tuple(sorted(answered)))

    def mean(self, number: int, sites: Sequence[str] = SITES) -> npt.NDArray[np.float64]:
        """The mean of the de-quantised updates, site by site, as FedAvg has it."""
        step = 1.0 / self.encoding.bound  # value_bound 1
        total = np.zeros(self.size)
        for site in sites:
            total += self.integers(site, number, self.size) * step
        return total / sum(self.weights[site] for site in sites)


@dataclass
class Run:
    """What a run of the rounds left."""

    checkpoints: list[Checkpoint]
    kept: list[Checkpoint]


def start(given: Study) -> Checkpoint:
    return Checkpoint(given.digest(), first_state(given.aggregation, START), ())


def run(
    sites: Sites,
    begin: Checkpoint | None = None,
    cohorts: Callable[[int], Sequence[str]] = lambda number: SITES,
    kept: list[Checkpoint] | None = None,
) -> Run:
    kept = [] if kept is None else kept
    checkpoints = list(
        run_rounds(
            sites.study,
            begin or start(sites.study),
            sites.exchange,
            InMemory(sites.summation),
            cohorts,
            len(SITES),
            kept.append,
        )
    )
    return Run(checkpoints, kept)


def lost(*_: object) -> ProtocolError:
    return ProtocolError("expected an attempt that works, got none; no sum was opened")


# The sum


def test_the_model_is_federated_averaging_of_what_the_sites_sent() -> None:
    sites = Sites(study())
    model = START.astype(np.float64)
    for number, now in enumerate(run(sites).checkpoints, start=1):
        model = model + sites.mean(number)
        # rtol 1e-12: the same sum of four float64 in another order.
        np.testing.assert_allclose(now.state.model, model, rtol=1e-12, atol=1e-15)


def test_a_private_round_divides_by_the_sites_that_answered() -> None:
    sites = Sites(study(rounds=1, private=True), absent={1: ["oak"]})
    found = run(sites).checkpoints[-1].state.model
    np.testing.assert_allclose(found, START + sites.mean(1, SITES[:3]), rtol=1e-12)


def test_a_weighted_mean_divides_by_the_weights() -> None:
    weights = dict(zip(SITES, (0.25, 0.5, 0.75, 1.0), strict=True))
    given = study(rounds=1, aggregation={"weighting": "public", "weights": weights})
    sites = Sites(given, weights=weights)
    found = run(sites).checkpoints[-1].state.model
    np.testing.assert_allclose(found, START + sites.mean(1), rtol=1e-12)


def test_sites_without_any_weight_leave_the_model() -> None:
    sites = Sites(study(rounds=1), weights=dict.fromkeys(SITES, 0.0))
    assert run(sites).checkpoints[-1].state.model.tolist() == START.tolist()


def test_the_share_of_scaffold_is_the_part_of_all_sites_that_answered() -> None:
    sites = Sites(study(rounds=1, aggregation={"strategy": "scaffold"}), absent={1: ["oak"]})
    found = run(sites).checkpoints[-1].state.moments["control"]
    np.testing.assert_allclose(found, 0.75 * sites.mean(1, SITES[:3])[P:], rtol=1e-12)


def test_the_encoding_is_for_as_many_sites_as_are_asked() -> None:
    assert encoding_of(study(), 7) == Encoding(32, 7, 1.0)


def test_only_the_cohort_of_a_round_is_asked() -> None:
    sites = Sites(study(rounds=2))
    run(sites, cohorts=lambda number: SITES[number - 1 : number + 2])
    assert [order.sites for order in sites.orders if order.kind == "train"] == [
        SITES[:3],
        SITES[1:],
    ]


def test_each_order_carries_the_state_after_the_round_before() -> None:
    sites = Sites(study(rounds=3))
    found = run(sites)
    states = [state_bytes(start(sites.study).state)]
    states += [state_bytes(now.state) for now in found.checkpoints[:-1]]
    assert [order.state for order in sites.orders if order.kind == "train"] == states


# The history


def test_a_row_has_round_sites_and_the_mean_training_loss() -> None:
    sites = Sites(study(rounds=1), absent={1: ["oak"]})
    row = dict(run(sites).checkpoints[-1].history[0])
    row.pop("released")
    assert row == {"round": 1, "sites": 3, "train_loss": 0.2}


def test_a_private_row_has_no_loss_of_training_and_a_noised_release() -> None:
    history = run(Sites(study(rounds=2, private=True))).checkpoints[-1].history
    assert dict(history[0]) == {"round": 1, "sites": 4}
    assert set(history[1]) == {"round", "sites", "released"}
    figure = history[1]["released"]["accuracy"]  # type: ignore[index]
    assert figure["low"] <= figure["value"] <= figure["high"]


def test_early_stopping_under_privacy_reads_what_was_released() -> None:
    stopping = study(rounds=8, private=True, evaluation={"every": 1, "patience": 2})
    sites = Sites(stopping, confidence=lambda number: 0.9 - number / 12)
    last = run(sites).checkpoints[-1]
    assert (last.stopped, last.state.round) == (True, 3)


def test_an_exact_evaluation_under_privacy_that_fails_is_left_out() -> None:
    """Its sites might have opened it: they must not do so again with others."""
    exact = study(rounds=2, private=True, evaluation={"every": 1, "release": "exact"})
    sites = Sites(exact, failures={("evaluate", 1): [ProtocolError("one is missing")]})
    ran = run(sites)
    history = ran.checkpoints[-1].history
    assert history[0]["released"] == {}
    assert history[1]["released"] != {}
    assert [(order.kind, order.round) for order in sites.orders] == [
        ("train", 1),
        ("evaluate", 1),
        ("train", 2),
        ("evaluate", 2),
    ]
    assert [one.state.round for one in ran.checkpoints if "released" in one.history[-1]] == [1, 2]


@pytest.mark.parametrize(
    ("rounds", "every", "expected"),
    [(5, 2, [2, 4, 5]), (4, 2, [2, 4]), (3, 10, [3]), (3, 1, [1, 2, 3])],
)
def test_evaluations_come_every_so_many_rounds_and_at_the_end(
    rounds: int, every: int, expected: list[int]
) -> None:
    sites = Sites(study(rounds=rounds, evaluation={"every": every}))
    history = run(sites).checkpoints[-1].history
    assert [order.round for order in sites.orders if order.kind == "evaluate"] == expected
    assert [row["round"] for row in history if "released" in row] == expected


def test_an_evaluation_looks_at_the_model_that_its_round_made() -> None:
    sites = Sites(study(rounds=1))
    found = run(sites)
    evaluation = read_state(sites.orders[-1].state, P)
    assert sites.orders[-1].kind == "evaluate"
    assert evaluation.model.tolist() == found.checkpoints[-1].state.model.tolist()


def test_what_is_released_is_computed_from_the_sum_of_cells() -> None:
    sites = Sites(study(rounds=1), confidence=lambda number: 0.75)
    released: Any = run(sites).checkpoints[-1].history[0]["released"]
    assert released["accuracy"]["value"] == 1.0
    assert released["loss"]["value"] == pytest.approx(-np.log(0.75), abs=1e-6)  # fixed point 2^-24
    assert released["accuracy"]["n"] == 2


# Attempts


@pytest.mark.parametrize("error", [ProtocolError("lost"), AbsentError("lost")])
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_an_attempt_that_fails_is_tried_again_and_counted(kind: str, error: FedwardError) -> None:
    given = study(rounds=2, aggregation={"spare_attempts": 1}, evaluation={"every": 1})
    calm, rough = Sites(given), Sites(given, failures={(kind, 2): [error]})
    expected, found = run(calm).checkpoints[-1], run(rough).checkpoints[-1]
    assert len(rough.orders) == len(calm.orders) + 1
    assert (expected.spent_attempts, found.spent_attempts) == (0, 1)
    assert state_bytes(found.state) == state_bytes(expected.state)
    assert found.history == expected.history


@pytest.mark.parametrize("spare", [0, 1, 3])
def test_failures_beyond_the_spare_attempts_end_the_study(spare: int) -> None:
    sites = Sites(
        study(aggregation={"spare_attempts": spare}),
        failures={("train", 2): [lost() for _ in range(9)]},
    )
    with pytest.raises(ProtocolError, match="expected an attempt that works"):
        run(sites)
    assert sum(order.round == 2 for order in sites.orders) == spare + 1


def test_spare_attempts_are_of_the_whole_study() -> None:
    sites = Sites(
        study(aggregation={"spare_attempts": 1}),
        failures={("train", 1): [lost()], ("train", 3): [lost()]},
    )
    with pytest.raises(ProtocolError):
        run(sites)


def test_after_the_last_failure_the_last_model_stands() -> None:
    sites = Sites(study(aggregation={"spare_attempts": 0}), failures={("train", 3): [lost()]})
    kept: list[Checkpoint] = []
    with pytest.raises(ProtocolError):
        run(sites, kept=kept)
    calm = run(Sites(study(aggregation={"spare_attempts": 0}))).checkpoints
    assert state_bytes(kept[-1].state) == state_bytes(calm[1].state)
    assert kept[-1].spent_attempts == 1


def test_a_private_study_whose_attempts_are_spent_stays_ended() -> None:
    # Another attempt would be one more release than the noise is calibrated for.
    given = study(private=True, aggregation={"spare_attempts": 0})
    sites, kept = Sites(given, failures={("train", 2): [lost()]}), list[Checkpoint]()
    with pytest.raises(ProtocolError):
        run(sites, kept=kept)
    again = Sites(given)
    with pytest.raises(ProtocolError, match="expected at most 0 failed attempts"):
        run(again, begin=kept[-1])
    assert again.orders == []


def test_a_study_without_privacy_may_be_tried_again() -> None:
    given = study(aggregation={"spare_attempts": 0})
    sites, kept = Sites(given, failures={("train", 2): [lost()]}), list[Checkpoint]()
    with pytest.raises(ProtocolError):
        run(sites, kept=kept)
    assert run(Sites(given), begin=kept[-1]).checkpoints[-1].state.round == given.rounds


def test_attempts_of_a_round_only_grow_over_both_kinds() -> None:
    sites = Sites(
        study(rounds=3, aggregation={"spare_attempts": 9}, evaluation={"every": 1}),
        failures={
            ("train", 1): [lost()],
            ("evaluate", 1): [lost(), lost()],
            ("train", 2): [lost()],
            ("evaluate", 3): [lost()],
        },
    )
    run(sites)
    for number in (1, 2, 3):
        attempts = [order.attempt for order in sites.orders if order.round == number]
        assert all(before < after for before, after in pairwise(attempts)), attempts


def test_a_failed_attempt_is_kept_before_the_next() -> None:
    sites = Sites(
        study(rounds=1, aggregation={"spare_attempts": 2}),
        failures={("train", 1): [lost(), lost()]},
    )
    found = run(sites)
    # The last two: after the training sum, and after the evaluation.
    spent = [(now.state.round, now.spent_attempts) for now in found.kept]
    assert spent == [(0, 1), (0, 2), (1, 2), (1, 2)]


def test_an_error_that_is_no_failed_attempt_is_not_tried_again() -> None:
    sites = Sites(study(), failures={("train", 1): [FedwardError("something else")]})
    with pytest.raises(FedwardError, match="something else"):
        run(sites)
    assert len(sites.orders) == 1


# Going on, and stopping


def test_a_checkpoint_is_kept_before_it_is_seen() -> None:
    sites, kept = Sites(study()), list[Checkpoint]()
    rounds = run_rounds(
        sites.study,
        start(sites.study),
        sites.exchange,
        InMemory(sites.summation),
        lambda number: SITES,
        len(SITES),
        kept.append,
    )
    for now in rounds:
        assert kept[-1] is now


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "scaffold"])
def test_a_run_goes_on_from_any_kept_checkpoint_bit_for_bit(strategy: str) -> None:
    given = study(
        rounds=5,
        aggregation={"strategy": strategy, "average_last": 0.5, "spare_attempts": 3},
        evaluation={"every": 2, "patience": 1},
    )

    def sites() -> Sites:
        return Sites(given, failures={("evaluate", 2): [lost()], ("train", 3): [lost()]})

    whole = run(sites())
    for kept in whole.kept:
        if kept is whole.checkpoints[-1]:
            continue
        rest = run(Sites(given), begin=kept).checkpoints[-1]
        assert state_bytes(rest.state) == state_bytes(whole.checkpoints[-1].state)
        assert rest.history == whole.checkpoints[-1].history


def test_a_run_that_was_cut_before_its_evaluation_goes_on_with_it() -> None:
    # The sites have taken the step to the round's model and cannot train it again.
    given = study(rounds=2, evaluation={"every": 1})
    cut = next(now for now in run(Sites(given)).kept if now.state.round == 1)
    again = Sites(given)
    rows = run(again, begin=cut).checkpoints[-1].history
    assert [(order.kind, order.round) for order in again.orders[:2]] == [
        ("evaluate", 1),
        ("train", 2),
    ]
    assert all("released" in row for row in rows)


def test_a_finished_study_asks_nobody() -> None:
    sites = Sites(study(rounds=2))
    last = run(sites).checkpoints[-1]
    again = Sites(study(rounds=2))
    assert run(again, begin=last).checkpoints == []
    assert again.orders == []


@pytest.mark.parametrize(
    ("confidence", "patience", "last"),
    [
        ([0.6, 0.7, 0.8, 0.9, 0.95], 1, 5),  # better every time
        ([0.6, 0.7, 0.65, 0.9, 0.95], 1, 3),  # worse once
        ([0.6, 0.7, 0.65, 0.9, 0.95], 2, 5),  # worse once is forgiven
        ([0.6, 0.7, 0.65, 0.69, 0.95], 2, 4),  # not better than the best for two
        ([0.6, 0.6, 0.6, 0.6, 0.6], 3, 4),  # no better is not better
    ],
)
def test_a_study_stops_when_the_released_loss_stalls(
    confidence: list[float], patience: int, last: int
) -> None:
    given = study(rounds=5, evaluation={"every": 1, "patience": patience})
    sites = Sites(given, confidence=lambda number: confidence[number - 1])
    found = run(sites).checkpoints[-1]
    assert found.state.round == last
    assert found.stopped == (last < 5)
    assert run(Sites(given), begin=found).checkpoints == []


def test_a_study_without_patience_runs_to_its_end() -> None:
    sites = Sites(study(rounds=6, evaluation={"every": 1}), confidence=lambda number: 0.5)
    found = run(sites).checkpoints[-1]
    assert (found.state.round, found.stopped) == (6, False)


# What it must not know


def test_the_round_loop_imports_no_flower() -> None:
    code = "import sys, server.rounds; print(any(m.split('.')[0] == 'flwr' for m in sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_an_evaluation_has_as_many_lanes_as_cells() -> None:
    assert len(evaluate_lanes(study())) == len(cells(0.5))
