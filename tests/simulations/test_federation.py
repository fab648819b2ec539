"""Virtual sites behind an exchange: who is asked, what is summed, what is refused."""

import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from client.training import Trainer
from privacy.errors import AbsentError, ProtocolError
from server.rounds import Order
from shared_models.debits import planned_mechanism
from shared_models.registry import build_network
from shared_models.strategies import State, first_state, state_bytes
from shared_models.study import Study
from shared_models.weights import vector_of
from simulations.federation import Federation, open_federation, shapes_of
from simulations.plain import KIND, PlainSum
from simulations.pool import gather, pool


def opened(study: Study, records: Path, folder: Path, workers: int = 1) -> Federation:
    trainer = Trainer(study, planned_mechanism(study))
    records_ = pool(study, gather(study, records))
    return open_federation(study, records_, trainer, folder, start(study), workers)


def start(study: Study) -> State:
    return first_state(study.aggregation, vector_of(build_network(study, 3)))


def plain_message(study: Study, number: int) -> bytes:
    state = State(number - 1, start(study).model, start(study).moments)
    return struct.pack("<BIH", 0, number, 0) + state_bytes(state)


def train_order(study: Study, federation: Federation, number: int = 1) -> Order:
    state = State(number - 1, start(study).model, start(study).moments)
    return Order("train", number, 0, federation.cohorts(number), state_bytes(state))


def test_a_cohort_has_the_size_of_the_study_and_no_site_twice(
    toy_study: Callable[..., Study], toy_csv: Path, tmp_path: Path
) -> None:
    study = toy_study(**{"aggregation.cohort": 4, "simulation.sites": 9})
    federation = opened(study, toy_csv, tmp_path)
    for number in range(1, 30):
        cohort = federation.cohorts(number)
        assert len(set(cohort)) == len(cohort) == 4


def test_cohorts_follow_from_seed_and_round_alone(
    toy_study: Callable[..., Study], toy_csv: Path, tmp_path: Path
) -> None:
    def drawn(seed: int, numbers: list[int]) -> dict[int, tuple[str, ...]]:
        study = toy_study(
            **{"aggregation.cohort": 4, "simulation.sites": 9, "simulation.seed": seed}
        )
        federation = opened(study, toy_csv, tmp_path)
        return {number: federation.cohorts(number) for number in numbers}

    forward, backward = drawn(1, list(range(1, 11))), drawn(1, list(range(10, 0, -1)))
    assert forward == backward
    assert len(set(forward.values())) > 5
    assert forward != drawn(2, list(range(1, 11)))


def test_every_site_takes_its_turn(
    toy_study: Callable[..., Study], toy_csv: Path, tmp_path: Path
) -> None:
    study = toy_study(**{"aggregation.cohort": 3, "simulation.sites": 9})
    federation = opened(study, toy_csv, tmp_path)
    asked = [site for number in range(1, 301) for site in federation.cohorts(number)]
    counts = [asked.count(site) for site in sorted(set(asked))]
    # Each of 9 sites is in 1/3 of 300 cohorts: 100, standard deviation 8.2. Six of them either way.
    assert len(counts) == 9
    assert min(counts) > 51
    assert max(counts) < 149


def test_without_a_cohort_everyone_is_asked(
    toy_study: Callable[..., Study], toy_csv: Path, tmp_path: Path
) -> None:
    federation = opened(toy_study(), toy_csv, tmp_path)
    assert federation.cohorts(1) == federation.cohorts(2) == ("site-001", "site-002", "site-003")


@pytest.mark.parametrize("workers", [1, 2])
def test_the_sum_is_that_of_the_answers_one_by_one(
    toy_study: Callable[..., Study], toy_csv: Path, tmp_path: Path, workers: int
) -> None:
    study = toy_study()
    federation = opened(study, toy_csv, tmp_path, workers)
    answers: dict[str, bytes] = {}

    def listening(
        kind: str, outgoing: Mapping[str, bytes], deadline_s: float
    ) -> Iterator[tuple[str, bytes]]:
        for site, reply in federation.exchange(kind, outgoing, deadline_s):
            answers[site] = reply
            yield site, reply

    total = federation.summation(listening, train_order(study, federation))
    federation.close()
    count = len(total.values)
    values = [np.frombuffer(reply, "<i4", count).tolist() for reply in answers.values()]
    lanes = [np.frombuffer(reply, "<i8", offset=4 * count).tolist() for reply in answers.values()]
    assert sorted(total.sites) == sorted(answers) == ["site-001", "site-002", "site-003"]
    assert total.values.tolist() == [sum(column) for column in zip(*values, strict=True)]
    assert total.lanes.tolist() == [sum(column) for column in zip(*lanes, strict=True)]
    assert any(any(vector) for vector in values)


