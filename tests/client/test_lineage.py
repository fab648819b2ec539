"""A site steps from state to state by itself and believes no other next state."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from client.lineage import Known, Lineage
from privacy.errors import ProtocolError
from privacy.roster import Kind
from privacy.secagg_site import Sums
from privacy.wire import Counter
from shared_models.messages import directions
from shared_models.steps import after_sum
from shared_models.strategies import State, first_state, state_bytes, state_hash
from shared_models.study import Study, parse_study

P, NAMES = 3, ("ash", "elm", "fir", "oak")


def study(**changes: Any) -> Study:
    document: dict[str, Any] = {
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
        "training": {"learning_rate": 0.1, "local_steps": 1},
        "privacy": {"mode": "none"},
        "aggregation": {"strategy": "fedadam", "average_last": 0.5},
        "evaluation": {"every": 2},
    }
    return parse_study({**document, **changes})


STUDY = study()
FIRST = first_state(STUDY.aggregation, np.array([0.5, -0.25, 0.125], dtype=np.float32))
BLOB = state_bytes(FIRST)
DIGEST = state_hash(BLOB)


@pytest.fixture
def lineage() -> Lineage:
    return Lineage(STUDY, P, DIGEST)


def sums(next_model: bytes, result: bytes = bytes([1]) * 32, **changes: Any) -> Sums:
    values = np.array([1 << 20, -5, 7], dtype=np.int32)
    lanes = np.array([3 << 16, 30, 99], dtype=np.int64)
    return replace(Sums(values, lanes, (0, 1, 3), next_model, result), **changes)


def stepped(state: State, one: Sums) -> State:
    names = [NAMES[index] for index in one.survivors]
    return after_sum(STUDY, state, one.values, one.lanes, names, len(NAMES), len(NAMES))


def right(state: State = FIRST, **changes: Any) -> Sums:
    """Sums with the hash of the step that they lead to."""
    one = sums(bytes(32), **changes)
    return replace(one, next_model=state_hash(state_bytes(stepped(state, one))))


# What the server tells


def test_the_plans_first_model_counts_as_computed(lineage: Lineage) -> None:
    known = lineage.told(BLOB)
    assert known.computed
    assert (known.digest, known.blob, known.state.round) == (DIGEST, BLOB, 0)


def test_another_state_is_the_servers_word(lineage: Lineage) -> None:
    other = state_bytes(replace(FIRST, model=FIRST.model + 1))
    assert not lineage.told(other).computed
    assert lineage.told(BLOB).computed  # whatever was told before


def test_the_last_state_read_is_not_read_again(lineage: Lineage) -> None:
    assert lineage.told(BLOB) is lineage.told(bytes(bytearray(BLOB)))


@pytest.mark.parametrize("blob", [b"", b"no state", BLOB[:-1], BLOB + b"\0"])
def test_what_is_no_state_of_this_network_is_refused(lineage: Lineage, blob: bytes) -> None:
    with pytest.raises(ProtocolError, match="expected a state"):
        lineage.told(blob)


def test_a_state_of_another_network_is_refused() -> None:
    with pytest.raises(ProtocolError, match="expected 4 float64 values"):
        Lineage(STUDY, P + 1, DIGEST).told(BLOB)


def test_directions_of_many_sites_are_read_once(lineage: Lineage) -> None:
    message = directions(b"order", [], b"state")
    assert lineage.directions(message) is lineage.directions(message)
    assert lineage.directions(directions(b"another", [], b"")).order == b"another"


# Steps


def test_the_step_is_the_strategys(lineage: Lineage) -> None:
    one = right()
    after = lineage.after(lineage.told(BLOB), Kind.TRAIN, one, NAMES)
    assert after.blob == state_bytes(stepped(FIRST, one))
    assert after.digest == state_hash(after.blob)
    assert after.state.round == 1


def test_a_step_from_a_told_state_is_computed_as_its_sum_was_checked(lineage: Lineage) -> None:
    known = replace(lineage.told(BLOB), computed=False)
    assert lineage.after(known, Kind.TRAIN, right(), NAMES).computed


@pytest.mark.parametrize("kind", list(Kind))
def test_a_next_model_that_is_not_the_strategys_step_is_refused(
    lineage: Lineage, kind: Kind
) -> None:
    one = replace(right(), next_model=bytes(32))
    with pytest.raises(ProtocolError, match="message 12: expected the hash of the strategy's own"):
        lineage.after(lineage.told(BLOB), kind, one, NAMES)


def test_a_right_next_model_is_refused_for_other_sums(lineage: Lineage) -> None:
    one = right()
    for change in (
        {"values": one.values + 1},
        {"lanes": one.lanes * 2},
    ):
        with pytest.raises(ProtocolError, match="message 12"):
            Lineage(STUDY, P, DIGEST).after(
                lineage.told(BLOB), Kind.TRAIN, replace(one, **change), NAMES
            )


def test_an_evaluation_leaves_the_state(lineage: Lineage) -> None:
    known = lineage.told(BLOB)
    assert lineage.after(known, Kind.EVALUATE, sums(DIGEST), NAMES) is known


def test_two_results_of_one_state_lead_to_two_states(lineage: Lineage) -> None:
    """What many sites share is remembered by result too, not by state alone."""
    known = lineage.told(BLOB)
    first = right()
    second = right(values=first.values * 2, result_hash=bytes([2]) * 32)
    states = [lineage.after(known, Kind.TRAIN, one, NAMES).digest for one in (first, second, first)]
    assert states[0] != states[1]
    assert states[0] == states[2]


def test_a_step_that_many_sites_share_is_taken_once(lineage: Lineage) -> None:
    known, one = lineage.told(BLOB), right()
    first = lineage.after(known, Kind.TRAIN, one, NAMES)
    assert lineage.after(known, Kind.TRAIN, one, NAMES) is first


def test_steps_follow_each_other_as_at_the_server(lineage: Lineage) -> None:
    known, state = lineage.told(BLOB), FIRST
    for number in range(4):
        one = right(state, result_hash=bytes([number]) * 32)
        known, state = lineage.after(known, Kind.TRAIN, one, NAMES), stepped(state, one)
    assert known.blob == state_bytes(state)
    assert known.state.round == 4


# What the plan orders


def at(number: int) -> Known:
    return Known(replace(FIRST, round=number), bytes(32), b"", computed=True)


@pytest.mark.parametrize(
    ("state", "number", "kind"),
    [
        (0, 1, Kind.TRAIN),
        (1, 2, Kind.TRAIN),
        (2, 2, Kind.EVALUATE),
        (2, 3, Kind.TRAIN),
        (4, 4, Kind.EVALUATE),
    ],
)
def test_the_plan_orders_the_kind_of_a_round(
    lineage: Lineage, state: int, number: int, kind: Kind
) -> None:
    assert lineage.round(at(state), kind, Counter(number, 0)) == number
    assert lineage.round(at(state), kind, Counter(number + 1, 0)) == number  # a sum was taken back


@pytest.mark.parametrize(
    ("state", "kind", "number"),
    [
        (0, Kind.EVALUATE, 0),
        (0, Kind.TRAIN, 0),
        (1, Kind.EVALUATE, 1),
        (1, Kind.TRAIN, 1),
        (2, Kind.TRAIN, 2),
        (2, Kind.EVALUATE, 1),
        (3, Kind.EVALUATE, 3),
        (4, Kind.TRAIN, 5),
        (4, Kind.EVALUATE, 3),
    ],
)
def test_an_order_that_does_not_follow_the_state_is_refused(
    lineage: Lineage, state: int, kind: Kind, number: int
) -> None:
    told = f"expected round {state + 1}, .* got an order to {kind.name.lower()} as round {number};"
    with pytest.raises(ProtocolError, match=told):
        lineage.round(at(state), kind, Counter(number, 0))


def test_the_last_round_is_evaluated_whatever_its_number() -> None:
    lineage = Lineage(study(evaluation={"every": 3}), P, DIGEST)
    assert [number for number in range(6) if lineage.evaluated(number)] == [3, 4]


def test_under_privacy_the_same_evaluations_are_due() -> None:
    private = {
        "mode": "local",
        "noise_multiplier": 1.0,
        "delta": 1e-5,
        "clipping_norm": 1.0,
        "sampling_rate": 0.1,
        "expected_batch": 8,
    }
    lineage = Lineage(study(privacy=private), P, DIGEST)
    assert lineage.round(at(2), Kind.EVALUATE, Counter(2, 0)) == 2


@pytest.mark.parametrize(
    ("changes", "once", "afresh"),
    [
        ({}, False, False),
        ({"evaluation": {"every": 2, "release": "exact"}}, False, False),
        ({"privacy": {"mode": "local", "sampling_rate": 0.5}}, False, False),
        (
            {
                "privacy": {"mode": "local", "sampling_rate": 0.5},
                "evaluation": {"every": 2, "release": "exact"},
            },
            True,
            False,
        ),
        (
            {
                "privacy": {"mode": "distributed", "records_max": 1000},
                "training": {"learning_rate": 0.1},
            },
            False,
            True,
        ),
    ],
)
def test_what_is_opened_once_and_what_is_drawn_afresh_follows_from_the_study(
    changes: dict[str, Any], once: bool, afresh: bool
) -> None:
    if "privacy" in changes:
        shared = {"epsilon": 4.0, "delta": 1e-6, "clipping_norm": 1.0, "expected_batch": 64}
        changes = {**changes, "privacy": {**shared, **changes["privacy"]}}
    lineage = Lineage(study(**changes), P, DIGEST)
    assert (lineage.opens_once, lineage.draws_afresh) == (once, afresh)