@pytest.mark.parametrize("private", [False, True], ids=["none", "local"])
def test_an_exact_evaluation_gives_the_same_cells_masked_and_plain(
    toy_study: Callable[..., Study], toy_csv: Path, tmp_path: Path, private: bool
) -> None:
    cells, release = {}, {"evaluation.release": "exact"} if private else {}
    for masking in ("none", "fsa1"):
        study = toy_study(private, **release, **{"aggregation.masking": masking})
        first = start(study)
        draw = np.random.default_rng(1)
        now = State(2, draw.normal(size=first.model.shape), first.moments)  # evaluation is due
        trainer = Trainer(study, planned_mechanism(study))
        records = pool(study, gather(study, toy_csv))
        federation = open_federation(study, records, trainer, tmp_path / masking, first, start=now)
        order = Order("evaluate", 2, 0, federation.cohorts(2), state_bytes(now))
        opened = federation.summation(federation.exchange, order)
        federation.close()
        assert opened.sites == ("site-001", "site-002", "site-003")
        assert opened.values.size == 0
        cells[masking] = opened.lanes
    assert cells["none"].dtype == cells["fsa1"].dtype == np.int64
    assert cells["fsa1"].tolist() == cells["none"].tolist()
    held = records.held().targets
    assert cells["none"].sum() > len(held)  # every record is in several cells


def test_noise_is_drawn_anew_at_every_site_and_in_every_round(
    toy_study: Callable[..., Study], toy_csv: Path, tmp_path: Path
) -> None:
    study = toy_study(True, **{"privacy.epsilon": 0.1, "model.hidden": [64]})
    federation = opened(study, toy_csv, tmp_path)
    vectors = [
        np.frombuffer(reply, "<i4")
        for number in (1, 2, 3)
        for _, reply in federation.exchange(
            KIND, dict.fromkeys(federation.cohorts(number), plain_message(study, number)), 60.0
        )
    ]
    alike = np.corrcoef(vectors) - np.eye(9)
    # 513 coordinates, nearly all noise: 6 deviations of a correlation by chance, and some signal.
    assert np.abs(alike).max() < 0.5


def test_under_privacy_a_training_answer_has_no_lanes(toy_study: Callable[..., Study]) -> None:
    study = toy_study(private=True)
    parameters = len(start(study).model)
    assert shapes_of(study, parameters)["train"] == (parameters, 0)


def test_an_order_outside_the_study_is_refused_by_every_site(
    toy_study: Callable[..., Study], toy_csv: Path, tmp_path: Path
) -> None:
    study = toy_study(private=True)
    federation = opened(study, toy_csv, tmp_path)
    with pytest.raises(AbsentError, match="3 sites or more, got 0; no sum was made"):
        federation.summation(federation.exchange, train_order(study, federation, study.rounds + 1))
    assert not list(tmp_path.rglob("ledger.db"))  # refused before anything was debited


def test_traffic_counts_the_bytes_of_all_messages(
    toy_study: Callable[..., Study], toy_csv: Path, tmp_path: Path
) -> None:
    study = toy_study()
    federation = opened(study, toy_csv, tmp_path)
    order = train_order(study, federation)
    total = federation.summation(federation.exchange, order)
    sent, answered = len(order.state) + 7, 4 * len(total.values) + 8 * len(total.lanes)
    assert federation.traffic.answers == 3
    assert federation.traffic.bytes_down == 3 * sent  # 7: kind, round and attempt before the state
    assert federation.traffic.bytes_up == 3 * answered


def answering(replies: list[bytes]) -> Callable[..., Iterator[tuple[str, bytes]]]:
    def exchange(
        kind: str, outgoing: Mapping[str, bytes], deadline_s: float
    ) -> Iterator[tuple[str, bytes]]:
        assert kind == KIND
        yield from zip(outgoing, replies, strict=False)

    return exchange


def plain_sum(replies: list[bytes]) -> None:
    summation = PlainSum({"train": (2, 1), "evaluate": (0, 0)}, min_sites=3, deadline_s=1.0)
    summation(answering(replies), Order("train", 1, 0, ("a", "b", "c", "d"), b"state"))


@pytest.mark.parametrize("size", [0, 15, 17])
def test_an_answer_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(ProtocolError, match=f"expected 16 bytes of a site, got {size}"):
        plain_sum([bytes(16), bytes(size), bytes(16)])


def test_too_few_answers_make_no_sum() -> None:
    with pytest.raises(AbsentError, match="3 sites or more, got 2; no sum was made"):
        plain_sum([bytes(16), bytes(16)])


def test_a_missing_answer_is_lived_with_when_enough_are_there() -> None:
    plain_sum([bytes(16)] * 3)
